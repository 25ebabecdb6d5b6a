"""What the launchers share: the choice of a row of a launch table, and what it and the kernels depend on."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch

ANY = 2**63  # the limit of a row that has none
LARGE = 2**31  # elements from which on offsets take 64 bits


class Row(NamedTuple):
    """One row of a launch table of kernels that see memory as rows: the calls it serves, its tile, where measured."""

    arch: int | None  # compute capability times 10; None: any that has no rows of its own
    itemsize: int
    limit: int  # serves rows of memory up to this long
    rows: int
    cols: int
    num_warps: int
    num_stages: int
    measured: str = "not measured yet"

    def options(self) -> dict[str, int]:
        """The compile options of the kernel."""
        return dict(num_warps=self.num_warps, num_stages=self.num_stages)


def first_row(table: Iterable[Row], arch: int, itemsize: int, length: int) -> Row:
    """The first row for this architecture, else for any, that serves rows of memory of this length."""
    return next(preferred((row for row in table if row.itemsize == itemsize and length <= row.limit), arch))


def preferred(rows: Iterable[Any], arch: int) -> Iterator[Any]:
    """Rows for this architecture, then those for any."""
    return iter(sorted((row for row in rows if row.arch in (arch, None)), key=lambda row: row.arch is None))


@functools.cache
def arch_of(device: torch.device) -> int:
    """Compute capability times 10; 0 in the interpreter."""
    if device.type != "cuda":
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return major * 10 + minor


def vector(t: torch.Tensor, *sizes: int) -> int:
    """The elements in 16 bytes of ``t`` if they divide all sizes, else 1."""
    elements = 16 // t.element_size()
    return 1 if any(size % elements for size in sizes) else elements


def is_channels_last(t: torch.Tensor) -> bool:
    """Whether channels are innermost, where that makes a difference."""
    return t.shape[1] > 1 and t.stride(1) == 1 and not t.is_contiguous()


def extent(t: torch.Tensor) -> int:
    """Elements from the first of ``t`` to its last."""
    return 1 + sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))


def cdiv(a: int, b: int) -> int:
    return -(-a // b)  # triton.cdiv takes microseconds
