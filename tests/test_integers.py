"""Integers of numpy as sizes of modules and networks: they count as Python's and do not wrap around."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from posgan_fast import nn
from posgan_fast.models import Discriminator, Generator


def test_networks():
    generator = Generator(
        np.uint8(16),
        z_dim=np.uint8(200),
        w_dim=np.uint8(100),
        c_dim=np.int8(3),
        channel_max=8,
        mapping_layers=np.uint64(1),
        channel_multiplier=np.int16(4),
    )
    assert generator.mapping.fc0.weight.shape == (100, 300)
    assert (generator.z_dim, generator.img_size) == (200, (16, 16))
    discriminator = Discriminator(
        np.uint8(64), c_dim=np.uint8(3), channel_max=np.uint8(200), mbstd_num_channels=np.uint8(100)
    )
    assert discriminator.b4.conv.weight.shape == (200, 300, 3, 3) and discriminator.img_size == (64, 64)


def test_layers():
    conv = nn.EqualConv2d(np.uint8(200), np.uint8(3), np.uint8(3))
    assert conv.weight_gain == pytest.approx(1800**-0.5) and conv.padding == 1
    assert nn.ToRGB(np.uint8(200), 3, 8).style_gain == pytest.approx(200**-0.5)
    assert nn.ModulatedConv2d(np.uint8(100), 3, np.uint8(3), demodulate=False).style_gain == pytest.approx(900**-0.5)


@pytest.mark.parametrize("device", ["auto", "", -1, 2**64, 0.5])
@pytest.mark.parametrize(
    "make",
    [
        lambda device: nn.StyleConv(4, 3, 8, 8, device=device),
        lambda device: nn.EqualConv2d(4, 3, device=device),
        lambda device: nn.EqualLinear(3, 4, device=device),
        lambda device: nn.BiasAct(4, device=device),
        lambda device: nn.Upsample2d(device=device),
    ],
)
def test_a_device_that_torch_cannot_use_is_named(make, device):
    with pytest.raises((TypeError, ValueError), match="^device: expected"):
        make(device)


def test_devices_that_torch_can_use():
    assert nn.EqualConv2d(4, 3, device="meta").weight.is_meta
    assert nn.BiasAct(4, device=torch.device("cpu")).bias.device.type == "cpu"
