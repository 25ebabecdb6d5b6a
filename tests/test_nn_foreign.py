"""Layers made of stand-ins that have the attributes and tensors of other projects' layers, against definitions."""

from __future__ import annotations

import functools
import math

import numpy as np
import oracle
import pytest
import torch
from test_nn import W_DIM, N, randn
from torch.nn import Parameter

from posgan_fast import nn

F4 = torch.outer(torch.tensor([1.0, 3, 3, 1]), torch.tensor([1.0, 3, 3, 1])).double() / 64
SQRT2 = math.sqrt(2)


def close(actual: torch.Tensor, expected) -> None:
    torch.testing.assert_close(actual.detach(), torch.as_tensor(expected).detach(), rtol=1e-10, atol=1e-10)


class Parts(torch.nn.Module):
    """A module of the given parameters, buffers ("name_" for a buffer "name"), modules and attributes."""

    def __init__(self, **parts) -> None:
        super().__init__()
        for name, value in parts.items():
            if isinstance(value, torch.Tensor) and name.endswith("_"):
                self.register_buffer(name[:-1], value)
            else:
                setattr(self, name, Parameter(value) if isinstance(value, torch.Tensor) else value)


def values(*shape: int, seed: int = 0) -> torch.Tensor:
    return randn(*shape, seed=seed).double()


def equalised(module: torch.nn.Module, gain: float = 1.0, lr_mul: float = 1.0) -> torch.nn.Module:
    """Give the module as much of mmgeneration's hook as is read."""

    def hook(*_):
        pass

    hook.__dict__.update(name="weight", gain=gain, mode="fan_in", lr_mul=lr_mul)
    module.register_forward_pre_hook(hook)
    return module


# rosinality


def ros_linear(i: int, o: int, lr_mul: float = 1.0, activation=None) -> Parts:
    scale = lr_mul / math.sqrt(i)
    return Parts(weight=values(o, i), bias=values(o, seed=2), activation=activation, scale=scale, lr_mul=lr_mul)


def ros_modulated(k: int = 3, up: bool = False, down: bool = False, demodulate: bool = True) -> Parts:
    blur = {2: Parts(kernel_=4 * F4, pad=(1, 1)), 3: Parts(kernel_=F4.clone(), pad=(2, 2))}.get(2 * up + 3 * down)
    return Parts(
        weight=values(1, 3, 4, k, k), modulation=ros_linear(W_DIM, 4), upsample=up, downsample=down, padding=k // 2,
        demodulate=demodulate, scale=1 / math.sqrt(4 * k * k), **({"blur": blur} if blur else {}),
    )  # fmt: skip


def fused(channels: int, **changed) -> Parts:
    return Parts(**({"bias": values(channels, seed=5), "negative_slope": 0.2, "scale": 2**0.5} | changed))


def ros_styled(up: bool = False, **changed) -> Parts:
    parts = {"conv": ros_modulated(up=up), "noise": Parts(weight=values(1, seed=3)), "activate": fused(3)}
    return Parts(**(parts | changed))


def ros_to_rgb(upsample: bool) -> Parts:
    image = {"upsample": Parts(kernel_=4 * F4, factor=2, pad=(2, 1))} if upsample else {}
    return Parts(conv=ros_modulated(1, demodulate=False), bias=values(1, 3, 1, 1, seed=5), **image)


def styles_of(linear: Parts, w: torch.Tensor) -> torch.Tensor:
    return w @ (linear.weight / math.sqrt(W_DIM)).t() + linear.bias


@pytest.mark.parametrize("up", [False, True])
def test_rosinality_style_layer(up):
    theirs = ros_styled(up)
    layer = nn.StyleConv.from_foreign(theirs)
    x, w = values(N, 4, 6, 5), values(N, W_DIM, seed=1)
    noise = values(N, 1, 6 * (1 + up), 5 * (1 + up), seed=4)
    expected = oracle.modulated_conv2d(
        x, theirs.conv.weight[0] / 6, styles_of(theirs.conv.modulation, w), 1 + up, 1, 1, None, F4, True, not up,
        noise * theirs.noise.weight, theirs.activate.bias, "lrelu", 0.2, SQRT2,
    )  # fmt: skip
    close(layer(x, w, noise=noise), expected)
    assert set(layer.state_dict()) == {
        "weight", "bias", "noise_strength", "affine.weight", "affine.bias", *(["resample_filter"] if up else [])
    }  # fmt: skip
    torch.manual_seed(0)
    drawn = layer.eval()(x, w, noise_mode=None)
    torch.manual_seed(0)
    assert torch.equal(drawn, layer(x, w, noise_mode="random"))


