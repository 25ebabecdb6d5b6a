"""The rows that tuning tries in place of those that serve a call today, for the launch tables of both GPU backends."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any
from unittest import mock

from posgan_fast import _native
from posgan_fast._native import CudaTableRow

VARIABLE = "POSGAN_FAST_CUDA_TABLE"
WARPS = (2, 4, 8)
STAGES = (1, 3)  # of kernels that multiply matrices, pipelined or not
# The fields by which a row of a Triton table says which sizes it serves, and values with which it serves all.
BOUNDS = {"limit": 2**63, "channels": 2**63, "filters": 2**63, "pixels": 0}
# Threads of a block along a row (fir4) or along the channels, in vectors of four (fir4_channels_last).
INNER_THREADS = {"fir4": (32, 64, 128, 192), "fir4_channels_last": (8, 16, 32)}
KERNELS = {"fir4": "kFir4", "fir4_channels_last": "kFir4ChannelsLast", "tiled": "kTiled", "direct": "kDirect"}


def triton_candidates(module: ModuleType, run: Callable[[], Any]) -> tuple[Any, list[Any]]:
    """Return the row that serves a call today, and all rows that could serve it, each with every number of warps.

    Where no row serves the call, both are empty."""
    select = module.select
    with mock.patch.object(module, "select", wraps=select) as spy:
        run()
    if spy.call_args is None:
        return None, []
    arguments = spy.call_args.args

    def serves(row: Any) -> bool:
        alone = (row._replace(arch=None, **{name: BOUNDS[name] for name in bounds_of(row)}),)
        try:
            with mock.patch.object(module, "TABLE", alone):
                return bool(select.__wrapped__(*arguments))  # the cache of select holds answers of the whole table
        except LookupError:
            return False

    today = select(*arguments)
    if today is None:
        return None, []
    rows = [row._replace(num_warps=w) for row in module.TABLE if serves(row) for w in WARPS]
    if "block_k" in today._fields:
        rows = [row._replace(num_stages=stages) for row in rows for stages in STAGES]
    return today, list(dict.fromkeys(rows))


def bounds_of(row: Any) -> list[str]:
    return [name for name in BOUNDS if name in row._fields]


def triton_forced(module: ModuleType, row: Any, run: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Let ``run`` find ``row`` in the launch table whatever it asks for."""

    def call(x: Any) -> Any:
        with mock.patch.object(module, "select", lambda *args, **kwargs: row):
            return run(x)

    return call


def cuda_candidates(
    table: Sequence[CudaTableRow], kernel: str, sm: int, size: int
) -> tuple[CudaTableRow | None, list[CudaTableRow]]:
    """Return the row that serves a size today, and the rows to try: every block, or today's with other segments."""
    serving = [row for row in table if row.kernel == kernel and sm >= row.sm and size >= row.size]
    if not serving:
        return None, []
    today = serving[-1]
    found: list[tuple[int, ...]]
    if len(today.numbers) == 1:
        found = [(threads,) for threads in (64, 128, 192, 256)]
    else:
        threads, inner, low, high, resident = today.numbers
        fits = [(t, i) for t in (64, 128, 256) for i in INNER_THREADS[kernel] if kernel == "fir4" or i <= t]
        found = [(*block, low, high, resident) for block in fits]
        found += [(threads, inner, *rows, resident) for rows in ((4, 16), (8, 32), (4, 64), (16, 64), (32, 128))]
        found += [(threads, inner, low, high, resident * k // 4) for k in (2, 3, 6, 8)]
    return today, [today._replace(numbers=numbers) for numbers in dict.fromkeys(found)]


def cuda_forced(row: CudaTableRow, run: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Let ``run`` launch as ``row`` says; :func:`set_cuda_table` ends that."""
    text = f"{row.kernel}={','.join(map(str, row.numbers))}"

    def call(x: Any) -> Any:
        set_cuda_table(text)
        return run(x)

    return call


def set_cuda_table(text: str | None) -> None:
    """Set the variable, or remove it, and let the library read it where it changed."""
    if os.environ.get(VARIABLE) == text:
        return
    if text is None:
        del os.environ[VARIABLE]
    else:
        os.environ[VARIABLE] = text
    _native.reread_cuda_table()


def triton_text(row: dict[str, Any]) -> str:
    """The row as a launch table in Python has it."""
    return f"KernelConfig({', '.join('ANY' if value == 2**63 else repr(value) for value in row.values())}),"


def cuda_text(row: CudaTableRow, sm: int, multiprocessors: int, note: str) -> str:
    """The row as a launch table in C++ has it."""
    if row.kernel == "elementwise":
        return f'{{{sm}, {row.size}, {row.numbers[0]}, "{note}"}},'
    *numbers, resident = (*row.numbers, 0, 0, 0, 0)[:5]
    each, rest = divmod(resident, multiprocessors)
    threads = str(resident) if rest or not each else f"{multiprocessors} * {each}"
    tiling = ", ".join([*map(str, numbers), threads])
    return f'{{{sm}, Upfirdn2dKernel::{KERNELS[row.kernel]}, {row.size}, {{{tiling}}}, "{note}"}},'
