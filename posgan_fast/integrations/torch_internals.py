"""Two functions of torch itself that are wrapped while the hooks are in force.

``torch._C._jit_get_operation(name)`` returned a function until torch 1.10. Today it returns a tuple, which cannot be
called, and some names no longer exist. Older gradfix code (grid_sample classes, weight gradients of cuDNN) calls the
result; the wrapper makes that work.

``torch.jit._trace._check_trace`` compares a trace with a plain call of the traced function. The trace was made of the
foreign code's own ops, so the plain call must use them too, or the two differ by rounding; the wrapper sees to it.

The report lists these two when they serve a call, not when they are wrapped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import torch

from .engine import MORE, Replacement, Target
from .reports import Patched, Report

_checks = 0


def checking_trace() -> bool:
    """Return whether torch.jit.trace is comparing a trace with the traced function now."""
    return _checks > 0


def _jit_get_operation(module: ModuleType, report: Report) -> Mapping[str, Replacement]:
    theirs = module._jit_get_operation
    label = "the calling convention of torch 1.10"

    def jit_get_operation(op_name):
        found, served = theirs(op_name), _SERVED.get(op_name)
        if served is None:
            return found
        report.add(Patched(module.__name__, "_jit_get_operation", "torch", label))
        return _Operation(found, served)

    return {"_jit_get_operation": Replacement(jit_get_operation, label, quiet=True)}


class _Operation(tuple):
    """The tuple that torch returns, and at the same time a function, as torch 1.10 returned it."""

    def __new__(cls, found: tuple[Any, ...], served: Callable[..., Any]) -> _Operation:
        operation = super().__new__(cls, found)
        operation._served = served  # type: ignore[attr-defined]
        return operation

    def __call__(self, *args: Any) -> Any:
        return self._served(*args)  # type: ignore[attr-defined]


def _grid_sampler_2d_backward(grad, input, grid, interpolation, padding, align_corners, mask=(True, True)):
    return torch.ops.aten.grid_sampler_2d_backward(grad, input, grid, interpolation, padding, align_corners, mask)


def _grid_sampler_3d_backward(grad, input, grid, interpolation, padding, align_corners, mask=(True, True)):
    return torch.ops.aten.grid_sampler_3d_backward(grad, input, grid, interpolation, padding, align_corners, mask)


def _weight_gradient(transposed: bool) -> Callable[..., torch.Tensor]:
    def backward_weight(weight_shape, grad, input, padding, stride, dilation, groups, *flags):
        weight = input.new_empty(1).expand(weight_shape)  # only its shape is used
        output_padding = [0] * (input.ndim - 2)
        return torch.ops.aten.convolution_backward(
            grad,
            input,
            weight,
            None,
            stride,
            padding,
            dilation,
            transposed,
            output_padding,
            groups,
            [False, True, False],
        )[1]

    return backward_weight


_SERVED = {
    "aten::grid_sampler_2d_backward": _grid_sampler_2d_backward,
    "aten::grid_sampler_3d_backward": _grid_sampler_3d_backward,
    "aten::cudnn_convolution_backward_weight": _weight_gradient(False),
    "aten::cudnn_convolution_transpose_backward_weight": _weight_gradient(True),
}


def _check_trace(module: ModuleType, report: Report) -> Mapping[str, Replacement]:
    theirs = module._check_trace
    label = "calls the foreign code's own ops"

    def check_trace(*args, **kwargs):
        global _checks
        report.add(Patched(module.__name__, "_check_trace", "torch", label))
        _checks += 1
        try:
            return theirs(*args, **kwargs)
        finally:
            _checks -= 1

    return {"_check_trace": Replacement(check_trace, label, quiet=True)}


TARGETS = (
    Target("torch", "torch._C", {}, _jit_get_operation, ("_jit_get_operation",)),
    Target("torch", "torch.jit._trace", {"_check_trace": ("check_inputs", "func", MORE)}, _check_trace),
)
