"""Networks of other projects and what is loaded from them: the same images, the same judgement.

Random weights; the other project's own modules run beside. Skipped without --peer.
"""

from __future__ import annotations

import copy
import importlib
import pickle

import pytest
import torch
from stylegan2_peers import FAMILIES, checkout, conv, mmcv, mmgeneration, nvlabs, package, scrambled
from test_loading import assert_accounted

from posgan_fast import nn, use_backend
from posgan_fast.models import convert_discriminator, convert_generator, load_discriminator, load_generator

SIZE = 32
BACKENDS = ("reference", "cpu")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(1)  # 0 would make weights of the very numbers that the loader averages latents over
    with torch.no_grad():
        yield


@pytest.fixture
def z():
    return torch.randn(2, 512, generator=torch.Generator().manual_seed(7))


@pytest.fixture
def images():
    contrast = torch.arange(1.0, 5.0).reshape(4, 1, 1, 1)
    return torch.randn(4, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(8)) * contrast


def close(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))
    assert theirs.std() > 0.01


def near(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Images whose contrast is that of [-1, 1] or more."""
    assert theirs.std() > 0.3
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)


def compare(generator, theirs, z, discriminator, images, scores) -> None:
    """A generator and a discriminator, every tensor accounted for."""
    for module, convert in ((generator, convert_generator), (discriminator, convert_discriminator)):
        state, report = convert(module.state_dict())
        assert_accounted(report, module.state_dict(), state)
    close(load_generator(generator.state_dict())(z), theirs)
    close(load_discriminator(discriminator.state_dict())(images), scores)


BATCH = {64: 2, 256: 1}


@pytest.mark.parametrize("size", BATCH)
@pytest.mark.parametrize("family", FAMILIES)
def test_generators(peers, z, family, size):
    """In the published width, on every backend."""
    there, z = FAMILIES[family], z[: BATCH[size]]
    path = peers[family]
    with checkout(path, there.extra(path)):
        generator = scrambled(there.generator(path, size))
        theirs = there.image(generator, z)
    ours = load_generator(generator.state_dict())
    for backend in BACKENDS:
        with use_backend(backend):
            near(ours(z), theirs)


@pytest.mark.parametrize("n", [0, 3, 4])
@pytest.mark.parametrize("family", FAMILIES)
def test_single_layers(peers, family, n):
    """At 4 pixels, enlarging 8 to 16 pixels, and at 16."""
    there = FAMILIES[family]
    path = peers[family]
    side = {0: 4, 3: 8, 4: 16}[n]
    x, w = torch.randn(2, 512, side, side), torch.randn(2, 512)
    with checkout(path, there.extra(path)):
        generator = scrambled(there.generator(path, 16))
        theirs = there.layer(generator, n, x, w)
    ours = conv(load_generator(generator.state_dict()).synthesis, n)
    assert isinstance(ours, nn.StyleConv) and ours.up == (2 if n % 2 else 1)
    for backend in BACKENDS:
        with use_backend(backend):
            error = ours(x, w) - theirs
        assert error.norm() <= 1e-5 * theirs.norm()
        assert error.abs().max() <= 1e-5 * theirs.abs().max()


RELEASED = dict.fromkeys((0, 1, 3, 5, 7), 34)  # index in the list: side of the map, as the encoder of PadInv makes them
EVERY = RELEASED | {2: 11, 4: 19, 6: 35, 8: 67, 9: 66}


@pytest.mark.parametrize("size, sides", [(64, RELEASED), (64, EVERY), (256, RELEASED)], ids=["64", "64, all", "256"])
def test_padding_maps(peers, size, sides):
    """Against PadInv's own generator, which writes into the maps: it gets copies."""
    path = peers["padinv"]
    with checkout(path, package("models", path)):
        make = importlib.import_module("models.stylegan2_generator_padinv").StyleGAN2GeneratorPadInv
        generator = scrambled(make(resolution=size))
        n, layers = BATCH[size], range(generator.num_layers)
        ws = torch.randn(n, len(layers), 512)
        maps = [torch.randn(n, 512, sides[i], sides[i]) if i in sides else None for i in layers]
        before = copy.deepcopy(maps)
        theirs = generator.synthesis(ws, padding_maps=copy.deepcopy(maps), impl="ref")["image"]
    ours = load_generator(generator.state_dict()).synthesis
    for backend in BACKENDS:
        with use_backend(backend):
            image = ours(ws, pad_maps=maps)
        near(image, theirs)
    assert torch.equal(ours(ws, pad_maps=maps), image)
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(maps, before, strict=True))
    assert (ours(ws) - image).std() > 0.3


