"""Runs programs with a hard-coded "cuda" on the CPU, for ``posgan-fast run --device cpu``.

``torch.device("cuda")`` remains a CUDA device, also in files. The functions that use a device translate it: those that
make tensors, ``Tensor.to`` and similar methods, and those that load files. The functions of ``torch.cuda`` behave as on
a machine with one device that is not available. Nothing else is intercepted, so ops are as fast as before.

Since there is one memory only, ``.cpu()`` and ``.cuda()`` return the tensor itself, where a GPU would copy it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from torch.jit import _builtins as jit_builtins
from torch.utils import _device

from . import cuda_stub
from .changes import Changes

DEVICES = ("cpu",)
_CPU = torch.device("cpu")
_LIKE = ("empty_like", "full_like", "normal", "ones_like", "rand_like", "randint_like", "randn_like", "zeros_like")
_NEW = ("new_empty", "new_empty_strided", "new_full", "new_ones", "new_tensor", "new_zeros")
_TENSOR_TYPES = ("BFloat16", "Bool", "Byte", "Char", "Double", "Float", "Half", "Int", "Long", "Short")


def check_name(device: str, argument: str) -> str:
    """Return ``device`` if programs can be sent there.

    Raises:
        ValueError: any other device; programs choose those themselves.

    Example:
        >>> check_name("cpu", "--device")
        'cpu'
    """
    if device not in DEVICES:
        raise ValueError(f'{argument}: expected cpu, where programs with a hard-coded "cuda" are sent, got {device!r}')
    return device


def send_to_cpu(changes: Changes) -> None:
    """Send everything that asks for a CUDA device to the CPU, in this process and all its threads."""
    _make_on_cpu(changes)
    _move_to_cpu(changes)
    _load_to_cpu(changes)
    cuda_stub.answer_without_device(changes)
    if dist.is_available():
        _distribute_over_cpus(changes)


def on_cpu(device: Any) -> Any:
    """Return a device in any form that torch accepts, CUDA replaced by the CPU; an index alone means CUDA.

    Example:
        >>> on_cpu("cuda:1"), on_cpu(torch.device("cuda")), on_cpu(0), on_cpu("meta")
        ('cpu', device(type='cpu'), device(type='cpu'), 'meta')
    """
    if isinstance(device, torch.device):
        return _CPU if device.type == "cuda" else device
    if isinstance(device, str):
        return "cpu" if device.partition(":")[0] == "cuda" else device
    return _CPU if isinstance(device, int) and not isinstance(device, bool) else device


def _make_on_cpu(changes: Changes) -> None:
    """Make tensors and generators on the CPU where a program asks for CUDA, by argument or by default."""
    builtins = jit_builtins._get_builtin_table()  # torch.jit.script looks up torch's functions here, by id
    for holder, name, factory in _factories():
        ours = _factory(factory)
        builtins[id(ours)] = builtins.get(id(factory))
        changes.on_undo(functools.partial(builtins.pop, id(ours)))
        changes.put(holder, name, ours)
    for name in _TENSOR_TYPES:
        changes.put(torch.cuda, f"{name}Tensor", getattr(torch, f"{name}Tensor"))
    changes.put(torch, "Generator", _Generator)
    changes.put(torch, "set_default_tensor_type", _set_default_tensor_type(torch.set_default_tensor_type))
    changes.put(_device.DeviceContext, "__init__", _device_context(_device.DeviceContext.__init__))


def _move_to_cpu(changes: Changes) -> None:
    """Make ``.to("cuda")`` and ``.cuda()`` of tensors, modules and storages go to the CPU."""
    for name, method in _tensor_methods().items():
        changes.put(torch.Tensor, name, method)
    changes.put(torch.nn.Module, "to", _module_to(torch.nn.Module.to))
    for storage in (torch.UntypedStorage, torch.TypedStorage):
        changes.put(storage, "cuda", lambda self, *_, **__: self)


def _load_to_cpu(changes: Changes) -> None:
    """Load files to the CPU, also those saved on CUDA and those that a program wants there."""
    changes.put(torch.jit, "load", _jit_load(torch.jit.load))
    registry = torch.serialization._package_registry
    # Torch calls the entries in ascending order until one returns a storage: 0 comes before all of torch's own.
    entry = (0, lambda storage: None, lambda storage, location: storage if location.startswith("cuda") else None)
    torch.serialization.register_package(*entry)
    changes.on_undo(lambda: registry.remove(entry))


def _factories() -> Iterator[tuple[ModuleType, str, Callable[..., Any]]]:
    """Find the functions that make a tensor on a device: the module that holds each, its name, and the function."""
    known = {*_device._device_constructors(), *(getattr(torch, name) for name in _LIKE)}
    for holder in (torch, torch.fft, torch.nested, torch.sparse):
        for name, value in list(vars(holder).items()):
            if callable(value) and not isinstance(value, type) and value in known:
                yield holder, name, value


def _factory(theirs: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a function that makes a tensor: ``device`` becomes the CPU, ``pin_memory`` False."""

    @functools.wraps(theirs)
    def factory(*args: Any, **kwargs: Any) -> Any:
        if "device" in kwargs:
            kwargs["device"] = on_cpu(kwargs["device"])
        if "pin_memory" in kwargs:
            kwargs["pin_memory"] = False
        return theirs(*args, **kwargs)

    return factory


def _tensor_methods() -> dict[str, Callable[..., Any]]:
    """The methods of ``torch.Tensor`` that take a device, by name."""
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
    ours["record_stream"] = cuda_stub.returning(None)
    for name, method in ours.items():
        functools.update_wrapper(method, getattr(torch.Tensor, name))
    return {**ours, **{name: _factory(getattr(torch.Tensor, name)) for name in _NEW}}


def _module_to(theirs: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap ``Module.to``, which turns an index into a CUDA device before it calls ``Tensor.to``."""

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
    """Wrap the context behind ``with torch.device("cuda"):`` and ``torch.set_default_device``."""
    return functools.wraps(theirs)(lambda self, device: theirs(self, on_cpu(device)))


def _distribute_over_cpus(changes: Changes) -> None:
    """Use gloo in place of nccl, and drop the device indices of process groups and of DistributedDataParallel."""

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


class _GeneratorMeta(type):
    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, torch._C.Generator)

    def __call__(cls, device: Any = "cpu") -> torch.Generator:
        return torch._C.Generator(on_cpu(device))


class _Generator(metaclass=_GeneratorMeta):
    """A stand-in for ``torch.Generator``, whose instances are torch's own."""
