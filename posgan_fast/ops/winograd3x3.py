"""Convolution with a 3x3 kernel by Winograd's algorithm, for inference on the CPU in float32.

    prelu(scale * conv(in_scale * x + in_shift, weight) + shift, slope)        zeros around the scaled input

F(4x4, 3x3) computes 16 results with 36 products in place of 144. Every factor is applied while a tile is read or
written. The relative error of the result is about four times that of a direct convolution: 4.6e-6 against 1.1e-6 with
512 channels (relative L2 against float64). A number that is not finite spoils the 4 x 4 results of each tile that reads
it, where a direct convolution spoils 3 x 3. Results do not depend on the number of threads, nor on other samples.

Source: "Fast Algorithms for Convolutional Neural Networks" (CVPR 2016).
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd import forward_ad

from .. import backend as _backend
from .modulated_conv2d import weight_cache

_CHANNELS = 16  # input and output channels are multiples of it
_LEAST_TILES = 16  # below, reading the transformed weight takes longer than the products
_MOST_WEIGHTS = 256 * 256  # beyond, transforming a weight at every call takes longer than it saves


def usable(x: torch.Tensor, weight: torch.Tensor) -> bool:
    """Tell whether :func:`conv2d` computes this call, and faster than the vendor's convolution."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or not _is_plain(x, weight):
        return False
    o, i, *kernel = weight.shape
    if kernel != [3, 3] or o % _CHANNELS or i % _CHANNELS or not x.dtype == weight.dtype == torch.float32:
        return False
    tiles = x.shape[0] * -(-x.shape[2] // 4) * -(-x.shape[3] // 4)
    if tiles < _LEAST_TILES or (o * i > _MOST_WEIGHTS and not weight_cache.keeps(weight)):
        return False
    return weight.device == x.device and _backend.uses_cpu_kernels(x)


def conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    in_scale: torch.Tensor | None = None,
    in_shift: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    shift: torch.Tensor | None = None,
    slope: torch.Tensor | None = None,
) -> torch.Tensor:
    """Convolve ``x`` [N, I, H, W] with ``weight`` [O, I, 3, 3] to [N, O, H, W] in channels_last.

    Args:
        x, weight: as :func:`usable` takes them; ``nn.prepack`` keeps the transformed weight between calls.
        in_scale, in_shift: [I].
        scale, shift, slope: [O].
    """
    x = x.contiguous(memory_format=torch.channels_last)
    transformed = weight_cache.packed(weight, "winograd3x3", lambda: _transformed(weight))
    if transformed is None:
        transformed = _transformed(weight)
    n, _, h, w = x.shape
    y = x.new_empty((n, h, w, weight.shape[0])).permute(0, 3, 1, 2)
    factors = [None if t is None else t.contiguous() for t in (in_scale, in_shift, scale, shift, slope)]
    torch.ops.posgan_fast_native.winograd3x3(x, transformed, *factors, y)
    return y


def _transformed(weight: torch.Tensor) -> torch.Tensor:
    o, i = weight.shape[:2]
    transformed = weight.new_empty(36 * -(-o // 32) * i * 32)
    torch.ops.posgan_fast_native.winograd3x3_weight(weight.detach(), transformed)
    return transformed


def _is_plain(x: Any, weight: Any) -> bool:
    """Tell whether torch neither records nor transforms this call."""
    return (
        {type(x), type(weight)} <= {torch.Tensor, torch.nn.Parameter}
        and x.numel() > 0
        and not torch.jit.is_tracing()
        and forward_ad._current_level < 0
        and not torch._C._are_functorch_transforms_active()
        and not torch._C._len_torch_dispatch_stack()
        and not torch.is_autocast_enabled(x.device.type)
    )
