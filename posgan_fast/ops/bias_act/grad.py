"""The first and the second derivative of bias_act, as registered ops that are differentiable themselves."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ..common import activations
from ..common.op import restore, save
from ..common.records import Activation
from .passes import ARGUMENTS, ElementwiseOp, Pass, compute, reference


class GradCall(NamedTuple):
    """The arguments of the first derivative: ``g`` times the slope of the forward at ``ref``, its output or input."""

    g: torch.Tensor
    ref: torch.Tensor
    b: torch.Tensor | None
    dim: int
    act: str
    alpha: float
    gain: float
    clamp: float
    backend: str

    @property
    def activation(self) -> Activation:
        return Activation(self.act, self.alpha, self.gain, self.clamp)


class Grad2Call(NamedTuple):
    """The arguments of the second derivative: ``g * dy`` times the curvature of the forward at ``x``."""

    g: torch.Tensor
    dy: torch.Tensor
    x: torch.Tensor
    b: torch.Tensor | None
    dim: int
    act: str
    alpha: float
    gain: float
    clamp: float
    backend: str

    @property
    def activation(self) -> Activation:
        return Activation(self.act, self.alpha, self.gain, self.clamp)


def _setup_context_grad(ctx, call, result):
    save(ctx, call, "g", "ref", "b")


def _backward_grad(ctx: Any, h: torch.Tensor, wanted: set[str]) -> dict[str, torch.Tensor | None]:
    call: GradCall = restore(ctx)[0]
    found = {"g": GRAD(call._replace(g=h)) if "g" in wanted else None}
    if call.act not in activations.PIECEWISE_LINEAR and wanted & {"ref", "b"}:
        dx = GRAD2(Grad2Call(h, call.g, call.ref, call.b, call.dim, *call.activation, call.backend))
        found |= {"ref": dx, "b": bias_gradient(dx, call.dim) if "b" in wanted else None}
    return found


def _setup_context_grad2(ctx, call, result):
    save(ctx, call, "g", "dy", "x", "b")


def _backward_grad2(ctx, h, wanted):
    call, _ = restore(ctx)
    if wanted & {"x", "b"}:
        raise NotImplementedError(f"bias_act: no third derivative of {call.act!r}; the first two are implemented")
    dg = GRAD2(call._replace(g=h)) if "g" in wanted else None
    ddy = GRAD2(call._replace(g=h, dy=call.g)) if "dy" in wanted else None
    return {"g": dg, "dy": ddy}


def bias_gradient(dx: torch.Tensor, dim: int) -> torch.Tensor:
    others = [i for i in range(dx.ndim) if i != dim]
    return dx.sum(others) if others else dx  # torch sums over all dimensions if given none


GRAD = ElementwiseOp(
    f"bias_act_grad(Tensor g, Tensor ref, {ARGUMENTS}) -> Tensor",
    GradCall,
    fake=lambda call: torch.empty_like(call.ref),
    kernel=lambda call: compute(call, call.g, call.ref, grad=1),
    decomposition=lambda call: reference(Pass(call.g, call.b, call.dim, call.activation, call.ref, grad=1)),
    setup_context=_setup_context_grad,
    backward=_backward_grad,
    samples=("g", "ref"),
)
GRAD2 = ElementwiseOp(
    f"bias_act_grad2(Tensor g, Tensor dy, Tensor x, {ARGUMENTS}) -> Tensor",
    Grad2Call,
    fake=lambda call: torch.empty_like(call.x),
    kernel=lambda call: compute(call, call.g, call.x, call.dy, grad=2),
    decomposition=lambda call: reference(Pass(call.g, call.b, call.dim, call.activation, call.x, call.dy, 2)),
    setup_context=_setup_context_grad2,
    backward=_backward_grad2,
    samples=("g", "dy", "x"),
)