def test_rosinality_root_of_small_styles():
    """The eps there stands beside scaled weights."""
    conv = ros_modulated()
    conv.modulation.bias.data.zero_()
    x, w = values(N, 4, 6, 5), 1e-4 * values(N, W_DIM, seed=1)
    expected = oracle.modulated_conv2d(x, conv.weight[0] / 6, styles_of(conv.modulation, w), padding=1)
    close(nn.ModulatedConv2d.from_foreign(conv)(x, w), expected)
    unscaled = oracle.modulated_conv2d(x, conv.weight[0], styles_of(conv.modulation, w), padding=1)
    assert not np.allclose(unscaled, expected)


@pytest.mark.parametrize("k, up, down", [(3, False, False), (3, True, False), (3, False, True)])
@pytest.mark.parametrize("demodulate", [True, False])
def test_rosinality_modulated_conv2d(k, up, down, demodulate):
    conv = ros_modulated(k, up, down, demodulate)
    x, w = values(N, 4, 6, 8), values(N, W_DIM, seed=1)
    weight, styles = conv.weight[0] / math.sqrt(4 * k * k), styles_of(conv.modulation, w)
    expected = oracle.modulated_conv2d(
        x, weight, styles, 1 + up, 1 + down, k // 2, None, F4, demodulate, not up, None, None
    )
    close(nn.ModulatedConv2d.from_foreign(conv)(x, w), expected)
    if up or down:
        conv.blur.pad = tuple(side - 1 if down else side + 1 for side in conv.blur.pad)
        padding = 0 if down else 2
        expected = oracle.modulated_conv2d(
            x, weight, styles, 1 + up, 1 + down, padding, None, F4, demodulate, not up, None, None
        )
        close(nn.ModulatedConv2d.from_foreign(conv)(x, w), expected)


@pytest.mark.parametrize("upsample", [False, True])
def test_rosinality_to_rgb(upsample):
    theirs = ros_to_rgb(upsample)
    layer = nn.ToRGB.from_foreign(theirs)
    x, w, skip = values(N, 4, 6, 4), values(N, W_DIM, seed=1), values(N, 3, 3, 2, seed=2)
    styles, bias = styles_of(theirs.conv.modulation, w), theirs.bias.reshape(3)
    expected = oracle.modulated_conv2d(x, theirs.conv.weight[0] / 2, styles, demodulate=False, bias=bias)
    close(layer(x, w), expected)
    if upsample:
        close(layer(x, w, skip), expected + oracle.upfirdn2d(skip, 4 * F4, (2, 2), padding=(2, 1, 2, 1)))
    else:
        with pytest.raises(ValueError, match="^skip: expected None"):
            layer(x, w, skip)


@pytest.mark.parametrize("down", [False, True])
def test_rosinality_conv_layer(down):
    conv = Parts(weight=values(3, 4, 3, 3), bias=None, scale=1 / 6, stride=1 + down, padding=0 if down else 1)
    theirs = torch.nn.Sequential(*([Parts(kernel_=F4.clone(), pad=(2, 2))] if down else []), conv, fused(3))
    x = values(N, 4, 6, 8)
    expected = oracle.modulated_conv2d(
        x, conv.weight / 6, torch.ones(N, 4), 1, 1 + down, 1, None, F4, False, True, None, theirs[-1].bias, "lrelu",
        0.2, SQRT2,
    )  # fmt: skip
    close(nn.EqualConv2d.from_foreign(theirs)(x), expected)


