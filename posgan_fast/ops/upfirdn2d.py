r"""upfirdn2d: upsample, pad or crop, filter, downsample, in one pass.

Per channel and axis, with ``g = f`` reversed unless ``flip_filter``::

    u[j] = x[j / up] if up divides j and 0 <= j / up < size, else 0
    y[o] = gain * sum_k g[k] * u[o * down + k - pad_before]
    size_out = floor((size * up + pad_before + pad_after - taps) / down) + 1

Shapes: ``x`` [N, C, H, W], ``f`` [taps] (separable, same taps on both axes), [fh, fw], or None (identity); result
[N, C, H_out, W_out] in the dtype of ``x`` and its memory format (NCHW or channels_last).
Dtypes: ``x`` float16, bfloat16, float32, float64; sums run in float32, for float64 in float64. ``f`` is any of these
and is read as float32 (float64). Under autocast the op runs in the dtype of ``x``.
Derivatives: any order in ``x``, each an upfirdn2d with up and down exchanged. None in ``f``: asking for one raises.

Source: NVlabs stylegan2-ada and stylegan3 define the contract (names, padding, flip and gain).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from .. import backend as _backend
from .common import checks, layout
from .common.op import Op, static

NAME = "upfirdn2d"


def upfirdn2d(
    x: torch.Tensor,
    f: torch.Tensor | None,
    up: int | Sequence[int] = 1,
    down: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1.0,
    *,
    backend: str | None = None,
) -> torch.Tensor:
    r"""Upsample by zero insertion, pad (or crop) with zeros, filter, and keep every ``down``-th sample.

    ``y[o] = gain * sum_k g[k] * u[o * down + k - pad_before]`` per axis; the module's docstring has the whole formula.

    Args:
        x: input [N, C, H, W], float16, bfloat16, float32 or float64, NCHW or channels_last (kept).
        f: filter [taps] (separable), [fh, fw], or None for the identity.
        up: factor of zero insertion, int or [x, y].
        down: factor of decimation, int or [x, y].
        padding: samples of the upsampled image added on each side, negative ones cropped: int, [x, y] or
            [x_before, x_after, y_before, y_after].
        flip_filter: False convolves, True correlates.
        gain: factor on the result.
        backend: "reference", "cpu", "triton" or "cuda"; None lets :mod:`posgan_fast.backend` choose.

    Returns:
        [N, C, H_out, W_out], ``size_out = (size * up + pad_before + pad_after - taps) // down + 1``.

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape, factor or device, a filter that requires a gradient, or an empty result.
        BackendError: the chosen backend cannot run this call.
    """
    up, down, pad = check(x, f, up, down, padding, flip_filter, gain)
    return OP(x, taps_of(f, x), up, down, pad, flip_filter, float(gain), _backend.resolve(NAME, IMPLS, x, backend))


def filter2d(
    x: torch.Tensor,
    f: torch.Tensor | None,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1.0,
    *,
    backend: str | None = None,
) -> torch.Tensor:
    """Filter without changing the size: :func:`upfirdn2d` with (fw // 2, (fw - 1) // 2) added to ``padding``."""
    return _resample(x, f, 1, 1, padding, flip_filter, gain, backend)


def upsample2d(
    x: torch.Tensor,
    f: torch.Tensor | None,
    up: int | Sequence[int] = 2,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1.0,
    *,
    backend: str | None = None,
) -> torch.Tensor:
    """Enlarge by ``up``: :func:`upfirdn2d` with ((fw + up - 1) // 2, (fw - up) // 2) added to ``padding`` and the gain
    multiplied by the factor of both axes, which makes up for the inserted zeros."""
    return _resample(x, f, up, 1, padding, flip_filter, gain, backend)


def downsample2d(
    x: torch.Tensor,
    f: torch.Tensor | None,
    down: int | Sequence[int] = 2,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1.0,
    *,
    backend: str | None = None,
) -> torch.Tensor:
    """Shrink by ``down``: :func:`upfirdn2d` with ((fw - down + 1) // 2, (fw - down) // 2) added to ``padding``."""
    return _resample(x, f, 1, down, padding, flip_filter, gain, backend)


def setup_filter(
    f: Any,
    device: torch.device | str | None = None,
    normalize: bool = True,
    flip_filter: bool = False,
    gain: float = 1.0,
    separable: bool | None = None,
) -> torch.Tensor:
    """Prepare a float32 filter for the ops of this module; the argument is never modified.

    Args:
        f: numbers, array or tensor of shape [taps], [fh, fw] or []; None stands for the identity.
        device: where the result goes; None: where a tensor is, else the default device.
        normalize: divide by the sum.
        flip_filter: reverse every axis.
        gain: factor on the whole filter (its square root on each axis of a separable one).
        separable: keep rank 1 (True) or expand to the outer product (False); None keeps 8 taps and more.

    Raises:
        TypeError: ``f`` is not numeric, or another argument of the wrong type.
        ValueError: ``f`` has more than two axes, is empty or not finite, sums to zero under ``normalize``, or is
            two-dimensional with ``separable=True``; ``gain`` is negative for a separable filter.
    """
    try:
        here = f.device if isinstance(f, torch.Tensor) else "cpu"  # the sum is read, whatever the default device
        taps = torch.as_tensor(1.0 if f is None else f, dtype=torch.float32, device=here).detach().clone()
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise TypeError(f"f: expected numbers, an array or a tensor, got {type(f).__name__} ({error})") from None
    if taps.ndim > 2 or taps.numel() == 0:
        raise ValueError(f"f: expected a non-empty filter [taps] or [fh, fw], got shape {tuple(taps.shape)}")
    if taps.is_meta:
        raise ValueError("f: expected taps that can be read, got some on the device meta")
    if not taps.isfinite().all():
        raise ValueError("f: expected finite taps, got NaN or infinity")
    gain, normalize = checks.real(gain, "gain"), checks.flag(normalize, "normalize")
    checks.flag(flip_filter, "flip_filter")
    checks.device(device)
    if separable is not None:
        checks.flag(separable, "separable")
    if taps.ndim == 0:
        taps = taps[None]
    if separable is None:
        separable = taps.ndim == 1 and taps.numel() >= 8
    if separable and taps.ndim == 2:
        raise ValueError(f"separable: expected False or None for a filter of shape {tuple(taps.shape)}, got True")
    if separable and gain < 0:
        raise ValueError(f"gain: expected a number >= 0 for a separable filter, got {gain}")
    if taps.ndim == 1 and not separable:
        taps = torch.outer(taps, taps)
    if normalize:
        total = taps.sum()
        if total == 0:
            raise ValueError("f: expected taps with a non-zero sum to normalise, got a sum of 0")
        taps = taps / total
    if flip_filter:
        taps = taps.flip(list(range(taps.ndim)))
    if device is None and not isinstance(f, torch.Tensor):
        device = torch.get_default_device()
    return (taps * gain ** (taps.ndim / 2)).contiguous().to(device)


_LIBRARY = torch.library.Library("posgan_fast", "FRAGMENT")
_LIBRARY.define(
    "upfirdn2d(Tensor x, Tensor f, int[2] up, int[2] down, SymInt[4] padding, bool flip_filter, float gain,"
    " str backend) -> Tensor"
)


def check(
    x: Any, f: Any, up: Any, down: Any, padding: Any, flip_filter: Any, gain: Any
) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int, int, int]]:
    """Validate a call and return up, down and padding in full."""
    _check_tensors(x, f)
    up, down = checks.resampling(up, down)
    pad = checks.padding(padding)
    checks.flag(flip_filter, "flip_filter")
    checks.real(gain, "gain")
    fw, fh = _filter_size(f)
    for axis, size, length, factor, before, after in (
        ("width", x.shape[3], fw, up[0], pad[0], pad[1]),
        ("height", x.shape[2], fh, up[1], pad[2], pad[3]),
    ):
        padded = size * factor + before + after
        if padded < length:
            raise ValueError(
                f"padding: expected an upsampled and padded {axis} of at least {length}, the taps of f,"
                f" got {size} * {factor} + {before} + {after} = {padded}"
            )
    return up, down, pad


