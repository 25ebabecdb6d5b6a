"""PadInv's encoder and generator beside ours with the same weights. Skipped without --peer padinv=PATH.

PadInv's generator writes into the maps that it gets, ours does not; what follows for users of the maps is here too.
"""

from __future__ import annotations

import copy
import importlib.util
from types import SimpleNamespace

import pytest
import torch
from stylegan2_peers import checkout, package, scrambled
from test_singan import lively

from posgan_fast import functional as PF
from posgan_fast import use_backend
from posgan_fast.models import PadInvEncoder, load_backbone, load_encoder, load_generator

BACKENDS = ("reference", "cpu")
MAPS = (0, 1, 3, 5, 7)
LEVELS = [3, 4, 11]  # published: of 18 latents


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(1)


@pytest.fixture
def their(peers):
    """Functions that build their networks, with weights changed so that all show.

    Only images of 256 pixels suit the encoder's heads, and only a subclass makes the backbone narrow.
    """
    path = peers["padinv"]
    spec = importlib.util.spec_from_file_location("padinv_encoder", path / "models/padinv_encoder.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    class Narrow(module.PadInvEncoder):
        stage_in_channels, stage_out_channels = [16, 16, 32, 64], [16, 32, 64, 128]

    def encoder(narrow=True, trained=True, **arguments):
        w_dim = 16 if narrow else 512
        settings = dict(inplanes=16, fpn_channels=128) if narrow else {}
        made = (Narrow if narrow else module.PadInvEncoder)(256, [w_dim] * 18, LEVELS, **settings, **arguments)
        made.avg_latent = torch.randn(w_dim) * 0.3
        return lively(made) if trained else made.eval()

    def generator(size, **arguments):
        make = importlib.import_module("models.stylegan2_generator_padinv").StyleGAN2GeneratorPadInv
        settings = dict(z_dim=16, w_dim=16, mapping_fmaps=16, mapping_layers=2, fmaps_base=4096, fmaps_max=128)
        return scrambled(make(resolution=size, **settings, **arguments))

    with checkout(path, package("models", path)):
        yield SimpleNamespace(encoder=encoder, generator=generator)


def their_image(network, ws, maps=None):
    """Their image on plain torch."""
    return network.synthesis(ws, padding_maps=maps, impl="ref")["image"]


def images(n=2, **kwargs):
    return torch.rand(n, 3, 256, 256, generator=torch.Generator().manual_seed(5), **kwargs) * 2 - 1


def loaded(encoder, **arguments) -> PadInvEncoder:
    return load_encoder(encoder.state_dict(), latent_average=encoder.avg_latent, **arguments)


def close(ours, theirs, bound=1e-4) -> None:
    assert ours.shape == theirs.shape and theirs.std() > 0.01
    assert (ours - theirs).norm() <= bound * theirs.norm()
    assert (ours - theirs).abs().max() <= bound * theirs.abs().max()


def compare(codes, theirs, bound=1e-4) -> None:
    ws, maps = codes
    close(ws, theirs["style_latents"], bound)
    maps = [*(maps or ()), *[None] * 18][:18]
    for ours, other in zip(maps, theirs["padding_maps"], strict=True):
        assert (ours is None) == (other is None)
        if ours is not None:
            close(ours, other, bound)


def test_codes_of_the_published_width_agree(their):
    """All 18 latents and all five maps, in evaluation and in training mode."""
    theirs = their.encoder(narrow=False)
    ours = loaded(theirs)
    assert ours.report.settings == dict(
        size=256, num_ws=18, levels=(3, 4, 11), w_dim=512, depth=50, width=64, padding="heads", pad_layers=4,
        pad_channels=[512] * 4, extractor_depth=2,
    )  # fmt: skip
    with torch.device("meta"):
        own = {k: (v.shape, v.dtype) for k, v in PadInvEncoder().state_dict().items() if k != "latent_average"}
    assert own == {name: (value.shape, value.dtype) for name, value in theirs.state_dict().items()}
    x = images()
    with torch.no_grad():
        expected = theirs(x)
        assert [i for i, m in enumerate(expected["padding_maps"]) if m is not None] == list(MAPS)
        assert {tuple(expected["padding_maps"][i].shape) for i in MAPS} == {(2, 512, 34, 34)}
        compare(ours(x, rings=False), expected)
        compare(ours.train()(x, rings=False), theirs.train()(x))
    for name, value in ours.named_buffers():
        if name.endswith(("running_mean", "running_var")):
            close_or_small(value, theirs.get_buffer(name))


def close_or_small(ours, theirs) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


CONFIGURATIONS = {  # arguments there, and what no tensor tells here
    "released": ({}, {}),
    "1 layer": (dict(pad_layer_num=1), {}),
    "5 layers": (dict(pad_layer_num=5), {}),
    "constant kept": (dict(encode_const_input=False), dict(pad_constant=False)),
    "no heads": (dict(use_padding_modulation_head=False), {}),
    "no heads, 2 layers": (dict(use_padding_modulation_head=False, pad_layer_num=2), dict(pad_layers=2)),
    "4 blocks": (dict(depth_padding_extractor=4), {}),
    "pSp": (dict(use_padding_space=False), {}),
    "100 layers": (dict(network_depth=100), {}),
    "152 layers": (dict(network_depth=152), {}),
}


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_codes_agree_for_every_setting(their, name, training):
    """In float64, as 152 layers of random weights make much of a rounding."""
    arguments, told = CONFIGURATIONS[name]
    theirs = their.encoder(**arguments).train(training)
    ours = loaded(theirs, **told).train(training).double()
    theirs.double().avg_latent = theirs.avg_latent.double()
    x = images(dtype=torch.float64)
    with torch.no_grad():
        compare(ours(x, rings=False), theirs(x), 1e-9)


def gradients(network, outputs):
    """Gradients of the same random scalar of tensors, by the names of all parameters; None where there are none."""
    rand = torch.Generator().manual_seed(6)
    present = [t for t in outputs if t is not None]
    sum((t * torch.randn(t.shape, generator=rand, dtype=t.dtype)).mean() for t in present).backward()
    return {name: p.grad for name, p in network.named_parameters()}


def joined(grads, names):
    return torch.cat([grads[name].flatten() for name in names])


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("name", ["released", "no heads", "pSp"])
def test_gradients_of_each_parameter_agree(their, name, training):
    """In float64, where a rounding hardly moves a value over the kink of a PReLU. A normalisation in training takes
    off what a bias ahead of it adds: gradients that are zero up to rounding are compared with the largest."""
    theirs = their.encoder(**CONFIGURATIONS[name][0]).train(training)
    ours = loaded(theirs).train(training).double()
    theirs.double().avg_latent = theirs.avg_latent.double()
    x = images(2, dtype=torch.float64)
    (ws, maps), codes = ours(x, rings=False), theirs(x)
    mine = gradients(ours, [ws, *(maps or ())])
    other = gradients(theirs, [codes["style_latents"], *codes["padding_maps"]])
    assert mine.keys() == other.keys()
    largest = max(grad.norm() for grad in other.values())
    for key, grad in other.items():
        assert (mine[key] - grad).norm() <= 1e-9 * grad.norm() + 1e-14 * largest, key
    assert sum(grad.norm() > 1e-14 * largest for grad in other.values()) > 0.9 * len(other)


@pytest.mark.parametrize("name", ["released", "no heads", "pSp"])
def test_gradients_of_all_parameters_agree_in_float32(their, name):
    """Of fresh weights, in evaluation: their own gradients in training are 1e-3 from those in float64."""
    theirs = their.encoder(trained=False, **CONFIGURATIONS[name][0])
    ours = loaded(theirs)
    (ws, maps), codes = ours(images(), rings=False), theirs(images())
    mine = gradients(ours, [ws, *(maps or ())])
    other = gradients(theirs, [codes["style_latents"], *codes["padding_maps"]])
    expected = joined(other, other)
    assert (joined(mine, other) - expected).norm() <= 1e-4 * expected.norm()


@pytest.mark.parametrize("size", [64, 256])
def test_whole_inversions_agree_on_every_backend(their, size):
    """Their generators read the first of 18 latents, ours take as many as they read."""
    encoder, generator = their.encoder(), their.generator(size)
    ours = loaded(encoder)
    n = 1 if size == 256 else 2
    with torch.no_grad():
        codes = encoder(images(n))
        theirs = their_image(generator, codes["style_latents"], codes["padding_maps"])
        for family in ("hammer", None):
            network = load_generator(generator.state_dict(), family)
            for backend in BACKENDS:
                for rings in (True, False):
                    with use_backend(backend):
                        ws, maps = ours(images(n), num_ws=network.num_ws, rings=rings)
                        close(network.synthesis(ws, maps, "const"), theirs)
        without = network.synthesis(ws, noise_mode="const")
        close(without, their_image(generator, codes["style_latents"]))
    assert (without - theirs).norm() > 0.1 * theirs.norm()


def test_one_file_gives_encoder_average_and_generator(their, tmp_path):
    """As their runner writes it; the average is that of the generator beside the encoder."""
    encoder, generator = their.encoder(), their.generator(64)
    models = {"encoder": encoder.state_dict(), "generator": generator.state_dict()}
    torch.save({"models": models, "running_metadata": {"iter": 5}}, tmp_path / "checkpoint.pth")
    encoder.avg_latent = generator.w_avg
    assert generator.w_avg.norm() > 0.1
    ours, network = load_encoder(tmp_path / "checkpoint.pth"), load_generator(tmp_path / "checkpoint.pth")
    with torch.no_grad():
        codes = encoder(images())
        image = network.synthesis(*ours(images(), num_ws=network.num_ws), "const")
        close(image, their_image(generator, codes["style_latents"], codes["padding_maps"]))


def test_the_backbone_of_their_file_is_taken(their):
    theirs, ours = their.encoder(), PadInvEncoder(32, width=16, num_ws=3, w_dim=4, levels=(1, 1, 1)).eval()
    assert load_backbone(ours, theirs.state_dict()).family == "padinv"
    with torch.no_grad():
        x, y = images(1), images(1)
        for part in ("input_layer", "backbone_stages.0", "backbone_stages.1", "backbone_stages.2", "backbone_stages.3"):
            x, y = ours.get_submodule(part)(x), theirs.get_submodule(part)(y)
    close(x, y)


@pytest.fixture
def inversion(their):
    """Their codes of two images, both generators, and ours as a function of latents and maps."""
    encoder, generator = their.encoder(use_padding_modulation_head=True), their.generator(64)
    with torch.no_grad():
        codes = encoder(images())
    network = load_generator(generator.state_dict()).requires_grad_(False)
    ws = codes["style_latents"][:, : network.num_ws]
    return SimpleNamespace(
        ws=ws, maps=codes["padding_maps"], theirs=generator, ours=lambda ws, maps: network.synthesis(ws, maps, "const"),
        constant=network.synthesis.b4.const, average=network.mapping.w_avg.expand_as(ws),
    )  # fmt: skip


def equal(maps, others) -> bool:
    return all(a is b is None or torch.equal(a, b) for a, b in zip(maps, others, strict=True))


def test_maps_survive_reuse_here_and_are_overwritten_there(inversion):
    maps, before = inversion.maps, copy.deepcopy(inversion.maps)
    image = inversion.ours(inversion.ws, maps)
    assert torch.equal(inversion.ours(inversion.ws, maps), image) and equal(maps, before)
    close(image, their_image(inversion.theirs, inversion.ws, maps))
    assert not equal(maps, before) and all(torch.equal(maps[i], before[i]) == (i == 0) for i in MAPS)
    for i, side in zip(MAPS[1:], (4, 8, 16, 32), strict=True):  # the rings survive there as well
        assert torch.equal(PF.ring_from_map(maps[i], side, side), PF.ring_from_map(before[i], side, side))
    assert torch.equal(inversion.ours(inversion.ws, maps), image)


def test_one_map_for_all_layers_gives_one_image_here_and_two_there(their):
    """Their later layers overwrite what the constant is read from."""
    encoder, generator = their.encoder(use_padding_modulation_head=False), their.generator(64)
    network = load_generator(generator.state_dict())
    with torch.no_grad():
        codes = encoder(images())
        ws, maps = codes["style_latents"], codes["padding_maps"]
        assert len({id(maps[i]) for i in MAPS}) == 1
        ours = [network.synthesis(ws[:, : network.num_ws], maps, "const") for _ in range(2)]
        theirs = [their_image(generator, ws, maps) for _ in range(2)]
    assert torch.equal(ours[0], ours[1])
    close(ours[0], theirs[0])
    assert (theirs[1] - theirs[0]).norm() > 0.01 * theirs[0].norm()


def test_gradients_pass_through_one_map_for_all_layers_here_only(their):
    encoder, generator = their.encoder(use_padding_modulation_head=False), their.generator(64)
    codes = encoder(images())
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        their_image(generator, codes["style_latents"], codes["padding_maps"]).sum().backward()
    ours, network = loaded(encoder), load_generator(generator.state_dict())
    network.synthesis(*ours(images(), num_ws=network.num_ws), "const").sum().backward()
    read = [p for name, p in ours.named_parameters() if not name.startswith("latent_heads.1") or name[13] == "."]
    assert all(p.grad.isfinite().all() for p in read) and sum(p.grad.norm() > 0 for p in read) > 0.9 * len(read)


def test_gradients_through_the_whole_inversion_agree(their):
    """The heads of latents that the generator does not read get none."""
    theirs, generator = their.encoder(trained=False), their.generator(64)
    ours, network = loaded(theirs), load_generator(generator.state_dict()).requires_grad_(False)
    codes = theirs(images())
    image = their_image(generator, codes["style_latents"], codes["padding_maps"])
    mine = gradients(ours, [network.synthesis(*ours(images(), num_ws=network.num_ws), "const")])
    other = gradients(theirs, [image])
    unread = {name for name, grad in mine.items() if grad is None}
    assert {name.split(".")[1] for name in unread} == {str(head) for head in range(network.num_ws, 18)}
    assert not any(other[name].any() for name in unread)
    names = [name for name in other if name not in unread]
    expected = joined(other, names)
    assert (joined(mine, names) - expected).norm() <= 1e-4 * expected.norm()


@pytest.mark.parametrize("t", [0.0, 0.5, 1.0])
def test_interpolation_from_native_padding_agrees(inversion, t):
    """From the average latent with constant and zeros, which is the image without maps, to the maps of an image."""
    native = [None if m is None else torch.zeros_like(m) for m in inversion.maps]
    native[0][:, :, 15:19, 15:19] = inversion.constant
    between = [None if m is None else torch.lerp(a, m, t) for a, m in zip(native, inversion.maps, strict=True)]
    before = copy.deepcopy(between)
    image = inversion.ours(inversion.average, between)
    assert equal(between, before)
    close(image, their_image(inversion.theirs, inversion.average, copy.deepcopy(between)))
    if t == 0:
        close(image, inversion.ours(inversion.average, None), 1e-5)
    if t == 1:
        assert torch.equal(image, inversion.ours(inversion.average, inversion.maps))


@pytest.mark.parametrize("rings", [False, True])
def test_an_optimiser_improves_latents_and_maps_here(inversion, rings):
    """Towards the image of the other of the two, from a common start."""
    target = inversion.ours(inversion.ws.flip(0), [m if m is None else m.flip(0) for m in inversion.maps])
    maps = list(inversion.maps)
    for i, side in zip(MAPS[1:], (4, 8, 16, 32), strict=True):
        maps[i] = PF.ring_from_map(maps[i], side, side) if rings else maps[i]
    leaves = [None if m is None else m.clone().requires_grad_() for m in maps]
    ws = inversion.ws.clone().requires_grad_()
    optimiser = torch.optim.Adam([ws, *(leaf for leaf in leaves if leaf is not None)], lr=0.02)
    losses = []
    for _ in range(6):
        loss = (inversion.ours(ws, leaves) - target).square().mean()
        losses.append(loss.item())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.9 * losses[0]
    for leaf, m in zip(leaves, maps, strict=True):
        assert leaf is m is None or (leaf.grad.norm() > 0 and not torch.equal(leaf, m))


def test_their_generator_takes_no_leaves(inversion):
    leaves = [None if m is None else m.clone().requires_grad_() for m in inversion.maps]
    with pytest.raises(RuntimeError, match="leaf Variable that requires grad .* in-place"):
        their_image(inversion.theirs, inversion.ws, leaves)
    shared = [None if m is None else m[:1].expand_as(m) for m in inversion.maps]
    with pytest.raises(RuntimeError, match="more than one element of the written-to tensor"):
        their_image(inversion.theirs, inversion.ws, shared)
    image = inversion.ours(inversion.ws, shared)
    assert torch.equal(image, inversion.ours(inversion.ws, [m if m is None else m.contiguous() for m in shared]))
