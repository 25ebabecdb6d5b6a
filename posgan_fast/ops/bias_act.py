r"""bias_act: add a bias, apply an activation, scale, clamp, in one pass.

Elementwise::

    y = clamp(gain * act(x + b), -clamp, +clamp)

========  =====================================  =====  ========
act       formula                                alpha  gain
========  =====================================  =====  ========
linear    v                                             1
relu      max(v, 0)                                     sqrt(2)
lrelu     v if v > 0 else alpha * v              0.2    sqrt(2)
tanh      tanh(v)                                       1
sigmoid   1 / (1 + exp(-v))                             1
elu       v if v > 0 else exp(v) - 1                    1
selu      1.0507 * (v if v > 0 else                     1
          1.6733 * (exp(v) - 1))
softplus  log(1 + exp(v))                               1
swish     v / (1 + exp(-v))                             sqrt(2)
========  =====================================  =====  ========

Shapes: ``x`` any, ``b`` [x.shape[dim]]; the result has the shape, the dtype and, where ``x`` is dense, the
strides of ``x``. Dtypes: float16 and bfloat16 compute in float32, float32 and float64 in themselves. Under autocast
the op runs in the dtype of ``x`` and the bias is cast to it.
Derivatives: two orders for every activation in ``x`` and ``b``, any order for linear, relu and lrelu; a third one of
the others raises. The gradient is zero unless ``-clamp < y < clamp`` strictly, for every activation.

Source: NVlabs stylegan2-ada and stylegan3 define the contract. They leave the clamp of ``act="linear"`` out of the
gradient on CUDA and let it through at equality on CPU; here it is one rule.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch

from .. import backend as _backend
from .common import activations, autocast, checks, layout
from .common.activations import ACTIVATIONS
from .common.op import Op, define_inplace, is_transformed, restore, save
from .common.records import Activation

NAME = "bias_act"


def bias_act(
    x: torch.Tensor,
    b: torch.Tensor | None = None,
    dim: int = 1,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
    *,
    backend: str | None = None,
) -> torch.Tensor:
    r"""``clamp(gain * act(x + b), -clamp, clamp)``; the module's docstring lists the activations and derivatives.

    Args:
        x: input of any shape, float16, bfloat16, float32 or float64.
        b: bias [x.shape[dim]] in the dtype of ``x`` (any floating dtype under autocast), or None.
        dim: the dimension of ``x`` that ``b`` runs along; ignored without a bias.
        act: "linear", "relu", "lrelu", "tanh", "sigmoid", "elu", "selu", "softplus" or "swish".
        alpha: slope of lrelu for negative inputs; None: 0.2. The others take none and ignore it.
        gain: factor after the activation; None: the activation's own.
        clamp: bound of the absolute value of the result, >= 0; None: no bound.
        backend: "reference", "cpu", "triton" or "cuda"; None lets :mod:`posgan_fast.backend` choose.

    Returns:
        A tensor like ``x``; ``x`` itself when nothing is asked for (linear, gain 1, no bias, no clamp).

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: an unknown activation, a negative clamp, or a bias of the wrong shape or device.
        BackendError: the chosen backend cannot run this call.
        NotImplementedError: in backward, a third derivative of a smooth activation.

    Example:
        >>> x, b = torch.tensor([[1.0, -2.0]]), torch.tensor([1.0, 1.0])
        >>> bias_act(x, b, act="lrelu", gain=1)
        tensor([[ 2.0000, -0.2000]])
    """
    b, dim, activation = check(x, b, dim, (act, alpha, gain, clamp))
    name = _backend.resolve(NAME, IMPLS, x, backend)
    if b is None and activation == Activation():
        return x
    return OP(Call(x, b, dim, *activation, name))


def bias_act_(
    x: torch.Tensor,
    b: torch.Tensor | None = None,
    dim: int = 1,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
    *,
    backend: str | None = None,
) -> torch.Tensor:
    r""":func:`bias_act` written over ``x``, which must be dense. Returns ``x``.

    Autograd allows it where the gradient needs no more than the result: relu, lrelu with ``alpha >= 0``, and linear
    without a clamp.

    Raises:
        TypeError, ValueError, BackendError: as :func:`bias_act`.
        ValueError: ``x`` overlaps itself or has gaps, or a gradient is asked for that needs the overwritten input.

    Example:
        >>> x = torch.tensor([[1.0, -2.0]])
        >>> bias_act_(x, act="relu", gain=1) is x
        True
    """
    b, dim, activation = check(x, b, dim, (act, alpha, gain, clamp))
    call = Call(x, b, dim, *activation, _backend.resolve(NAME, IMPLS, x, backend))
    if is_transformed(x, b):
        return x.copy_(OP(call))
    if not layout.is_dense(x):
        raise ValueError(
            f"x: expected a dense tensor to write over, got strides {x.stride()} of shape {tuple(x.shape)}"
        )
    if torch.is_grad_enabled() and (x.requires_grad or (b is not None and b.requires_grad)):
        if x.is_leaf and x.requires_grad:
            raise ValueError("x: expected no leaf that requires grad to write over, got one; autograd needs its value")
        if activations.derivative_reads(activation) == "input":
            raise ValueError(
                "act: expected relu, lrelu with alpha >= 0, or linear without a clamp to write over x under autograd,"
                f" got {act!r}"
            )
        return _InPlace.apply(*call)
    _WRITE_OVER(call)
    if not torch.compiler.is_compiling():
        torch.autograd.graph.increment_version(x)  # so that autograd notices where x was kept for a backward pass
    return x


class Call(NamedTuple):
    """The arguments of the op, checked; ``dim`` >= 0."""

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


class GradCall(NamedTuple):
    """The first derivative: ``g`` times that of the forward at ``ref``, its output or its input."""

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
    """The second derivative: ``g * dy`` times that of the forward at ``x``."""

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


class Pass(NamedTuple):
    """What one pass over memory computes: the forward, or with ``grad`` 1 or 2 that derivative. ``x`` is the input or
    a gradient, ``ref`` the output or input of the forward, ``dy`` the gradient that came into the first derivative."""

    x: torch.Tensor
    b: torch.Tensor | None
    dim: int
    activation: Activation
    ref: torch.Tensor | None = None
    dy: torch.Tensor | None = None
    grad: int = 0


def check(x: Any, b: Any, dim: Any, given: tuple[Any, Any, Any, Any]) -> tuple[torch.Tensor | None, int, Activation]:
    """Validate what a user passes, of it ``given`` as (act, alpha, gain, clamp); returns b, dim and the activation."""
    act, alpha, gain, clamp = given
    checks.tensor(x, "x")
    if not isinstance(act, str):
        raise TypeError(f"act: expected one of {sorted(ACTIVATIONS)}, got {type(act).__name__}")
    if act not in ACTIVATIONS:
        raise ValueError(f"act: expected one of {sorted(ACTIVATIONS)}, got {act!r}")
    row = ACTIVATIONS[act]
    alpha = row.alpha if alpha is None else checks.real(alpha, "alpha")
    if act != "lrelu":
        alpha = row.alpha
    gain = row.gain if gain is None else checks.real(gain, "gain")
    clamp = -1.0 if clamp is None else checks.real(clamp, "clamp", minimum=0)
    dim = checks.integer(dim, "dim")
    if b is None:
        dim = 0
    else:
        checks.tensor(b, "b", ndim=1)
        checks.same_device(b, "b", x)
        if not -x.ndim <= dim < x.ndim:
            raise ValueError(f"dim: expected a dimension of x with shape {tuple(x.shape)}, got {dim}")
        dim %= x.ndim
        if b.shape[0] != x.shape[dim]:
            raise ValueError(f"b: expected shape ({x.shape[dim]},) to match x.shape[{dim}], got {tuple(b.shape)}")
        if b.dtype != x.dtype:
            if not autocast.is_enabled(x):
                raise TypeError(f"b: expected dtype {x.dtype} like x, got {b.dtype}")
            b = b.to(x.dtype)
    return b, dim, Activation(act, alpha, gain, clamp)


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
    """``value.clamp(-clamp, clamp)``, whose derivative is zero at the bounds too."""
    return torch.where((value > -clamp) & (value < clamp), value, value.detach().clamp(-clamp, clamp))


def gradient(
    g: torch.Tensor, ref: torch.Tensor | None, b: torch.Tensor | None, dim: int, activation: Activation, backend: str
) -> torch.Tensor:
    """The first derivative, as a registered op; without ``ref`` it is a mere scaling."""
    if ref is not None:
        return GRAD(GradCall(g, ref, b, dim, *activation, backend))
    if activation.gain == 1:
        return g
    return OP(Call(g, None, dim, *Activation(gain=activation.gain), backend))


def _setup_context(ctx, call, result):
    reads = activations.derivative_reads(call.activation)
    if reads is None:  # the caller may write over both x and the result
        save(ctx, call)
    elif reads == "output":
        save(ctx, call, result=result)
    else:
        save(ctx, call, "x", "b")


def _backward(ctx, g, wanted):
    call, result = restore(ctx)
    dx = gradient(g, call.x if result is None else result, call.b, call.dim, call.activation, call.backend)
    return {"x": dx, "b": _bias_gradient(dx, call.dim) if "b" in wanted else None}


def _setup_context_grad(ctx, call, result):
    save(ctx, call, "g", "ref", "b")


def _backward_grad(ctx, h, wanted):
    call, _ = restore(ctx)
    found = {"g": GRAD(call._replace(g=h)) if "g" in wanted else None}
    if call.act not in activations.PIECEWISE_LINEAR and wanted & {"ref", "b"}:
        dx = GRAD2(Grad2Call(h, call.g, call.ref, call.b, *call[3:]))
        found |= {"ref": dx, "b": _bias_gradient(dx, call.dim) if "b" in wanted else None}
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


def _bias_gradient(dx: torch.Tensor, dim: int) -> torch.Tensor:
    others = [i for i in range(dx.ndim) if i != dim]
    return dx.sum(others) if others else dx  # a sum over no dimensions is one over all


class _InPlace(torch.autograd.Function):
    """The in-place op under autograd: a library op that writes to its argument cannot register a derivative."""

    @staticmethod
    def forward(ctx, *args):
        call = Call(*args)
        _WRITE_OVER(call)
        ctx.mark_dirty(call.x)
        save(ctx, call, result=call.x if activations.derivative_reads(call.activation) else None)
        return call.x

    @staticmethod
    def backward(ctx, g):
        call, result = restore(ctx)
        dx = gradient(g, result, None, call.dim, call.activation, call.backend)
        found = {"x": dx, "b": _bias_gradient(dx, call.dim) if ctx.needs_input_grad[1] else None}
        return tuple(map(found.get, Call._fields))


def _run_native(p, out):
    act, alpha, gain, clamp = p.activation
    torch.ops.posgan_fast_native.bias_act(
        p.x, p.b, p.ref, p.dy, out, _step(p), p.grad, ACTIVATIONS[act].index, alpha, gain, clamp
    )


def _run_triton(p, out):
    from ..kernels import bias_act as kernel

    kernel.bias_act(p.x, p.b, p.ref, p.dy, out, _step(p), p.grad, p.activation)


def _step(p: Pass) -> int:
    """Elements from one bias value to the next; the stride of a dimension of size 1 can be anything."""
    return p.x.stride(p.dim) if p.x.ndim and p.x.shape[p.dim] > 1 else p.x.numel()


def _run_reference(p, out):
    out.copy_(reference(p))


IMPLS = (
    _backend.Impl("cuda", _backend.cuda_can_run, _run_native),
    _backend.Impl("cpu", _backend.cpu_can_run, _run_native),
    _backend.Impl("triton", _backend.triton_can_run, _run_triton),
    _backend.Impl("reference", _backend.reference_can_run, _run_reference),
)


def _compute(
    call: Any, x: torch.Tensor, ref: torch.Tensor | None = None, dy: torch.Tensor | None = None, grad: int = 0
) -> torch.Tensor:
    """Bring every tensor to one dense layout, that of the forward input, and run a pass for one of the calls."""
    leader = x if ref is None else ref
    if not layout.is_dense(leader):
        leader = leader.clone()  # keeps the order of the strides, drops the gaps
    out = torch.empty_like(leader)
    if ref is None:
        _write(call, out, leader)
    else:
        _write(call, out, _like(x, leader), leader, None if dy is None else _like(dy, leader), grad)
    return out


def _write(
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
        activation = rounded(call.activation, x.dtype)
        implementation(Pass(x, _bias(call.b, x), call.dim, activation, ref, dy, grad), out)


def _like(t: torch.Tensor, leader: torch.Tensor) -> torch.Tensor:
    return t if t.stride() == leader.stride() else torch.empty_like(leader).copy_(t)


def _bias(b: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor | None:
    """``b`` as kernels read it. An exported graph under autocast brings another dtype than ``x`` has by then."""
    if b is None:
        return None
    return (b if b.dtype == x.dtype else b.to(x.dtype)).contiguous()


def rounded(activation: Activation, dtype: torch.dtype) -> Activation:
    """With the clamp as half precision has it: a clamped result must equal the clamp, since the derivative reads it."""
    act, alpha, gain, clamp = activation
    return activation if clamp < 0 else Activation(act, alpha, gain, _round(clamp, dtype))


@functools.cache
def _round(value: float, dtype: torch.dtype) -> float:
    return float(torch.tensor(value, dtype=dtype))


class _Elementwise(Op):
    """An op on tensors of any shape; a batch of calls is one call with a dimension more."""

    def _merged(self, size, call):
        record = self._record(*call)
        return self(record if record.b is None else record._replace(dim=record.dim + 1))


_ARGUMENTS = "Tensor? b, int dim, str act, float alpha, float gain, float clamp, str backend"
OP = _Elementwise(
    f"bias_act(Tensor x, {_ARGUMENTS}) -> Tensor",
    Call,
    fake=lambda call: torch.empty_like(call.x),
    kernel=lambda call: _compute(call, call.x),
    decomposition=lambda call: reference(Pass(call.x, call.b, call.dim, call.activation)),
    setup_context=_setup_context,
    backward=_backward,
    samples=("x",),
)
GRAD = _Elementwise(
    f"bias_act_grad(Tensor g, Tensor ref, {_ARGUMENTS}) -> Tensor",
    GradCall,
    fake=lambda call: torch.empty_like(call.ref),
    kernel=lambda call: _compute(call, call.g, call.ref, grad=1),
    decomposition=lambda call: reference(Pass(call.g, call.b, call.dim, call.activation, call.ref, grad=1)),
    setup_context=_setup_context_grad,
    backward=_backward_grad,
    samples=("g", "ref"),
)
GRAD2 = _Elementwise(
    f"bias_act_grad2(Tensor g, Tensor dy, Tensor x, {_ARGUMENTS}) -> Tensor",
    Grad2Call,
    fake=lambda call: torch.empty_like(call.x),
    kernel=lambda call: _compute(call, call.g, call.x, call.dy, grad=2),
    decomposition=lambda call: reference(Pass(call.g, call.b, call.dim, call.activation, call.x, call.dy, 2)),
    setup_context=_setup_context_grad2,
    backward=_backward_grad2,
    samples=("g", "dy", "x"),
)
_WRITE_OVER = define_inplace(
    f"bias_act_(Tensor(a!) x, {_ARGUMENTS}) -> ()", Call, lambda call: _write(call, call.x, call.x)
)
