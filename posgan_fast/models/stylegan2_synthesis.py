"""The synthesis network of StyleGAN2, with padding maps (PadInv) and positional heads at several scales (MS-PIE)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from .. import functional as PF
from .. import nn
from ..nn.joint_styles import joint_styles
from ..nn.style_pair import run_pair
from ..nn.unchanged import is_unchanged, remembered
from ..ops.common import checks, encodings, layout
from .precision import Precision, as_in_block, to_full_precision

HEADS = ("constant", "csg", "spe")
Maps = Sequence[torch.Tensor | None] | torch.nn.ParameterList | None
Styles = Sequence[torch.Tensor]  # of a block's convolutions, then of its toRGB


class HeadConfig(NamedTuple):
    """The input of the first convolution; the fields are arguments of :class:`posgan_fast.models.Generator`."""

    head: str
    head_size: tuple[int, int]
    interp_head: bool
    layout: str
    div_half_dim: bool

    def checked(self) -> HeadConfig:
        """Return the record with ``head_size`` as ints, or raise the error of a field that is wrong."""
        checks.choice(self.head, "head", HEADS)
        checks.choice(self.layout, "layout", encodings.LAYOUTS)
        checks.flag(self.interp_head, "interp_head")
        checks.flag(self.div_half_dim, "div_half_dim")
        return self._replace(head_size=checks.size(self.head_size, "head_size"))


class BlockConfig(NamedTuple):
    """Settings that all blocks share; the fields are arguments of :class:`posgan_fast.models.Generator`."""

    w_dim: int
    img_channels: int
    architecture: str
    no_pad: bool
    up_after_conv: bool | None
    conv_clamp: float | None
    activation: str
    precision: Precision


class Synthesis(torch.nn.Module):
    """Turn latents, one for each layer, into images; :class:`posgan_fast.models.Generator` documents the settings.

    State: the blocks ``b{r}``, r = 4, 8, ... size: ``b4.const`` [C, height, width] of the head "constant";
    ``b{r}.conv0`` (r > 4) and ``b{r}.conv1``, each a :class:`posgan_fast.nn.StyleConv`; ``b{r}.torgb``, a
    :class:`posgan_fast.nn.ToRGB`, in every block ("skip") or the last; ``b{r}.skip.weight`` ("resnet", r > 4);
    ``b{r}.resample_filter`` [4, 4].
    """

    def __init__(self, channels: dict[int, int], head: HeadConfig, blocks: BlockConfig) -> None:
        """Build a block for each side in ``channels``, the numbers of channels by side."""
        super().__init__()
        self.w_dim, self.resolutions = blocks.w_dim, list(channels)
        self.num_convs = 2 * len(self.resolutions) - 1
        self.num_ws = self.num_convs + 1
        last = self.resolutions[-1]
        self.b4 = HeadBlock(channels[4], head, blocks, blocks.precision.of_block(4, last))
        for r in self.resolutions[1:]:
            size = (head.head_size[0] * r // 4, head.head_size[1] * r // 4)
            dtype = blocks.precision.of_block(r, last)
            self.add_module(f"b{r}", Block(channels[r // 2], channels[r], size, r == last, blocks, dtype))

    def forward(
        self,
        ws: torch.Tensor,
        pad_maps: Maps = None,
        noise_mode: str | None = None,
        noises: Maps = None,
        scale: int | tuple[int, int] = 0,
        force_fp32: bool = False,
    ) -> torch.Tensor:
        """Make images [N, img_channels, height, width] in float32, or in float64 if the network is.

        Args:
            ws: [N, num_ws, w_dim].
            pad_maps: the maps of PadInv, in the sizes that :meth:`pad_map_sizes` tells. The centre of entry 0 replaces
                the head. Entry l + 1 replaces the zero padding of convolution l, as in
                :func:`posgan_fast.functional.modulated_conv2d`: it surrounds the input or, where the convolution
                upsamples with the filter, the upsampled output. Where an entry is None, or the list is short, nothing
                is replaced. Entries beyond the last convolution are ignored, and no map is written to.
            noise_mode: "const", "random" or "none", as in :class:`posgan_fast.nn.StyleConv`. None: "random" in training
                mode, "const" in evaluation mode.
            noises: tensors that replace the noise of ``noise_mode``, one for each convolution: [height, width] or
                [1 or N, 1, height, width] in the sizes that :meth:`noise_sizes` tells. Where an entry is None, or the
                list is short, ``noise_mode`` decides.
            scale: pixels, or [rows, columns], added to the head.
            force_fp32: True runs every block in float32, whatever ``num_fp16_res`` is; autocast goes before it.

        Raises:
            TypeError: an argument, or an entry of a list, of the wrong type.
            ValueError: a wrong shape, size, device or mode.
        """
        if checks.tensor(ws, "ws").ndim != 3 or ws.shape[1:] != (self.num_ws, self.w_dim):
            raise ValueError(f"ws: expected shape [N, {self.num_ws}, {self.w_dim}], got {tuple(ws.shape)}")
        head_map, *maps = _entries(pad_maps, "pad_maps", self.num_convs + 1)
        given = _entries(noises, "noises", self.num_convs)
        if noises is not None and len(noises) > self.num_convs:
            raise ValueError(f"noises: expected at most {self.num_convs} tensors, got {len(noises)}")
        if pad_maps is not None:
            _check_maps([head_map, *maps], self.pad_map_sizes(scale), ws)
        if noises is not None:
            _check_noises(given, self.noise_sizes(scale), ws)
        checks.flag(force_fp32, "force_fp32")
        styles = self._joint_styles(ws)
        x, image = self.b4(ws[:, :2], head_map, maps[0], noise_mode, given[0], _both(scale), force_fp32, **styles[0])
        for i, r in enumerate(self.resolutions[1:]):
            first, end = 2 * i + 1, 2 * i + 3  # the block's convolutions; toRGB shares its latent with the next block
            latents, pads, noise = ws[:, first : end + 1], maps[first:end], given[first:end]
            block = getattr(self, f"b{r}")
            x, image = block(x, image, latents, pads, noise_mode, noise, force_fp32, **styles[i + 1])
        return image

    def _joint_styles(self, ws: torch.Tensor) -> list[dict[str, Styles]]:
        """Compute the styles of all blocks at once where :func:`joint_styles` does; return an argument, or none, for
        each block."""
        blocks = [getattr(self, f"b{r}") for r in self.resolutions]
        if not all(is_unchanged(block, HeadBlock, Block) for block in blocks):  # one may change the latents
            return [{} for _ in blocks]
        layers = [block.style_layers for block in blocks]
        firsts = [max(2 * i - 1, 0) for i in range(len(blocks))]
        places = [first + k for first, own in zip(firsts, layers, strict=True) for k in range(len(own))]
        found = joint_styles([layer for own in layers for layer in own], ws, places)
        if found is None:
            return [{} for _ in blocks]
        styles = iter(found)
        return [{"styles": [next(styles) for _ in own]} for own in layers]

    def noise_sizes(self, scale: int | tuple[int, int] = 0) -> list[tuple[int, int]]:
        """Height and width of each convolution's noise."""
        return [layer.out_size(*size) for layer, size in self._convolutions(scale)]

    def pad_map_sizes(self, scale: int | tuple[int, int] = 0) -> list[tuple[int, int, int] | None]:
        """Channels and least height and width of each entry of ``pad_maps``.

        An entry is a map [N, channels, height, width], of which the centre is read; from the second entry on also a
        ring [N, channels, 2 * (height + width) - 4]. None stands for a convolution without padding::

            sizes = synthesis.pad_map_sizes()
            pad_maps = [None if size is None else torch.zeros(n, *size) for size in sizes]
        """
        head = (self.b4.in_channels, *self.b4.size(_both(scale)))
        return [head, *[layer.pad_map_size(*size) for layer, size in self._convolutions(scale)]]

    def _convolutions(self, scale: int | tuple[int, int]) -> list[tuple[nn.StyleConv, tuple[int, int]]]:
        """The convolutions, each with height and width of its input."""
        size, found = self.b4.size(_both(scale)), []
        for r in self.resolutions:
            block = getattr(self, f"b{r}")
            for layer in (block.conv1,) if r == 4 else (block.conv0, block.conv1):
                found.append((layer, size))
                size = layer.out_size(*size)
        return found


