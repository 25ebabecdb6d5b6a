"""Layers made of those of other projects, beside the originals. Skipped without --peer."""

from __future__ import annotations

import importlib

import pytest
import torch
from stylegan2_peers import checkout, nvlabs

from posgan_fast import nn

N, W_DIM = 2, 6


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).requires_grad_()


def shaken(module: torch.nn.Module) -> torch.nn.Module:
    rand = torch.Generator().manual_seed(4)
    for value in module.parameters():
        value.data += 0.5 * torch.randn(value.shape, generator=rand)
    return module


def agree(theirs, ours, inputs, names, there=None, here=None) -> None:
    """Results, and gradients of the inputs and of the parameters, ``names`` here and there."""
    expected, actual = theirs(*inputs, **(there or {})), ours(*inputs, **(here or {}))
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    our, their = dict(ours.named_parameters()), dict(theirs.named_parameters())
    assert names.keys() == our.keys() and set(names.values()) == their.keys()
    direction = torch.randn(expected.shape, generator=torch.Generator().manual_seed(7))
    got = torch.autograd.grad(actual, [*inputs, *(our[name] for name in names)], direction)
    meant = torch.autograd.grad(expected, [*inputs, *(their[name] for name in names.values())], direction)
    for a, e in zip(got, meant, strict=True):
        torch.testing.assert_close(a, e.reshape(a.shape), rtol=1e-5, atol=1e-5 * max(1.0, e.abs().max().item()))


AFFINE = {"affine.weight": "modulation.weight", "affine.bias": "modulation.bias"}


@pytest.fixture
def ros(peers):
    with checkout(peers["rosinality"]):
        yield importlib.import_module("model")


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("resampling", [{}, {"upsample": True}, {"downsample": True}])
@pytest.mark.parametrize("demodulate", [True, False])
def test_rosinality_modulated_conv2d(ros, k, resampling, demodulate):
    theirs = shaken(ros.ModulatedConv2d(4, 3, k, W_DIM, demodulate=demodulate, **resampling))
    ours = nn.ModulatedConv2d.from_foreign(theirs)
    names = {"weight": "weight", **AFFINE}
    agree(theirs, ours, (randn(N, 4, 6, 8), randn(N, W_DIM)), names)


@pytest.mark.parametrize("taps", [(1, 3, 3, 1), (1, 2, 1), (1, 4, 6, 4, 1)])
@pytest.mark.parametrize("upsample", [False, True])
def test_rosinality_styled_conv(ros, upsample, taps):
    theirs = shaken(ros.StyledConv(4, 3, 3, W_DIM, upsample=upsample, blur_kernel=taps))
    ours = nn.StyleConv.from_foreign(theirs)
    assert ("resample_filter" in ours.state_dict()) == upsample and ours.noise_mode == "random"
    names = {name: f"conv.{there}" for name, there in {"weight": "weight", **AFFINE}.items()}
    names |= {"bias": "activate.bias", "noise_strength": "noise.weight"}
    noise = {"noise": randn(N, 1, 12, 16).detach() if upsample else randn(N, 1, 6, 8).detach()}
    agree(theirs, ours, (randn(N, 4, 6, 8), randn(N, W_DIM)), names, noise, noise)


@pytest.mark.parametrize("upsample", [False, True])
def test_rosinality_to_rgb(ros, upsample):
    theirs = shaken(ros.ToRGB(4, W_DIM, upsample=upsample))
    ours = nn.ToRGB.from_foreign(theirs)
    names = {name: f"conv.{there}" for name, there in {"weight": "weight", **AFFINE}.items()} | {"bias": "bias"}
    inputs = (randn(N, 4, 6, 8), randn(N, W_DIM), randn(N, 3, 3, 4))
    agree(theirs, ours, inputs[: 2 + upsample], names)


@pytest.mark.parametrize("activation", [None, "fused_lrelu"])
def test_rosinality_equal_linear(ros, activation):
    theirs = shaken(ros.EqualLinear(5, 4, lr_mul=0.01, activation=activation, bias_init=1))
    same = {"weight": "weight", "bias": "bias"}
    agree(theirs, nn.EqualLinear.from_foreign(theirs), (randn(N, 5),), same)


@pytest.mark.parametrize("stride, padding, bias", [(1, 0, True), (2, 1, False), (3, 2, True)])
def test_rosinality_equal_conv2d(ros, stride, padding, bias):
    theirs = shaken(ros.EqualConv2d(4, 3, 3, stride, padding, bias))
    names = {"weight": "weight"} | ({"bias": "bias"} if bias else {})
    agree(theirs, nn.EqualConv2d.from_foreign(theirs), (randn(N, 4, 7, 9),), names)


@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("activate, bias", [(True, True), (False, True), (False, False), (True, False)])
@pytest.mark.parametrize("downsample", [False, True])
def test_rosinality_conv_layer(ros, k, activate, bias, downsample):
    theirs = shaken(ros.ConvLayer(4, 3, k, downsample, bias=bias, activate=activate))
    at = int(downsample)
    names = {"weight": f"{at}.weight"} | ({"bias": f"{at + activate}.bias"} if bias else {})
    agree(theirs, nn.EqualConv2d.from_foreign(theirs), (randn(N, 4, 8, 6),), names)


