"""The encoder of PadInv, which turns an image into latents and padding maps for a StyleGAN2 generator.

An IResNet with squeeze and excitation and a feature pyramid see the image at three sides; heads turn these features
into one latent for each layer of the generator, and into what replaces the generator's constant and zero padding.
Without a padding space the network is pSp's.

Source: "High-fidelity GAN Inversion with Padding Space" (ECCV 2022) and its released code, whose names and shapes of
state this network has; "Encoding in Style" (CVPR 2021) for pSp.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from .. import functional as PF
from .. import nn
from ..ops.common import checks, layout
from .iresnet import Bottleneck, conv2d
from .report import LoadReport
from .stylegan2 import Generator

BLOCKS = {50: (3, 4, 14, 3), 100: (3, 13, 30, 3), 152: (3, 8, 36, 3)}  # of the four stages, by depth
PADDINGS = ("heads", "shared", "projection")
MOST_PAD_LAYERS = 5
LEAST_SIZE = 32
SLOPE = 0.01  # of the leaky ReLU in the style heads
MOST_PIXELS = 64  # of an input that is convolved as a matrix product
_LEVELS = 3  # of the feature pyramid
TOP = 16  # ratio of the image's side to the side of the smallest features
_FIRST = 4  # side of the generator's constant

PadMaps = list[torch.Tensor | None]


class PadInvEncoder(torch.nn.Module):
    """Turn images into latents and padding maps: ``ws, pad_maps = encoder(images)``.

    ``generator.synthesis(ws, pad_maps=pad_maps, noise_mode="const")`` is then the image that the codes stand for.

    Args:
        size: side of the images, a power of two >= 32.
        num_ws: latents in all, one for each layer of the generator; the released encoders make 18 for any generator.
        levels: latents of each level of the feature pyramid, smallest features first; None: 3, 4 and the rest.
        w_dim: size of a latent.
        depth: number of layers of the IResNet: 50, 100 or 152.
        width: channels of the first convolution; the last stage and the pyramid have eight times as many.
        padding: what makes the padding maps. "heads" as released: two blocks and a head for each layer; "shared":
            the blocks without heads, one map for all layers; "projection": the paper's text, one 1x1 convolution of
            the features whose side is that of the last padded layer, one map for all layers; None: pSp, no maps.
        pad_layers: convolutions with a map, those without upsampling at 4, 8, 16, ... pixels: 1 to 5, or 0 for the
            constant alone, without heads.
        pad_channels: channels of each map, those of the generator's features; None: ``8 * width``. Without heads all
            are ``8 * width``.
        pad_constant: True also replaces the generator's constant, which then has ``8 * width`` channels.
        extractor_depth: blocks between the pyramid and the maps, for "heads" and "shared".

    State: ``input_layer``, ``backbone_stages``, ``fpn``, ``latent_heads``, ``padding_extractor`` and
    ``padding_modulation_heads`` as in the released files; ``padding_projection`` for "projection"; and the buffer
    ``latent_average`` [num_ws, w_dim], which is added to the latents, zeros at first. The kernels lie in channels_last;
    safetensors wants ``{name: value.contiguous() for name, value in encoder.state_dict().items()}``.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a wrong size or number, an unknown choice, or arguments that do not go together.

    Example:
        >>> encoder = PadInvEncoder(32, num_ws=8, width=8, w_dim=16, levels=(2, 3, 3), pad_layers=2).eval()
        >>> ws, pad_maps = encoder(torch.rand(1, 3, 32, 32) * 2 - 1)
        >>> ws.shape, [None if p is None else tuple(p.shape) for p in pad_maps]
        (torch.Size([1, 8, 16]), [(1, 64, 4, 4), (1, 64, 20), None, (1, 64, 36)])
    """

    latent_average: torch.Tensor
    report: LoadReport

    def __init__(
        self,
        size: int = 256,
        *,
        num_ws: int = 18,
        levels: Sequence[int] | None = None,
        w_dim: int = 512,
        depth: int = 50,
        width: int = 64,
        padding: str | None = "heads",
        pad_layers: int = 4,
        pad_channels: Sequence[int] | None = None,
        pad_constant: bool = True,
        extractor_depth: int = 2,
    ) -> None:
        super().__init__()
        self.size = checks.integer(size, "size", minimum=LEAST_SIZE)
        if self.size & (self.size - 1):
            raise ValueError(f"size: expected a power of two, got {size}")
        self.num_ws = checks.integer(num_ws, "num_ws", minimum=1)
        self.levels = _check_levels(levels, self.num_ws)
        self.w_dim = checks.integer(w_dim, "w_dim", minimum=1)
        if checks.integer(depth, "depth") not in BLOCKS:
            raise ValueError(f"depth: expected one of {', '.join(map(str, BLOCKS))}, got {depth}")
        width = checks.integer(width, "width", minimum=2)
        channels = self.channels = 8 * width
        self.padding = None if padding is None else checks.choice(padding, "padding", PADDINGS)
        least = 0 if padding in ("shared", "projection") and pad_constant else 1
        self.pad_layers = checks.integer(pad_layers, "pad_layers", minimum=least, maximum=MOST_PAD_LAYERS)
        self.pad_constant = checks.flag(pad_constant, "pad_constant")
        extractor_depth = checks.integer(extractor_depth, "extractor_depth", minimum=int(padding == "shared"))
        pad_channels = _check_channels(pad_channels, self.padding, self.pad_layers, channels)

        stem = torch.nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.input_layer = torch.nn.Sequential(stem, torch.nn.BatchNorm2d(width), torch.nn.PReLU(width))
        self.backbone_stages = torch.nn.ModuleList()
        for stage, count in enumerate(BLOCKS[depth]):
            inner, outer = width * 2 ** max(stage - 1, 0), width * 2**stage
            first = Bottleneck(inner, outer, 2)
            self.backbone_stages.append(
                torch.nn.Sequential(first, *(Bottleneck(outer, outer) for _ in range(count - 1)))
            )
        self.fpn = FeaturePyramid((channels // 4, channels // 2, channels))
        if self.padding in ("heads", "shared"):
            extractor = (Bottleneck(channels, channels) for _ in range(extractor_depth))
            self.padding_extractor = torch.nn.Sequential(*extractor)
        if self.padding == "heads":
            self.padding_modulation_heads = torch.nn.ModuleList(
                torch.nn.Conv2d(channels, count, 1) for count in pad_channels
            )
        elif self.padding == "projection":
            self.padding_projection = torch.nn.Conv2d(channels, channels, 1)
        sides = [self.size // TOP * 2**level for level, count in enumerate(self.levels) for _ in range(count)]
        self.latent_heads = torch.nn.ModuleList(LatentHead(channels, self.w_dim, side) for side in sides)
        self.register_buffer("latent_average", torch.zeros(self.num_ws, self.w_dim))
        # In another format the convolutions copy a weight at every call.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @classmethod
    def for_generator(cls, generator: Generator, size: int = 256, **settings: Any) -> PadInvEncoder:
        """Make an encoder whose codes fit a generator, around the generator's average latent.

        Args:
            generator: a StyleGAN2 with a constant.
            size: side of the images to encode.
            settings: arguments of the class that replace those which follow from the generator; without ``pad_layers``
                it is 4, or one less than the generator has sides if that is fewer.

        Raises:
            TypeError, ValueError: as the class; the generator takes no padding maps.

        Example:
            >>> generator = Generator(16, z_dim=16, w_dim=16, channel_max=32, mapping_layers=1).eval()
            >>> encoder = PadInvEncoder.for_generator(generator, 32).eval()
            >>> ws, pad_maps = encoder(torch.zeros(1, 3, 32, 32))
            >>> generator.synthesis(ws, pad_maps=pad_maps, noise_mode="const").shape
            torch.Size([1, 3, 16, 16])
        """
        if not isinstance(generator, Generator):
            raise TypeError(f"generator: expected a StyleGAN2 generator, got {type(generator).__name__}")
        settings = dict(num_ws=generator.num_ws, w_dim=generator.w_dim) | settings
        if settings.setdefault("padding", "heads") is not None:
            sizes = generator.synthesis.pad_map_sizes()
            plain = [size for size in sizes[1::2] if size is not None]
            if generator.synthesis.b4.head != "constant" or len(plain) < len(sizes[1::2]) or plain[0][1:] != (6, 6):
                raise ValueError("generator: expected one with a constant of 4 x 4 pixels and zero padding")
            c = plain[0][0]
            if c % 8 or c < 16:
                raise ValueError(f"generator: expected a multiple of 8 channels, at least 16, at 4 pixels, got {c}")
            layers = settings.setdefault("pad_layers", max(1, min(4, len(plain) - 1)))
            if checks.integer(layers, "pad_layers") > len(plain):
                at_most = f"at most {len(plain)} for a generator of {generator.size} pixels"
                raise ValueError(f"pad_layers: expected {at_most}, got {layers}")
            channels = [size[0] for size in plain[:layers]]
            if settings["padding"] == "heads":
                settings.setdefault("pad_channels", channels)
            elif any(count != c for count in channels):
                raise ValueError(
                    f"padding: expected 'heads' for a generator with {channels} channels, got {settings['padding']!r}"
                )
            if settings.setdefault("width", c // 8) != c // 8 and settings.get("pad_constant", True):
                raise ValueError(
                    f"width: expected {c // 8}, an eighth of the constant's channels, got {settings['width']}"
                )
        encoder = cls(size, **settings)
        encoder.set_latent_average(generator)
        return encoder

    def set_latent_average(self, average: torch.Tensor | Generator) -> None:
        """Set what is added to the latents.

        Args:
            average: [w_dim], [num_ws, w_dim], or the generator whose average latent it is.

        Raises:
            TypeError, ValueError: another type or shape.
        """
        value: Any = average.mapping.w_avg if isinstance(average, Generator) else average
        rows, w_dim = self.num_ws, self.w_dim
        if checks.tensor(value, "latent_average").shape not in ((w_dim,), (1, w_dim), (rows, w_dim)):
            raise ValueError(
                f"latent_average: expected shape [{w_dim}], [1, {w_dim}] or [{rows}, {w_dim}], got {tuple(value.shape)}"
            )
        if value.is_meta:
            raise ValueError("latent_average: expected a tensor with values, got one on the device meta")
        with torch.no_grad():
            self.latent_average.copy_(value)

    def forward(
        self, images: torch.Tensor, *, num_ws: int | None = None, rings: bool = True
    ) -> tuple[torch.Tensor, PadMaps | None]:
        """Encode images [N, 3, size, size], RGB from -1 to 1.

        Args:
            images: as above.
            num_ws: latents to compute, the first ones; None: all. A generator of 256 pixels reads 14 of 18.
            rings: True computes of each map only the ring that the generator reads, False whole maps.

        Returns:
            Latents [N, num_ws, w_dim], and ``pad_maps`` as :meth:`posgan_fast.models.Generator` takes them: entry 0
            replaces the constant, the odd entries are rings [N, C, 4 * side + 4] or maps; None without a padding space.

        Raises:
            TypeError, ValueError: images of another type, shape or device; more latents than the encoder has.
        """
        x = checks.features(images, "images", 3, self.latent_average)
        if x.shape[2:] != (self.size, self.size):
            raise ValueError(f"images: expected {self.size} x {self.size} pixels, got shape {tuple(x.shape)}")
        expected = self.latent_average.dtype
        if x.dtype != expected and not torch.is_autocast_enabled(x.device.type):
            raise TypeError(f"images: expected dtype {expected} outside of autocast, got {x.dtype}")
        checks.flag(rings, "rings")
        count = self.num_ws if num_ws is None else checks.integer(num_ws, "num_ws", minimum=1, maximum=self.num_ws)
        if not (torch.is_grad_enabled() and self.fpn.lateral_layers[0].weight.requires_grad):
            x = layout.in_format(x, torch.channels_last)
        stem, norm, act = self.input_layer
        x = act(norm(conv2d(x, stem)))
        stages = []
        for stage in self.backbone_stages:
            x = stage(x)
            stages.append(x)
        features = self.fpn(stages[-_LEVELS:])
        level_of = [level for level, heads in enumerate(self.levels) for _ in range(heads)]
        heads = zip(self.latent_heads[:count], level_of[:count], strict=True)
        ws = torch.stack([head(features[level]) for head, level in heads], dim=1)
        ws = ws + self.latent_average[:count].to(ws.dtype)
        return ws, None if self.padding is None else self._pad_maps(features, rings)

    def pad_sides(self) -> list[int]:
        """Return the side of the features that each map surrounds."""
        return [_FIRST * 2**k for k in range(self.pad_layers)]

    def _pad_maps(self, features: Sequence[torch.Tensor], rings: bool) -> PadMaps:
        if self.padding == "projection":
            x = conv2d(features[min(max(self.pad_layers - 3, 0), _LEVELS - 1)], self.padding_projection)
        else:
            x = self.padding_extractor(features[1])
        side = 2 * 2**self.pad_layers + 2
        whole = F.interpolate(x, (side, side), mode="bicubic", align_corners=True)
        maps: PadMaps = [None] * max(1, 2 * self.pad_layers)
        if self.pad_constant:
            y = (side - _FIRST) // 2
            maps[0] = whole[:, :, y : y + _FIRST, y : y + _FIRST] if rings else whole
        for k, inner in enumerate(self.pad_sides()):
            head: Any = self.padding_modulation_heads[k] if self.padding == "heads" else None
            if rings:
                ring = PF.ring_from_map(whole, inner, inner)
                maps[2 * k + 1] = ring if head is None else F.conv1d(ring, head.weight[..., 0], head.bias)
            else:
                maps[2 * k + 1] = whole if head is None else conv2d(whole, head)
        return maps

    def extra_repr(self) -> str:
        return f"size={self.size}, num_ws={self.num_ws}, padding={self.padding!r}"


class FeaturePyramid(torch.nn.Module):
    """Add to each feature map the upsampled sum of the smaller ones.

    State: ``lateral_layers.{i}.weight`` [C, channels[i], 1, 1] and ``bias`` for all levels but the smallest.
    """

    def __init__(self, channels: Sequence[int]) -> None:
        super().__init__()
        self.lateral_layers = torch.nn.ModuleList(torch.nn.Conv2d(c, channels[-1], 1) for c in channels[:-1])

    def forward(self, features: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return feature maps of C channels, the smallest first, for those of the stages, the largest first."""
        sums = [features[-1]]
        for x, lateral in zip(features[-2::-1], reversed(self.lateral_layers), strict=True):
            x = conv2d(x, lateral)
            sums.append(x + F.interpolate(sums[-1], x.shape[2:], mode="bilinear", align_corners=True))
        return sums


