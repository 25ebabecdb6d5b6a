"""Inference of the style layer by Winograd's algorithm: one kernel from the features to the activation, or, in layers
that enlarge, to the filter."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .. import epilogue2d, winograd3x3
from ..common.op import is_recorded
from ..winograd3x3 import Form
from . import coefs, conv2d_resample
from .call import Call


def reason_against(call: Call) -> str | None:
    """Return why a direct convolution serves a call, or None if Winograd's does."""
    weight, up, down = call.weight, call.up, call.down
    if max(up, down) > 2:
        return f"it resamples by {max(up, down)}"
    crops = up == 2 and any(conv2d_resample.up_padding(weight, up, call.padding, call.f)[1])
    if crops and weight.shape[2:] == (3, 3):
        return "the padding crops the result"
    dtypes = (torch.float32,) if is_recorded(call) else winograd3x3.DTYPES
    return winograd3x3.reason_against(call.x, weight, _form(call), _size(call), dtypes)


def infer(call: Call) -> torch.Tensor:
    """Compute a call that Winograd's algorithm serves."""
    form, x, padding = _form(call), call.x, call.padding
    # The reversed kernel of a transposed convolution is the one that a plain convolution reads as it is.
    flip = call.flip_weight == (form == Form.UP)
    arguments = dict[str, Any](in_scale=call.styles)
    if form == Form.UP and call.pad_map is not None:
        weight = winograd3x3.prepare(call.weight, form, flip)
        return _filter_surrounded(call, winograd3x3.run(x, weight, form, **arguments), weight)
    weight = winograd3x3.prepare(call.weight, form, flip, tiles=winograd3x3.tiles_of(x, form, _size(call)))
    if call.demodulate:
        arguments.update(eps=call.eps)
    if form == Form.UP:
        return _filter(call, winograd3x3.run(x, weight, form, **arguments), None)
    if form == Form.DOWN:
        (x, _), padding = conv2d_resample.filtered(x, call.weight, None, call.down, padding, call.f, "cpu"), 0
    if call.pad_map is not None:
        arguments.update(mode=2, pad_map=call.pad_map)
    arguments.update(padding=padding, shift=call.bias, noise=call.noise)
    return winograd3x3.activated(x, weight, form, call.activation, **arguments)


def _filter_surrounded(call: Call, y: torch.Tensor, weight: winograd3x3.Weight) -> torch.Tensor:
    """Complete an enlarged result in a map, whose factors the demodulation coefficients are too."""
    dcoefs = None
    if call.demodulate:
        assert weight.squares is not None  # it was transformed
        # One by one: a product of many rows may round each of them differently.
        samples = [coefs.from_squares(weight.squares, styles, call.eps) for styles in call.styles.split(1)]
        dcoefs = torch.cat(samples)
    return _filter(call, y, dcoefs)


def _filter(call: Call, y: torch.Tensor, dcoefs: torch.Tensor | None) -> torch.Tensor:
    """Complete the result of the transposed convolution by the filter and what follows it."""
    pad, _ = conv2d_resample.up_padding(call.weight, call.up, call.padding, call.f)
    y, resample = conv2d_resample.surrounded(y, call.up, pad, call.pad_map, "cpu")
    return epilogue2d.run(y, call.f, dcoefs, call.noise, call.bias, resample, call.activation, "cpu")


def _size(call: Call) -> Sequence[int]:
    """Return the height and width of the convolution's result."""
    if call.up == 2:
        return winograd3x3.out_size(call.x, Form.UP, 1)
    return conv2d_resample.out_size(call.x, call.weight, call.up, call.down, call.padding, call.f)


def _form(call: Call) -> Form:
    return Form.UP if call.up > 1 else Form.DOWN if call.down > 1 else Form.PLAIN
