"""Files of ``torch.save``, with a zip or without, read without running anything that is in them.

The machine of ``opcodes.py`` reads the pickle inside. The pickle names the storages of its tensors, whose bytes lie
beside it in the file. Settings other than tensors, containers, text and numbers become inert ``Unread``s.
"""

from __future__ import annotations

import argparse
import io
import pickle
import struct
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO

import torch

from .opcodes import DOWNLOAD_AGAIN, HANDLERS, Global, Machine, Stateful, Unread, is_key
from .pickles import GLOBALS, STORAGES, first_line, number, parameter, view_of
from .report import CheckpointError

Storages = Callable[[torch.dtype, str, int], torch.Tensor]  # dtype, key, count => [count]


def read_zip(file: BinaryIO) -> Any:
    """Read the object in a zip of ``torch.save``.

    Raises:
        UnsafeFileError, CheckpointError: as for ``read_pickle``.
    """
    archive = _Archive(file)
    if "byteorder" in archive and archive.read("byteorder").strip() != b"little":
        raise CheckpointError("written on a big-endian machine, expected little-endian numbers")
    data = archive.read("data.pkl")
    return _read(io.BytesIO(data), len(data), archive.storage)


def read_legacy(file: BinaryIO) -> Any:
    """Read the object in a file of ``torch.save(_use_new_zipfile_serialization=False)``; see ``read_zip``."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    for _ in range(3):  # the magic number, a version and facts about the machine
        about = _read(file, size - file.tell(), _no_storage)
    if isinstance(about, dict) and about.get("little_endian") is False:
        raise CheckpointError("written on a big-endian machine, expected little-endian numbers")
    known: dict[str, torch.Tensor] = {}
    counts: dict[str, int] = {}
    left = size

    def storage(dtype: torch.dtype, key: str, count: int) -> torch.Tensor:
        nonlocal left
        if key not in known:
            left -= count * dtype.itemsize
            if left < 0:
                raise CheckpointError(f"announces more bytes than the file has; {DOWNLOAD_AGAIN}")
            known[key], counts[key] = torch.zeros(count * dtype.itemsize, dtype=torch.uint8), count
        if known[key].numel() != count * dtype.itemsize:
            raise CheckpointError(
                f"damaged: storage {key[:80]} has {known[key].numel()} bytes, expected {count}; {DOWNLOAD_AGAIN}"
            )
        return known[key].view(dtype)

    data = _read(file, size - file.tell(), storage)
    keys = _read(file, size - file.tell(), _no_storage)
    if not isinstance(keys, list) or set(map(str, keys)) != set(known) or len(keys) != len(known):
        raise CheckpointError(f"damaged: other storages than the tensors have; {DOWNLOAD_AGAIN}")
    for key in map(str, keys):
        values, announced = known[key], file.read(8)
        if len(announced) == 8 and announced != struct.pack("<q", counts[key]):
            count = struct.unpack("<q", announced)[0]
            raise CheckpointError(
                f"damaged: storage {key[:80]} has {count} elements, expected {counts[key]}; {DOWNLOAD_AGAIN}"
            )
        if values.numel() and file.readinto(values.numpy()) != values.numel():  # type: ignore[attr-defined]
            raise CheckpointError(
                f"cut short: storage {key[:80]} has fewer than {values.numel()} bytes; {DOWNLOAD_AGAIN}"
            )
    return data


class _Archive:
    """The entries of a zip of ``torch.save``, which share one folder."""

    def __init__(self, file: BinaryIO) -> None:
        try:
            self.zip = zipfile.ZipFile(file)
        except (zipfile.BadZipFile, OSError, ValueError) as error:
            raise CheckpointError(f"damaged: no complete zip archive ({error}); {DOWNLOAD_AGAIN}") from None
        size = file.seek(0, io.SEEK_END)
        if sum(entry.file_size for entry in self.zip.infolist()) > size:
            raise CheckpointError(f"announces more bytes than the file has; {DOWNLOAD_AGAIN}")
        self.names = {entry.filename for entry in self.zip.infolist()}
        if any(name.endswith("/constants.pkl") for name in self.names):
            raise CheckpointError("a module of TorchScript, expected weights: save module.state_dict() instead")
        pickles = [name for name in self.names if name.count("/") == 1 and name.endswith("/data.pkl")]
        if len(pickles) != 1:
            raise CheckpointError(_other_archive(list(dict.fromkeys(self.zip.namelist()))))
        self.folder = pickles[0].removesuffix("data.pkl")
        self.storages: dict[str, torch.Tensor] = {}

    def __contains__(self, name: str) -> bool:
        return self.folder + name in self.names

    def read(self, name: str) -> bytes:
        if name not in self:
            raise CheckpointError(f"damaged: {name[:80]} is not in the archive; {DOWNLOAD_AGAIN}")
        try:
            return self.zip.read(self.folder + name)  # read() also compares the checksum
        except Exception as error:  # zipfile lets the errors of its parsers through
            raise CheckpointError(f"damaged: {name[:80]}: {first_line(error)}; {DOWNLOAD_AGAIN}") from None

    def storage(self, dtype: torch.dtype, key: str, count: int) -> torch.Tensor:
        if key not in self.storages:
            self.storages[key] = _numbers(bytearray(self.read(f"data/{key}")), torch.uint8)
        raw = self.storages[key]
        if raw.numel() != count * dtype.itemsize:
            raise CheckpointError(
                f"damaged: data/{key[:80]} has {raw.numel()} bytes, expected {count} of {dtype}; {DOWNLOAD_AGAIN}"
            )
        return raw.view(dtype)


def _read(file: BinaryIO, size: int, storage: Storages) -> Any:
    """Read one pickle; ``storage`` returns the tensor behind each reference to a storage."""

    def persistent(machine: Machine) -> None:
        about = machine.stack.pop()
        kind = about[0] if isinstance(about, tuple) and about else None
        if kind == "module" and len(about) > 1:  # whole modules hold classes with their source
            machine.push(about[1])
            return
        view = about[5] if isinstance(about, tuple) and len(about) == 6 else None
        if kind != "storage" or len(about) not in (5, 6) or view is not None:
            raise CheckpointError("a storage that is not described as torch does")
        _, dtype, key, _, count = about[:5]
        if not isinstance(dtype, torch.dtype) or not isinstance(key, str) or type(count) is not int or count < 0:
            raise CheckpointError("a storage that is not described as torch does")
        machine.push(storage(dtype, key, count))

    return Machine(file, size, _NAMES, _HANDLERS | {pickle.BINPERSID: persistent}, lenient=True, factor=32).run()


def _no_storage(dtype: torch.dtype, key: str, count: int) -> torch.Tensor:
    raise CheckpointError("a storage outside the object")


def _numbers(data: bytearray, dtype: torch.dtype) -> torch.Tensor:
    return torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)


def _other_archive(names: list[str]) -> str:
    if names and all(name.endswith(".npy") for name in names):
        return "NumPy's arrays (.npz), expected weights as torch saves them"
    some = ", ".join(name[:40] for name in names[:4]) or "nothing"
    return f"a zip archive that torch.save did not write (it holds {some}): unpack it, and give the file inside"


def _tensor(
    storage: Any, offset: int, size: tuple, stride: tuple, _: Any = None, __: Any = None, bits: Any = None
) -> Any:
    return storage if isinstance(storage, Unread) else view_of(storage, offset, size, stride, bits)


def _tensor_of(
    storage: Any, offset: int, size: tuple, stride: tuple, _: Any, __: Any, dtype: Any, bits: Any = None
) -> Any:
    if not isinstance(storage, torch.Tensor) or not isinstance(dtype, torch.dtype):
        return Unread("torch.Tensor")
    if storage.numel() % dtype.itemsize:
        raise CheckpointError(f"a tensor whose storage of {storage.numel()} bytes is no multiple of {dtype}")
    return view_of(storage.view(dtype), offset, size, stride, bits)


def _parameter(data: Any, *_: Any) -> Any:
    return data if isinstance(data, Unread) else parameter(data)


def _subclass(function: Any, _: Any, arguments: Any, *__: Any) -> Any:
    """Build a tensor without the attributes that its subclass adds."""
    known = isinstance(function, Global) and function.build in (_tensor, _tensor_of, _parameter)
    return function.build(*arguments) if known and isinstance(arguments, tuple) else Unread("torch.Tensor")


def _number(*arguments: Any) -> Any:
    try:
        return number(*arguments)
    except Exception:
        return Unread("numpy scalar")


def _encoded(text: Any, encoding: Any = None) -> Any:
    """Decode bytes, which protocol 2 writes as latin1 text."""
    return text.encode("latin1") if isinstance(text, str) and encoding == "latin1" else Unread("bytes")


def _set(items: Any = ()) -> Any:
    """Build a set as protocol 2 writes it; modules keep the names of their unsaved buffers in one."""
    return {item for item in items if is_key(item)} if type(items) in (list, tuple) else Unread("set")


class _Settings(argparse.Namespace, Stateful):
    """The command line that rosinality's files hold."""

    cost = 128

    def __setstate__(self, state: Any) -> None:
        if isinstance(state, dict):
            vars(self).update({name: value for name, value in state.items() if isinstance(name, str)})


