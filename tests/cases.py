"""The shapes and configurations that tests and benchmarks share: what StyleGAN2 asks of each op, and a small set.

StyleGAN2 here is its configuration F: min(32768 / resolution, 512) channels, a 4-tap filter, clamp 256. The networks
for 256, 512 and 1024 pixels make the same calls up to their own resolution.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from typing import Any, ClassVar

import torch

MODELS = (256, 512, 1024)
TAPS = (1.0, 3.0, 3.0, 1.0)


@dataclass(frozen=True)
class Upfirdn2dCase:
    """One call of upfirdn2d. ``resolution`` is the one of the StyleGAN2 block that makes it, 0: none does."""

    op: ClassVar[str] = "upfirdn2d"
    name: str
    shape: tuple[int, ...]  # [N, C, H, W]
    up: tuple[int, int] = (1, 1)  # x, y
    down: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    gain: float = 1.0
    taps: tuple[float, ...] = TAPS
    separable: bool = False  # hand over [taps], not the outer product that setup_filter makes of fewer than 8 taps
    flip_filter: bool = False
    resolution: int = 0

    @property
    def arguments(self) -> dict[str, Any]:
        """What follows x and f."""
        return dict(up=self.up, down=self.down, padding=self.padding, flip_filter=self.flip_filter, gain=self.gain)

    @property
    def out_shape(self) -> tuple[int, ...]:
        n, c, h, w = self.shape
        size = [
            (s * u + p0 + p1 - len(self.taps)) // d + 1
            for s, u, d, (p0, p1) in (
                (h, self.up[1], self.down[1], self.padding[2:]),
                (w, self.up[0], self.down[0], self.padding[:2]),
            )
        ]
        return (n, c, *size)

    def tensors(
        self, dtype: torch.dtype, layout: torch.memory_format, seed: int = 0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """x and f on the CPU; equal for every dtype up to its rounding."""
        x = torch.randn(self.shape, generator=torch.Generator().manual_seed(seed))
        f = torch.tensor(self.taps)
        f = f if self.separable else torch.outer(f, f)
        return x.to(dtype).contiguous(memory_format=layout), f / f.sum()


@dataclass(frozen=True)
class BiasActCase:
    """One call of bias_act on [N, C, H, W] with a bias along dimension 1."""

    op: ClassVar[str] = "bias_act"
    name: str
    shape: tuple[int, ...]
    act: str = "lrelu"
    alpha: float | None = None
    gain: float | None = None
    clamp: float | None = None
    biased: bool = True
    resolution: int = 0

    @property
    def arguments(self) -> dict[str, Any]:
        """What follows x and b."""
        return dict(act=self.act, alpha=self.alpha, gain=self.gain, clamp=self.clamp)

    @property
    def out_shape(self) -> tuple[int, ...]:
        return self.shape

    def tensors(
        self, dtype: torch.dtype, layout: torch.memory_format, seed: int = 0
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """x and b on the CPU; equal for every dtype up to its rounding."""
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(self.shape, generator=generator)
        b = torch.randn(self.shape[1], generator=generator).to(dtype) if self.biased else None
        return x.to(dtype).contiguous(memory_format=layout), b


Case = Upfirdn2dCase | BiasActCase


def with_batch(case: Case, n: int) -> Case:
    return replace(case, shape=(n, *case.shape[1:]))


def elements_moved(case: Case) -> int:
    """Elements a perfect implementation reads and writes; filter and bias are negligible."""
    return prod(case.shape) + prod(case.out_shape)


def channels(resolution: int) -> int:
    return min(32768 // resolution, 512)


def _stylegan2_upfirdn2d() -> Iterator[Upfirdn2dCase]:
    for r in (8, 16, 32, 64, 128, 256, 512, 1024):
        c = channels(r)
        # the image of the skip generator; the features of a resnet generator alike, below
        yield Upfirdn2dCase(f"G skip up2 {r}", (1, 3, r // 2, r // 2), (2, 2), (1, 1), (2, 1, 2, 1), 4, resolution=r)
        # behind the transposed convolution
        yield Upfirdn2dCase(f"G blur {r}", (1, c, r + 1, r + 1), padding=(1, 1, 1, 1), gain=4, resolution=r)
        # ahead of the 3x3 convolution of stride 2, and of the 1x1 convolution of the residual branch
        yield Upfirdn2dCase(f"D blur {r}", (1, c, r, r), padding=(2, 2, 2, 2), resolution=r)
        yield Upfirdn2dCase(f"D skip down2 {r}", (1, c, r, r), (1, 1), (2, 2), (1, 1, 1, 1), resolution=r)


def _stylegan2_bias_act() -> Iterator[BiasActCase]:
    for r in (4, 8, 16, 32, 64, 128, 256, 512, 1024):
        yield BiasActCase(f"lrelu {r}", (1, channels(r), r, r), clamp=256, resolution=r)
        yield BiasActCase(f"toRGB {r}", (1, 3, r, r), "linear", clamp=256, resolution=r)


UPFIRDN2D = (
    *_stylegan2_upfirdn2d(),
    Upfirdn2dCase("up2 128x256x256", (1, 128, 256, 256), (2, 2), (1, 1), (2, 1, 2, 1), 4),
    Upfirdn2dCase("up2, 12 taps, 128x128x128", (1, 128, 128, 128), (2, 2), (1, 1), (6, 5, 6, 5), 4, (1.0,) * 12, True),
)
BIAS_ACT = (
    *_stylegan2_bias_act(),
    *(BiasActCase(f"lrelu, no clamp, {r}", (1, channels(r), r, r)) for r in (64, 256, 1024)),
    BiasActCase("swish 64x512x512", (1, 64, 512, 512), "swish"),
)

_RAMP = tuple(float(k) for k in range(1, 13))
UPFIRDN2D_SMALL = (
    Upfirdn2dCase("small G skip up2", (2, 3, 9, 9), (2, 2), (1, 1), (2, 1, 2, 1), 4),
    Upfirdn2dCase("small G blur", (1, 5, 17, 17), padding=(1, 1, 1, 1), gain=4),
    Upfirdn2dCase("small D blur", (2, 8, 16, 16), padding=(2, 2, 2, 2)),
    Upfirdn2dCase("small D skip down2", (2, 16, 16, 16), (1, 1), (2, 2), (1, 1, 1, 1)),
    Upfirdn2dCase("small separable", (1, 4, 33, 40), (2, 2), (1, 1), (6, 5, 6, 5), 4, _RAMP, True),
    Upfirdn2dCase("small uneven", (2, 3, 19, 70), (2, 3), (3, 1), (5, 4, 3, 7), 0.5, _RAMP[:5], False, True),
    Upfirdn2dCase("small cropped", (1, 6, 21, 23), (2, 2), (1, 1), (-3, 4, 5, -2), 1, _RAMP[:3], True),
    Upfirdn2dCase("small one pixel", (3, 2, 1, 1), (4, 4), (1, 1), (3, 3, 3, 3), 16),
    Upfirdn2dCase("small many channels", (1, 96, 6, 5), (1, 1), (1, 1), (2, 1, 2, 1)),
)
BIAS_ACT_SMALL = (
    *(
        BiasActCase(f"small {act}{' clamped' if clamp else ''}", (2, 5, 9, 8), act, clamp=clamp)
        for act in ("linear", "relu", "lrelu", "tanh", "sigmoid", "elu", "selu", "softplus", "swish")
        for clamp in (None, 0.75)
    ),
    BiasActCase("small lrelu, negative alpha", (2, 3, 7, 5), alpha=-0.3, gain=1.5, clamp=0.75),
    BiasActCase("small lrelu, no bias", (1, 1, 1, 1), biased=False),
    BiasActCase("small lrelu, many channels", (1, 96, 6, 6), clamp=1.0),
    BiasActCase("small lrelu, large plane", (1, 3, 65, 67), clamp=1.0),
)
CASES: dict[str, tuple[Case, ...]] = {"upfirdn2d": UPFIRDN2D, "bias_act": BIAS_ACT}
SMALL: dict[str, tuple[Case, ...]] = {"upfirdn2d": UPFIRDN2D_SMALL, "bias_act": BIAS_ACT_SMALL}
