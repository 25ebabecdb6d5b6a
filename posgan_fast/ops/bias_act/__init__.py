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

from typing import Any, NamedTuple

import torch

from ... import backend as _backend
from ..common import activations, autocast, checks, layout
from ..common.activations import ACTIVATIONS
from ..common.op import define_inplace, is_recorded, is_transformed, restore, save, wanted_of
from ..common.records import Activation
from .grad import GRAD, GradCall, bias_gradient
from .passes import ARGUMENTS, IMPLS, NAME, ElementwiseOp, Pass, compute, reference, write


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
    r"""Compute ``clamp(gain * act(x + b), -clamp, clamp)``; the module's docstring lists activations and derivatives.

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
    r"""Write the result of :func:`bias_act` over ``x``, which must be dense, and return ``x``.

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
    if is_recorded((x, b)):
        if x.is_leaf and x.requires_grad:
            raise ValueError("x: expected no leaf that requires grad to write over, got one; autograd needs its value")
        if activations.derivative_reads(activation.act, activation.alpha, activation.clamp) == "input":
            raise ValueError(
                "act: expected relu, lrelu with alpha >= 0, or linear without a clamp to write over x under autograd,"
                f" got {act!r}"
            )
        return _InPlace.apply(*call)
    _WRITE_OVER(call)
    if not torch.compiler.is_compiling():
        torch.autograd.graph.increment_version(x)  # lets autograd notice that a kept x has changed
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


def check(x: Any, b: Any, dim: Any, given: tuple[Any, Any, Any, Any]) -> tuple[torch.Tensor | None, int, Activation]:
    """Validate the arguments of a user, ``given`` being (act, alpha, gain, clamp); return b, dim and the activation."""
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


def gradient(
    g: torch.Tensor, ref: torch.Tensor | None, b: torch.Tensor | None, dim: int, activation: Activation, backend: str
) -> torch.Tensor:
    """Compute the first derivative with a registered op; without ``ref`` the derivative is a mere scaling."""
    if ref is not None:
        return GRAD(GradCall(g, ref, b, dim, *activation, backend))
    if activation.gain == 1:
        return g
    return OP(Call(g, None, dim, *Activation(gain=activation.gain), backend))


def _setup_context(ctx, call, result):
    reads = activations.derivative_reads(call.act, call.alpha, call.clamp)
    if reads is None:  # keep nothing, so that the caller may write over both x and the result
        save(ctx, call)
    elif reads == "output":
        save(ctx, call, result=result)
    else:
        save(ctx, call, "x", "b")


def _backward(ctx, g, wanted):
    call, result = restore(ctx)
    if "b" in wanted and _shares_a_pass(call, g, result):
        from ..epilogue2d.backward import Factors, gradients

        factors = Factors(b=call.b)
        return gradients(g, result, call.x, factors, call.activation, wanted & {"x", "b"}, call.backend)
    dx = gradient(g, call.x if result is None else result, call.b, call.dim, call.activation, call.backend)
    return {"x": dx, "b": bias_gradient(dx, call.dim) if "b" in wanted else None}


def _shares_a_pass(call: Call, g: torch.Tensor, result: torch.Tensor | None) -> bool:
    """Tell whether one kernel computes the gradients of x and b. On the CPU two passes in the cache are as fast."""
    if call.backend not in ("cuda", "triton") or g.ndim != 4 or call.dim != 1:
        return False
    leader = next(t for t in (result, call.x, g) if t is not None)
    return leader.is_contiguous() or leader.is_contiguous(memory_format=torch.channels_last)


class _InPlace(torch.autograd.Function):
    """Gives the in-place op a derivative: torch lets no library op that writes to its argument register one."""

    @staticmethod
    def forward(ctx, *args):
        call = Call(*args)
        _WRITE_OVER(call)
        ctx.mark_dirty(call.x)
        reads = activations.derivative_reads(call.act, call.alpha, call.clamp)
        save(ctx, call, result=call.x if reads else None)
        return call.x

    @staticmethod
    def backward(ctx, g):
        return tuple(map(_backward(ctx, g, wanted_of(ctx, Call)).get, Call._fields))


OP = ElementwiseOp(
    f"bias_act(Tensor x, {ARGUMENTS}) -> Tensor",
    Call,
    fake=lambda call: torch.empty_like(call.x),
    kernel=lambda call: compute(call, call.x),
    decomposition=lambda call: reference(Pass(call.x, call.b, call.dim, call.activation)),
    setup_context=_setup_context,
    backward=_backward,
    samples=("x",),
)
_WRITE_OVER = define_inplace(
    f"bias_act_(Tensor(a!) x, {ARGUMENTS}) -> ()", Call, lambda call: write(call, call.x, call.x)
)
