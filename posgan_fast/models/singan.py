"""SinGAN: generators of one image, with the positional encodings and the paddings of the CVPR 2021 paper.

Stage t adds detail to the enlarged image of stage t - 1::

    input_t = noise_t * weight_t + image        stage 0 with an encoding: (noise_0 + E) * weight_0, no image
    image_t = tanh(block_t(pad(input_t))) + image

``block_t`` has five 3x3 convolutions. Between stages, bicubic interpolation with aligned corners enlarges the image.
The published generators are settings of :class:`SinGANGenerator`:

===========================================  ==========================================
original SinGAN                              ``SinGANGenerator(stages)``
singan_csg                                   ``SinGANGenerator(stages, encode="csg")``
singan_spe-dim4, singan_spe-dim8             ``SinGANGenerator(stages, encode="spe")``
singan_interp-pad                            ``SinGANGenerator(stages, padding="interp")``
singan_interp-pad_disc-nobn                  the same, with ``SinGANDiscriminator(stages, norm=False)``
===========================================  ==========================================

Source: "SinGAN: Learning a Generative Model from a Single Natural Image" (ICCV 2019) and "Positional Encoding as
Spatial Inductive Bias in GANs" (CVPR 2021), in the form of mmgeneration, whose names and shapes of state these networks
have.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from .. import nn
from ..ops.common import checks, encodings
from .report import LoadReport

PADDINGS = ("zeros", "reflect", "interp", "none")
PAD = 5  # pixels that the five convolutions of a block take from each side
BODY = 3  # convolutions between the first and the last
_MAX_STAGES = 64


class Block(torch.nn.Module):
    """Five convolutions: ``head``, ``body.block1`` to ``body.block3``, ``tail``."""

    def __init__(self, in_channels: int, width: int, out_channels: int, act: str, norm: bool, **padding: Any) -> None:
        super().__init__()
        self.in_channels, self.width = in_channels, width
        self.head = nn.ConvNormAct2d(in_channels, width, norm=norm, **padding)
        self.body = torch.nn.Sequential()
        for i in range(1, BODY + 1):
            self.body.add_module(f"block{i}", nn.ConvNormAct2d(width, width, norm=norm, **padding))
        self.tail = nn.ConvNormAct2d(width, out_channels, norm=False, act=act, **padding)
        for module in self.modules():
            if isinstance(module, torch.nn.Conv2d):
                torch.nn.init.normal_(module.weight, 0, 0.02)
                if module.bias is not None:
                    torch.nn.init.zeros_(module.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.tail(self.body(self.head(x)))


class SinGANGenerator(torch.nn.Module):
    """Make images in the likeness of one image, stage by stage.

    Args:
        stages: number of stages.
        encode: positional encoding that stage 0 adds to its noise: None, "csg" (two channels) or "spe".
        padding: "zeros" or "reflect" surround the input; "interp" enlarges the image by interpolation to the size of
            the noise, which has ten more rows and columns; "none" does so too, and adds the result of the block to the
            centre of the enlarged image, so that no pixel moves.
        pad_at: "head" pads once by 5 pixels ahead of a block, "conv" by 1 pixel ahead of each convolution; None: "conv"
            with an encoding, else "head", as in the published generators. "interp" and "none" know "head" only.
        encoding_channels: channels of the encoding "spe", a multiple of 4.
        channels: channels of the image.
        width, max_width: min(width * 2 ** (t // 4), max_width) channels inside stage t.
        layout, div_half_dim: arguments of :func:`posgan_fast.functional.sinusoidal_encoding2d`.

    Attributes:
        noises, noise_weights: the stored noise of each stage, which makes :meth:`reconstruct` return the image of the
            training, and the factors of the noise; None until :meth:`store_noises`. ``state_dict`` does not hold them,
            as in the published files.
        report: of a loaded generator: what became of its tensors.

    State: ``blocks.{t}.head``, ``blocks.{t}.body.block{1, 2, 3}`` and ``blocks.{t}.tail``, each a
    :class:`posgan_fast.nn.ConvNormAct2d`, all but the last with batch normalisation.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a wrong number, an unknown choice, or arguments that do not go together.

    Example:
        >>> generator = SinGANGenerator(3, encode="spe", width=8).eval()
        >>> sizes = [(13, 10), (19, 15), (28, 22)]
        >>> generator.store_noises(generator.draw_noises(sizes), [1.0, 0.1, 0.1])
        >>> generator.sample(2, scale=(1, 1.5), seed=0).shape
        torch.Size([2, 3, 28, 33])
    """

    noises: list[torch.Tensor] | None
    noise_weights: list[float] | None
    report: LoadReport

    def __init__(
        self,
        stages: int,
        *,
        encode: str | None = None,
        padding: str = "zeros",
        pad_at: str | None = None,
        encoding_channels: int = 8,
        channels: int = 3,
        width: int = 32,
        max_width: int = 128,
        layout: str = "mmgen",
        div_half_dim: bool = False,
    ) -> None:
        super().__init__()
        self.channels = checks.integer(channels, "channels", minimum=1)
        self.encode = None if encode is None else checks.choice(encode, "encode", encodings.KINDS)
        self.padding, self.pad_at = checks.choice(padding, "padding", PADDINGS), _place(encode, padding, pad_at)
        if encode == "spe":
            encodings.check_channels(encoding_channels, layout, div_half_dim, "encoding_channels")
        first = {None: channels, "csg": 2, "spe": encoding_channels}[encode]
        self.margin = 2 * PAD if padding in ("interp", "none") else 0  # rows and columns that noise has more
        inside: dict[str, Any] = {}
        ahead: dict[str, Any] = {}
        if not self.margin:
            mode = {"padding_mode" if self.pad_at == "conv" else "mode": padding}
            inside, ahead = (dict(padding=1) | mode, {}) if self.pad_at == "conv" else ({}, dict(padding=PAD) | mode)
        encoding: dict[str, Any] = dict(encode=encode, layout=layout, div_half_dim=div_half_dim)
        self.first_input = nn.PositionalNoise2d(first, **encoding, **ahead)
        self.input = nn.PositionalNoise2d(channels, **ahead)
        self.blocks = torch.nn.ModuleList()
        for t, w in enumerate(widths(stages, width, max_width)):
            self.blocks.append(Block(channels if t else first, w, channels, "tanh", True, **inside))
        self.noises = self.noise_weights = None

    def forward(
        self, noises: Sequence[torch.Tensor], noise_weights: Sequence[float], image: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Make images of the last stage that has a noise, [N, channels, H, W]; nothing is drawn.

        The sizes of the noises are those of the images, plus ten rows and columns with "interp" and "none".

        Args:
            noises: noise of each stage from the first, [N, C, h, w] with C = 1 or the channels of the stage's input.
            noise_weights: factor of each noise.
            image: image [N, channels, h, w] that stage 0 adds to; None: zeros.

        Raises:
            TypeError: no sequences of tensors and of numbers.
            ValueError: more noises than stages, none, fewer weights than noises, or a wrong shape.
        """
        noises = self._check_noises(noises)
        weights = self._check_weights(noise_weights, len(noises))
        return self._stages(noises, weights, image)

    def stage(self, t: int, noise: torch.Tensor, noise_weight: float, image: torch.Tensor) -> torch.Tensor:
        """Add the detail of stage ``t`` to ``image`` [N, channels, h, w], which already has the size of the stage."""
        inside = image
        if self.margin:
            h, w = noise.shape[2:]
            inside = resize(image, (h, w))
            if self.padding == "none":
                image = inside[:, :, PAD : h - PAD, PAD : w - PAD]
        if t or self.encode is None:
            x = (self.input if t else self.first_input)(noise, inside, noise_weight)
        else:
            x = self.first_input(noise, None, noise_weight)
        return self.blocks[t](x) + image

    def store_noises(self, noises: Sequence[torch.Tensor], noise_weights: Sequence[float]) -> None:
        """Keep the noises [1, C, h, w] and the weights that :meth:`reconstruct` and :meth:`sample` use.

        Raises:
            TypeError, ValueError: as for :meth:`forward`.
        """
        noises = self._check_noises(noises)
        if noises[0].shape[0] != 1:
            raise ValueError(f"noises[0]: expected one sample, got shape {tuple(noises[0].shape)}")
        self.noise_weights = self._check_weights(noise_weights, len(noises))
        like = self._like()
        self.noises = [noise.detach().to(like.device, like.dtype) for noise in noises]

    def draw_noises(
        self,
        sizes: Sequence[Sequence[int]],
        n: int = 1,
        *,
        seed: int | None = None,
        channels: Sequence[int] | None = None,
    ) -> list[torch.Tensor]:
        """Draw normal noise for images of ``sizes`` [height, width], one for each stage: [n, C, h, w] each.

        Args:
            sizes: sizes of the images.
            n: number of images.
            seed: seed of the random numbers; None: torch's generator.
            channels: C of each noise; None: those of the encoding in stage 0 and 1 elsewhere, as published.
        """
        n = checks.integer(n, "n", minimum=0)
        if not isinstance(sizes, Sequence) or not 1 <= len(sizes) <= len(self.blocks):
            raise ValueError(f"sizes: expected 1 to {len(self.blocks)} pairs [height, width], got {sizes!r:.80}")
        sides = [checks.size(size, f"sizes[{t}]") for t, size in enumerate(sizes)]
        counts = [self.first_input.channels if t == 0 and self.encode else 1 for t in range(len(sides))]
        if channels is not None:
            counts = [checks.integer(c, f"channels[{t}]", minimum=1) for t, c in enumerate(channels)]
            if len(counts) != len(sides):
                raise ValueError(f"channels: expected {len(sides)} ints, one for each size, got {len(counts)}")
        like = self._like()
        random = None
        if seed is not None:
            random = torch.Generator(like.device).manual_seed(
                checks.integer(seed, "seed", minimum=0, maximum=2**63 - 1)
            )
        return [
            torch.randn(n, c, h + self.margin, w + self.margin, generator=random, device=like.device, dtype=like.dtype)
            for c, (h, w) in zip(counts, sides, strict=True)
        ]

    def reconstruct(self) -> torch.Tensor:
        """Make the image of the training from the stored noises: [1, channels, H, W].

        Raises:
            ValueError: there are no stored noises.
        """
        noises, weights, _ = self._stored()
        return self._stages(noises, weights, None)

    def sample(
        self,
        n: int,
        *,
        scale: float | Sequence[float] | None = None,
        size: Sequence[int] | None = None,
        seed: int | None = None,
        start_stage: int = 0,
    ) -> torch.Tensor:
        """Make ``n`` random images [n, channels, H, W] of any size.

        SPE continues its waves in a larger image; CSG spreads over it.

        Args:
            n: number of images.
            scale: factor of both sides, or [rows, columns], relative to the image of the training.
            size: [height, width] in place of a scale.
            seed: seed of the noise; None: torch's random numbers.
            start_stage: first stage with random noise; the stages before it use the stored noise, resized.

        Raises:
            TypeError: an argument has the wrong type.
            ValueError: there are no stored noises, both ``scale`` and ``size`` are given, or a number is too small.
        """
        stored, weights, sizes = self._stored()
        sizes = _scaled(sizes, scale, size)
        start = checks.integer(start_stage, "start_stage", minimum=0, maximum=len(stored) - 1)
        noises = self.draw_noises(sizes, n, seed=seed, channels=[noise.shape[1] for noise in stored])
        for t, noise in enumerate(stored[:start]):
            noises[t] = resize(noise, noises[t].shape[2:]).expand(n, -1, -1, -1)
        return self._stages(noises, weights, None)

    def extra_repr(self) -> str:
        return f"encode={self.encode!r}, padding={self.padding!r}, pad_at={self.pad_at!r}"

    def _like(self) -> torch.Tensor:
        """Return a weight; noises take its device and dtype."""
        return next(self.blocks.parameters())

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Move the stored noises along with the parameters."""
        if self.noises is not None:
            self.noises = [fn(noise) for noise in self.noises]
        return super()._apply(fn, recurse)

    def _stages(
        self, noises: Sequence[torch.Tensor], weights: Sequence[float], image: torch.Tensor | None
    ) -> torch.Tensor:
        for t, (noise, weight) in enumerate(zip(noises, weights, strict=True)):
            size = tuple(side - self.margin for side in noise.shape[2:])
            if image is None:
                image = noise.new_zeros(noise.shape[0], self.channels, *size)
            elif t == 0:
                checks.tensor(image, "image", shape=(noise.shape[0], self.channels, *size))
            else:
                image = resize(image, size)
            image = self.stage(t, noise, weight, image)
        return image  # type: ignore[return-value]

    def _stored(self) -> tuple[list[torch.Tensor], list[float], list[tuple[int, int]]]:
        """Return noises, weights and sizes of the images."""
        if self.noises is None or self.noise_weights is None:
            raise ValueError(
                "noises: expected stored noises, which tell the size of each stage, got none; "
                "pass noises= to load_singan, or call store_noises"
            )
        sizes = [(noise.shape[2] - self.margin, noise.shape[3] - self.margin) for noise in self.noises]
        return self.noises, self.noise_weights, sizes

    def _check_noises(self, noises: Any) -> list[torch.Tensor]:
        if not isinstance(noises, Sequence) or isinstance(noises, str):
            raise TypeError(f"noises: expected a sequence of tensors, got {type(noises).__name__}")
        if not 1 <= len(noises) <= len(self.blocks):
            raise ValueError(f"noises: expected 1 to {len(self.blocks)} tensors, got {len(noises)}")
        least = self.margin + 1
        for t, noise in enumerate(noises):
            shape = checks.tensor(noise, f"noises[{t}]", ndim=4).shape
            checks.same_device(noise, f"noises[{t}]", noises[0], like="noises[0]")
            channels = (self.input if t else self.first_input).channels
            if shape[0] != noises[0].shape[0] or shape[1] not in (1, channels) or min(shape[2:]) < least:
                n, c = noises[0].shape[0], "1" if channels == 1 else f"1 or {channels}"
                raise ValueError(f"noises[{t}]: expected shape [{n}, {c}, >= {least}, >= {least}], got {tuple(shape)}")
        return list(noises)

    @staticmethod
    def _check_weights(weights: Any, count: int) -> list[float]:
        if not isinstance(weights, Sequence) or isinstance(weights, str):
            raise TypeError(f"noise_weights: expected a sequence of numbers, got {type(weights).__name__}")
        if len(weights) < count:
            raise ValueError(f"noise_weights: expected {count} numbers, one for each noise, got {len(weights)}")
        return [checks.real(weight, f"noise_weights[{t}]") for t, weight in enumerate(weights[:count])]


class SinGANDiscriminator(torch.nn.Module):
    """Judge the patches of images, one network for each stage.

    Args:
        stages: number of stages.
        norm: False leaves the batch normalisation out, as in mmgeneration's configurations "disc-nobn".
        channels: channels of the image.
        width, max_width: arguments of :class:`SinGANGenerator`.

    State: as :class:`SinGANGenerator`; without ``norm`` the convolutions have biases in place of ``bn``.

    Example:
        >>> SinGANDiscriminator(3, width=8)(torch.randn(2, 3, 28, 22), stage=2).shape
        torch.Size([2, 1, 18, 12])
    """

    report: LoadReport

    def __init__(
        self, stages: int, *, norm: bool = True, channels: int = 3, width: int = 32, max_width: int = 128
    ) -> None:
        super().__init__()
        self.channels = checks.integer(channels, "channels", minimum=1)
        self.blocks = torch.nn.ModuleList(
            Block(channels, w, 1, "linear", checks.flag(norm, "norm")) for w in widths(stages, width, max_width)
        )

    def forward(self, image: torch.Tensor, stage: int = -1) -> torch.Tensor:
        """Judge images [N, channels, H, W] of a stage (-1: the last); returns [N, 1, H - 10, W - 10].

        Raises:
            TypeError: ``image`` is no tensor of a supported dtype, or ``stage`` no int.
            ValueError: an image of another shape or less than 11 pixels wide or high; no such stage.
        """
        last = len(self.blocks) - 1
        t = checks.integer(stage, "stage", minimum=-1, maximum=last)
        block = self.blocks[t if t >= 0 else last]
        checks.features(image, "image", self.channels, next(block.parameters()))
        if min(image.shape[2:]) <= 2 * PAD:
            raise ValueError(f"image: expected more than {2 * PAD} rows and columns, got shape {tuple(image.shape)}")
        return block(image)


def widths(stages: Any, width: Any, max_width: Any) -> list[int]:
    """List the channels inside each stage."""
    stages = checks.integer(stages, "stages", minimum=1, maximum=_MAX_STAGES)
    width = checks.integer(width, "width", minimum=1)
    max_width = checks.integer(max_width, "max_width", minimum=width)
    return [min(width * 2 ** (t // 4), max_width) for t in range(stages)]


def resize(image: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    """Interpolate ``image`` [N, C, H, W] to [N, C, height, width] as the stages do."""
    if tuple(image.shape[2:]) == tuple(size):
        return image
    return F.interpolate(image, tuple(size), mode="bicubic", align_corners=True)


def _place(encode: str | None, padding: str, pad_at: Any) -> str:
    """Return where the padding is added."""
    if padding in ("interp", "none"):
        if pad_at not in (None, "head"):
            raise ValueError(f"pad_at: expected 'head' or None with padding={padding!r}, got {pad_at!r}")
        return "head"
    if pad_at is None:
        return "head" if encode is None else "conv"
    return checks.choice(pad_at, "pad_at", ("head", "conv"))


def _scaled(sizes: list[tuple[int, int]], scale: Any, size: Any) -> list[tuple[int, int]]:
    """Return the sizes of all stages for a last stage that is scaled, or of another size."""
    height, width = sizes[-1]
    if size is not None:
        if scale is not None:
            raise ValueError("size: expected None beside scale")
        h, w = checks.size(size, "size")
    else:
        pair = (
            scale if isinstance(scale, Sequence) and not isinstance(scale, str) else [1 if scale is None else scale] * 2
        )
        if len(pair) != 2:
            raise ValueError(f"scale: expected a number or [rows, columns], got {len(pair)} values")
        sy, sx = (checks.real(s, "scale") for s in pair)
        h, w = round(sy * height), round(sx * width)
        if h < 1 or w < 1:
            raise ValueError(f"scale: expected an image of at least one pixel, got {h} x {w}")
    return [*[(max(1, round(a * h / height)), max(1, round(b * w / width))) for a, b in sizes[:-1]], (h, w)]
