"""Layers that resample with a fixed filter."""

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
    """Upsample with a filter: :func:`posgan_fast.functional.upsample2d`.

    Args:
        factor: upsampling factor, int or [x, y].
        resample_filter: taps, as :func:`posgan_fast.functional.setup_filter` takes them.
        gain: multiplies the result.

    State: ``resample_filter`` [fh, fw] or [taps], float32, sum 1.

    Example:
        >>> Upsample2d()(torch.randn(1, 3, 8, 8)).shape
        torch.Size([1, 3, 16, 16])
    """

    _foreign = UPSAMPLE2D

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [N, C, H, W] to [N, C, H * factor, W * factor], for a filter of at least ``factor`` taps; dtypes stay."""
        return PF.upsample2d(x, self.resample_filter, self.factor, gain=self.gain)


class Downsample2d(_ByFactor):
    """Downsample with a filter: :func:`posgan_fast.functional.downsample2d`.

    Args:
        factor: downsampling factor, int or [x, y].
        resample_filter: taps, as :func:`posgan_fast.functional.setup_filter` takes them.
        gain: multiplies the result.

    State: ``resample_filter`` [fh, fw] or [taps], float32, sum 1.

    Example:
        >>> Downsample2d()(torch.randn(1, 3, 8, 8)).shape
        torch.Size([1, 3, 4, 4])
    """

    _foreign = DOWNSAMPLE2D

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [N, C, H, W] to [N, C, H / factor, W / factor], sides rounded; dtypes stay."""
        return PF.downsample2d(x, self.resample_filter, self.factor, gain=self.gain)


class Blur2d(_Resample):
    """Filter without resampling: :func:`posgan_fast.functional.filter2d`.

    Args:
        resample_filter: taps, as :func:`posgan_fast.functional.setup_filter` takes them.
        padding: pixels to add to the padding that keeps the size, negative to crop: int, [x, y] or
            [x_before, x_after, y_before, y_after].
        gain: multiplies the result.

    State: ``resample_filter`` [fh, fw] or [taps], float32, sum 1.

    Example:
        >>> Blur2d([1, 3, 3, 1])(torch.randn(1, 3, 8, 8)).shape
        torch.Size([1, 3, 8, 8])
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
        """Map [N, C, H, W] to [N, C, H + top + bottom, W + left + right] with ``padding``; dtypes stay."""
        return PF.filter2d(x, self.resample_filter, self.padding, gain=self.gain)

    def extra_repr(self) -> str:
        return f"padding={self.padding}, {super().extra_repr()}"


def filter_buffer(resample_filter: Any, resamples: bool, device: torch.device | str | None) -> torch.Tensor | None:
    """Prepare the filter of a layer; None becomes the identity where the layer resamples, else no buffer."""
    if resample_filter is None and not resamples:
        return None
    return PF.setup_filter(resample_filter, device)
