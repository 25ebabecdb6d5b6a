"""Inference of the style layer by Winograd's algorithm: one kernel from the features to the activation, or, in layers
that enlarge, to the filter."""

from __future__ import annotations

from typing import Any

import torch

from .. import epilogue2d, winograd3x3
from ..winograd3x3 import Form
from . import coefs, conv2d_resample
from .call import Call


def reason_against(call: Call) -> str | None:
    """Return why a direct convolution serves a call in inference, or None if Winograd's does."""
    x, weight, up, down = call.x, call.weight, call.up, call.down
    if max(up, down) > 2:
        return f"it resamples by {max(up, down)}"
    size = conv2d_resample.out_size(x, weight, up, down, call.padding, call.f)
    if up == 2:
        size = [2 * s + 1 for s in x.shape[2:]]
        if weight.shape[2:] == (3, 3) and any(conv2d_resample.up_padding(weight, up, call.padding, call.f)[1]):
            return "the padding crops the result"
    return winograd3x3.reason_against(x, weight, _form(call), size, winograd3x3.DTYPES)


def infer(call: Call) -> torch.Tensor:
    """Compute a call that Winograd's algorithm serves."""
    form = _form(call)
    # The reversed kernel of a transposed convolution is the one that a plain convolution reads as it is.
    flip = call.flip_weight == (form == Form.UP)
    size = conv2d_resample.out_size(call.x, call.weight, call.up, call.down, call.padding, call.f)
    tiles = winograd3x3.tiles_of(call.x, form, size)
    if form == Form.UP and call.pad_map is not None:
        tiles = None  # the coefficients are factors of the map too
    weight = winograd3x3.prepare(call.weight, form, flip, tiles=tiles)
    dcoefs, arguments = None, dict[str, Any](in_scale=call.styles)
    if call.demodulate and weight.squares is not None:
        dcoefs = coefs.from_squares(weight.squares, call.styles, call.eps)
    elif call.demodulate:  # the kernel has all that it takes
        arguments.update(eps=call.eps)
    if form == Form.UP:
        y = winograd3x3.run(call.x, weight, form, **arguments)
        return _filter_enlarged(call, y, dcoefs)
    x, padding = call.x, call.padding
    if form == Form.DOWN:
        (x, _), padding = conv2d_resample.filtered(x, call.weight, None, call.down, padding, call.f, "cpu"), 0
    if call.pad_map is not None:
        arguments.update(mode=2, pad_map=call.pad_map)
    epilogue: dict[str, Any] = dict(scale=dcoefs, shift=call.bias, noise=call.noise)
    return winograd3x3.activated(x, weight, form, call.activation, padding=padding, **epilogue, **arguments)


def _filter_enlarged(call: Call, y: torch.Tensor, dcoefs: torch.Tensor | None) -> torch.Tensor:
    """Complete the result of the transposed convolution by the filter and what follows it."""
    pad, _ = conv2d_resample.up_padding(call.weight, call.up, call.padding, call.f)
    y, resample = conv2d_resample.surrounded(y, call.up, pad, call.pad_map, "cpu")
    return epilogue2d.run(y, call.f, dcoefs, call.noise, call.bias, resample, call.activation, "cpu")


def _form(call: Call) -> Form:
    return Form.UP if call.up > 1 else Form.DOWN if call.down > 1 else Form.PLAIN
