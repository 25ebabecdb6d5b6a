"""The convolution with an equalised learning rate, with or without resampling."""

from __future__ import annotations

import math
from typing import Any

import torch

from .. import functional as PF
from ..ops.bias_act import ACTIVATIONS
from ..ops.common import checks
from ..ops.modulated_conv2d import conv2d_resample, onednn
from .activation import bias_parameter, epilogue_arguments
from .foreign import Convertible
from .foreign_conv import EQUAL_CONV2D
from .resample import TAPS, filter_buffer


class EqualConv2d(Convertible):
    """``clamp(gain * act(conv(x, weight / sqrt(I * k * k)) + bias))``, resampled by ``up`` or ``down`` with a filter.

    ``down`` filters, then convolves with that stride. ``up`` convolves transposed, then filters with gain ``up^2``; the
    kernel is not flipped, so this is a true convolution of the zero-stuffed image. ``stride`` convolves with that
    stride and no filter.

    Args:
        in_channels, out_channels, kernel_size: I, O, k.
        bias, act, clamp: arguments of :class:`posgan_fast.nn.BiasAct`; ``act`` has its default gain.
        up, down, stride: factors; at most one differs from 1.
        padding: pixels of the upsampled image to add on every side, besides the padding of the filter; None: k // 2.
        resample_filter: taps, as :func:`posgan_fast.functional.setup_filter` takes them; None: no buffer in a layer
            that does not resample.

    State: ``weight`` [O, I, k, k], N(0, 1) at first; ``bias`` [O]; ``resample_filter`` [4, 4], float32, sum 1, also in
    a layer that does not resample.

    Example:
        >>> EqualConv2d(64, 128, down=2, act="lrelu")(torch.randn(1, 64, 32, 32)).shape
        torch.Size([1, 128, 16, 16])
    """

    _foreign = EQUAL_CONV2D
    resample_filter: torch.Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        bias: bool = True,
        act: str = "linear",
        up: int = 1,
        down: int = 1,
        stride: int = 1,
        padding: int | None = None,
        clamp: float | None = None,
        resample_filter: Any = TAPS,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.up, self.down = checks.factors(up, down)
        self.stride = checks.integer(stride, "stride", minimum=1)
        if self.stride > 1 and self.up * self.down > 1:
            raise ValueError(f"stride: expected 1 beside up={up} and down={down}, got {stride}")
        self.act = checks.choice(act, "act", tuple(ACTIVATIONS))
        self.clamp = checks.bound(clamp, "clamp")
        self.weight = torch.nn.Parameter(equal_kernel(in_channels, out_channels, kernel_size, device, dtype))
        self.padding = self.weight.shape[2] // 2 if padding is None else checks.integer(padding, "padding", minimum=0)
        self.weight_gain = 1 / math.sqrt(self.weight[0].numel())
        self.bias = bias_parameter(bias, out_channels, 0.0, device, dtype)
        self.register_buffer("resample_filter", filter_buffer(resample_filter, self.up * self.down > 1, device))

    def forward(self, x: torch.Tensor, gain: float = 1.0) -> torch.Tensor:
        """Convolve [N, I, H, W] to [N, O, H', W']; H' = H * up / (down * stride) for odd k and default padding.

        Args:
            x: features.
            gain: factor of the result and of the clamp.

        Raises:
            ValueError: the padded image is smaller than the kernel.
        """
        checks.features(x, "x", self.weight.shape[1], self.weight)
        height, width = conv2d_resample.out_size(x, self.weight, self.up, self.down, self.padding, self.resample_filter)
        if height < 1 or width < 1:
            raise ValueError(f"x: expected at least the size of the kernel, got shape {tuple(x.shape)} for {self}")
        weight = (self.weight * self.weight_gain).to(x.dtype)
        epilogue = epilogue_arguments(self.act, self.clamp, gain)
        f, p = self.resample_filter, self.padding
        if self.up > 1:
            w = weight if weight.shape[2] == 1 else weight.transpose(0, 1)
            y, (up, _, padding, _, filter_gain) = conv2d_resample.upsample_conv2d(x, w, self.up, p, None, f, None)
            return PF.epilogue2d(y, f, b=self.bias, up=up, padding=padding, filter_gain=filter_gain, **epilogue)
        if self.stride > 1:
            y = onednn.conv2d(x, weight, stride=self.stride, padding=(p, p))
        else:
            y = conv2d_resample.downsample_conv2d(x, weight, None, self.down, p, None, f, None)
        return PF.epilogue2d(y, b=self.bias, **epilogue)

    def extra_repr(self) -> str:
        return (
            f"{kernel_repr(self.weight)}, up={self.up}, down={self.down}, stride={self.stride},"
            f" padding={self.padding}, act={self.act!r}, clamp={self.clamp}, bias={self.bias is not None}"
        )


def kernel_repr(weight: torch.Tensor) -> str:
    """Describe a weight [O, I, k, k] by the arguments of its layer."""
    o, i, k, _ = weight.shape
    return f"{i}, {o}, kernel_size={k}"


def equal_kernel(in_channels, out_channels, kernel_size, device, dtype):
    """Check the sizes and make a weight [O, I, k, k] of N(0, 1)."""
    named = ((out_channels, "out_channels"), (in_channels, "in_channels"), (kernel_size, "kernel_size"))
    o, i, k = (checks.integer(value, name, minimum=1) for value, name in named)
    checks.device(device)
    checks.parameter_dtype(dtype)
    return torch.randn(o, i, k, k, device=device, dtype=dtype)
