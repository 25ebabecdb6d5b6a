"""A block of the generator hands each layer its own latent, and the gain that residual sums need."""

from __future__ import annotations

import math

import pytest
import torch

from posgan_fast import nn
from posgan_fast.models import Generator


@pytest.mark.parametrize("architecture", ["skip", "resnet", "orig"])
def test_each_layer_gets_its_latent_and_gain(architecture):
    """Convolution l reads latent l; an image is made with the latent of the next convolution."""
    generator = Generator(32, architecture=architecture, z_dim=8, w_dim=8, channel_max=8).eval()
    ws, called = torch.randn(1, generator.num_ws, 8), []

    def record(layer, args, kwargs):
        called.append((layer, args[1], kwargs.get("gain", 1.0)))

    for layer in generator.synthesis.modules():
        if isinstance(layer, (nn.StyleConv, nn.ToRGB)):
            layer.register_forward_pre_hook(record, with_kwargs=True)
    generator.synthesis(ws)
    convolutions = 0
    for layer, w, gain in called:
        assert torch.equal(w, ws[:, convolutions])
        second = isinstance(layer, nn.StyleConv) and convolutions in (2, 4, 6)  # in a block of two
        assert gain == (math.sqrt(0.5) if second and architecture == "resnet" else 1.0)
        convolutions += isinstance(layer, nn.StyleConv)
    assert convolutions + 1 == generator.num_ws


def test_a_residual_block_keeps_the_variance():
    """Its branches are independent, so each has half the variance of their sum."""
    generator = Generator(32, architecture="resnet", z_dim=8, w_dim=8, channel_max=8)
    gains = []
    for layer in generator.synthesis.modules():
        if isinstance(layer, nn.EqualConv2d):
            layer.register_forward_pre_hook(lambda layer, args, kwargs: gains.append(kwargs["gain"]), with_kwargs=True)
    generator.synthesis(torch.randn(1, generator.num_ws, 8))
    assert gains == [math.sqrt(0.5)] * 3