@remembered
class HeadBlock(torch.nn.Module):
    """The first resolution: the constant or an encoding, one convolution, and for "skip" an image."""

    resample_filter: torch.Tensor

    def __init__(self, channels: int, head: HeadConfig, config: BlockConfig, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.dtype = dtype  # of the features; None: that of the parameters
        self.head, self.in_channels = head.head, 2 if head.head == "csg" else channels
        border = 2 if config.no_pad else 0
        self.base_size = (head.head_size[0] + border, head.head_size[1] + border)
        base_size = self.base_size if head.interp_head else None
        self.encoding: dict[str, Any] = dict(layout=head.layout, base_size=base_size)
        if self.head == "spe":
            encodings.check_channels(channels, head.layout, head.div_half_dim, "channel_max")
            self.encoding |= dict(channels=channels, div_half_dim=head.div_half_dim)
        if self.head == "constant":
            self.const = torch.nn.Parameter(torch.randn(channels, *self.base_size))
        self.conv1 = _style_conv(self.in_channels, channels, head.head_size, config)
        self.torgb = _to_rgb(channels, config) if config.architecture == "skip" else None
        self.register_buffer("resample_filter", PF.setup_filter(nn.TAPS))

    def forward(self, ws, features, pad_map, noise_mode, noise, scale, force_fp32=False, styles=None):
        """Return features [N, C, h, w] and the image [N, img_channels, h, w] or None."""
        dtype = torch.float32 if force_fp32 else self.dtype
        # Convolutions and epilogues run fastest in channels_last, and every later layer keeps it.
        x = as_in_block(self._features(ws.shape[0], scale, features), dtype, self.conv1.weight)
        x = layout.in_format(x, torch.channels_last)
        first, last = _latents(ws, self.style_layers)
        x = self.conv1(x, first, styles=_at(styles, 0), pad_map=pad_map, noise_mode=noise_mode, noise=noise)
        if self.torgb is None:
            return x, None
        return x, to_full_precision(self.torgb(x, last, styles=_at(styles, 1)))

    @property
    def style_layers(self) -> list[Any]:
        """The layers that have styles, in the order of their latents."""
        return [self.conv1] if self.torgb is None else [self.conv1, self.torgb]

    def size(self, scale: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the head."""
        return self.base_size[0] + scale[0], self.base_size[1] + scale[1]

    def extra_repr(self) -> str:
        return f"head={self.head!r}, size={self.base_size}"

    def _features(self, n: int, scale: tuple[int, int], given: torch.Tensor | None) -> torch.Tensor:
        """Make the input of the first convolution, [N, I, h, w]."""
        h, w = self.size(scale)
        if given is not None:
            return _centre(given, h, w).to(self.conv1.weight.dtype)
        like = self.conv1.weight
        if self.head == "constant":
            x = self.const[None]
            if x.shape[2:] != (h, w):
                x = F.interpolate(x, (h, w), mode="bilinear", align_corners=True)
        else:
            encode = PF.cartesian_grid2d if self.head == "csg" else PF.sinusoidal_encoding2d
            x = encode(h, w, **self.encoding, dtype=like.dtype, device=like.device)
        return x.expand(n, -1, -1, -1)


@remembered
class Block(torch.nn.Module):
    """One further resolution: two convolutions, the first of which doubles the size.

    "skip" adds its own image to the upsampled image of the block before. "resnet" adds the upsampled input to the
    features; it and "orig" make an image in the last block only.
    """

    resample_filter: torch.Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: tuple[int, int],
        is_last: bool,
        config: BlockConfig,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.dtype = dtype  # of the features; None: that of the block before
        border = 2 if config.no_pad else 0
        upsampled = (size[0] + border, size[1] + border)
        upsampling: dict[str, Any] = dict(up=2, up_after_conv=config.up_after_conv, interp_pad=2 * border)
        self.conv0 = _style_conv(in_channels, out_channels, upsampled, config, **upsampling)
        self.conv1 = _style_conv(out_channels, out_channels, size, config)
        with_image = is_last or config.architecture == "skip"
        self.torgb = _to_rgb(out_channels, config) if with_image else None
        residual = config.architecture == "resnet"
        self.skip = nn.EqualConv2d(in_channels, out_channels, 1, bias=False, up=2) if residual else None
        self.register_buffer("resample_filter", PF.setup_filter(nn.TAPS))

    def forward(self, x, image, ws, pad_maps, noise_mode, noises, force_fp32=False, styles=None):
        """Turn features [N, I, h, w] and the previous image into [N, O, 2 * h, 2 * w] and an image or None."""
        x = as_in_block(x, torch.float32 if force_fp32 else self.dtype, self.conv1.weight)
        skip = None if self.skip is None else self.skip(x, gain=math.sqrt(0.5))
        gains = 1.0, 1.0 if skip is None else math.sqrt(0.5)
        given = [
            dict(styles=_at(styles, i), pad_map=pad_maps[i], noise_mode=noise_mode, noise=noises[i], gain=gains[i])
            for i in (0, 1)
        ]
        *latents, last = _latents(ws, self.style_layers)
        x = run_pair((self.conv0, self.conv1), x, latents, given)
        x = x if skip is None else skip + x
        if image is not None:
            image = PF.upsample2d(image, self.resample_filter)
        if self.torgb is not None:
            y = self.torgb(x, last, styles=_at(styles, 2))
            image = to_full_precision(y) if image is None else image + y  # the sum has the wider dtype
        return x, image

    @property
    def style_layers(self) -> list[Any]:
        """The layers that have styles, in the order of their latents."""
        return [self.conv0, self.conv1] + ([] if self.torgb is None else [self.torgb])


def _latents(ws: torch.Tensor, layers: Sequence[Any]) -> Sequence[torch.Tensor]:
    """Take the latents of layers apart: by one operator, which autograd turns into one, unless a layer that someone
    changed may write to its latent."""
    if all(is_unchanged(layer, nn.StyleConv, nn.ToRGB) for layer in layers):
        return ws.unbind(1)
    return [ws[:, i] for i in range(ws.shape[1])]


def _at(styles: Styles | None, i: int) -> torch.Tensor | None:
    return None if styles is None else styles[i]


def _style_conv(
    in_channels: int, out_channels: int, noise_size: tuple[int, int], config: BlockConfig, **upsampling: Any
) -> nn.StyleConv:
    return nn.StyleConv(
        in_channels,
        out_channels,
        config.w_dim,
        noise_size,
        padding=0 if config.no_pad else 1,
        act=config.activation,
        clamp=config.conv_clamp,
        **upsampling,
    )


def _to_rgb(channels: int, config: BlockConfig) -> nn.ToRGB:
    return nn.ToRGB(channels, config.img_channels, config.w_dim, clamp=config.conv_clamp)


def _entries(values: Any, name: str, count: int) -> list[torch.Tensor | None]:
    """Return ``count`` entries: the given ones, then None."""
    if values is None:
        return [None] * count
    if not isinstance(values, (Sequence, torch.nn.ParameterList)) or isinstance(values, str):
        raise TypeError(f"{name}: expected a sequence of tensors and None, or None, got {type(values).__name__}")
    return [*values, *[None] * count][:count]


def _check_maps(maps: Sequence[Any], sizes: Sequence[tuple[int, int, int] | None], ws: torch.Tensor) -> None:
    for name, shape, size in _given("pad_maps", maps, sizes, ws):
        if size is None:
            raise ValueError(f"{name}: expected None for a convolution without padding, got shape {shape}")
        c, h, w = size
        n = ws.shape[0]
        ring = None if name == "pad_maps[0]" else (n, c, 2 * (h + w) - 4)  # a ring is a border, and the head has none
        is_map = len(shape) == 4 and shape[:2] == (n, c) and shape[2] >= h and shape[3] >= w
        if not is_map and shape != ring:
            or_ring = "" if ring is None else f" or a ring {list(ring)}"
            raise ValueError(f"{name}: expected [{n}, {c}, >= {h}, >= {w}]{or_ring}, got shape {shape}")


def _check_noises(noises: Sequence[Any], sizes: Sequence[tuple[int, int]], ws: torch.Tensor) -> None:
    for name, shape, size in _given("noises", noises, sizes, ws):
        allowed = size, (1, 1, *size), (ws.shape[0], 1, *size)
        if shape not in allowed:
            raise ValueError(f"{name}: expected shape {allowed[0]}, {allowed[1]} or {allowed[2]}, got {shape}")


def _given(name: str, values: Sequence[Any], sizes: Sequence[Any], ws: torch.Tensor) -> list[tuple[str, Any, Any]]:
    """List name, shape and expected size of each entry that is not None."""
    found = []
    for i, (value, size) in enumerate(zip(values, sizes, strict=True)):
        if value is not None:
            entry = f"{name}[{i}]"
            checks.same_device(checks.tensor(value, entry), entry, ws, "ws")
            found.append((entry, tuple(value.shape), size))
    return found


def _both(scale: int | tuple[int, int]) -> tuple[int, int]:
    return checks.pair(scale, "scale", minimum=0, axes="[rows, columns]")


def _centre(pad_map: torch.Tensor, h: int, w: int) -> torch.Tensor:
    """Crop to the centre; offsets are rounded down."""
    y, x = (pad_map.shape[2] - h) // 2, (pad_map.shape[3] - w) // 2
    return pad_map[:, :, y : y + h, x : x + w]
