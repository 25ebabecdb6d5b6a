"""The style layer as three differentiable ops: prologue, convolution, epilogue."""

from __future__ import annotations

import torch

from .. import epilogue2d, prologue2d
from ..common import checks, layout
from ..common.records import Resample
from . import coefs, conv2d_resample, trained_factors
from .call import Call, with_scaled_noise
from .trained_factors import Form


def run_stages(call: Call, *, inplace: bool = False) -> torch.Tensor:
    """Compute a call. ``inplace`` lets the epilogue write over the convolution's result, which forbids derivatives."""
    call = with_scaled_noise(call)
    dtype, acc, backend = call.x.dtype, checks.arithmetic(call.x.dtype), call.backend
    call = call._replace(bias=cast(call.bias, acc))
    if backend == "reference":  # the definition rounds once, at the end
        call = call._replace(x=call.x.to(acc))
    # With derivatives the vendor's convolution is the faster one on the CPU.
    if has_few_filters(call) and (inplace or backend in ("cuda", "triton")):
        weight, styles, dcoefs, _ = coefs.factors(call, call.x.dtype)
        return _finish(call, _multiply(call.x, weight, styles), dcoefs, inplace).to(dtype)
    form = form_of(call)
    if trained_factors.serve(call):
        weight, styles, dcoefs, pad_map = trained_factors.factors(call, form)
    else:
        weight, styles, dcoefs, pad_map = coefs.factors(call, call.x.dtype)
        weight = weight.flip((2, 3)) if form.flip else weight
        weight = layout.weight_for(call.x, weight.transpose(0, 1) if form.transposed else weight)
    return _run(call._replace(pad_map=pad_map), weight, styles, dcoefs, inplace).to(dtype)


def infer_stages(
    call: Call, weight: torch.Tensor, styles: torch.Tensor | None, dcoefs: torch.Tensor | None, backend: str
) -> torch.Tensor:
    """Compute a call that asks for no derivative from prepared factors: ``weight`` in the form of the convolution, and
    ``styles`` unless the weight holds them. Noise and bias are as the epilogue reads them."""
    return _run(call._replace(backend=backend), weight, styles, dcoefs, True)


def enlarge(
    call: Call,
    weight: torch.Tensor,
    styles: torch.Tensor | None,
    dcoefs: torch.Tensor | None,
    post_scale: torch.Tensor,
    y: torch.Tensor,
) -> None:
    """Write the result of a call that enlarges, times ``post_scale`` [N, O], to ``y``; on CUDA, from prepared factors
    as :func:`infer_stages` takes them."""
    assert call.f is not None
    x, resample = _upsampled(call, weight, styles)
    epilogue2d.write_scaled(x, call.f, dcoefs, call.noise, call.bias, resample, call.activation, post_scale, y)


def form_of(call: Call) -> Form:
    """Return the form in which the convolution of a call reads its weight."""
    transposed = call.up > 1 and call.weight.shape[2:] != (1, 1)
    # A transposed convolution convolves, a plain one correlates.
    flip = call.flip_weight if transposed else not call.flip_weight
    return Form(call.x.dtype, layout.memory_format(call.x), flip, transposed)


def _run(call, weight, styles, dcoefs, inplace):
    padding, pad_map, f, backend = call.padding, call.pad_map, call.f, call.backend
    if call.up == 1:
        y = conv2d_resample.downsample_conv2d(call.x, weight, styles, call.down, padding, pad_map, f, backend)
        return _finish(call, y, dcoefs, inplace)
    y, resample = _upsampled(call, weight, styles)
    return epilogue2d.run(y, f, dcoefs, call.noise, call.bias, resample, call.activation, backend)


def _upsampled(call, weight, styles):
    """Return the result of the convolution of a call that enlarges, and the resampling that completes it."""
    z = prologue2d.prologue2d(call.x, styles, backend=call.backend)
    return conv2d_resample.upsample_conv2d(z, weight, call.up, call.padding, call.pad_map, call.f, call.backend)


def _finish(call, y, dcoefs, inplace):
    if inplace:
        return epilogue2d.write_over(y, dcoefs, call.noise, call.bias, call.activation, call.backend)
    return epilogue2d.run(y, None, dcoefs, call.noise, call.bias, Resample(), call.activation, call.backend)


def has_few_filters(call: Call) -> bool:
    """Tell whether a weight for each sample is smaller than scaled features, as in layers that make an image."""
    o, i, kh, kw = call.weight.shape
    return (kh, kw) == (1, 1) and 4 * o <= i and call.up * call.down == 1 and call.padding == 0


def _multiply(x: torch.Tensor, weight: torch.Tensor, styles: torch.Tensor) -> torch.Tensor:
    """Convolve with a kernel of one pixel for each sample, which holds the styles, as matrix products."""
    (n, i, h, w), o = x.shape, weight.shape[0]
    kernels = (weight.reshape(1, o, i) * styles[:, None]).to(x.dtype)  # [N, O, I]
    if layout.memory_format(x) == torch.channels_last:
        y = torch.matmul(x.permute(0, 2, 3, 1).reshape(n, h * w, i), kernels.transpose(1, 2))  # [N, H * W, O]
        return y.reshape(n, h, w, o).permute(0, 3, 1, 2)
    return torch.matmul(kernels, x.reshape(n, i, h * w)).reshape(n, o, h, w)


def cast(t: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    return None if t is None else t.to(dtype)
