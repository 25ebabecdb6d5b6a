"""Arguments of a network: read off its state dictionary, assumed, or given by the caller."""

from __future__ import annotations

import inspect
import pickle

import pytest
import torch
from stylegan2_states import generator

from posgan_fast import models
from posgan_fast.models import (
    CheckpointError,
    Discriminator,
    Generator,
    UnsafeFileError,
    convert_generator,
    load_discriminator,
    load_generator,
)

SMALL = {"size": 16, "channel_max": 8}
GENERATORS: list[dict] = [
    {"conv_clamp": 256.0, "interp_pad": 0, "interp_head": True, "layout": "paper", "div_half_dim": True},
    {"up_after_conv": True, "z_dim": 6, "w_dim": 5, "c_dim": 3, "mapping_layers": 2, "architecture": "resnet"},
    {"up_after_conv": False, "head": "csg", "layout": "paper", "architecture": "orig", "img_channels": 4},
    {"head": "csg", "interp_head": True, "no_pad": True, "head_size": (4, 6)},
    {"head": "spe", "interp_head": True, "up_after_conv": True, "div_half_dim": True, "layout": "paper"},
]
DISCRIMINATORS: list[dict] = [
    {"c_dim": 3, "mapping_layers": 2, "architecture": "skip", "mbstd_group_size": 2, "conv_clamp": 256.0},
    {"adaptive_pool": True, "mbstd_num_channels": 0, "img_channels": 1, "architecture": "orig"},
    {"head_size": (2, 8)},
    {"head_size": (2, 2), "adaptive_pool": False},
]


@pytest.mark.parametrize(
    ("network", "load", "given"),
    [(Generator, load_generator, given) for given in GENERATORS]
    + [(Discriminator, load_discriminator, given) for given in DISCRIMINATORS],
)
def test_what_is_not_told_is_assumed(network, load, given):
    """The state tells every argument, or does not depend on it, or the report says what was assumed."""
    model = network(**SMALL, **given)
    head = {"head": "spe"} if given.get("head") == "spe" else {}
    loaded = load(model.state_dict(), **head)
    assumed = {name: value for name, value in given.items() if name in loaded.report.assumed}
    usual = {name: value.default for name, value in inspect.signature(network).parameters.items()}
    idle = {"interp_pad"} | ({"interp_head", "layout", "div_half_dim"} if "head" not in given else set())
    for name, value in {**SMALL, **given}.items():
        if name not in idle and name not in assumed:
            assert loaded.report.settings.get(name, usual[name]) == value, name
    assert {"conv_clamp"} <= loaded.report.assumed.keys() and not head.keys() & loaded.report.assumed.keys()
    again = load(model.state_dict(), **head, **assumed)
    assert not again.report.assumed.keys() & assumed.keys()
    with torch.no_grad():
        x = (
            torch.randn(2, given.get("z_dim", 512))
            if network is Generator
            else torch.randn(4, model.img_channels, 16, 16)
        )
        x = x if "head_size" not in given or network is Generator else torch.randn(4, 3, *model.img_size)
        c = torch.randn(len(x), 3) if "c_dim" in given else None
        torch.testing.assert_close(again(x, c), model.eval()(x, c))


def test_arguments(tmp_path):
    path = tmp_path / "state.pt"
    torch.save(generator(), path)
    for given, kind, match in (
        ({"size": 64}, CheckpointError, "size: expected 32, which the tensors tell, got 64"),
        ({"size": 30}, ValueError, "size: expected a power of two >= 8, got 30"),
        ({"z_dim": 3, "conv_clamp": 1.0}, CheckpointError, "^z_dim: expected 5, which the tensors tell, got 3$"),
        ({"channel_max": 7}, CheckpointError, "channel_max: expected 8, which the tensors tell, got 7"),
        ({"channel_max": -1}, ValueError, "channel_max: expected an int >= 1, got -1"),
        ({"foo": 1}, TypeError, "foo: expected an argument of Generator, one of size, z_dim, .*channel_max"),
        ({"family": "nvidia"}, CheckpointError, "family: expected one of nvlabs, rosinality, .*, got 'nvidia'"),
    ):
        with pytest.raises(kind, match=match):
            load_generator(path, **given)
    with pytest.raises(TypeError, match="head: expected an argument of Discriminator, one of size, c_dim"):
        load_discriminator(path, head="spe")


