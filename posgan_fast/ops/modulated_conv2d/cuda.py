"""Inference of the style layer on CUDA: one launch prepares its factors, the vendor convolves, and the epilogue writes
over the result. Layers that the launch table of the fused Triton kernel lists are that kernel."""

from __future__ import annotations

import functools
import warnings
from typing import NamedTuple

import torch

from ... import backend as _backend
from ..common import checks, layout
from . import trained_factors, triton
from .call import Call
from .stages import enlarge, form_of, infer_stages, run_stages
from .trained_factors import Form

FUSED, STAGES = "one Triton kernel", "stages"


def infer(call: Call) -> torch.Tensor:
    """Compute a call that asks for no derivative."""
    if not trained_factors.fits_one_launch(call):
        return run_stages(call, inplace=True)
    if algorithm(call) == FUSED and _triton_fails_on(call.x.device) is None:
        call, weight, styles, dcoefs = prepare(call, form_of(call), fold=_has_small_weights(call))
        return triton.run(call, weight, styles, dcoefs)
    # Put the only sample's styles into the weight.
    fold = call.x.shape[0] == 1 and (call.pad_map is None or call.up > 1)
    call, weight, styles, dcoefs = prepare(call, form_of(call), fold=fold)
    return infer_stages(call, weight, styles, dcoefs, "cuda")


def infer_pair(first: Call, second: Call) -> torch.Tensor:
    """Compute a call that enlarges and one of its result, ``second.x``, to which nothing was written yet."""
    then = prepare(second, form_of(second), fold=False)
    assert then.styles is not None
    call, weight, styles, dcoefs = prepare(first, form_of(first), fold=False)
    enlarge(call, weight, styles, dcoefs, then.styles, second.x)
    return layout.as_empty(infer_stages(then.call, then.weight, None, then.dcoefs, "cuda"), second.x)


def algorithm(call: Call) -> str:
    """Tell what computes a call that asks for no derivative, if Triton can compile on this machine."""
    fuses = trained_factors.fits_one_launch(call) and _backend.triton_can_run(call.x) is None and triton.serves(call)
    return FUSED if fuses else STAGES


def _has_small_weights(call: Call) -> bool:
    """Tell whether a weight for each sample, which holds the styles, has fewer elements than the features."""
    o, _, kh, kw = call.weight.shape
    return call.pad_map is None and o * kh * kw < call.x.shape[2] * call.x.shape[3]


@functools.cache
def _triton_fails_on(device: torch.device) -> str | None:
    """Return why Triton cannot compile for a device, with a warning, or None."""
    from ...kernels import probe

    reason = probe.failure(device)
    if reason is not None:
        warnings.warn(
            "modulated_conv2d: separate stages serve layers for which there is a fused kernel, because Triton cannot"
            f" compile it here: {reason}",
            RuntimeWarning,
            stacklevel=2,
        )
    return reason


class Prepared(NamedTuple):
    """A call whose noise and bias are as the epilogue reads them; the weight in the dtype and strides of the
    convolution; styles [N, I], None where the weight holds them, and demodulation coefficients [N, O], in the
    arithmetic type."""

    call: Call
    weight: torch.Tensor
    styles: torch.Tensor | None
    dcoefs: torch.Tensor | None


def prepare(call: Call, form: Form, *, fold: bool) -> Prepared:
    """Prepare in one launch what the convolution and the epilogue of a call read.

    Args:
        call: the call, with at least one sample.
        form: the arrangement of the weight.
        fold: put the styles into the weight: [O, I, kh, kw] for one sample, [N * O, I, kh, kw] for several.
    """
    x, acc = call.x, checks.arithmetic(call.x.dtype)
    weight = trained_factors.dense(call.weight.to(acc))
    styles = trained_factors.with_dense_rows(call.styles.to(acc))
    (n, i), o = styles.shape, weight.shape[0]
    out = trained_factors.empty_weight(weight, form, o * n if fold else o)
    dcoefs = styles.new_empty((n, o)) if call.demodulate else None
    scaled = None if fold else styles.new_empty((n, i))
    bias, cast_bias = layout.contiguous_as(acc, call.bias), None
    if bias is not None and x.dtype != acc:
        cast_bias = torch.empty_like(bias, dtype=x.dtype)
    noise, strength, scaled_noise = layout.contiguous_as(acc, call.noise), None, None
    if noise is not None and call.noise_strength is not None:
        strength, scaled_noise = call.noise_strength.to(acc), torch.empty_like(noise)
    torch.ops.posgan_fast_native.modulated_factors(
        weight, styles, None if cast_bias is None else bias, None if strength is None else noise, strength, out,
        cast_bias, dcoefs, scaled, scaled_noise, None, call.eps, fold, form.transposed, form.flip,
    )  # fmt: skip
    call = call._replace(
        bias=bias if cast_bias is None else cast_bias, noise=noise if scaled_noise is None else scaled_noise
    )
    return Prepared(call, out, scaled, dcoefs)
