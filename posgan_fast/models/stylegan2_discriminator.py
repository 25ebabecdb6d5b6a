"""The discriminator of StyleGAN2."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from .. import functional as PF
from .. import nn
from ..ops.common import checks, layout
from .precision import Precision, as_in_block, to_full_precision
from .stylegan2_mapping import Mapping, check_blocks, check_latent, mapping_arguments, widths


class BlockConfig(NamedTuple):
    """Settings that all blocks share; the fields are arguments of :class:`Discriminator`."""

    img_channels: int
    architecture: str
    conv_clamp: float | None
    activation: str
    precision: Precision


class Discriminator(torch.nn.Module):
    """Judge images, one number each; config F.

    Args:
        size: side of the images, a power of two >= 8 (with ``head_size`` (4, 4)).
        c_dim: size of the label; 0: no labels.
        channel_multiplier, channel_max: min(16384 * channel_multiplier // r, channel_max) channels at resolution r.
        architecture: "resnet", "skip" or "orig".
        mbstd_group_size, mbstd_num_channels: arguments of :class:`posgan_fast.nn.MinibatchStd`; 0 channels leave that
            layer out.
        adaptive_pool: True pools the last features to 2 x 2, which allows images of any size (MS-PIE).
        conv_clamp: bound of the convolutions' results; None: no bound. NVlabs' is 256 beside half precision.
        num_fp16_res, half_dtype: number of the highest resolutions whose features are in half precision, and its dtype,
            as in :class:`Generator`; the last layers, from 4 x 4 pixels on, are in float32. A call
            ``discriminator(image, force_fp32=True)`` runs all blocks in float32.
        head_size: height and width of the last features: the images are [size * height / 4, size * width / 4].
        img_channels: number of channels of the images.
        mapping_layers, lr_multiplier: settings of the label's mapping.
        activation: nonlinearity of every layer but the last.
        mapping_activation: nonlinearity of the mapping; None: ``activation``.

    State, as in NVlabs stylegan2-ada: ``b{r}`` for r = size, ..., 8: ``conv0.weight`` [C(r), C(r), 3, 3],
    ``conv1.weight`` [C(r / 2), C(r), 3, 3] and their ``bias``, ``skip.weight`` [C(r / 2), C(r), 1, 1] ("resnet"),
    ``fromrgb.weight`` [C(r), img_channels, 1, 1] and ``bias`` (the first block; "skip": all, and b4),
    ``resample_filter`` [4, 4]; ``b4.conv``, ``b4.fc``, ``b4.out``, each with ``weight`` and ``bias``; with labels
    ``mapping``.

    Example:
        >>> discriminator = Discriminator(32, channel_max=8)
        >>> discriminator(torch.randn(4, 3, 32, 32)).shape
        torch.Size([4, 1])
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
        num_fp16_res: int = 0,
        half_dtype: torch.dtype | str = torch.float16,
        head_size: tuple[int, int] = (4, 4),
        img_channels: int = 3,
        channel_max: int = 512,
        mapping_layers: int = 8,
        activation: str = "lrelu",
        mapping_activation: str | None = None,
        lr_multiplier: float = 0.01,
    ) -> None:
        super().__init__()
        img_channels = check_blocks(img_channels, architecture, conv_clamp, activation)
        mapping = mapping_arguments(mapping_layers, lr_multiplier, activation, mapping_activation)
        mbstd = _minibatch_std(mbstd_group_size, mbstd_num_channels)
        precision = Precision.checked(num_fp16_res, half_dtype)
        self.num_fp16_res, self.half_dtype = precision
        self.c_dim, self.img_channels = checks.integer(c_dim, "c_dim", minimum=0), img_channels
        self.adaptive_pool = checks.flag(adaptive_pool, "adaptive_pool")
        height, width = checks.size(head_size, "head_size")
        channels = widths(size, channel_multiplier, channel_max)
        self.resolutions = list(channels)[:0:-1]
        self.size = self.resolutions[0]
        self.img_size = (self.size * height // 4, self.size * width // 4)
        config = BlockConfig(img_channels, architecture, conv_clamp, activation, precision)
        for r in self.resolutions:
            dtype = precision.of_block(r, self.size)
            self.add_module(f"b{r}", Block(channels[r], channels[r // 2], r == self.size, config, dtype))
        self.mapping = Mapping(0, self.c_dim, channels[4], None, **mapping) if self.c_dim else None
        features = math.prod((2, 2) if adaptive_pool else (height, width))
        self.b4 = Tail(channels[4], features, channels[4] if self.c_dim else 0, mbstd, adaptive_pool, config)

    def forward(self, image: torch.Tensor, c: torch.Tensor | None = None, *, force_fp32: bool = False) -> torch.Tensor:
        """Judge images.

        Args:
            image: [N, img_channels, height, width].
            c: labels [N, c_dim].
            force_fp32: True runs every block in float32, whatever ``num_fp16_res`` is; autocast goes before it.

        Returns:
            [N, 1] in float32, or in float64 for float64 images.

        Raises:
            TypeError: an argument has the wrong type.
            ValueError: images of another size without ``adaptive_pool``; labels of another shape, or for a network
                without labels; a batch that does not divide into groups.
        """
        checks.features(image, "image", self.img_channels, self.b4.out.weight)
        check_latent(c, "c", self.c_dim, self.b4.out.weight, image)
        if not self.adaptive_pool and image.shape[2:] != self.img_size:
            raise ValueError(f"image: expected {self.img_size} pixels, got {tuple(image.shape[2:])}")
        checks.flag(force_fp32, "force_fp32")
        image = layout.in_format(image, torch.channels_last)  # every layer keeps this format, and filters it fastest
        x = None
        for r in self.resolutions:
            x, image = getattr(self, f"b{r}")(x, image, force_fp32)
        return self.b4(x, image, None if self.mapping is None else self.mapping(None, c), force_fp32)

    def extra_repr(self) -> str:
        half = Precision(self.num_fp16_res, self.half_dtype).described()
        return f"size={self.size}, img_size={self.img_size}, adaptive_pool={self.adaptive_pool}{half}"


class Block(torch.nn.Module):
    """One resolution: two convolutions, the second of which halves the size."""

    resample_filter: torch.Tensor

    def __init__(
        self, channels: int, out_channels: int, is_first: bool, config: BlockConfig, dtype: torch.dtype | None
    ) -> None:
        super().__init__()
        self.dtype = dtype  # of the features; None: that of the block before
        self.architecture = config.architecture
        epilogue: dict[str, Any] = dict(act=config.activation, clamp=config.conv_clamp)
        with_image = is_first or self.architecture == "skip"
        self.fromrgb = nn.EqualConv2d(config.img_channels, channels, 1, **epilogue) if with_image else None
        self.conv0 = nn.EqualConv2d(channels, channels, **epilogue)
        self.conv1 = nn.EqualConv2d(channels, out_channels, down=2, **epilogue)
        residual = self.architecture == "resnet"
        self.skip = nn.EqualConv2d(channels, out_channels, 1, bias=False, down=2) if residual else None
        self.register_buffer("resample_filter", PF.setup_filter(nn.TAPS))

    def forward(self, x, image, force_fp32=False):
        """Return the features [N, C, h, w], None in the first block, and with "skip" the image, at half the size."""
        dtype, weight = torch.float32 if force_fp32 else self.dtype, self.conv0.weight
        x = None if x is None else as_in_block(x, dtype, weight)
        if self.fromrgb is not None:
            image = as_in_block(image, dtype, weight)
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
        pixels: int,
        cmap_dim: int,
        mbstd: nn.MinibatchStd | None,
        adaptive_pool: bool,
        config: BlockConfig,
    ) -> None:
        super().__init__()
        self.dtype = config.precision.of_block(4, 4)
        act, skip = config.activation, config.architecture == "skip"
        self.cmap_dim, self.adaptive_pool = cmap_dim, adaptive_pool
        self.fromrgb = nn.EqualConv2d(config.img_channels, channels, 1, act=act) if skip else None
        self.mbstd = mbstd
        in_channels = channels + (0 if mbstd is None else mbstd.num_channels)
        self.conv = nn.EqualConv2d(in_channels, channels, act=act, clamp=config.conv_clamp)
        self.fc = nn.EqualLinear(channels * pixels, channels, act=act)
        self.out = nn.EqualLinear(channels, cmap_dim or 1)

    def forward(self, x, image, cmap, force_fp32=False):
        """Turn features [N, C, h, w], the image ("skip") and the mapped label [N, cmap_dim] or None into [N, 1]."""
        dtype, weight = torch.float32 if force_fp32 else self.dtype, self.conv.weight
        x = as_in_block(x, dtype, weight)
        if self.fromrgb is not None:
            x = x + self.fromrgb(as_in_block(image, dtype, weight))
        x = to_full_precision(x)
        if self.mbstd is not None:
            x = self.mbstd(x)
        x = to_full_precision(self.conv(x))
        if self.adaptive_pool:
            x = F.adaptive_avg_pool2d(x, (2, 2))
        x = self.out(self.fc(x.flatten(1)))
        return x if cmap is None else (x * cmap).sum(1, keepdim=True) / math.sqrt(self.cmap_dim)


def _minibatch_std(group_size: Any, num_channels: Any) -> nn.MinibatchStd | None:
    if group_size is not None:
        group_size = checks.integer(group_size, "mbstd_group_size", minimum=1)
    num_channels = checks.integer(num_channels, "mbstd_num_channels", minimum=0)
    return nn.MinibatchStd(group_size, num_channels) if num_channels else None
