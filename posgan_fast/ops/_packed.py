"""Weights kept in the form in which the CPU's convolutions read them."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch.utils.weak import WeakTensorKeyDictionary

_KEPT: Any = WeakTensorKeyDictionary()  # weight: {form: (state of the weight, what was made of it)}


def keep(weight: torch.Tensor) -> None:
    """From now on keep what :func:`packed` makes of this weight, beginning with nothing."""
    _KEPT[weight] = {}


def forget(weight: torch.Tensor) -> None:
    _KEPT.pop(weight, None)


def packed(weight: torch.Tensor, form: Hashable, make: Callable[[], Any]) -> Any:
    """What ``make()`` returned for this form, made anew once the weight was written to or moved; None for a weight that
    is not to be kept."""
    entries = _KEPT.get(weight) if _KEPT else None
    if entries is None:
        return None
    state = weight.data_ptr(), weight._version
    if form not in entries or entries[form][0] != state:
        entries[form] = state, make()
    return entries[form][1]
