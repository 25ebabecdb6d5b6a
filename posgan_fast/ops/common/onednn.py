"""Convolutions on the CPU with a weight in oneDNN's own layout.

Torch's public convolutions reorder a weight into that layout at every call. The operators that take a reordered weight
belong to torch's compiler and are not public. So this module tries them once and, if they fail, leaves weights as they
are.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch.nn import functional as F


def blocked(
    w: torch.Tensor, x_shape: Sequence[int], stride: int, padding: Sequence[int], transposed: bool
) -> torch.Tensor:
    """Return ``w`` reordered for a convolution of inputs of a shape, or unchanged if torch lacks the operators."""
    return _reordered(w, x_shape, stride, padding, transposed) if usable(w.dtype, transposed) else w


def conv2d(x: torch.Tensor, w: torch.Tensor, *, stride: int = 1, padding: Sequence[int] = (0, 0)) -> torch.Tensor:
    """Compute :func:`torch.nn.functional.conv2d` with ``w`` in either layout."""
    if not w.is_mkldnn:
        return F.conv2d(x, w, stride=stride, padding=tuple(padding))
    return torch.ops.mkldnn._convolution_pointwise(x, w, None, padding, [stride] * 2, [1, 1], 1, "none", [], None)


def conv_transpose2d(
    x: torch.Tensor, w: torch.Tensor, *, stride: int = 1, padding: Sequence[int] = (0, 0)
) -> torch.Tensor:
    """Compute :func:`torch.nn.functional.conv_transpose2d` with ``w`` in either layout."""
    if not w.is_mkldnn:
        return F.conv_transpose2d(x, w, stride=stride, padding=tuple(padding))
    return torch.ops.mkldnn._convolution_transpose_pointwise(
        x, w, None, padding, [0, 0], [stride] * 2, [1, 1], 1, "none", [], None
    )


@functools.cache
def usable(dtype: torch.dtype, transposed: bool) -> bool:
    """Tell whether this torch has these operators and they compute the same as the public ones."""
    x = torch.ones((1, 16, 4, 4), dtype=dtype).contiguous(memory_format=torch.channels_last)
    w = torch.ones((16, 16, 3, 3), dtype=dtype)
    conv = conv_transpose2d if transposed else conv2d
    try:
        y = conv(x, _reordered(w, x.shape, 2, (0, 0), transposed), stride=2)
        return torch.equal(y, conv(x, w, stride=2)) and y.is_contiguous(memory_format=torch.channels_last)
    except (
        AttributeError,
        NotImplementedError,
        RuntimeError,
        TypeError,
    ):  # torch has none, or others
        return False


def _reordered(w, x_shape, stride, padding, transposed):
    stride = [stride] * 2
    if transposed:
        return torch.ops.mkldnn._reorder_convolution_transpose_weight(w, padding, [0, 0], stride, [1, 1], 1, x_shape)
    return torch.ops.mkldnn._reorder_convolution_weight(w, padding, stride, [1, 1], 1, x_shape)
