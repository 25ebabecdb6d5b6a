"""Fast, proven ops for convolutional GANs: modulated convolution, positional encodings and resampling on PyTorch.

Importing compiles nothing, probes no device and patches nothing.
"""

from . import functional
from ._allocator import tune_allocator
from .backend import BackendError, use_backend
from .functional import explain
from .integrations import patch, unpatch

__all__ = ["BackendError", "explain", "functional", "patch", "tune_allocator", "unpatch", "use_backend"]
__version__ = "0.1.0"
