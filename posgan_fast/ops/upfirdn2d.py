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
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from .. import backend as _backend
from .common import checks, layout
from .common.op import Op, changed, restore, save, static
from .common.records import Resample

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

    Example:
        >>> f = setup_filter([1, 3, 3, 1])
        >>> upfirdn2d(torch.zeros(1, 8, 16, 16), f, up=2, padding=[2, 1, 2, 1], gain=4).shape
        torch.Size([1, 8, 32, 32])
    """
    resample = check(x, f, (up, down, padding, flip_filter, gain))
    return run(x, taps_of(f, x), resample, _backend.resolve(NAME, IMPLS, x, backend))


def filter2d(
    x: torch.Tensor,
    f: torch.Tensor | None,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    gain: float = 1.0,
    *,
    backend: str | None = None,
) -> torch.Tensor:
    """Filter without changing the size: :func:`upfirdn2d` with (fw // 2, (fw - 1) // 2) added to ``padding``.

    Example:
        >>> filter2d(torch.ones(1, 1, 5, 5), setup_filter([1, 2, 1]))[0, 0, 0]
        tensor([0.5625, 0.7500, 0.7500, 0.7500, 0.5625])
    """
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
    multiplied by the factor of both axes, which makes up for the inserted zeros.

    Example:
        >>> upsample2d(torch.zeros(1, 8, 16, 16), setup_filter([1, 3, 3, 1])).shape
        torch.Size([1, 8, 32, 32])
    """
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
    """Shrink by ``down``: :func:`upfirdn2d` with ((fw - down + 1) // 2, (fw - down) // 2) added to ``padding``.

    Example:
        >>> downsample2d(torch.zeros(1, 8, 16, 16), setup_filter([1, 3, 3, 1])).shape
        torch.Size([1, 8, 8, 8])
    """
    return _resample(x, f, 1, down, padding, flip_filter, gain, backend)


class Call(NamedTuple):
    """The arguments of the op, checked; ``f`` in the arithmetic type, ``padding`` for every side."""

    x: torch.Tensor
    f: torch.Tensor
    up: Sequence[int]
    down: Sequence[int]
    padding: Sequence[int]
    flip_filter: bool
    gain: float
    backend: str

    @property
    def resample(self) -> Resample:
        return Resample(self.up, self.down, self.padding, self.flip_filter, self.gain)


def run(x: torch.Tensor, f: torch.Tensor, resample: Resample, backend: str) -> torch.Tensor:
    """Run the op on checked arguments."""
    return OP(Call(x, f, *resample, backend))


def check(x: Any, f: Any, resampling: tuple[Any, Any, Any, Any, Any], gain: str = "gain") -> Resample:
    """Validate the arguments of a user; return the resampling with pairs and with paddings for every side.

    Args:
        resampling: up, down, padding, flip_filter and gain.
        gain: the name of the caller's argument for the gain.
    """
    _check_tensors(x, f)
    up, down = checks.resampling(*resampling[:2])
    pad = checks.padding(resampling[2])
    flip_filter = checks.flag(resampling[3], "flip_filter")
    factor = checks.real(resampling[4], gain)
    fw, fh = _filter_size(f)
    for axis, size, length, scale, before, after in (
        ("width", x.shape[3], fw, up[0], pad[0], pad[1]),
        ("height", x.shape[2], fh, up[1], pad[2], pad[3]),
    ):
        padded = size * scale + before + after
        if padded < length:
            raise ValueError(
                f"padding: expected an upsampled and padded {axis} of at least {length}, the taps of f,"
                f" got {size} * {scale} + {before} + {after} = {padded}"
            )
    return Resample(up, down, pad, flip_filter, factor)


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


def reference(x: torch.Tensor, f: torch.Tensor, resample: Resample) -> torch.Tensor:
    """The definition in plain torch: insert zeros, pad or crop, correlate tap by tap, decimate.

    It calls no convolution of the vendor's, which on GPUs may round its operands to TF32.
    """
    return _define(_correlate, x, f, resample)


def decomposition(x: torch.Tensor, f: torch.Tensor, resample: Resample) -> torch.Tensor:
    """The definition with a grouped convolution: one operator in a graph, where the sum over taps takes many."""
    with torch.autocast(x.device.type, enabled=False):
        return _define(_convolve, x, f, resample)


def _define(correlate, x, f, resample):
    up, down, padding = resample.up, resample.down, resample.padding
    g = f if resample.flip_filter else f.flip(list(range(f.ndim)))
    u = x.to(checks.arithmetic(x.dtype))
    if tuple(up) != (1, 1):
        c, h, w = static(x.shape[1:])
        u = F.pad(u[:, :, :, None, :, None], [0, up[0] - 1, 0, 0, 0, up[1] - 1])  # [N, C, H, up, W, up]
        u = u.reshape(x.shape[0], c, h * up[1], w * up[0])
    u = F.pad(u, [max(p, 0) for p in padding])
    if min(padding) < 0:  # crop after padding: a side may lose more than it had before
        u = F.pad(u, [min(p, 0) for p in padding])
    if g.ndim == 2:
        u = correlate(u, resample.gain * g, down)
    else:
        u = correlate(correlate(u, g[None, :], (down[0], 1)), resample.gain * g[:, None], (1, down[1]))
    return layout.in_format_of(u.to(x.dtype), x)


def _correlate(u, g, down):
    """Correlate ``u`` [N, C, H, W] with ``g`` [kh, kw], unpadded, and keep every ``down``-th [x, y] result."""
    kh, kw = g.shape
    y = 0
    for i in range(kh):
        rows = u[:, :, i : i + 1 - kh or None : down[1]]
        for j in range(kw):
            y = y + g[i, j] * rows[:, :, :, j : j + 1 - kw or None : down[0]]
    return y


def _convolve(u, g, down):
    """Compute :func:`_correlate` as a convolution with one group for each channel."""
    (c,) = static(u.shape[1:2])
    return F.conv2d(u, g.expand(c, 1, *g.shape), stride=(down[1], down[0]), groups=c)


def _setup_context(ctx, call, result):
    save(ctx, call, "f")
    ctx.in_size, ctx.out_size = call.x.shape[2:], result.shape[2:]


def _backward(ctx, dy, wanted):
    call, _ = restore(ctx)
    return {"x": run(dy, call.f, transposed(call.resample, call.f, ctx.in_size, ctx.out_size), call.backend)}


def run_native(x: torch.Tensor, f: torch.Tensor, resample: Resample, y: torch.Tensor) -> None:
    """Write the result of the native op to ``y``."""
    (upx, upy), (downx, downy), pad, flip, gain = resample
    torch.ops.posgan_fast_native.upfirdn2d(x, f, y, upx, upy, downx, downy, pad[0], pad[2], flip, gain)


def _run_native(call, y):
    run_native(call.x, call.f, call.resample, y)


def _run_triton(call, y):
    from ..kernels import upfirdn2d as kernel

    kernel.upfirdn2d(call.x, call.f, y, call.resample)


def _run_reference(call, y):
    y.copy_(reference(call.x, call.f, call.resample))


IMPLS = (
    _backend.Impl("cuda", _backend.cuda_can_run, _run_native),
    _backend.Impl("cpu", _backend.cpu_can_run, _run_native),
    _backend.Impl("triton", _backend.triton_can_run, _run_triton),
    _backend.Impl("reference", _backend.reference_can_run, _run_reference),
)


def _kernel(call):
    y = _empty(call)
    if y.numel():
        call = changed(call, x=layout.readable(call.x))
        _backend.implementation(NAME, IMPLS, call.x, call.backend)(call, y)
    return y


def _empty(call):
    return empty_output(call.x, call.f, call.resample)


OP = Op(
    "upfirdn2d(Tensor x, Tensor f, int[2] up, int[2] down, SymInt[4] padding, bool flip_filter, float gain,"
    " str backend) -> Tensor",
    Call,
    fake=_empty,
    kernel=_kernel,
    decomposition=lambda call: decomposition(call.x, call.f, call.resample),
    setup_context=_setup_context,
    backward=_backward,
    samples=("x",),
)


def _resample(x, f, up, down, padding, flip_filter, gain, backend):
    _check_tensors(x, f)
    (ux, uy), (dx, dy) = checks.resampling(up, down)
    px0, px1, py0, py1 = checks.padding(padding)
    gain = checks.real(gain, "gain")
    fw, fh = _filter_size(f)
    px0, px1 = px0 + (fw + ux - dx) // 2, px1 + (fw - ux * dx) // 2  # one of up and down is 1
    py0, py1 = py0 + (fh + uy - dy) // 2, py1 + (fh - uy * dy) // 2
    return upfirdn2d(x, f, (ux, uy), (dx, dy), (px0, px1, py0, py1), flip_filter, gain * ux * uy, backend=backend)


def taps_of(f: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
    """Return ``f`` as the op takes it: dense, in the arithmetic type. None becomes the identity."""
    dtype = checks.arithmetic(x.dtype)
    if f is None:
        return torch.ones(1, 1, dtype=dtype, device=x.device)
    return f.detach().to(dtype).contiguous()


def _filter_size(f: torch.Tensor | None) -> tuple[int, int]:
    return (1, 1) if f is None else (f.shape[-1], f.shape[0])


def out_size(x: torch.Tensor, f: torch.Tensor | None, resample: Resample) -> tuple[int, int]:
    """Return the height and width of the result."""
    fw, fh = _filter_size(f)
    up, down, (left, right, top, bottom) = resample.up, resample.down, resample.padding
    height = (x.shape[2] * up[1] + top + bottom - fh) // down[1] + 1
    return height, (x.shape[3] * up[0] + left + right - fw) // down[0] + 1


def transposed(resample: Resample, f: torch.Tensor, in_size: Sequence[int], out_size: Sequence[int]) -> Resample:
    """Return the resampling of the transposed operator, which maps ``out_size`` to ``in_size`` (height, width)."""
    fw, fh = _filter_size(f)
    up, down, (left, _, top, _) = resample.up, resample.down, resample.padding
    (ih, iw), (oh, ow) = in_size, out_size
    padding = (
        fw - 1 - left, iw * up[0] - ow * down[0] + left - up[0] + 1,
        fh - 1 - top, ih * up[1] - oh * down[1] + top - up[1] + 1,
    )  # fmt: skip
    return Resample(down, up, padding, not resample.flip_filter, resample.gain)


def empty_output(x: torch.Tensor, f: torch.Tensor | None, resample: Resample) -> torch.Tensor:
    """Return an empty result in the dtype and memory format of ``x``."""
    return layout.empty(x, (*x.shape[:2], *out_size(x, f, resample)))
