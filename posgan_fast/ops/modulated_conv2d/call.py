"""The arguments of the style layer as one record."""

from __future__ import annotations

from typing import NamedTuple

import torch

from ..common import checks, layout
from ..common.records import Activation
from . import conv2d_resample


class Call(NamedTuple):
    """The arguments of the op, in the order of its schema."""

    x: torch.Tensor
    weight: torch.Tensor
    styles: torch.Tensor
    up: int
    down: int
    padding: int
    pad_map: torch.Tensor | None
    f: torch.Tensor | None
    demodulate: bool
    flip_weight: bool
    eps: float
    noise: torch.Tensor | None
    noise_strength: torch.Tensor | None
    bias: torch.Tensor | None
    act: str
    alpha: float
    gain: float
    clamp: float
    backend: str

    @property
    def activation(self) -> Activation:
        return Activation(self.act, self.alpha, self.gain, self.clamp)


def with_scaled_noise(call: Call) -> Call:
    """Return a call whose noise is multiplied by its strength, in the arithmetic type."""
    if call.noise is None:
        return call
    noise = call.noise.to(checks.arithmetic(call.x.dtype))
    if call.noise_strength is not None:
        noise = noise * call.noise_strength
    return call._replace(noise=noise, noise_strength=None)


def empty_output(call: Call) -> torch.Tensor:
    """Return an empty result in the dtype and memory format of ``x``."""
    size = conv2d_resample.out_size(call.x, call.weight, call.up, call.down, call.padding, call.f)
    return layout.empty(call.x, (call.x.shape[0], call.weight.shape[0], *size))