class LatentHead(torch.nn.Module):
    """Turn features into a latent by convolutions with stride 2 down to one pixel.

    State: ``convs.{0, 2, ...}.weight`` [w_dim, C or w_dim, 3, 3] and ``bias``; ``linear`` (:class:`EqualLinear`).
    """

    def __init__(self, channels: int, w_dim: int, side: int) -> None:
        super().__init__()
        self.convs = torch.nn.Sequential()
        for k in range(int(math.log2(side))):
            self.convs.append(torch.nn.Conv2d(w_dim if k else channels, w_dim, 3, 2, padding=1))
            self.convs.append(torch.nn.LeakyReLU(SLOPE, inplace=True))
        self.linear = nn.EqualLinear(w_dim, w_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [N, C, side, side] to [N, w_dim]."""
        for layer in self.convs:
            x = _halved(x, layer) if isinstance(layer, torch.nn.Conv2d) else layer(x)
        return self.linear(x.flatten(1).to(self.linear.weight.dtype))  # latents keep their precision under autocast


def _halved(x: torch.Tensor, conv: torch.nn.Conv2d) -> torch.Tensor:
    """Convolve by a layer with stride 2 and padding 1, in the way that is fastest on the CPU.

    Without a gradient of the weight, a convolution of few pixels is a matrix product, because the vendor's convolution
    reorders the whole weight first. The number of samples decides nothing, so that exported programs take any.
    """
    weight, bias = conv.weight, conv.bias
    n, c, h, w = x.shape
    learns = torch.is_grad_enabled() and weight.requires_grad
    if learns or x.device.type != "cpu" or h * w > MOST_PIXELS or torch.is_autocast_enabled("cpu"):
        return conv2d(x, conv)
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, 1, 1, 1, 1))  # [N, H + 2, W + 2, C]
    patches = padded.unfold(1, 3, 2).unfold(2, 3, 2).permute(0, 1, 2, 4, 5, 3)  # [N, H / 2, W / 2, 3, 3, C]
    y = F.linear(patches.reshape(n, h // 2, w // 2, 9 * c), weight.permute(0, 2, 3, 1).flatten(1), bias)
    return y.permute(0, 3, 1, 2)


def _check_levels(levels: Any, num_ws: int) -> tuple[int, ...]:
    if levels is None:
        coarse = min(3, num_ws)
        middle = min(4, num_ws - coarse)
        return coarse, middle, num_ws - coarse - middle
    if not isinstance(levels, Sequence) or isinstance(levels, str) or len(levels) != _LEVELS:
        raise ValueError(f"levels: expected {_LEVELS} ints, got {levels!r}")
    found = tuple(checks.integer(count, "levels", minimum=0) for count in levels)
    if sum(found) != num_ws:
        raise ValueError(f"levels: expected a sum of {num_ws}, got {list(found)}")
    return found


def _check_channels(given: Any, padding: str | None, layers: int, channels: int) -> list[int]:
    if given is None:
        return [channels] * layers
    if not isinstance(given, Sequence) or isinstance(given, str) or len(given) != layers:
        raise ValueError(f"pad_channels: expected {layers} ints, one for each map, got {given!r}")
    found = [checks.integer(count, "pad_channels", minimum=1) for count in given]
    if padding != "heads" and found != [channels] * layers:
        raise ValueError(f"pad_channels: expected {channels} for each map of {padding=}, got {found}")
    return found
