"""conv2d and grid_sample for foreign ``*_gradfix`` modules: twice differentiable, with ``no_weight_gradients``.

The convolutions of this library have derivatives of every order. ``no_weight_gradients`` suppresses the gradients of
convolution weights in a backward pass, through a flag that the pass reads when it runs. A gate does the same here: an
identity on the weight whose backward returns no gradient while the flag is set. R1 and path length differentiate with
respect to an input, and autograd then computes no weight gradient anyway; the outer backward pass runs without the flag
and gets the weight gradient from the double backward. Calls that torch records or transforms go to torch's op alone,
with neither a gate nor an autograd function.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from ..ops.conv2d.convolution import convolve
from .calls import supports, transformed


def gated_weight(weight: torch.Tensor, enabled: Callable[[], bool], suppressed: Callable[[], bool]) -> torch.Tensor:
    """Return ``weight``, which gets no gradient from a backward pass during which ``suppressed()`` is true.

    Args:
        enabled: whether to install the gate at all, read now.
        suppressed: whether to suppress the gradient, read by each backward pass.
    """
    if enabled() and torch.is_grad_enabled() and weight.requires_grad and not transformed():
        return _Gate.apply(weight, suppressed)
    return weight


def convolutions(
    enabled: Callable[[], bool], suppressed: Callable[[], bool]
) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """Make a conv2d and a conv_transpose2d that have torch's arguments and gate their weight."""

    def conv2d(input, weight, bias=None, stride=1, padding=0, dilation=1, groups=1):
        weight = gated_weight(weight, enabled, suppressed)
        if (simple := _simple(input, weight, bias, stride, padding, dilation, groups)) is not None:
            return convolve(input, weight, stride=simple[0], padding=simple[1])
        return F.conv2d(input, weight, bias, stride, padding, dilation, groups)

    def conv_transpose2d(input, weight, bias=None, stride=1, padding=0, output_padding=0, groups=1, dilation=1):
        weight = gated_weight(weight, enabled, suppressed)
        simple = _simple(input, weight, bias, stride, padding, dilation, groups)
        if simple is not None and _number(output_padding) == 0:
            return convolve(input, weight, stride=simple[0], padding=simple[1], transposed=True)
        return F.conv_transpose2d(input, weight, bias, stride, padding, output_padding, groups, dilation)

    return conv2d, conv_transpose2d


def _simple(
    input: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, groups: Any
) -> tuple[int, int] | None:
    """Return the stride and the padding of a call whose arguments :func:`convolve` has, which may then take Winograd's
    algorithm; None for others."""
    tensors = all(isinstance(t, torch.Tensor) and t.ndim == 4 for t in (input, weight))
    stride, padding = _number(stride), _number(padding)
    if not tensors or input.dtype != weight.dtype or bias is not None or stride is None or padding is None:
        return None
    return (stride, padding) if _number(dilation) == 1 and groups == 1 else None


def _number(value: Any) -> int | None:
    """Return the number that ``value`` has for both axes, or None."""
    numbers = set(value) if isinstance(value, (tuple, list)) else {value}
    number = numbers.pop() if len(numbers) == 1 else None
    return number if isinstance(number, int) else None


def grid_sample(input: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """Sample images or volumes linearly, with zeros outside, ``align_corners=False`` and two derivatives.

    Torch's own op serves the call if its backward is differentiable on this device, as it is for images on the CPU
    since torch 2.13 or earlier; a small call, once per kind of device, finds out.
    """
    tracked = supports(input, grid) and torch.is_grad_enabled() and (input.requires_grad or grid.requires_grad)
    if not tracked or torch_differentiates_twice(input.device.type, input.ndim - 2):
        return _torch_grid_sample(input, grid)
    return GridSample.apply(input, grid)


@functools.cache
def torch_differentiates_twice(device_type: str, axes: int) -> bool:
    """Find out whether torch's grid_sample, of images (2 axes) or volumes (3), has a double backward on this device."""
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
    """grid_sample by torch's kernels, forward and backward; a backward to be differentiated runs in plain ops."""

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
    """An identity whose backward returns no gradient while ``suppressed()`` is true."""

    generate_vmap_rule = True

    @staticmethod
    def forward(weight, suppressed):
        return weight.view_as(weight)

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.suppressed = inputs[1]

    @staticmethod
    def backward(ctx, g):
        return None if ctx.suppressed() else g, None


def _torch_grid_sample(input: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    return F.grid_sample(input, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _gathered(input: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """Compute grid_sample by gather, multiplication and addition, which are differentiable any number of times."""
    n, c, *sizes = input.shape
    extent = grid.new_tensor(sizes[::-1]).to(input.dtype)
    places = ((grid.to(input.dtype) + 1) * extent / 2 - 0.5).unbind(-1)[::-1]  # one per axis, as in sizes: [N, *out]
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
