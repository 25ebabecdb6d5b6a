"""A pickle machine for the opcodes that files of weights use (protocols 2 to 5), which runs no code of the file.

The caller gives a table of the names that a file may use and the objects that they stand for. The machine refuses any
other name; in files that keep settings beside the weights it makes such a name an inert ``Unread``. The machine counts
the bytes of everything that it builds and stops at a multiple of the file's size, because a pickle can name an object
again and again, and copies of copies grow faster than the square of the file.
"""

from __future__ import annotations

import pickle
import re
import struct
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from .report import CheckpointError, UnsafeFileError

DOWNLOAD_AGAIN = "download or copy it again"  # advice for damaged files


@dataclass(frozen=True)
class Global:
    """An entry of the table: REDUCE may call it, and NEWOBJ too if it stands for a class."""

    build: Callable[..., Any]
    is_class: bool = False
    cost: int = 0  # upper bound of the bytes that it builds for each element of an argument


DICT = Global(dict, is_class=True)  # serves OrderedDict(), OrderedDict([[key, value], ...]) and EasyDict()


class Unread:
    """Replaces a class, function or object that weights do not need; keeps its name and its state."""

    __slots__ = ("attributes", "class_name")

    def __init__(self, class_name: str, attributes: Mapping[str, Any] | None = None) -> None:
        self.class_name, self.attributes = class_name, {} if attributes is None else attributes

    def __repr__(self) -> str:
        return f"<{self.class_name[:80]}, not read>"


class Stateful:
    """An object that BUILD may give a state, at ``cost`` bytes for each element of the state."""

    cost = 0

    def __setstate__(self, state: Any) -> None:
        raise NotImplementedError


def key(value: Any) -> str | int:
    """Return ``value`` if it is safe as a key: nested tuples overflow the C stack, and large ints can collide."""
    if not isinstance(value, (str, int)):
        raise CheckpointError(f"a dictionary key of type {type(value).__name__}")
    if not is_key(value):
        raise CheckpointError("a dictionary key of more than 32 bits")
    return value


def is_key(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, int) and abs(value) < 1 << 32)


