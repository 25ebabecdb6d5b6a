"""Buffers that can be made again: files without them, or with those of images of another size."""

from __future__ import annotations

import pytest
import torch
from stylegan2_states import SIZE, Z, discriminator, discriminator_in_family, generator, in_family

from posgan_fast.models import CheckpointError, convert_generator, load_discriminator, load_generator

FAMILIES = ("nvlabs", "rosinality", "mmgeneration", "hammer", "genforce")


def is_noise(name: str) -> bool:
    return name.startswith(("noises.", "injected_noise")) or name.endswith((".noise", "noise_const"))


def is_filter(name: str) -> bool:
    return name.endswith(("resample_filter", "kernel", ".filter"))


def weights(state: dict) -> dict:
    return {name: value for name, value in state.items() if not is_noise(name) and not is_filter(name)}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("keep", [0, 1, 3])
def test_missing_noise(family, keep):
    state = in_family(generator(), family)
    noise = [name for name in state if is_noise(name)]
    partial = {name: value for name, value in state.items() if name not in noise[keep:]}
    one, two = load_generator(partial, family), load_generator(partial, family)
    filled = {name for name in one.report.filled if name.endswith("noise_const")}
    assert len(filled) == len(noise) - keep == 7 - keep
    for name, value in one.state_dict().items():
        assert torch.equal(value, two.state_dict()[name])
        if name in filled:
            assert 0.5 < value.std() < 1.6 and not torch.equal(value, generator()[name])
        elif name != "mapping.w_avg":
            torch.testing.assert_close(value, generator()[name])
    drawn = [one.state_dict()[name].flatten()[:16] for name in filled]
    assert len({tuple(values.tolist()) for values in drawn}) == len(drawn)  # each convolution has its own
    few = [name for name in state if is_noise(name)][:6]
    last = load_generator({name: value for name, value in state.items() if name not in few[:keep]}, family)
    assert all(
        torch.equal(last.state_dict()[name], one.state_dict()[name]) for name in filled & last.report.filled.keys()
    )
    assert one(torch.zeros(1, Z)).shape == (1, 3, SIZE, SIZE)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", [(4, 6), (7, 3), (6, 6), (2, 2), (8, 8)])
