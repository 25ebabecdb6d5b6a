"""Resampling with a fixed filter as layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .. import functional as PF
from ..ops.common import checks
from .foreign import BLUR2D, DOWNSAMPLE2D, UPSAMPLE2D, Convertible

TAPS = (1, 3, 3, 1)


class _Resample(Convertible):
    resample_filter: torch.Tensor

    def __init__(self, resample_filter: Any, gain: float, device: torch.device | str | None) -> None:
        super().__init__()
        self.gain = checks.real(gain, "gain")
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
        self.factor = checks.pair(factor, "factor", minimum=1)

    def extra_repr(self) -> str:
        return f"factor={self.factor}, {super().extra_repr()}"


class Upsample2d(_ByFactor):
    """Enlarge with a filter: :func:`posgan_fast.functional.upsample2d`.

    Args:
        factor: of enlarging, int or [x, y].
        resample_filter: of :func:`posgan_fast.functional.setup_filter`.
        gain: multiplies the result.

    State: ``resample_filter`` [fh, fw] or [taps], float32, sum 1.
    """

    _foreign = UPSAMPLE2D

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] to [N, C, H * factor, W * factor] for a filter of at least ``factor`` taps, in the dtype of
        ``x``."""
        return PF.upsample2d(x, self.resample_filter, self.factor, gain=self.gain)


class Downsample2d(_ByFactor):
    """Shrink with a filter: :func:`posgan_fast.functional.downsample2d`.

    Args:
        factor: of shrinking, int or [x, y].
        resample_filter: of :func:`posgan_fast.functional.setup_filter`.
        gain: multiplies the result.

    State: ``resample_filter`` [fh, fw] or [taps], float32, sum 1.
    """

    _foreign = DOWNSAMPLE2D

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] to [N, C, H / factor, W / factor], whose sides are rounded, in the dtype of ``x``."""
        return PF.downsample2d(x, self.resample_filter, self.factor, gain=self.gain)


class Blur2d(_Resample):
    """Filter without resampling: :func:`posgan_fast.functional.filter2d`.

    Args:
        resample_filter: of :func:`posgan_fast.functional.setup_filter`.
        padding: pixels beyond those that keep the size, negative ones cropped: int, [x, y] or
            [x_before, x_after, y_before, y_after].
        gain: multiplies the result.

    State: ``resample_filter`` [fh, fw] or [taps], float32, sum 1.
    """

    _foreign = BLUR2D

    def __init__(
        self,
        resample_filter: Any = TAPS,
        *,
        padding: int | Sequence[int] = 0,
        gain: float = 1.0,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(resample_filter, gain, device)
        self.padding = checks.padding(padding)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N, C, H, W] to [N, C, H + top + bottom, W + left + right] of ``padding``, in the dtype of ``x``."""
        return PF.filter2d(x, self.resample_filter, self.padding, gain=self.gain)

    def extra_repr(self) -> str:
        return f"padding={self.padding}, {super().extra_repr()}"


def filter_buffer(resample_filter: Any, resamples: bool, device: torch.device | str | None) -> torch.Tensor | None:
    """The filter of a layer that may resample; None: no buffer, or the identity where the layer resamples."""
    if resample_filter is None and not resamples:
        return None
    return PF.setup_filter(resample_filter, device)
