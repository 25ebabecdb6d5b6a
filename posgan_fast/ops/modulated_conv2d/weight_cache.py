"""Weights kept in the form in which the CPU's convolutions read them."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch.utils.weak import WeakTensorKeyDictionary

_KEPT: Any = WeakTensorKeyDictionary()  # weight: {form: (fingerprint of the weight, what was made of it)}
_WORDS = ((8, torch.int64), (4, torch.int32), (2, torch.int16))


def keep(weight: torch.Tensor) -> None:
    """From now on keep what :func:`packed` makes of this weight, beginning with nothing."""
    _KEPT[weight] = {}


def forget(weight: torch.Tensor) -> None:
    _KEPT.pop(weight, None)


def packed(weight: torch.Tensor, form: Hashable, make: Callable[[], Any]) -> Any:
    """Return what ``make()`` made for this form, anew once the values of the weight changed; None for a weight that is
    not to be kept."""
    entries = _KEPT.get(weight) if _KEPT else None
    if entries is None:
        return None
    found = _fingerprint(weight.detach())
    if form not in entries or not torch.equal(entries[form][0], found):
        entries[form] = found, make()
    return entries[form][1]


def _fingerprint(weight: torch.Tensor) -> torch.Tensor:
    """The sums of the bits of [O, ...] over all filters, and the first bits of each filter.

    The values themselves are read, in one pass at the speed of memory, since writes through ``.data`` change neither
    the version nor the address of a tensor. Any write to a single value shows, and so does any new order of the filters
    or of what is in them.
    """
    if weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last):
        weight = weight.permute(0, 2, 3, 1)
    rows = weight.reshape(weight.shape[0], -1)
    size = rows.shape[1] * rows.element_size()
    rows = rows.view(next(dtype for width, dtype in _WORDS if size % width == 0))
    return torch.cat([rows.sum(0), rows[:, 0]])
