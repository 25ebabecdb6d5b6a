"""Weights kept in the form in which the CPU's convolutions read them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch.utils.weak import WeakTensorKeyDictionary


@dataclasses.dataclass
class Kept:
    source: torch.Tensor | None = None  # the weight's values that the forms were made from
    forms: dict[Hashable, Any] = dataclasses.field(default_factory=dict)


_KEPT: Any = WeakTensorKeyDictionary()  # weight: Kept


def keep(weight: torch.Tensor) -> None:
    """From now on keep what :func:`packed` makes of this weight, beginning with nothing."""
    _KEPT[weight] = Kept()


def forget(weight: torch.Tensor) -> None:
    _KEPT.pop(weight, None)


def packed(weight: torch.Tensor, form: Hashable, make: Callable[[], Any]) -> Any:
    """What ``make()`` returned for this form, made anew once the weight has other values; None for a weight that is not
    to be kept.

    Every call compares all values: neither addresses nor torch's count of writes tell of those through ``.data``, and a
    sample or a sum would miss some. Reading a weight twice is still cheaper than casting and reordering it.
    """
    kept = _KEPT.get(weight) if _KEPT else None
    if kept is None:
        return None
    values = weight.detach()
    if kept.source is None or kept.source.dtype != values.dtype or not torch.equal(kept.source, values):
        kept.source, kept.forms = values.clone(), {}
    if form not in kept.forms:
        kept.forms[form] = make()
    return kept.forms[form]
