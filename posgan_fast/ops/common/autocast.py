"""Autocast, asked only about devices that it knows: torch raises when it is asked about "meta"."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import torch


def is_enabled(x: torch.Tensor) -> bool:
    """Tell whether autocast is on for the device of ``x``."""
    device = x.device.type  # no call that lists devices: torch 2.10 cannot compile one
    return device != "meta" and torch.is_autocast_enabled(device)


def run(call: Any, function: Callable[[Any], torch.Tensor]) -> torch.Tensor:
    """Return ``function(call)``, under autocast with ``call.x`` in its dtype, unless that is float64. What the function
    calls, factors in float32 above all, does not cast by itself."""
    if not is_enabled(call.x):
        return function(call)
    call = call._replace(x=cast(call.x))
    with disabled(call.x):
        return function(call)


def cast(x: torch.Tensor) -> torch.Tensor:
    """Return ``x`` in the dtype that :func:`run` gives it."""
    if not is_enabled(x) or x.dtype == torch.float64:
        return x
    return x.to(torch.get_autocast_dtype(x.device.type))


def disabled(x: torch.Tensor) -> contextlib.AbstractContextManager[object]:
    """Return a context in which autocast is off for the device of ``x``."""
    return torch.autocast(x.device.type, enabled=False) if is_enabled(x) else contextlib.nullcontext()
