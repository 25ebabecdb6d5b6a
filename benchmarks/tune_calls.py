"""The calls that tune launch tables: those of StyleGAN2 and of padding space, the most important ones first."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import cases
import torch

from posgan_fast import functional as PF

BATCH = 8
RESOLUTIONS = (1024, 256, 64, 32)
# The models run in channels_last, in half precision where they can; bfloat16 has the rows of float16.
KINDS = (
    (torch.float16, torch.channels_last),
    (torch.float32, torch.channels_last),
    (torch.float16, torch.contiguous_format),
    (torch.float32, torch.contiguous_format),
)
Run = Callable[[torch.Tensor, str | None], Any]
Randn = Callable[..., torch.Tensor]  # takes sizes, and a dtype other than float32
Make = Callable[[torch.Tensor, Randn], Run]


@dataclass(frozen=True)
class Call:
    """A call of an op in one dtype and memory format; ``prepare`` makes its input and ``run(x, backend)``."""

    op: str
    name: str
    shape: tuple[int, ...]
    out_shape: tuple[int, ...]
    resolution: int
    dtype: torch.dtype
    layout: torch.memory_format
    filtered: bool  # by a filter of 4 x 4 taps
    backends: tuple[str, ...]
    prepare: Callable[[torch.device], tuple[torch.Tensor, Run]]

    @property
    def traffic(self) -> int:
        """The bytes that a perfect implementation reads and writes; filters, factors and weights are negligible."""
        return (prod(self.shape) + prod(self.out_shape)) * self.dtype.itemsize

    @property
    def cuda_kernel(self) -> tuple[str, int]:
        """The launch table of the CUDA library that serves the call, and the size that selects the row."""
        if not self.filtered:
            return "elementwise", prod(self.out_shape)
        dense = self.layout == torch.contiguous_format
        whole = self.shape[1] % 4 == 0
        return "fir4" if dense else "fir4_channels_last" if whole else "tiled", self.out_shape[3]


def plan(batch: int = BATCH, resolutions: tuple[int, ...] = RESOLUTIONS) -> Iterator[tuple[Call, str]]:
    """Every call with every backend that has a launch table for it; a program that runs out of time drops the last."""
    for dtype, layout in KINDS:
        for resolution in resolutions:
            calls = list(_calls(batch, resolution, dtype, layout))
            for backend in ("cuda", "triton"):
                yield from ((call, backend) for call in calls if backend in call.backends)


def _calls(batch: int, r: int, dtype: torch.dtype, layout: torch.memory_format) -> Iterator[Call]:
    c, both = cases.channels(r), ("cuda", "triton")
    dense = (batch, c, r, r)

    def call(
        op: str, name: str, shape: tuple[int, ...], out: tuple[int, ...], make: Make, backends: tuple[str, ...] = both,
        filtered: bool = False,
    ) -> Call:  # fmt: skip
        prepare = functools.partial(_prepare, make, shape, dtype, layout)
        return Call(op, name, shape, out, r, dtype, layout, filtered, backends, prepare)

    # Triton resamples and finishes by two kernels, each of which has a call of its own here.
    yield call("epilogue2d", f"G blur, epilogue {r}", (batch, c, r + 1, r + 1), dense, _epilogue(True), ("cuda",), True)
    yield call("epilogue2d", f"G epilogue {r}", dense, dense, _epilogue(False))
    for op in cases.CASES:
        for case in (cases.with_batch(case, batch) for case in cases.CASES[op] if case.resolution == r):
            yield call(op, case.name, case.shape, case.out_shape, _case(case), filtered=op == "upfirdn2d")
    yield call("prologue2d", f"G styles {r}", dense, dense, _prologue(False))
    yield call("prologue2d", f"G padding map {r}", dense, (batch, c, r + 2, r + 2), _prologue(True))
    if layout == torch.channels_last:  # all that the kernel takes
        yield call("modulated_conv2d", f"G conv {r}", dense, dense, _style_layer(c, 3), ("triton",))
        yield call("modulated_conv2d", f"G toRGB {r}", dense, (batch, 3, r, r), _style_layer(3, 1), ("triton",))


def _prepare(
    make: Make, shape: tuple[int, ...], dtype: torch.dtype, layout: torch.memory_format, device: torch.device
) -> tuple[torch.Tensor, Run]:
    def randn(*size: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
        return torch.randn(size, device=device, dtype=dtype)

    x = randn(*shape, dtype=dtype).contiguous(memory_format=layout)
    return x, make(x, randn)


def _case(case: cases.Case) -> Make:
    def make(x: torch.Tensor, randn: Randn) -> Run:
        pixel = replace(case, shape=(1, x.shape[1], 1, 1))
        extra = pixel.tensors(x.dtype, torch.contiguous_format)[1]
        extra = None if extra is None else extra.to(x.device)
        return lambda x, backend: getattr(PF, case.op)(x, extra, **case.arguments, backend=backend)

    return make


def _epilogue(filtered: bool) -> Make:
    def make(x: torch.Tensor, randn: Randn) -> Run:
        n, c, h, w = x.shape
        given: dict[str, Any] = {}
        if filtered:
            h, w = h - 1, w - 1
            given = dict(f=PF.setup_filter([1, 3, 3, 1], device=x.device), padding=1, filter_gain=4.0)
        given |= dict(scale=randn(n, c), noise=randn(1, 1, h, w), b=randn(c, dtype=x.dtype), act="lrelu", clamp=256.0)
        return lambda x, backend: PF.epilogue2d(x, **given, backend=backend)

    return make


def _prologue(mapped: bool) -> Make:
    def make(x: torch.Tensor, randn: Randn) -> Run:
        n, c, h, w = x.shape
        border: dict[str, Any] = {}
        if mapped:
            ring = randn(n, c, 2 * (h + w) + 4, dtype=x.dtype)
            border = dict(padding=1, mode="instance", pad_map=ring)
        styles = randn(n, c)
        return lambda x, backend: PF.prologue2d(x, styles, **border, backend=backend)

    return make


def _style_layer(filters: int, side: int) -> Make:
    def make(x: torch.Tensor, randn: Randn) -> Run:
        n, c, h, w = x.shape
        weight, styles = randn(filters, c, side, side, dtype=x.dtype), randn(n, c)
        given: dict[str, Any] = dict(padding=side // 2, demodulate=side == 3, bias=randn(filters, dtype=x.dtype))
        if side == 3:
            given |= dict(noise=randn(1, 1, h, w), act="lrelu", clamp=256.0)
        return lambda x, backend: PF.modulated_conv2d(x, weight, styles, **given, backend=backend)

    return make
