"""The factors of the style layer: weight, styles, demodulation coefficients, and a padding map in step with them."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..common import checks
from ..common.ring import ring_from_map
from . import conv2d_resample
from .call import Call


class Factors(NamedTuple):
    """The factors of the stages: ``weight``, ``styles`` [N, I] and ``dcoefs`` [N, O] in the arithmetic type."""

    weight: torch.Tensor
    styles: torch.Tensor
    dcoefs: torch.Tensor | None
    pad_map: torch.Tensor | None


def factors(call: Call, dtype: torch.dtype) -> Factors:
    """Compute the factors for activations of a dtype, scaled into its range."""
    acc = checks.arithmetic(dtype)
    weight, styles, pad_map = call.weight.to(acc), call.styles.to(acc), call.pad_map
    dcoefs = demodulation(weight, styles, call.eps) if call.demodulate else None
    found = Factors(weight, styles, dcoefs, pad_map)
    if dcoefs is not None and dtype == torch.float16 and call.x.shape[0] > 0:
        found = _in_range(weight, styles, dcoefs, _ring(call, acc), call.up)
    return found


def scale_map(call: Call) -> bool:
    """Tell whether a padding map has to be scaled in step with factors that keep float16 in range."""
    return call.pad_map is not None and call.demodulate and call.x.dtype == torch.float16


def _ring(call: Call, acc: torch.dtype) -> torch.Tensor | None:
    """Return the ring of the padding map, since values off the ring must not count for the range."""
    if call.pad_map is None or call.pad_map.ndim == 3:
        return None if call.pad_map is None else call.pad_map.to(acc)
    surrounded = conv2d_resample.surrounded_size(call.x.shape[2:], call.weight, call.up, call.padding, call.f)
    return ring_from_map(call.pad_map.to(acc), *surrounded)


def demodulation(weight: torch.Tensor, styles: torch.Tensor, eps: float = 1e-8) -> torch.Tensor:
    """Compute the coefficients ``rsqrt(sum_{i, k} (weight[o, i, k] * styles[n, i])^2 + eps)``, [N, O].

    ``weight`` [O, I, kh, kw] and ``styles`` [N, I] are float32 or float64.
    """
    return from_squares(squares(weight), styles, eps)


def squares(weight: torch.Tensor) -> torch.Tensor:
    """Return the sum of squares over each kernel of ``weight`` [O, I, kh, kw], as [I, O]."""
    return weight.square().sum((2, 3)).t()


def from_squares(squares: torch.Tensor, styles: torch.Tensor, eps: float) -> torch.Tensor:
    """Compute the demodulation coefficients [N, O] from the :func:`squares` of a weight."""
    return (styles.square() @ squares + eps).rsqrt()


def _in_range(weight, styles, dcoefs, ring, up):
    """Scale weight and styles to magnitude 1, or less where the ring is far larger, and the ring in step; the
    coefficients undo it. These scales are constants to autograd, since the result does not depend on them."""
    spread = weight[0].numel() ** 0.5
    per_filter = weight.detach().abs().amax((1, 2, 3)) * spread  # [O]
    per_sample = styles.detach().abs().amax(1)  # [N]
    largest = None
    if ring is not None:  # the sum of a window of the ring, if all signs are alike, must stay below 65504
        largest = ring.detach().abs().amax(2) * (spread / 6e4)  # [N, C]
        per_sample = torch.maximum(per_sample, largest.amax(1))
    per_sample = _or_one(per_sample)
    if largest is not None and up > 1:
        per_filter = torch.maximum(per_filter, (largest / per_sample[:, None]).amax(0))
    per_filter = _or_one(per_filter)
    undo = per_sample[:, None] * per_filter  # [N, O]
    if ring is not None:
        ring = ring / (undo if up > 1 else per_sample[:, None])[:, :, None]
    return Factors(weight / per_filter[:, None, None, None], styles / per_sample[:, None], dcoefs * undo, ring)


def _or_one(t):
    """Replace what is no divisor - zero, infinity, NaN - by 1."""
    return torch.where((t > 0) & t.isfinite(), t, 1)
