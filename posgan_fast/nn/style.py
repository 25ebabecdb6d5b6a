"""The layers of a style-based generator."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from .. import functional as PF
from ..ops.bias_act import ACTIVATIONS
from ..ops.common import checks
from ..ops.modulated_conv2d import conv2d_resample
from .activation import finish
from .conv import equal_kernel
from .foreign import Convertible
from .foreign_style import MODULATED_CONV2D, STYLE_CONV, TO_RGB
from .linear import EqualLinear
from .resample import TAPS, filter_buffer

NOISE_MODES = ("const", "random", "none")


class ModulatedConv2d(Convertible):
    """The modulated convolution alone: what follows it is up to the call.

    Args:
        in_channels, out_channels, kernel_size: I, O, k.
        up, down: factors of resampling with the filter; at most one differs from 1.
        padding: None: k // 2.
        demodulate: normalise the output; else the styles carry 1 / sqrt(I * k * k) as well.
        w_dim: of the latent that an affine layer makes the styles of; None: the styles come from outside.
        eps: under the root of the normalisation.
        resample_filter: of :func:`posgan_fast.functional.setup_filter`; None: no buffer where nothing is
            resampled.

    State: ``weight`` [O, I, k, k], N(0, 1) at first; ``resample_filter`` [4, 4], float32, sum 1, whether used or not;
    with ``w_dim`` also ``affine.weight`` [I, w_dim] and ``affine.bias`` [I], 1 at first.
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
        """``x`` [N, I, H, W] and ``styles`` [N, I], or the latent [N, w_dim] of a layer with ``w_dim``, to
        [N, O, H', W']; :func:`posgan_fast.functional.modulated_conv2d` has the rest."""
        checks.features(x, "x", self.weight.shape[1], self.weight)
        if self.affine is not None:
            checks.tensor(styles, "styles", shape=(x.shape[0], self.affine.in_features))
            checks.same_device(styles, "styles", x)
            styles = self.affine(styles)
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

    def extra_repr(self) -> str:
        o, i, k, _ = self.weight.shape
        return (
            f"{i}, {o}, kernel_size={k}, up={self.up}, down={self.down}, padding={self.padding},"
            f" demodulate={self.demodulate}"
        )


