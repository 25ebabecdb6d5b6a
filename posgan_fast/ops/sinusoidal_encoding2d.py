r"""sinusoidal_encoding2d: the positional encoding "spe" as a tensor, made on the device.

:mod:`posgan_fast.ops.common.encodings` has the formula of both layouts. A layer that adds or concatenates the
encoding to its input needs no such tensor: :func:`posgan_fast.functional.prologue2d`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from . import prologue2d
from .common import checks, encodings

NAME = "sinusoidal_encoding2d"


def sinusoidal_encoding2d(
    height: int,
    width: int,
    channels: int,
    *,
    layout: str = "mmgen",
    div_half_dim: bool = False,
    base_size: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    r"""Sines and cosines of the row and the column; :mod:`posgan_fast.ops.common.encodings` has the formula.

    Args:
        height, width: size of the grid.
        channels: of both halves together, a multiple of 4.
        layout: "mmgen" (the released code) or "paper".
        div_half_dim: the paper's frequencies in the layout "mmgen".
        base_size: None "expands": positions go on, anchored at the top left. [height, width] "interpolates" the
            encoding of that size bilinearly, its corners kept.
        dtype, device: of the result.
        backend: "reference", "cpu", "triton" or "cuda"; None lets :mod:`posgan_fast.backend` choose.

    Returns:
        [1, channels, height, width].

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a size < 1, an unknown layout, or channels that are no multiple of 4 (or 4, where the one frequency
            of the layout "mmgen" is undefined).
        BackendError: the chosen backend cannot run this call.

    Example:
        >>> sinusoidal_encoding2d(4, 6, channels=32).shape
        torch.Size([1, 32, 4, 6])
    """
    checks.device(device)
    encoding = encodings.tables("spe", height, width, channels, layout, div_half_dim, base_size, dtype, device)
    return prologue2d.grid(encoding, dtype, NAME, backend)
