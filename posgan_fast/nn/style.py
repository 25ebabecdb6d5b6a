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
from .activation import epilogue_arguments
from .conv import equal_kernel, kernel_repr
from .foreign import Convertible
from .foreign_style import STYLE_CONV, TO_RGB
from .linear import EqualLinear
from .modulated_conv import styles_of
from .resample import TAPS, filter_buffer
from .unchanged import remembered

NOISE_MODES = ("const", "random", "none")


@remembered
class StyleConv(Convertible):
    """A whole layer of the generator: affine, modulated convolution, noise, bias, activation.

    Args:
        in_channels, out_channels, kernel_size: I, O, k.
        w_dim: size of the latent.
        resolution: side or [height, width] of ``noise_const``: the size of the result in training. None: the layer
            stores no noise, so that a call brings noise or draws it.
        up: upsampling factor.
        padding: pixels on every side; None: k // 2.
        up_after_conv: None upsamples with a transposed convolution and the filter, as NVlabs does. True and False, as
            in MS-PIE, interpolate bilinearly with ``align_corners=True``, after or ahead of the convolution.
        interp_pad: pixels that the interpolation adds to ``up`` times the size, for convolutions without padding.
        use_noise: False leaves the noise out.
        noise_mode: mode of calls that name none: "const", "random" or "none"; None: "random" in training mode, "const"
            in evaluation mode.
        act, clamp: arguments of :class:`posgan_fast.nn.BiasAct`; ``act`` has its default gain.
        eps: constant under the root of the demodulation.
        resample_filter: taps, as :func:`posgan_fast.functional.setup_filter` takes them; None: no buffer in a layer
            that does not upsample with the filter.

    State: ``weight`` [O, I, k, k], N(0, 1) at first; ``bias`` [O]; ``noise_strength`` [], 0 at first; ``noise_const``
    [height, width]; ``resample_filter`` [4, 4], float32, sum 1, also in a layer that does not upsample;
    ``affine.weight`` [I, w_dim] and ``affine.bias`` [I], 1 at first.

    Example:
        >>> layer = StyleConv(64, 32, w_dim=512, resolution=32, up=2)
        >>> layer(torch.randn(1, 64, 16, 16), torch.randn(1, 512), noise_mode="const").shape
        torch.Size([1, 32, 32, 32])
    """

    _foreign = STYLE_CONV
    style_gain = 1.0
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
        self._register_noise(checks.flag(use_noise, "use_noise"), resolution, device, dtype)
        self.bias = torch.nn.Parameter(torch.zeros(out_channels, device=device, dtype=dtype))
        self.affine = EqualLinear(w_dim, in_channels, bias_init=1, device=device, dtype=dtype)

    def forward(
        self,
        x: torch.Tensor,
        w: torch.Tensor,
        *,
        styles: torch.Tensor | None = None,
        pad_map: torch.Tensor | None = None,
        noise_mode: str | None = None,
        noise: torch.Tensor | None = None,
        gain: float = 1.0,
    ) -> torch.Tensor:
        """Convolve ``x`` [N, I, H, W] to [N, O, H', W'].

        Args:
            x: features.
            w: latent [N, w_dim].
            styles: [N, I], computed from ``w`` elsewhere (:mod:`posgan_fast.nn.joint_styles`); None: the layer does it.
            pad_map: map or ring that replaces the zero padding, as in
                :func:`posgan_fast.functional.modulated_conv2d`.
            noise_mode: "const" takes ``noise_const``, repeated from the top left where the result is larger than in
                training; "random" draws noise for each sample; "none" adds none. None: the mode of the layer.
            noise: [H', W'], [1, 1, H', W'] or [N, 1, H', W'] to use instead, multiplied by ``noise_strength`` too.
            gain: factor of the result and of the clamp.
        """
        given = self.arguments(x, w, styles, pad_map, noise_mode, noise, gain)
        if not self.up_after_conv:
            return PF.modulated_conv2d(**given)
        convolution, epilogue = (
            {name: given[name] for name in names}
            for names in (("x", "weight", "styles", "padding", "pad_map", "eps"), ("act", "gain", "clamp"))
        )
        noise = None if given["noise"] is None else given["noise"] * given["noise_strength"]
        y = self._interpolate(PF.modulated_conv2d(**convolution))
        return PF.epilogue2d(y, noise=noise, b=self.bias, **epilogue)

    def arguments(
        self,
        x: torch.Tensor,
        w: torch.Tensor,
        styles: torch.Tensor | None = None,
        pad_map: torch.Tensor | None = None,
        noise_mode: str | None = None,
        noise: torch.Tensor | None = None,
        gain: float = 1.0,
    ) -> dict[str, Any]:
        """Return all arguments with which :func:`posgan_fast.functional.modulated_conv2d` computes this layer, for
        those of :meth:`forward`. They are not enough if ``up_after_conv`` is True."""
        checks.features(x, "x", self.weight.shape[1], self.weight)
        noise = self._noise(x, noise_mode, noise)
        up = self.up
        if self.up_after_conv is False:
            x, up = self._interpolate(x), 1
        return dict(
            x=x,
            weight=self.weight,
            styles=styles_of(self.affine, w, "w", x) if styles is None else styles,
            up=up,
            down=1,
            padding=self.padding,
            pad_map=pad_map,
            resample_filter=self.resample_filter,
            demodulate=True,
            flip_weight=up == 1,
            noise=noise,
            noise_strength=None if noise is None else self.noise_strength,
            bias=self.bias,
            alpha=None,
            eps=self.eps,
            backend=None,
            **epilogue_arguments(self.act, self.clamp, gain),
        )

    def out_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the result for an input of this size."""
        added = 2 * self.padding - self.weight.shape[2] + 1  # rows and columns that the convolution adds
        if self.up_after_conv:
            return (height + added) * self.up + self.interp_pad, (width + added) * self.up + self.interp_pad
        return height * self.up + self.interp_pad + added, width * self.up + self.interp_pad + added

    def pad_map_size(self, height: int, width: int) -> tuple[int, int, int] | None:
        """Channels and least height and width of ``pad_map`` for an input of this size; None: the layer takes none."""
        o, i, k, _ = self.weight.shape
        filters = self.up > 1 and self.up_after_conv is None
        if self.padding != 1 or (filters and k == 1):
            return None
        if self.up_after_conv is False:
            height, width = height * self.up + self.interp_pad, width * self.up + self.interp_pad
        up = self.up if filters else 1
        h, w = conv2d_resample.surrounded_size((height, width), self.weight, up, self.padding, self.resample_filter)
        return o if filters else i, h + 2, w + 2

    @property
    def kept_weights(self) -> list[torch.Tensor]:
        """The weights that :func:`posgan_fast.nn.prepack` prepares."""
        return [self.weight]

    def extra_repr(self) -> str:
        return (
            f"{kernel_repr(self.weight)}, up={self.up}, up_after_conv={self.up_after_conv}, padding={self.padding},"
            f" act={self.act!r}, clamp={self.clamp}"
        )

    def _register_noise(self, use_noise: bool, resolution: Any, device: Any, dtype: Any) -> None:
        self.noise_strength: torch.nn.Parameter | None = None
        if use_noise:
            self.noise_strength = torch.nn.Parameter(torch.zeros([], device=device, dtype=dtype))
        if use_noise and resolution is not None:
            size = checks.pair(resolution, "resolution", minimum=1, axes="[height, width]")
            self.register_buffer("noise_const", torch.randn(size, device=device, dtype=dtype))

    def _interpolate(self, x: torch.Tensor) -> torch.Tensor:
        size = [side * self.up + self.interp_pad for side in x.shape[2:]]
        return F.interpolate(x, size, mode="bilinear", align_corners=True)

    def _noise(self, x: torch.Tensor, mode: str | None, noise: torch.Tensor | None) -> torch.Tensor | None:
        """Return noise [N or 1, 1, H', W'], or None."""
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
        return noise


@remembered
class ToRGB(Convertible):
    """Turn features into an image: a modulated convolution without demodulation, with styles / sqrt(I * k * k).

    Args:
        in_channels, out_channels, kernel_size: I, O, k.
        w_dim: size of the latent.
        clamp: bound of the result before ``skip``, the image of lower resolution, is added.
        resample_filter: taps to upsample ``skip`` with, as :func:`posgan_fast.functional.setup_filter` takes them;
            None: the layer takes no ``skip``.

    State: ``weight`` [O, I, k, k], N(0, 1) at first; ``bias`` [O]; ``affine.weight`` [I, w_dim] and ``affine.bias``
    [I], 1 at first. The filter is not part of the state.

    Example:
        >>> to_rgb = ToRGB(64, 3, w_dim=512)
        >>> to_rgb(torch.randn(1, 64, 16, 16), torch.randn(1, 512), skip=torch.zeros(1, 3, 8, 8)).shape
        torch.Size([1, 3, 16, 16])
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

    def forward(
        self,
        x: torch.Tensor,
        w: torch.Tensor,
        skip: torch.Tensor | None = None,
        *,
        styles: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Turn ``x`` [N, I, H, W] into an image [N, O, H, W] in the dtype of ``x``, or of autocast.

        Args:
            x: features.
            w: latent [N, w_dim].
            skip: image [N, O, H / 2, W / 2] to upsample and add; the result then has the wider dtype of the two.
            styles: [N, I], computed from ``w`` elsewhere (:mod:`posgan_fast.nn.joint_styles`); None: the layer does it.
        """
        checks.features(x, "x", self.weight.shape[1], self.weight)
        styles = styles_of(self.affine, w, "w", x, self.style_gain) if styles is None else styles
        if skip is not None:
            self._check_skip(skip, x)
        y = PF.modulated_conv2d(
            x,
            self.weight,
            styles,
            padding=self.weight.shape[2] // 2,
            demodulate=False,
            bias=self.bias,
            clamp=self.clamp,
        )
        return y if skip is None else PF.upsample2d(skip, self.resample_filter) + y

    def extra_repr(self) -> str:
        return f"{kernel_repr(self.weight)}, clamp={self.clamp}"

    def _check_skip(self, skip: torch.Tensor, x: torch.Tensor) -> None:
        if self.resample_filter is None:
            raise ValueError("skip: expected None for a layer without a filter, got a tensor")
        n, _, h, w = x.shape
        o, k = self.weight.shape[0], self.weight.shape[2]
        h, w = h + (k + 1) % 2, w + (k + 1) % 2  # an even kernel adds a row and a column
        if h % 2 or w % 2:
            raise ValueError(f"skip: expected None for a result of the odd size {h} x {w}, got a tensor")
        checks.tensor(skip, "skip", shape=(n, o, h // 2, w // 2))
        checks.same_device(skip, "skip", x)
