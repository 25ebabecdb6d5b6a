r"""Positional encodings as two small tables instead of a grid: one value per column, one value per row.

Half of the channels depends on the column alone and half on the row alone. With ``d`` channels per half,
``n = d / 2`` frequencies ``w_k`` and 0-based row i and column j of [H, W]:

"spe", sinusoidal:

========  ==========================================================  ==============================================
layout    channels                                                    frequencies and positions
========  ==========================================================  ==============================================
"paper"   sin(w_0 i), cos(w_0 i), sin(w_1 i), ..., then the same of   w_k = 10000^(-k / n); i and j
          j: height first, interleaved
"mmgen"   sin(w_0 x) .. sin(w_(n-1) x), cos(w_0 x) .., then the same  w_k = 10000^(-k / (n - 1)), with
          of y: width first, all sines before all cosines             ``div_half_dim`` 10000^(-k / n); x = j + 1,
                                                                      y = i + 1
========  ==========================================================  ==============================================

"csg", Cartesian:

========  ================  ==========================================
layout    channels          values
========  ================  ==========================================
"paper"   height, width     2 * (i / H - 1/2), 2 * (j / W - 1/2)
"mmgen"   x, y              2 * j / (W - 1) - 1, 2 * i / (H - 1) - 1
========  ================  ==========================================

A "csg" side of one pixel is at -1. Positions of "spe" go on beyond any training size ("expand", anchored at the top
left); with a base size the encoding of that size is resized bilinearly with its corners kept ("interp"), which
leaves the "csg" of the layout "mmgen" as it is.

Source: "Positional Encoding as Spatial Inductive Bias in GANs" (CVPR 2021), Eqs. 6 and 8, and its released code,
mmgeneration, whose published models all use the layout "mmgen" without ``div_half_dim``.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from . import checks
from .records import Encoding

LAYOUTS = ("mmgen", "paper")
KINDS = ("spe", "csg")


def tables(
    kind: Any,
    height: Any,
    width: Any,
    channels: Any,
    layout: Any,
    div_half_dim: Any,
    base_size: Any,
    dtype: torch.dtype,
    device: torch.device | str | None,
) -> Encoding:
    """Return an encoding's tables [d, width] and [d, height] in the arithmetic type of ``dtype``, to be added to x.

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a size < 1, an unknown kind or layout, channels that are no multiple of 4 ("spe"), or 4 channels
            in the layout "mmgen" without ``div_half_dim``, whose one frequency is undefined.
    """
    size = [checks.integer(v, k, minimum=1, maximum=checks.MAX_SIZE) for v, k in ((width, "width"), (height, "height"))]
    checks.choice(kind, "encode", KINDS)
    checks.choice(layout, "layout", LAYOUTS)
    checks.flag(div_half_dim, "div_half_dim")
    given = check_base(base_size)
    base = size if given is None else [given[1], given[0]]
    if kind == "csg":
        base = size if layout == "mmgen" else base  # resizing a linear ramp changes nothing
        sides = [_coordinates(b, layout, device) for b in base]
    else:
        w = _frequencies(channels, layout, div_half_dim, device)
        first = 0 if layout == "paper" else 1
        sides = [_waves(torch.arange(first, first + b, dtype=torch.float64, device=device), w, layout) for b in base]
    acc = checks.arithmetic(dtype)
    columns, rows = (_resize(side, s).to(acc) for side, s in zip(sides, size, strict=True))
    return Encoding(columns, rows, False, height_first=layout == "paper")


def check_base(base_size: Any) -> tuple[int, int] | None:
    """Require a base size [height, width], or None."""
    return None if base_size is None else checks.size(base_size, "base_size")


def check_channels(channels: Any, layout: str, div_half_dim: bool, name: str = "channels") -> int:
    """Require a number of channels that a "spe" can have."""
    channels = checks.integer(channels, name, minimum=4, maximum=checks.MAX_SIZE)
    if channels % 4:
        raise ValueError(f"{name}: expected a multiple of 4, got {channels}")
    if _intervals(channels, layout, div_half_dim) == 0:
        raise ValueError(f"{name}: expected at least 8 in the layout 'mmgen' without div_half_dim, got 4")
    return channels


def _coordinates(size: int, layout: str, device: Any) -> torch.Tensor:
    steps = torch.arange(size, dtype=torch.float64, device=device)
    return (2 * steps / size - 1 if layout == "paper" else 2 * steps / max(size - 1, 1) - 1)[None]


def _frequencies(channels: Any, layout: str, div_half_dim: bool, device: Any) -> torch.Tensor:
    n = check_channels(channels, layout, div_half_dim) // 4
    scale = -math.log(10000.0) / _intervals(channels, layout, div_half_dim)
    return torch.exp(torch.arange(n, dtype=torch.float64, device=device) * scale)


def _intervals(channels: int, layout: str, div_half_dim: bool) -> int:
    return channels // 4 - (0 if layout == "paper" or div_half_dim else 1)


def _waves(positions: torch.Tensor, w: torch.Tensor, layout: str) -> torch.Tensor:
    angles = w[:, None] * positions  # [n, size]
    if layout == "paper":
        return torch.stack([angles.sin(), angles.cos()], dim=1).flatten(0, 1)
    return torch.cat([angles.sin(), angles.cos()])


def _resize(side: torch.Tensor, size: int) -> torch.Tensor:
    """Interpolate [d, base] linearly to [d, size], keeping both ends."""
    base = side.shape[1]
    if base == size:
        return side
    place = torch.arange(size, dtype=torch.float64, device=side.device) * (base - 1) / max(size - 1, 1)
    low = place.floor().clamp(max=max(base - 2, 0)).long()
    high = (low + 1).clamp(max=base - 1)
    return torch.lerp(side[:, low], side[:, high], place - low)
