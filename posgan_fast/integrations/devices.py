"""``posgan-fast run --device cpu``: programs with a hard-coded "cuda" run on the CPU.

``torch.device("cuda")`` stays the object it is, and so does every file that holds one. The device is translated where
it is used: in the functions that make tensors, in ``Tensor.to`` and its relatives, in loading, and in ``torch.cuda``,
whose queries answer as one device that is not available. No other call is intercepted, so ops cost what they did.

One device has one memory: ``.cpu()`` and ``.cuda()`` return the tensor itself where a GPU would copy.
"""

from __future__ import annotations

import contextlib
import functools
import os
import time
from collections.abc import Callable, Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch.jit import _builtins as jit_builtins
from torch.utils import _device

from .changes import Changes

DEVICES = ("cpu",)
_CPU = torch.device("cpu")
_LIKE = ("empty_like", "full_like", "normal", "ones_like", "rand_like", "randint_like", "randn_like", "zeros_like")
_NEW = ("new_empty", "new_empty_strided", "new_full", "new_ones", "new_tensor", "new_zeros")
_TENSOR_TYPES = ("BFloat16", "Bool", "Byte", "Char", "Double", "Float", "Half", "Int", "Long", "Short")


def check_name(device: str, argument: str) -> str:
    """``device`` if programs can be sent there.

    Raises:
        ValueError: any other device; programs choose those themselves.
    """
    if device not in DEVICES:
        raise ValueError(f'{argument}: expected cpu, where programs with a hard-coded "cuda" are sent, got {device!r}')
    return device


def send_to_cpu(changes: Changes) -> None:
    """Send everything that asks for a CUDA device to the CPU, in this process and all its threads."""
    builtins = jit_builtins._get_builtin_table()  # by identity: torch.jit.script is to take ours for torch's own
    for holder, name, factory in _factories():
        ours = _factory(factory)
        builtins[id(ours)] = builtins.get(id(factory))
        changes.then(functools.partial(builtins.pop, id(ours)))
        changes.put(holder, name, ours)
    for name, method in _tensor_methods().items():
        changes.put(torch.Tensor, name, method)
    changes.put(torch.nn.Module, "to", _module_to(torch.nn.Module.to))
    for storage in (torch.UntypedStorage, torch.TypedStorage):
        changes.put(storage, "cuda", lambda self, *_, **__: self)
    for name in _TENSOR_TYPES:
        changes.put(torch.cuda, f"{name}Tensor", getattr(torch, f"{name}Tensor"))
    for name, result in _RESULTS.items():
        changes.put(torch.cuda, name, _returning(result))
    for name, answer in _ANSWERS.items():
        changes.put(torch.cuda, name, answer)
    for name in ("mark", "range_pop", "range_push"):
        changes.put(torch.cuda.nvtx, name, _returning(None))
    changes.put(torch.cuda.nvtx, "range", _named_range)
    changes.put(torch.cuda.nvtx, "range_start", _returning(0))
    changes.put(torch.cuda.nvtx, "range_end", _returning(None))
    changes.put(torch, "Generator", _Generator)
    changes.put(torch, "set_default_tensor_type", _set_default_tensor_type(torch.set_default_tensor_type))
    changes.put(torch.jit, "load", _jit_load(torch.jit.load))
    changes.put(_device.DeviceContext, "__init__", _device_context(_device.DeviceContext.__init__))
    _restore_to_cpu(changes)
    if dist.is_available():
        _distribute_over_cpus(changes)


def on_cpu(device: Any) -> Any:
    """A device as torch takes it, with the CPU in place of CUDA; an index alone means CUDA."""
    if isinstance(device, torch.device):
        return _CPU if device.type == "cuda" else device
    if isinstance(device, str):
        return "cpu" if device.partition(":")[0] == "cuda" else device
    return _CPU if isinstance(device, int) and not isinstance(device, bool) else device


