"""Times networks on a GPU by events, eagerly and as a replayed graph, and counts the kernels that they launch.

:class:`Host` has the same methods for a dry run on the CPU: its clock is the host's, and a replay is a call.
"""

from __future__ import annotations

import contextlib
import functools
import gc
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

import posgan_fast

from . import harness

WARMUPS = 2
_NO_MEMORY = ("out of memory", "CUDNN_STATUS_ALLOC_FAILED", "CUBLAS_STATUS_ALLOC_FAILED")


@dataclass
class Timed:
    """A call that is ready to be timed; both functions return seconds per call.

    Args:
        eager: Python launches the kernels.
        graph: a replay launches them; None: there is no graph.
        refused: the reason why there is no graph, or "".
    """

    eager: Callable[[], float]
    graph: Callable[[], float] | None = None
    refused: str = ""


class Cuda:
    """Times by the events of a GPU."""

    device = torch.device("cuda")

    def call(self, call: Callable[[], Any]) -> Timed:
        """Prepare a call that no graph holds, such as a step of training."""
        for _ in range(WARMUPS):
            call()
        return Timed(functools.partial(self._seconds, call))

    def network(self, module: Callable[..., Any], *inputs: torch.Tensor, **arguments: Any) -> Timed:
        """Prepare a network, whose graph ``posgan_fast.graphed`` captures."""
        timed = self.call(lambda: module(*inputs, **arguments))
        try:
            run = posgan_fast.graphed(module, *inputs, **arguments)
        except Exception as error:
            timed.refused = reason(error)
        else:
            timed.graph = functools.partial(self._seconds, lambda: run(*inputs, copy=False))
        return timed

    def rotating(self, call: harness.Call, x: torch.Tensor, traffic: int) -> Timed:
        """Prepare a call of a layer on so many copies of ``x`` that none is found in the cache."""
        inputs = [x, *(x.clone() for _ in range(harness.buffers_needed(x.device, traffic) - 1))]
        sampler = harness.CudaSampler(call, inputs)
        return Timed(sampler.launched, sampler if sampler.clock == "graph" else None, sampler.refused)

    def launches(self, call: Callable[[], Any]) -> dict[str, int]:
        """Count the kernels, and the copies and fills beside them, that a call launches."""
        from torch.autograd import DeviceType
        from torch.profiler import ProfilerActivity, profile

        torch.cuda.synchronize()
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
            call()
            torch.cuda.synchronize()
        names = [event.name for event in seen.events() or () if event.device_type == DeviceType.CUDA]
        if not names:
            raise RuntimeError("torch.profiler saw no kernel on the GPU")
        return tally(names)

    def settle(self) -> None:
        """Free what no one uses, and raise the error of a kernel that failed meanwhile."""
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.empty_cache()

    @staticmethod
    def _seconds(call: Callable[[], Any]) -> float:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000


class Host:
    """Stands in for :class:`Cuda` in a dry run."""

    device = torch.device("cpu")

    def call(self, call: Callable[[], Any]) -> Timed:
        call()
        return Timed(functools.partial(self._seconds, call))

    def network(self, module: Callable[..., Any], *inputs: torch.Tensor, **arguments: Any) -> Timed:
        timed = self.call(lambda: module(*inputs, **arguments))
        timed.graph = timed.eager
        return timed

    def rotating(self, call: harness.Call, x: torch.Tensor, traffic: int) -> Timed:
        return self.network(call, x)

    def launches(self, call: Callable[[], Any]) -> dict[str, int]:
        return tally([])

    def settle(self) -> None:
        gc.collect()

    @staticmethod
    def _seconds(call: Callable[[], Any]) -> float:
        begin = time.perf_counter()
        call()
        return time.perf_counter() - begin


Clock = Cuda | Host


def tally(names: list[str]) -> dict[str, int]:
    """Count kernels and copies among the names of the GPU's activities; a profiler's own annotations count as none."""
    copies = sum(name.startswith(("Memcpy", "Memset")) for name in names)
    others = sum(name.startswith(("ProfilerStep", "Activity Buffer")) for name in names)
    return {"kernels": len(names) - copies - others, "copies": copies}


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether an error, or one that led to it, says that the memory of the GPU is full."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, torch.OutOfMemoryError) or any(mark in str(found) for mark in _NO_MEMORY):
            return True
        found = found.__cause__ or found.__context__
    return False


def reason(error: Exception) -> str:
    """Summarise an error; the message of a full memory is long."""
    return "out of memory" if is_out_of_memory(error) else harness.reason(error)


@contextlib.contextmanager
def precision(name: str, benchmark: bool = False) -> Iterator[None]:
    """Allow TF32 only where a case is named after it, and let cuDNN try its algorithms, as training does.

    Half precision runs the rest in float32 without TF32, as NVlabs' training does.
    """
    before = torch.backends.cudnn.benchmark
    with harness.tf32(name == "tf32"):
        torch.backends.cudnn.benchmark = benchmark
        try:
            yield
        finally:
            torch.backends.cudnn.benchmark = before
