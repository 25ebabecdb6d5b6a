"""Network pickles of stylegan2-ada-pytorch and stylegan3, read without running anything that is in them.

These files hold whole modules, with the source code of their classes (``torch_utils.persistence``) for the reader
to execute. Here a small machine of its own walks the pickle instead. It knows the opcodes that such files use and
the names in ``GLOBALS``, each bound to a function of this file that only builds data; anything else, opcode or name,
is refused. Modules become inert ``PickledModule``s, their source is dropped unread, and tensor bytes go through
``torch.load(weights_only=True)``.
"""

from __future__ import annotations

import io
import math
import pickle
import re
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import torch

from .report import CheckpointError, UnsafeFileError


def read_pickle(file: BinaryIO) -> Any:
    """The object pickled at the start of ``file``: dicts, lists, tensors, numbers and ``PickledModule``s.

    Raises:
        UnsafeFileError: for a name or an opcode outside the lists, which is named.
        CheckpointError: where the file is cut short or is no pickle.
    """
    start = file.tell()
    size = file.seek(0, io.SEEK_END) - start
    file.seek(start)
    return _Machine(file, size).run()


@dataclass(frozen=True)
class PickledModule:
    """What is left of a pickled module: the name of its class and its attributes."""

    class_name: str
    attributes: Mapping[str, Any] = field(repr=False)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Parameters and persistent buffers under the names that ``torch.nn.Module.state_dict`` gives them."""
        state: dict[str, torch.Tensor] = {}
        pending: list[tuple[str, PickledModule]] = [("", self)]
        for visited, (prefix, module) in enumerate(pending):
            if visited >= _MAX_MODULES or len(prefix) > _MAX_NAME:
                raise CheckpointError(f"more than {_MAX_MODULES} modules, or modules inside themselves")
            hidden = module.attributes.get("_non_persistent_buffers_set", ())
            for store in ("_parameters", "_buffers"):
                for name, value in _named(module, store):
                    if value is None or (store == "_buffers" and isinstance(hidden, set) and name in hidden):
                        continue
                    if not isinstance(value, torch.Tensor):
                        raise CheckpointError(f"{prefix}{name}: expected a tensor, got {type(value).__name__}")
                    state[prefix + name] = value
            pending += [(f"{prefix}{name}.", m) for name, m in _named(module, "_modules") if m is not None]
        return state

    def submodule(self, path: str) -> PickledModule | None:
        """The module at a dotted path, if there is one."""
        module: Any = self
        for name in path.split("."):
            module = dict(_named(module, "_modules")).get(name)
            if not isinstance(module, PickledModule):
                return None
        return module


LEGACY = pickle.dumps(0x1950A86A20F9469CFC6C, 2)  # how torch.save starts where it writes no zip
_MAX_MODULES = 10_000
_MAX_NAME = 1000
_MAX_DIMS = 8


def _named(module: PickledModule, store: str) -> list[tuple[str, Any]]:
    entries = module.attributes.get(store, {})
    if not isinstance(entries, dict) or not all(isinstance(name, str) for name in entries):
        raise CheckpointError(f"{module.class_name}.{store}: expected a dictionary with names")
    if store == "_modules" and not all(m is None or isinstance(m, PickledModule) for m in entries.values()):
        raise CheckpointError(f"{module.class_name}._modules: expected modules only")
    return list(entries.items())


# What the names in a file may stand for. Every function here builds data and nothing else.


def _module(meta: dict) -> PickledModule:
    if not isinstance(meta, dict) or meta.get("type") != "class":
        raise CheckpointError("torch_utils.persistence: expected the description of a class")
    class_name, attributes = meta.get("class_name"), meta.get("state")
    if not isinstance(class_name, str) or not isinstance(attributes, dict):
        raise CheckpointError("torch_utils.persistence: expected a class name and attributes")
    return PickledModule(class_name, attributes)


def _storage(data: bytes) -> torch.Tensor:  # => [numel]
    if not isinstance(data, bytes) or not data.startswith(LEGACY):
        raise CheckpointError("the bytes of a tensor cannot be read: no storage as torch pickles it")
    try:
        storage = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UnsafeFileError(f"the bytes of a tensor: {unsafe_torch_file(error)}") from None
    except Exception as error:
        raise CheckpointError(f"the bytes of a tensor cannot be read: {first_line(error)}") from None
    if not isinstance(storage, torch.storage.TypedStorage):
        raise CheckpointError(f"the bytes of a tensor hold a {type(storage).__name__}, not a storage")
    return torch.empty(0, dtype=storage.dtype).set_(storage._untyped_storage)


def _tensor(storage: torch.Tensor, offset: int, size: tuple, stride: tuple, *_: Any) -> torch.Tensor:
    if not isinstance(storage, torch.Tensor) or storage.dim() != 1:
        raise CheckpointError("a tensor without a storage")
    numbers = (offset, *size, *stride)
    if len(size) != len(stride) or len(size) > _MAX_DIMS or not all(type(n) is int and n >= 0 for n in numbers):
        raise CheckpointError("a tensor whose size and stride are no matching lists of counts")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if math.prod(size) > storage.numel() or (0 not in size and last >= storage.numel()):
        raise CheckpointError(f"a tensor that is larger than its storage of {storage.numel()} elements")
    return storage.as_strided(size, stride, offset)


def _parameter(data: torch.Tensor, *_: Any) -> torch.Tensor:
    if not isinstance(data, torch.Tensor):
        raise CheckpointError("a parameter without a tensor")
    return data


class Dtype:
    """A numpy.dtype of plain numbers, as "f8" and a byte order."""

    def __init__(self, code: Any, *_: Any) -> None:
        self.code, self.order = code if isinstance(code, str) else "", "<"

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state[1], str) or state[1] not in ("<", ">", "|", "="):
            raise CheckpointError("numpy.dtype: expected a byte order")
        self.order = state[1]

    def values(self, data: bytes) -> tuple:
        if self.code not in _FORMATS:
            raise CheckpointError(f"numpy.dtype: expected plain numbers, got {self.code[:20]!r}")
        order = ">" if self.order == ">" else "<"
        return tuple(value for (value,) in struct.iter_unpack(order + _FORMATS[self.code], data))


_FORMATS = {"b1": "?", "i1": "b", "u1": "B", "i2": "h", "u2": "H", "i4": "i", "u4": "I", "i8": "q", "u8": "Q"}
_FORMATS |= {"f2": "e", "f4": "f", "f8": "d"}


def number(dtype: Dtype, data: bytes) -> Any:
    """A numpy scalar as a number of Python."""
    if not isinstance(dtype, Dtype) or not isinstance(data, bytes):
        raise CheckpointError("numpy scalar: expected a dtype and bytes")
    (value,) = dtype.values(data)
    return value


@dataclass
class _Array:
    """A numpy.ndarray of plain numbers, kept as shape and flat values: attributes of modules, never weights."""

    shape: tuple = ()
    values: tuple = ()

    def __setstate__(self, state: Any) -> None:
        _, self.shape, dtype, _, data = state
        self.values = dtype.values(data)


def _array(*_: Any) -> _Array:
    return _Array()


def _array_from_buffer(data: bytes, dtype: Dtype, shape: tuple, *_: Any) -> _Array:
    if not isinstance(dtype, Dtype) or not isinstance(data, (bytes, bytearray)):
        raise CheckpointError("numpy array: expected a dtype and bytes")
    return _Array(shape, dtype.values(bytes(data)))


@dataclass(frozen=True)
class _Global:
    """A name of the table: callable by REDUCE, and by NEWOBJ where it stands for a class."""

    build: Callable[..., Any]
    is_class: bool = False


_DICT = _Global(dict, is_class=True)  # OrderedDict(), OrderedDict([[key, value], ...]) and EasyDict()
GLOBALS: dict[str, Any] = {
    "torch_utils.persistence._reconstruct_persistent_obj": _Global(_module),
    "torch._utils._rebuild_tensor_v2": _Global(_tensor),
    "torch._utils._rebuild_parameter": _Global(_parameter),
    "torch.storage._load_from_bytes": _Global(_storage),
    "torch.Size": _Global(tuple),
    "torch.device": _Global(lambda *_: None),  # where a tensor was; ours are on the CPU
    "collections.OrderedDict": _DICT,
    "dnnlib.util.EasyDict": _DICT,
    "builtins.set": _Global(lambda items=(): {_key(item) for item in items}),
    "numpy.dtype": _Global(Dtype),
    "numpy.ndarray": None,  # an argument of _reconstruct
} | {f"torch.{name}": getattr(torch, name) for name in ("float16", "float32", "float64", "int32", "int64", "uint8")}
for _core in ("numpy.core", "numpy._core"):
    GLOBALS[f"{_core}.multiarray.scalar"] = _Global(number)
    GLOBALS[f"{_core}.multiarray._reconstruct"] = _Global(_array)
    GLOBALS[f"{_core}.numeric._frombuffer"] = _Global(_array_from_buffer)


def unsafe_torch_file(error: Exception) -> UnsafeFileError:
    """The refusal of ``torch.load(weights_only=True)``, reduced to the name that it refused."""
    found = re.search(r"(?:GLOBAL|class|function|Unsupported global:) ([\w.]+\.[\w.]+)", str(error))
    if found:
        return UnsafeFileError(f"refused, asks for {found[1]!r}, which weights have no need of")
    reasons = [line for line in str(error).splitlines() if "Unsupported" in line or "not allowed" in line]
    return UnsafeFileError(f"refused by torch.load(weights_only=True): {(reasons or [first_line(error)])[0]}")


def first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _key(value: Any) -> str | int:
    """Only these as keys: hashing a deeply nested tuple ends in the C stack."""
    if not isinstance(value, (str, int)):
        raise CheckpointError(f"a dictionary key of type {type(value).__name__}")
    return value


class _Machine:
    """The pickle opcodes of protocols 3 to 5 that such files use."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.file, self.size, self.left = file, size, size
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        try:
            while (opcode := self.take(1)) != pickle.STOP:
                step = _STEPS.get(opcode)
                if step is None:
                    known = _OPCODE_NAMES.get(opcode)
                    if known is None or self.size - self.left == 1:
                        raise CheckpointError(f"no pickle of a network: byte {opcode!r} at {self.size - self.left - 1}")
                    raise UnsafeFileError(f"refused, uses the pickle opcode {known}, which weights have no need of")
                step(self)
            (result,) = self.stack
            return result
        except CheckpointError:
            raise
        except Exception as error:
            place = self.size - self.left
            raise CheckpointError(f"broken pickle, at byte {place}: {type(error).__name__}: {error}") from None

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise CheckpointError(f"cut short: {count} bytes announced, {self.left} left of {self.size}")
        self.left -= count
        data = self.file.read(count)
        if len(data) != count:
            raise CheckpointError(f"cut short while reading {count} bytes")
        return data

    def number(self, layout: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def line(self) -> str:
        text = self.file.readline(min(self.left, 1024))
        self.left -= len(text)
        return text.decode().removesuffix("\n")

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def mark(self) -> None:
        self.marks.append(self.stack)
        self.stack = []

    def protocol(self) -> None:
        if (version := self.number("B")) not in (3, 4, 5):
            raise CheckpointError(f"pickle protocol: expected 3 to 5, got {version}")

    def remember(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def tuple_of(self, count: int) -> None:
        self.push(tuple([self.stack.pop() for _ in range(count)][::-1]))

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict or len(items) % 2:
            raise CheckpointError(f"items for a {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            target[_key(key)] = value

    def extend(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not list:
            raise CheckpointError(f"items for a {type(self.stack[-1]).__name__}")
        self.stack[-1].extend(items)

    def add(self, items: list[Any]) -> None:
        if type(self.stack[-1]) is not set:
            raise CheckpointError(f"elements for a {type(self.stack[-1]).__name__}")
        self.stack[-1].update(map(_key, items))

    def find(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise UnsafeFileError("refused, asks for something that has no name")
        full = f"{module}.{name}"
        if full not in GLOBALS:
            raise UnsafeFileError(f"refused, asks for {full[:200]!r}, which weights have no need of")
        self.push(GLOBALS[full])

    def reduce(self, new: bool) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, _Global) or not isinstance(arguments, tuple) or (new and not function.is_class):
            raise UnsafeFileError(f"refused, calls a {type(function).__name__}")
        if function is _DICT:
            self.push({})
            for pair in arguments[0] if arguments else ():
                self.set_items(list(pair))
            return
        self.push(function.build(*arguments))

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, (Dtype, _Array)):
            target.__setstate__(state)
        elif type(target) is not dict:  # attributes of a dictionary, such as _metadata, are not needed
            raise UnsafeFileError(f"refused, sets attributes of a {type(target).__name__}")


def _text(layout: str) -> Callable[[_Machine], None]:
    return lambda m: m.push(m.take(m.number(layout)).decode("utf-8", "surrogatepass"))


def _bytes(layout: str) -> Callable[[_Machine], None]:
    return lambda m: m.push(m.take(m.number(layout)))


_OPCODE_NAMES = {value: name for name, value in vars(pickle).items() if name.isupper() and isinstance(value, bytes)}
_STEPS: dict[bytes, Callable[[_Machine], Any]] = {
    pickle.PROTO: _Machine.protocol,
    pickle.FRAME: lambda m: m.number("<Q"),
    pickle.NONE: lambda m: m.push(None),
    pickle.NEWTRUE: lambda m: m.push(True),
    pickle.NEWFALSE: lambda m: m.push(False),
    pickle.BININT: lambda m: m.push(m.number("<i")),
    pickle.BININT1: lambda m: m.push(m.number("B")),
    pickle.BININT2: lambda m: m.push(m.number("<H")),
    pickle.LONG1: lambda m: m.push(int.from_bytes(m.take(m.number("B")), "little", signed=True)),
    pickle.BINFLOAT: lambda m: m.push(m.number(">d")),
    pickle.SHORT_BINBYTES: _bytes("B"),
    pickle.BINBYTES: _bytes("<I"),
    pickle.BINBYTES8: _bytes("<Q"),
    pickle.BYTEARRAY8: _bytes("<Q"),
    pickle.SHORT_BINUNICODE: _text("B"),
    pickle.BINUNICODE: _text("<I"),
    pickle.BINUNICODE8: _text("<Q"),
    pickle.EMPTY_LIST: lambda m: m.push([]),
    pickle.EMPTY_TUPLE: lambda m: m.push(()),
    pickle.EMPTY_DICT: lambda m: m.push({}),
    pickle.EMPTY_SET: lambda m: m.push(set()),
    pickle.MARK: _Machine.mark,
    pickle.TUPLE: lambda m: m.push(tuple(m.since_mark())),
    pickle.TUPLE1: lambda m: m.tuple_of(1),
    pickle.TUPLE2: lambda m: m.tuple_of(2),
    pickle.TUPLE3: lambda m: m.tuple_of(3),
    pickle.APPEND: lambda m: m.extend([m.stack.pop()]),
    pickle.APPENDS: lambda m: m.extend(m.since_mark()),
    pickle.SETITEM: lambda m: m.set_items([m.stack.pop(-2), m.stack.pop()]),
    pickle.SETITEMS: lambda m: m.set_items(m.since_mark()),
    pickle.ADDITEMS: lambda m: m.add(m.since_mark()),
    pickle.MEMOIZE: lambda m: m.remember(len(m.memo)),
    pickle.BINPUT: lambda m: m.remember(m.number("B")),
    pickle.LONG_BINPUT: lambda m: m.remember(m.number("<I")),
    pickle.BINGET: lambda m: m.push(m.memo[m.number("B")]),
    pickle.LONG_BINGET: lambda m: m.push(m.memo[m.number("<I")]),
    pickle.GLOBAL: lambda m: m.find(m.line(), m.line()),
    pickle.STACK_GLOBAL: lambda m: m.find(m.stack.pop(-2), m.stack.pop()),
    pickle.REDUCE: lambda m: m.reduce(new=False),
    pickle.NEWOBJ: lambda m: m.reduce(new=True),
    pickle.BUILD: _Machine.build,
}
