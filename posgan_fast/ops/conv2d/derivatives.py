"""Torch's convolution off the CPU, whose derivatives of every order are convolutions and gradients of weights again.

R1 and path length differentiate the gradient that a convolution passes to its input. Torch does it by convolving with
whole images as kernels, which it copies to another order first, and for such kernels cuDNN has no algorithm of its own.
The code of StyleGAN2 replaces torch's convolution for that reason (``conv2d_gradfix``). Here the gradient of a weight
is that of cuDNN in every order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from ..common import autocast
from ..common.op import is_awaited, is_batched, is_plain


class Geometry(NamedTuple):
    """The arguments of a convolution beside its weight, which is [O, I, kh, kw], or if transposed [I, O, kh, kw]."""

    stride: int
    padding: Sequence[int]
    transposed: bool
    output_padding: Sequence[int] = (0, 0)  # of a transposed one, as torch counts it


def convolve(x: torch.Tensor, weight: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """Convolve ``x`` [N, I, H, W]."""
    return _Convolution.apply(x, weight, geometry)


def direct(x: torch.Tensor, weight: torch.Tensor, geometry: Geometry) -> torch.Tensor:
    """Convolve by torch's operator alone."""
    given: dict[str, Any] = dict(stride=geometry.stride, padding=tuple(geometry.padding))
    if geometry.transposed:
        return F.conv_transpose2d(x, weight, output_padding=tuple(geometry.output_padding), **given)
    return F.conv2d(x, weight, **given)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, geometry: Geometry) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.geometry = geometry
        return direct(x, weight, geometry)

    @staticmethod
    def backward(ctx: Any, dy: torch.Tensor) -> tuple[Any, ...]:
        x, weight = ctx.saved_tensors
        wants_x, wants_weight = (is_awaited(ctx, i) for i in (0, 1))
        if not _composes(x, weight, dy):
            return *_gradients(x, weight, dy, ctx.geometry, wants_x, wants_weight), None
        with autocast.disabled(dy):
            dx = _Convolution.apply(dy, weight, _adjoint(ctx.geometry, x, dy, weight)) if wants_x else None
            dw = _WeightGradient.apply(x, dy, weight.shape, ctx.geometry) if wants_weight else None
        return dx, dw, None


class _WeightGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, dy: torch.Tensor, shape: Sequence[int], geometry: Geometry) -> torch.Tensor:
        ctx.save_for_backward(x, dy)
        ctx.geometry = geometry
        values = x.new_empty(1).expand(shape)  # which nobody reads
        return _gradients(x, values, dy, geometry, False, True)[1]

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> tuple[Any, ...]:
        x, dy = ctx.saved_tensors
        run = _Convolution.apply if _composes(x, dy, g) else direct
        with autocast.disabled(g):
            dx = run(dy, g, _adjoint(ctx.geometry, x, dy, g)) if is_awaited(ctx, 0) else None
            d_dy = run(x, g, ctx.geometry) if is_awaited(ctx, 1) else None
        return dx, d_dy, None, None


def _composes(*tensors: torch.Tensor) -> bool:
    """Tell whether another derivative may follow that this module is to compute. Transforms, modes and compilers get
    torch's operators."""
    return torch.is_grad_enabled() and is_plain(*tensors) and not is_batched(*tensors)


def _gradients(
    x: torch.Tensor, weight: torch.Tensor, dy: torch.Tensor, geometry: Geometry, wants_x: bool, wants_weight: bool
) -> tuple[Any, Any]:
    """Return the gradients of the input and of the weight by torch's operator, None where they are not wanted."""
    dx, dw, _ = torch.ops.aten.convolution_backward(
        dy, x, weight, None, [geometry.stride] * 2, list(geometry.padding), [1, 1], geometry.transposed,
        list(geometry.output_padding), 1, [wants_x, wants_weight, False],
    )  # fmt: skip
    return dx, dw


def _adjoint(geometry: Geometry, x: torch.Tensor, dy: torch.Tensor, weight: torch.Tensor) -> Geometry:
    """Return the geometry of the convolution that turns ``dy`` into the gradient of ``x``, by the same weight."""
    stride, padding = geometry.stride, geometry.padding
    if geometry.transposed:
        return Geometry(stride, padding, False)
    sizes = zip(x.shape[2:], dy.shape[2:], weight.shape[2:], padding, strict=True)
    return Geometry(stride, padding, True, [i - ((o - 1) * stride + k - 2 * p) for i, o, k, p in sizes])
