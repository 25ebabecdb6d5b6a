"""Tells whether a module still computes what its class defines, for code that runs several modules at once."""

from __future__ import annotations

from typing import Any

from torch.nn.modules.module import _has_any_global_hook


def is_unchanged(module: Any, *kinds: type) -> bool:
    """Tell whether calling a module runs the ``forward`` of exactly one of the kinds and no hook."""
    hooks = module._forward_hooks or module._forward_pre_hooks or _has_any_global_hook()
    return type(module) in kinds and not hooks and "forward" not in module.__dict__
