"""Arguments of a network: read off its state dictionary, assumed, or given by the caller."""

from __future__ import annotations

import inspect
import pickle

import pytest
import torch
from stylegan2_states import generator

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


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("inside", [False, True])
def test_whole_modules(inside, zipped, tmp_path):
    """Files of torch give their tensors; pickles of other modules than NVlabs' are refused."""
    path = tmp_path / "module.pt"
    model = Generator(**SMALL)
    torch.save({"g_ema": model} if inside else model, path, _use_new_zipfile_serialization=zipped)
    loaded = load_generator(path)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
    assert "conv_clamp" in loaded.report.assumed
    path.write_bytes(pickle.dumps(model))
    with pytest.raises(UnsafeFileError, match=r"stylegan2\.Generator.* save module\.state_dict\(\) instead"):
        load_generator(path)
    with pytest.raises(CheckpointError, match=r"holds a Tensor, expected networks or module\.state_dict\(\)"):
        torch.save(torch.zeros(1), path)
        load_generator(path)


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
