"""conv2d and grid_sample with the double backward, and the switch, that foreign ``*_gradfix`` modules promise.

Torch's own convolutions have derivatives of every order, so they are called as they are. What is left is the modules'
flag that keeps convolution weights out of a backward pass, read when that pass runs: an identity on the weight whose
backward returns nothing while the flag is up. Around an inner gradient in the input (R1, path length) autograd asks
the convolution for no weight gradient at all; the outer pass, with the flag down, gets it by the double backward.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F


def gated_weight(weight: torch.Tensor, enabled: Callable[[], bool], off: Callable[[], bool]) -> torch.Tensor:
    """``weight``, whose gradient is left out of every backward pass that finds ``off()`` true."""
    if enabled() and torch.is_grad_enabled() and weight.requires_grad:
        return _Gate.apply(weight, off)
    return weight


def convolutions(enabled: Callable[[], bool], off: Callable[[], bool]) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """conv2d and conv_transpose2d with torch's arguments, on a gated weight."""

    def conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
        return F.conv2d(input, gated_weight(weight, enabled, off), bias, stride, padding, dilation, groups)

    def conv_transpose2d(input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1):
        weight = gated_weight(weight, enabled, off)
        return F.conv_transpose2d(input, weight, bias, stride, padding, output_padding, groups, dilation)

    return conv2d, conv_transpose2d


def grid_sample(input: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """Bilinear sampling, zeros outside, ``align_corners=False``, with two derivatives on every device.

    Torch's own where its backward has a derivative there (CPU since 2.13 at the latest), which is found out by trying.
    """
    tracked = torch.is_grad_enabled() and (input.requires_grad or grid.requires_grad)
    if not tracked or torch_differentiates_twice(input.device.type):
        return _torch_grid_sample(input, grid)
    return GridSample.apply(input, grid)


@functools.cache
def torch_differentiates_twice(device_type: str) -> bool:
    """Whether torch's grid_sample has a double backward on this kind of device."""
    with torch.inference_mode(False), torch.enable_grad():
        image = torch.ones(1, 1, 1, 1, device=device_type, requires_grad=True)
        grid = torch.zeros(1, 1, 1, 2, device=device_type, requires_grad=True)
        first = torch.autograd.grad(_torch_grid_sample(image, grid).sum(), (image, grid), create_graph=True)
        try:
            torch.autograd.grad(first[0].sum() + first[1].sum(), (image, grid), allow_unused=True)
        except RuntimeError:
            return False
    return True


class GridSample(torch.autograd.Function):
    """Torch's kernels forward and backward; a backward that is itself differentiated goes through gathers instead."""

    @staticmethod
    def forward(ctx, input, grid):
        ctx.save_for_backward(input, grid)
        return _torch_grid_sample(input, grid)

    @staticmethod
    def backward(ctx, g):
        input, grid = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        if not torch.is_grad_enabled():
            grads = torch.ops.aten.grid_sampler_2d_backward(g, input, grid, 0, 0, False, wanted)
            return tuple(grad if want else None for grad, want in zip(grads, wanted, strict=True))
        inputs = [t for t, want in zip((input, grid), wanted, strict=True) if want]
        found = iter(torch.autograd.grad(_gathered(input, grid), inputs, g, create_graph=True))
        return tuple(next(found) if want else None for want in wanted)


class _Gate(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(weight, off):
        return weight.view_as(weight)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.off = inputs[1]

    @staticmethod
    def backward(ctx, g):
        return None if ctx.off() else g, None


def _torch_grid_sample(input: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    return F.grid_sample(input, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _gathered(input: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """The formula of grid_sample in ops that all have derivatives."""
    n, c, h, w = input.shape
    x, y = ((grid.to(input.dtype) + 1) * grid.new_tensor([w, h]).to(input.dtype) / 2 - 0.5).unbind(-1)  # [N, Ho, Wo]
    left, top = x.detach().floor(), y.detach().floor()
    flat = input.reshape(n, c, h * w)
    total: Any = 0
    for column, across in ((left, left + 1 - x), (left + 1, x - left)):
        for row, down in ((top, top + 1 - y), (top + 1, y - top)):
            inside = (column >= 0) & (column < w) & (row >= 0) & (row < h)
            index = (row.clamp(0, h - 1) * w + column.clamp(0, w - 1)).long().reshape(n, 1, -1).expand(n, c, -1)
            value = flat.gather(2, index).reshape(n, c, *x.shape[1:])  # [N, C, Ho, Wo]
            total = total + value * (across * down * inside)[:, None]
    return total
