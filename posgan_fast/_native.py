"""Loads the compiled leaves, on first use, and can say why they are missing.

The build writes ``lib/libposgan_fast_{cpu,cuda}.so`` and ``lib/build.json`` (what was built, with what, or why not)
into the package. The schemas live here, so that either library can be present without the other.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

CPU = "cpu"
CUDA = "cuda"
LIB_DIR = Path(__file__).parent / "lib"

_SCHEMAS = (
    "upfirdn2d(Tensor x, Tensor f, Tensor(a!) y, int upx, int upy, int downx, int downy, int padx0, int pady0,"
    " bool flip, float gain) -> ()",
    "bias_act(Tensor x, Tensor? b, Tensor? ref, Tensor? dy, Tensor(a!) out, int step, int order, int act, float alpha,"
    " float gain, float clamp) -> ()",
    "modulated_weight(Tensor weight, Tensor styles, Tensor(a!)? scale, Tensor(b!) out, Tensor(c!)? odd, float eps,"
    " bool fold, bool transposed, bool flip) -> ()",
    "prologue2d(Tensor x, Tensor? residual, Tensor? styles, Tensor? border, Tensor? columns, Tensor? rows,"
    " Tensor(a!) y, int left, int top, int mode, bool concat, bool height_first) -> ()",
    "epilogue2d(Tensor x, Tensor? odd, Tensor? f, Tensor? scale, Tensor? noise, Tensor? b, Tensor(a!) y, int upx,"
    " int upy, int downx, int downy, int padx0, int pady0, bool flip, float filter_gain, int act, float alpha,"
    " float gain, float clamp) -> ()",
)


@dataclass(frozen=True)
class Status:
    """Whether a native library is usable, and otherwise why not and what mends it."""

    loaded: bool
    reason: str = ""
    remedy: str | None = None


@functools.cache
def load(library: str) -> Status:
    """Load ``libposgan_fast_<library>.so`` once."""
    path = LIB_DIR / f"libposgan_fast_{library}.so"
    if not path.exists():
        record = build_record()
        reason = record.get(library, {}).get("reason") or f"{path.name} is not in this installation"
        return Status(False, reason, record.get(library, {}).get("remedy") or rebuild())
    _define_schemas()
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return Status(False, f"{path.name} does not load: {error}", rebuild())
    return Status(True)


def build_record() -> dict[str, Any]:
    """What the build wrote about itself; empty when there is no record."""
    try:
        return json.loads((LIB_DIR / "build.json").read_text())
    except (OSError, json.JSONDecodeError):
        return {}


def rebuild() -> str:
    """The command that builds the libraries into the package that was imported."""
    if (Path(__file__).parents[1] / "setup.py").exists():  # an installation elsewhere would stay hidden behind it
        return "pip install --no-build-isolation --no-deps -e .   (in this checkout of posgan_fast)"
    return "pip install --no-build-isolation --force-reinstall --no-deps .   (in a checkout of posgan_fast)"


def instruction_set() -> str:
    """The instruction set the loaded CPU library uses: "avx512", "avx2" or "baseline"."""
    function = ctypes.CDLL(str(LIB_DIR / f"libposgan_fast_{CPU}.so")).posgan_fast_instruction_set
    function.restype = ctypes.c_char_p
    return function().decode()


@functools.cache
def has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.cache
def _define_schemas() -> torch.library.Library:
    library = torch.library.Library("posgan_fast_native", "DEF")
    for schema in _SCHEMAS:
        library.define(schema)
    return library
