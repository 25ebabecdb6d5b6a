r"""modulated_conv2d: the style layer of StyleGAN2 in one call: modulate, pad, convolve, resample, demodulate, activate.

Per sample n, with ``s`` the styles and ``d`` the demodulation coefficients::

    d[n, o] = rsqrt(sum_{i, k} (weight[o, i, k] * s[n, i])^2 + eps)          (1 without demodulation)
    z = conv(pad(x * s[n, i]), weight), resampled by up or down with the filter
    y = clamp(gain * act(z * d[n, o] + noise + bias[o]), -clamp, +clamp)

Without styles it is a plain convolution between the same stages. ``pad`` is zero padding, or with ``pad_map`` the
instance-aware padding of PadInv: the ring of a per-sample map, raw, in the space after modulation. One weight serves
the whole batch; the factors s and d act on activations.

With ``up`` the convolution is transposed, its output [2 * H + 1, 2 * W + 1] for a 3x3 kernel, and the filter follows,
gain ``up^2``; a map then surrounds that output instead, holds one value for each output channel, and is demodulated but
not convolved. With ``down`` the filter precedes a convolution of that stride. Paddings are those of the NVlabs code:
``padding`` counts pixels of the upsampled image, the filter's own are added.

Shapes: ``x`` [N, I, H, W], ``weight`` [O, I, kh, kw], ``styles`` [N, I]; result [N, O, H', W'] in the dtype and memory
format of ``x``, H' = (H * up + 2 * padding - kh + 1) / down rounded up for odd kernels.
Dtypes: of ``x``; the factors are computed in float32 (float64). float16 activations are kept in range by scaling the
weight per filter, the styles and the map per sample, which the coefficients undo: the result is that of float32.
Derivatives: as epilogue2d, in ``x``, ``weight``, ``styles``, ``pad_map``, ``noise`` and ``bias``.

Source: NVlabs stylegan2-ada (``modulated_conv2d``, ``conv2d_resample``); EzioBy/padinv for the map.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from .. import backend as _backend
from . import _check, epilogue2d, prologue2d, upfirdn2d

NAME = "modulated_conv2d"


def modulated_conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    styles: torch.Tensor | None,
    *,
    up: int = 1,
    down: int = 1,
    padding: int = 0,
    pad_map: torch.Tensor | None = None,
    resample_filter: torch.Tensor | None = None,
    demodulate: bool = True,
    flip_weight: bool = True,
    noise: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
    eps: float = 1e-8,
    backend: str | None = None,
) -> torch.Tensor:
    r"""The style layer of StyleGAN2; the module's docstring has the formula.

    Args:
        x: input [N, I, H, W], NCHW or channels_last (kept).
        weight: [O, I, kh, kw], any floating dtype, not per sample.
        styles: [N, I], any floating dtype; None: all 1, without demodulation.
        up, down: factors of resampling; at most one differs from 1.
        padding: on every side, in pixels of the upsampled image, >= 0.
        pad_map: replaces the zeros of ``padding=1``. Without resampling a map [N, I, h, w], h >= H + 2 and w >= W + 2,
            whose centre crop gives the ring, or a ring [N, I, 2 * (H + W) + 4]. With ``up`` the same around the output
            of the transposed convolution, with O channels. Never written.
        resample_filter: of :func:`setup_filter`, for ``up`` and ``down``; None: the identity.
        demodulate: normalise by the expected magnitude of the output.
        flip_weight: True correlates as torch does, False convolves.
        noise: [H', W'], [1, 1, H', W'] or [N, 1, H', W'], its strength included.
        bias, act, alpha, gain, clamp: of :func:`bias_act`.
        eps: under the root of the coefficients.
        backend: "reference", "cpu", "triton" or "cuda"; None lets :mod:`posgan_fast.backend` choose.

    Returns:
        [N, O, H', W'].

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape, factor, size or device.
        BackendError: the chosen backend cannot run this call.
    """
    call = _check_call(x, weight, styles, up, down, padding, pad_map, resample_filter, demodulate, flip_weight, eps)
    call = (*call, noise, bias, act, alpha, gain, clamp, _backend.resolve(NAME, IMPLS, x, backend))
    device = x.device.type
    if not torch.is_autocast_enabled(device):
        return _run(x, *call)
    if x.dtype != torch.float64:
        x = x.to(torch.get_autocast_dtype(device))
    with torch.autocast(device, enabled=False):  # the coefficients are not for half precision
        return _run(x, *call)


def demodulation(weight: torch.Tensor, styles: torch.Tensor, eps: float = 1e-8) -> torch.Tensor:
    """The coefficients ``rsqrt(sum_{i, k} (weight[o, i, k] * styles[n, i])^2 + eps)``, [N, O], as one matrix product.

    ``weight`` [O, I, kh, kw] and ``styles`` [N, I] are float32 or float64.
    """
    return torch.addmm(_scalar(eps, styles), styles.square(), weight.square().sum((2, 3)).t()).rsqrt()


def _check_call(x, weight, styles, up, down, padding, pad_map, resample_filter, demodulate, flip_weight, eps):
    """Validate what the stages do not, and return it with the padding of filter and convolution worked out."""
    _check.tensor(x, "x", ndim=4)
    _check.tensor(weight, "weight", ndim=4)
    _check.same_device(weight, "weight", x)
    n, c, h, w = x.shape
    kh, kw = weight.shape[2:]
    if weight.shape[1] != c or 0 in weight.shape:
        raise ValueError(f"weight: expected shape [O, {c}, kh, kw] for x of {c} channels, got {tuple(weight.shape)}")
    if styles is not None:
        _check.tensor(styles, "styles", shape=(n, c))
        _check.same_device(styles, "styles", x)
    up, down = _check.integer(up, "up", minimum=1), _check.integer(down, "down", minimum=1)
    if up > 1 and down > 1:
        raise ValueError(f"down: expected 1 beside up={up}, got {down}")
    _check.integer(padding, "padding", minimum=0)
    if _check.flag(demodulate, "demodulate") and styles is None:
        raise ValueError("demodulate: expected False without styles, got True")
    _check.flag(flip_weight, "flip_weight")
    _check.real(eps, "eps", minimum=0)
    if pad_map is not None and (padding != 1 or down > 1 or (up > 1 and (kh == 1 or kw == 1))):
        raise ValueError(
            "pad_map: expected None unless padding is 1, down is 1 and, with up, the kernel is larger than a pixel,"
            f" got {padding=}, {down=}, {up=}, kernel {kh} x {kw}"
        )
    if h * up + 2 * padding < kh or w * up + 2 * padding < kw:
        raise ValueError(
            f"padding: expected an input no smaller than the kernel {kh} x {kw}, got {h} x {w}, {padding=}"
        )
    if resample_filter is not None and up * down == 1:
        resample_filter = None
    return weight, styles, up, down, padding, pad_map, resample_filter, demodulate, flip_weight, float(eps)


def _run(x, weight, styles, up, down, padding, pad_map, f, demodulate, flip, eps, noise, bias, *activation):
    """Prologue, convolution, epilogue on the backend that comes last."""
    act, alpha, gain, clamp, backend = activation
    dtype, acc = x.dtype, _check.arithmetic(x.dtype)
    if backend == "reference":  # the definition rounds once, at the end
        x = x.to(acc)
    weight, styles = weight.to(acc), None if styles is None else styles.to(acc)
    scale = demodulation(weight, styles, eps) if demodulate else None  # [N, O]
    if demodulate and x.dtype == torch.float16:
        weight, styles, scale, pad_map = _in_range(weight, styles, scale, pad_map, up)
    weight = weight.to(x.dtype)
    if isinstance(noise, torch.Tensor) and noise.ndim == 2:
        noise = noise[None, None]
    finish: dict[str, Any] = {}  # what the epilogue resamples
    if up > 1:
        y, finish = _enlarge(
            prologue2d.prologue2d(x, styles, backend=backend), weight, up, padding, pad_map, f, flip, backend
        )
    else:
        w = weight if flip else weight.flip((2, 3))
        if down > 1:
            z, stride = _shrink(x, styles, w, down, padding, f, backend)
            y = F.conv2d(z, w, stride=stride)
        elif pad_map is not None:
            z = prologue2d.prologue2d(x, styles, padding=1, mode="instance", pad_map=pad_map, backend=backend)
            y = F.conv2d(z, w)
        else:
            y = F.conv2d(prologue2d.prologue2d(x, styles, backend=backend), w, padding=padding)
    y = epilogue2d.epilogue2d(
        y, scale=scale, noise=noise, b=bias, act=act, alpha=alpha, gain=gain, clamp=clamp, backend=backend, **finish
    )
    return y.to(dtype)


def _shrink(x, styles, w, down, padding, f, backend):
    """Scale and filter ahead of a convolution of that stride; a 1x1 kernel commutes with the decimation."""
    f = upfirdn2d.taps_of(f, x)
    fw, fh = f.shape[-1], f.shape[0]
    pad = [padding + (t - down + i) // 2 for t in (fw, fh) for i in (1, 0)]
    one = w.shape[2:] == (1, 1)
    z = epilogue2d.epilogue2d(x, f, styles, down=down if one else 1, padding=pad, backend=backend)
    return z, 1 if one else down


def _enlarge(z, w, up, padding, pad_map, f, flip, backend):
    """Transposed convolution, and the arguments of the filter behind it; a 1x1 kernel commutes with the insertion."""
    f = upfirdn2d.taps_of(f, z)
    fw, fh = f.shape[-1], f.shape[0]
    kh, kw = w.shape[2:]
    pad = [padding + p for t in (fw, fh) for p in ((t + up - 1) // 2, (t - up) // 2)]  # x0, x1, y0, y1
    if (kh, kw) == (1, 1):
        return F.conv2d(z, w), dict(f=f, up=up, padding=pad, filter_gain=up * up)
    pad = [p - k + q for p, (k, q) in zip(pad, ((kw, 1), (kw, up), (kh, 1), (kh, up)), strict=True)]
    cut = [max(min(-pad[2], -pad[3]), 0), max(min(-pad[0], -pad[1]), 0)]  # height, width
    w = (w.flip((2, 3)) if flip else w).transpose(0, 1)
    y = F.conv_transpose2d(z, w, stride=up, padding=cut)
    pad = [pad[0] + cut[1], pad[1] + cut[1], pad[2] + cut[0], pad[3] + cut[0]]
    if pad_map is not None:
        y = prologue2d.instance_pad2d(y, pad_map, backend=backend)
        pad = [p - 1 for p in pad]
    return y, dict(f=f, padding=pad, filter_gain=up * up)


def _in_range(weight, styles, scale, pad_map, up):
    """float16: weight and styles to magnitude 1, undone by the coefficients, with the map in step. The factors are
    constants to autograd, since the result does not depend on them."""
    per_filter = weight.detach().abs().amax((1, 2, 3)) * weight[0].numel() ** 0.5  # [O]
    per_sample = styles.detach().abs().amax(1)  # [N]
    per_filter, per_sample = (torch.where(t > 0, t, 1) for t in (per_filter, per_sample))
    if pad_map is not None:
        factor = per_sample[:, None] * per_filter if up > 1 else per_sample[:, None]  # [N, O] or [N, 1]
        pad_map = pad_map.to(styles.dtype) / factor.reshape(*factor.shape, *[1] * (pad_map.ndim - 2))
    undo = per_sample[:, None] * per_filter
    return weight / per_filter[:, None, None, None], styles / per_sample[:, None], scale * undo, pad_map


def _scalar(value: float, like: torch.Tensor) -> torch.Tensor:
    return torch.full((1, 1), value, dtype=like.dtype, device=like.device)


def _run_with(backend: str):
    return lambda *arguments: _run(*arguments, backend)


IMPLS = tuple(
    _backend.Impl(name, can_run, _run_with(name))
    for name, can_run in (
        ("cuda", _backend.cuda_can_run),
        ("cpu", _backend.cpu_can_run),
        ("triton", _backend.triton_can_run),
        ("reference", _backend.reference_can_run),
    )
)
