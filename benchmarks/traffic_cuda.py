"""Runs the package as on a GPU, on tensors of the device "meta", which have shapes and strides and no memory.

A build of torch for the CPU cannot make a CUDA tensor. But no decision of the package reads a value of one, so the
sequence of kernels on "meta" is that of the GPU, once the choice of backend takes "meta" for "cuda".
"""

from __future__ import annotations

import contextlib
import importlib
import inspect
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple
from unittest import mock

import torch

from posgan_fast import _native, backend
from posgan_fast.ops import modulated_conv2d
from posgan_fast.ops.common import autocast as package_autocast
from posgan_fast.ops.common import op
from posgan_fast.ops.modulated_conv2d import cuda

from . import traffic_counter

META = torch.device("meta")
ARCH = 90  # the compute capability, times 10, by which Triton's launch tables choose


class Launcher(NamedTuple):
    """A function that launches one Triton kernel, which reads its tensor arguments and writes those named."""

    module: str
    function: str
    writes: tuple[str, ...]
    flops: Callable[[dict[str, Any]], int]  # from the arguments by name


def _products(arguments: dict[str, Any]) -> int:
    """The operations of a convolution whose result has the size of ``y``."""
    y, weight = arguments["y"], arguments["weight"]
    return 2 * y.numel() * math.prod(weight.shape[1:])


LAUNCHERS = (Launcher("posgan_fast.kernels.modulated_conv2d", "modulated_conv2d", ("y",), _products),)


@contextlib.contextmanager
def meta_as_cuda() -> Iterator[None]:
    """Let the ops serve meta tensors by the backend "cuda", and take launchers of Triton for one kernel each."""
    _native._define_schemas()  # no library may have been loaded here
    absent: dict[str, Callable[..., Any]] = dict(
        _elsewhere=_elsewhere,
        _unavailable=lambda library: None if library == _native.CUDA else backend.Unsupported("not on a GPU"),
        _driver_too_old=lambda: None,
        _not_built_for=lambda device: None,
        triton_can_run=lambda x: _elsewhere(x.device, "cuda"),
    )
    with contextlib.ExitStack() as stack:
        for name, function in absent.items():
            stack.enter_context(mock.patch.object(backend, name, function))
        # Nobody watches the layer on a GPU, where inference runs as one op that writes over its intermediate results.
        for module in (op, modulated_conv2d):
            stack.enter_context(mock.patch.object(module, "is_watched", lambda: False))
        stack.enter_context(mock.patch.object(cuda, "_triton_fails_on", lambda device: None))
        for launcher in LAUNCHERS:
            _count(launcher, stack)
        yield


@contextlib.contextmanager
def autocast(dtype: torch.dtype) -> Iterator[None]:
    """Run a block as under ``torch.autocast("cuda", dtype)``, which torch has not for meta tensors.

    This is the autocast of the package's own ops alone. Torch's operators would cast too, but the networks of the
    package call none of those that do with another dtype than autocast's.
    """
    enabled = [True]

    @contextlib.contextmanager
    def disabled(x: torch.Tensor) -> Iterator[None]:
        before, enabled[0] = enabled[0], False
        try:
            yield
        finally:
            enabled[0] = before

    def cast(x: torch.Tensor) -> torch.Tensor:
        return x.to(dtype) if enabled[0] and x.dtype != torch.float64 else x

    replaced: dict[str, Any] = dict(is_enabled=lambda x: enabled[0], cast=cast, disabled=disabled)
    with mock.patch.multiple(package_autocast, **replaced):
        yield


def _elsewhere(found: torch.device, wanted: str) -> backend.Unsupported | None:
    kind = "cuda" if found.type == "meta" else found.type
    return None if kind == wanted else backend.Unsupported(f"x is on {kind}, not on {wanted}")


def _count(launcher: Launcher, stack: contextlib.ExitStack) -> None:
    """Replace a launcher by a record of its traffic, where Triton is installed."""
    try:
        module = importlib.import_module(launcher.module)
    except ImportError:
        return
    signature = inspect.signature(getattr(module, launcher.function))

    def launch(*args: Any, **kwargs: Any) -> None:
        arguments = signature.bind(*args, **kwargs).arguments
        reads = [value for name, value in arguments.items() if name not in launcher.writes]
        writes = [arguments[name] for name in launcher.writes]
        traffic_counter.record(f"triton {launcher.function}", reads, writes, launcher.flops(arguments))

    stack.enter_context(mock.patch.object(module, launcher.function, launch))
    stack.enter_context(mock.patch.object(module, "arch_of", lambda device: ARCH))
