"""Networks where training scripts put them: wrapped, in containers, beside counters."""

from __future__ import annotations

import argparse

import pytest
import torch
from stylegan2_states import W, Z, discriminator, discriminator_in_family, generator, in_family

from posgan_fast.models import CheckpointError, Generator, load_discriminator, load_generator

FAMILIES = ("nvlabs", "rosinality", "mmgeneration", "hammer", "genforce")


def same(model: torch.nn.Module, expected: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, expected[name]) for name, value in model.state_dict().items() if name in expected)


def under(prefix: str, state: dict) -> dict:
    return {prefix + name: value for name, value in state.items()}


def other(state: dict) -> dict:
    return {name: value if "filter" in name or "kernel" in name else value + 1 for name, value in state.items()}


WRAPPED = ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "module.module._orig_mod.module."]


@pytest.mark.parametrize("wrapper", WRAPPED)
@pytest.mark.parametrize("family", FAMILIES)
def test_wrappers_at_every_level(family, wrapper):
    state, judge = in_family(generator(), family), discriminator_in_family(discriminator(), family)
    counted = {"n_averaged": torch.tensor(3), **under(wrapper, state)}
    for data in (
        under(wrapper, state),
        counted,
        {"g_ema": counted, "d": under(wrapper, judge)},
        {"state_dict": {**under(f"generator_ema.{wrapper}", state), **under(f"{wrapper}discriminator.", judge)}},
        {"state_dict": under(f"{wrapper}netG.", state), "models": {"D": under(wrapper, judge)}},
        {"state_dict": {f"module.generator.{name}": value for name, value in under(wrapper, state).items()}},
    ):
        model = load_generator(data)
        expected = generator()
        if family == "mmgeneration":
            del expected["mapping.w_avg"]
        assert wrapper.split(".")[0] in str(model.report.notes)
        for name, value in expected.items():
            torch.testing.assert_close(model.state_dict()[name], value)
        if any(name in data for name in ("d", "models")):
            assert same(load_discriminator(data), discriminator())
    assert "n_averaged" in load_generator(counted).report.left


def test_wrappers_inside_a_network():
    state = {name.replace("synthesis.", "synthesis._orig_mod.").replace("fc0", "fc0.module"): value
             for name, value in generator().items()}  # fmt: skip
    assert same(load_generator(state), generator())
    with pytest.raises(CheckpointError, match="there twice"):
        load_generator({**state, "synthesis.b4.const": generator()["synthesis.b4.const"]})


COUNTERS = {
    "n_averaged": torch.tensor(5),
    "num_updates": torch.tensor(7, dtype=torch.int32),
    "decay": torch.tensor(0.99),
}
COUNTERS |= {"step": torch.tensor([3]), "initted": torch.tensor(True), "b4.num_batches_tracked": torch.tensor(1)}


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("counter", COUNTERS)
def test_counters_are_left(counter, family):
    for load, state in (
        (load_generator, in_family(generator(), family)),
        (load_discriminator, discriminator_in_family(discriminator(), family)),
    ):
        for data in (
            {counter: COUNTERS[counter], **state},
            {"model": {**under("module.", state), counter: COUNTERS[counter]}},
        ):
            assert counter in load(data).report.left


def test_what_is_no_counter_is_refused():
    for name, value in (("mapping.extra", torch.tensor(0.5)), ("extra", torch.zeros(3, dtype=torch.int64))):
        with pytest.raises(CheckpointError, match=name):
            load_generator({**generator(), name: value})
    with pytest.raises(CheckpointError, match="noise_strength: expected floating point"):
        load_generator({**generator(), "synthesis.b4.conv1.noise_strength": torch.tensor(1)})


def psp(average: torch.Tensor) -> dict:
    decoder = {name: value for name, value in in_family(generator(), "rosinality").items() if name != "latent_avg"}
    encoder = {"encoder.input_layer.0.weight": torch.zeros(8, 3, 3, 3), "encoder.body.0.num_batches": torch.tensor(1)}
    state = {**encoder, **under("decoder.", decoder), "face_pool.x": torch.zeros(1)}
    return {"state_dict": state, "latent_avg": average, "opts": {"lr": 0.1, "paths": [1]}}


@pytest.mark.parametrize("rows", [None, 1, 8, 18])
@pytest.mark.parametrize("saved", [False, True])
def test_inversion_networks(rows, saved, tmp_path):
    """pSp, e4e, ReStyle and HyperStyle, which keep the average of w beside, or a copy of it for each layer."""
    average = generator()["mapping.w_avg"]
    data = psp(average if rows is None else average.repeat(rows, 1))
    if saved:
        data["opts"] = argparse.Namespace(path="x")
        torch.save(data, tmp_path / "psp.pt")
        data = tmp_path / "psp.pt"
    model = load_generator(data)
    assert same(model, generator()) and torch.equal(model.mapping.w_avg, average)
    assert {"encoder", "face_pool", "opts"} <= model.report.left.keys() and "latent_avg" not in model.report.left


