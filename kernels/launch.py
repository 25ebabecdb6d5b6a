"""Helpers of the launchers: choose a config from a launch table, name the constexpr arguments, inspect tensors.

A launcher compiles one binary for each pair of a ``KernelKey``, which describes the call, and a ``KernelConfig``, the
row of the launch table that serves the call. Fields of a key and block sizes of a config have the names of the kernel's
constexpr arguments, in lower case.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, TypeVar

import torch

Config = TypeVar("Config", bound=Any)
# The records that ops hand to launchers, as the tuples that they are.
Activation = tuple[str, float, float, float]  # act, alpha, gain, clamp; a negative clamp means none
Resample = tuple[Sequence[int], Sequence[int], Sequence[int], bool, float]  # up, down, padding, flip_filter, gain
Encoding = tuple[torch.Tensor, torch.Tensor, bool, bool]  # columns [d, W], rows [d, H], concat, height_first

ANY = 2**63  # the limit of a config that serves every size
INT32_LIMIT = 2**31  # from this many elements on, offsets take 64 bits


class KernelConfig(NamedTuple):
    """One row of the launch table of a kernel that sees memory as rows: which calls it serves, tile, provenance."""

    arch: int | None  # compute capability times 10; None: any that has no configs of its own
    itemsize: int
    limit: int  # serves rows of memory up to this length
    block_rows: int
    block_cols: int
    num_warps: int
    num_stages: int
    measured: str = "not measured yet"

    def options(self) -> dict[str, int]:
        """Return the kernel's compile options."""
        return dict(num_warps=self.num_warps, num_stages=self.num_stages)


def first_config(table: Iterable[Config], arch: int, serves: Callable[[Config], bool]) -> Config | None:
    """Return the first config for this architecture, else for any, that ``serves`` accepts; None if there is none."""
    configs = [config for config in table if config.arch in (arch, None) and serves(config)]
    return min(configs, key=lambda config: config.arch is None, default=None)


def config_for_length(table: Iterable[KernelConfig], arch: int, itemsize: int, length: int) -> KernelConfig:
    """Return the config that serves rows of memory of this length."""
    return required(first_config(table, arch, lambda config: config.itemsize == itemsize and length <= config.limit))


def required(config: Config | None) -> Config:
    """Return ``config``, which a complete table always has.

    Raises:
        LookupError: no config of the table serves the call.
    """
    if config is None:
        raise LookupError("the launch table has no config for this call")
    return config


@functools.lru_cache(4096, typed=True)
def constants(key: Any, config: Any) -> dict[str, Any]:
    """Return the constexpr arguments of a kernel: every field of its key and every block size of its config."""
    named = {name.upper(): value for name, value in key._asdict().items()}
    return named | {name.upper(): getattr(config, name) for name in config._fields if name.startswith("block_")}


@functools.cache
def arch_of(device: torch.device) -> int:
    """Return compute capability times 10; 0 in the interpreter."""
    if device.type != "cuda":
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return major * 10 + minor


def vector_size(t: torch.Tensor, *sizes: int) -> int:
    """Return the number of elements in 16 bytes of ``t`` if it divides all sizes, else 1."""
    elements = 16 // t.element_size()
    return 1 if any(size % elements for size in sizes) else elements


def has_channels_last_strides(t: torch.Tensor) -> bool:
    """Tell whether channels are innermost and NCHW would be another order; gaps between pixels are allowed."""
    return t.shape[1] > 1 and t.stride(1) == 1 and not t.is_contiguous()


def extent(t: torch.Tensor) -> int:
    """Return the number of elements that the memory of ``t`` spans, gaps included."""
    return 1 + sum((size - 1) * stride for size, stride in zip(t.shape, t.stride(), strict=True))


def cdiv(a: int, b: int) -> int:
    """Divide and round up, without the microseconds that triton.cdiv takes on the host."""
    return -(-a // b)
