"""Tells whether a module still computes what its class defines, for code that does not call it as a module."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch.nn.modules.module import _has_any_global_hook

_Kind = TypeVar("_Kind", bound=type)
_CALL = torch.nn.Module.__call__
_FORWARDS: dict[type, Any] = {}


def remembered(kind: _Kind) -> _Kind:
    """Return a class whose ``forward`` of now :func:`is_unchanged` knows; a decorator."""
    _FORWARDS[kind] = kind.forward  # type: ignore[attr-defined]
    return kind


def is_unchanged(module: Any, *kinds: type) -> bool:
    """Tell whether calling a module runs the ``forward`` of exactly one of the :func:`remembered` kinds, and nothing
    else."""
    kind = type(module)
    if kind not in kinds or kind.forward is not _FORWARDS[kind] or kind.__call__ is not _CALL:
        return False
    replaced = "forward" in module.__dict__ or module._compiled_call_impl is not None
    return not replaced and not has_hooks(module) and not _has_any_global_hook()


def has_hooks(module: Any) -> bool:
    """Tell whether a module has hooks of its own."""
    return bool(
        module._forward_pre_hooks or module._forward_hooks or module._backward_pre_hooks or module._backward_hooks
    )
