"""Resampling with a fixed filter as layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .. import functional as PF
from ..ops import _check

TAPS = (1, 3, 3, 1)


class _Resample(torch.nn.Module):
    resample_filter: torch.Tensor

    def __init__(self, resample_filter: Any, gain: float, device: torch.device | str | None) -> None:
        super().__init__()
        self.gain = _check.real(gain, "gain")
        self.register_buffer("resample_filter", PF.setup_filter(resample_filter, device))

    def extra_repr(self) -> str:
        return f"taps={tuple(self.resample_filter.shape)}, gain={self.gain:g}"


class _ByFactor(_Resample):
    def __init__(
        self,
        factor: int | Sequence[int] = 2,
        resample_filter: Any = TAPS,
        *,
        gain: float = 1.0,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(resample_filter, gain, device)
        self.factor = _check.pair(factor, "factor", minimum=1)

    def extra_repr(self) -> str:
        return f"factor={self.factor}, {super().extra_repr()}"


class Upsample2d(_ByFactor):
    """[N, C, H, W] to [N, C, H * factor, W * factor]: :func:`posgan_fast.functional.upsample2d`.

    State: ``resample_filter`` [fh, fw] or [taps], float32, sum 1.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return PF.upsample2d(x, self.resample_filter, self.factor, gain=self.gain)


class Downsample2d(_ByFactor):
    """[N, C, H, W] to [N, C, H / factor, W / factor]: :func:`posgan_fast.functional.downsample2d`.

    State: ``resample_filter`` [fh, fw] or [taps], float32, sum 1.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return PF.downsample2d(x, self.resample_filter, self.factor, gain=self.gain)


class Blur2d(_Resample):
    """[N, C, H, W] to the same shape: :func:`posgan_fast.functional.filter2d`.

    State: ``resample_filter`` [fh, fw] or [taps], float32, sum 1.
    """

    def __init__(
        self, resample_filter: Any = TAPS, *, gain: float = 1.0, device: torch.device | str | None = None
    ) -> None:
        super().__init__(resample_filter, gain, device)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return PF.filter2d(x, self.resample_filter, gain=self.gain)