@pytest.mark.parametrize("taps", [(1, 3, 3, 1), (1, 2, 1)])
def test_rosinality_filters_and_activation(ros, taps):
    inputs = (randn(N, 3, 6, 8),)
    for factor in (2, 3):
        upsample, downsample = ros.Upsample(taps, factor), ros.Downsample(taps, factor)
        agree(upsample, nn.Upsample2d.from_foreign(upsample), inputs, {})
        agree(downsample, nn.Downsample2d.from_foreign(downsample), inputs, {})
    for pad in ((1, 1), (2, 2), (2, 1), (0, 3)):
        blur = ros.Blur(taps, pad, upsample_factor=2)
        agree(blur, nn.Blur2d.from_foreign(blur), inputs, {})
    for bias in (True, False):
        act = shaken(ros.FusedLeakyReLU(3, bias=bias, scale=1.5))
        agree(act, nn.BiasAct.from_foreign(act), inputs, {"bias": "bias"} if bias else {})


def test_rosinality_generator_rewritten_layer_by_layer(ros):
    """Its own forward and its own names, with these layers in place of its own."""
    torch.manual_seed(0)
    generator = shaken(ros.Generator(32, 64, 3)).eval().requires_grad_(False)
    z = randn(2, 64).detach()
    expected, _ = generator([z], randomize_noise=False)
    layers = {ros.StyledConv: nn.StyleConv, ros.ToRGB: nn.ToRGB, ros.EqualLinear: nn.EqualLinear}
    for parent in (generator, generator.style, generator.convs, generator.to_rgbs):
        for name, child in parent.named_children():
            if type(child) in layers:
                setattr(parent, name, layers[type(child)].from_foreign(child))
    assert not any(isinstance(part, tuple(layers)) for part in generator.modules())
    actual, _ = generator([z], randomize_noise=False)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_rosinality_discriminator_rewritten_layer_by_layer(ros):
    torch.manual_seed(0)
    discriminator = shaken(ros.Discriminator(16, 1)).eval().requires_grad_(False)
    images = randn(4, 3, 16, 16).detach()
    expected = discriminator(images)
    layers = {ros.ConvLayer: nn.EqualConv2d, ros.EqualLinear: nn.EqualLinear}
    for parent in list(discriminator.modules()):
        for name, child in parent.named_children():
            if type(child) in layers:
                setattr(parent, name, layers[type(child)].from_foreign(child))
    assert not any(isinstance(part, tuple(layers)) for part in discriminator.modules())
    torch.testing.assert_close(discriminator(images), expected, rtol=1e-4, atol=1e-4)


@pytest.fixture
def nv(peers):
    with checkout(peers["nvlabs"]):
        yield nvlabs(peers["nvlabs"])


def same(module: torch.nn.Module) -> dict[str, str]:
    return {name: name for name, _ in module.named_parameters()}


@pytest.mark.parametrize("up", [1, 2])
@pytest.mark.parametrize("use_noise", [True, False])
def test_nvlabs_synthesis_layer(nv, up, use_noise):
    theirs = shaken(nv.SynthesisLayer(4, 3, W_DIM, 8, up=up, use_noise=use_noise, conv_clamp=1.5))
    ours = nn.StyleConv.from_foreign(theirs)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    inputs, settings = (randn(N, 4, 8 // up, 8 // up), randn(N, W_DIM)), {"noise_mode": "const", "gain": 0.7}
    agree(theirs, ours, inputs, same(theirs), settings | {"fused_modconv": False}, settings)


def test_nvlabs_to_rgb(nv):
    theirs = shaken(nv.ToRGBLayer(4, 3, W_DIM, conv_clamp=1.5))
    inputs = (randn(N, 4, 6, 8), randn(N, W_DIM))
    agree(theirs, nn.ToRGB.from_foreign(theirs), inputs, same(theirs))


@pytest.mark.parametrize("activation", ["linear", "lrelu", "swish"])
def test_nvlabs_fully_connected_layer(nv, activation):
    theirs = shaken(nv.FullyConnectedLayer(5, 4, activation=activation, lr_multiplier=0.01, bias_init=1))
    agree(theirs, nn.EqualLinear.from_foreign(theirs), (randn(N, 5),), same(theirs))


@pytest.mark.parametrize("k, up, down", [(1, 1, 1), (3, 1, 1), (3, 1, 2), (1, 1, 2), (1, 2, 1), (3, 2, 1)])
def test_nvlabs_conv2d_layer(nv, k, up, down):
    theirs = shaken(nv.Conv2dLayer(4, 3, k, up=up, down=down, activation="lrelu", conv_clamp=1.5, bias=k == 3))
    here = {"gain": 0.7}
    agree(theirs, nn.EqualConv2d.from_foreign(theirs), (randn(N, 4, 6, 8),), same(theirs), here, here)


def test_nvlabs_conv2d_layer_that_is_frozen(nv):
    theirs = nv.Conv2dLayer(4, 3, 3, trainable=False)
    ours = nn.EqualConv2d.from_foreign(theirs)
    assert not ours.weight.requires_grad and not ours.bias.requires_grad
    assert not dict(theirs.named_parameters())
    torch.testing.assert_close(ours(randn(N, 4, 6, 8)), theirs(randn(N, 4, 6, 8)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("group_size", [4, None])
def test_nvlabs_minibatch_std(nv, group_size):
    theirs = nv.MinibatchStdLayer(group_size, 2)
    agree(theirs, nn.MinibatchStd.from_foreign(theirs), (randn(8, 4, 5, 6),), {})
