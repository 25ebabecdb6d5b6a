"""DCGAN and PGGAN: sizes, state, values against plain torch, what is loaded and what is refused."""

from __future__ import annotations

import pytest
import torch
from test_singan import lively
from torch.nn import functional as F

from posgan_fast import functional as PF
from posgan_fast import use_backend
from posgan_fast.models import (
    CheckpointError,
    DCGANDiscriminator,
    DCGANGenerator,
    PGGANDiscriminator,
    PGGANGenerator,
    load_dcgan,
    load_dcgan_discriminator,
    load_pggan,
    load_pggan_discriminator,
)

BACKENDS = ["reference", "cpu"]
NO_PAD = [{}, dict(no_pad=True), dict(no_pad=True, encode="spe"), dict(encode="spe")]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def dcgan(size=32, **arguments):
    return lively(DCGANGenerator(size, z_dim=6, base_channels=32, **arguments))


def pggan(size=32, **arguments):
    torch.manual_seed(2)
    return PGGANGenerator(size, z_dim=6, base_channels=64, max_channels=16, **arguments)


def latents(n=3):
    return torch.randn(n, 6, generator=torch.Generator().manual_seed(0))


def resized(x, more):
    return F.interpolate(x, [2 * side + more for side in x.shape[2:]], mode="bilinear", align_corners=True)


