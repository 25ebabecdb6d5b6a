"""Which calls of foreign code the ops here serve; the module's own code serves the others."""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import forward_ad

from ..ops.common import checks
from ..ops.common.op import transforms_active
from . import torch_internals


def takes(x: Any, *others: Any) -> bool:
    """Whether the ops here serve a call with these tensors, of which ``others`` may be None."""
    return _plain(x) and all(t is None or _plain(t) for t in others) and not transformed()


def transformed() -> bool:
    """Whether torch records or rewrites the calls made now.

    A recorded graph (torch.jit.trace and its check, torch.export, torch.onnx) is left in plain torch ops, for whoever
    loads or converts it. Transforms (torch.func, torch.vmap, forward-mode derivatives) know plain torch ops best.
    """
    return (
        torch.jit.is_tracing()
        or torch.compiler.is_exporting()
        or transforms_active()
        or forward_ad._current_level >= 0
        or torch_internals.checking_trace()
    )


def _plain(x: Any) -> bool:
    """Whether ``x`` is a tensor of this library's kinds, not of a subclass (fake, distributed, quantised, ...)."""
    return (
        type(x) in _PLAIN
        and x.dtype in checks.FLOATS
        and x.device.type in ("cpu", "cuda")
        and x.layout is torch.strided
        and not x.is_nested
    )


_PLAIN = (torch.Tensor, torch.nn.Parameter)