HALF = {"num_fp16_res": 2, "conv_clamp": 1, "half_dtype": "bfloat16"}
OTHERS = {"activation": "relu", "mapping_activation": "swish", "lr_multiplier": 0.5}


@pytest.mark.parametrize("inside, zipped", [("", True), ("g_ema", False), ("module", True)])
@pytest.mark.parametrize("given", [HALF, OTHERS, *GENERATORS])
def test_whole_generators(given, inside, zipped, tmp_path):
    """A file of torch tells every argument of a generator of this library, also inside of a wrapper."""
    path, model = tmp_path / "module.pt", Generator(**SMALL, **given).eval()
    data = torch.nn.DataParallel(model) if inside == "module" else {inside: model} if inside else model
    torch.save(data, path, _use_new_zipfile_serialization=zipped)
    loaded = load_generator(path)
    assert not loaded.report.assumed and "not read" not in str(loaded.report)
    assert loaded.half_dtype == model.half_dtype and loaded.num_fp16_res == model.num_fp16_res
    z, c, scale = torch.randn(2, model.z_dim), torch.randn(2, 3) if model.c_dim else None, 2 if "head" in given else 0
    assert torch.equal(loaded(z, c, scale=scale), model(z, c, scale=scale))
    other = load_generator(path, num_fp16_res=0, conv_clamp=7)
    assert other.num_fp16_res == 0 and other.synthesis.b16.conv0.clamp == 7


@pytest.mark.parametrize("given", [HALF, OTHERS, *DISCRIMINATORS, {"head_size": (4, 6), "adaptive_pool": True}])
def test_whole_discriminators(given, tmp_path):
    path, model = tmp_path / "module.pt", Discriminator(**SMALL, **given).eval()
    torch.save({"D": model}, path)
    loaded = load_discriminator(path)
    assert not loaded.report.assumed and loaded.img_size == model.img_size
    x, c = torch.randn(4, model.img_channels, *model.img_size), torch.randn(4, 3) if model.c_dim else None
    assert torch.equal(loaded(x, c), model(x, c))


VALUES = (None, "4", "x", -1, float("nan"), 10**400, 10**5000, [], {}, (1, 2), torch.ones(2), object())


@pytest.mark.parametrize(
    "place, name",
    [
        *(("", name) for name in ("num_fp16_res", "half_dtype", "img_size", "size", "adaptive_pool")),
        *((layer, name) for layer in ("synthesis.b4.conv1", "b4.conv") for name in ("clamp", "act")),
        *(("mapping.fc0", name) for name in ("act", "lr_multiplier")),
        *(("synthesis.b4", name) for name in ("head", "encoding")),
        ("synthesis.b8.conv0", "up_after_conv"),
        ("b4.mbstd", "group_size"),
    ],
)
def test_settings_of_the_wrong_kind_are_refused(place, name, tmp_path):
    """A value that the argument cannot have is an error of the file that names it; one that it can have is taken."""
    path = tmp_path / "module.pt"
    small: dict = dict(size=8, channel_max=4, c_dim=3, mapping_layers=1)
    generator = Generator(**small, z_dim=4, w_dim=4, head="csg")
    for model, load in ((generator, load_generator), (Discriminator(**small), load_discriminator)):
        if place and not any(path == place for path, _ in model.named_modules()):
            continue
        unread = {"img_size", "size", "adaptive_pool"} if model is generator else set()
        for value in VALUES:
            vars(model.get_submodule(place))[name] = value
            torch.save(model, path)
            try:
                load(path)
            except CheckpointError as error:
                assert name.removeprefix("img_") in str(error)
            else:
                taken = {"img_size": (1, 2), "encoding": {}}.get(name)
                assert name in unread or value in (None, taken)


def test_settings_beyond_all_measure_are_refused(tmp_path):
    path, small = tmp_path / "module.pt", dict(size=8, channel_max=4, mapping_layers=1)
    generator = Generator(**small, z_dim=4, w_dim=4)
    generator.mapping.fc0.lr_multiplier = 10**30  # a float can hold it
    torch.save(generator, path)
    assert load_generator(path).report.settings["lr_multiplier"] == 1e30
    generator.synthesis.b4.conv1.act = "a" * 10**6
    torch.save(generator, path)
    with pytest.raises(CheckpointError, match="^synthesis.b4.conv1.act") as refused:
        load_generator(path)
    assert len(str(refused.value)) < 500
    discriminator = Discriminator(**small)
    discriminator.size, discriminator.img_size = 1, (10**9, 4)
    torch.save(discriminator, path)
    with pytest.raises(CheckpointError, match="^img_size"):
        load_discriminator(path)


