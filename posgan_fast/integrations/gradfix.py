"""conv2d and grid_sample with the double backward, and the switch, that foreign ``*_gradfix`` modules promise.

Torch's own convolutions have derivatives of every order, so they are called as they are. What is left is the modules'
flag that keeps convolution weights out of a backward pass, read when that pass runs: an identity on the weight whose
backward returns nothing while the flag is up. Around an inner gradient in the input (R1, path length) autograd asks
the convolution for no weight gradient at all; the outer pass, with the flag down, gets it by the double backward.
Where torch records or transforms the call, there is neither gate nor autograd function: torch's own op alone.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from .calls import takes, transformed


def gated_weight(weight: torch.Tensor, enabled: Callable[[], bool], off: Callable[[], bool]) -> torch.Tensor:
    """``weight``, whose gradient is left out of every backward pass that finds ``off()`` true."""
    if enabled() and torch.is_grad_enabled() and weight.requires_grad and not transformed():
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
    """Linear sampling of images or volumes, zeros outside, ``align_corners=False``, two derivatives on every device.

    Torch's own where its backward has a derivative there (images on the CPU since 2.13 at the latest), which is found
    out by trying.
    """
    tracked = takes(input, grid) and torch.is_grad_enabled() and (input.requires_grad or grid.requires_grad)
    if not tracked or torch_differentiates_twice(input.device.type, input.ndim - 2):
        return _torch_grid_sample(input, grid)
    return GridSample.apply(input, grid)


@functools.cache
def torch_differentiates_twice(device_type: str, axes: int) -> bool:
    """Whether torch's grid_sample of so many axes has a double backward on this kind of device."""
    with torch.inference_mode(False), torch.enable_grad():
        image = torch.ones([1] * (axes + 2), device=device_type, requires_grad=True)
        grid = torch.zeros([*[1] * (axes + 1), axes], device=device_type, requires_grad=True)
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
            backward = (
                torch.ops.aten.grid_sampler_2d_backward if g.ndim == 4 else torch.ops.aten.grid_sampler_3d_backward
            )
            grads = backward(g, input, grid, 0, 0, False, wanted)
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
    n, c, *sizes = input.shape
    extent = grid.new_tensor(sizes[::-1]).to(input.dtype)
    places = ((grid.to(input.dtype) + 1) * extent / 2 - 0.5).unbind(-1)[::-1]  # slowest axis first; each [N, *out]
    corners = [((low := place.detach().floor(), low + 1 - place), (low + 1, place - low)) for place in places]
    flat = input.reshape(n, c, -1)
    total: Any = 0
    for corner in itertools.product(*corners):
        index: Any = 0
        share: Any = 1
        for (at, weight), size in zip(corner, sizes, strict=True):
            index = index * size + at.clamp(0, size - 1).long()
            share = share * weight * ((at >= 0) & (at < size))
        value = flat.gather(2, index.reshape(n, 1, -1).expand(n, c, -1)).reshape(n, c, *index.shape[1:])
        total = total + value * share[:, None]
    return total
