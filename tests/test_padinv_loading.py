"""What becomes of the files of PadInv's and pSp's encoders and of ArcFace, and what is refused."""

from __future__ import annotations

import os
import re

import pytest
import torch
from stylegan2_states import discriminator, generator, in_family
from test_padinv import Oracle, compare, encoder, images, shared, small_generator, tiny
from test_pickles import Call, pickled

from posgan_fast.models import (
    CheckpointError,
    PadInvEncoder,
    UnsafeFileError,
    load_backbone,
    load_encoder,
    load_generator,
)

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.mark.parametrize("padding", ["heads", "shared", "projection", None])
def test_weights_come_back_for_each_padding(padding, tmp_path):
    channels = [40, 24, 8] if padding == "heads" else None
    network = encoder(64, padding=padding, pad_layers=3, pad_channels=channels, pad_constant=False, extractor_depth=3)
    torch.save(network.state_dict(), tmp_path / "encoder.pt")
    told = {} if padding is None else dict(pad_constant=False)
    if padding in ("shared", "projection"):
        assert load_encoder(tmp_path / "encoder.pt").report.assumed["pad_layers"] == "4; no tensor tells"
        told["pad_layers"] = 3
    for source in (tmp_path / "encoder.pt", network.state_dict(), {"encoder": network.state_dict(), "step": 3}):
        loaded = load_encoder(source, **told)
        assert not loaded.training and loaded.report.family == "padinv" and not loaded.report.assumed
        with torch.no_grad():
            ours, theirs = loaded(images(size=64)), network(images(size=64))
        assert torch.equal(ours[0], theirs[0])
        assert (theirs[1] is None and ours[1] is None) or all(
            a is b is None or torch.equal(a, b) for a, b in zip(ours[1], theirs[1], strict=True)
        )
    assert load_encoder(network.state_dict()).report.assumed == (
        {}
        if padding is None
        else {"pad_constant": "True; no tensor tells"}
        | ({} if padding == "heads" else {"pad_layers": "4; no tensor tells"})
    )


@pytest.mark.parametrize("depth", [100, 152])
def test_deeper_encoders_come_back_and_have_the_published_blocks(depth):
    network = tiny(depth=depth, num_ws=1, levels=(1, 0, 0))
    assert [len(stage) for stage in network.backbone_stages] == {100: [3, 13, 30, 3], 152: [3, 8, 36, 3]}[depth]
    loaded = load_encoder(network.state_dict())
    assert loaded.report.settings["depth"] == depth
    with torch.no_grad():
        assert torch.equal(loaded(images())[0], network(images())[0])
        network.double()
        compare(network(images(dtype=torch.float64)), Oracle(network.state_dict(), 2)(images(dtype=torch.float64)))
    fresh = tiny(depth=depth)
    for state in (network.state_dict(), arcface(network)):
        load_backbone(fresh, state)
        assert all(torch.equal(a, b) for a, b in zip(backbone(fresh), backbone(network), strict=True))


W_AVG, SMOOTH = torch.linspace(-1, 1, 6), torch.linspace(2, 3, 6)


def padinv_file(state, **others):
    """What PadInv's runner writes; the encoder does not have its average."""
    state = {name: value for name, value in state.items() if name != "latent_average"}
    training = in_family(generator(), "hammer") | {"w_avg": W_AVG}
    models = {"discriminator": discriminator(), "encoder": state, "generator": training} | others
    return {"models": models, "model_kwargs_init": {"encoder": {"resolution": 32}}, "running_metadata": {"iter": 1}}


