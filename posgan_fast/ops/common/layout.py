"""Memory formats, as kernels see them."""

from __future__ import annotations

import torch
from torch.autograd import forward_ad

from .op import transforms_active


def memory_format(x: torch.Tensor) -> torch.memory_format:
    """Return channels_last if the strides, also those of a view, say so and fit no contiguous tensor."""
    channels_last = x.shape[1] > 1 and x.stride(1) == 1 and not x.is_contiguous()
    return torch.channels_last if channels_last else torch.contiguous_format


def readable(x: torch.Tensor, like: torch.Tensor | None = None) -> torch.Tensor:
    """Return ``x``, or a copy, with dense rows of pixels (NCHW) or of whole channel vectors (channels_last), in its own
    memory format or in that of ``like``."""
    wanted = memory_format(x if like is None else like)
    step = x.shape[1] if wanted == torch.channels_last else 1
    unit = x.stride(3) == step and (step == 1 or x.stride(1) == 1)
    return x if unit else x.contiguous(memory_format=wanted)


def contiguous_as(dtype: torch.dtype, t: torch.Tensor | None) -> torch.Tensor | None:
    """Return ``t`` contiguous in a dtype, and None for None."""
    return None if t is None else t.to(dtype).contiguous()


def empty(x: torch.Tensor, shape: tuple[int, ...], dtype: torch.dtype | None = None) -> torch.Tensor:
    """Return an empty tensor of a shape, in the memory format, on the device and by default in the dtype of ``x``."""
    return torch.empty(shape, dtype=dtype or x.dtype, device=x.device, memory_format=memory_format(x))


def as_empty(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return ``y`` with the strides that :func:`empty` gives a tensor of its shape, also where a size is 1 and strides
    mean nothing: compiled graphs compare them all."""
    c, h, w = y.shape[1:]
    if memory_format(x) == torch.channels_last:
        expected = (h * w * c, 1, w * c, c)
    else:
        h, w = max(h, 1), max(w, 1)  # as torch counts
        expected = (max(c, 1) * h * w, h * w, w, 1)
    return y if y.stride() == expected else empty(x, y.shape).copy_(y)


def in_format(x: torch.Tensor, wanted: torch.memory_format) -> torch.Tensor:
    """Return ``x`` in a memory format; unchanged under torch's transforms, whose tensors may not tell their strides."""
    transformed = transforms_active() or forward_ad._current_level >= 0
    return x if transformed else x.contiguous(memory_format=wanted)


def in_format_of(y: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Return ``y`` in the memory format of ``x``, with the exception that :func:`in_format` makes."""
    return y if transforms_active() else in_format(y, memory_format(x))  # memory_format reads strides


def weight_for(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Cast the weight of a convolution to the dtype of ``x``; off the CPU also to its memory format, in the same pass,
    because cuDNN would take another one."""
    if x.device.type == "cpu" or transforms_active() or forward_ad._current_level >= 0:
        return weight.to(x.dtype)
    wanted = memory_format(x)
    return (
        weight.to(x.dtype) if weight.is_contiguous(memory_format=wanted) else weight.to(x.dtype, memory_format=wanted)
    )


def is_dense(x: torch.Tensor) -> bool:
    """Tell whether the elements fill one block of memory, each once."""
    if x.is_contiguous() or (x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last)):
        return True
    expected = 1
    for stride, size in sorted((s, n) for s, n in zip(x.stride(), x.shape, strict=True) if n != 1):
        if stride != expected:
            return False
        expected *= size
    return True
