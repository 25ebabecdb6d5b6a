"""Layers as torch.nn modules, which hold parameters and state for :mod:`posgan_fast.functional`.

Names and shapes of the state follow NVlabs stylegan2-ada; each class lists its own.
"""

from __future__ import annotations

from .activation import BiasAct
from .conv import Conv2d, EqualConv2d
from .conv_norm_act import ConvNormAct2d
from .encoding import CartesianGrid2d, PositionalNoise2d, SinusoidalEncoding2d
from .linear import EqualLinear
from .minibatch_std import MinibatchStd
from .modulated_conv import ModulatedConv2d
from .padding import InstancePad2d, PaddingSpaceConv2d
from .prepack import prepack
from .resample import TAPS, Blur2d, Downsample2d, Upsample2d
from .style import StyleConv, ToRGB

__all__ = [
    "TAPS", "BiasAct", "Blur2d", "CartesianGrid2d", "Conv2d", "ConvNormAct2d", "Downsample2d", "EqualConv2d",
    "EqualLinear", "InstancePad2d", "MinibatchStd", "ModulatedConv2d", "PaddingSpaceConv2d", "PositionalNoise2d",
    "SinusoidalEncoding2d", "StyleConv", "ToRGB", "Upsample2d", "prepack",
]  # fmt: skip