def _factories() -> Iterator[tuple[ModuleType, str, Callable[..., Any]]]:
    """The functions that take a device, wherever torch keeps them."""
    known = {*_device._device_constructors(), *(getattr(torch, name) for name in _LIKE)}
    for holder in (torch, torch.fft, torch.nested, torch.sparse):
        for name, value in list(vars(holder).items()):
            if callable(value) and not isinstance(value, type) and value in known:
                yield holder, name, value


def _factory(theirs: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(theirs)
    def factory(*args: Any, **kwargs: Any) -> Any:
        if "device" in kwargs:
            kwargs["device"] = on_cpu(kwargs["device"])
        if "pin_memory" in kwargs:
            kwargs["pin_memory"] = False
        return theirs(*args, **kwargs)

    return factory


def _tensor_methods() -> dict[str, Callable[..., Any]]:
    to, type_ = torch.Tensor.to, torch.Tensor.type

    def _to(self: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if args:
            args = (on_cpu(args[0]), *args[1:])
        if "device" in kwargs:
            kwargs["device"] = on_cpu(kwargs["device"])
        return to(self, *args, **kwargs)

    def cuda(
        self: torch.Tensor, device: Any = None, non_blocking: bool = False, memory_format: Any = torch.preserve_format
    ) -> torch.Tensor:
        return to(self, _CPU, non_blocking=non_blocking, memory_format=memory_format)

    def pin_memory(self: torch.Tensor, device: Any = None) -> torch.Tensor:
        return self

    def _type(self: torch.Tensor, dtype: Any = None, *args: Any, **kwargs: Any) -> Any:
        return type_(self, _cpu_type(dtype), *args, **kwargs)

    ours: dict[str, Callable[..., Any]] = {"to": _to, "cuda": cuda, "pin_memory": pin_memory, "type": _type}
    ours["record_stream"] = _returning(None)
    for name, method in ours.items():
        functools.update_wrapper(method, getattr(torch.Tensor, name))
    return {**ours, **{name: _factory(getattr(torch.Tensor, name)) for name in _NEW}}


def _module_to(theirs: Callable[..., Any]) -> Callable[..., Any]:
    """Torch reads a device given as a number before the tensors are asked to move."""

    @functools.wraps(theirs)
    def to(self: torch.nn.Module, *args: Any, **kwargs: Any) -> torch.nn.Module:
        if "device" in kwargs:
            kwargs["device"] = on_cpu(kwargs["device"])
        return theirs(self, *map(on_cpu, args[:1]), *args[1:], **kwargs)

    return to


def _cpu_type(name: Any) -> Any:
    return name.replace("torch.cuda.", "torch.") if isinstance(name, str) else name


def _set_default_tensor_type(theirs: Callable[..., Any]) -> Callable[..., Any]:
    return functools.wraps(theirs)(lambda t: theirs(_cpu_type(t)))


def _jit_load(theirs: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(theirs)
    def load(f: Any, map_location: Any = None, *args: Any, **kwargs: Any) -> Any:
        return theirs(f, "cpu", *args, **kwargs)

    return load


def _device_context(theirs: Callable[..., Any]) -> Callable[..., Any]:
    """``with torch.device("cuda"):`` and ``torch.set_default_device``."""
    return functools.wraps(theirs)(lambda self, device: theirs(self, on_cpu(device)))


def _restore_to_cpu(changes: Changes) -> None:
    """``torch.load`` of what was saved on CUDA, or is to be mapped there; torch asks its restorers lowest first."""
    registry = torch.serialization._package_registry
    entry = (0, lambda storage: None, lambda storage, location: storage if location.startswith("cuda") else None)
    torch.serialization.register_package(*entry)
    changes.then(lambda: registry.remove(entry))


def _distribute_over_cpus(changes: Changes) -> None:
    def without_devices(theirs: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(theirs)
        def ours(*args: Any, **kwargs: Any) -> Any:
            args = tuple("gloo" if isinstance(value, str) and "nccl" in value else value for value in args)
            for name in ("device_ids", "output_device", "device_id"):
                kwargs.pop(name, None)
            if "nccl" in str(kwargs.get("backend")):
                kwargs["backend"] = "gloo"
            return theirs(*args, **kwargs)

        return ours

    initialise = dist.init_process_group

    @functools.wraps(initialise)
    def init_process_group(backend: Any = None, *args: Any, device_id: Any = None, **kwargs: Any) -> Any:
        return initialise("gloo" if backend is None or "nccl" in str(backend) else backend, *args, **kwargs)

    changes.put(dist, "init_process_group", init_process_group)
    changes.put(dist, "new_group", without_devices(dist.new_group))
    changes.put(dist, "barrier", without_devices(dist.barrier))
    parallel = torch.nn.parallel.DistributedDataParallel
    theirs = parallel.__init__

    def __init__(self: Any, module: Any, device_ids: Any = None, output_device: Any = None, *args: Any, **kwargs: Any):
        theirs(self, module, None, None, *args, **kwargs)

    changes.put(parallel, "__init__", functools.wraps(theirs)(__init__))


class Event:
    """``torch.cuda.Event`` on a device that has finished whatever it was told before it is told more."""

    def __init__(self, enable_timing: bool = False, blocking: bool = False, interprocess: bool = False) -> None:
        self._time: float | None = None

    def record(self, stream: Any = None) -> None:
        self._time = time.perf_counter()

    def elapsed_time(self, end_event: Event) -> float:
        """Milliseconds from this event to ``end_event``.

        Raises:
            RuntimeError: one of them was not recorded.
        """
        if self._time is None or end_event._time is None:
            raise RuntimeError("elapsed_time: expected two recorded events")
        return (end_event._time - self._time) * 1000

    def query(self) -> bool:
        return True

    def synchronize(self) -> None:
        """Nothing is under way."""

    def wait(self, stream: Any = None) -> None:
        """Nothing is under way."""


class Stream:
    """``torch.cuda.Stream``; all of them are the one order in which the CPU works."""

    device, device_index, cuda_stream, priority = _CPU, 0, 0, 0

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
        """Nothing is under way."""

    def wait_event(self, event: Event) -> None:
        """Nothing is under way."""

    def wait_stream(self, stream: Stream) -> None:
        """Nothing is under way."""


class _GeneratorMeta(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, torch._C.Generator)

    def __call__(cls, device: Any = "cpu") -> torch.Generator:
        return torch._C.Generator(on_cpu(device))


class _Generator(metaclass=_GeneratorMeta):
    """``torch.Generator``, whose instances are torch's own."""


class _Device(contextlib.nullcontext):
    """``torch.cuda.device``, a context that leaves everything where it is."""

    def __init__(self, device: Any = None) -> None:
        super().__init__()
        self.idx = 0


def _set_rng_state(state: Any, device: Any = None) -> None:
    """States saved on CUDA are of another size and mean nothing here."""
    state = state[0] if isinstance(state, (list, tuple)) else state
    if state.numel() == torch.default_generator.get_state().numel():
        torch.default_generator.set_state(state)


def _returning(result: Any) -> Callable[..., Any]:
    """A function of its own for each name: torch.compile keeps rules for functions by identity."""

    def answer(*args: Any, **kwargs: Any) -> Any:
        return result

    return answer


@contextlib.contextmanager
def _named_range(*args: Any, **kwargs: Any) -> Iterator[None]:
    """A block or, as a decorator, a function that no profiler watches."""
    yield


def _memory(*args: Any, **kwargs: Any) -> tuple[int, int]:
    """Free and total memory of the machine, in bytes."""
    page = os.sysconf("SC_PAGE_SIZE")
    return os.sysconf("SC_AVPHYS_PAGES") * page, os.sysconf("SC_PHYS_PAGES") * page


def _properties(*args: Any, **kwargs: Any) -> SimpleNamespace:
    """The properties of a device that programs and torch's own compiler read."""
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
