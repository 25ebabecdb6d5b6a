"""Weights of five families, exact to the last tensor, or an error that names what is wrong."""

from __future__ import annotations

import argparse

import pytest
import torch
from stylegan2_states import LABELS, LAYERS, SETTINGS, SIZE, W, Z, discriminator, discriminator_in_family, generator
from stylegan2_states import in_family as generator_in_family

from posgan_fast import use_backend
from posgan_fast.models import (
    CheckpointError,
    convert_discriminator,
    convert_generator,
    load_discriminator,
    load_generator,
    stylegan2_mapping,
)
from posgan_fast.models.stylegan2_mapping import mean_latent

pytestmark = pytest.mark.usefixtures("reference")
FAMILIES = ("nvlabs", "rosinality", "mmgeneration", "hammer", "genforce")


@pytest.fixture(scope="module")
def reference():
    """The weights are what is tested here, not the kernels."""
    with use_backend("reference"):
        yield


def assert_same(state: dict, expected: dict) -> None:
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(state[name], value, msg=lambda text, name=name: f"{name}: {text}")


def assert_accounted(report, there: dict, here: dict) -> None:
    """Every tensor of the input is used or left, every one of the output comes from it or is filled."""
    names = {name for names in report.renamed.values() for name in names.split(", ")}
    same = {name for name in here if name in there}
    assert set(report.renamed) | set(report.left) | same == set(there)
    assert names | set(report.filled) | same == set(here)
    assert not names & set(report.filled)


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("family", FAMILIES)
def test_generator(family, named):
    expected = generator()
    there = generator_in_family(expected, family)
    before = {name: value.clone() for name, value in there.items()}
    state, report = convert_generator(there, family if named else None)
    if family == "mmgeneration":
        expected["mapping.w_avg"] = state["mapping.w_avg"]
        assert "mapping.w_avg" in report.filled
    assert_same(state, expected)
    assert_same(there, before)
    assert_accounted(report, there, state)
    assert report.family == family
    assert report.settings.items() >= {**SETTINGS, "z_dim": Z, "mapping_layers": LAYERS, "c_dim": 0}.items()
    assert report.settings["architecture"] == "skip" and report.settings["head"] == "constant"
    flipped = [name for name, what in report.changed.items() if "mirrored" in what]
    assert flipped == [f"synthesis.b{r}.conv0.weight" for r in (8, 16, 32)] * (family == "genforce")
    assert ("weight_orig" in report.table()) == (family == "mmgeneration")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("pooled", [False, True])
def test_discriminator(family, pooled):
    expected = discriminator(pooled=pooled)
    there = discriminator_in_family(expected, family)
    state, report = convert_discriminator(there)
    assert_same(state, expected)
    assert_accounted(report, there, state)
    assert report.settings["adaptive_pool"] == pooled and report.settings["mbstd_num_channels"] == 1
    assert report.settings["size"] == SIZE and report.settings["architecture"] == "resnet"


@pytest.mark.parametrize("family", ["nvlabs", "hammer"])
@pytest.mark.parametrize("architecture", ["skip", "resnet", "orig"])
def test_architectures_and_labels(family, architecture):
    expected = generator(architecture=architecture, c_dim=LABELS)
    state, report = convert_generator(generator_in_family(expected, family))
    assert_same(state, expected)
    assert (report.settings["architecture"], report.settings["c_dim"]) == (architecture, LABELS)
    expected = discriminator(architecture, c_dim=LABELS)
    state, report = convert_discriminator(discriminator_in_family(expected, family))
    assert_same(state, expected)
    assert (report.settings["architecture"], report.settings["c_dim"]) == (architecture, LABELS)
    assert report.settings["mapping_layers"] == LAYERS


@pytest.mark.parametrize("no_pad", [False, True])
@pytest.mark.parametrize("head", ["constant", "csg", "spe"])
def test_positional_generators(head, no_pad):
    expected = generator(head, no_pad)
    there = generator_in_family(expected, "mmgeneration", resized=True)
    state, report = convert_generator(there)
    expected["mapping.w_avg"] = state["mapping.w_avg"]
    assert_same(state, expected)
    assert_accounted(report, there, state)
    assert report.settings["head"] == head and "head_size" not in report.settings
    assert report.settings.get("no_pad", False) == no_pad
    assert report.settings.get("up_after_conv") == (None if no_pad else True)
    assert ("interp_head" in report.assumed) == (head != "constant")
    assert ("head_pos_enc._float_tensor" in report.left) == (head == "spe")
    model = load_generator(there)
    assert_same(model.state_dict(), expected)
    assert model(torch.zeros(1, W if head is None else Z), scale=2).shape == (1, 3, 48, 48)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_missing_tensor_is_named(family):
    for make, convert, convey in (
        (generator, convert_generator, generator_in_family),
        (discriminator, convert_discriminator, discriminator_in_family),
    ):
        there = convey(make(), family)
        for name in there:
            broken = {key: value for key, value in there.items() if key != name}
            if made_again(name) or any(word in name for word in ("filter", "kernel")):
                convert(broken, family)
                continue
            with pytest.raises(CheckpointError) as caught:
                convert(broken, family)
            text = str(caught.value)
            assert name in text or ("blocks" in text and name in _fully_connected(family)), name