def test_another_aspect_ratio(family, shape):
    """The learned constant alone has the other shape."""
    state = in_family(generator(), family)
    (const,) = [name for name in state if name.endswith(("input.input", "const"))] if family != "nvlabs" else [CONST]
    state[const] = torch.randn(*state[const].shape[:-2], *shape)
    model = load_generator(state, family)
    assert model.report.settings["head_size"] == shape and not model.report.settings.get("no_pad")
    assert model(torch.zeros(1, Z)).shape == (1, 3, SIZE // 4 * shape[0], SIZE // 4 * shape[1])
    noise = [name for name in state if is_noise(name)]
    assert len([name for name in model.report.filled if "noise_const" in name]) == 7
    assert all("made again" in model.report.left[name] for name in noise)


CONST = "synthesis.b4.const"


@pytest.mark.parametrize("family", ["nvlabs", "mmgeneration"])
@pytest.mark.parametrize("told", [False, True])
def test_a_head_without_padding(family, told):
    """The noise tells of the border, or the caller does."""
    state = in_family(generator(no_pad=True), family, resized=True)
    bare = {name: value for name, value in state.items() if not is_noise(name)}
    model = load_generator(bare if told else state, **({"no_pad": True} if told else {}))
    assert model.report.settings["no_pad"] and "head_size" not in model.report.settings
    assert torch.equal(model.synthesis.b4.const, generator(no_pad=True)[CONST])
    guessed = load_generator(bare)
    assert "no_pad" in guessed.report.assumed and guessed.report.settings["head_size"] == (6, 6)


def test_an_encoding_without_noise():
    bare = {name: value for name, value in generator("csg").items() if not is_noise(name)}
    assert load_generator(bare).report.assumed["head_size"].startswith("(4, 4)")
    wide = load_generator(bare, head_size=(4, 6), no_pad=True)
    assert wide(torch.zeros(1, Z)).shape == (1, 3, 32, 48) and "head_size" not in wide.report.assumed
    noisy = {name: value for name, value in generator("csg").items() if "b4" not in name or not is_noise(name)}
    assert "head_size" not in load_generator(noisy).report.assumed | load_generator(noisy).report.settings


@pytest.mark.parametrize("family", FAMILIES)
def test_missing_filters(family):
    state = in_family(generator(), family)
    model = load_generator({name: value for name, value in state.items() if not is_filter(name)}, family)
    names = [name for name in generator() if "filter" in name]
    assert all(torch.equal(model.state_dict()[name], generator()[name]) for name in names)
    assert set(names) <= model.report.filled.keys()
    judge = discriminator_in_family(discriminator(), family)
    model = load_discriminator({name: value for name, value in judge.items() if not is_filter(name)}, family)
    assert all(torch.equal(value, discriminator()[name]) for name, value in model.state_dict().items())
    if family == "mmgeneration":
        assert "up_after_conv" in load_generator(weights(state)).report.assumed


FORMS = {
    "taps": lambda f: f.flatten()[:4] * f.sum() / f.flatten()[:4].sum(),
    "column": lambda f: FORMS["taps"](f)[:, None],
    "[1, 1, k, k]": lambda f: f.reshape(1, 1, 4, 4),
    "[C, 1, k, k]": lambda f: f.reshape(1, 1, 4, 4).repeat(5, 1, 1, 1),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_filters_of_another_shape(family, form):
    for make, convey, load in (
        (generator, in_family, load_generator),
        (discriminator, discriminator_in_family, load_discriminator),
    ):
        state = convey(make(), family)
        for name in [name for name in state if is_filter(name)]:
            state[name] = FORMS[form](state[name].reshape(4, 4))
        model = load(state, family)
        for name, value in model.state_dict().items():
            if "filter" in name:
                torch.testing.assert_close(value, make()[name])


def test_filters_of_other_taps_are_refused():
    for wrong in (
        torch.ones(3, 3) / 9,
        torch.ones(2) / 2,
        torch.ones(2, 4, 4) / 16 * torch.tensor([1.0, 2.0])[:, None, None],
    ):
        with pytest.raises(CheckpointError, match="synthesis.b8.resample_filter: expected a filter of"):
            load_generator({**generator(), "synthesis.b8.resample_filter": wrong})


def test_names_of_two_families():
    """Without averages and filters Hammer's and Genforce's names are the same, and their values are not."""
    state = {name: value for name, value in weights(in_family(generator(), "genforce")).items() if "w_avg" not in name}
    with pytest.raises(CheckpointError, match="family: hammer and genforce have these names both"):
        load_generator(state)
    genforce, hammer = load_generator(state, "genforce"), load_generator(state, "hammer")
    assert torch.equal(genforce.synthesis.b8.conv0.weight, generator()["synthesis.b8.conv0.weight"])
    assert not torch.equal(hammer.synthesis.b8.conv0.weight, genforce.synthesis.b8.conv0.weight)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_average_of_w(family):
    state = {
        name: value
        for name, value in in_family(generator(), family).items()
        if not name.endswith(("w_avg", "latent_avg"))
    }
    report = convert_generator(state, family)[1]
    assert "mapping.w_avg" in report.filled
    name = {"nvlabs": "mapping.w_avg", "genforce": "truncation.w_avg", "hammer": "w_avg"}.get(family, "latent_avg")
    if family != "mmgeneration":
        average = generator()["mapping.w_avg"]
        model = load_generator({**state, name: average.repeat(8, 1)}, family)
        assert torch.equal(model.mapping.w_avg, average)
    labelled = {name: value for name, value in generator(c_dim=3).items() if not name.endswith("w_avg")}
    with pytest.raises(CheckpointError, match="w_avg"):
        load_generator(labelled)  # no labels to average over
