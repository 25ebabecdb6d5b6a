"""Progressive growing of GANs, also without padding and with a sinusoidal encoding of the positions.

Without padding the first feature map has 6 x 6 pixels, and bilinear interpolation with aligned corners to twice the
size plus 4 pixels precedes the two convolutions of each block, which take these pixels again. Table 3 of "Positional
Encoding as Spatial Inductive Bias in GANs" (CVPR 2021):

=====  =======================================================
a      ``PGGANGenerator(128)``
b      ``PGGANGenerator(128, no_pad=True)``
c      ``PGGANGenerator(128, no_pad=True, encode="spe")``
=====  =======================================================

The paper publishes no configurations of these; its general rule (section 4) gives the sizes. Source of the baseline:
"Progressive Growing of GANs for Improved Quality, Stability, and Variation" (ICLR 2018), in the form of mmgeneration,
whose names and shapes of state these networks have.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from .. import functional as PF
from .. import nn
from ..ops.common import checks, encodings
from ..ops.conv2d.convolution import convolve
from .dcgan import FIRST, check_image, check_side, enlarge
from .report import LoadReport
from .stylegan2_mapping import check_latent

_EPS = 1e-6


class Equalized(torch.nn.Module):
    """A weight that is scaled by ``gain / sqrt(fan_in)`` when it is used, and a bias of ``outputs`` numbers.

    State: ``weight_orig``, N(0, 1) at first, and ``bias``, zeros at first, unless ``outputs`` is 0.
    """

    bias: torch.Tensor

    def __init__(self, shape: Sequence[int], outputs: int, gain: float) -> None:
        super().__init__()
        self.weight_orig = torch.nn.Parameter(torch.randn(*shape))
        if outputs:
            self.bias = torch.nn.Parameter(torch.zeros(outputs))
        self.gain = gain / math.sqrt(self.weight_orig[0].numel())  # a transposed kernel counts its outputs, as released

    @property
    def weight(self) -> torch.Tensor:
        return self.weight_orig * self.gain


class Conv(torch.nn.Module):
    """A convolution with an equalised learning rate, leaky ReLU and, in generators, pixel normalisation.

    Args:
        up, down: True upsamples by 2 (nearest) ahead of the convolution, or averages 2 x 2 pixels after it. Either is
            one strided convolution with a 4x4 kernel, the sum of the shifted 3x3 kernel.
        norm: True normalises each pixel.

    State: ``conv.weight_orig`` [O, I, k, k], or [I, O, 3, 3] with ``up``, and ``conv.bias`` [O].
    """

    shifts: torch.Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        padding: int = 1,
        gain: float = math.sqrt(2),
        act: str = "lrelu",
        up: bool = False,
        down: bool = False,
        norm: bool = False,
    ) -> None:
        super().__init__()
        sides = (in_channels, out_channels) if up else (out_channels, in_channels)
        self.conv = Equalized((*sides, kernel_size, kernel_size), out_channels, gain)
        self.padding, self.act, self.up, self.down, self.norm = padding, act, up, down, norm
        if up or down:  # adds up the kernel and itself one row or column further
            shifts = torch.tensor([[1.0, 0, 0], [1, 1, 0], [0, 1, 1], [0, 0, 1]])
            self.register_buffer("shifts", shifts, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = self.conv.weight.to(x.dtype)
        if self.up or self.down:
            weight = self.shifts.to(weight.dtype) @ weight @ self.shifts.T.to(weight.dtype)  # [., ., 4, 4]
        if self.up:
            x = F.conv_transpose2d(x, weight, stride=2, padding=self.padding)
        else:
            x = convolve(x, weight / 4 if self.down else weight, stride=2 if self.down else 1, padding=self.padding)
        x = PF.bias_act_(x, self.conv.bias.to(x.dtype), act=self.act, gain=1)
        return pixel_norm(x) if self.norm else x


class NoiseToFeatures(torch.nn.Module):
    """Turn latents into the first feature map, [N, C, side, side].

    State: ``linear.weight_orig`` [C * side * side, z_dim], ``bias`` [1, C, 1, 1].
    """

    def __init__(self, z_dim: int, channels: int, side: int) -> None:
        super().__init__()
        self.shape = (channels, side, side)
        # The gain counts 16 pixels: without padding as with it, features have the same variance.
        self.linear = Equalized((channels * side * side, z_dim), 0, math.sqrt(2) / 4)
        self.bias = torch.nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        weight = self.linear.weight
        x = F.linear(pixel_norm(z.to(weight.dtype)), weight).reshape(-1, *self.shape)
        return pixel_norm(PF.bias_act(x, self.bias.flatten().to(x.dtype), act="lrelu", gain=1))


class PGGANGenerator(torch.nn.Module):
    """Make images from latents, of the full size or, while it grows, of a smaller one.

    Args:
        size: side of the images, a power of two >= 8.
        z_dim: size of the latent.
        base_channels, max_channels: min(2 * base_channels // r, max_channels) channels at side r.
        no_pad: True leaves the convolutions without padding.
        encode: "spe" adds a sinusoidal encoding to the first feature map.
        layout, div_half_dim: arguments of :func:`posgan_fast.functional.sinusoidal_encoding2d`.

    State: ``noise2feat.linear.weight_orig`` [C * 16, z_dim] (``no_pad``: C * 36), ``noise2feat.bias`` [1, C, 1, 1];
    ``conv_blocks.{i}.conv`` and ``torgb_layers.{i}.conv`` with ``weight_orig`` [O, I, k, k] (upsampling layers with
    padding: [I, O, k, k]) and ``bias`` [O].

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a wrong number, or an unknown choice.

    Example:
        >>> generator = PGGANGenerator(32, z_dim=16, max_channels=16)
        >>> generator(torch.randn(2, 16)).shape, generator(torch.randn(2, 16), size=16, transition=0.5).shape
        (torch.Size([2, 3, 32, 32]), torch.Size([2, 3, 16, 16]))
    """

    report: LoadReport

    def __init__(
        self,
        size: int,
        *,
        z_dim: int = 512,
        base_channels: int = 8192,
        max_channels: int = 512,
        no_pad: bool = False,
        encode: str | None = None,
        layout: str = "mmgen",
        div_half_dim: bool = False,
    ) -> None:
        super().__init__()
        self.size, _ = check_side(size, "size")
        self.z_dim = checks.integer(z_dim, "z_dim", minimum=1)
        self.no_pad = checks.flag(no_pad, "no_pad")
        channels = widths(self.size, base_channels, max_channels)
        self.encoding = None
        if encode is not None:
            checks.choice(encode, "encode", ("spe",))
            encodings.check_channels(channels[FIRST], layout, div_half_dim, "max_channels")
            self.encoding = nn.SinusoidalEncoding2d(channels[FIRST], layout=layout, div_half_dim=div_half_dim)
        self.noise2feat = NoiseToFeatures(self.z_dim, channels[FIRST], FIRST + 2 if no_pad else FIRST)
        shared: dict[str, Any] = dict(padding=0 if no_pad else 1, norm=True)
        self.torgb_layers, self.conv_blocks = torch.nn.ModuleList(), torch.nn.ModuleList()
        for r, c in list(channels.items())[1:]:
            self.torgb_layers.append(Conv(c, 3, 1, padding=0, gain=1.0, act="linear"))
            if r == FIRST:
                self.conv_blocks.append(Conv(c, c, **shared))
            else:
                self.conv_blocks.append(Conv(channels[r // 2], c, up=not no_pad, **shared))
                self.conv_blocks.append(Conv(c, c, **shared))

    def forward(self, z: torch.Tensor, *, size: int | None = None, transition: float = 1.0) -> torch.Tensor:
        """Make images [N, 3, size, size] from latents [N, z_dim].

        Args:
            z: latents.
            size: side of the images, a power of two >= 4; None: the full size.
            transition: weight of the newest block against the enlarged image of the block before, from 0 to 1.

        Raises:
            TypeError: an argument has the wrong type.
            ValueError: another shape or device, or a number out of range.
        """
        check_latent(checks.tensor(z, "z"), "z", self.z_dim, self.noise2feat.bias)
        last = check_stage(size, transition, self.size)
        x = self.noise2feat(z)
        if self.encoding is not None:
            x = self.encoding(x)
        x = self.conv_blocks[0](x)
        before = None
        for stage in range(1, last + 1):
            if stage == last:
                before = self.torgb_layers[stage - 1](x)
            x = self.conv_blocks[2 * stage - 1](enlarge(x, 4) if self.no_pad else x)
            x = self.conv_blocks[2 * stage](x)
        image = self.torgb_layers[last](x)
        if before is None or transition == 1:
            return image
        return F.interpolate(before, scale_factor=2, mode="nearest").lerp(image, transition)

    def extra_repr(self) -> str:
        return f"size={self.size}, no_pad={self.no_pad}"


class PGGANDiscriminator(torch.nn.Module):
    """Judge images, of the full size or, while it grows, of a smaller one.

    Args:
        size: side of the images, a power of two >= 8.
        base_channels, max_channels: arguments of :class:`PGGANGenerator`.
        channels: channels of the images.

    State: ``fromrgb_layers.{i}.conv`` and ``conv_blocks.{i}.conv`` with ``weight_orig`` [O, I, k, k] and ``bias`` [O];
    ``decision.linear{0, 1}`` with ``weight_orig`` and ``bias``. ``conv_blocks.0`` takes no part, as in the released
    code.

    Example:
        >>> discriminator = PGGANDiscriminator(32, max_channels=16)
        >>> discriminator(torch.randn(2, 3, 32, 32)).shape
        torch.Size([2, 1])
    """

    report: LoadReport

    def __init__(self, size: int, *, base_channels: int = 8192, max_channels: int = 512, channels: int = 3) -> None:
        super().__init__()
        self.size, _ = check_side(size, "size")
        self.channels = checks.integer(channels, "channels", minimum=1)
        widths_ = widths(self.size, base_channels, max_channels)
        self.fromrgb_layers, self.conv_blocks = torch.nn.ModuleList(), torch.nn.ModuleList()
        for r, c in list(widths_.items())[1:]:
            self.fromrgb_layers.append(Conv(self.channels, c, 1, padding=0))
            self.conv_blocks.append(Conv(c, c))
            if r > FIRST:
                self.conv_blocks.append(Conv(c, widths_[r // 2], down=True))
        self.mbstd = nn.MinibatchStd(4, 1)
        self.decision = Decision(widths_[FIRST] + 1, widths_[2])

    def forward(self, image: torch.Tensor, *, transition: float = 1.0) -> torch.Tensor:
        """Judge images [N, channels, side, side] with ``side`` up to the full size; returns [N, 1].

        Args:
            image: images.
            transition: weight of the newest block against the averaged image, from 0 to 1.

        Raises:
            TypeError: ``image`` is no tensor of a supported dtype.
            ValueError: another shape or device, a batch that does not divide into groups, or a number out of range.
        """
        checks.features(image, "image", self.channels, self.decision.linear0.weight_orig)
        side = image.shape[2]
        last = check_stage(side, transition, self.size, "image")
        check_image(image, self.channels, side, self.decision.linear0.weight_orig)
        x = self.fromrgb_layers[last](image)
        for stage in range(last, 0, -1):
            x = self.conv_blocks[2 * stage](self.conv_blocks[2 * stage - 1](x))
            if stage == last and transition != 1:
                x = self.fromrgb_layers[last - 1](F.avg_pool2d(image, 2)).lerp(x, transition)
        return self.decision(self.mbstd(x))


class Decision(torch.nn.Module):
    """Two dense layers, from features [N, C, 4, 4] to [N, 1]."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.linear0 = Equalized((width, channels * FIRST * FIRST), width, math.sqrt(2))
        self.linear1 = Equalized((1, width), 1, 1.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.linear(x.flatten(1), self.linear0.weight.to(x.dtype))
        x = PF.bias_act(x, self.linear0.bias.to(x.dtype), act="lrelu", gain=1)
        return F.linear(x, self.linear1.weight.to(x.dtype), self.linear1.bias.to(x.dtype))


def widths(size: int, base_channels: Any, max_channels: Any) -> dict[int, int]:
    """Channels at each side 2, 4, ... ``size``."""
    base = checks.integer(base_channels, "base_channels", minimum=1)
    most = checks.integer(max_channels, "max_channels", minimum=1)
    sides = [2**i for i in range(1, size.bit_length())]
    channels = {r: min(2 * base // r, most) for r in sides}
    if min(channels.values()) < 1:
        raise ValueError(f"base_channels: expected at least {size // 2} for images of {size} pixels, got {base}")
    return channels


def check_stage(side: Any, transition: Any, size: int, name: str = "size") -> int:
    """Return the stage, from 0 for 4 pixels, that makes or reads images of a side."""
    side = size if side is None else checks.integer(side, name)
    if not FIRST <= side <= size or side & (side - 1):
        raise ValueError(f"{name}: expected a side of {FIRST}, {2 * FIRST}, ... {size} pixels, got {side}")
    if not 0 <= checks.real(transition, "transition") <= 1:
        raise ValueError(f"transition: expected a number from 0 to 1, got {transition}")
    return side.bit_length() - FIRST.bit_length()


def pixel_norm(x: torch.Tensor) -> torch.Tensor:
    """Divide each vector of channels by its root mean square plus 1e-6."""
    norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)  # with a derivative at zero, unlike the square root
    return x / (norm / math.sqrt(x.shape[1]) + _EPS)
