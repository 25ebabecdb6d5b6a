"""Layers made of those of mmgeneration and Hammer, beside the originals. Skipped without --peer."""

from __future__ import annotations

import importlib

import pytest
import torch
from stylegan2_peers import checkout, mmcv, mmgeneration, package
from test_nn_foreign_peers import W_DIM, N, agree, randn, same, shaken

from posgan_fast import nn

CONV = {
    "weight": "weight_orig",
    "affine.weight": "style_modulation.linear.weight_orig",
    "affine.bias": "style_modulation.bias",
}
OF_CONV = {name: f"conv.{there}" for name, there in CONV.items()}
STYLE = OF_CONV | {"bias": "activate.bias", "noise_strength": "noise_injector.weight"}


@pytest.fixture
def mmg(peers):
    path = peers["mmgeneration"]
    with checkout(path, mmcv(path)):
        mmgeneration()
        yield importlib.import_module("mmgen.models.architectures.stylegan.modules.styleganv2_modules")


@pytest.mark.parametrize("resampling", [{}, {"upsample": True}, {"downsample": True}])
@pytest.mark.parametrize("demodulate", [True, False])
def test_mmgeneration_modulated_conv2d(mmg, resampling, demodulate):
    theirs = shaken(mmg.ModulatedConv2d(4, 3, 3, W_DIM, demodulate=demodulate, style_bias=0.5, eps=0.1, **resampling))
    agree(theirs, nn.ModulatedConv2d.from_foreign(theirs), (randn(N, 4, 6, 8), randn(N, W_DIM)), CONV)


@pytest.mark.parametrize("upsample", [False, True])
def test_mmgeneration_style_conv(mmg, upsample):
    theirs = shaken(mmg.ModulatedStyleConv(4, 3, 3, W_DIM, upsample=upsample))
    noise = {"noise": randn(N, 1, 6 * (1 + upsample), 8 * (1 + upsample)).detach()}
    agree(theirs, nn.StyleConv.from_foreign(theirs), (randn(N, 4, 6, 8), randn(N, W_DIM)), STYLE, noise, noise)


@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("interp_pad", [None, 4])
@pytest.mark.parametrize("no_pad", [True, False])
def test_mmgeneration_positional_style_conv(mmg, after, interp_pad, no_pad):
    up = {"scale_factor": 2, "mode": "bilinear", "align_corners": True}
    settings = dict(deconv2conv=True, up_config=up, up_after_conv=after, interp_pad=interp_pad, no_pad=no_pad)
    theirs = shaken(mmg.ModulatedPEStyleConv(4, 3, 3, W_DIM, upsample=True, **settings))
    ours = nn.StyleConv.from_foreign(theirs)
    noise = {"noise": randn(N, 1, *ours.out_size(6, 8)).detach()}
    agree(theirs, ours, (randn(N, 4, 6, 8), randn(N, W_DIM)), STYLE, noise, noise)


@pytest.mark.parametrize("upsample", [False, True])
def test_mmgeneration_to_rgb(mmg, upsample):
    theirs = shaken(mmg.ModulatedToRGB(4, W_DIM, upsample=upsample))
    inputs = (randn(N, 4, 6, 8), randn(N, W_DIM), randn(N, 3, 3, 4))[: 2 + upsample]
    agree(theirs, nn.ToRGB.from_foreign(theirs), inputs, OF_CONV | {"bias": "bias"})


@pytest.mark.parametrize("act", [None, {"type": "fused_bias"}])
def test_mmgeneration_linear(mmg, act):
    scales = {"gain": 1.5, "lr_mul": 0.01}
    theirs = shaken(mmg.EqualLinearActModule(5, 4, equalized_lr_cfg=scales, act_cfg=act))
    ours = nn.EqualLinear.from_foreign(theirs)
    assert ours.lr_multiplier == 0.01
    inputs = randn(N, 5)
    torch.testing.assert_close(ours(inputs), theirs(inputs), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="expected negative_slope 0.2 of EqualLinearActModule, got 0.1"):
        nn.EqualLinear.from_foreign(
            mmg.EqualLinearActModule(5, 4, act_cfg={"type": "fused_bias", "negative_slope": 0.1})
        )


@pytest.mark.parametrize("downsample", [False, True])
def test_mmgeneration_conv_down_layer(mmg, downsample):
    theirs, at = mmg.ConvDownLayer(4, 3, 3, downsample=downsample), int(downsample)
    with pytest.MonkeyPatch.context() as patch:  # the base class is not here
        patch.setattr(type(theirs[at + 1]), "forward", mmg._FusedBiasLeakyReLU.forward)
        names = {"weight": f"{at}.conv.weight_orig", "bias": f"{at + 1}.bias"}
        agree(shaken(theirs), nn.EqualConv2d.from_foreign(theirs), (randn(N, 4, 6, 8),), names)