@pytest.mark.parametrize("smooth_first", [True, False, None])
def test_padinv_file_gives_the_average_of_the_generator_in_training(smooth_first, tmp_path):
    """The one that the encoder was trained with, even where a smoothed generator is the first in the file."""
    network = encoder(w_dim=6)
    data = padinv_file(network.state_dict())
    if smooth_first is not None:
        smooth = {"generator_smooth": in_family(generator(), "hammer") | {"w_avg": SMOOTH}}
        data["models"] = smooth | data["models"] if smooth_first else data["models"] | smooth
    torch.save(data, tmp_path / "padinv.pth")
    loaded = load_encoder(tmp_path / "padinv.pth")
    assert torch.equal(loaded.latent_average, W_AVG.expand(4, 6))
    assert loaded.report.notes == ["latent_average: generator.w_avg of the file"]
    assert {"generator", "discriminator"} <= loaded.report.left.keys()
    network.set_latent_average(W_AVG)
    with torch.no_grad():
        assert torch.equal(loaded(images())[0], network(images())[0])
    ema = load_generator(tmp_path / "padinv.pth")
    assert torch.equal(ema.mapping.w_avg, W_AVG if smooth_first is None else SMOOTH)
    given = load_encoder(tmp_path / "padinv.pth", latent_average=ema)
    assert torch.equal(given.latent_average, ema.mapping.w_avg.expand(4, 6))
    assert given.report.filled["latent_average"] == "the given one"


def block_number(name):
    """PadInv's name of a block's tensor with the number that pSp and ArcFace count over all 50 layers."""
    offsets = {"0": 0, "1": 3, "2": 7, "3": 21}
    return re.sub(r"^backbone_stages\.(\d)\.(\d+)\.", lambda m: f"body.{offsets[m[1]] + int(m[2])}.", name)


def psp_file(state):
    """What pSp's trainer writes."""
    renamed = {}
    for name, value in state.items():
        name = name.replace("fpn.lateral_layers.0", "latlayer2").replace("fpn.lateral_layers.1", "latlayer1")
        renamed[f"encoder.{block_number(name).replace('latent_heads.', 'styles.')}"] = value
    average = renamed.pop("encoder.latent_average")
    decoder = {f"decoder.{name}": value for name, value in in_family(generator(), "rosinality").items()}
    return {"state_dict": renamed | decoder, "latent_avg": average, "opts": {"start_from_latent_avg": True}}


def test_psp_file_gives_an_encoder_without_maps(tmp_path):
    network = encoder(256, num_ws=18, levels=None, width=2, w_dim=6, padding=None)
    data = psp_file(network.state_dict())
    assert data["latent_avg"].shape == (18, 6)
    assert {"encoder.input_layer.0.weight", "encoder.body.23.res_layer.5.fc1.weight"} <= data["state_dict"].keys()
    assert data["state_dict"]["encoder.latlayer1.weight"].shape == (16, 8, 1, 1)
    assert data["state_dict"]["encoder.latlayer2.weight"].shape == (16, 4, 1, 1)
    torch.save(data, tmp_path / "psp.pt")
    loaded = load_encoder(tmp_path / "psp.pt")
    assert loaded.report.family == "psp" and loaded.padding is None and loaded.size == 256
    assert loaded.levels == (3, 4, 11) and torch.equal(loaded.latent_average, data["latent_avg"])
    assert loaded.report.renamed["body.7.res_layer.1.weight"] == "backbone_stages.2.0.res_layer.1.weight"
    with torch.no_grad():
        ws, maps = loaded(images(1, 256))
        assert maps is None and torch.equal(ws, network(images(1, 256))[0])
    fresh = encoder(width=2)
    assert load_backbone(fresh, tmp_path / "psp.pt").family == "psp"
    assert all(torch.equal(a, b) for a, b in zip(backbone(fresh), backbone(network), strict=True))
    del data["latent_avg"]
    with pytest.raises(CheckpointError, match="^latent_average: .*the file has none$"):
        load_encoder(data)


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
def test_names_of_wrappers_are_taken_off(prefix):
    network = encoder(w_dim=6)
    state = {f"{prefix}{name}": value for name, value in network.state_dict().items()}
    loaded = load_encoder(state)
    with torch.no_grad():
        assert torch.equal(loaded(images())[0], network(images())[0])
    loaded = load_encoder(padinv_file({k: v for k, v in state.items() if "latent_average" not in k}))
    assert torch.equal(loaded.latent_average, W_AVG.expand(4, 6))
    parallel = torch.nn.ModuleDict({"module": network}).state_dict()
    assert torch.equal(load_encoder(parallel).latent_average, network.latent_average)


