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
from typing import Any

import torch

from .. import backend as _backend
from .common import activations, autocast, checks, layout
from .common.activations import ACTIVATIONS
from .common.op import Op, is_transformed, refusing_tangents

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
    """
    b, dim, alpha, gain, clamp = check(x, b, dim, act, alpha, gain, clamp)
    name = _backend.resolve(NAME, IMPLS, x, backend)
    if act == "linear" and gain == 1.0 and b is None and clamp < 0:
        return x
    return OP(x, b, dim, act, alpha, gain, clamp, name)


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
    """
    b, dim, alpha, gain, clamp = check(x, b, dim, act, alpha, gain, clamp)
    name = _backend.resolve(NAME, IMPLS, x, backend)
    if is_transformed(x, b):
        return x.copy_(OP(x, b, dim, act, alpha, gain, clamp, name))
    if not layout.is_dense(x):
        raise ValueError(
            f"x: expected a dense tensor to write over, got strides {x.stride()} of shape {tuple(x.shape)}"
        )
    if torch.is_grad_enabled() and (x.requires_grad or (b is not None and b.requires_grad)):
        if x.is_leaf and x.requires_grad:
            raise ValueError("x: expected no leaf that requires grad to write over, got one; autograd needs its value")
        if activations.derivative_reads(act, alpha, clamp) == "input":
            raise ValueError(
                "act: expected relu, lrelu with alpha >= 0, or linear without a clamp to write over x under autograd,"
                f" got {act!r}"
            )
        return _InPlace.apply(x, b, dim, act, alpha, gain, clamp, name)
    torch.ops.posgan_fast.bias_act_(x, b, dim, act, alpha, gain, clamp, name)
    if not torch.compiler.is_compiling():
        torch.autograd.graph.increment_version(x)  # so that autograd notices where x was kept for a backward pass
    return x


_ARGUMENTS = "int dim, str act, float alpha, float gain, float clamp, str backend"
_LIBRARY = torch.library.Library("posgan_fast", "FRAGMENT")
_LIBRARY.define(f"bias_act(Tensor x, Tensor? b, {_ARGUMENTS}) -> Tensor")
_LIBRARY.define(f"bias_act_(Tensor(a!) x, Tensor? b, {_ARGUMENTS}) -> ()")
_LIBRARY.define(f"bias_act_grad(Tensor g, Tensor ref, Tensor? b, {_ARGUMENTS}) -> Tensor")
_LIBRARY.define(f"bias_act_grad2(Tensor g, Tensor dy, Tensor x, Tensor? b, {_ARGUMENTS}) -> Tensor")


def check(
    x: Any, b: Any, dim: Any, act: Any, alpha: Any, gain: Any, clamp: Any
) -> tuple[torch.Tensor | None, int, float, float, float]:
    """Validate a call and return b, dim, alpha, gain and clamp in full (clamp -1: none)."""
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
    return b, dim, alpha, gain, clamp


@torch.library.register_fake("posgan_fast::bias_act", lib=_LIBRARY)
def _fake(x, b, dim, act, alpha, gain, clamp, backend):
    return torch.empty_like(x)


@torch.library.register_fake("posgan_fast::bias_act_", lib=_LIBRARY)
def _fake_(x, b, dim, act, alpha, gain, clamp, backend):
    return None


@torch.library.register_fake("posgan_fast::bias_act_grad", lib=_LIBRARY)
def _fake_grad(g, ref, b, dim, act, alpha, gain, clamp, backend):
    return torch.empty_like(ref)


@torch.library.register_fake("posgan_fast::bias_act_grad2", lib=_LIBRARY)
def _fake_grad2(g, dy, x, b, dim, act, alpha, gain, clamp, backend):
    return torch.empty_like(x)


def reference(x, b, ref, dy, dim, order, act, alpha, gain, clamp):
    """The definition in plain torch. order 0: x is the input. order 1: x is the gradient and ref the output (relu,
    lrelu with alpha >= 0) or the input. order 2: x and dy are gradients, ref the input."""
    acc = checks.arithmetic(x.dtype)
    base = (x if order == 0 else ref).to(acc)
    if order == 1 and activations.reads_output(act, alpha):
        value = base
        slope = torch.where(base > 0 if gain > 0 else base < 0, torch.ones_like(base), alpha)
    else:
        v = base if b is None else base + b.to(acc).reshape([-1 if i == dim else 1 for i in range(x.ndim)])
        value = gain * activations.value(act, v, alpha)
        if order == 0:
            return (value if clamp < 0 else _clamped(value, clamp)).to(x.dtype)
        slope = activations.slope(act, v, alpha) if order == 1 else activations.curvature(act, v, alpha)
    y = x.to(acc) * (gain * slope) * (1 if dy is None else dy.to(acc))
    if clamp >= 0:
        y = torch.where((value > -clamp) & (value < clamp), y, 0)
    return y.to(x.dtype)