def test_rosinality_linear_and_filters():
    x, images = values(N, 5), values(N, 3, 6, 8)
    theirs = ros_linear(5, 4, 0.01, "fused_lrelu")
    y = x @ (theirs.weight * 0.01 / math.sqrt(5)).t() + 0.01 * theirs.bias
    layer = nn.EqualLinear.from_foreign(theirs)
    assert layer.lr_multiplier == 0.01 and torch.equal(layer.weight, theirs.weight)
    close(layer(x), torch.where(y > 0, y, 0.2 * y) * SQRT2)
    (expected,) = oracle.bias_act(images, values(3, seed=5), 1, "lrelu", 0.1, 1.5, None)
    close(nn.BiasAct.from_foreign(fused(3, negative_slope=0.1, scale=1.5))(images), expected)
    (expected,) = oracle.bias_act(images, None, 1, "lrelu", 0.2, SQRT2, None)
    close(nn.BiasAct.from_foreign(fused(3, bias=None))(images), expected)
    up, down = Parts(kernel_=4 * F4, factor=2, pad=(2, 1)), Parts(kernel_=F4.clone(), factor=2, pad=(1, 1))
    layer = nn.Upsample2d.from_foreign(up)
    assert layer.gain == 1 and torch.equal(layer.resample_filter, F4), "the gain is in the call"
    close(layer(images), oracle.upfirdn2d(images, 4 * F4, (2, 2), padding=(2, 1, 2, 1)))
    close(nn.Downsample2d.from_foreign(down)(images), oracle.upfirdn2d(images, F4, (1, 1), (2, 2), (1, 1, 1, 1)))
    blur = Parts(kernel_=4 * F4, pad=(1, 2))
    close(nn.Blur2d.from_foreign(blur)(images), oracle.upfirdn2d(images, 4 * F4, padding=(1, 2, 1, 2)))


# The others


def nv_linear(i: int, o: int) -> Parts:
    gains = {"weight_gain": 1 / np.sqrt(i), "bias_gain": 1.0}
    return Parts(weight=values(o, i), bias=values(o, seed=2), activation="linear", **gains)


def mmg_linear(i: int, o: int) -> Parts:
    linear = equalised(Parts(weight_orig=values(o, i)))
    return Parts(linear=linear, bias=values(o, seed=2), lr_mul=1.0, with_activation=False, act_type=None)


def hammer_linear(i: int, o: int) -> Parts:
    scales = {"wscale": 1 / np.sqrt(i), "lr_mul": 1.0, "bscale": 1.0}
    return Parts(weight=values(o, i), bias=values(o, seed=2), activation_type="linear", **scales)


def nv_styled(up: int) -> Parts:
    return Parts(
        affine=nv_linear(W_DIM, 4), weight=values(3, 4, 3, 3), bias=values(3, seed=5), noise_strength=values(seed=3),
        noise_const_=values(12, 12, seed=4), resample_filter_=F4.clone(), up=up, padding=1, use_noise=True,
        activation="lrelu", act_gain=SQRT2, conv_clamp=1.5,
    )  # fmt: skip


def mmg_styled(up: int) -> Parts:
    blur = {"blur": Parts(kernel_=4 * F4, pad=(1, 1))} if up == 2 else {}
    conv = Parts(
        weight_orig=values(1, 3, 4, 3, 3), style_modulation=mmg_linear(W_DIM, 4), upsample=up == 2, downsample=False,
        padding=1, demodulate=True, style_bias=0.0, eps=1e-8, **blur,
    )  # fmt: skip
    noise = Parts(weight=values(seed=3).reshape(1))
    return Parts(conv=equalised(conv), noise_injector=noise, activate=fused(3), fp16_enabled=True, conv_clamp=1.5)


def hammer_styled(up: int) -> Parts:
    return Parts(
        style=hammer_linear(W_DIM, 4), weight=values(3, 4, 3, 3), bias=values(3, seed=5), noise_strength=values(seed=3),
        noise_=values(1, 1, 12, 12, seed=4), scale_factor=up, demodulate=True, wscale=1 / 6, bscale=1.0, eps=1e-8,
        noise_type="spatial", activation_type="lrelu", act_gain=SQRT2, conv_clamp=1.5, space_of_latent="W",
        **({"filter_": F4.clone()} if up == 2 else {}),
    )  # fmt: skip