def test_averages_that_differ_by_layer():
    model = load_generator(psp(torch.randn(18, W)))
    assert "mapping.w_avg" in model.report.filled and "for each layer" in model.report.left["latent_avg"]


AVERAGED = {  # the averaged one, then the one in training
    "basicsr": lambda e, g: {"params_ema": e, "params": g},
    "names of networks": lambda e, g: {"netG_ema": e, "netG": g, "netD": {}},
    "short names": lambda e, g: {"G_ema": e, "G": g},
    "ema beside model": lambda e, g: {"ema": {"model": e}, "model": g, "optimizer": {"state": {}}},
    "state dictionaries": lambda e, g: {"ema_state_dict": e, "model_state_dict": g, "epoch": 3},
    "timm": lambda e, g: {"state_dict_ema": e, "state_dict": g},
    "lightning": lambda e, g: {
        "state_dict": {**under("gen_ema.", e), **under("gen.", g)},
        "hyper_parameters": {"a": 1},
    },
    "tuple": lambda e, g: ({"g_ema": e}, {"g": g}, 3),
    "running": lambda e, g: {"g_running": e, "generator": g},
    "prefix": lambda e, g: {**under("ema_model.", e), **under("online_model.", g), "initted": torch.tensor(True)},
}


@pytest.mark.parametrize("kind", AVERAGED)
@pytest.mark.parametrize("family", ["nvlabs", "rosinality", "hammer"])
def test_containers(family, kind):
    state = in_family(generator(), family)
    data = AVERAGED[kind](state, other(state))
    assert same(load_generator(data), generator())
    training = load_generator(data, ema=False)
    assert not torch.equal(training.synthesis.b4.const, generator()["synthesis.b4.const"])
    with pytest.raises(CheckpointError, match="no (StyleGAN2 )?discriminator .*pass the inner state dictionary"):
        load_discriminator(data)


LONE = {
    "netG": lambda g, d: {"netG": g, "netD": d},
    "model_state_dict": lambda g, d: {"model_state_dict": under("generator.", g), "disc": {"state_dict": d}},
    "tuple": lambda g, d: (g, d),
    "list": lambda g, d: [{"epoch": 1}, d, g],
    "modules": lambda g, d: {"nets": [{"state": g}, {"state": d}]},
    "flat": lambda g, d: {**under("G.", g), **under("D.", d)},
}


@pytest.mark.parametrize("kind", LONE)
@pytest.mark.parametrize("family", FAMILIES)
def test_both_networks(family, kind):
    data = LONE[kind](in_family(generator(), family), discriminator_in_family(discriminator(), family))
    assert torch.equal(load_generator(data).synthesis.b4.const, generator()["synthesis.b4.const"])
    assert same(load_discriminator(data), discriminator())


def test_ambiguity_is_an_error():
    state = generator()
    for data, places in (
        ({"netG_A": state, "netG_B": other(state)}, "netG_A, netG_B"),
        ((state, discriminator(), other(state)), r"\[0\], \[2\]"),
        ({"g_ema": state, "generator_ema": other(state)}, "g_ema, generator_ema"),
        ({"state_dict": {**under("a.", state), **under("b.", state)}}, "state_dict.a, state_dict.b"),
    ):
        with pytest.raises(CheckpointError, match=f"could be the generator: {places}; pass the inner state dictionary"):
            load_generator(data)
    with pytest.raises(CheckpointError, match=r"no generator among g_ema, x; .*ema=True; pass the inner"):
        load_generator({"g_ema": state, "x": 3}, ema=False)


def test_nothing_is_found_in_time():
    for data in ({"a": {"b": [1, 2]}, "epoch": 3}, [], (), {}, {"state_dict": {}}, [3]):
        with pytest.raises(CheckpointError, match=r"no (StyleGAN2 )?generator"):
            load_generator(data)
    shared: dict = {"a": {"weight": torch.zeros(1)}}
    for _ in range(40):
        shared = {"a": shared, "b": shared, "c": [shared]}
    with pytest.raises(CheckpointError, match="pass the inner state dictionary"):
        load_generator(shared)
    wide = [{"weight": torch.zeros(1)} for _ in range(20_000)]
    with pytest.raises(CheckpointError, match="no generator among 20000 entries of a list"):
        load_generator(wide)
    names = {f"a{i}.conv1.conv.weight": torch.zeros(1) for i in range(3000)}
    with pytest.raises(CheckpointError, match="more than 64 networks in one dictionary"):
        load_generator(names)


