"""Structure that tensors do not tell: the caller's word decides, and every guess is in the report."""

from __future__ import annotations

import pytest
import torch
from stylegan2_states import discriminator, discriminator_in_family, generator, in_family
from test_pickles import module, pickled

from posgan_fast.models import CheckpointError, Discriminator, Generator, load_discriminator, load_generator
from posgan_fast.models.structure import multiplier
from posgan_fast.models.stylegan2_mapping import widths

SMALL = {"size": 8, "channel_max": 8}
FAMILIES = ("nvlabs", "rosinality", "mmgeneration", "hammer", "genforce")


def close(loaded: torch.nn.Module, model: torch.nn.Module, *inputs: torch.Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(loaded(*inputs), model.eval()(*inputs))


@pytest.mark.parametrize("size", [(4, 2), (2, 2), (1, 4), (4, 4), (2, 8), (8, 8), (1, 1), (3, 5)])
@pytest.mark.parametrize("told", [{}, {"adaptive_pool": False}])
def test_heads_of_discriminators(size, told):
    model = Discriminator(**SMALL, head_size=size)
    loaded = load_discriminator(model.state_dict(), head_size=size, **told)
    close(loaded, model, torch.randn(4, 3, *model.img_size))
    assert ("adaptive_pool" in loaded.report.assumed) == (size[0] * size[1] == 4 and not told)


@pytest.mark.parametrize("size", [(4, 4), (8, 8), (2, 2), (3, 5)])
def test_pools_that_the_caller_tells(size):
    model = Discriminator(**SMALL, adaptive_pool=True, head_size=size)
    for told in ({"adaptive_pool": True}, {"adaptive_pool": True, "head_size": size}, {"head_size": size}):
        if told == {"head_size": (2, 2)}:
            continue  # which says that there is none
        loaded = load_discriminator(model.state_dict(), **told)
        close(loaded, model, torch.randn(4, 3, 12, 16))
        assert "adaptive_pool" not in loaded.report.assumed


@pytest.mark.parametrize("family", FAMILIES)
def test_a_pool_is_never_assumed_in_silence(family):
    there = discriminator_in_family(discriminator(pooled=True), family)
    assert "adaptive_pool" in load_discriminator(there).report.assumed
    assert "adaptive_pool" not in load_discriminator(there, adaptive_pool=True).report.assumed
    flat = load_discriminator(there, adaptive_pool=False, head_size=(2, 2))
    assert flat.img_size == (16, 16) and not flat.adaptive_pool


def test_heads_that_contradict():
    eight = Discriminator(**SMALL, head_size=(4, 2)).state_dict()
    for state, told, match in (
        (eight, {}, r"8 features a channel, .*give head_size, whose height times width is 8"),
        (eight, {"head_size": (4, 4)}, r"got 64 for head_size=\(4, 4\)"),
        (eight, {"adaptive_pool": True}, "got 64 with adaptive_pool=True"),
        (discriminator(), {"head_size": (2, 2)}, r"got 128 for head_size=\(2, 2\)"),
        (discriminator(pooled=True), {"head_size": (4, 4), "adaptive_pool": False}, "with adaptive_pool=False"),
        (discriminator(pooled=True), {"adaptive_pool": False}, "give head_size, whose height times width is 4"),
    ):
        with pytest.raises(CheckpointError, match=match):
            load_discriminator(state, **told)
    with pytest.raises(CheckpointError, match=r"head_size: expected \(4, 4\), which the tensors tell, got \(4, 6\)"):
        load_generator(generator(), head_size=(4, 6))
    for load, state in ((load_generator, generator()), (load_discriminator, discriminator())):
        with pytest.raises((TypeError, ValueError), match="head_size"):
            load(state, head_size="4x4")


GIVEN = {"lr_multiplier": 1.0, "activation": "relu", "mapping_activation": "swish"}


@pytest.mark.parametrize("name", GIVEN)
def test_what_no_tensor_tells(name):
    told = {name: GIVEN[name]}
    torch.manual_seed(1)
    model = Generator(**SMALL, z_dim=8, w_dim=8, mapping_layers=2, **told)
    z = torch.randn(2, 8)
    guessed, loaded = load_generator(model.state_dict()), load_generator(model.state_dict(), **told)
    assert name in guessed.report.assumed and name not in loaded.report.assumed
    close(loaded, model, z)
    assert not torch.allclose(guessed(z), loaded(z))
    model = Discriminator(**SMALL, c_dim=3, mapping_layers=2, **told)
    loaded = load_discriminator(model.state_dict(), **told)
    assert name in load_discriminator(model.state_dict()).report.assumed
    close(loaded, model, torch.randn(4, 3, 8, 8), torch.randn(4, 3))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_assumed_of_every_family(family):
    assert load_generator(in_family(generator(), family)).report.assumed.keys() >= {*GIVEN, "conv_clamp"}
    assumed = load_discriminator(discriminator_in_family(discriminator(), family)).report.assumed
    assert assumed.keys() >= {"activation", "conv_clamp", "mbstd_group_size"} and "lr_multiplier" not in assumed


def test_the_average_follows_the_mapping():
    state = {name: value for name, value in in_family(generator(), "mmgeneration").items()}
    usual, other = load_generator(state), load_generator(state, lr_multiplier=0.1, activation="relu")
    assert not torch.allclose(usual.mapping.w_avg, other.mapping.w_avg)
    z = torch.randn(20_000, 5, generator=torch.Generator().manual_seed(5))
    w = other.mapping(z)[:, 0]
    assert ((other.mapping.w_avg - w.mean(0)).abs() < 6 * w.std(0) / 4096**0.5 + 1e-6).all()


def test_wrong_values():
    for given, match in (
        ({"lr_multiplier": 0}, "lr_multiplier: expected a number > 0, got 0"),
        ({"lr_multiplier": "a"}, "lr_multiplier: expected a number, got str"),
        ({"activation": "gelu"}, "activation: expected one of .*, got 'gelu'"),
        ({"mapping_activation": 3}, "mapping_activation: expected one of .*, got int"),
        ({"no_pad": 1}, "no_pad: expected a bool, got int"),
    ):
        with pytest.raises((TypeError, ValueError), match=match):
            load_generator(generator(), **given)
    for given, match in (
        ({"activation": "gelu"}, "activation"),
        ({"adaptive_pool": 1}, "adaptive_pool: expected a bool"),
    ):
        with pytest.raises((TypeError, ValueError), match=match):
            load_discriminator(discriminator(), **given)


def test_pickled_modules_know(tmp_path):
    path = tmp_path / "network.pkl"
    facts = {"synthesis.b4.conv1": {"activation": "relu", "conv_clamp": None}}
    facts["mapping.fc0"] = {"activation": "swish", "bias_gain": 0.5}
    path.write_bytes(pickled({"G": module(generator(), "Generator", facts)}))
    model = load_generator(path)
    assert model.mapping.fc0.lr_multiplier == 0.5 and model.mapping.fc1.act == "swish"
    assert model.synthesis.b8.conv0.act == "relu" and not model.report.assumed


@pytest.mark.parametrize("size", [8, 16, 32, 64, 128, 256])
@pytest.mark.parametrize("maximum", [3, 8])
def test_every_multiplier_is_told(size, maximum):
    """Widths as the model computes them, at bases that are no multiple of any side too."""
    for base in [*range(size, size + 40), *(int(16384 * m) for m in (0.02, 0.0213, 0.0317, 0.3, 1.1, 2, 3.7))]:
        if base < size:
            continue
        channels = widths(size, base / 16384, maximum)
        told = multiplier(channels)
        assert widths(size, told["channel_multiplier"], told["channel_max"]) == channels
    with pytest.raises(CheckpointError, match="do not follow"):
        multiplier({4: 8, 8: 2, 16: 4})


@pytest.mark.parametrize(("size", "factor"), [(64, 0.011), (32, 0.0123), (16, 0.0017)])
def test_models_of_any_multiplier(size, factor):
    for network, load in ((Generator, load_generator), (Discriminator, load_discriminator)):
        model = network(size, channel_multiplier=factor, **({"w_dim": 8} if network is Generator else {}))
        state = load(model.state_dict()).state_dict()
        assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
