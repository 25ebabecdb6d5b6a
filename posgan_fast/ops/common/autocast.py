"""Autocast, on the devices that it knows; "meta" is none of them, and torch raises when asked."""

from __future__ import annotations

import contextlib

import torch


def is_enabled(x: torch.Tensor) -> bool:
    """Whether autocast is on for the device of ``x``."""
    device = x.device.type  # asking torch which devices it knows is more than the compiler of torch 2.10 can trace
    return device != "meta" and torch.is_autocast_enabled(device)


def disabled(x: torch.Tensor) -> contextlib.AbstractContextManager[object]:
    """``with disabled(x):`` autocast leaves the device of ``x`` alone."""
    return torch.autocast(x.device.type, enabled=False) if is_enabled(x) else contextlib.nullcontext()
