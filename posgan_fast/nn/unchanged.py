"""Tells whether a module still computes what its class defines, for code that does not call it as a module."""

from __future__ import annotations

from typing import Any

from torch.nn.modules.module import _has_any_global_hook


def is_unchanged(module: Any, *kinds: type) -> bool:
    """Tell whether calling a module runs the ``forward`` of exactly one of the kinds, and nothing else."""
    replaced = "forward" in module.__dict__ or module._compiled_call_impl is not None
    return type(module) in kinds and not replaced and not has_hooks(module) and not _has_any_global_hook()


def has_hooks(module: Any) -> bool:
    """Tell whether a module has hooks of its own."""
    return bool(
        module._forward_pre_hooks or module._forward_hooks or module._backward_pre_hooks or module._backward_hooks
    )
