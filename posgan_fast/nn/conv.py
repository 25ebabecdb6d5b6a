"""Convolutions: torch's own layer with an activation, and one with an equalised learning rate and resampling."""

from __future__ import annotations

import math
from typing import Any

import torch

from .. import functional as PF
from ..ops.bias_act import ACTIVATIONS
from ..ops.common import checks
from ..ops.modulated_conv2d import conv2d_resample
from .activation import bias_parameter, epilogue_arguments
from .foreign import Convertible
from .foreign_conv import EQUAL_CONV2D
from .resample import TAPS, filter_buffer


class Conv2d(torch.nn.Conv2d):
    """A torch.nn.Conv2d with an activation: ``clamp(gain * act(conv(pad(x), weight) + bias))``.

    3x3 kernels with stride 1 or 2 run by Winograd's algorithm where it is faster; see
    :func:`posgan_fast.functional.conv2d`. Layers with groups, dilation, padding that differs between the sides, or
    another mode than "zeros" and "reflect" run torch's convolution.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device, dtype: as
            in torch.nn.Conv2d.
        act, alpha, gain, clamp: arguments of :func:`posgan_fast.functional.bias_act`.

    State: ``weight`` [O, I / groups, kh, kw] and ``bias`` [O], as in torch.nn.Conv2d.

    Example:
        >>> layer = Conv2d(16, 32, 3, padding=1, act="lrelu")
        >>> layer(torch.randn(1, 16, 32, 32)).shape
        torch.Size([1, 32, 32, 32])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int],
        stride: int | tuple[int, int] = 1,
        padding: int | tuple[int, int] | str = 0,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        act: str = "linear",
        alpha: float | None = None,
        gain: float | None = None,
        clamp: float | None = None,
    ) -> None:
        super().__init__(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            bias,
            padding_mode,  # type: ignore[arg-type]
            device,
            dtype,
        )
        self.act = checks.choice(act, "act", tuple(ACTIVATIONS))
        self.alpha = None if alpha is None else checks.real(alpha, "alpha")
        self.gain = None if gain is None else checks.real(gain, "gain")
        self.clamp = checks.bound(clamp, "clamp")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Convolve [N, I, H, W] to [N, O, H', W'].

        Raises:
            TypeError, ValueError: as :func:`posgan_fast.functional.conv2d`.
        """
        checks.features(x, "x", self.in_channels, self.weight)
        activation: dict[str, Any] = dict(act=self.act, alpha=self.alpha, gain=self.gain, clamp=self.clamp)
        (stride, _), padding = self.stride, self.padding
        simple = self.groups == 1 and self.dilation == (1, 1) and self.stride == (stride, stride)
        if simple and padding in ((padding[0],) * 2, "valid") and self.padding_mode in ("zeros", "reflect"):
            pixels = 0 if padding == "valid" else padding[0]
            arguments: dict[str, Any] = dict(stride=stride, padding=pixels, padding_mode=self.padding_mode)
            return PF.conv2d(x, self.weight, self.bias, **arguments, **activation)
        return PF.bias_act(self._conv_forward(x, self.weight, None), self.bias, **activation)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, act={self.act!r}, alpha={self.alpha}, gain={self.gain}, clamp={self.clamp}"

    @property
    def kept_weights(self) -> list[torch.Tensor]:
        """The weights that :func:`posgan_fast.nn.prepack` prepares."""
        return [self.weight]


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
        epilogue = epilogue_arguments(self.act, self.clamp, gain)
        f, padding, stride = self.resample_filter, self.padding, self.stride
        if self.up > 1:
            w = (self.weight * self.weight_gain).to(x.dtype)
            w = w if w.shape[2] == 1 else w.transpose(0, 1)
            y, (up, _, pad, _, filter_gain) = conv2d_resample.upsample_conv2d(x, w, self.up, padding, None, f, None)
            return PF.epilogue2d(y, f, b=self.bias, up=up, padding=pad, filter_gain=filter_gain, **epilogue)
        if self.down > 1:
            x, stride = conv2d_resample.filtered(x, self.weight, None, self.down, padding, f, None)
            padding = 0
        return PF.conv2d(x, self.weight, self.bias, scale=self.weight_gain, stride=stride, padding=padding, **epilogue)

    @property
    def kept_weights(self) -> list[torch.Tensor]:
        """The weights that :func:`posgan_fast.nn.prepack` prepares."""
        return [] if self.up > 1 else [self.weight]  # that of a transposed convolution is made anew for each call

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
