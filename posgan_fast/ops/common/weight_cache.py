"""Keeps what the CPU path prepares from a weight, for as long as the weight has the same values."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch.utils.weak import WeakTensorKeyDictionary

from . import autocast

_KEPT: Any = WeakTensorKeyDictionary()  # weight: {form: (fingerprint of the weight, what was made of it)}
_WORDS = ((8, torch.int64), (4, torch.int32), (2, torch.int16))


def keep(weight: torch.Tensor) -> None:
    """Let :func:`packed` keep what it makes of this weight from now on; drop what it kept before."""
    _KEPT[weight] = {}


def forget(weight: torch.Tensor) -> None:
    _KEPT.pop(weight, None)


def packed(weight: torch.Tensor, form: Hashable, make: Callable[[], Any]) -> Any:
    """Return ``make()``, called once per form and again after the values of the weight changed; None for a weight that
    :func:`keep` was not called with."""
    entries = _KEPT.get(weight) if _KEPT else None
    if entries is None:
        return None
    found = _fingerprint(weight.detach())
    if form not in entries or not torch.equal(entries[form][0], found):
        entries[form] = found, make()
    return entries[form][1]


def _fingerprint(weight: torch.Tensor) -> torch.Tensor:
    """Return the sums of the bits of a weight [O, ...] over its filters, sums of its values with a factor for each
    filter, and the first bits of each filter.

    Writes through ``.data`` change neither the version nor the address of a tensor, so the values themselves are read,
    in two passes at the speed of memory. The bits show any single change, the values those in which bits cancel: signs
    that change in pairs, and values that change places between filters.
    """
    if weight.ndim == 4 and weight.is_contiguous(memory_format=torch.channels_last):
        weight = weight.permute(0, 2, 3, 1)
    rows = weight.reshape(weight.shape[0], -1)
    size = rows.shape[1] * rows.element_size()
    words = rows.view(next(dtype for width, dtype in _WORDS if size % width == 0))
    values = rows if rows.dtype == torch.float64 else rows.to(torch.float32)
    factors = torch.linspace(1, 2, len(rows), dtype=values.dtype)
    with autocast.disabled(weight):
        mixed = torch.mv(values.t(), factors).to(torch.float64).view(torch.int64)
    return torch.cat([words.sum(0), words[:, 0], mixed])