def test_mmgeneration_filters_and_batch(mmg):
    inputs = (randn(8, 4, 6, 8),)
    for theirs, layer in (
        (mmg.UpsampleUpFIRDn((1, 3, 3, 1)), nn.Upsample2d), (mmg.DownsampleUpFIRDn((1, 3, 3, 1)), nn.Downsample2d),
        (mmg.Blur((1, 3, 3, 1), (2, 2)), nn.Blur2d), (mmg.ModMBStddevLayer(4, 2), nn.MinibatchStd),
    ):  # fmt: skip
        agree(theirs, layer.from_foreign(theirs), inputs, {})


@pytest.fixture
def hammer(peers):
    path = peers["hammer"]
    with checkout(path, package("models", path)):
        yield (
            importlib.import_module("models.stylegan2_generator"),
            importlib.import_module("models.stylegan2_discriminator"),
        )


SCALES = {"plain": (True, 1.0, 1.0), "scaled": (True, 2.0, 0.5), "without": (False, 1.0, 1.0)}


class Unwrapped(torch.nn.Module):
    """A layer there, on plain torch, its second result dropped."""

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *inputs, **settings):
        result = self.layer(*inputs, impl="ref", **settings)
        return result[0] if isinstance(result, tuple) else result


def outputs_agree(theirs, ours, inputs, there=None, here=None) -> None:
    torch.testing.assert_close(
        ours(*inputs, **(here or {})), Unwrapped(theirs)(*inputs, **(there or {})), rtol=1e-5, atol=1e-5
    )


def modulate(module, up, demodulate, scales, noise="spatial", act="lrelu"):
    use, gain, lr = SCALES[scales]
    return shaken(
        module.ModulateConvLayer(
            4,
            3,
            8,
            W_DIM,
            3 if demodulate else 1,
            True,
            up,
            (1, 3, 3, 1),
            demodulate,
            use,
            gain,
            lr,
            noise,
            act,
            1.5,
            0.1,
        )
    )


@pytest.mark.parametrize("up", [1, 2])
@pytest.mark.parametrize("scales", SCALES)
def test_hammer_style_layer(hammer, up, scales):
    theirs = modulate(hammer[0], up, True, scales)
    ours = nn.StyleConv.from_foreign(theirs)
    assert ours.noise_mode == "const" and ("resample_filter" in ours.state_dict()) == (up == 2)
    inputs = (randn(N, 4, 8 // up, 8 // up), randn(N, W_DIM))
    outputs_agree(theirs, ours, inputs, {"runtime_gain": 0.7}, {"gain": 0.7, "noise_mode": None})
    silent = modulate(hammer[0], up, True, scales, noise="none")
    outputs_agree(silent, nn.StyleConv.from_foreign(silent), inputs)
    with pytest.raises(ValueError, match="expected noise_type 'spatial' of ModulateConvLayer, got 'channel'"):
        nn.StyleConv.from_foreign(modulate(hammer[0], up, True, scales, noise="channel"))


@pytest.mark.parametrize("scales", SCALES)
def test_hammer_to_rgb(hammer, scales):
    theirs = modulate(hammer[0], 1, False, scales, "none", "linear")
    outputs_agree(theirs, nn.ToRGB.from_foreign(theirs), (randn(N, 4, 6, 8), randn(N, W_DIM)))


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("act", ["linear", "lrelu"])
def test_hammer_dense_layer(hammer, scales, act):
    use, gain, lr = SCALES[scales]
    theirs = shaken(hammer[0].DenseLayer(5, 4, True, 1.0, use, gain, lr, act))
    outputs_agree(theirs, nn.EqualLinear.from_foreign(theirs), (randn(N, 5),))


@pytest.mark.parametrize("scales", SCALES)
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("factor", [1, 2])
@pytest.mark.parametrize("network", [0, 1])
def test_hammer_conv_layer(hammer, scales, k, factor, network):
    """It enlarges in the generator and shrinks in the discriminator."""
    use, gain, lr = SCALES[scales]
    theirs = shaken(hammer[network].ConvLayer(4, 3, k, True, factor, (1, 3, 3, 1), use, gain, lr, "lrelu", 1.5))
    ours = nn.EqualConv2d.from_foreign(theirs)
    assert (ours.up, ours.down) == ((factor, 1) if network == 0 else (1, factor))
    outputs_agree(theirs, ours, (randn(N, 4, 6, 8),), {"runtime_gain": 0.7}, {"gain": 0.7})


def test_hammer_minibatch_std(hammer):
    theirs = hammer[1].MiniBatchSTDLayer(4, 1, 1e-8)
    agree(theirs, nn.MinibatchStd.from_foreign(theirs), (randn(8, 4, 5, 6),), same(theirs))