def arcface(network):
    """The state of ArcFace's IR-SE network with the backbone of an encoder of any depth."""
    state, count = {}, 0
    for stage, blocks in enumerate(network.backbone_stages):
        for block in range(len(blocks)):
            part = {k: v for k, v in network.state_dict().items() if k.startswith(f"backbone_stages.{stage}.{block}.")}
            state |= {f"body.{count}.{k.split('.', 3)[3]}": v for k, v in part.items()}
            count += 1
    state = {k: v for k, v in network.state_dict().items() if k.startswith("input_layer.")} | state
    output = torch.nn.Sequential(torch.nn.BatchNorm2d(8), torch.nn.Identity(), torch.nn.Identity())
    output.extend([torch.nn.Linear(8, 4), torch.nn.BatchNorm1d(4)])
    return state | {f"output_layer.{name}": value for name, value in output.state_dict().items()}


def backbone(network):
    return [v for k, v in network.state_dict().items() if k.startswith(("input_layer.", "backbone_stages."))]


def test_arcface_file_gives_the_backbone_and_leaves_the_rest(tmp_path):
    source, network = encoder(), encoder(padding="shared")
    with torch.no_grad():
        for value in source.parameters():
            value.mul_(1.5)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    torch.save(arcface(source), tmp_path / "model_ir_se50.pth")
    report = load_backbone(network, tmp_path / "model_ir_se50.pth")
    assert (report.family, report.network) == ("psp", "backbone")
    assert report.left and all(name.startswith("output_layer.") for name in report.left)
    assert all(torch.equal(a, b) for a, b in zip(backbone(network), backbone(source), strict=True))
    for name, value in network.state_dict().items():
        if not name.startswith(("input_layer.", "backbone_stages.")):
            assert torch.equal(value, before[name])
    with pytest.raises(CheckpointError, match="^no encoder among "):
        load_encoder({"state_dict": {"a": arcface(source)}})


def test_counters_that_a_file_lacks_become_zero():
    network = encoder()
    state = {k: v for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}
    report = load_encoder(state).report
    assert set(report.filled.values()) == {"zero; the file does not count batches"}
    assert report.filled.keys() == network.state_dict().keys() - state.keys()


def test_halves_and_doubles_are_loaded_into_float32():
    network = tiny()
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        state = {k: v.to(dtype) if v.is_floating_point() else v for k, v in network.state_dict().items()}
        loaded = load_encoder(state)
        assert {p.dtype for p in loaded.parameters()} == {torch.float32}
        assert all(torch.equal(v.to(dtype), state[k]) for k, v in loaded.state_dict().items() if v.is_floating_point())


WHY = "which weights have no need of"


@pytest.mark.parametrize("zipped", [True, False])
def test_files_that_ask_for_code_are_refused_and_it_does_not_run(zipped, tmp_path):
    marker, path = tmp_path / "ran", tmp_path / "encoder.pt"

    class Code:
        def __reduce__(self):
            return os.mkdir, (str(marker),)

    state = shared().state_dict()
    for data in ({"models": {"encoder": state}, "hook": Code()}, {"models": {"encoder": state | {"x": Code()}}}):
        torch.save(data, path, _use_new_zipfile_serialization=zipped)
        for load in (load_encoder, lambda source: load_backbone(shared(), source)):
            with pytest.raises(UnsafeFileError) as caught:
                load(path)
            assert re.fullmatch(
                re.escape(f"{path}: refused, asks for '{os.mkdir.__module__}.mkdir', ") + WHY, str(caught.value)
            )
    path.write_bytes(pickled({"encoder": Call("os.system", f"touch {marker}")}))
    with pytest.raises(UnsafeFileError, match=f"asks for 'os.system', {WHY}$"):
        load_encoder(path)
    assert not marker.exists()


