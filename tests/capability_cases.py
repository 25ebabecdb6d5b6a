"""Calls of every op and small networks, which the tests of torch's transforms, of export and of the table share."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch

from posgan_fast import functional as PF
from posgan_fast import nn
from posgan_fast.models import DCGANGenerator, Discriminator, Generator, PGGANGenerator, SinGANGenerator

TAPS = PF.setup_filter([1, 3, 3, 1])


class Case(NamedTuple):
    """A function of tensors, and float64 tensors to call it with."""

    function: Callable[..., torch.Tensor]
    inputs: tuple[torch.Tensor, ...]


def _random(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=_GENERATOR, dtype=torch.float64)


_GENERATOR = torch.Generator().manual_seed(0)
_X, _STYLES, _BIAS = _random(2, 2, 3, 4), _random(2, 2), _random(2)
_WEIGHT, _RGB, _OUT = _random(3, 2, 3, 3), _random(3, 2, 1, 1), _random(3)

OPS = {
    "upfirdn2d": Case(lambda x: PF.upfirdn2d(x, TAPS, up=2, down=3, padding=[3, 2, 1, 4], flip_filter=True), (_X,)),
    "filter2d": Case(lambda x: PF.filter2d(x, TAPS), (_X,)),
    "upsample2d": Case(lambda x: PF.upsample2d(x, TAPS), (_X,)),
    "downsample2d": Case(lambda x: PF.downsample2d(x, TAPS), (_X,)),
    "bias_act": Case(lambda x, b: PF.bias_act(x, b, act="swish", clamp=1.5), (_X, _BIAS)),
    "bias_act, lrelu": Case(lambda x, b: PF.bias_act(x, b, act="lrelu", clamp=1.5), (_X, _BIAS)),
    "bias_act, 1-D": Case(lambda x, b: PF.bias_act(x, b, dim=0, act="softplus"), (_random(3), _random(3))),
    "bias_act_": Case(lambda x, b: PF.bias_act_(x * 2, b, act="lrelu"), (_X, _BIAS)),
    "epilogue2d": Case(
        lambda x, scale, noise, b: PF.epilogue2d(x, None, scale, noise, b, act="lrelu", clamp=2),
        (_X, _random(2, 2), _random(2, 1, 3, 4), _BIAS),
    ),
    "epilogue2d, up": Case(
        lambda x, scale, noise, b: PF.epilogue2d(
            x, TAPS, scale, noise, b, up=2, padding=[2, 1, 2, 1], act="tanh", clamp=2
        ),
        (_X, _random(2, 2), _random(1, 1, 6, 8), _BIAS),
    ),
    "prologue2d": Case(
        lambda x, styles, residual: PF.prologue2d(x, styles, residual=residual, padding=[1, 0, 2, 1]),
        (_X, _STYLES, _random(2, 2, 3, 4)),
    ),
    "prologue2d, reflect, csg": Case(
        lambda x, styles: PF.prologue2d(x, styles, padding=2, mode="reflect", encode="csg"), (_X, _STYLES)
    ),
    "prologue2d, concatenated spe": Case(
        lambda x, styles: PF.prologue2d(x, styles, encode="spe", join="concat", channels=4, div_half_dim=True),
        (_X, _random(2, 6)),
    ),
    "prologue2d, map": Case(
        lambda x, styles, pad_map: PF.prologue2d(x, styles, padding=1, mode="instance", pad_map=pad_map),
        (_X, _STYLES, _random(2, 2, 6, 6)),
    ),
    "instance_pad2d, ring": Case(lambda x, ring: PF.instance_pad2d(x, ring), (_X, _random(2, 2, 18))),
    "conv2d": Case(
        lambda x, weight, bias: PF.conv2d(x, weight, bias, scale=0.5, padding=1, act="lrelu", clamp=2),
        (_X, _WEIGHT, _OUT),
    ),
    "conv2d, reflect, stride": Case(
        lambda x, weight, scale: PF.conv2d(x, weight, scale=scale, stride=2, padding=1, padding_mode="reflect"),
        (_X, _WEIGHT, _OUT),
    ),
    "modulated_conv2d": Case(
        lambda x, weight, styles, noise, bias: PF.modulated_conv2d(
            x, weight, styles, padding=1, noise=noise, bias=bias, act="lrelu"
        ),
        (_X, _WEIGHT, _STYLES, _random(3, 4), _OUT),
    ),
    "modulated_conv2d, up": Case(
        lambda x, weight, styles, bias: PF.modulated_conv2d(
            x, weight, styles, up=2, padding=1, resample_filter=TAPS, bias=bias, act="lrelu"
        ),
        (_X, _WEIGHT, _STYLES, _OUT),
    ),
    "modulated_conv2d, down": Case(
        lambda x, weight, styles: PF.modulated_conv2d(x, weight, styles, down=2, padding=1, resample_filter=TAPS),
        (_X, _WEIGHT, _STYLES),
    ),
    "modulated_conv2d, map": Case(
        lambda x, weight, styles, pad_map: PF.modulated_conv2d(x, weight, styles, padding=1, pad_map=pad_map),
        (_X, _WEIGHT, _STYLES, _random(2, 2, 5, 7)),
    ),
    "modulated_conv2d, toRGB": Case(
        lambda x, weight, styles, bias: PF.modulated_conv2d(x, weight, styles, demodulate=False, bias=bias),
        (_X, _RGB, _STYLES, _OUT),
    ),
}


class Network(NamedTuple):
    """How to build a module, the shapes of its inputs without the batch, and what the batch is a multiple of."""

    build: Callable[[], torch.nn.Module]
    shapes: tuple[tuple[int, ...], ...]
    group: int = 1

    def module(self) -> torch.nn.Module:
        """A module with noise, in the mode of evaluation, the same each time."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = self.build().eval()
            for name, parameter in module.named_parameters():
                if name.endswith("noise_strength"):
                    torch.nn.init.constant_(parameter, 0.3)
            return module

    def inputs(self, groups: int, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, ...]:
        """Inputs with this many times ``group`` samples."""
        generator = torch.Generator().manual_seed(groups)
        return tuple(torch.randn(groups * self.group, *s, generator=generator, dtype=dtype) for s in self.shapes)


class _SinGAN(SinGANGenerator):
    """Two stages, whose noises are two arguments."""

    def __init__(self) -> None:
        super().__init__(2, encode="spe", width=4)

    def forward(self, first: torch.Tensor, second: torch.Tensor) -> torch.Tensor:
        return super().forward([first, second], [1.0, 0.5])


_SMALL = dict(z_dim=8, w_dim=8, channel_max=8, mapping_layers=1)
NETWORKS = {
    "StyleConv": Network(lambda: nn.StyleConv(4, 3, 8, 8, up=2), ((4, 4, 4), (8,))),
    "Generator": Network(lambda: Generator(8, **_SMALL), ((8,),)),
    "Generator, MS-PIE": Network(lambda: Generator(8, head="spe", no_pad=True, **_SMALL), ((8,),)),
    "Discriminator": Network(lambda: Discriminator(8, channel_max=8), ((3, 8, 8),), 4),
    "SinGANGenerator": Network(lambda: _SinGAN(), ((8, 6, 5), (1, 8, 7))),
    # Pixel normalisation of fewer channels magnifies the rounding of bfloat16.
    "PGGANGenerator": Network(lambda: PGGANGenerator(8, z_dim=32, max_channels=32), ((32,),)),
    "DCGANGenerator": Network(lambda: DCGANGenerator(8, z_dim=8, base_channels=8, no_pad=True), ((8,),)),
}
