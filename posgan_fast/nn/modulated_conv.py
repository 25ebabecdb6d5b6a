"""The modulated convolution as a layer, and the styles that layers compute from latents."""

from __future__ import annotations

import math
from typing import Any

import torch

from .. import functional as PF
from ..ops.common import checks
from .conv import equal_kernel, kernel_repr
from .foreign import Convertible
from .foreign_style import MODULATED_CONV2D
from .linear import EqualLinear
from .resample import TAPS, filter_buffer


class ModulatedConv2d(Convertible):
    """A modulated convolution; noise, bias and activation are arguments of the call.

    Args:
        in_channels, out_channels, kernel_size: I, O, k.
        up, down: factors of resampling with the filter; at most one differs from 1.
        padding: pixels on every side; None: k // 2.
        demodulate: True normalises the output; False multiplies the styles by 1 / sqrt(I * k * k).
        w_dim: size of the latent, from which an affine layer computes the styles; None: the call brings the styles.
        eps: constant under the root of the demodulation.
        resample_filter: taps, as :func:`posgan_fast.functional.setup_filter` takes them; None: no buffer in a layer
            that does not resample.

    State: ``weight`` [O, I, k, k], N(0, 1) at first; ``resample_filter`` [4, 4], float32, sum 1, also in a layer that
    does not resample; with ``w_dim`` also ``affine.weight`` [I, w_dim] and ``affine.bias`` [I], 1 at first.

    Example:
        >>> ModulatedConv2d(64, 64, up=2)(torch.randn(2, 64, 16, 16), styles=torch.randn(2, 64)).shape
        torch.Size([2, 64, 32, 32])
    """

    _foreign = MODULATED_CONV2D
    resample_filter: torch.Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        up: int = 1,
        down: int = 1,
        padding: int | None = None,
        demodulate: bool = True,
        w_dim: int | None = None,
        eps: float = 1e-8,
        resample_filter: Any = TAPS,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(equal_kernel(in_channels, out_channels, kernel_size, device, dtype))
        self.up, self.down = checks.factors(up, down)
        self.padding = self.weight.shape[2] // 2 if padding is None else checks.integer(padding, "padding", minimum=0)
        self.demodulate = checks.flag(demodulate, "demodulate")
        self.style_gain = 1.0 if demodulate else 1 / math.sqrt(self.weight[0].numel())
        self.eps = checks.real(eps, "eps", minimum=0)
        self.register_buffer("resample_filter", filter_buffer(resample_filter, self.up * self.down > 1, device))
        self.affine: EqualLinear | None = None
        if w_dim is not None:
            w_dim = checks.integer(w_dim, "w_dim", minimum=1)
            self.affine = EqualLinear(w_dim, in_channels, bias_init=1, device=device, dtype=dtype)

    def forward(
        self,
        x: torch.Tensor,
        styles: torch.Tensor,
        *,
        pad_map: torch.Tensor | None = None,
        noise: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
        act: str = "linear",
        gain: float | None = None,
        clamp: float | None = None,
    ) -> torch.Tensor:
        """Convolve ``x`` [N, I, H, W] to [N, O, H', W'].

        Args:
            x: features.
            styles: [N, I], or in a layer with ``w_dim`` the latent [N, w_dim].
            pad_map, noise, bias, act, gain, clamp: arguments of :func:`posgan_fast.functional.modulated_conv2d`.
        """
        checks.features(x, "x", self.weight.shape[1], self.weight)
        if self.affine is not None:
            styles = styles_of(self.affine, styles, "styles", x)
        return PF.modulated_conv2d(
            x,
            self.weight,
            styles if self.demodulate else styles * self.style_gain,
            up=self.up,
            down=self.down,
            padding=self.padding,
            pad_map=pad_map,
            resample_filter=self.resample_filter,
            demodulate=self.demodulate,
            flip_weight=self.up == 1,
            noise=noise,
            bias=bias,
            act=act,
            gain=gain,
            clamp=clamp,
            eps=self.eps,
        )

    @property
    def kept_weights(self) -> list[torch.Tensor]:
        """The weights that :func:`posgan_fast.nn.prepack` prepares."""
        return [self.weight]

    def extra_repr(self) -> str:
        return (
            f"{kernel_repr(self.weight)}, up={self.up}, down={self.down}, padding={self.padding},"
            f" demodulate={self.demodulate}"
        )


def styles_of(affine: EqualLinear, w: Any, name: str, x: torch.Tensor, gain: float = 1.0) -> torch.Tensor:
    """Compute the styles [N, I], times ``gain``, from the latent ``w`` [N, w_dim] of the features ``x``."""
    checks.tensor(w, name, shape=(x.shape[0], affine.in_features))
    checks.same_device(w, name, x)
    return affine(w, gain)