def made_again(name: str) -> bool:
    """Noise and the average of w, by the names of every family."""
    noise = name.startswith(("noises.", "injected_noise")) or name.endswith((".noise", "noise_const"))
    return noise or name.endswith(("w_avg", "latent_avg"))


def _fully_connected(family: str) -> list[str]:
    """The layer behind the blocks; it is how their number is told."""
    judge = discriminator()
    marked = discriminator_in_family({**judge, "b4.fc.weight": judge["b4.fc.weight"] * 0}, family)
    return [name for name, value in marked.items() if value.ndim == 2 and not value.any()]


@pytest.mark.parametrize("family", FAMILIES)
def test_no_shape_is_taken_on_trust(family):
    for make, convert, convey in (
        (generator, convert_generator, generator_in_family),
        (discriminator, convert_discriminator, discriminator_in_family),
    ):
        there = convey(make(), family)
        for name, value in there.items():
            wrong = {**there, name: torch.cat([value.reshape(value.numel(), 1)] * 2)}
            if made_again(name):
                report = convert(wrong, family)[1]
                assert len(report.filled.keys() - convert(there, family)[1].filled.keys()) == 1 and name in report.left
                continue
            with pytest.raises(CheckpointError):
                convert(wrong, family)


SHAPES = {
    "no dimension": lambda v: v.sum(),
    "one dimension": lambda v: v.flatten(),
    "one number": lambda v: v.flatten()[:1],
    "nothing": lambda v: v.flatten()[:0],
    "no rows": lambda v: v[None][:0],
    "more": lambda v: torch.cat([v.flatten()] * 3),
}


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_tensors_of_too_few_dimensions(family, kind):
    """Sides of 1 are as good as none; all else ends in the library's own error."""
    for make, convert, convey in (
        (lambda: generator(c_dim=LABELS * (family in ("nvlabs", "hammer"))), convert_generator, generator_in_family),
        (discriminator, convert_discriminator, discriminator_in_family),
    ):
        there = convey(make(), family)
        for name, value in there.items():
            changed = SHAPES[kind](value)
            if _sides(changed) == _sides(value) or (kind == "one dimension" and ("filter" in name or "kernel" in name)):
                continue  # as good, and a filter may be separable
            if made_again(name) and not (name.endswith("w_avg") and any("embed" in key for key in there)):
                assert name in convert({**there, name: changed}, family)[1].left
                continue
            with pytest.raises(CheckpointError) as caught:
                convert({**there, name: changed}, family)
            if kind == "no dimension":
                assert name in str(caught.value) and "expected" in str(caught.value)


def _sides(value: torch.Tensor) -> list[int]:
    return [n for n in value.shape if n != 1]


KINDS = {
    "sparse_coo": lambda v: v.to_sparse(),
    "sparse_csr": lambda v: v.reshape(1, -1).to_sparse_csr(),
    "_mkldnn": lambda v: v.to_mkldnn(),
    "nested": lambda v: torch.nested.nested_tensor([v.flatten()]),
    "on meta": lambda v: v.to("meta"),
    "qint8": lambda v: torch.quantize_per_tensor(v, 0.1, 0, torch.qint8),
    "float8": lambda v: v.to(torch.float8_e4m3fn),
    "complex64": lambda v: v + 0j,
    "bool": lambda v: v > 0,
    "inside its storage": lambda v: torch.zeros(1).expand(2, *v.shape),
    "ndarray": lambda v: v.numpy(),
    "list": lambda v: v.tolist(),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["mapping.fc0.weight", "synthesis.b8.conv0.resample_filter", "mapping.w_avg"])
@pytest.mark.filterwarnings("ignore")  # torch's, of the kinds that it gives up
def test_tensors_that_are_no_plain_numbers(kind, name):
    state = generator()
    with pytest.raises(CheckpointError, match=rf"{name}.*{kind}"):
        load_generator({**state, name: KINDS[kind](state[name])})


@pytest.mark.parametrize("family", FAMILIES)
def test_unknown_tensors_are_refused(family):
    there = generator_in_family(generator(), family)
    with pytest.raises(CheckpointError, match=r"no part of .*: extra\.attention"):
        convert_generator({**there, "extra.attention": torch.zeros(1)})
    there = discriminator_in_family(discriminator(), family)
    with pytest.raises(CheckpointError, match=r"no part of .*: extra\.attention"):
        convert_discriminator({**there, "extra.attention": torch.zeros(1)})