@pytest.mark.parametrize("architecture", ["skip", "resnet"])
@pytest.mark.parametrize("c_dim", [0, 5])
def test_nvlabs(peers, tmp_path, images, architecture, c_dim):
    path = peers["nvlabs"]
    with checkout(path):
        networks = nvlabs(path)
        facts = {"channel_base": 1024, "channel_max": 32, "conv_clamp": 2.0, "architecture": architecture}
        synthesis = {"synthesis_kwargs": facts} if networks.__name__ == "training.networks" else facts
        generator = scrambled(networks.Generator(24, c_dim, 16, SIZE, 3, mapping_kwargs={"num_layers": 3}, **synthesis))
        discriminator = scrambled(networks.Discriminator(c_dim, SIZE, 3, **facts))
        data = {"G": generator, "D": discriminator, "G_ema": generator, "augment_pipe": None}
        (tmp_path / "network.pkl").write_bytes(pickle.dumps({**data, "training_set_kwargs": {"path": "x"}}))
        z, c = torch.randn(2, 24), torch.eye(5)[:2] if c_dim else torch.zeros(2, 0)
        theirs = generator(z, c, truncation_psi=0.7, noise_mode="const", force_fp32=True)
        labels = torch.eye(5)[:4] if c_dim else torch.zeros(4, 0)
        scores = discriminator(images, labels, force_fp32=True)
    ours = load_generator(tmp_path / "network.pkl")
    assert ours.report.settings["conv_clamp"] == 2 and ours.report.settings["architecture"] == architecture
    assert not ours.report.assumed
    close(ours(z, c if c_dim else None, truncation_psi=0.7), theirs)
    close(load_discriminator(tmp_path / "network.pkl")(images, labels if c_dim else None), scores)


@pytest.mark.parametrize("architecture", ["skip", "resnet"])
def test_nvlabs_in_half_precision(peers, tmp_path, images, architecture):
    """On the CPU, stylegan2-ada runs in float16, and stylegan3 in float32 as here."""
    path = peers["nvlabs"]
    with checkout(path):
        networks = nvlabs(path)
        facts = {"channel_base": 1024, "channel_max": 32, "conv_clamp": 256, "architecture": architecture}
        facts["num_fp16_res"] = 2
        synthesis = {"synthesis_kwargs": facts} if networks.__name__ == "training.networks" else facts
        generator = scrambled(networks.Generator(24, 0, 16, SIZE, 3, mapping_kwargs={"num_layers": 3}, **synthesis))
        discriminator = scrambled(networks.Discriminator(0, SIZE, 3, **facts))
        (tmp_path / "network.pkl").write_bytes(pickle.dumps({"G_ema": generator, "D": discriminator}))
        z, none = torch.randn(2, 24), torch.zeros(4, 0)
        image, full = (generator(z, none[:2], noise_mode="const", force_fp32=force) for force in (False, True))
        scores, full_scores = (discriminator(images, none, force_fp32=force) for force in (False, True))
    G, D = load_generator(tmp_path / "network.pkl"), load_discriminator(tmp_path / "network.pkl")
    assert G.num_fp16_res == D.num_fp16_res == 2 and G.synthesis.b16.dtype == D.b16.dtype == torch.float16
    for ours, theirs in ((G(z), image), (D(images), scores)):
        assert (ours - theirs).norm() <= 3e-3 * theirs.norm()
    close(G(z, force_fp32=True), full)
    close(load_discriminator(tmp_path / "network.pkl", num_fp16_res=0)(images), full_scores)


def test_rosinality(peers, tmp_path, z, images):
    with checkout(peers["rosinality"]):
        model = importlib.import_module("model")
        generator, discriminator = scrambled(model.Generator(SIZE, 512, 3)), scrambled(model.Discriminator(SIZE))
        average = torch.randn(512) * 0.1
        theirs, _ = generator([z], randomize_noise=False)
        truncated, _ = generator([z], randomize_noise=False, truncation=0.7, truncation_latent=average)
        compare(generator, theirs, z, discriminator, images, discriminator(images))
        latents = torch.randn(4096, 512)
        mean, spread = generator.style(latents).mean(0), generator.style(latents).std(0) / 64
    torch.save({"g_ema": generator.state_dict(), "latent_avg": average}, tmp_path / "x.pt")
    close(load_generator(tmp_path / "x.pt")(z, truncation_psi=0.7), truncated)
    without = load_generator(generator.state_dict()).mapping.w_avg
    assert ((without - mean).abs() < 8 * spread).all()


@pytest.mark.parametrize("architecture", ["skip", "resnet", "origin"])
def test_hammer(peers, z, images, architecture):
    path = peers["hammer"]
    with checkout(path, package("models", path)):
        name = "stylegan2_generator_padinv" if (path / "models/stylegan2_generator_padinv.py").is_file() else ""
        make = importlib.import_module(f"models.{name or 'stylegan2_generator'}")
        judge = importlib.import_module("models.stylegan2_discriminator").StyleGAN2Discriminator
        cls = make.StyleGAN2GeneratorPadInv if name else make.StyleGAN2Generator
        small = {"resolution": SIZE, "fmaps_base": 1024, "fmaps_max": 32, "architecture": architecture}
        generator, discriminator = scrambled(cls(mapping_layers=3, **small)), scrambled(judge(**small))
        theirs = generator(z, impl="ref")["image"]
        truncated = generator(z, trunc_psi=0.7, trunc_layers=20, impl="ref")["image"]
        scores = discriminator(images, impl="ref")
        scores = scores["score"] if isinstance(scores, dict) else scores
    compare(generator, theirs, z, discriminator, images, scores)
    close(load_generator({"models": {"generator_smooth": generator.state_dict()}})(z, truncation_psi=0.7), truncated)


