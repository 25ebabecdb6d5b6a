"""DCGAN, also without padding and with a sinusoidal encoding of the positions.

DCGAN upsamples with transposed convolutions. The baseline of the paper replaces each by bilinear interpolation with
aligned corners to twice the size and a 3x3 convolution. Without padding, the interpolation makes 2 pixels more, which
the convolution takes again. The encoding is added to the first feature map. Table 4 of "Positional Encoding as Spatial
Inductive Bias in GANs" (CVPR 2021):

=====  =======================================================
a      ``DCGANGenerator(128, deconv2conv=True)``
b      ``DCGANGenerator(128, no_pad=True)``
c      ``DCGANGenerator(128, no_pad=True, encode="spe")``
=====  =======================================================

The paper publishes no configurations of these; its general rule (section 4) gives the sizes. Source of the baseline:
"Unsupervised Representation Learning with Deep Convolutional Generative Adversarial Networks" (ICLR 2016), in the form
of mmgeneration, whose names and shapes of state these networks have.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from .. import nn
from ..ops.common import checks, encodings
from .report import LoadReport
from .stylegan2_mapping import check_latent

FIRST = 4  # side of the first feature map
SLOPE = 0.01  # of the discriminator's leaky ReLU: torch's default, which the released code leaves as it is


class DCGANGenerator(torch.nn.Module):
    """Make images [N, channels, size, size] from latents.

    Args:
        size: side of the images, a power of two >= 8.
        z_dim: size of the latent.
        base_channels: channels of the first feature map; each upsampling halves them.
        channels: channels of the images.
        deconv2conv: True replaces the transposed convolutions by interpolation and convolutions; None: if ``no_pad``.
        no_pad: True replaces them by interpolation and convolutions without padding.
        encode: "spe" adds a sinusoidal encoding to the first feature map.
        layout, div_half_dim: arguments of :func:`posgan_fast.functional.sinusoidal_encoding2d`.

    State: ``noise2feat``, ``upsampling.{i}`` and ``output_layer``, each a :class:`posgan_fast.nn.ConvNormAct2d`, the
    last without normalisation.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a wrong number, or an unknown choice.

    Example:
        >>> generator = DCGANGenerator(32, z_dim=16, base_channels=64, no_pad=True, encode="spe")
        >>> generator(torch.randn(2, 16)).shape
        torch.Size([2, 3, 32, 32])
    """

    report: LoadReport

    def __init__(
        self,
        size: int,
        *,
        z_dim: int = 100,
        base_channels: int = 1024,
        channels: int = 3,
        deconv2conv: bool | None = None,
        no_pad: bool = False,
        encode: str | None = None,
        layout: str = "mmgen",
        div_half_dim: bool = False,
    ) -> None:
        super().__init__()
        self.size, halvings = check_side(size, "size")
        self.z_dim = checks.integer(z_dim, "z_dim", minimum=1)
        width = check_width(base_channels, "base_channels", halvings - 1)
        self.no_pad = checks.flag(no_pad, "no_pad")
        self.deconv2conv = no_pad if deconv2conv is None else checks.flag(deconv2conv, "deconv2conv")
        if no_pad and not self.deconv2conv:
            raise ValueError("deconv2conv: expected True or None with no_pad, got False")
        self.encoding = None
        if encode is not None:
            checks.choice(encode, "encode", ("spe",))
            encodings.check_channels(width, layout, div_half_dim, "base_channels")
            self.encoding = nn.SinusoidalEncoding2d(width, layout=layout, div_half_dim=div_half_dim)
        self.noise2feat = nn.ConvNormAct2d(self.z_dim, width, FIRST, transposed=True, act="relu")
        self.upsampling = torch.nn.Sequential()
        up: dict[str, Any] = dict(kernel_size=4, stride=2, padding=1, transposed=True)
        if self.deconv2conv:
            up = dict(kernel_size=3, padding=0 if no_pad else 1)
        for _ in range(halvings - 1):
            self.upsampling.append(nn.ConvNormAct2d(width, width // 2, act="relu", **up))
            width //= 2
        self.output_layer = nn.ConvNormAct2d(
            width, checks.integer(channels, "channels", minimum=1), norm=False, act="tanh", **up
        )
        init_weights(self)

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        """Make images from latents [N, z_dim].

        Raises:
            TypeError: ``z`` is no tensor of a supported dtype.
            ValueError: another shape or device.
        """
        check_latent(checks.tensor(z, "z"), "z", self.z_dim, self.noise2feat.conv.weight)
        x = self.noise2feat(z[:, :, None, None].to(self.noise2feat.conv.weight.dtype))  # [N, base_channels, 4, 4]
        if self.encoding is not None:
            x = self.encoding(x)
        for layer in (*self.upsampling, self.output_layer):
            x = layer(enlarge(x, 2 if self.no_pad else 0) if self.deconv2conv else x)
        return x

    def extra_repr(self) -> str:
        return f"size={self.size}, deconv2conv={self.deconv2conv}, no_pad={self.no_pad}"


class DCGANDiscriminator(torch.nn.Module):
    """Judge images [N, channels, size, size].

    Args:
        size: side of the images, a power of two >= 8.
        out_channels: numbers that it returns for each image; mmgeneration's configuration for 128 pixels has 100.
        base_channels: channels of the first layer; each further one doubles them.
        channels: channels of the images.

    State: ``downsamples.{i}`` and ``output_layer``, each a :class:`posgan_fast.nn.ConvNormAct2d`, the first and the
    last without normalisation.

    Example:
        >>> DCGANDiscriminator(32, base_channels=8)(torch.randn(2, 3, 32, 32)).shape
        torch.Size([2, 1])
    """

    report: LoadReport

    def __init__(self, size: int, *, out_channels: int = 1, base_channels: int = 128, channels: int = 3) -> None:
        super().__init__()
        self.size, halvings = check_side(size, "size")
        self.channels = checks.integer(channels, "channels", minimum=1)
        width = checks.integer(base_channels, "base_channels", minimum=1)
        self.downsamples = torch.nn.Sequential()
        inputs = self.channels
        for i in range(halvings):
            self.downsamples.append(
                nn.ConvNormAct2d(inputs, width * 2**i, 4, stride=2, padding=1, norm=i > 0, act="lrelu", alpha=SLOPE)
            )
            inputs = width * 2**i
        outputs = checks.integer(out_channels, "out_channels", minimum=1)
        self.output_layer = nn.ConvNormAct2d(inputs, outputs, FIRST, norm=False, act="linear")
        init_weights(self)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """Judge images; returns [N, out_channels].

        Raises:
            TypeError: ``image`` is no tensor of a supported dtype.
            ValueError: another shape or device.
        """
        check_image(image, self.channels, self.size, self.output_layer.conv.weight)
        return self.output_layer(self.downsamples(image)).flatten(1)


def check_side(value: Any, name: str) -> tuple[int, int]:
    """Require a power of two >= 8; return it and the number of halvings to the first feature map."""
    side = checks.integer(value, name, minimum=2 * FIRST)
    if side & (side - 1):
        raise ValueError(f"{name}: expected a power of two >= {2 * FIRST}, got {side}")
    return side, side.bit_length() - FIRST.bit_length()


def check_width(value: Any, name: str, halvings: int) -> int:
    """Require channels that can be halved so often."""
    width = checks.integer(value, name, minimum=1)
    if width % 2**halvings:
        raise ValueError(f"{name}: expected a multiple of {2**halvings}, got {width}")
    return width


def check_image(image: Any, channels: int, size: int, weight: torch.Tensor) -> None:
    """Require images [N, channels, size, size] on the device of ``weight``."""
    checks.features(image, "image", channels, weight)
    if tuple(image.shape[2:]) != (size, size):
        raise ValueError(f"image: expected {size} x {size} pixels, got {image.shape[2]} x {image.shape[3]}")


def enlarge(x: torch.Tensor, more: int) -> torch.Tensor:
    """Interpolate [N, C, H, W] bilinearly, with aligned corners, to [N, C, 2 * H + more, 2 * W + more]."""
    h, w = x.shape[2:]
    return F.interpolate(x, (2 * h + more, 2 * w + more), mode="bilinear", align_corners=True)


def init_weights(network: torch.nn.Module) -> None:
    """Draw the weights as the released code does: kernels of N(0, 0.02^2), factors of the normalisation of N(0, 1)."""
    for module in network.modules():
        if isinstance(module, (torch.nn.Conv2d, torch.nn.ConvTranspose2d)):
            torch.nn.init.normal_(module.weight, 0, 0.02)
            if module.bias is not None:
                torch.nn.init.zeros_(module.bias)
        elif isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.weight)
            torch.nn.init.zeros_(module.bias)