def _check_tensors(x: Any, f: Any) -> None:
    checks.tensor(x, "x", ndim=4)
    if x.shape[1] == 0 or x.shape[2] == 0 or x.shape[3] == 0:
        raise ValueError(f"x: expected at least one channel, row and column, got shape {tuple(x.shape)}")
    check_filter(f, "f", x)


def check_filter(f: Any, name: str, x: torch.Tensor) -> None:
    if f is None:
        return
    checks.tensor(f, name)
    checks.same_device(f, name, x)
    if f.ndim not in (1, 2) or f.numel() == 0:
        raise ValueError(f"{name}: expected a non-empty filter [taps] or [fh, fw], got shape {tuple(f.shape)}")
    if f.requires_grad and torch.is_grad_enabled():
        raise ValueError(f"{name}: expected a filter without gradient, got requires_grad=True; there is none for it")


@torch.library.register_fake("posgan_fast::upfirdn2d", lib=_LIBRARY)
def _fake(x, f, up, down, padding, flip_filter, gain, backend):
    return empty_output(x, f, up, down, padding)


def reference(x, f, up, down, padding, flip_filter, gain):
    """The definition in plain torch: insert zeros, pad or crop, correlate tap by tap, decimate.

    No convolution of the vendor's: on GPUs it may round its operands to TF32.
    """
    return _define(_correlate, x, f, up, down, padding, flip_filter, gain)