def test_genforce(peers, z, images):
    path = peers["genforce"]
    with checkout(path, package("models", path)):
        small = {"resolution": SIZE, "fmaps_base": 1024, "fmaps_max": 32}
        make = importlib.import_module("models.stylegan2_generator").StyleGAN2Generator
        generator = scrambled(make(mapping_layers=3, **small))
        discriminator = importlib.import_module("models.stylegan2_discriminator").StyleGAN2Discriminator
        discriminator = scrambled(discriminator(**small))
        theirs = generator(z)["image"]
        truncated = generator(z, trunc_psi=0.7, trunc_layers=20)["image"]
        scores = discriminator(images)
    compare(generator, theirs, z, discriminator, images, scores)
    close(load_generator(generator.state_dict())(z, truncation_psi=0.7), truncated)


def test_mmgeneration(peers, tmp_path, z, images):
    path = peers["mmgeneration"]
    with checkout(path, mmcv(path)):
        _, v2 = mmgeneration()
        generator = scrambled(v2.StyleGANv2Generator(SIZE, 512, num_mlps=3))
        discriminator = scrambled(v2.StyleGAN2Discriminator(SIZE))
        theirs = generator(z, randomize_noise=False)
        compare(generator, theirs, z, discriminator, images, discriminator(images))
    state = {f"generator_ema.{name}": value for name, value in generator.state_dict().items()}
    torch.save({"meta": {"epoch": 1}, "state_dict": state, "optimizer": {}}, tmp_path / "x.pth")
    close(load_generator(tmp_path / "x.pth")(z), theirs)


UP = {"scale_factor": 2, "mode": "bilinear", "align_corners": True}
SPE = {"type": "SPE2d", "embedding_dim": 256, "padding_idx": 0, "init_size": 256, "center_shift": 100}
CONFIGURATIONS = {  # of MS-PIE: arguments there, overrides here
    "c": ({}, {}),
    "d": ({"head_pos_encoding": {"type": "CSG"}}, {}),
    "e": ({"head_pos_encoding": SPE, "interp_head": True}, {"interp_head": True}),
    "f": ({"head_pos_encoding": SPE}, {}),
    "h": ({"no_pad": True}, {}),
    "i": ({"head_pos_encoding": {"type": "CSG"}, "head_pos_size": (6, 6), "no_pad": True}, {}),
    "j": (
        {"head_pos_encoding": SPE, "head_pos_size": (6, 6), "interp_head": True, "no_pad": True},
        {"interp_head": True},
    ),
    "k": ({"head_pos_encoding": SPE, "head_pos_size": (6, 6), "no_pad": True}, {}),
}


def ms_pie(name: str, size: int):
    """A generator of theirs, inside ``checkout``."""
    arguments, _ = CONFIGURATIONS[name]
    no_pad = arguments.get("no_pad", False)
    resizing = {"up_config": UP, "up_after_conv": not no_pad, "interp_pad": 4 if no_pad else None}
    make = mmgeneration()[0].MSStyleGANv2Generator
    return scrambled(make(size, 512, num_mlps=2, deconv2conv=True, **resizing, **arguments))


@pytest.mark.parametrize("size", BATCH)
@pytest.mark.parametrize("name", ["f", "k"])
def test_positional_generators(peers, z, name, size):
    """Networks of the published width agree with and without zero padding, on every backend."""
    path, z = peers["mmgeneration"], z[: BATCH[size]]
    with checkout(path, mmcv(path)):
        generator = ms_pie(name, size)
        theirs = generator(z, randomize_noise=False)
    ours = load_generator(generator.state_dict())
    for backend in BACKENDS:
        with use_backend(backend):
            near(ours(z), theirs)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_positional_encodings(peers, z, images, name):
    path = peers["mmgeneration"]
    overrides = CONFIGURATIONS[name][1]
    with checkout(path, mmcv(path)):
        generator = ms_pie(name, 16)
        theirs = generator(z, randomize_noise=False)
        ours = load_generator(generator.state_dict(), **overrides)
        state, report = convert_generator(generator.state_dict())
        assert_accounted(report, generator.state_dict(), state)
        close(ours(z), theirs)
        for scale in (2, 4):
            noises = [torch.randn(1, 1, *size) for size in ours.synthesis.noise_sizes(scale)]
            there_ = generator(z, injected_noise=noises, chosen_scale=scale)
            close(ours(z, noises=noises, scale=scale), there_)
        discriminator = scrambled(mmgeneration()[0].MSStyleGAN2Discriminator(SIZE, with_adaptive_pool=True))
        judge = load_discriminator(discriminator.state_dict())
        larger = torch.randn(2, 3, 48, 48) * torch.tensor([1.0, 4.0]).reshape(2, 1, 1, 1)
        close(judge(larger), discriminator(larger))