@pytest.mark.parametrize("up", [1, 2])
@pytest.mark.parametrize("make", [nv_styled, mmg_styled, hammer_styled])
def test_style_layers_of_the_others_agree(make, up):
    theirs = make(up)
    layer = nn.StyleConv.from_foreign(theirs)
    x, w = values(N, 4, 12 // up, 12 // up), values(N, W_DIM, seed=1)
    styles = w @ (values(4, W_DIM) / math.sqrt(W_DIM)).t() + values(4, seed=2)
    noise = values(12, 12, seed=4)
    expected = oracle.modulated_conv2d(
        x, values(3, 4, 3, 3), styles, up, 1, 1, None, F4, True, up == 1, noise * values(seed=3),
        values(3, seed=5), "lrelu", 0.2, SQRT2, 1.5, 1e-8 * (36 if make is mmg_styled else 1),
    )  # fmt: skip
    close(layer(x, w, noise=noise), expected)
    assert layer.noise_mode == ("const" if make is hammer_styled else "random")
    if make is not mmg_styled:
        close(layer(x, w, noise_mode="const"), expected)


@pytest.mark.parametrize("make", [nv_linear, mmg_linear, hammer_linear])
def test_linear_layers_of_the_others_agree(make):
    x = values(N, 5)
    expected = x @ (values(4, 5) / math.sqrt(5)).t() + values(4, seed=2)
    close(nn.EqualLinear.from_foreign(make(5, 4))(x), expected)


def test_scales_that_the_layer_does_not_have_go_into_the_parameters():
    x = values(N, 5)
    linear = Parts(weight=values(4, 5), bias=values(4, seed=2), wscale=0.7, lr_mul=0.5, activation_type="linear")
    close(nn.EqualLinear.from_foreign(linear)(x), x @ (0.7 * values(4, 5)).t() + 0.5 * values(4, seed=2))
    conv = Parts(weight=values(3, 4, 3, 3), bias=None, scale=0.7, stride=1, padding=1)
    images = values(N, 4, 6, 5)
    layer = nn.EqualConv2d.from_foreign(conv)
    assert set(layer.state_dict()) == {"weight"} and not any(buffer.is_meta for buffer in layer.buffers())
    close(layer(images), torch.nn.functional.conv2d(images, 0.7 * conv.weight, padding=1))


# Kept and refused


def test_parameters_are_copied_with_all_that_belongs_to_them():
    theirs = ros_styled(True).float().eval()
    theirs.conv.weight.requires_grad_(False)
    rng = torch.get_rng_state()
    layer = nn.StyleConv.from_foreign(theirs)
    assert torch.equal(torch.get_rng_state(), rng), "nothing is drawn"
    assert not layer.training and not layer.weight.requires_grad and layer.bias.requires_grad
    assert all(value.dtype == torch.float32 for value in layer.state_dict().values())
    before = layer.weight.clone()
    theirs.conv.weight.zero_()
    assert torch.equal(layer.weight, before)
    assert nn.StyleConv.from_foreign(theirs.to("meta")).affine.weight.is_meta
    half = nn.ToRGB.from_foreign(ros_to_rgb(True).bfloat16())
    assert half.weight.dtype == half.resample_filter.dtype == torch.bfloat16
    assert torch.equal(half.resample_filter.double(), F4)


def hooked() -> Parts:
    module = ros_styled()
    module.conv.register_forward_hook(lambda *_: None)
    return module


def changed(module: Parts, path: str, value) -> Parts:
    owner, _, name = path.rpartition(".")
    setattr(module.get_submodule(owner), name, value)
    return module


def without(module: Parts, name: str) -> Parts:
    delattr(module, name)
    return module


CONV_LAYERS = {"EqualConv2d", "BiasAct", "EqualLinear", "ModulatedConv2d", "StyleConv", "ToRGB"}
CONVERTIBLE = sorted(CONV_LAYERS | {"MinibatchStd", "Upsample2d", "Downsample2d", "Blur2d"})


@pytest.mark.parametrize("name", CONVERTIBLE)
def test_unknown_modules_are_refused(name):
    """The message tells what was expected, and what came."""
    layer = getattr(nn, name)
    extra = {"weight": values(3, 4, 3, 3), "gamma": values(3)}
    for module in (torch.nn.Conv2d(3, 4, 3), torch.nn.LeakyReLU(0.2), torch.nn.Linear(3, 4), Parts(**extra)):
        with pytest.raises(
            TypeError, match=rf"^module: expected for {name} one of .*(rosinality|NVlabs).* got \w+ with"
        ):
            layer.from_foreign(module)
    with pytest.raises(TypeError, match=r"^module: expected a torch.nn.Module, got dict"):
        layer.from_foreign({})


@pytest.mark.parametrize(
    "layer, module, error, message",
    [
        (nn.ToRGB, ros_styled(), TypeError, "^module: expected for ToRGB one of .* got Parts with conv.weight, "),
        (nn.Upsample2d, Parts(kernel_=F4, factor=2, pad=(1, 1)), TypeError, "^module: expected for Upsample2d one of"),
        (nn.Downsample2d, Parts(kernel_=F4, factor=2, pad=(2, 1)), TypeError, "^module: expected for Downsample2d"),
        (nn.Blur2d, Parts(kernel_=F4, factor=2, pad=(2, 1)), TypeError, "^module: expected for Blur2d one of"),
        (nn.Blur2d, Parts(kernel_=F4, pad=(2, 1, 2, 1)), TypeError, "^module: expected for Blur2d one of"),
        (nn.StyleConv, changed(ros_styled(True), "conv.blur.pad", (1, 1, 2, 2)), ValueError, "filter's padding .* got"),
        (nn.StyleConv, hooked(), TypeError, "^module: expected a layer without hooks, got one with hooks on Parts"),
        (nn.StyleConv, ros_styled(extra=values(3)), TypeError, "^module: expected for StyleConv .* extra"),
        (nn.StyleConv, ros_styled(conv=ros_modulated(demodulate=False)), ValueError, "expected demodulate True"),
        (nn.StyleConv, ros_styled(conv=ros_modulated(down=True)), ValueError, "expected downsample False .* got True"),
        (nn.StyleConv, ros_styled(activate=fused(3, scale=1.0)), ValueError, "expected scale 1.41.* got 1.0"),
        (nn.StyleConv, ros_styled(activate=fused(4)), TypeError, r"expected \(3,\) for bias, got shape \(4,\)"),
        (nn.StyleConv, changed(ros_styled(True), "conv.blur.pad", (2, 1)), ValueError, "filter's padding .* got"),
        (nn.StyleConv, changed(nv_styled(1), "activation", "gelu"), ValueError, "^act: expected one of"),
        (nn.StyleConv, changed(nv_styled(1), "act_gain", 1.0), ValueError, "expected act_gain 1.41.* got 1.0"),
        (nn.StyleConv, changed(hammer_styled(1), "space_of_latent", "Y"), ValueError, "expected space_of_latent 'W'"),
        (nn.StyleConv, changed(ros_styled(), "conv.upsample", True), TypeError, "a part missing: .*'blur'"),
        (nn.StyleConv, without(nv_styled(1), "noise_strength"), TypeError, "part missing: .*'noise_strength'"),
        (nn.EqualConv2d, torch.nn.Sequential(fused(3)), TypeError, "expected for EqualConv2d one of .*ConvLayer"),
        (nn.EqualConv2d, Parts(weight=values(3, 4, 3), bias=None, scale=1.0, stride=1, padding=1), TypeError, "one of"),
        (nn.EqualConv2d, Parts(weight=values(3, 4, 3, 1), bias=None, scale=1.0, stride=1, padding=1), TypeError,
         r"expected \(3, 4, 3, 3\) for weight, got shape \(3, 4, 3, 1\)"),
        (nn.MinibatchStd, Parts(groups=4, new_channels=1, eps=1e-6), ValueError, "expected eps 1e-08 .* got 1e-06"),
        (nn.MinibatchStd, Parts(group_size=4, eps=1e-8), TypeError, "^module: expected for MinibatchStd one of"),
        (
            nn.EqualLinear,
            Parts(
                linear=equalised(Parts(weight_orig=values(4, 5))), bias=None, lr_mul=1.0, with_activation=True,
                act_type="fused_bias", activate=functools.partial(print, scale=1.0),
            ),
            ValueError, "expected scale 1.41.* got 1.0",
        ),
    ],
)  # fmt: skip
def test_refusals(layer, module, error, message):
    with pytest.raises(error, match=message):
        layer.from_foreign(module)
