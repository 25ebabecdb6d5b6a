"""Network pickles of stylegan2-ada-pytorch and stylegan3, read without running anything that is in them.

These files hold whole modules, with the source code of their classes (``torch_utils.persistence``), which NVlabs'
reader executes. Here the machine of ``opcodes.py`` reads the pickle instead. It knows the names in ``GLOBALS``, whose
functions only build data, and refuses any other. Modules become inert ``PickledModule``s, and their source is dropped
unread. The pickles inside a storage go through the same machine, with no callable at all.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
from typing import Any, BinaryIO

import torch

from .opcodes import DICT, HANDLERS, Global, Machine, Stateful, Unread, key
from .report import CheckpointError, UnsafeFileError


def read_pickle(file: BinaryIO) -> Any:
    """Read the object pickled at the position of ``file``: dicts, lists, tensors, numbers and ``PickledModule``s.

    Raises:
        UnsafeFileError: the file uses a name or an opcode that is not listed.
        CheckpointError: the file is cut short, is no pickle, or would take memory out of proportion to its size.
    """
    start = file.tell()
    size = file.seek(0, io.SEEK_END) - start
    file.seek(start)
    return Machine(file, size, GLOBALS).run()


class PickledModule(Unread):
    """The class name and the attributes of a pickled module."""

    __slots__ = ()

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return parameters and persistent buffers under the names that ``torch.nn.Module.state_dict`` gives them."""
        state: dict[str, torch.Tensor] = {}
        pending: list[tuple[str, Unread]] = [("", self)]
        entries = 0
        for prefix, module in pending:
            names = [name for store in ("_parameters", "_buffers", "_modules") for name, _ in _named(module, store)]
            entries += len(names)
            if entries >= _MAX_ENTRIES or len(prefix) + max(map(len, names), default=0) > _MAX_NAME:
                raise CheckpointError(
                    f"more than {_MAX_ENTRIES} modules and tensors, a name of more than {_MAX_NAME} characters, "
                    "or modules inside themselves"
                )
            hidden = module.attributes.get("_non_persistent_buffers_set", ())
            for store in ("_parameters", "_buffers"):
                for name, value in _named(module, store):
                    if value is None or (store == "_buffers" and isinstance(hidden, set) and name in hidden):
                        continue
                    if not isinstance(value, torch.Tensor):
                        raise CheckpointError(f"{prefix + name:.80}: expected a tensor, got {type(value).__name__}")
                    state[prefix + name] = value
            pending += [(f"{prefix}{name}.", m) for name, m in _named(module, "_modules") if m is not None]
        return state

    def submodule(self, path: str) -> PickledModule | None:
        """Return the module at a dotted path, inside of wrappers, or None; "" is this module."""
        module: Any = _inside(self)
        for name in path.split(".") if path else ():
            module = dict(_named(module, "_modules")).get(name)
            if not isinstance(module, Unread):
                return None
            module = _inside(module)
        return module if isinstance(module, PickledModule) else SavedModule(module.class_name, module.attributes)


class SavedModule(PickledModule):
    """A module in a file of ``torch.save``, which names the package of its class and does not hold the source."""

    __slots__ = ()


