"""Inference of the style layer in one Triton kernel, where there is one for the call."""

from __future__ import annotations

import torch

from ..bias_act import passes
from ..common import checks, layout
from . import coefs
from .call import Call, empty_output
from .stages import cast, run_stages


def infer(call: Call) -> torch.Tensor:
    """Compute a call that asks for no derivative."""
    from ...kernels import modulated_conv2d as kernel

    if call.up > 1 or call.down > 1 or not kernel.serves(call.x, call.weight, call.padding):
        return run_stages(call, inplace=True)
    x, y = call.x, empty_output(call)
    factors, acc = coefs.factors(call, x.dtype), checks.arithmetic(x.dtype)
    kernel.modulated_conv2d(
        x,
        factors.weight.contiguous(memory_format=torch.channels_last),
        factors.styles.contiguous(),
        cast(factors.pad_map, x.dtype),
        layout.contiguous_as(acc, factors.dcoefs),
        layout.contiguous_as(acc, call.noise),
        layout.contiguous_as(x.dtype, call.bias),
        y,
        call.flip_weight,
        passes.rounded(call, x.dtype),
    )
    return y
