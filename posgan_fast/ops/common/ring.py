"""The ring: the border of one pixel around an image, as a compact tensor or as part of a padding map.

A compact ring [N, C, 2 * (H + W) + 4] holds the top row (W + 2 values, corners included), the bottom row (W + 2), the
left column (H) and the right column (H). In a map [N, C, h, w] the ring surrounds its H x W centre, whose offset is
rounded down.
"""

from __future__ import annotations

from typing import Any

import torch

from . import checks


def ring_from_map(pad_map: torch.Tensor, height: int | None = None, width: int | None = None) -> torch.Tensor:
    """Return the ring around the ``height`` x ``width`` centre of a map [N, C, h, w]: [N, C, 2 * (height + width) + 4].

    The ring holds the top row and the bottom row, both with their corners, then the left and the right column. The
    offset of the centre is rounded down. Without ``height`` and ``width`` it is the outermost ring, around
    h - 2 x w - 2 pixels. The function is differentiable to any order.

    Raises:
        TypeError: not a tensor, or a size that is no int.
        ValueError: the map does not hold such a ring.

    Example:
        >>> ring_from_map(torch.arange(9.0).reshape(1, 1, 3, 3))
        tensor([[[0., 1., 2., 6., 7., 8., 3., 5.]]])
    """
    checks.tensor(pad_map, "pad_map", ndim=4)
    h = pad_map.shape[2] - 2 if height is None else checks.integer(height, "height", minimum=1)
    w = pad_map.shape[3] - 2 if width is None else checks.integer(width, "width", minimum=1)
    if not (1 <= h <= pad_map.shape[2] - 2 and 1 <= w <= pad_map.shape[3] - 2):
        least = f"{max(h, 1) + 2} x {max(w, 1) + 2}"
        raise ValueError(f"pad_map: expected at least {least} pixels, got shape {tuple(pad_map.shape)}")
    y, x = offsets(pad_map.shape, h, w)
    crop = pad_map.narrow(2, y, h + 2).narrow(3, x, w + 2)  # [N, C, H + 2, W + 2]
    return torch.cat([crop[:, :, 0], crop[:, :, -1], crop[:, :, 1:-1, 0], crop[:, :, 1:-1, -1]], dim=2)


def map_from_ring(ring: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Return the map [N, C, height + 2, width + 2] with ``ring`` [N, C, 2 * (height + width) + 4] around zeros.

    Raises:
        TypeError: not a tensor, or a size that is no int.
        ValueError: a ring of another length.

    Example:
        >>> map_from_ring(torch.arange(8.0).reshape(1, 1, 8), 1, 1)[0, 0]
        tensor([[0., 1., 2.],
                [6., 0., 7.],
                [3., 4., 5.]])
    """
    checks.tensor(ring, "ring", ndim=3)
    h, w = checks.integer(height, "height", minimum=1), checks.integer(width, "width", minimum=1)
    if ring.shape[2] != ring_length(h, w):
        raise ValueError(f"ring: expected {ring_length(h, w)} values around {h} x {w}, got shape {tuple(ring.shape)}")
    top, bottom, left, right = ring.split([w + 2, w + 2, h, h], dim=2)
    middle = torch.cat([left[..., None], ring.new_zeros(*ring.shape[:2], h, w), right[..., None]], dim=3)
    return torch.cat([top[:, :, None], middle, bottom[:, :, None]], dim=2)


def offsets(shape, h, w):
    """Return the row and column of a map of this shape at which the ring around h x w pixels begins."""
    return (shape[2] - h - 2) // 2, (shape[3] - w - 2) // 2


def check(border: Any, x: torch.Tensor, c: int, h: int, w: int) -> None:
    """Validate a map or ring around ``h`` x ``w`` pixels of ``c`` channels."""
    checks.tensor(border, "pad_map")
    checks.same_device(border, "pad_map", x)
    ring = ring_length(h, w)
    if border.ndim not in (3, 4) or border.shape[:2] != (x.shape[0], c):
        raise ValueError(
            f"pad_map: expected a map [{x.shape[0]}, {c}, h, w] or a ring [{x.shape[0]}, {c}, {ring}],"
            f" got shape {tuple(border.shape)}"
        )
    if border.ndim == 3 and border.shape[2] != ring:
        raise ValueError(f"pad_map: expected a ring of {ring} values around {h} x {w}, got shape {tuple(border.shape)}")
    if border.ndim == 4 and (border.shape[2] < h + 2 or border.shape[3] < w + 2):
        raise ValueError(f"pad_map: expected at least {h + 2} x {w + 2} pixels, got shape {tuple(border.shape)}")


def ring_length(height: int, width: int) -> int:
    """Return the number of pixels around an image."""
    return 2 * (height + width) + 4
