"""Autocast, asked only about devices that it knows: torch raises when it is asked about "meta"."""

from __future__ import annotations

import contextlib

import torch


def is_enabled(x: torch.Tensor) -> bool:
    """Tell whether autocast is on for the device of ``x``."""
    device = x.device.type  # no call that lists devices: torch 2.10 cannot compile one
    return device != "meta" and torch.is_autocast_enabled(device)


def disabled(x: torch.Tensor) -> contextlib.AbstractContextManager[object]:
    """Return a context in which autocast is off for the device of ``x``."""
    return torch.autocast(x.device.type, enabled=False) if is_enabled(x) else contextlib.nullcontext()
