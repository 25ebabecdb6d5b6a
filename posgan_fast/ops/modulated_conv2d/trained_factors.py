r"""The factors of a style layer in training on CUDA: one launch computes them, another one their gradients.

With ``f`` [O] and ``t`` [N] the divisors that keep float16 in range (1 in other dtypes)::

    out[o, i, k] = weight[o, i, k] / f[o]
    scaled[n, i] = styles[n, i] / t[n]
    dcoefs[n, o] = f[o] * t[n] * rsqrt(sum_{i, k} (weight[o, i, k] * styles[n, i])^2 + eps)

The divisors are constants to autograd, since the layer does not depend on them. Where another derivative follows, the
gradients are composed of differentiable operators.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ..common import autocast, checks
from ..common.op import is_awaited, is_batched, is_plain
from . import coefs
from .call import Call

_SHARED = 40 * 2**10  # bytes of a block's 48 KiB of shared memory; its threads need the others
STYLE_SAMPLES = 4  # kStyleSamples of csrc/modulated_factors_backward.cuh


class Form(NamedTuple):
    """The arrangement in which the convolution reads a weight."""

    dtype: torch.dtype
    memory_format: torch.memory_format
    flip: bool  # reverse the stored kernel
    transposed: bool  # [I, O, kh, kw]


def fits_one_launch(call: Call) -> bool:
    """Tell whether one launch can compute the factors of a call."""
    n, i = call.styles.shape
    return n > 0 and _fits(n + i, call) and not coefs.scale_map(call)


def serve(call: Call) -> bool:
    """Tell whether the native ops compute the factors of a call and their gradients."""
    if call.backend != "cuda" or not call.demodulate or not is_plain(call.x, call.weight, call.styles):
        return False
    return fits_one_launch(call) and _fits(STYLE_SAMPLES * call.weight.shape[0], call)


def _fits(numbers: int, call: Call) -> bool:
    return numbers * checks.arithmetic(call.x.dtype).itemsize <= _SHARED


def factors(call: Call, form: Form) -> coefs.Factors:
    """Compute the factors of a call that :func:`serve` accepts, the weight in a form."""
    acc = checks.arithmetic(form.dtype)
    weight, styles = dense(call.weight.to(acc)), with_dense_rows(call.styles.to(acc))
    computed = _compute(weight.detach(), styles.detach(), call.eps, form)
    out, weight = _Weight.apply(weight, computed.out, computed.divisors, form)
    dcoefs, scaled = _Coefficients.apply(weight, styles, *computed[1:], call.eps)
    return coefs.Factors(out, styles if scaled is None else scaled, dcoefs, call.pad_map)


class _Computed(NamedTuple):
    """The results of one launch; ``scaled`` and ``divisors`` only in float16."""

    out: torch.Tensor
    dcoefs: torch.Tensor
    scaled: torch.Tensor | None
    divisors: torch.Tensor | None


def _compute(weight: torch.Tensor, styles: torch.Tensor, eps: float, form: Form) -> _Computed:
    (n, i), o = styles.shape, weight.shape[0]
    out, dcoefs = empty_weight(weight, form, o), styles.new_empty(n, o)
    scaled = divisors = None
    if form.dtype == torch.float16:
        scaled, divisors = styles.new_empty(n, i), styles.new_empty(o + n)
    torch.ops.posgan_fast_native.modulated_factors(
        weight, styles, None, None, None, out, None, dcoefs, scaled, None, divisors, eps, False, form.transposed,
        form.flip,
    )  # fmt: skip
    return _Computed(out, dcoefs, scaled, divisors)


def empty_weight(weight: torch.Tensor, form: Form, filters: int) -> torch.Tensor:
    """Return an empty weight of a convolution for a stored weight [O, I, kh, kw]."""
    i, *kernel = weight.shape[1:]
    shape = (i, filters, *kernel) if form.transposed else (filters, i, *kernel)
    return torch.empty(shape, dtype=form.dtype, device=weight.device, memory_format=form.memory_format)


def dense(weight: torch.Tensor) -> torch.Tensor:
    """Return a weight, or a copy, that is dense in either memory format."""
    return weight if weight.is_contiguous(memory_format=torch.channels_last) else weight.contiguous()


def with_dense_rows(styles: torch.Tensor) -> torch.Tensor:
    return styles if styles.shape[1] == 1 or styles.stride(1) == 1 else styles.contiguous()


class _Weight(torch.autograd.Function):
    """Gives the convolution's weight its derivative, and the weight back for :class:`_Coefficients`.

    Were both one function, autograd would want the gradient of the convolution's weight for that of the styles.
    """

    @staticmethod
    def forward(ctx: Any, weight: torch.Tensor, out: torch.Tensor, divisors: Any, form: Form) -> Any:
        ctx.save_for_backward(divisors)
        ctx.form, ctx.filters = form, len(weight)
        ctx.set_materialize_grads(False)
        return out, weight

    @staticmethod
    def backward(ctx: Any, d_out: Any, d_weight: Any) -> tuple[Any, ...]:
        (divisors,) = ctx.saved_tensors
        if d_out is None:
            return d_weight, None, None, None
        d_out = d_out.transpose(0, 1) if ctx.form.transposed else d_out
        d_out = d_out.flip((2, 3)) if ctx.form.flip else d_out
        if divisors is None:
            return d_out if d_weight is None else d_weight + d_out, None, None, None
        filters = divisors[: ctx.filters, None, None, None]
        return d_out / filters if d_weight is None else torch.addcdiv(d_weight, d_out, filters), None, None, None


class _Coefficients(torch.autograd.Function):
    """Gives the coefficients and the scaled styles their derivatives."""

    @staticmethod
    def forward(
        ctx: Any, weight: torch.Tensor, styles: torch.Tensor, dcoefs: torch.Tensor, scaled: Any, divisors: Any,
        eps: float,
    ) -> Any:  # fmt: skip
        ctx.save_for_backward(weight, styles, dcoefs, divisors)
        ctx.eps = eps
        ctx.set_materialize_grads(False)
        return dcoefs, scaled

    @staticmethod
    def backward(ctx: Any, d_dcoefs: Any, d_scaled: Any) -> tuple[Any, ...]:
        weight, styles, dcoefs, divisors = ctx.saved_tensors
        if d_dcoefs is None:
            d_dcoefs = torch.zeros_like(dcoefs)
        wanted = is_awaited(ctx, 0), is_awaited(ctx, 1)
        if torch.is_grad_enabled() or not is_plain(weight, styles) or is_batched(d_dcoefs, d_scaled):
            with autocast.disabled(weight):
                found = _composed(weight, styles, divisors, d_dcoefs, d_scaled, ctx.eps, wanted)
        else:
            found = _run_native(weight, styles, dcoefs, divisors, d_dcoefs, d_scaled, wanted)
        return *found, None, None, None, None


def _run_native(
    weight: torch.Tensor, styles: torch.Tensor, dcoefs: torch.Tensor, divisors: Any, d_dcoefs: torch.Tensor,
    d_scaled: Any, wanted: tuple[bool, bool],
) -> tuple[Any, Any]:  # fmt: skip
    d_weight = torch.empty_like(weight) if wanted[0] else None
    d_styles = styles.new_empty(styles.shape) if wanted[1] else None
    torch.ops.posgan_fast_native.modulated_factors_backward(
        weight, styles, dcoefs, divisors, d_dcoefs.contiguous(), None if d_scaled is None else d_scaled.contiguous(),
        d_weight, d_styles,
    )  # fmt: skip
    return d_weight, d_styles


def _composed(
    weight: torch.Tensor, styles: torch.Tensor, divisors: Any, d_dcoefs: torch.Tensor, d_scaled: Any, eps: float,
    wanted: tuple[bool, bool],
) -> tuple[Any, Any]:  # fmt: skip
    """Compose the gradients, whose formulas csrc/modulated_factors_backward.cuh has, of differentiable operators."""
    squares = coefs.squares(weight)  # [I, O]
    h = d_dcoefs * coefs.from_squares(squares, styles, eps) ** 3
    if divisors is not None:
        filters, samples = divisors[: len(weight)], divisors[len(weight) :, None]
        h = h * (filters * samples)
        d_scaled = None if d_scaled is None else d_scaled / samples
    d_weight = -weight * (styles.square().t() @ h).t()[:, :, None, None] if wanted[0] else None
    d_styles = -styles * (h @ squares.t()) if wanted[1] else None
    return d_weight, d_styles if d_styles is None or d_scaled is None else d_styles + d_scaled
