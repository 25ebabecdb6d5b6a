"""Arguments that travel together, from the checks of an op to its kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch


class Resample(NamedTuple):
    """Upsample by zero insertion, pad, filter, decimate; pairs are [x, y], ``padding`` is [x0, x1, y0, y1]."""

    up: Sequence[int] = (1, 1)
    down: Sequence[int] = (1, 1)
    padding: Sequence[int] = (0, 0, 0, 0)
    flip_filter: bool = False
    gain: float = 1.0


class Activation(NamedTuple):
    """``clamp(gain * act(v), -clamp, +clamp)``; ``alpha`` is the slope of lrelu, a negative ``clamp`` means none."""

    act: str = "linear"
    alpha: float = 0.0
    gain: float = 1.0
    clamp: float = -1.0


class Encoding(NamedTuple):
    """A positional encoding as two tables, ``columns`` [d, W] and ``rows`` [d, H], each for half of the channels."""

    columns: torch.Tensor
    rows: torch.Tensor
    concat: bool
    height_first: bool
