"""The factors of the style layer: weight, styles and demodulation coefficients, and with them in step a padding map."""

from __future__ import annotations

import torch

from .. import prologue2d
from ..common import checks
from . import conv2d_resample


def factors(x, weight, styles, pad_map, up, padding, f, demodulate, eps):
    """The weight in the dtype of x, styles and coefficients in its arithmetic type, the map: all in range."""
    acc = checks.arithmetic(x.dtype)
    weight, styles = weight.to(acc), styles.to(acc)
    scale = demodulation(weight, styles, eps) if demodulate else None  # [N, O]
    if demodulate and x.dtype == torch.float16 and x.shape[0] > 0:
        if pad_map is not None:
            pad_map = pad_map.to(acc)
            if pad_map.ndim == 4:  # what is off the ring must not count
                surrounded = conv2d_resample.surrounded_size(x.shape[2:], weight, up, padding, f)
                pad_map = prologue2d.ring_from_map(pad_map, *surrounded)
        weight, styles, scale, pad_map = _in_range(weight, styles, scale, pad_map, up)
    return weight.to(x.dtype), styles, scale, pad_map


def demodulation(weight: torch.Tensor, styles: torch.Tensor, eps: float = 1e-8) -> torch.Tensor:
    """The coefficients ``rsqrt(sum_{i, k} (weight[o, i, k] * styles[n, i])^2 + eps)``, [N, O], as one matrix product.

    ``weight`` [O, I, kh, kw] and ``styles`` [N, I] are float32 or float64.
    """
    return (styles.square() @ weight.square().sum((2, 3)).t() + eps).rsqrt()


def _in_range(weight, styles, scale, ring, up):
    """float16: weight and styles to magnitude 1, or less where the ring is far larger, undone by the coefficients, with
    the ring in step. The factors are constants to autograd, since the result does not depend on them."""
    spread = weight[0].numel() ** 0.5
    per_filter = weight.detach().abs().amax((1, 2, 3)) * spread  # [O]
    per_sample = styles.detach().abs().amax(1)  # [N]
    largest = None
    if ring is not None:  # summed up, every sign alike, it must stay below 65504
        largest = ring.detach().abs().amax(2) * (spread / 6e4)  # [N, C]
        per_sample = torch.maximum(per_sample, largest.amax(1))
    per_sample = _or_one(per_sample)
    if largest is not None and up > 1:
        per_filter = torch.maximum(per_filter, (largest / per_sample[:, None]).amax(0))
    per_filter = _or_one(per_filter)
    undo = per_sample[:, None] * per_filter  # [N, O]
    if ring is not None:
        ring = ring / (undo if up > 1 else per_sample[:, None])[:, :, None]
    return weight / per_filter[:, None, None, None], styles / per_sample[:, None], scale * undo, ring


def _or_one(t):
    """Where nothing can be divided by."""
    return torch.where((t > 0) & t.isfinite(), t, 1)