WRAPPERS = {"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}  # DDP, compile, FSDP
LEGACY = pickle.dumps(0x1950A86A20F9469CFC6C, 2)  # the start of a file of torch.save without a zip
_MAX_ENTRIES = 20_000
_MAX_NAME = 1000
_MAX_DIMS = 8


def _named(module: Unread, store: str) -> list[tuple[str, Any]]:
    entries = module.attributes.get(store, {})
    if not isinstance(entries, dict) or not all(isinstance(name, str) for name in entries):
        raise CheckpointError(f"{module.class_name:.80}.{store}: expected a dictionary with names")
    if store == "_modules" and not all(m is None or isinstance(m, Unread) for m in entries.values()):
        raise CheckpointError(f"{module.class_name:.80}._modules: expected modules only")
    return list(entries.items())


def _inside(module: Unread) -> Unread:
    """Return the module inside of wrappers."""
    while True:
        inner = [m for name, m in _named(module, "_modules") if name in WRAPPERS and isinstance(m, Unread)]
        if not inner:
            return module
        module = inner[0]


# Objects that the names in a file stand for. The functions build data and do nothing else.


def _module(meta: dict) -> PickledModule:
    if not isinstance(meta, dict) or meta.get("type") != "class":
        raise CheckpointError("torch_utils.persistence: expected the description of a class")
    class_name, attributes = meta.get("class_name"), meta.get("state")
    if not isinstance(class_name, str) or not isinstance(attributes, dict):
        raise CheckpointError("torch_utils.persistence: expected a class name and attributes")
    return PickledModule(class_name, attributes)


def _size(items: Any = ()) -> tuple:
    if type(items) not in (list, tuple):  # a string would become one object for each character
        raise CheckpointError(f"torch.Size: expected a list or a tuple, got {type(items).__name__}")
    return tuple(items)


def _storage(data: bytes) -> torch.Tensor:  # => [numel]
    """Read a storage of ``torch.save`` without a zip: five pickles (the fourth describes it), a count, the values."""
    if not isinstance(data, bytes) or not data.startswith(LEGACY):
        raise CheckpointError("the bytes of a tensor cannot be read: no storage as torch pickles it")
    file, size = io.BytesIO(data), len(data)
    try:
        *_, about, _ = [Machine(file, size - file.tell(), STORAGES, _STORAGE_HANDLERS).run() for _ in range(5)]
    except UnsafeFileError as error:
        raise UnsafeFileError(f"the bytes of a tensor: {error}") from None
    except CheckpointError as error:
        raise CheckpointError(f"the bytes of a tensor cannot be read: {error}") from None
    if not isinstance(about, tuple) or len(about) != 6 or not isinstance(about[1], torch.dtype):
        raise CheckpointError(f"the bytes of a tensor hold a {type(about).__name__}, not a storage")
    dtype, count, view, start = about[1], about[4], about[5], file.tell() + 8
    if (
        view is not None
        or data[start - 8 : start] != struct.pack("<q", count)
        or size - start != count * dtype.itemsize
    ):
        raise CheckpointError(f"the bytes of a tensor cannot be read: {size - start} are no {count} of {dtype}")
    return torch.frombuffer(bytearray(memoryview(data)[start:]), dtype=dtype) if count else torch.empty(0, dtype=dtype)


def view_of(storage: Any, offset: int, size: tuple, stride: tuple, bits: Any = None) -> torch.Tensor:
    """Return a view of ``storage``; with strides of 0 it may have more elements than the storage.

    Args:
        bits: {"neg": bool, "conj": bool}: the storage holds the negated values, or their conjugates.
    """
    if not isinstance(storage, torch.Tensor) or storage.dim() != 1:
        raise CheckpointError("a tensor without a storage")
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or len(size) > _MAX_DIMS or not all(type(n) is int and n >= 0 for n in numbers):
        raise CheckpointError("a tensor whose size and stride are no matching lists of counts")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 not in size and last >= storage.numel():
        raise CheckpointError(f"a tensor that is larger than its storage of {storage.numel()} elements")
    view = storage.as_strided(size, stride, offset)
    bits = {} if bits is None else bits
    if not isinstance(bits, dict) or not all(type(bits.get(bit, False)) is bool for bit in ("neg", "conj")):
        raise CheckpointError("a tensor whose bits are no dictionary of bools")
    if bits.get("conj"):
        if not view.is_complex():
            raise CheckpointError(f"a tensor of conjugates of {view.dtype}, expected complex numbers")
        view = view.conj()
    if bits.get("neg"):
        if view.dtype == torch.bool:
            raise CheckpointError("a tensor of negative bools")
        view = torch._neg_view(view)
    return view


def _tensor(
    storage: torch.Tensor, offset: int, size: tuple, stride: tuple, _: Any = None, __: Any = None, bits: Any = None
) -> torch.Tensor:
    view = view_of(storage, offset, size, stride, bits)
    if view.numel() > storage.numel():
        raise CheckpointError(f"a tensor that is larger than its storage of {storage.numel()} elements")
    return view


def parameter(data: torch.Tensor, *_: Any) -> torch.Tensor:
    if not isinstance(data, torch.Tensor):
        raise CheckpointError("a parameter without a tensor")
    return data


class Dtype(Stateful):
    """A numpy.dtype of plain numbers: a code such as "f8", and a byte order."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.code, self.order = code if isinstance(code, str) else "", "<"

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state[1], str) or state[1] not in ("<", ">", "|", "="):
            raise CheckpointError("numpy.dtype: expected a byte order")
        self.order = state[1]


_FORMATS = {"b1": "?", "i1": "b", "u1": "B", "i2": "h", "u2": "H", "i4": "i", "u4": "I", "i8": "q", "u8": "Q"}
_FORMATS |= {"f2": "e", "f4": "f", "f8": "d"}


def number(dtype: Dtype, data: bytes) -> Any:
    """Convert a numpy scalar to a Python number."""
    if not isinstance(dtype, Dtype) or not isinstance(data, bytes):
        raise CheckpointError("numpy scalar: expected a dtype and bytes")
    if dtype.code not in _FORMATS:
        raise CheckpointError(f"numpy.dtype: expected plain numbers, got {dtype.code[:20]!r}")
    return struct.unpack((">" if dtype.order == ">" else "<") + _FORMATS[dtype.code], data)[0]


class Array(Stateful):
    """A numpy.ndarray, whose numbers are read only when asked for: networks keep some as attributes of modules."""

    def __init__(self, *parts: Any) -> None:
        self.parts = parts  # shape, dtype, True for Fortran's order, bytes

    def __setstate__(self, state: Any) -> None:
        self.parts = tuple(state[1:]) if isinstance(state, tuple) else ()

    def tensor(self) -> torch.Tensor:
        """Return the numbers as a tensor.

        Raises:
            CheckpointError: no array of floating point numbers.
        """
        shape, dtype, fortran, data = self.parts if len(self.parts) == 4 else (None, None, None, None)
        if not isinstance(shape, tuple) or not isinstance(dtype, Dtype) or not isinstance(data, bytes):
            raise CheckpointError("numpy.ndarray: expected a shape, a dtype and bytes")
        kind = _FLOATS.get(dtype.code)
        if kind is None or dtype.order == ">":
            raise CheckpointError(f"numpy.ndarray: expected little-endian floating point, got {dtype.code!r:.20}")
        if len(shape) > _MAX_DIMS or not all(type(n) is int and n >= 0 for n in shape):
            raise CheckpointError("numpy.ndarray: expected a shape")
        if math.prod(shape) * kind.itemsize != len(data):
            raise CheckpointError(f"numpy.ndarray: expected {list(shape)} numbers, got {len(data)} bytes")
        if not data:
            return torch.empty(shape, dtype=kind)
        numbers = torch.frombuffer(bytearray(data), dtype=kind)
        return numbers.reshape(shape[::-1]).permute(*range(len(shape))[::-1]) if fortran else numbers.reshape(shape)


_FLOATS = {"f2": torch.float16, "f4": torch.float32, "f8": torch.float64}


def _from_buffer(data: Any = None, dtype: Any = None, shape: Any = None, order: Any = "C", *_: Any) -> Array:
    return Array(shape, dtype, order == "F", data)


GLOBALS: dict[str, Any] = {
    "torch_utils.persistence._reconstruct_persistent_obj": Global(_module),
    "torch._utils._rebuild_tensor_v2": Global(_tensor),
    "torch._utils._rebuild_parameter": Global(parameter),
    "torch.storage._load_from_bytes": Global(_storage, cost=2),
    "torch.Size": Global(_size, cost=8),
    "torch.device": Global(lambda *_: None),  # tensors come to the CPU wherever they were
    "collections.OrderedDict": DICT,
    "dnnlib.util.EasyDict": DICT,
    "builtins.set": Global(lambda items=(): {key(item) for item in items}, cost=64),
    "numpy.dtype": Global(Dtype),
    "numpy.ndarray": None,  # an argument of _reconstruct
} | {f"torch.{name}": getattr(torch, name) for name in ("float16", "float32", "float64", "int32", "int64", "uint8")}
for _core in ("numpy.core", "numpy._core"):
    GLOBALS[f"{_core}.multiarray.scalar"] = Global(number)
    GLOBALS[f"{_core}.multiarray._reconstruct"] = Global(lambda *_: Array())
    GLOBALS[f"{_core}.numeric._frombuffer"] = Global(_from_buffer)


STORAGES = {
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.FloatStorage": torch.float32,
    "torch.DoubleStorage": torch.float64,
    "torch.BoolStorage": torch.bool,
    "torch.ByteStorage": torch.uint8,
    "torch.CharStorage": torch.int8,
    "torch.ShortStorage": torch.int16,
    "torch.IntStorage": torch.int32,
    "torch.LongStorage": torch.int64,
}
_STORAGE_HANDLERS = HANDLERS | {pickle.PROTO: lambda m: m.take(1), pickle.BINPERSID: lambda m: None}


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
