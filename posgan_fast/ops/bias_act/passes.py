"""One pass over memory of bias_act or of a derivative of it, on every backend."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch

from ... import backend as _backend
from ..common import activations, checks, layout
from ..common.activations import ACTIVATIONS
from ..common.op import Op
from ..common.records import Activation

NAME = "bias_act"
ARGUMENTS = "Tensor? b, int dim, str act, float alpha, float gain, float clamp, str backend"


class Pass(NamedTuple):
    """The arguments of one pass over memory.

    ``grad`` 0 computes the forward of the input ``x``. ``grad`` 1 multiplies the gradient ``x`` by the first derivative
    at ``ref``, the output or input of the forward. ``grad`` 2 multiplies the gradients ``x`` and ``dy`` by the second.
    """

    x: torch.Tensor
    b: torch.Tensor | None
    dim: int
    activation: Activation
    ref: torch.Tensor | None = None
    dy: torch.Tensor | None = None
    grad: int = 0


class ElementwiseOp(Op):
    """An op on tensors of any shape. A batch of calls is one call on tensors with one more dimension."""

    def _merged(self, size, call):
        record = self._record(*call)
        return self(record if record.b is None else record._replace(dim=record.dim + 1))


def reference(p: Pass) -> torch.Tensor:
    """The definition in plain torch."""
    act, alpha, gain, clamp = p.activation
    acc = checks.arithmetic(p.x.dtype)
    base = (p.x if p.ref is None else p.ref).to(acc)
    if p.grad == 1 and activations.reads_output(act, alpha):
        value, derivative = base, activations.derivative_from_output(base, alpha, gain)
    else:
        v = base if p.b is None else base + p.b.to(acc).reshape([-1 if i == p.dim else 1 for i in range(base.ndim)])
        value = gain * activations.value(act, v, alpha)
        if p.grad == 0:
            return (value if clamp < 0 else _clamped(value, clamp)).to(p.x.dtype)
        formula = activations.derivative if p.grad == 1 else activations.second_derivative
        derivative = formula(act, v, alpha)
    y = p.x.to(acc) * (gain * derivative) * (1 if p.dy is None else p.dy.to(acc))
    if clamp >= 0:
        y = torch.where((value > -clamp) & (value < clamp), y, 0)
    return y.to(p.x.dtype)


def _clamped(value, clamp):
    """Clamp, with a derivative that is zero at the bounds too."""
    return torch.where((value > -clamp) & (value < clamp), value, value.detach().clamp(-clamp, clamp))


def _run_native(p, out):
    act, alpha, gain, clamp = p.activation
    torch.ops.posgan_fast_native.bias_act(
        p.x, p.b, p.ref, p.dy, out, _step(p), p.grad, ACTIVATIONS[act].index, alpha, gain, clamp
    )


def _run_triton(p, out):
    from ...kernels import bias_act as kernel

    kernel.bias_act(p.x, p.b, p.ref, p.dy, out, _step(p), p.grad, p.activation)


def _step(p: Pass) -> int:
    """Return the number of elements between two bias values. A dimension of size 1 may have any stride."""
    return p.x.stride(p.dim) if p.x.ndim and p.x.shape[p.dim] > 1 else p.x.numel()


def _run_reference(p, out):
    out.copy_(reference(p))


IMPLS = (
    _backend.Impl("cuda", _backend.cuda_can_run, _run_native),
    _backend.Impl("cpu", _backend.cpu_can_run, _run_native),
    _backend.Impl("triton", _backend.triton_can_run, _run_triton),
    _backend.Impl("reference", _backend.reference_can_run, _run_reference),
)


def compute(
    call: Any, x: torch.Tensor, ref: torch.Tensor | None = None, dy: torch.Tensor | None = None, grad: int = 0
) -> torch.Tensor:
    """Bring every tensor to one dense layout, that of the forward input, and run a pass for one of the calls."""
    leader = x if ref is None else ref
    if not layout.is_dense(leader):
        leader = leader.clone()  # keeps the order of the strides, drops the gaps
    out = torch.empty_like(leader)
    if ref is None:
        write(call, out, leader)
    else:
        write(call, out, _like(x, leader), leader, None if dy is None else _like(dy, leader), grad)
    return out


def write(
    call: Any,
    out: torch.Tensor,
    x: torch.Tensor,
    ref: torch.Tensor | None = None,
    dy: torch.Tensor | None = None,
    grad: int = 0,
) -> None:
    """Run a pass on tensors that have the strides of ``out``."""
    if out.numel():
        implementation = _backend.implementation(NAME, IMPLS, x, call.backend)
        implementation(Pass(x, _bias(call.b, x), call.dim, rounded(call, x.dtype), ref, dy, grad), out)


def _like(t: torch.Tensor, leader: torch.Tensor) -> torch.Tensor:
    return t if t.stride() == leader.stride() else torch.empty_like(leader).copy_(t)


def _bias(b: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor | None:
    """Return ``b`` as kernels read it; an exported graph under autocast holds one of another dtype than ``x``."""
    if b is None:
        return None
    return (b if b.dtype == x.dtype else b.to(x.dtype)).contiguous()


def rounded(call: Any, dtype: torch.dtype) -> Activation:
    """Return the activation of a call with its clamp in a dtype; see :func:`round_clamp`."""
    return Activation(call.act, call.alpha, call.gain, round_clamp(call.clamp, dtype))


def round_clamp(clamp: float, dtype: torch.dtype) -> float:
    """Round a clamp to a dtype: the derivative is read off results, which must compare equal to the clamp."""
    return clamp if clamp < 0 else _round(clamp, dtype)


@functools.cache
def _round(value: float, dtype: torch.dtype) -> float:
    return float(torch.tensor(value, dtype=dtype))
