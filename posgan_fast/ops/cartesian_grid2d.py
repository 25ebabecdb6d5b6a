r"""cartesian_grid2d: the positional encoding "csg" as a tensor, made on the device.

:mod:`posgan_fast.ops.common.encodings` has the formula of both layouts. A layer that adds or concatenates the
encoding to its input needs no such tensor: :func:`posgan_fast.functional.prologue2d`.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from . import prologue2d
from .common import checks, encodings

NAME = "cartesian_grid2d"


def cartesian_grid2d(
    height: int,
    width: int,
    *,
    layout: str = "mmgen",
    base_size: Sequence[int] | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    r"""Normalised coordinates; :mod:`posgan_fast.ops.common.encodings` has the formula.

    Args:
        height, width: size of the grid.
        layout: "mmgen" (x then y, corners at -1 and 1) or "paper" (height then width, from -1 to below 1).
        base_size: [height, width] interpolates the grid of that size bilinearly, its corners kept; None, or the layout
            "mmgen", where it changes nothing: the grid of this size.
        dtype, device: of the result.
        backend: "reference", "cpu", "triton" or "cuda"; None lets :mod:`posgan_fast.backend` choose.

    Returns:
        [1, 2, height, width].

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a size < 1 or an unknown layout.
        BackendError: the chosen backend cannot run this call.

    Example:
        >>> cartesian_grid2d(1, 3)[0, 0]
        tensor([[-1.,  0.,  1.]])
    """
    checks.device(device)
    encoding = encodings.tables("csg", height, width, 2, layout, False, base_size, dtype, device)
    return prologue2d.grid(encoding, dtype, NAME, backend)