DAMAGED = "damaged: no complete zip archive (File is not a zip file)"
CUT = [  # a share of the file, and what is said of it: with torch's zip archive, and without
    (0, "empty, 0 bytes", "empty, 0 bytes"),
    (0.1, DAMAGED, "announces more bytes than the file has"),
    (0.5, DAMAGED, "announces more bytes than the file has"),
    (0.999, DAMAGED, r"cut short: storage \d+ has fewer than \d+ bytes"),
]


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("share, with_archive, without_archive", CUT)
def test_truncated_files_are_refused(share, with_archive, without_archive, zipped, tmp_path):
    path = tmp_path / "encoder.pt"
    torch.save(shared().state_dict(), path, _use_new_zipfile_serialization=zipped)
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    why = re.escape(with_archive) if zipped else without_archive
    with pytest.raises(CheckpointError) as caught:
        load_encoder(path)
    assert re.fullmatch(f"{re.escape(str(path))}: {why}[;:] download or copy it again", str(caught.value))


TOLD = "size=32, num_ws=4, levels=(1, 1, 2), w_dim=4, depth=50, width=2, "
HEADS = "padding='heads', pad_layers=2, pad_channels=[16, 16], extractor_depth=2"
FIT = f"state: does not fit into PadInvEncoder({TOLD}{HEADS}): "
NO_AVERAGE = (
    "latent_average: expected the generator, or a tensor (zeros for an encoder trained without one); the file has none"
)
ARGUMENTS = (
    "size, num_ws, levels, w_dim, depth, width, padding, pad_layers, pad_channels, pad_constant, extractor_depth"
)


def without(*parts):
    """A change of a state: without the names that hold one of the parts."""
    return lambda state: {k: v for k, v in state.items() if not any(part in k for part in parts)}


def replaced(**values):
    """A change of a state: other values under names whose dots are written as two underscores."""
    return lambda state: state | {k.replace("__", "."): v for k, v in values.items()}


def same(state):
    return state