def test_refusals():
    state = generator()
    with pytest.raises(CheckpointError, match="family: expected one of nvlabs"):
        convert_generator(state, "stylegan")
    with pytest.raises(CheckpointError, match=r"no StyleGAN2 generator .* holds a, b"):
        convert_generator({"a": torch.zeros(1), "b": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="alias-free generator of StyleGAN3"):
        convert_generator({"synthesis.input.freqs": torch.zeros(1)})
    with pytest.raises(CheckpointError, match="expected names and tensors, got 'x': int"):
        convert_generator({**state, "x": 3})
    with pytest.raises(CheckpointError, match=r"w_avg: expected floating point .*, got torch\.int64"):
        convert_generator({**state, "mapping.w_avg": torch.zeros(W, dtype=torch.int64)})
    with pytest.raises(CheckpointError, match="do not follow"):
        bias = torch.zeros(6)
        convert_generator({**state, "synthesis.b16.conv1.bias": bias})
    ros = generator_in_family(state, "rosinality")
    with pytest.raises(CheckpointError, match=r"to_rgbs\.1\.upsample\.kernel: expected a filter of sum 4, got .* 1$"):
        convert_generator({**ros, "to_rgbs.1.upsample.kernel": state["synthesis.b8.resample_filter"]})
    with pytest.raises(CheckpointError, match="no part of a genforce generator"):
        genforce = generator_in_family(state, "genforce")
        convert_generator({**genforce, "mapping.label_weight": torch.zeros(LABELS, Z)})


def test_the_average_of_w_is_that_of_the_mapping():
    there = generator_in_family(generator(), "mmgeneration")
    model = load_generator(there)
    z = torch.randn(20_000, Z, generator=torch.Generator().manual_seed(5))
    w = model.mapping(z)[:, 0]
    spread = w.std(0) / 4096**0.5
    assert ((model.mapping.w_avg - w.mean(0)).abs() < 6 * spread).all()


def test_the_average_of_w_in_chunks(monkeypatch):
    """The same samples, however few there are at a time; and few where a file has wide latents."""
    state = convert_generator(generator())[0]
    whole = mean_latent(state, LAYERS, Z)
    monkeypatch.setattr(stylegan2_mapping, "_CHUNK", 100 * W)
    torch.testing.assert_close(mean_latent(state, LAYERS, Z), whole, rtol=1e-5, atol=1e-7)
    monkeypatch.undo()
    wide = {"mapping.fc0.weight": torch.ones(1, 40_000), "mapping.fc0.bias": torch.zeros(1)}
    with torch.profiler.profile(profile_memory=True) as profile:
        assert mean_latent(wide, 1, 40_000).shape == (1,)
    assert max(event.self_cpu_memory_usage for event in profile.events()) <= 16 << 20


FILES = {
    "nvlabs": lambda g, e, d: {"G": g, "G_ema": e, "D": d},
    "rosinality": lambda g, e, d: {
        "g": {key: value for key, value in g.items() if key != "latent_avg"},
        "g_ema": {key: value for key, value in e.items() if key != "latent_avg"},
        "d": d,
        "latent_avg": e["latent_avg"],
        "g_optim": {"state": {0: {"step": 3}}},
        "args": argparse.Namespace(size=SIZE, path="x"),
    },
    "mmgeneration": lambda g, e, d: {
        "meta": {"epoch": 1, "best_score": 3.5},
        "state_dict": {
            **{f"generator.{key}": value for key, value in g.items()},
            **{f"discriminator.{key}": value for key, value in d.items()},
            **{f"generator_ema.{key}": value for key, value in e.items()},
            "gen_auxiliary_losses.0.mean_path_length": torch.zeros(()),
        },
    },
    "hammer": lambda g, e, d: {
        "models": {"generator": g, "generator_smooth": e, "discriminator": d, "encoder": {"x": torch.zeros(1)}},
        "model_kwargs_init": {},
    },
    "genforce": lambda g, e, d: {"generator": g, "generator_smooth": e, "discriminator": d},
}


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("family", FAMILIES)
def test_files(family, zipped, tmp_path):
    averaged = generator()
    training = {name: value * 1 if "filter" in name else value + 1 for name, value in averaged.items()}
    judge = discriminator()
    content = FILES[family](
        generator_in_family(training, family),
        generator_in_family(averaged, family),
        discriminator_in_family(judge, family),
    )
    path = tmp_path / "weights.pt"
    torch.save(content, path, _use_new_zipfile_serialization=zipped)
    model = load_generator(path)
    assert not model.training and model.report.family == family and model.report.network == "generator"
    averaged["mapping.w_avg"] = model.mapping.w_avg if family == "mmgeneration" else averaged["mapping.w_avg"]
    assert_same(model.state_dict(), averaged)
    assert "conv_clamp" in model.report.assumed and "another network" in str(model.report)
    other = load_generator(str(path), family, ema=False, conv_clamp=256.0)
    assert_same({"const": other.synthesis.b4.const}, {"const": training["synthesis.b4.const"]})
    assert other.report.settings["conv_clamp"] == 256 and "conv_clamp" not in other.report.assumed
    assert_same(load_discriminator(path).state_dict(), judge)


def test_a_file_without_an_average(tmp_path):
    torch.save({"g": generator_in_family(generator(), "rosinality")}, tmp_path / "g.pt")
    assert "no averaged generator" in str(load_generator(tmp_path / "g.pt").report)
    with pytest.raises(CheckpointError, match="no discriminator among g"):
        load_discriminator(tmp_path / "g.pt")
    with pytest.raises(TypeError, match="source: expected a path"):
        load_generator(3)
