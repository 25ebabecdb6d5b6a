"""Decides which calls of foreign code this library's ops serve; the module's own code serves the others."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import forward_ad

from ..ops.common import checks
from ..ops.common.op import transforms_active
from . import torch_internals


def supports(x: Any, *others: Any) -> bool:
    """Return whether the ops serve a call with these tensors, of which ``others`` may be None."""
    return _is_plain(x) and all(t is None or _is_plain(t) for t in others) and not transformed()


def transformed() -> bool:
    """Return whether torch currently records or transforms the calls that are made.

    A recorded graph (torch.jit.trace and its check, torch.export, torch.onnx) should hold plain torch ops, so that it
    can be loaded and converted without this library. Transforms (torch.func, torch.vmap, forward-mode derivatives)
    support plain torch ops best.
    """
    return (
        torch.jit.is_tracing()
        or torch.compiler.is_exporting()
        or transforms_active()
        or forward_ad._current_level >= 0
        or torch_internals.checking_trace()
    )


def _is_plain(x: Any) -> bool:
    """Return whether ``x`` is a tensor that the ops take, and no subclass (fake, distributed, quantised, ...)."""
    return (
        type(x) in _TENSOR_TYPES
        and x.dtype in checks.FLOATS
        and x.device.type in ("cpu", "cuda")
        and x.layout is torch.strided
        and not x.is_nested
    )


_TENSOR_TYPES = (torch.Tensor, torch.nn.Parameter)
