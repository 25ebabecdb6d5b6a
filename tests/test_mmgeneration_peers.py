"""SinGAN, PGGAN and DCGAN of mmgeneration, beside ours with the same weights. Skipped without --peer."""

from __future__ import annotations

import pickle

import pytest
import torch
from stylegan2_peers import SINGANS, checkout, mmcv, mmgeneration_network

from posgan_fast import use_backend
from posgan_fast.models import (
    load_dcgan,
    load_dcgan_discriminator,
    load_pggan,
    load_pggan_discriminator,
    load_singan,
    load_singan_discriminator,
)

BACKENDS = ("reference", "cpu")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(1)
    with torch.no_grad():
        yield


@pytest.fixture
def network(peers):
    """A function that builds one of mmgeneration's networks, with weights that make an image of some contrast."""
    path = peers["mmgeneration"]

    def make(name, *args, **kwargs):
        module = mmgeneration_network(name)(*args, **kwargs)
        for key, value in [*module.named_parameters(), *module.named_buffers()]:
            if key.endswith("running_var"):
                value.uniform_(0.5, 2)
            elif value.dtype.is_floating_point and "_float_tensor" not in key and not key.endswith("weight_orig"):
                value.add_(torch.randn(value.shape) * (value[0].numel() ** -0.5 if value.ndim == 4 else 0.3))
        return module.eval().requires_grad_(False)

    with checkout(path, mmcv(path)):
        yield make


def near(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    assert ours.shape == theirs.shape and theirs.std() > 0.02
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


SIZES = [(25, 19), (33, 25), (44, 34), (58, 45), (78, 60), (104, 79)]


@pytest.mark.parametrize("kind", SINGANS)
def test_singan(network, tmp_path, kind):
    """From the pair of files that mmgeneration writes: the stored noises, and others of other sizes."""
    name, there, here, margin, channels = SINGANS[kind]
    theirs = network(name, 3, 3, len(SIZES) - 1, **there)
    discriminator = network("SinGANMultiScaleDiscriminator", 3, len(SIZES) - 1)

    def draw(sizes, n=1):
        return [torch.randn(n, channels[t > 0], h + margin, w + margin) for t, (h, w) in enumerate(sizes)]

    noises, weights = draw(SIZES), [1, 0.3, 0.2, 0.15, 0.1, 0.05]
    state = {f"generator.{key}": value for key, value in theirs.state_dict().items()}
    state |= {f"discriminator.{key}": value for key, value in discriminator.state_dict().items()}
    torch.save({"meta": {"iter": 1}, "state_dict": state, "optimizer": {}}, tmp_path / "singan.pth")
    with open(tmp_path / "singan.pkl", "wb") as file:
        data = dict(noise_weights=weights, fixed_noises=[noise.numpy() for noise in noises], curr_stage=len(SIZES) - 1)
        pickle.dump(data, file, 4)

    ours = load_singan(tmp_path / "singan.pth", noises=tmp_path / "singan.pkl", **here)
    arguments = dict(noise_weights=weights, rand_mode="recon", curr_scale=len(SIZES) - 1)
    image = theirs(torch.zeros(1, 3, *SIZES[0]), fixed_noises=noises, **arguments)
    near(ours.reconstruct(), image)
    sizes = [(h, round(1.5 * w)) for h, w in SIZES]
    wide = draw(sizes, 2)
    if kind != "original":  # whose code repeats noise for no batch
        image = theirs(torch.zeros(2, 3, *sizes[0]), fixed_noises=wide, **arguments)
        for backend in BACKENDS:
            with use_backend(backend):
                near(ours(wide, weights), image)
    judge = load_singan_discriminator(tmp_path / "singan.pth")
    for stage in (0, len(SIZES) - 1):
        near(judge(image, stage), discriminator(image, stage))


def test_singan_discriminator_without_normalisation(network):
    theirs = network("SinGANMultiScaleDiscriminator", 3, 4, norm_cfg=None)
    image = torch.randn(2, 3, 40, 30)
    near(load_singan_discriminator(theirs.state_dict())(image, 4), theirs(image, 4))


@pytest.mark.parametrize("size, transition", [(4, 1.0), (8, 0.3), (32, 0.6), (32, 1.0)])
def test_pggan(network, size, transition):
    """Growing from 4 to 32 pixels: widths of one block and of several."""
    theirs = network("PGGANGenerator", 64, 32, base_channels=1024, max_channels=96)
    discriminator = network("PGGANDiscriminator", 32, base_channels=1024, max_channels=96)
    ours, judge = load_pggan(theirs.state_dict()), load_pggan_discriminator(discriminator.state_dict())
    z = torch.randn(8, 64)
    image = theirs(z, transition_weight=transition, curr_scale=size)
    for backend in BACKENDS:
        with use_backend(backend):
            near(ours(z, size=size, transition=transition), image)
    image = torch.randn(8, 3, size, size)
    near(judge(image, transition=transition), discriminator(image, transition_weight=transition, curr_scale=size))


@pytest.mark.parametrize("size", [32, 64])
def test_dcgan(network, size):
    theirs = network("DCGANGenerator", size, base_channels=64, noise_size=20)
    discriminator = network("DCGANDiscriminator", size, 4, 10, base_channels=16)
    ours, judge = load_dcgan(theirs.state_dict()), load_dcgan_discriminator(discriminator.state_dict())
    z, images = torch.randn(4, 20), torch.randn(4, 3, size, size)
    for backend in BACKENDS:
        with use_backend(backend):
            near(ours(z), theirs(z))
            near(judge(images), discriminator(images))


def test_training_mode_normalises_as_theirs(network):
    theirs = network("DCGANGenerator", 32, base_channels=64, noise_size=20).train()
    ours = load_dcgan(theirs.state_dict()).train()
    z = torch.randn(4, 20)
    near(ours(z), theirs(z))
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value)