def _clamped(value, clamp):
    """``value.clamp(-clamp, clamp)``, whose derivative is zero at the bounds too."""
    return torch.where((value > -clamp) & (value < clamp), value, value.detach().clamp(-clamp, clamp))


def _setup_context(ctx, inputs, output):
    x, b, *ctx.arguments = inputs
    reads = activations.derivative_reads(ctx.arguments[1], ctx.arguments[2], ctx.arguments[4])
    if reads is not None:  # else the caller may write over both x and the result
        ctx.save_for_backward(*((output,) if reads == "output" else (x, b)))


def _backward(ctx, g):
    ref, b = (*ctx.saved_tensors, None, None)[:2]
    dx = gradient(g, ref, b, ctx.arguments)
    return dx, _bias_gradient(ctx, dx, 1), *[None] * 6


def gradient(g, ref, b, arguments):
    """The first derivative as a registered op; ref None: a mere scaling."""
    dim, _, _, gain, _, backend = arguments
    if ref is None:
        return g if gain == 1 else OP(g, None, dim, "linear", 0.0, gain, -1.0, backend)
    return GRAD(g, ref, b, *arguments)


def _setup_context_grad(ctx, inputs, output):
    g, ref, b, *ctx.arguments = inputs
    ctx.save_for_backward(g, ref, b)


def _backward_grad(ctx, h):
    g, ref, b = ctx.saved_tensors
    dg = GRAD(h, ref, b, *ctx.arguments) if ctx.needs_input_grad[0] else None
    if ctx.arguments[1] in ("linear", "relu", "lrelu") or not any(ctx.needs_input_grad[1:3]):
        return dg, *[None] * 8
    dx = GRAD2(h, g, ref, b, *ctx.arguments)
    return dg, dx, _bias_gradient(ctx, dx, 2), *[None] * 6


def _setup_context_grad2(ctx, inputs, output):
    g, dy, x, b, *ctx.arguments = inputs
    ctx.save_for_backward(g, dy, x, b)


def _backward_grad2(ctx, h):
    if any(ctx.needs_input_grad[2:4]):
        raise NotImplementedError(
            f"bias_act: no third derivative of {ctx.arguments[1]!r}; the first two are implemented"
        )
    g, dy, x, b = ctx.saved_tensors
    dg = GRAD2(h, dy, x, b, *ctx.arguments) if ctx.needs_input_grad[0] else None
    ddy = GRAD2(h, g, x, b, *ctx.arguments) if ctx.needs_input_grad[1] else None
    return dg, ddy, *[None] * 8


class _InPlace(torch.autograd.Function):
    """The in-place op under autograd: a library op that writes to its argument cannot register a derivative."""

    @staticmethod
    def forward(ctx, x, b, *arguments):
        ctx.arguments = arguments
        torch.ops.posgan_fast.bias_act_(x, b, *arguments)
        ctx.mark_dirty(x)
        if activations.derivative_reads(arguments[1], arguments[2], arguments[4]):
            ctx.save_for_backward(x)
        return x

    @staticmethod
    def backward(ctx, g):
        (y,) = ctx.saved_tensors or (None,)
        dx = gradient(g, y, None, ctx.arguments)
        return dx, _bias_gradient(ctx, dx, 1), *[None] * 6


def _run_native(x, b, ref, dy, out, dim, order, act, alpha, gain, clamp):
    index = ACTIVATIONS[act].index
    torch.ops.posgan_fast_native.bias_act(x, b, ref, dy, out, _step(x, dim), order, index, alpha, gain, clamp)


def _run_triton(x, b, ref, dy, out, dim, order, act, alpha, gain, clamp):
    from ..kernels import bias_act as kernel
    from ..kernels.records import Activation

    kernel.bias_act(x, b, ref, dy, out, _step(x, dim), order, Activation(act, alpha, gain, clamp))


def _step(x: torch.Tensor, dim: int) -> int:
    """Elements from one bias value to the next; the stride of a dimension of size 1 can be anything."""
    return x.stride(dim) if x.ndim and x.shape[dim] > 1 else x.numel()


