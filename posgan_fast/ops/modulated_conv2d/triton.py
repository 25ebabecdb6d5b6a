"""Inference of the style layer in one Triton kernel, where there is one for the call."""

from __future__ import annotations

import torch

from ..bias_act import passes
from ..common import checks, layout
from . import coefs
from .call import Call, empty_output, with_scaled_noise
from .stages import cast, run_stages


def serves(call: Call) -> bool:
    """Tell whether the launch table of the kernel lists a call."""
    from ...kernels import modulated_conv2d as kernel

    return call.up * call.down == 1 and kernel.serves(call.x, call.weight, call.padding)


def infer(call: Call) -> torch.Tensor:
    """Compute a call that asks for no derivative."""
    if not serves(call):
        return run_stages(call, inplace=True)
    call = with_scaled_noise(call)
    weight, styles, dcoefs, pad_map = coefs.factors(call, call.x.dtype)
    weight = weight.to(call.x.dtype, memory_format=torch.channels_last)
    return run(call._replace(pad_map=pad_map), weight, styles, dcoefs, flip=call.flip_weight)


def run(
    call: Call,
    weight: torch.Tensor,
    styles: torch.Tensor | None,
    dcoefs: torch.Tensor | None,
    flip: bool = True,
) -> torch.Tensor:
    """Compute a call that :func:`serves` accepts, from factors in channels_last; without ``styles``, ``weight`` holds
    them, [N * O, I, kh, kw]. ``flip`` correlates, as opposed to convolves."""
    from ...kernels import modulated_conv2d as kernel

    x, y, acc = call.x, empty_output(call), checks.arithmetic(call.x.dtype)
    kernel.modulated_conv2d(
        x,
        weight,
        layout.contiguous_as(acc, styles),
        cast(call.pad_map, x.dtype),
        layout.contiguous_as(acc, dcoefs),
        layout.contiguous_as(acc, call.noise),
        layout.contiguous_as(x.dtype, call.bias),
        y,
        flip,
        passes.rounded(call, x.dtype),
    )
    return y
