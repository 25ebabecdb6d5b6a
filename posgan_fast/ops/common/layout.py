"""Memory formats, as the kernels see them."""

from __future__ import annotations

import torch
from torch.autograd import forward_ad

from .op import transforms_active


def memory_format(x: torch.Tensor) -> torch.memory_format:
    """channels_last only where the strides say so and the format is not ambiguous; views of it count too."""
    channels_last = x.shape[1] > 1 and x.stride(1) == 1 and not x.is_contiguous()
    return torch.channels_last if channels_last else torch.contiguous_format


def readable(x: torch.Tensor, like: torch.Tensor | None = None) -> torch.Tensor:
    """``x`` with rows of unit stride, of pixels or of whole channel vectors, in its own memory format or in that of
    ``like``; copied only where it is not so already."""
    wanted = memory_format(x if like is None else like)
    step = x.shape[1] if wanted == torch.channels_last else 1
    unit = x.stride(3) == step and (step == 1 or x.stride(1) == 1)
    return x if unit else x.contiguous(memory_format=wanted)


def contiguous_as(dtype: torch.dtype, t: torch.Tensor | None) -> torch.Tensor | None:
    """``t`` contiguous in a dtype; None stays None."""
    return None if t is None else t.to(dtype).contiguous()


def empty(x: torch.Tensor, shape: tuple[int, ...], device: str | None = None) -> torch.Tensor:
    """A tensor of another shape in the dtype and memory format of ``x``, and on its device unless another is named."""
    return torch.empty(shape, dtype=x.dtype, device=device or x.device, memory_format=memory_format(x))


def in_format(x: torch.Tensor, wanted: torch.memory_format) -> torch.Tensor:
    """``x`` in a memory format; as it is inside torch's transforms and with tangents, which may have none to tell."""
    transformed = transforms_active() or forward_ad._current_level >= 0
    return x if transformed else x.contiguous(memory_format=wanted)


def in_format_of(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """``y`` in the memory format of ``x``, as :func:`in_format` has it."""
    return y if transforms_active() else in_format(y, memory_format(x))  # which asks for strides


def is_dense(x: torch.Tensor) -> bool:
    """Whether the elements fill one block of memory, each once."""
    if x.is_contiguous() or (x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)):
        return True
    expected = 1
    for stride, size in sorted((s, n) for s, n in zip(x.stride(), x.shape, strict=True) if n != 1):
        if stride != expected:
            return False
        expected *= size
    return True
