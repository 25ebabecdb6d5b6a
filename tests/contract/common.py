"""Backends, dtypes, layouts and views that the contracts share. Nothing here needs more than torch and pytest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pytest
import tolerances
import torch

from posgan_fast.ops.bias_act import ACTIVATIONS

try:
    import oracle
except ImportError:  # a bare GPU machine has no scipy: there the float64 reference stands in, itself held to the oracle
    oracle = None  # type: ignore[assignment]

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
LAYOUTS = (torch.contiguous_format, torch.channels_last)

each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=str)
each_act = pytest.mark.parametrize("act", ACTIVATIONS)


class Backend(NamedTuple):
    """A backend's name and the device on which a contract runs it; "triton" on the CPU is Triton's interpreter."""

    name: str
    device: str = "cpu"

    def put(self, value: Any) -> Any:
        """Copy a tensor, or those in a list or dict, to the device, with the strides and gaps of the original."""
        if isinstance(value, list):
            return [self.put(v) for v in value]
        if isinstance(value, dict):
            return {key: self.put(v) for key, v in value.items()}
        if not isinstance(value, torch.Tensor) or self.device == "cpu":
            return value
        storage = torch.tensor([], dtype=value.dtype).set_(value.untyped_storage())
        moved = storage.to(self.device).as_strided(value.shape, value.stride(), value.storage_offset())
        return moved.detach().requires_grad_(value.requires_grad)

    def some(self, cases: Sequence[Any], turn: int = 0) -> Sequence[Any]:
        """Return the cases, or for Triton a part of them, another one in each ``turn``: on a device it compiles a
        kernel for each case, and its interpreter takes a second for some."""
        step = min(len(cases), {INTERPRETER: 16, DEVICE[1]: 4}.get(self, 1))
        return cases[turn % step :: step]

    def assert_close(self, actual: torch.Tensor, expected: torch.Tensor, op: str, dtype: torch.dtype) -> None:
        """Compare with float64 under the tolerance table; the interpreter cuts float32 to bfloat16, a GPU rounds."""
        if self == INTERPRETER and dtype == torch.bfloat16:
            bits = expected.detach().float().contiguous().view(torch.int32) & -(2**16)
            expected = bits.view(torch.float32).double()
        tolerances.assert_close(actual, expected, op, dtype)

    def __str__(self) -> str:
        return "interpreter" if self == INTERPRETER else self.name


REFERENCE, CPU, INTERPRETER = Backend("reference"), Backend("cpu"), Backend("triton")
HOST = (REFERENCE, CPU)
DEVICE = (Backend("cuda", "cuda"), Backend("triton", "cuda"))


def each_of(backends: Sequence[Backend]) -> Callable[..., Any]:
    """Return a fixture ``backend`` that runs each test of a module on every one of ``backends``."""
    return pytest.fixture(params=backends, ids=str, name="backend")(lambda request: request.param)


def random(shape: Sequence[int], dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def check_derivatives(function: Callable[..., torch.Tensor], inputs: Sequence[torch.Tensor]) -> None:
    """Compare first and second derivatives with finite differences along random directions."""
    inputs = [t.detach().requires_grad_() for t in inputs]
    assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


def _channels_last(x: torch.Tensor) -> torch.Tensor:
    return x.contiguous(memory_format=torch.channels_last)


VIEWS = {
    "dense": lambda x: x,
    "channels last": _channels_last,
    "misaligned": lambda x: x[:, :, 1:, 1:],
    "some channels": lambda x: x[:, 1:3],
    "every other": lambda x: x[:, :, ::2, ::2],
    "transposed": lambda x: x.transpose(2, 3),
    "batch and channels swapped": lambda x: x.transpose(0, 1),
    "flipped": lambda x: x.flip(3),
    "expanded batch": lambda x: x[:1].expand(3, -1, -1, -1),
    "expanded channels": lambda x: x[:, :1].expand(-1, 4, -1, -1),
    "channels last, misaligned": lambda x: _channels_last(x)[:, :, 1:, 2:],
    "channels last, lower rows": lambda x: _channels_last(x)[:, :, 1:],
    "channels last, some channels": lambda x: _channels_last(x)[:, 1:],
    "channels last, one pixel": lambda x: _channels_last(x)[:, :, :1, :1],
    "one column": lambda x: x[:, :, :, :1],
    "one row": lambda x: x[:, :, :1],
    "one value of a sample": lambda x: x[:, :1, :1, :1],
    "no sample": lambda x: x[:0],
    "huge strides": lambda x: x[:1, :1].as_strided((1, 1, *x.shape[2:]), (2**40, 2**36, *x.stride()[2:])),
}
each_view = pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS)
