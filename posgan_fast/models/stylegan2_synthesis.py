"""The synthesis network of StyleGAN2, with padding maps (PadInv) and positional heads at several scales (MS-PIE)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from .. import functional as PF
from .. import nn
from ..ops.common import checks, encodings, layout
from .stylegan2_mapping import full, resolutions, widths

Maps = Sequence[torch.Tensor | None] | torch.nn.ParameterList | None


class Synthesis(torch.nn.Module):
    """Latents, one for each layer, to images; :class:`posgan_fast.models.stylegan2.Generator` has the arguments.

    State: the blocks ``b{r}``, r = 4, 8, ... size: ``b4.const`` [C, height, width] of the head "constant";
    ``b{r}.conv0`` (r > 4) and ``b{r}.conv1``, each a :class:`posgan_fast.nn.StyleConv`; ``b{r}.torgb``, a
    :class:`posgan_fast.nn.ToRGB`, in every block ("skip") or the last; ``b{r}.skip.weight`` ("resnet", r > 4);
    ``b{r}.resample_filter`` [4, 4].
    """

    def __init__(
        self,
        size: int,
        w_dim: int,
        *,
        channel_multiplier: float,
        channel_max: int,
        img_channels: int,
        architecture: str,
        head: str,
        head_size: tuple[int, int],
        interp_head: bool,
        no_pad: bool,
        up_after_conv: bool | None,
        conv_clamp: float | None,
        layout: str,
        div_half_dim: bool,
        activation: str,
    ) -> None:
        super().__init__()
        channels = widths(size, channel_multiplier, channel_max)
        self.w_dim, self.resolutions = w_dim, resolutions(size)
        self.num_convs = 2 * len(self.resolutions) - 1
        self.num_ws = self.num_convs + 1
        common: dict[str, Any] = dict(
            w_dim=w_dim,
            img_channels=img_channels,
            architecture=architecture,
            no_pad=no_pad,
            up_after_conv=up_after_conv,
            conv_clamp=conv_clamp,
            activation=activation,
        )
        self.b4 = HeadBlock(channels[4], head, head_size, interp_head, layout, div_half_dim, **common)
        for r in self.resolutions[1:]:
            sides = (head_size[0] * r // 4, head_size[1] * r // 4)
            self.add_module(f"b{r}", Block(channels[r // 2], channels[r], sides, is_last=r == size, **common))

    def forward(
        self,
        ws: torch.Tensor,
        pad_maps: Maps = None,
        noise_mode: str | None = None,
        noises: Maps = None,
        scale: int | tuple[int, int] = 0,
    ) -> torch.Tensor:
        """Images [N, img_channels, height, width] in float32 (float64 of a float64 network).

        Args:
            ws: [N, num_ws, w_dim].
            pad_maps: the maps of PadInv: entry 0 takes the place of the head (its centre crop), entry l + 1 surrounds
                the input of convolution l (the upsampled output of one that enlarges with the filter), as in
                :func:`posgan_fast.functional.modulated_conv2d`. Their sizes: :meth:`pad_map_sizes`. None entries and a
                short list leave the rest as it is; further entries are ignored. Never written.
            noise_mode: "const", "random" or "none", as in :class:`posgan_fast.nn.StyleConv`. None: "random" in training
                mode, "const" in evaluation mode.
            noises: one tensor for each convolution in place of the mode's, [height, width] or [1 or N, 1, height,
                width] of :meth:`noise_sizes`; None entries and a short list as for ``pad_maps``.
            scale: pixels, or [rows, columns], added to the head.

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
        x, image = self.b4(ws[:, :2], head_map, maps[0], noise_mode, given[0], _both(scale))
        for i, r in enumerate(self.resolutions[1:]):
            at = slice(2 * i + 1, 2 * i + 3)  # its convolutions; toRGB shares its latent with the next block
            x, image = getattr(self, f"b{r}")(x, image, ws[:, at.start : at.stop + 1], maps[at], noise_mode, given[at])
        return image

    def noise_sizes(self, scale: int | tuple[int, int] = 0) -> list[tuple[int, int]]:
        """Height and width of each convolution's noise."""
        return [layer.out_size(*size) for layer, size in self._convolutions(scale)]

    def pad_map_sizes(self, scale: int | tuple[int, int] = 0) -> list[tuple[int, int, int] | None]:
        """Channels and least height and width of each entry of ``pad_maps``, a map [N, channels, height, width] whose
        centre is taken. From the second on a ring [N, channels, 2 * (height + width) - 4] will do as well, and None
        stands for a convolution without padding, which takes none::

            sizes = synthesis.pad_map_sizes()
            pad_maps = [None if size is None else torch.zeros(n, *size) for size in sizes]
        """
        head = (self.b4.in_channels, *self.b4.size(_both(scale)))
        return [head, *[layer.pad_map_size(*size) for layer, size in self._convolutions(scale)]]

    def _convolutions(self, scale: int | tuple[int, int]) -> list[tuple[nn.StyleConv, tuple[int, int]]]:
        """Each with height and width of its input."""
        size, found = self.b4.size(_both(scale)), []
        for r in self.resolutions:
            block = getattr(self, f"b{r}")
            for layer in (block.conv1,) if r == 4 else (block.conv0, block.conv1):
                found.append((layer, size))
                size = layer.out_size(*size)
        return found


