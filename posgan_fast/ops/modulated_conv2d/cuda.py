"""Inference of the style layer on CUDA: one launch prepares its factors, the vendor convolves, and the epilogue writes
over the result. Layers that the launch table of the fused Triton kernel lists are that kernel."""

from __future__ import annotations

import functools
import warnings
from typing import NamedTuple

import torch

from ... import backend as _backend
from ..common import checks, layout
from . import triton
from .call import Call
from .stages import infer_stages, run_stages

FUSED, STAGES = "one Triton kernel", "stages"
_SHARED = 40 * 2**10  # bytes for a number of each channel and sample, which the kernel keeps in shared memory


def infer(call: Call) -> torch.Tensor:
    """Compute a call that asks for no derivative."""
    n, c = call.x.shape[:2]
    itemsize = checks.arithmetic(call.x.dtype).itemsize
    if n == 0 or (n + c) * itemsize > _SHARED or _has_map_beside_scaled_factors(call):
        return run_stages(call, inplace=True)
    if algorithm(call) == FUSED and _triton_fails_on(call.x.device) is None:
        call, weight, styles, dcoefs = prepare(call, fold=call.pad_map is None, flip=not call.flip_weight)
        return triton.run(call, weight, styles, dcoefs)
    fold = n == 1 and (call.pad_map is None or call.up > 1)  # put the only sample's styles into the weight
    transposed = call.up > 1 and call.weight.shape[2:] != (1, 1)
    # A transposed convolution convolves, a plain one correlates.
    flip = call.flip_weight if call.up > 1 else not call.flip_weight
    call, weight, styles, dcoefs = prepare(call, fold=fold, flip=flip, transposed=transposed)
    return infer_stages(call, weight, styles, dcoefs, "cuda")


def algorithm(call: Call) -> str:
    """Tell what computes a call that asks for no derivative, if Triton can compile on this machine."""
    return FUSED if _backend.triton_can_run(call.x) is None and triton.serves(call) else STAGES


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


def _has_map_beside_scaled_factors(call: Call) -> bool:
    """Tell whether a padding map has to be scaled in step with factors that keep float16 in range."""
    return call.pad_map is not None and call.demodulate and call.x.dtype == torch.float16


class Prepared(NamedTuple):
    """A call whose noise and bias are as the epilogue reads them; the weight in the dtype and strides of the
    convolution; styles [N, I], None where the weight holds them, and demodulation coefficients [N, O], in the
    arithmetic type."""

    call: Call
    weight: torch.Tensor
    styles: torch.Tensor | None
    dcoefs: torch.Tensor | None


def prepare(call: Call, *, fold: bool, flip: bool, transposed: bool = False) -> Prepared:
    """Prepare in one launch what the convolution and the epilogue of a call read.

    Args:
        call: the call, with at least one sample.
        fold: put the styles into the weight: [O, I, kh, kw] for one sample, [N * O, I, kh, kw] for several.
        flip: reverse the stored kernel.
        transposed: return the weight as [I, O, kh, kw].
    """
    x, acc = call.x, checks.arithmetic(call.x.dtype)
    weight, styles = call.weight.to(acc).contiguous(), _with_dense_rows(call.styles.to(acc))
    (n, i), (o, _, kh, kw) = styles.shape, weight.shape
    shape = (i, o, kh, kw) if transposed else (o * n if fold else o, i, kh, kw)
    out = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=layout.memory_format(x))
    dcoefs = styles.new_empty((n, o)) if call.demodulate else None
    scaled = styles.new_empty((n, i)) if call.demodulate and x.dtype == torch.float16 and not fold else None
    bias, cast_bias = layout.contiguous_as(acc, call.bias), None
    if bias is not None and x.dtype != acc:
        cast_bias = torch.empty_like(bias, dtype=x.dtype)
    noise, strength, scaled_noise = layout.contiguous_as(acc, call.noise), None, None
    if noise is not None and call.noise_strength is not None:
        strength, scaled_noise = call.noise_strength.to(acc), torch.empty_like(noise)
    torch.ops.posgan_fast_native.modulated_factors(
        weight, styles, None if cast_bias is None else bias, None if strength is None else noise, strength, out,
        cast_bias, dcoefs, scaled, scaled_noise, call.eps, fold, transposed, flip,
    )  # fmt: skip
    call = call._replace(
        bias=bias if cast_bias is None else cast_bias, noise=noise if scaled_noise is None else scaled_noise
    )
    return Prepared(call, out, None if fold else styles if scaled is None else scaled, dcoefs)


def _with_dense_rows(styles: torch.Tensor) -> torch.Tensor:
    return styles if styles.shape[1] == 1 or styles.stride(1) == 1 else styles.contiguous()