class _Foreign(torch.nn.Module):
    def __init__(self, synthesis: torch.nn.Module, mapping: torch.nn.Module) -> None:
        super().__init__()
        self.synthesis, self.mapping, self.conv_clamp = synthesis, mapping, 256


def test_whole_modules_of_other_classes(tmp_path):
    """The report says that only their tensors are read; pickles of other modules than NVlabs' are refused."""
    path, model = tmp_path / "module.pt", Generator(**SMALL, **HALF)
    torch.save(_Foreign(model.synthesis, model.mapping), path)
    report = load_generator(path).report
    assert report.settings["conv_clamp"] == 1  # of the layers, which are ours
    assert report.assumed.keys() == {"num_fp16_res"} and "not read from a whole test_load" in str(report)
    tree = torch.nn.Module()
    for name, value in generator().items():
        *parents, last = name.split(".")
        place = tree
        for part in parents:
            place._modules.setdefault(part, torch.nn.Module())
            place = place._modules[part]
        place.register_buffer(last, value)
    torch.save(tree, path)
    report = load_generator(path).report
    assert "conv_clamp" in report.assumed and "the file holds a whole torch.nn.modules.module.Module, of" in str(report)
    path.write_bytes(pickle.dumps(model))
    with pytest.raises(UnsafeFileError, match=r"stylegan2\.Generator.* save module\.state_dict\(\) instead"):
        load_generator(path)
    with pytest.raises(CheckpointError, match=r"holds a Tensor, expected networks or module\.state_dict\(\)"):
        torch.save(torch.zeros(1), path)
        load_generator(path)


@pytest.mark.parametrize(
    "model, load",
    [
        (models.SinGANGenerator(2, width=8), models.load_singan),
        (models.DCGANGenerator(8, z_dim=8, base_channels=8), models.load_dcgan),
        (models.PadInvEncoder(32, num_ws=1, levels=(0, 0, 1), width=8, w_dim=16), models.load_encoder),
    ],
)
def test_whole_modules_of_other_systems(model, load, tmp_path):
    """Of these only the tensors are read, and the report says so."""
    torch.save(model, tmp_path / "module.pt")
    report = load(tmp_path / "module.pt").report
    assert f"a whole {type(model).__module__}.{type(model).__name__}, of which only the tensors" in str(report.notes)
    assert "of which" not in str(load(model.state_dict()).report)


def test_the_half_dtype_is_assumed_where_it_matters():
    for load, network in ((load_generator, Generator), (load_discriminator, Discriminator)):
        state = network(**SMALL).state_dict()
        half = {"num_fp16_res": 2, "conv_clamp": 256}
        assert load(state, **half).report.assumed["half_dtype"] == "torch.float16; a state dictionary does not tell"
        for given in ({}, {"num_fp16_res": 0}, half | {"half_dtype": "bfloat16"}):
            assert "half_dtype" not in load(state, **given).report.assumed


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod."])
def test_wrapped_modules(wrapper):
    state = generator()
    for given in ({wrapper + name: value for name, value in state.items()}, {"state_dict": state}):
        loaded = load_generator(given).state_dict()
        assert all(torch.equal(loaded[name], value) for name, value in state.items())
    with pytest.raises(TypeError, match="^ema: expected a bool, got str"):
        load_generator(state, ema="no")


def test_damage_is_noticed(tmp_path):
    """In a tensor, where any bytes are numbers."""
    path = tmp_path / "state.pt"
    torch.save(generator(), path)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 40] = bytes(255 - byte for byte in content[middle : middle + 40])
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="damaged"):
        load_generator(path)


def test_heads():
    for state, head, told in (
        (generator(), "spe", "'constant' of tensors with synthesis.b4.const"),
        (generator("csg"), "constant", "'csg' of tensors without synthesis.b4.const"),
        (generator("spe"), "csg", "'spe' of tensors without synthesis.b4.const"),
    ):
        with pytest.raises(CheckpointError, match=f"head: expected {told}, got '{head}'"):
            load_generator(state, head=head)
        with pytest.raises(ValueError, match="head: expected one of .*'spe'.*, got 'foo'"):
            convert_generator(state, head="foo")
    with pytest.raises(CheckpointError, match='synthesis.b4.const is missing; .* give head="spe"'):
        load_generator(generator("spe"))
    assert load_generator(generator("spe"), head="spe").report.settings["head"] == "spe"