class Machine:
    """Reads one pickle from the position of ``file``, behind which there are ``size`` bytes.

    Args:
        names: the names that the file may use, and the objects that they stand for.
        handlers: a function for each opcode; None: ``HANDLERS``.
        lenient: True turns other names into ``Unread`` and ignores operations on these; False refuses them.
        factor: bytes that may be built for each byte of the file.
    """

    def __init__(
        self,
        file: BinaryIO,
        size: int,
        names: Mapping[str, Any],
        handlers: Mapping[bytes, Callable] | None = None,
        *,
        lenient: bool = False,
        factor: int = 16,  # networks take 3 to 5 times their file
    ) -> None:
        self.file, self.size, self.left, self.lenient = file, size, size, lenient
        self.names, self.handlers = names, HANDLERS if handlers is None else handlers
        self.limit = self.budget = _FLOOR + factor * size
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        try:
            while (opcode := self.take(1)) != pickle.STOP:
                handler = self.handlers.get(opcode)
                if handler is None:
                    known = _OPCODE_NAMES.get(opcode)
                    if known is None or self.size - self.left == 1:
                        raise CheckpointError(f"no pickle of a network: byte {opcode!r} at {self.size - self.left - 1}")
                    raise UnsafeFileError(f"refused, uses the pickle opcode {known}, which weights have no need of")
                handler(self)
            (result,) = self.stack
            return result
        except CheckpointError:
            raise
        except Exception as error:
            place = self.size - self.left
            raise CheckpointError(
                f"broken pickle, at byte {place}: {type(error).__name__}: {error}; "
                f"{DOWNLOAD_AGAIN}, or save it with torch.save"
            ) from None

    def take(self, count: int) -> bytes:
        if count > self.left:
            raise CheckpointError(
                f"cut short: {count} bytes announced, {self.left} left of {self.size}; {DOWNLOAD_AGAIN}"
            )
        self.left -= count
        data = self.file.read(count)
        if len(data) != count:
            raise CheckpointError(f"cut short while reading {count} bytes; {DOWNLOAD_AGAIN}")
        return data

    def number(self, layout: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def line(self) -> str:
        text = self.file.readline(min(self.left, 1024))
        self.left -= len(text)
        return text.decode().removesuffix("\n")

    def spend(self, cost: int) -> None:
        self.budget -= cost
        if self.budget < 0:
            raise CheckpointError(
                f"would take more than {self.limit} bytes of memory, too much for a file of {self.size}"
            )

    def push(self, value: Any) -> None:
        self.spend(8 + (sys.getsizeof(value) if type(value) in _PLAIN else _OBJECT.get(type(value), 512)))
        self.stack.append(value)

    def push_known(self, index: int) -> None:
        self.stack.append(self.memo[index])

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def mark(self) -> None:
        self.spend(64)
        self.marks.append(self.stack)
        self.stack = []

    def protocol(self) -> None:
        if (version := self.number("B")) not in (3, 4, 5):
            raise CheckpointError(
                f"pickle protocol: expected 3 to 5, got {version}: "
                "save it with torch.save, or pickle it with protocol=4"
            )

    def remember(self, index: int) -> None:
        self.spend(128)
        self.memo[index] = self.stack[-1]

    def tuple_of(self, count: int) -> None:
        self.push(tuple([self.stack.pop() for _ in range(count)][::-1]))

    def set_items(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if self.ignores(target):
            return
        if type(target) is not dict or len(items) % 2:
            raise CheckpointError(f"items for a {type(target).__name__}")
        self.spend(64 * len(items))
        for name, value in zip(items[::2], items[1::2], strict=True):
            if not self.lenient or is_key(name):
                target[key(name)] = value

    def extend(self, items: list[Any]) -> None:
        if self.ignores(self.stack[-1]):
            return
        if type(self.stack[-1]) is not list:
            raise CheckpointError(f"items for a {type(self.stack[-1]).__name__}")
        self.spend(16 * len(items))
        self.stack[-1].extend(items)

    def add(self, items: list[Any]) -> None:
        if self.ignores(self.stack[-1]):
            return
        if type(self.stack[-1]) is not set:
            raise CheckpointError(f"elements for a {type(self.stack[-1]).__name__}")
        self.spend(64 * len(items))
        self.stack[-1].update(key(item) for item in items if not self.lenient or is_key(item))

    def ignores(self, target: Any) -> bool:
        return self.lenient and isinstance(target, Unread)

    def find(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise UnsafeFileError("refused, asks for something that has no name")
        full = f"{module}.{name}"
        if full in self.names:
            self.push(self.names[full])
        elif self.lenient and not _HOSTILE.match(full):
            self.spend(len(full))
            self.push(Unread(full))
        else:
            raise UnsafeFileError(f"refused, asks for {full[:200]!r}, which weights have no need of")

    def reduce(self, new: bool) -> None:
        arguments, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, Global) or not isinstance(arguments, tuple) or (new and not function.is_class):
            if self.lenient:
                self.push(Unread(function.class_name if isinstance(function, Unread) else type(function).__name__))
                return
            raise UnsafeFileError(f"refused, calls a {type(function).__name__}")
        if function is DICT:
            self.push({})
            for name, value in arguments[0] if arguments else ():
                self.set_items([name, value])
            return
        self.spend_on(arguments, function.cost)
        self.push(function.build(*arguments))

    def spend_on(self, parts: Any, cost: int) -> None:
        self.spend(sum(cost * len(part) for part in parts if type(part) in _SIZED))

    def build(self) -> None:
        state, target = self.stack.pop(), self.stack[-1]
        if isinstance(target, Stateful):
            kind = type(target)  # not the instance, to which the file may have given attributes of these names
            self.spend_on((state,), kind.cost)
            kind.__setstate__(target, state)
        elif self.lenient:  # modules keep their tensors in this state; other objects are of no use
            if isinstance(target, Unread) and type(state) is dict:
                target.attributes = state
        elif type(target) is not dict:  # attributes of a dictionary, such as _metadata, are not needed
            raise UnsafeFileError(f"refused, sets attributes of a {type(target).__name__}")


# The machine runs none of these either. It refuses a file that names them, because only an attack does.
_HOSTILE = re.compile(
    r"(os|posix|nt|subprocess|commands|sys|shutil|runpy|pty|socket|ctypes|importlib|marshal|pickle|_pickle)\."
    r"|(builtins|__builtin__)\.(eval|exec|execfile|compile|__import__|open|input|breakpoint|globals|locals|vars)$"
    r"|torch\.(load|hub\.|utils\.cpp_extension\.|jit\.load)"
)


def _text(layout: str) -> Callable[[Machine], None]:
    return lambda m: m.push(m.take(m.number(layout)).decode("utf-8", "surrogatepass"))


def _bytes(layout: str) -> Callable[[Machine], None]:
    return lambda m: m.push(m.take(m.number(layout)))


_FLOOR = 1 << 22  # small files that are nearly all structure take ten times their size and more
_SIZED = {str, bytes, list, tuple, dict, set}
_PLAIN = {type(None), bool, int, float} | _SIZED
_OBJECT = {Unread: 128, Global: 0}  # bytes; others are tensors that share a storage, or modules
_OPCODE_NAMES = {value: name for name, value in vars(pickle).items() if name.isupper() and isinstance(value, bytes)}
HANDLERS: dict[bytes, Callable[[Machine], Any]] = {
    pickle.PROTO: Machine.protocol,
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
    pickle.MARK: Machine.mark,
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
    pickle.BINGET: lambda m: m.push_known(m.number("B")),
    pickle.LONG_BINGET: lambda m: m.push_known(m.number("<I")),
    pickle.GLOBAL: lambda m: m.find(m.line(), m.line()),
    pickle.STACK_GLOBAL: lambda m: m.find(m.stack.pop(-2), m.stack.pop()),
    pickle.REDUCE: lambda m: m.reduce(new=False),
    pickle.NEWOBJ: lambda m: m.reduce(new=True),
    pickle.BUILD: Machine.build,
}
