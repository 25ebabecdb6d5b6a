"""Loads the compiled native ops on first use, and says why they are missing where they are.

The build writes ``lib/libposgan_fast_{cpu,cuda}.so`` and ``lib/build.json`` (what was built, with what, or why not)
into the package. The schemas live here, so that either library can be present without the other.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.util
import json
import os
import re
import struct
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

CPU = "cpu"
CUDA = "cuda"
LIB_DIR = Path(__file__).parent / "lib"

_SCHEMAS = (
    "upfirdn2d(Tensor x, Tensor f, Tensor(a!) y, int upx, int upy, int downx, int downy, int padx0, int pady0,"
    " bool flip, float gain) -> ()",
    "bias_act(Tensor x, Tensor? b, Tensor? ref, Tensor? dy, Tensor(a!) out, int step, int grad, int act, float alpha,"
    " float gain, float clamp) -> ()",
    "modulated_weight(Tensor weight, Tensor styles, Tensor(a!)? dcoefs, Tensor(b!) out, Tensor(c!)? odd_rows,"
    " float eps, bool fold, bool transposed, bool flip) -> ()",
    "modulated_factors(Tensor weight, Tensor styles, Tensor? bias, Tensor? noise, Tensor? strength, Tensor(a!) out,"
    " Tensor(b!)? cast_bias, Tensor(c!)? dcoefs, Tensor(d!)? scaled_styles, Tensor(e!)? scaled_noise,"
    " Tensor(f!)? divisors, float eps, bool fold, bool transposed, bool flip) -> ()",
    "modulated_factors_backward(Tensor weight, Tensor styles, Tensor dcoefs, Tensor? divisors, Tensor d_dcoefs,"
    " Tensor? d_scaled_styles, Tensor(a!)? d_weight, Tensor(b!)? d_styles) -> ()",
    "prologue2d(Tensor x, Tensor? residual, Tensor? styles, Tensor? border, Tensor? columns, Tensor? rows,"
    " Tensor(a!) y, int left, int top, int mode, bool concat, bool height_first) -> ()",
    "epilogue2d(Tensor x, Tensor? odd_rows, Tensor? f, Tensor? scale, Tensor? noise, Tensor? b, Tensor? post_scale,"
    " Tensor(a!) y, int upx, int upy, int downx, int downy, int padx0, int pady0, bool flip, float filter_gain,"
    " int act, float alpha, float gain, float clamp) -> ()",
    "epilogue2d_backward(Tensor dy, Tensor? y, Tensor? x, Tensor? scale, Tensor? noise, Tensor? b, Tensor(a!)? dx,"
    " Tensor(b!)? channel_sums, Tensor(c!)? pixel_sums, int tile, int act, float alpha, float gain, float clamp)"
    " -> ()",
    "winograd3x3(Tensor x, Tensor? transformed, Tensor? squares, Tensor? weight, bool flip, float eps, int form,"
    " int mode, int padding, Tensor? pad_map, Tensor? in_scale, Tensor? in_shift, Tensor? scale, Tensor? shift,"
    " Tensor? slope, Tensor? noise, float alpha, float gain, float clamp, Tensor(a!) y) -> ()",
    "winograd3x3_gradient(Tensor x, Tensor dy, int form, int padding, Tensor(a!) dw) -> ()",
    "winograd3x3_weight(Tensor weight, int form, bool flip, Tensor(a!) transformed, Tensor(b!)? squares) -> ()",
)
# The ops that a library lacks: each has its own way to prepare weights, and on CUDA the vendor convolves.
_NOT_IN = {
    CPU: ("modulated_factors", "modulated_factors_backward"),
    CUDA: ("modulated_weight", "winograd3x3", "winograd3x3_weight", "winograd3x3_gradient"),
}
_DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_INSTRUCTION_SETS = ("avx512", "avx2", "baseline")


@dataclass(frozen=True)
class Status:
    """Tells whether a native library is usable, and otherwise why not and what mends it."""

    loaded: bool
    reason: str = ""
    remedy: str | None = None


@functools.cache
def load(library: str) -> Status:
    """Load ``libposgan_fast_<library>.so`` once; it counts as loaded if it has every native op that the ops call."""
    path = LIB_DIR / f"libposgan_fast_{library}.so"
    record = build_record().get(library, {})
    if not os.path.exists(path):
        reason = record.get("reason") or f"{path.name} is not in this installation"
        return Status(False, str(reason), str(record.get("remedy") or rebuild()))
    if record.get("schemas", _schemas_digest()) != _schemas_digest():
        return Status(False, f"{path.name} was built from another version of posgan_fast", rebuild())
    if _is_truncated(path):
        return Status(False, f"{path.name} is not a whole library", rebuild())
    _define_schemas()
    try:
        torch.ops.load_library(str(path))
    except (OSError, RuntimeError) as error:
        return Status(False, f"{path.name} does not load: {error.__cause__ or error}", rebuild())
    missing = _missing_ops(library)
    if missing:
        return Status(False, f"{path.name} lacks {', '.join(missing)}: it is of another version", rebuild())
    return Status(True)


def build_record() -> dict[str, dict[str, Any]]:
    """The record that the build wrote for each library; empty if there is none that can be read."""
    try:
        record = json.loads((LIB_DIR / "build.json").read_text())
    except (OSError, ValueError, RecursionError):
        return {}
    entries = record.items() if isinstance(record, dict) else ()
    return {library: entry for library, entry in entries if isinstance(entry, dict)}


def rebuild() -> str:
    """The command that builds the libraries into the package that was imported."""
    if (Path(__file__).parents[1] / "setup.py").exists():  # Python finds the checkout before any other installation
        return "pip install --no-build-isolation --no-deps -e .   (in this checkout of posgan_fast)"
    return "pip install --no-build-isolation --force-reinstall --no-deps .   (in a checkout of posgan_fast)"


def instruction_set() -> str:
    """The instruction set that the loaded CPU library uses: "avx512", "avx2" or "baseline"; "unknown" if it cannot say.

    Raises:
        ValueError: ``POSGAN_FAST_ISA`` is none of them.
    """
    wish = os.environ.get("POSGAN_FAST_ISA", _INSTRUCTION_SETS[0])
    if wish not in _INSTRUCTION_SETS:  # the library would throw an exception through C
        raise ValueError(f"POSGAN_FAST_ISA: expected one of {', '.join(_INSTRUCTION_SETS)}, got {wish!r}")
    if not load(CPU).loaded:
        return "unknown"
    try:
        function = ctypes.CDLL(str(LIB_DIR / f"libposgan_fast_{CPU}.so")).posgan_fast_instruction_set
    except (OSError, AttributeError):
        return "unknown"
    function.restype = ctypes.c_char_p
    return function().decode()


class CudaTableRow(NamedTuple):
    """A row of a launch table of the CUDA library."""

    kernel: str
    sm: int  # from this compute capability times 10 on
    size: int  # from this output width (upfirdn2d) or number of elements (elementwise) on
    numbers: tuple[int, ...]  # as ``POSGAN_FAST_CUDA_TABLE`` takes them (``csrc/launch_overrides.h``)


def cuda_table() -> list[CudaTableRow]:
    """The launch tables of the loaded CUDA library, most specific row last; empty without one."""
    if not load(CUDA).loaded:
        return []
    function = ctypes.CDLL(str(LIB_DIR / f"libposgan_fast_{CUDA}.so")).posgan_fast_cuda_table
    function.restype = ctypes.c_char_p
    return parse_cuda_table(function().decode())


def parse_cuda_table(text: str) -> list[CudaTableRow]:
    rows = (line.split() for line in text.splitlines())
    return [CudaTableRow(k, int(sm), int(size), tuple(map(int, n.split(",")))) for k, sm, size, n in rows]


def reread_cuda_table() -> None:
    """Let the next launch of a CUDA kernel read ``POSGAN_FAST_CUDA_TABLE`` again."""
    if load(CUDA).loaded:
        ctypes.CDLL(str(LIB_DIR / f"libposgan_fast_{CUDA}.so")).posgan_fast_reread_cuda_table()


def cuda_runtime() -> tuple[int, int] | None:
    """The version of the CUDA runtime that is linked into the CUDA library; None where its build recorded none."""
    found = re.fullmatch(r"(\d+)\.(\d+)", str(build_record().get(CUDA, {}).get("runtime")))
    return (int(found[1]), int(found[2])) if found else None


def cuda_driver() -> tuple[int, int] | None:
    """The latest version of CUDA that the installed driver serves; None where there is no driver to ask."""
    number = ctypes.c_int(0)
    try:
        ctypes.CDLL(_DRIVER).cuDriverGetVersion(ctypes.byref(number))
    except (OSError, AttributeError):
        return None
    return (number.value // 1000, number.value % 1000 // 10) if number.value else None


@functools.cache
def has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.cache
def _define_schemas() -> torch.library.Library:
    library = torch.library.Library("posgan_fast_native", "DEF")
    for schema in _SCHEMAS:
        library.define(schema)
    return library


def _schemas_digest() -> str:
    """A digest of the schemas, which ``setup.py`` records as well."""
    return hashlib.sha256(repr(_SCHEMAS).encode()).hexdigest()


def _missing_ops(library: str) -> list[str]:
    names = [schema.partition("(")[0] for schema in _SCHEMAS]
    has = torch._C._dispatch_has_kernel_for_dispatch_key
    return [
        name
        for name in names
        if name not in _NOT_IN[library] and not has(f"posgan_fast_native::{name}", library.upper())
    ]


def _is_truncated(path: Path) -> bool:
    """Tell whether an ELF file ends before its table of sections, which linkers write last. Mapping it kills Python."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            head = file.read(64)
    except OSError:
        return False  # loading the library reports it
    if len(head) < 64 or not head.startswith(b"\x7fELF\x02\x01"):  # 64 bits, little-endian
        return False
    (sections,) = struct.unpack_from("<Q", head, 40)
    width, count = struct.unpack_from("<HH", head, 58)
    return size < sections + width * count