def decomposition(x, f, up, down, padding, flip_filter, gain, backend=None):
    """The definition with a convolution for each channel: one operator in a graph, where a sum over taps is sixteen."""
    with torch.autocast(x.device.type, enabled=False):
        return _define(_convolve, x, f, up, down, padding, flip_filter, gain)


def _define(correlate, x, f, up, down, padding, flip_filter, gain):
    acc = checks.arithmetic(x.dtype)
    g = f if flip_filter else f.flip(list(range(f.ndim)))
    u = x.to(acc)
    if tuple(up) != (1, 1):
        c, h, w = static(x.shape[1:])
        u = F.pad(u[:, :, :, None, :, None], [0, up[0] - 1, 0, 0, 0, up[1] - 1])  # [N, C, H, up, W, up]
        u = u.reshape(x.shape[0], c, h * up[1], w * up[0])
    u = F.pad(u, [max(p, 0) for p in padding])
    if min(padding) < 0:  # apart, since more may be cropped on a side than there was before padding
        u = F.pad(u, [min(p, 0) for p in padding])
    if g.ndim == 2:
        u = correlate(u, gain * g, down)
    else:
        u = correlate(correlate(u, g[None, :], (down[0], 1)), gain * g[:, None], (1, down[1]))
    return layout.in_format_of(u.to(x.dtype), x)


def _correlate(u, g, down):
    """``u`` [N, C, H, W] correlated with ``g`` [kh, kw] where it lies inside, every ``down``-th [x, y] result."""
    kh, kw = g.shape
    y = 0
    for i in range(kh):
        rows = u[:, :, i : i + 1 - kh or None : down[1]]
        for j in range(kw):
            y = y + g[i, j] * rows[:, :, :, j : j + 1 - kw or None : down[0]]
    return y


def _convolve(u, g, down):
    """:func:`_correlate` as a convolution with one group for each channel."""
    (c,) = static(u.shape[1:2])
    return F.conv2d(u, g.expand(c, 1, *g.shape), stride=(down[1], down[0]), groups=c)


def _setup_context(ctx, inputs, output):
    x, f, ctx.up, ctx.down, ctx.padding, ctx.flip_filter, ctx.gain, ctx.backend = inputs
    ctx.save_for_backward(f)
    ctx.in_size, ctx.out_size = x.shape[2:], output.shape[2:]