@pytest.mark.parametrize("arguments", [*NO_PAD, dict(deconv2conv=True)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_dcgan_values(arguments, backend):
    net, z = dcgan(**arguments), latents()
    with torch.no_grad(), use_backend(backend):
        image = net(z)
        net.double()
        x = F.relu(net.noise2feat.bn(F.conv_transpose2d(z.double()[:, :, None, None], net.noise2feat.conv.weight)))
        if "encode" in arguments:
            x = x + PF.sinusoidal_encoding2d(4, 4, 32, dtype=torch.float64)
        for layer in (*net.upsampling, net.output_layer):
            weight, bias = layer.conv.weight, layer.conv.bias
            if net.deconv2conv:
                x = F.conv2d(resized(x, 2 if net.no_pad else 0), weight, bias, padding=0 if net.no_pad else 1)
            else:
                x = F.conv_transpose2d(x, weight, bias, stride=2, padding=1)
            x = x.tanh() if layer.bn is None else F.relu(layer.bn(x))
    assert image.shape == (3, 3, 32, 32) and x.std() > 0.03
    torch.testing.assert_close(image.double(), x, rtol=0, atol=2e-5)


@pytest.mark.parametrize("arguments", NO_PAD)
@pytest.mark.parametrize("size, transition", [(4, 1.0), (8, 0.25), (32, 0.5), (32, 1.0)])
@pytest.mark.parametrize("backend", BACKENDS)
def test_pggan_values(arguments, size, transition, backend):
    """Nearest upsampling and a 3x3 convolution, whose kernel transposed convolutions store mirrored."""

    def norm(x):
        return x / (x.square().mean(1, keepdim=True).sqrt() + 1e-6)

    def conv(layer, x, act=True):
        weight = layer.conv.weight_orig * (2**0.5 if act else 1)
        inputs = weight[0].numel()
        if layer.up:
            x = F.interpolate(x, scale_factor=2, mode="nearest")
            weight = weight.transpose(0, 1).flip(2, 3)
        x = F.conv2d(x, weight / inputs**0.5, layer.conv.bias, padding=layer.padding)
        return norm(F.leaky_relu(x, 0.2)) if act else x

    net, z = pggan(**arguments), latents()
    with torch.no_grad():
        for name, value in net.named_parameters():
            if name.endswith("bias"):
                value.normal_(std=0.3)
        with use_backend(backend):
            image = net(z, size=size, transition=transition)
        net.double()
        weight = net.noise2feat.linear.weight_orig * 2**0.5 / 4 / 6**0.5
        side = 6 if net.no_pad else 4
        x = norm(z.double()) @ weight.T
        x = norm(F.leaky_relu(x.reshape(3, 16, side, side) + net.noise2feat.bias, 0.2))
        if "encode" in arguments:
            x = x + PF.sinusoidal_encoding2d(side, side, 16, dtype=torch.float64)
        x = conv(net.conv_blocks[0], x)
        expected = conv(net.torgb_layers[0], x, act=False)
        for stage in range(1, size.bit_length() - 3 + 1):
            before = F.interpolate(expected, scale_factor=2, mode="nearest")
            x = conv(net.conv_blocks[2 * stage - 1], resized(x, 4) if net.no_pad else x)
            x = conv(net.conv_blocks[2 * stage], x)
            expected = conv(net.torgb_layers[stage], x, act=False)
        if size > 4:
            expected = before + transition * (expected - before)
    assert image.shape == (3, 3, size, size) and expected.std() > 0.03
    torch.testing.assert_close(image.double(), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("size, transition", [(4, 1.0), (8, 0.25), (16, 0.5)])
def test_pggan_discriminator_values(size, transition):
    """Convolutions followed by average pooling, which the layers fuse."""

    def conv(layer, x):
        weight = layer.conv.weight_orig * (2 / layer.conv.weight_orig[0].numel()) ** 0.5
        if not layer.down:
            return F.leaky_relu(F.conv2d(x, weight, layer.conv.bias, padding=layer.padding), 0.2)
        return F.leaky_relu(F.avg_pool2d(F.conv2d(x, weight, padding=1), 2) + layer.conv.bias[:, None, None], 0.2)

    net = PGGANDiscriminator(16, base_channels=64, max_channels=16)
    image = torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for name, value in net.named_parameters():
            if name.endswith("bias"):
                value.normal_(std=0.3)
        scores = net(image, transition=transition)
        net, image = net.double(), image.double()
        last = size.bit_length() - 3
        x = conv(net.fromrgb_layers[last], image)
        for stage in range(last, 0, -1):
            x = conv(net.conv_blocks[2 * stage], conv(net.conv_blocks[2 * stage - 1], x))
            if stage == last:
                small = conv(net.fromrgb_layers[last - 1], F.avg_pool2d(image, 2))
                x = small + transition * (x - small)
        std = (x.var(0, correction=0) + 1e-8).sqrt().mean()
        x = torch.cat([x, std.expand(4, 1, 4, 4)], 1).flatten(1)
        x = x @ net.decision.linear0.weight_orig.T * (2 / x.shape[1]) ** 0.5 + net.decision.linear0.bias
        x = F.leaky_relu(x, 0.2) @ net.decision.linear1.weight_orig.T / x.shape[1] ** 0.5 + net.decision.linear1.bias
    torch.testing.assert_close(scores.double(), x, rtol=1e-4, atol=1e-4)


def test_sides_without_padding():
    """The convolutions land on the nominal sides."""
    sides = []
    net = pggan(no_pad=True)
    for layer in net.conv_blocks:
        layer.register_forward_hook(lambda module, inputs, y: sides.append((inputs[0].shape[2], y.shape[2])))
    net(latents())
    assert sides == [(6, 4), (12, 10), (10, 8), (20, 18), (18, 16), (36, 34), (34, 32)]
    sides.clear()
    net = dcgan(no_pad=True)
    for layer in (*net.upsampling, net.output_layer):
        layer.register_forward_hook(lambda module, inputs, y: sides.append((inputs[0].shape[2], y.shape[2])))
    net(latents())
    assert sides == [(10, 8), (18, 16), (34, 32)]


def test_published_names_and_shapes():
    state = {name: tuple(value.shape) for name, value in DCGANGenerator(64).state_dict().items() if ".bn." not in name}
    assert state == {
        "noise2feat.conv.weight": (100, 1024, 4, 4),
        **{f"upsampling.{i}.conv.weight": (1024 >> i, 512 >> i, 4, 4) for i in range(3)},
        "output_layer.conv.weight": (128, 3, 4, 4),
        "output_layer.conv.bias": (3,),
    }
    state = PGGANGenerator(128).state_dict()
    assert state["noise2feat.linear.weight_orig"].shape == (512 * 16, 512) and len(state) == 2 + 2 * 11 + 2 * 6
    assert PGGANGenerator(128, no_pad=True).noise2feat.linear.weight_orig.shape == (512 * 36, 512)
    assert state["conv_blocks.9.conv.weight_orig"].shape == (256, 128, 3, 3)
    assert state["torgb_layers.5.conv.weight_orig"].shape == (3, 128, 1, 1)
    state = PGGANDiscriminator(128).state_dict()
    assert state["decision.linear0.weight_orig"].shape == (512, 513 * 16)


@pytest.mark.parametrize("arguments", NO_PAD)
def test_weights_of_generators_come_back(arguments):
    z = latents()
    encode = dict(encode=arguments["encode"]) if "encode" in arguments else {}
    for make, load in ((dcgan, load_dcgan), (pggan, load_pggan)):
        net = make(**arguments).eval()
        loaded = load({"generator_ema": net.state_dict()}, **encode)
        assert torch.equal(loaded(z), net(z)) and loaded.no_pad == net.no_pad
        assert ("no_pad" in loaded.report.assumed) == (make is dcgan and net.no_pad)
        assert ("encode" in loaded.report.assumed) == (not encode) and ("layout" in loaded.report.assumed) == bool(
            encode
        )


def test_padding_of_dcgans_convolutions_is_told_to_the_loader():
    z, net = latents(), dcgan(deconv2conv=True).eval()
    loaded = load_dcgan(net.state_dict(), no_pad=False)
    assert torch.equal(loaded(z), net(z)) and "no_pad" not in loaded.report.assumed
    assert not torch.equal(load_dcgan(net.state_dict())(z), net(z))


def test_weights_of_discriminators_come_back(tmp_path):
    image = torch.randn(4, 3, 16, 16)
    nets = [DCGANDiscriminator(16, base_channels=8, out_channels=5), PGGANDiscriminator(16, max_channels=8)]
    nets.append(PGGANDiscriminator(16, base_channels=64, max_channels=512))
    for net, load in zip(nets, (load_dcgan_discriminator, *[load_pggan_discriminator] * 2), strict=True):
        net.eval()
        torch.save({"state_dict": {f"discriminator.{k}": v for k, v in net.state_dict().items()}}, tmp_path / "x.pth")
        assert torch.equal(load(tmp_path / "x.pth")(image), net(image))


def test_latents_of_another_dtype_are_taken():
    for net in (dcgan(16), pggan(16)):
        assert torch.equal(net(latents().double()), net(latents()))


def test_gradients_of_two_orders():
    """As WGAN-GP takes them, through generator and discriminator."""
    z = latents(4).double()
    for G, D in (
        (dcgan(16, no_pad=True, encode="spe"), lively(DCGANDiscriminator(16, base_channels=4))),
        (pggan(16), PGGANDiscriminator(16, max_channels=8)),
    ):
        G.double(), D.double().train()
        image = G(z)
        (grad,) = torch.autograd.grad(D(image).sum(), image, create_graph=True)
        grad.square().sum().backward()
        for name, p in [*D.named_parameters(), *G.named_parameters()]:
            smaller = "rgb_layers." in name and "rgb_layers.2" not in name  # layers for images of other sides
            if not smaller and name not in ("conv_blocks.0.conv.weight_orig", "conv_blocks.0.conv.bias"):
                assert (p.grad is not None and p.grad.isfinite().all()) or "bias" in name, name


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: DCGANGenerator(48), ValueError, "^size: expected a power of two >= 8, got 48"),
        (lambda: DCGANGenerator(4), ValueError, "^size: expected an int >= 8, got 4"),
        (lambda: DCGANGenerator(64, base_channels=12), ValueError, "^base_channels: expected a multiple of 8, got 12"),
        (lambda: DCGANGenerator(8, base_channels=6, encode="spe"), ValueError, "^base_channels: .*4"),
        (lambda: DCGANGenerator(8, encode="csg"), ValueError, "^encode: expected one of"),
        (lambda: DCGANGenerator(8, deconv2conv=1), TypeError, "^deconv2conv: expected a bool, got int"),
        (lambda: DCGANGenerator(8, no_pad=True, deconv2conv=False), ValueError, "^deconv2conv: expected True or None"),
        (lambda: DCGANGenerator(8, no_pad=1), TypeError, "^no_pad: expected a bool, got int"),
        (lambda: dcgan()(torch.zeros(2, 7)), ValueError, r"^z: expected shape \[N, 6\], got \(2, 7\)"),
        (lambda: dcgan()([0.0]), TypeError, "^z: expected a torch.Tensor, got list"),
        (
            lambda: DCGANDiscriminator(8)(torch.zeros(1, 3, 8, 16)),
            ValueError,
            "^image: expected 8 x 8 pixels, got 8 x 16",
        ),
        (lambda: DCGANDiscriminator(8, out_channels=0), ValueError, "^out_channels: expected an int >= 1, got 0"),
        (lambda: PGGANGenerator(64, base_channels=16), ValueError, "^base_channels: expected at least 32 for images"),
        (lambda: PGGANGenerator(8, max_channels=6, encode="spe"), ValueError, "^max_channels: .*4"),
        (lambda: pggan()(latents(), size=64), ValueError, "^size: expected a side of 4, 8, ... 32 pixels, got 64"),
        (lambda: pggan()(latents(), size=12), ValueError, "^size: expected a side of 4, 8, ... 32 pixels, got 12"),
        (lambda: pggan()(latents(), transition=1.5), ValueError, "^transition: expected a number from 0 to 1, got 1.5"),
        (lambda: pggan()(latents(), transition="1"), TypeError, "^transition: expected a number, got str"),
        (
            lambda: PGGANDiscriminator(8)(torch.zeros(1, 3, 16, 16)),
            ValueError,
            "^image: expected a side of 4, 8, ... 8",
        ),
        (
            lambda: PGGANDiscriminator(8)(torch.zeros(1, 3, 8, 4)),
            ValueError,
            "^image: expected 8 x 8 pixels, got 8 x 4",
        ),
        (
            lambda: load_pggan(pggan().state_dict(), size=16),
            CheckpointError,
            "size: expected 32, which the tensors tell",
        ),
        (lambda: load_dcgan(pggan().state_dict()), CheckpointError, "noise2feat.conv.weight is missing"),
        (lambda: load_pggan({}), CheckpointError, "no PGGAN generator among nothing"),
        (
            lambda: load_dcgan_discriminator({"downsamples.0.conv.weight": torch.zeros(0, 3, 4, 4)}),
            CheckpointError,
            "none empty",
        ),
        (
            lambda: DCGANDiscriminator(16, base_channels=8)(torch.zeros(2, 3, 16, 16).double()),
            TypeError,
            "^x: expected dtype torch.float32 or half precision in training, got torch.float64",
        ),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()
