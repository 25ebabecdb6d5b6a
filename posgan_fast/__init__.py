"""Fast, proven ops for convolutional GANs: modulated convolution, positional encodings and resampling on PyTorch.

Importing compiles nothing, probes no device and patches nothing.

Example:
    >>> import torch
    >>> import posgan_fast
    >>> from posgan_fast import functional as PF
    >>> tuned = posgan_fast.tune_allocator()  # once, for a program that works on large tensors on the CPU
    >>> x, f = torch.randn(1, 64, 128, 128), PF.setup_filter([1, 3, 3, 1])
    >>> y = PF.upsample2d(x, f)
    >>> with posgan_fast.use_backend("reference"):
    ...     posgan_fast.explain("upsample2d", x, f).backend
    'reference'
    >>> try:
    ...     PF.upsample2d(x, f, backend="cuda")
    ... except posgan_fast.BackendError:
    ...     print("a tensor on the CPU")
    a tensor on the CPU
    >>> before = posgan_fast.set_algorithm("direct")  # no 3x3 convolution by Winograd's algorithm
    >>> posgan_fast.set_algorithm(before)
    'direct'
    >>> try:
    ...     run = posgan_fast.graphed(torch.nn.Softplus().eval(), x)  # one launch for a network on a GPU
    ... except ValueError:
    ...     print("a tensor on the CPU")
    a tensor on the CPU
    >>> report = posgan_fast.patch()  # from here on, StyleGAN2 code that was or is imported runs on these ops
    >>> posgan_fast.unpatch()
"""

import importlib
from types import ModuleType

from . import functional
from ._allocator import tune_allocator
from .algorithm import set_algorithm
from .backend import BackendError, use_backend
from .functional import explain
from .graphed import graphed
from .integrations import patch, unpatch

__all__ = [
    "BackendError", "explain", "functional", "graphed", "patch", "set_algorithm", "tune_allocator", "unpatch",
    "use_backend",
]  # fmt: skip
__version__ = "0.1.0"
_LATER = ("models", "nn", "recipes")  # imported when they are first asked for, so that importing the ops stays fast


def __getattr__(name: str) -> ModuleType:
    if name in _LATER:
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
