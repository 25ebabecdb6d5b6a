"""The discriminator of StyleGAN2."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn import functional as F

from .. import functional as PF
from .. import nn
from ..ops.common import checks, layout
from ..ops.common.activations import ACTIVATIONS
from .stylegan2_mapping import ARCHITECTURES, Mapping, check_latent, full, resolutions, widths


class Discriminator(torch.nn.Module):
    """Images to one number each; config F.

    Args:
        size: side of the images, a power of two >= 8 (with ``head_size`` (4, 4)).
        c_dim: size of the label, 0: none.
        channel_multiplier, channel_max: min(16384 * channel_multiplier // r, channel_max) channels at resolution r.
        architecture: "resnet", "skip" or "orig".
        mbstd_group_size, mbstd_num_channels: of :class:`posgan_fast.nn.MinibatchStd`; no channels: left out.
        adaptive_pool: pool the last features to 2 x 2, which allows images of any size (MS-PIE).
        conv_clamp: bound of the convolutions' results, None: none.
        head_size: height and width of the last features: the images are [size * height / 4, size * width / 4].
        img_channels: of the images.
        mapping_layers, lr_multiplier: of the label's mapping.
        activation: of every layer but the last and, unless ``mapping_activation`` is another, of the mapping.

    State, as in NVlabs stylegan2-ada: ``b{r}`` for r = size, ..., 8: ``conv0.weight`` [C(r), C(r), 3, 3],
    ``conv1.weight`` [C(r / 2), C(r), 3, 3] and their ``bias``, ``skip.weight`` [C(r / 2), C(r), 1, 1] ("resnet"),
    ``fromrgb.weight`` [C(r), img_channels, 1, 1] and ``bias`` (the first block; "skip": all, and b4),
    ``resample_filter`` [4, 4]; ``b4.conv``, ``b4.fc``, ``b4.out``, each with ``weight`` and ``bias``; with labels
    ``mapping``.
    """

    def __init__(
        self,
        size: int,
        *,
        c_dim: int = 0,
        channel_multiplier: float = 2,
        architecture: str = "resnet",
        mbstd_group_size: int | None = 4,
        mbstd_num_channels: int = 1,
        adaptive_pool: bool = False,
        conv_clamp: float | None = None,
        head_size: tuple[int, int] = (4, 4),
        img_channels: int = 3,
        channel_max: int = 512,
        mapping_layers: int = 8,
        activation: str = "lrelu",
        mapping_activation: str | None = None,
        lr_multiplier: float = 0.01,
    ) -> None:
        super().__init__()
        checks.choice(architecture, "architecture", ARCHITECTURES)
        c_dim = checks.integer(c_dim, "c_dim", minimum=0)
        img_channels = checks.integer(img_channels, "img_channels", minimum=1)
        mapping_layers = checks.integer(mapping_layers, "mapping_layers", minimum=1)
        checks.choice(activation, "activation", tuple(ACTIVATIONS))
        if mapping_activation is not None:
            checks.choice(mapping_activation, "mapping_activation", tuple(ACTIVATIONS))
        checks.flag(adaptive_pool, "adaptive_pool")
        checks.bound(conv_clamp, "conv_clamp")
        if mbstd_group_size is not None:
            mbstd_group_size = checks.integer(mbstd_group_size, "mbstd_group_size", minimum=1)
        mbstd_num_channels = checks.integer(mbstd_num_channels, "mbstd_num_channels", minimum=0)
        size = resolutions(size)[-1]
        channels = widths(size, channel_multiplier, channel_max)
        self.size, self.c_dim, self.img_channels, self.adaptive_pool = size, c_dim, img_channels, adaptive_pool
        height, width = checks.size(head_size, "head_size")
        self.img_size = (size * height // 4, size * width // 4)
        self.resolutions = resolutions(size)[:0:-1]
        common: dict[str, Any] = dict(
            img_channels=img_channels, architecture=architecture, conv_clamp=conv_clamp, activation=activation
        )
        for r in self.resolutions:
            self.add_module(f"b{r}", Block(channels[r], channels[r // 2], is_first=r == size, **common))
        mapped: dict[str, Any] = dict(
            num_layers=mapping_layers,
            lr_multiplier=lr_multiplier,
            activation=activation if mapping_activation is None else mapping_activation,
        )
        self.mapping = Mapping(0, c_dim, channels[4], None, **mapped) if c_dim else None
        self.b4 = Tail(
            channels[4],
            (2, 2) if adaptive_pool else (height, width),
            channels[4] if c_dim else 0,
            mbstd_group_size=mbstd_group_size,
            mbstd_num_channels=mbstd_num_channels,
            adaptive_pool=adaptive_pool,
            **common,
        )

    def forward(self, image: torch.Tensor, c: torch.Tensor | None = None) -> torch.Tensor:
        """[N, img_channels, height, width] and the label [N, c_dim] to [N, 1], in float32 (float64 of a float64 image).

        Raises:
            TypeError: an argument of the wrong type.
            ValueError: an image of another size, unless ``adaptive_pool``; a label of another shape, or one where there
                is none; a batch that does not divide into groups.
        """
        checks.features(image, "image", self.img_channels, self.b4.out.weight)
        check_latent(c, "c", self.c_dim, self.b4.out.weight, image)
        if not self.adaptive_pool and image.shape[2:] != self.img_size:
            raise ValueError(f"image: expected {self.img_size} pixels, got {tuple(image.shape[2:])}")
        image = layout.in_format(image, torch.channels_last)  # which every layer keeps, and filters fastest
        x = None
        for r in self.resolutions:
            x, image = getattr(self, f"b{r}")(x, image)
        return self.b4(x, image, None if self.mapping is None else self.mapping(None, c))

    def extra_repr(self) -> str:
        return f"size={self.size}, img_size={self.img_size}, adaptive_pool={self.adaptive_pool}"


class Block(torch.nn.Module):
    """One resolution: two convolutions, the second of which halves the size."""

    resample_filter: torch.Tensor

    def __init__(
        self,
        channels: int,
        out_channels: int,
        *,
        is_first: bool,
        img_channels: int,
        architecture: str,
        conv_clamp: float | None,
        activation: str,
    ) -> None:
        super().__init__()
        self.architecture = architecture
        common: dict[str, Any] = dict(act=activation, clamp=conv_clamp)
        with_image = is_first or architecture == "skip"
        self.fromrgb = nn.EqualConv2d(img_channels, channels, 1, **common) if with_image else None
        self.conv0 = nn.EqualConv2d(channels, channels, **common)
        self.conv1 = nn.EqualConv2d(channels, out_channels, down=2, **common)
        residual = architecture == "resnet"
        self.skip = nn.EqualConv2d(channels, out_channels, 1, bias=False, down=2) if residual else None
        self.register_buffer("resample_filter", PF.setup_filter(nn.TAPS))

    def forward(self, x, image):
        """Features [N, C, h, w], None in the first block, and the image at this size, to both at half the size."""
        if self.fromrgb is not None:
            y = self.fromrgb(image)
            x = y if x is None else x + y
            if self.architecture == "skip":
                image = PF.downsample2d(image, self.resample_filter)
        if self.skip is None:
            return self.conv1(self.conv0(x)), image
        gain = math.sqrt(0.5)
        return self.skip(x, gain=gain) + self.conv1(self.conv0(x), gain=gain), image


class Tail(torch.nn.Module):
    """The last resolution, from features to a number."""

    def __init__(
        self,
        channels: int,
        features_size: tuple[int, int],
        cmap_dim: int,
        *,
        img_channels: int,
        architecture: str,
        conv_clamp: float | None,
        activation: str,
        mbstd_group_size: int | None,
        mbstd_num_channels: int,
        adaptive_pool: bool,
    ) -> None:
        super().__init__()
        self.cmap_dim, self.adaptive_pool = cmap_dim, adaptive_pool
        self.fromrgb = nn.EqualConv2d(img_channels, channels, 1, act=activation) if architecture == "skip" else None
        self.mbstd = nn.MinibatchStd(mbstd_group_size, mbstd_num_channels) if mbstd_num_channels else None
        self.conv = nn.EqualConv2d(channels + mbstd_num_channels, channels, act=activation, clamp=conv_clamp)
        self.fc = nn.EqualLinear(channels * math.prod(features_size), channels, act=activation)
        self.out = nn.EqualLinear(channels, cmap_dim or 1)

    def forward(self, x, image, cmap):
        """Features [N, C, h, w], the image ("skip") and the mapped label [N, cmap_dim] or None, to [N, 1]."""
        if self.fromrgb is not None:
            x = x + self.fromrgb(image)
        x = full(x)
        if self.mbstd is not None:
            x = self.mbstd(x)
        x = full(self.conv(x))
        if self.adaptive_pool:
            x = F.adaptive_avg_pool2d(x, (2, 2))
        x = self.out(self.fc(x.flatten(1)))
        return x if cmap is None else (x * cmap).sum(1, keepdim=True) / math.sqrt(self.cmap_dim)