FLOATS = "expected floating point of 16 to 64 bits, got"
BAD = {  # a change of the state, overrides, error and message
    "a number": (lambda state: 3, {}, TypeError, "source: expected a path or a state dictionary, got int"),
    "nothing": (lambda state: {}, {}, CheckpointError, "no encoder among nothing; pass the inner state dictionary"),
    "a generator": (
        lambda state: generator(), {}, CheckpointError, "state: expected an encoder of PadInv or pSp, got other names",
    ),
    "two encoders": (
        lambda state: {"a": state, "b": dict(state)}, {}, CheckpointError,
        "2 networks that could be the encoder: a, b; pass the inner state dictionary",
    ),
    "no average": (without("latent_average"), {}, CheckpointError, NO_AVERAGE),
    "no average in PadInv's file": (
        lambda state: {"models": {"encoder": without("latent_average")(state), "generator": generator()}}, {},
        CheckpointError, NO_AVERAGE,
    ),
    "an average of a smoothed generator alone": (
        lambda state: {"encoder": without("latent_average")(state), "generator_smooth": {"w_avg": torch.zeros(4)}}, {},
        CheckpointError, NO_AVERAGE,
    ),
    "an average of each layer of the generator": (
        lambda state: {"encoder": without("latent_average")(state), "generator": {"w_avg": torch.zeros(40)}}, {},
        CheckpointError, "latent_average: expected shape [4], [1, 4] or [4, 4], got [40]",
    ),
    "an average of integers": (
        replaced(latent_average=torch.zeros(4, dtype=torch.int32)), {}, CheckpointError,
        f"latent_average: {FLOATS} torch.int32",
    ),
    "a given average of another shape": (
        same, dict(latent_average=torch.zeros(3)), ValueError,
        "latent_average: expected shape [4], [1, 4] or [4, 4], got (3,)",
    ),
    "a given average of another type": (
        same, dict(latent_average=[0.0] * 4), TypeError, "latent_average: expected a torch.Tensor, got list",
    ),
    "no first convolution": (
        without("input_layer.0"), {}, CheckpointError, "state: input_layer.0.weight is missing",
    ),
    "a first convolution of two dimensions": (
        replaced(input_layer__0__weight=torch.zeros(2, 3)), {}, CheckpointError,
        "input_layer.0.weight: expected 4 dimensions, none empty, got shape [2, 3]",
    ),
    "a first convolution of four channels": (
        replaced(input_layer__0__weight=torch.zeros(2, 4, 3, 3)), {}, CheckpointError,
        f"{FIT}input_layer.0.weight: expected shape [2, 3, 3, 3], got [2, 4, 3, 3]",
    ),
    "a width of one": (
        replaced(input_layer__0__weight=torch.zeros(1, 3, 3, 3)), {}, CheckpointError,
        f"state: the tensors tell {TOLD.replace('width=2', 'width=1')}{HEADS}: width: expected an int >= 2, got 1",
    ),
    "integers": (
        replaced(input_layer__0__weight=torch.zeros(2, 3, 3, 3, dtype=torch.int8)), {}, CheckpointError,
        f"input_layer.0.weight: {FLOATS} torch.int8",
    ),
    "no values": (
        replaced(fpn__lateral_layers__0__bias=torch.zeros(16, device="meta")), {}, CheckpointError,
        "fpn.lateral_layers.0.bias: expected a strided tensor with values, got torch.strided on meta",
    ),
    "text": (
        replaced(fpn__note="x"), {}, CheckpointError, "state: expected names and tensors, got 'fpn.note': str",
    ),
    "a missing convolution": (
        without("backbone_stages.2.5.res_layer.3."), {}, CheckpointError,
        f"{FIT}backbone_stages.2.5.res_layer.3.weight is missing",
    ),
    "a missing running average": (
        without("padding_extractor.1.res_layer.4.running_var"), {}, CheckpointError,
        f"{FIT}padding_extractor.1.res_layer.4.running_var is missing",
    ),
    "an extra tensor": (
        replaced(fpn__lateral_layers__2__bias=torch.zeros(16)), {}, CheckpointError,
        f"{FIT}fpn.lateral_layers.2.bias is no part of it",
    ),
    "many differences": (
        without("padding_extractor.1.res_layer.0.", "padding_extractor.0.res_layer.2"), {}, CheckpointError,
        FIT + "padding_extractor.0.res_layer.2.weight is missing; padding_extractor.1.res_layer.0.weight is missing;"
        " padding_extractor.1.res_layer.0.bias is missing; padding_extractor.1.res_layer.0.running_mean is missing"
        " and 1 more",
    ),
    "a stage of 13 blocks": (
        without("backbone_stages.2.13."), {}, CheckpointError,
        "state: expected stages of [(3, 4, 14, 3), (3, 13, 30, 3), (3, 8, 36, 3)] blocks, got (3, 4, 13, 3)",
    ),
    "blocks without excitation": (
        without(".fc1.", ".fc2."), {}, CheckpointError,
        "state: expected blocks with squeeze and excitation (IR-SE), got some without",
    ),
    "a head without a convolution": (
        without("latent_heads.0.convs"), {}, CheckpointError,
        f"state: the tensors tell size=16, num_ws=4, levels=(1, 0, 1), w_dim=4, depth=50, width=2, {HEADS}:"
        " size: expected an int >= 32, got 16",
    ),
    "a counter of three": (
        replaced(input_layer__1__num_batches_tracked=torch.zeros(3, dtype=torch.int64)), {}, CheckpointError,
        f"{FIT}input_layer.1.num_batches_tracked: expected shape [], got [3]",
    ),
    "another size": (
        same, dict(size=64), CheckpointError, f"{FIT}size: expected 32, which the tensors tell, got 64",
    ),
    "other levels": (
        same, dict(levels=(2, 1, 1)), CheckpointError,
        f"{FIT}levels: expected (1, 1, 2), which the tensors tell, got (2, 1, 1)",
    ),
    "another padding": (
        same, dict(padding=None), CheckpointError, f"{FIT}padding: expected 'heads', which the tensors tell, got None",
    ),
    "another number of padded layers": (
        same, dict(pad_layers=3), CheckpointError,
        f"state: the tensors tell {TOLD}{HEADS}: pad_channels: expected 3 ints, one for each map, got [16, 16]",
    ),
    "a side that is no power of two": (
        same, dict(size=48), CheckpointError,
        f"state: the tensors tell {TOLD}{HEADS}: size: expected a power of two, got 48",
    ),
    "a side of another type": (same, dict(size="48"), TypeError, "size: expected an int, got str"),
    "an unknown argument": (
        same, dict(final_res=4), TypeError, f"final_res: expected an argument of PadInvEncoder, one of {ARGUMENTS}",
    ),
    "pSp without the last block": (
        lambda state: without("body.23.")(psp_file(state)["state_dict"]), {}, CheckpointError,
        "state: expected [24, 49, 50] blocks, got 23",
    ),
    "pSp with averages of other layers": (
        lambda state: psp_file(state) | {"latent_avg": torch.zeros(5, 4)}, {}, CheckpointError,
        "latent_average: expected shape [4], [1, 4] or [4, 4], got [5, 4]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_what_no_encoder_can_be_made_of_is_refused(name):
    change, overrides, error, message = BAD[name]
    with pytest.raises(error) as caught:
        load_encoder(change(shared().state_dict()), **overrides)
    assert type(caught.value) is error and str(caught.value) == message


BACKBONES = {  # a change of ArcFace's state, error and message
    "an encoder of another type": (None, TypeError, "encoder: expected a PadInvEncoder, got Linear"),
    "nothing": (lambda state: {}, CheckpointError, "no backbone among nothing; pass the inner state dictionary"),
    "a generator": (
        lambda state: generator(), CheckpointError,
        "state: expected a backbone of ArcFace, pSp or PadInv, got other names",
    ),
    "another width": (
        lambda state: encoder(width=3, w_dim=4).state_dict(), CheckpointError,
        "state: does not fit into the backbone: input_layer.0.weight: expected shape [2, 3, 3, 3], got [3, 3, 3, 3];"
        " input_layer.1.weight: expected shape [2], got [3]; input_layer.1.bias: expected shape [2], got [3];"
        " input_layer.1.running_mean: expected shape [2], got [3] and 329 more",
    ),
    "a block fewer": (without("body.23."), CheckpointError, "state: expected [24, 49, 50] blocks, got 23"),
    "a missing tensor": (
        without("body.9.res_layer.2"), CheckpointError,
        "state: does not fit into the backbone: backbone_stages.2.2.res_layer.2.weight is missing",
    ),
    "an extra tensor": (
        replaced(body__24__res_layer__2__weight=torch.zeros(4)), CheckpointError,
        "state: does not fit into the backbone: body.24.res_layer.2.weight is no part of it",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BACKBONES)
def test_a_backbone_that_does_not_fit_is_refused_and_changes_nothing(name):
    change, error, message = BACKBONES[name]
    network = torch.nn.Linear(1, 1) if change is None else tiny()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    state = arcface(shared()) | {"input_layer.2.weight": torch.ones(2)}
    with pytest.raises(error) as caught:
        load_backbone(network, state if change is None else change(state))
    assert type(caught.value) is error and str(caught.value) == message
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


NO_ZERO_PADDING = "generator: expected one with a constant of 4 x 4 pixels and zero padding"
CALLS = [
    (lambda: tiny(16), ValueError, "size: expected an int >= 32, got 16"),
    (lambda: tiny(48), ValueError, "size: expected a power of two, got 48"),
    (lambda: tiny(32.0), TypeError, "size: expected an int, got float"),
    (lambda: tiny(num_ws=0), ValueError, "num_ws: expected an int >= 1, got 0"),
    (lambda: tiny(levels=(1, 3)), ValueError, "levels: expected 3 ints, got (1, 3)"),
    (lambda: tiny(levels="112"), ValueError, "levels: expected 3 ints, got '112'"),
    (lambda: tiny(levels=(1, 1, 1)), ValueError, "levels: expected a sum of 4, got [1, 1, 1]"),
    (lambda: tiny(levels=(3, 2, -1)), ValueError, "levels: expected an int >= 0, got -1"),
    (lambda: tiny(levels=(1, 1, 2.0)), TypeError, "levels: expected an int, got float"),
    (lambda: encoder(w_dim=0), ValueError, "w_dim: expected an int >= 1, got 0"),
    (lambda: tiny(depth=34), ValueError, "depth: expected one of 50, 100, 152, got 34"),
    (lambda: tiny(depth="50"), TypeError, "depth: expected an int, got str"),
    (lambda: encoder(width=1), ValueError, "width: expected an int >= 2, got 1"),
    (
        lambda: tiny(padding="head"), ValueError,
        "padding: expected one of ('heads', 'shared', 'projection'), got 'head'",
    ),
    (lambda: tiny(padding=False), TypeError, "padding: expected one of ('heads', 'shared', 'projection'), got bool"),
    (lambda: tiny(pad_layers=0), ValueError, "pad_layers: expected an int >= 1, got 0"),
    (lambda: tiny(pad_layers=6), ValueError, "pad_layers: expected an int <= 5, got 6"),
    (lambda: tiny(pad_channels=(8,)), ValueError, "pad_channels: expected 2 ints, one for each map, got (8,)"),
    (lambda: tiny(pad_channels=(8, 0)), ValueError, "pad_channels: expected an int >= 1, got 0"),
    (
        lambda: tiny(padding="shared", pad_channels=(16, 8)), ValueError,
        "pad_channels: expected 16 for each map of padding='shared', got [16, 8]",
    ),
    (lambda: tiny(pad_constant=1), TypeError, "pad_constant: expected a bool, got int"),
    (lambda: tiny(extractor_depth=-1), ValueError, "extractor_depth: expected an int >= 0, got -1"),
    (
        lambda: shared()(images().long()), TypeError,
        "images: expected dtype float16, bfloat16, float32 or float64, got torch.int64",
    ),
    (lambda: shared()(images()[0]), ValueError, "images: expected 4 dimensions, got shape (3, 32, 32)"),
    (lambda: shared()(images()[:, :1]), ValueError, "images: expected 3 channels, got shape (2, 1, 32, 32)"),
    (lambda: shared()(images(size=64)), ValueError, "images: expected 32 x 32 pixels, got shape (2, 3, 64, 64)"),
    (lambda: shared()(images().to("meta")), ValueError, "images: expected device cpu like weight, got meta"),
    (lambda: shared()(images(), num_ws=5), ValueError, "num_ws: expected an int <= 4, got 5"),
    (lambda: shared()(images(), num_ws=0), ValueError, "num_ws: expected an int >= 1, got 0"),
    (lambda: shared()(images(), num_ws=2.0), TypeError, "num_ws: expected an int, got float"),
    (
        lambda: shared().set_latent_average(torch.zeros(5, 4)), ValueError,
        "latent_average: expected shape [4], [1, 4] or [4, 4], got (5, 4)",
    ),
    (lambda: shared().set_latent_average(0), TypeError, "latent_average: expected a torch.Tensor, got int"),
    (lambda: PadInvEncoder.for_generator(3), TypeError, "generator: expected a StyleGAN2 generator, got int"),
    (lambda: PadInvEncoder.for_generator(small_generator(16, head="csg"), 32), ValueError, NO_ZERO_PADDING),
    (lambda: PadInvEncoder.for_generator(small_generator(16, no_pad=True), 32), ValueError, NO_ZERO_PADDING),
    (lambda: PadInvEncoder.for_generator(small_generator(16, head_size=(4, 8)), 32), ValueError, NO_ZERO_PADDING),
    (
        lambda: PadInvEncoder.for_generator(small_generator(16, channel_max=12), 32), ValueError,
        "generator: expected a multiple of 8 channels, at least 16, at 4 pixels, got 12",
    ),
    (
        lambda: PadInvEncoder.for_generator(small_generator(16), 32, w_dim=8), ValueError,
        "latent_average: expected shape [8], [1, 8] or [6, 8], got (16,)",
    ),
]  # fmt: skip


@pytest.mark.parametrize("call, error, message", CALLS, ids=range(len(CALLS)))
def test_wrong_arguments_are_refused_by_name(call, error, message):
    with pytest.raises(error) as caught:
        call()
    assert type(caught.value) is error and str(caught.value) == message