_DTYPES = [value for value in vars(torch).values() if isinstance(value, torch.dtype)]
_NAMES: dict[str, Any] = {
    **{name: entry for name, entry in GLOBALS.items() if not name.startswith("builtins.")},
    **STORAGES,
    **{str(dtype): dtype for dtype in _DTYPES},
    "torch.ComplexFloatStorage": torch.complex64,
    "torch.ComplexDoubleStorage": torch.complex128,
    "torch.storage.UntypedStorage": torch.uint8,
    "torch.QInt8Storage": torch.int8,
    "torch.QInt32Storage": torch.int32,
    **dict.fromkeys(("torch.QUInt8Storage", "torch.QUInt4x2Storage", "torch.QUInt2x4Storage"), torch.uint8),
    "torch._utils._rebuild_tensor": Global(_tensor),
    "torch._utils._rebuild_tensor_v2": Global(_tensor),
    "torch._utils._rebuild_tensor_v3": Global(_tensor_of),
    "torch._utils._rebuild_parameter": Global(_parameter),
    "torch._utils._rebuild_parameter_with_state": Global(_parameter),
    "torch._tensor._rebuild_from_type_v2": Global(_subclass),
    "collections.defaultdict": Global(lambda *_: {}),
    "_codecs.encode": Global(_encoded, cost=2),
    **dict.fromkeys(("builtins.set", "__builtin__.set"), Global(_set, cost=64)),
    "argparse.Namespace": Global(_Settings, is_class=True),
}
_NAMES |= {name: Global(_number) for name in GLOBALS if name.endswith(".multiarray.scalar")}


def _text(layout: str) -> Callable[[Machine], None]:
    return lambda m: m.push(m.take(m.number(layout)).decode("latin1"))


def _new_with_keywords(machine: Machine) -> None:
    machine.stack.pop()
    machine.reduce(new=True)


_HANDLERS = HANDLERS | {
    pickle.PROTO: lambda m: m.take(1),
    pickle.LONG4: lambda m: m.push(int.from_bytes(m.take(m.number("<I")), "little", signed=True)),
    pickle.SHORT_BINSTRING: _text("B"),
    pickle.BINSTRING: _text("<I"),
    pickle.POP: lambda m: m.stack.pop(),
    pickle.POP_MARK: lambda m: m.since_mark(),
    pickle.NEWOBJ_EX: _new_with_keywords,
    pickle.FROZENSET: lambda m: m.push(Unread(f"frozenset of {len(m.since_mark())}")),
}