class HeadBlock(torch.nn.Module):
    """The first resolution: the constant or an encoding, one convolution, and for "skip" an image."""

    resample_filter: torch.Tensor

    def __init__(
        self,
        channels: int,
        head: str,
        head_size: tuple[int, int],
        interp_head: bool,
        layout: str,
        div_half_dim: bool,
        *,
        w_dim: int,
        img_channels: int,
        architecture: str,
        no_pad: bool,
        up_after_conv: bool | None,
        conv_clamp: float | None,
        activation: str,
    ) -> None:
        super().__init__()
        self.head, self.in_channels = head, 2 if head == "csg" else channels
        border = 2 if no_pad else 0
        self.base_size = (head_size[0] + border, head_size[1] + border)
        self.encoding: dict[str, Any] = dict(layout=layout, base_size=self.base_size if interp_head else None)
        if head == "spe":
            encodings.check_channels(channels, layout, div_half_dim, "channel_max")
            self.encoding |= dict(channels=channels, div_half_dim=div_half_dim)
        if head == "constant":
            self.const = torch.nn.Parameter(torch.randn(channels, *self.base_size))
        self.conv1 = nn.StyleConv(
            self.in_channels,
            channels,
            w_dim,
            head_size,
            padding=0 if no_pad else 1,
            act=activation,
            clamp=conv_clamp,
        )
        self.torgb = nn.ToRGB(channels, img_channels, w_dim, clamp=conv_clamp) if architecture == "skip" else None
        self.register_buffer("resample_filter", PF.setup_filter(nn.TAPS))

    def forward(self, ws, features, pad_map, noise_mode, noise, scale):
        """Features [N, C, h, w] and the image [N, img_channels, h, w] or None."""
        # Every later layer keeps the format, in which convolutions and epilogues run fastest.
        x = layout.in_format(self._features(ws.shape[0], scale, features), torch.channels_last)
        x = self.conv1(x, ws[:, 0], pad_map=pad_map, noise_mode=noise_mode, noise=noise)
        return x, None if self.torgb is None else full(self.torgb(x, ws[:, 1]))

    def size(self, scale: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the head."""
        return self.base_size[0] + scale[0], self.base_size[1] + scale[1]

    def extra_repr(self) -> str:
        return f"head={self.head!r}, size={self.base_size}"

    def _features(self, n: int, scale: tuple[int, int], given: torch.Tensor | None) -> torch.Tensor:
        """What the first convolution reads, [N, I, h, w]."""
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


class Block(torch.nn.Module):
    """A further resolution: two convolutions, the first of which enlarges, and for "skip" an image on top of the last
    one's, enlarged. "resnet" adds the enlarged input; it and "orig" make an image in the last block only."""

    resample_filter: torch.Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        resolution: tuple[int, int],
        *,
        is_last: bool,
        w_dim: int,
        img_channels: int,
        architecture: str,
        no_pad: bool,
        up_after_conv: bool | None,
        conv_clamp: float | None,
        activation: str,
    ) -> None:
        super().__init__()
        border, padding, clamp = (2, 0, conv_clamp) if no_pad else (0, 1, conv_clamp)
        self.conv0 = nn.StyleConv(
            in_channels,
            out_channels,
            w_dim,
            (resolution[0] + border, resolution[1] + border),
            up=2,
            padding=padding,
            up_after_conv=up_after_conv,
            interp_pad=2 * border,
            act=activation,
            clamp=clamp,
        )
        self.conv1 = nn.StyleConv(
            out_channels, out_channels, w_dim, resolution, padding=padding, act=activation, clamp=clamp
        )
        with_image = is_last or architecture == "skip"
        self.torgb = nn.ToRGB(out_channels, img_channels, w_dim, clamp=clamp) if with_image else None
        residual = architecture == "resnet"
        self.skip = nn.EqualConv2d(in_channels, out_channels, 1, bias=False, up=2) if residual else None
        self.register_buffer("resample_filter", PF.setup_filter(nn.TAPS))

    def forward(self, x, image, ws, pad_maps, noise_mode, noises):
        """Features [N, I, h, w] and the image before, to [N, O, 2 * h, 2 * w] and the image or None."""
        skip = None if self.skip is None else self.skip(x, gain=math.sqrt(0.5))
        gain = 1.0 if skip is None else math.sqrt(0.5)
        x = self.conv0(x, ws[:, 0], pad_map=pad_maps[0], noise_mode=noise_mode, noise=noises[0])
        x = self.conv1(x, ws[:, 1], pad_map=pad_maps[1], noise_mode=noise_mode, noise=noises[1], gain=gain)
        x = x if skip is None else skip + x
        if image is not None:
            image = PF.upsample2d(image, self.resample_filter)
        if self.torgb is not None:
            y = full(self.torgb(x, ws[:, 2]))
            image = y if image is None else image + y
        return x, image


def _entries(values: Any, name: str, count: int) -> list[torch.Tensor | None]:
    """``count`` entries, None behind the given ones."""
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
        ring = None if name == "pad_maps[0]" else (n, c, 2 * (h + w) - 4)  # the head has no border
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
    """Name, shape and expected size of each entry that is there."""
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
    """The centre crop, its offset rounded down."""
    y, x = (pad_map.shape[2] - h) // 2, (pad_map.shape[3] - w) // 2
    return pad_map[:, :, y : y + h, x : x + w]