def test_modules_wrapped_by_torch(tmp_path):
    model = Generator(16, channel_max=8, z_dim=Z, w_dim=W, mapping_layers=2)
    averaged = torch.optim.swa_utils.AveragedModel(model)
    path = tmp_path / "model.pt"
    torch.save({"ema": averaged.state_dict(), "step": 3}, path)
    assert same(load_generator(path), model.state_dict())
    assert "n_averaged" in load_generator(path).report.left
    torch.save(torch.nn.Sequential(torch.nn.Linear(2, 2), model), path)
    assert same(load_generator(path), model.state_dict())


@pytest.mark.parametrize(
    "average",
    [
        torch.ones(1, W).expand(1 << 38, W),
        torch.ones(8, W).to_sparse(),
        torch.ones(8, W, device="meta"),
        torch.ones(8, W, dtype=torch.complex64),
        torch.ones(W, dtype=torch.int64),
        torch.nested.nested_tensor([torch.ones(W)]),
    ],
)
def test_averages_that_are_no_weights(average):
    with pytest.raises(CheckpointError, match="latent_avg: expected"):
        load_generator(psp(average))


NAMES = """G-ema emaG g_ema2 g.ema G_EMA EMAModel EMAmodel modelEMA gema ema-1 swa_model g_polyak moving_average
    MeanGenerator generator_slow slowG GEma smoothed running2 averages Gs shadow-params"""


@pytest.mark.parametrize("name", NAMES.split())
def test_names_of_averages(name):
    assert same(load_generator({name: generator(), "G": other(generator())}), generator())
    flat = {**under(f"{name}.", generator()), **under("G.", other(generator()))}
    assert same(load_generator(flat), generator())


@pytest.mark.parametrize("name", ["schema", "demeaned", "slower", "thermal", "emanuel", "args"])
def test_names_that_are_of_no_average(name):
    with pytest.raises(CheckpointError, match="no generator among"):
        load_generator({"ema": generator()}, ema=False)
    assert same(load_generator({name: generator()}, ema=False), generator())


def test_an_average_that_is_not_read_is_told():
    state = generator()
    flat = {f"model_ema.{name.replace('.', '')}": value for name, value in state.items()}
    for data, name in (
        ({"state_dict": {**under("model.", state), **flat, "model_ema.decay": torch.tensor(0.9)}}, "model_ema"),
        ({"model": state, "ema": {"shadow_params": list(state.values()), "decay": 0.9}}, "ema"),
        ({"g": state, "ema": {"shadow_params": list(state.values()), "decay": 0.9}}, "ema"),
    ):
        notes = str(load_generator(data).report.notes)
        assert f"{name}: looks like an average in a form that is not read" in notes and "no averaged" not in notes
    for beside in ({"ema": {"decay": 0.9}}, {"ema_decay": torch.tensor(0.9)}, {"mean_path": torch.zeros(1)}):
        assert "no averaged generator" in str(load_generator({"g": state, **beside}).report.notes)
    notes = str(load_generator({"g": state, "other": other(state)}).report.notes)
    assert "not taken: other" in notes and "no averaged" not in notes


def test_the_average_of_a_lone_discriminator():
    data = {"ema": {"G": generator(), "D": discriminator()}}
    model = load_discriminator(data)
    assert same(model, discriminator()) and "averaged" in str(model.report.notes)
    model = load_discriminator({**data, "D": other(discriminator())})
    assert same(model, other(discriminator())) and "averaged" not in str(model.report.notes)


LAYER = torch.zeros(8, 3, 3, 3)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_common_name_is_no_network(family):
    """A MobileFaceNet has conv1.conv.weight, and other classifiers the names of other families."""
    names = ("conv1.conv.weight", "b4.conv.weight", "final_conv.0.weight", "output.weight", "input0.weight")
    names += ("synthesis.b4.conv1.weight", "conv1.conv.weight_orig", "final_conv.0.conv.weight_orig")
    names += ("truncation.w_avg", "synthesis.layer0.weight")
    state, judge = in_family(generator(), family), discriminator_in_family(discriminator(), family)
    beside = {f"id_loss.net{i}.{name}": LAYER for i, name in enumerate(names)}
    data = {"state_dict": {**under("decoder.", state), **under("judge.", judge), **beside}}
    assert torch.equal(load_generator(data).synthesis.b4.const, generator()["synthesis.b4.const"])
    assert same(load_discriminator(data), discriminator())
    nested = {"decoder": state, "judge": judge, **{f"net{i}": {name: LAYER} for i, name in enumerate(names)}}
    assert same(load_discriminator(nested), discriminator())
    assert torch.equal(load_generator(nested).synthesis.b4.const, generator()["synthesis.b4.const"])


@pytest.mark.parametrize("wrap", [lambda s: {**s, "ema.step": 5}, lambda s: {"g_ema": {**s, "module.step": 4}}])
def test_counters_with_dotted_names_are_left(wrap):
    loaded = load_generator(wrap(generator()))
    assert all(torch.equal(value, generator()[key]) for key, value in loaded.state_dict().items())
    assert set(loaded.report.left) & {"ema", "module"}