def _run_reference(x, b, ref, dy, out, dim, order, act, alpha, gain, clamp):
    out.copy_(reference(x, b, ref, dy, dim, order, act, alpha, gain, clamp))


IMPLS = (
    _backend.Impl("cuda", _backend.cuda_can_run, _run_native),
    _backend.Impl("cpu", _backend.cpu_can_run, _run_native),
    _backend.Impl("triton", _backend.triton_can_run, _run_triton),
    _backend.Impl("reference", _backend.reference_can_run, _run_reference),
)


def _dispatch(x, b, dim, act, alpha, gain, clamp, backend):
    return _launch(x, b, None, None, dim, 0, act, alpha, gain, clamp, backend)


def _dispatch_(x, b, dim, act, alpha, gain, clamp, backend):
    if x.numel():
        run = _backend.implementation(NAME, IMPLS, x, backend)
        run(x, _bias(b, x), None, None, x, dim, 0, act, alpha, gain, round_to(clamp, x.dtype))


def _dispatch_grad(g, ref, b, dim, act, alpha, gain, clamp, backend):
    return _launch(g, b, ref, None, dim, 1, act, alpha, gain, clamp, backend)


def _dispatch_grad2(g, dy, x, b, dim, act, alpha, gain, clamp, backend):
    return _launch(g, b, x, dy, dim, 2, act, alpha, gain, clamp, backend)


_LIBRARY.impl("bias_act_", refusing_tangents("bias_act_", _dispatch_), "CompositeExplicitAutograd")


class _Elementwise(Op):
    """An op on tensors of any shape; a batch of calls is one call with a dimension more."""

    def _merged(self, size, call):
        *tensors, b, dim, act, alpha, gain, clamp, backend = call
        return self(*tensors, b, dim if b is None else dim + 1, act, alpha, gain, clamp, backend)


def _decomposition(x, b, dim, act, alpha, gain, clamp, backend):
    return reference(x, b, None, None, dim, 0, act, alpha, gain, clamp)


def _decomposition_grad(g, ref, b, dim, act, alpha, gain, clamp, backend):
    return reference(g, b, ref, None, dim, 1, act, alpha, gain, clamp)


def _decomposition_grad2(g, dy, x, b, dim, act, alpha, gain, clamp, backend):
    return reference(g, b, x, dy, dim, 2, act, alpha, gain, clamp)


OP = _Elementwise(_LIBRARY, NAME, _dispatch, _decomposition, _setup_context, _backward, samples=(0,))
GRAD = _Elementwise(
    _LIBRARY, "bias_act_grad", _dispatch_grad, _decomposition_grad, _setup_context_grad, _backward_grad, samples=(0, 1)
)
GRAD2 = _Elementwise(
    _LIBRARY,
    "bias_act_grad2",
    _dispatch_grad2,
    _decomposition_grad2,
    _setup_context_grad2,
    _backward_grad2,
    samples=(0, 1, 2),
)


def _launch(x, b, ref, dy, dim, order, act, alpha, gain, clamp, backend):
    """Bring every tensor to one dense layout, that of the forward input, and run."""
    leader = x if ref is None else ref
    if not layout.is_dense(leader):
        leader = leader.clone()  # keeps the order of the strides, drops the gaps
    out = torch.empty_like(leader)
    if out.numel() == 0:
        return out
    ref = None if ref is None else leader
    x = leader if ref is None else _like(x, leader)
    dy = None if dy is None else _like(dy, leader)
    run = _backend.implementation(NAME, IMPLS, x, backend)
    run(x, _bias(b, x), ref, dy, out, dim, order, act, alpha, gain, round_to(clamp, x.dtype))
    return out


def _like(t: torch.Tensor, leader: torch.Tensor) -> torch.Tensor:
    return t if t.stride() == leader.stride() else torch.empty_like(leader).copy_(t)


def _bias(b: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor | None:
    """``b`` as kernels read it. An exported graph under autocast brings another dtype than ``x`` has by then."""
    if b is None:
        return None
    return (b if b.dtype == x.dtype else b.to(x.dtype)).contiguous()


def _bias_gradient(ctx, dx, index):
    if not ctx.needs_input_grad[index]:
        return None
    others = [i for i in range(dx.ndim) if i != ctx.arguments[0]]
    return dx.sum(others) if others else dx  # a sum over no dimensions is one over all


@functools.cache
def round_to(value: float, dtype: torch.dtype) -> float:
    """In half precision a clamped result must equal the clamp, since the mask of the gradient is read off it."""
    return float(torch.tensor(value, dtype=dtype))
