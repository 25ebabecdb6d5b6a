"""Functions and classes of ``torch.cuda`` for machines without a CUDA device."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import torch

from .changes import Changes


def answer_without_device(changes: Changes) -> None:
    """Replace the functions and classes of ``torch.cuda`` by ones that answer for one device, not available."""
    for name, result in _RESULTS.items():
        changes.put(torch.cuda, name, returning(result))
    for name, answer in _ANSWERS.items():
        changes.put(torch.cuda, name, answer)
    for name in ("mark", "range_pop", "range_push", "range_end"):
        changes.put(torch.cuda.nvtx, name, returning(None))
    changes.put(torch.cuda.nvtx, "range", _named_range)
    changes.put(torch.cuda.nvtx, "range_start", returning(0))


def returning(result: Any) -> Callable[..., Any]:
    """Make a function that returns ``result``; torch.compile tells functions apart by id, so no two names share one."""

    def answer(*args: Any, **kwargs: Any) -> Any:
        return result

    return answer


class Event:
    """``torch.cuda.Event`` on the CPU, where all work is complete before the next call."""

    def __init__(self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False) -> None:
        self._time: float | None = None

    def record(self, stream: Any = None) -> None:
        self._time = time.perf_counter()

    def elapsed_time(self, end_event: Event) -> float:
        """Return the milliseconds from this event to ``end_event``.

        Raises:
            RuntimeError: one of the two events was not recorded.
        """
        if self._time is None or end_event._time is None:
            raise RuntimeError("elapsed_time: expected two recorded events")
        return (end_event._time - self._time) * 1000

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        """Return at once: no work is pending."""

    def wait(self, stream: Any = None) -> None:
        """Return at once: no work is pending."""


class Stream:
    """``torch.cuda.Stream`` on the CPU; all streams are equal, since the CPU executes all calls in one order."""

    device, device_index, cuda_stream, priority = torch.device("cpu"), 0, 0, 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream)

    def __hash__(self) -> int:
        return hash(Stream)

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def record_event(self, event: Event | None = None) -> Event:
        event = Event() if event is None else event
        event.record()
        return event

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        """Return at once: no work is pending."""

    def wait_event(self, event: Event) -> None:
        """Return at once: no work is pending."""

    def wait_stream(self, stream: Stream) -> None:
        """Return at once: no work is pending."""


class _Device(contextlib.nullcontext):
    """``torch.cuda.device`` on the CPU: a context that changes no device."""

    def __init__(self, device: Any = None) -> None:
        super().__init__()
        self.idx = 0


def _set_rng_state(state: Any, device: Any = None) -> None:
    """Set the state of the CPU's generator; ignore a state saved on CUDA, which has another size."""
    state = state[0] if isinstance(state, (list, tuple)) else state
    if state.numel() == torch.default_generator.get_state().numel():
        torch.default_generator.set_state(state)


@contextlib.contextmanager
def _named_range(*args: Any, **kwargs: Any) -> Iterator[None]:
    """``torch.cuda.nvtx.range`` without a profiler, as a context or a decorator."""
    yield


def _memory(*args: Any, **kwargs: Any) -> tuple[int, int]:
    """Return the free and the total memory of the machine, in bytes."""
    page = os.sysconf("SC_PAGE_SIZE")
    return os.sysconf("SC_AVPHYS_PAGES") * page, os.sysconf("SC_PHYS_PAGES") * page


def _properties(*args: Any, **kwargs: Any) -> SimpleNamespace:
    """Return those properties of a device that programs and torch's compiler read."""
    total, cores = _memory()[1], os.cpu_count() or 1
    return SimpleNamespace(
        name="cpu", gcnArchName="cpu", total_memory=total, major=0, minor=0, multi_processor_count=cores
    )


_RESULTS: dict[str, Any] = {
    "is_available": False,
    "device_count": 1,  # programs take their rank modulo this number
    "current_device": 0,
    "get_device_name": "cpu",
    "get_device_capability": (0, 0),
    "memory_summary": "",
    **dict.fromkeys(("memory_allocated", "memory_reserved", "memory_cached", "utilization"), 0),
    **dict.fromkeys(("max_memory_allocated", "max_memory_reserved", "max_memory_cached"), 0),
    **dict.fromkeys(("reset_peak_memory_stats", "reset_max_memory_allocated", "reset_max_memory_cached"), None),
    **dict.fromkeys(("reset_accumulated_memory_stats", "set_per_process_memory_fraction"), None),
    **dict.fromkeys(("init", "set_device", "set_stream", "synchronize", "empty_cache", "ipc_collect"), None),
    "stream": contextlib.nullcontext(),
}
_ANSWERS: dict[str, Callable[..., Any]] = {
    "get_device_properties": _properties,
    "mem_get_info": _memory,
    **dict.fromkeys(("manual_seed", "manual_seed_all"), torch.default_generator.manual_seed),
    **dict.fromkeys(("seed", "seed_all"), torch.default_generator.seed),
    "get_rng_state": lambda device=None: torch.get_rng_state(),
    "get_rng_state_all": lambda: [torch.get_rng_state()],
    **dict.fromkeys(("set_rng_state", "set_rng_state_all"), _set_rng_state),
    "current_stream": lambda device=None: Stream(),
    "default_stream": lambda device=None: Stream(),
    "device": _Device,
    "Event": Event,
    "Stream": Stream,
}