def _backward(ctx, dy):
    (f,) = ctx.saved_tensors
    pad = transposed_padding(f, ctx.up, ctx.down, ctx.padding, ctx.in_size, ctx.out_size)
    grad = OP(dy, f, ctx.down, ctx.up, pad, not ctx.flip_filter, ctx.gain, ctx.backend)
    return grad, None, None, None, None, None, None, None


def _run_native(x, f, up, down, padding, flip_filter, gain):
    y = empty_output(x, f, up, down, padding)
    if y.numel():
        torch.ops.posgan_fast_native.upfirdn2d(
            layout.readable(x), f, y, up[0], up[1], down[0], down[1], padding[0], padding[2], flip_filter, gain
        )
    return y


def _run_triton(x, f, up, down, padding, flip_filter, gain):
    from ..kernels import upfirdn2d as kernel
    from ..kernels.records import Resample

    y = empty_output(x, f, up, down, padding)
    if y.numel():
        kernel.upfirdn2d(layout.readable(x), f, y, Resample(up, down, padding, flip_filter, gain))
    return y


IMPLS = (
    _backend.Impl("cuda", _backend.cuda_can_run, _run_native),
    _backend.Impl("cpu", _backend.cpu_can_run, _run_native),
    _backend.Impl("triton", _backend.triton_can_run, _run_triton),
    _backend.Impl("reference", _backend.reference_can_run, reference),
)


def _dispatch(x, f, up, down, padding, flip_filter, gain, backend):
    return _backend.implementation(NAME, IMPLS, x, backend)(x, f, up, down, padding, flip_filter, gain)


OP = Op(_LIBRARY, NAME, _dispatch, decomposition, _setup_context, _backward, samples=(0,))


def _resample(x, f, up, down, padding, flip_filter, gain, backend):
    _check_tensors(x, f)
    (ux, uy), (dx, dy) = checks.resampling(up, down)
    px0, px1, py0, py1 = checks.padding(padding)
    gain = checks.real(gain, "gain")
    fw, fh = _filter_size(f)
    px0, px1 = px0 + (fw + ux - dx) // 2, px1 + (fw - ux * dx) // 2  # up or down is 1
    py0, py1 = py0 + (fh + uy - dy) // 2, py1 + (fh - uy * dy) // 2
    return upfirdn2d(x, f, (ux, uy), (dx, dy), (px0, px1, py0, py1), flip_filter, gain * ux * uy, backend=backend)


def taps_of(f: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
    """``f`` as the op takes it: dense, in the arithmetic type; None is the identity."""
    dtype = checks.arithmetic(x.dtype)
    if f is None:
        return torch.ones(1, 1, dtype=dtype, device=x.device)
    return f.detach().to(dtype).contiguous()


def _filter_size(f: torch.Tensor | None) -> tuple[int, int]:
    return (1, 1) if f is None else (f.shape[-1], f.shape[0])


def out_size(x, f, up, down, padding) -> tuple[int, int]:
    """Height and width of the result."""
    fw, fh = _filter_size(f)
    height = (x.shape[2] * up[1] + padding[2] + padding[3] - fh) // down[1] + 1
    return height, (x.shape[3] * up[0] + padding[0] + padding[1] - fw) // down[0] + 1


def transposed_padding(f, up, down, padding, in_size, out_size) -> list[int]:
    """Padding of the upfirdn2d that transposes one with these arguments; sizes are (height, width)."""
    fw, fh = _filter_size(f)
    (ih, iw), (oh, ow) = in_size, out_size
    px0, _, py0, _ = padding
    return [
        fw - 1 - px0, iw * up[0] - ow * down[0] + px0 - up[0] + 1,
        fh - 1 - py0, ih * up[1] - oh * down[1] + py0 - up[1] + 1,
    ]  # fmt: skip


def empty_output(x, f, up, down, padding):
    return layout.empty(x, (*x.shape[:2], *out_size(x, f, up, down, padding)))