class StyleConv(Convertible):
    """A whole layer of the generator: affine, modulated convolution, noise, bias, activation.

    Enlarging is NVlabs' transposed convolution and filter, or, where ``up_after_conv`` is not None, bilinear
    interpolation with kept corners after (True) or ahead of (False) the convolution, as in MS-PIE. Noise joins the
    result at its final size.

    Args:
        in_channels, out_channels, kernel_size: I, O, k.
        w_dim: of the latent.
        resolution: side or [height, width] of ``noise_const``: the size of the result in training. None: the layer
            keeps no noise, which then comes with the call or is drawn anew.
        up: factor of enlarging.
        padding: None: k // 2.
        up_after_conv: None: enlarge with the filter.
        interp_pad: pixels that the interpolation adds beyond ``up`` times the size, for convolutions without padding.
        use_noise: False leaves the noise out.
        noise_mode: where a call leaves the mode to the layer: "const", "random" or "none"; None: "random" in training,
            else "const".
        act, clamp: as in :class:`posgan_fast.nn.BiasAct`; the gain of ``act`` is its own.
        eps: under the root of the normalisation.
        resample_filter: of :func:`posgan_fast.functional.setup_filter`; None: no buffer where nothing is
            enlarged with it.

    State: ``weight`` [O, I, k, k], N(0, 1) at first; ``bias`` [O]; ``noise_strength`` [], 0 at first; ``noise_const``
    [height, width]; ``resample_filter`` [4, 4], float32, sum 1, whether used or not; ``affine.weight`` [I, w_dim] and
    ``affine.bias`` [I], 1 at first.
    """

    _foreign = STYLE_CONV
    resample_filter: torch.Tensor | None
    noise_const: torch.Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        resolution: int | Sequence[int] | None = None,
        *,
        kernel_size: int = 3,
        up: int = 1,
        padding: int | None = None,
        up_after_conv: bool | None = None,
        interp_pad: int = 0,
        use_noise: bool = True,
        noise_mode: str | None = None,
        act: str = "lrelu",
        clamp: float | None = None,
        eps: float = 1e-8,
        resample_filter: Any = TAPS,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        w_dim = checks.integer(w_dim, "w_dim", minimum=1)
        self.weight = torch.nn.Parameter(equal_kernel(in_channels, out_channels, kernel_size, device, dtype))
        self.up = checks.integer(up, "up", minimum=1)
        self.padding = self.weight.shape[2] // 2 if padding is None else checks.integer(padding, "padding", minimum=0)
        self.up_after_conv = None if up_after_conv is None else checks.flag(up_after_conv, "up_after_conv")
        self.interp_pad = checks.integer(interp_pad, "interp_pad", minimum=0)
        if interp_pad and up_after_conv is None:
            raise ValueError(f"interp_pad: expected 0 unless up_after_conv is True or False, got {interp_pad}")
        self.act = checks.choice(act, "act", tuple(ACTIVATIONS))
        self.clamp = checks.bound(clamp, "clamp")
        self.eps = checks.real(eps, "eps", minimum=0)
        filters = self.up > 1 and self.up_after_conv is None
        self.register_buffer("resample_filter", filter_buffer(resample_filter, filters, device))
        self.noise_mode = None if noise_mode is None else checks.choice(noise_mode, "noise_mode", NOISE_MODES)
        self.noise_strength: torch.nn.Parameter | None = None
        if checks.flag(use_noise, "use_noise"):
            self.noise_strength = torch.nn.Parameter(torch.zeros([], device=device, dtype=dtype))
        if use_noise and resolution is not None:
            size = checks.pair(resolution, "resolution", minimum=1, axes="[height, width]")
            self.register_buffer("noise_const", torch.randn(size, device=device, dtype=dtype))
        self.bias = torch.nn.Parameter(torch.zeros(out_channels, device=device, dtype=dtype))
        self.affine = EqualLinear(w_dim, in_channels, bias_init=1, device=device, dtype=dtype)

    def forward(
        self,
        x: torch.Tensor,
        w: torch.Tensor,
        *,
        pad_map: torch.Tensor | None = None,
        noise_mode: str | None = None,
        noise: torch.Tensor | None = None,
        gain: float = 1.0,
    ) -> torch.Tensor:
        """``x`` [N, I, H, W] and the latent ``w`` [N, w_dim] to [N, O, H', W'].

        Args:
            x, w: above.
            pad_map: replaces the zero padding, as in :func:`posgan_fast.functional.modulated_conv2d`.
            noise_mode: "const" takes ``noise_const``, continued periodically from the top left where the result is
                larger than in training; "random" draws anew for each sample; "none". None: the layer's own.
            noise: [H', W'], [1, 1, H', W'] or [N, 1, H', W'], in place of the mode's; ``noise_strength`` multiplies it.
            gain: multiplies the result and the clamp.
        """
        checks.features(x, "x", self.weight.shape[1], self.weight)
        checks.tensor(w, "w", shape=(x.shape[0], self.affine.in_features))
        checks.same_device(w, "w", x)
        noise = self._noise(x, noise_mode, noise)
        styles = self.affine(w)  # [N, I]
        end = finish(self.act, self.clamp, gain)
        if self.up_after_conv:
            y = PF.modulated_conv2d(x, self.weight, styles, padding=self.padding, pad_map=pad_map, eps=self.eps)
            return PF.epilogue2d(self._interpolate(y), noise=noise, b=self.bias, **end)
        up = self.up
        if self.up_after_conv is False:
            x, up = self._interpolate(x), 1
        return PF.modulated_conv2d(
            x,
            self.weight,
            styles,
            up=up,
            padding=self.padding,
            pad_map=pad_map,
            resample_filter=self.resample_filter,
            flip_weight=up == 1,
            noise=noise,
            bias=self.bias,
            eps=self.eps,
            **end,
        )

    def out_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the result for an input of this size."""
        shrink = 2 * self.padding - self.weight.shape[2] + 1
        if self.up_after_conv:
            return (height + shrink) * self.up + self.interp_pad, (width + shrink) * self.up + self.interp_pad
        return height * self.up + self.interp_pad + shrink, width * self.up + self.interp_pad + shrink

    def pad_map_size(self, height: int, width: int) -> tuple[int, int, int] | None:
        """Channels and least height and width of ``pad_map`` for an input of this size; None: the layer takes none."""
        o, i, k, _ = self.weight.shape
        enlarges = self.up > 1 and self.up_after_conv is None
        if self.padding != 1 or (enlarges and k == 1):
            return None
        if self.up_after_conv is False:
            height, width = height * self.up + self.interp_pad, width * self.up + self.interp_pad
        up = self.up if enlarges else 1
        h, w = conv2d_resample.surrounded_size((height, width), self.weight, up, self.padding, self.resample_filter)
        return o if enlarges else i, h + 2, w + 2

    def extra_repr(self) -> str:
        o, i, k, _ = self.weight.shape
        return (
            f"{i}, {o}, kernel_size={k}, up={self.up}, up_after_conv={self.up_after_conv}, padding={self.padding},"
            f" act={self.act!r}, clamp={self.clamp}"
        )

    def _interpolate(self, x: torch.Tensor) -> torch.Tensor:
        size = [side * self.up + self.interp_pad for side in x.shape[2:]]
        return F.interpolate(x, size, mode="bilinear", align_corners=True)

    def _noise(self, x: torch.Tensor, mode: str | None, noise: torch.Tensor | None) -> torch.Tensor | None:
        """Noise times its strength, [H', W'] or [N or 1, 1, H', W'], or None."""
        mode = self.noise_mode if mode is None else checks.choice(mode, "noise_mode", NOISE_MODES)
        if mode is None:
            mode = "random" if self.training else "const"
        strength = self.noise_strength
        if strength is None:
            if noise is not None:
                raise ValueError("noise: expected None for a layer without noise, got a tensor")
            return None
        if noise is None:
            if mode == "none":
                return None
            h, w = self.out_size(*x.shape[2:])
            if mode == "random":
                noise = torch.randn(x.shape[0], 1, h, w, device=x.device, dtype=strength.dtype)
            elif not hasattr(self, "noise_const"):
                raise ValueError(
                    "noise_mode: expected 'random', 'none' or a tensor as noise for a layer without resolution, which"
                    " keeps none, got 'const'"
                )
            else:
                rows, columns = self.noise_const.shape
                noise = self.noise_const
                if (rows, columns) != (h, w):
                    noise = noise.repeat(-(-h // rows), -(-w // columns))[:h, :w]
        if checks.tensor(noise, "noise").ndim == 2:
            noise = noise[None, None]
        return noise * strength


class ToRGB(Convertible):
    """Features to an image: a modulated convolution without demodulation, its styles divided by sqrt(I * k * k).

    Args:
        in_channels, out_channels, kernel_size: I, O, k.
        w_dim: of the latent.
        clamp: bound of the result, before the image of lower resolution joins it.
        resample_filter: of :func:`posgan_fast.functional.setup_filter`, for that image; None: the layer takes none.

    State: ``weight`` [O, I, k, k], N(0, 1) at first; ``bias`` [O]; ``affine.weight`` [I, w_dim] and ``affine.bias``
    [I], 1 at first. The filter is no part of it.
    """

    _foreign = TO_RGB
    resample_filter: torch.Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        w_dim: int,
        *,
        kernel_size: int = 1,
        clamp: float | None = None,
        resample_filter: Any = TAPS,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        w_dim = checks.integer(w_dim, "w_dim", minimum=1)
        self.weight = torch.nn.Parameter(equal_kernel(in_channels, out_channels, kernel_size, device, dtype))
        self.clamp = checks.bound(clamp, "clamp")
        self.style_gain = 1 / math.sqrt(self.weight[0].numel())
        self.bias = torch.nn.Parameter(torch.zeros(out_channels, device=device, dtype=dtype))
        self.affine = EqualLinear(w_dim, in_channels, bias_init=1, device=device, dtype=dtype)
        self.register_buffer("resample_filter", filter_buffer(resample_filter, False, device), persistent=False)

    def forward(self, x: torch.Tensor, w: torch.Tensor, skip: torch.Tensor | None = None) -> torch.Tensor:
        """``x`` [N, I, H, W] and the latent ``w`` [N, w_dim] to [N, O, H, W] in the dtype of ``x`` (of autocast).

        ``skip`` [N, O, H / 2, W / 2], the image of lower resolution, is enlarged and added; the result then has the
        wider dtype of the two.
        """
        checks.features(x, "x", self.weight.shape[1], self.weight)
        checks.tensor(w, "w", shape=(x.shape[0], self.affine.in_features))
        checks.same_device(w, "w", x)
        if skip is not None:
            self._check_skip(skip, x)
        y = PF.modulated_conv2d(
            x,
            self.weight,
            self.affine(w) * self.style_gain,
            padding=self.weight.shape[2] // 2,
            demodulate=False,
            bias=self.bias,
            clamp=self.clamp,
        )
        return y if skip is None else PF.upsample2d(skip, self.resample_filter) + y

    def extra_repr(self) -> str:
        o, i, k, _ = self.weight.shape
        return f"{i}, {o}, kernel_size={k}, clamp={self.clamp}"

    def _check_skip(self, skip: torch.Tensor, x: torch.Tensor) -> None:
        if self.resample_filter is None:
            raise ValueError("skip: expected None for a layer without a filter, got a tensor")
        n, _, h, w = x.shape
        o, k = self.weight.shape[0], self.weight.shape[2]
        h, w = h + (k + 1) % 2, w + (k + 1) % 2  # of the result
        if h % 2 or w % 2:
            raise ValueError(f"skip: expected None for a result of the odd size {h} x {w}, got a tensor")
        checks.tensor(skip, "skip", shape=(n, o, h // 2, w // 2))
        checks.same_device(skip, "skip", x)
