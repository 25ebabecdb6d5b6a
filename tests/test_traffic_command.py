"""The command ``python -m benchmarks.traffic``: its predictions, options and output."""

from __future__ import annotations

import json
import types

import pytest

from benchmarks import traffic, traffic_peer, traffic_rates
from benchmarks.traffic_calls import Ours, Result, count_layer
from benchmarks.traffic_counter import Kernel, Traffic


def test_predictions_are_the_roofline():
    gpu = traffic_rates.Gpu("sm_1", "G", 1e9, 4e9, 2e9, 1e9, "")
    memory, half = Kernel("add", 500, 500, 0, "float32"), Kernel("convolution", 500, 500, 8000, "float16")
    tf32, single = Kernel("convolution", 0, 10, 8000, "float32"), Kernel("mm", 0, 10, 8000, "float32")
    times = [traffic_rates.graph_seconds(Traffic([k]), gpu) for k in (memory, half, tf32, single)]
    assert times == pytest.approx([1e-6, 2e-6, 4e-6, 8e-6])
    assert traffic_rates.eager_seconds(Traffic([memory] * 3), gpu) == pytest.approx(3 * traffic_rates.LAUNCH)
    assert traffic_rates.eager_seconds(Traffic([single] * 3), gpu) == pytest.approx(24e-6)


def test_the_command_prints_a_table_and_writes_json(tmp_path, capsys):
    file = tmp_path / "traffic.json"
    arguments = ["--layer", "plain", "--dtype", "float32", "--batch", "2", "--channels", "8", "--size", "16"]
    assert traffic.main([*arguments, "--ops", "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    for words in (
        "PREDICTIONS",
        "layer plain, float32, ours",
        "native epilogue2d",
        "Predicted, not measured",
        "data sheet",
        "S: the bytes of a layer's result",
        "Convolutions in float32 take the TF32 rate",
    ):
        assert words in printed
    content = json.loads(file.read_text())
    assert content["schema"] == 1 and "commit" in content["provenance"] and content["rates"]["launch"] == 5e-6
    (case,) = content["cases"]
    assert list(case["phases"]) == ["inference N=1", "inference N=2", "forward", "backward"]
    for phase in case["phases"].values():
        assert phase["read"] + phase["written"] == sum(o["read"] + o["written"] for o in phase["ops"]) > 0
        assert phase["launches"] == sum(o["launches"] for o in phase["ops"])
        assert list(phase["predicted_seconds"]) == ["sm_80", "sm_90", "sm_100"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--layer", "round"], "invalid choice: 'round'"),
        (["--network", "generator3"], "invalid choice: 'generator3'"),
        (["--dtype", "float64"], "invalid choice: 'float64'"),
        (["--peer", "nvlabs=/nowhere"], "expected a checkout with torch_utils"),
        (["--peer", "acme=/nowhere"], "expected nvlabs=PATH"),
        (["--peer", "rosinality=/nowhere"], "--peer: expected nvlabs=PATH, got"),
        (["--batch", "0"], "--batch: expected an integer of at least 1, got '0'"),
        (["--network", "discriminator256", "--batch", "6"], "--batch: expected less than 4"),
        (["--network", "training256", "--set", "mbstd_group_size=3"], "--set: expected an argument of all networks"),
        (["--network", "discriminator256", "--set", "mbstd_group_size=3"], "--batch: expected less than 3"),
        (["--network", "generator64", "--size", "64"], "--size: expected --layer"),
        (["--network", "generator64", "--channels", "64"], "--channels: expected --layer"),
        (["--json", "."], "--json: expected a file, got the folder '.'"),
        (["--size", "7"], "--size: expected an even number, got 7"),
        (["--set", "channel_max=8"], "--set: expected an argument of all networks"),
        (["--network", "training256", "--set", "head_sizes=8"], "--set: expected an argument of all networks"),
    ],
)
def test_wrong_options_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        traffic.main(arguments)
    assert stopped.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["num_fp16_res=-1"], "--set: num_fp16_res: expected an int >= 0, got -1"),
        (["num_fp16_res=fp16"], "--set: num_fp16_res: expected an int, got str"),
        (["half_dtype=int32"], "--set: half_dtype: expected one of ('float16', 'bfloat16', torch.float16"),
        (["num_fp16_res"], "--set: expected NAME=VALUE, got 'num_fp16_res'"),
        (["num_fp16_res="], "--set: expected NAME=VALUE, got 'num_fp16_res='"),
        (["size=128"], "--set: expected no size, which the command sets itself"),
        (["conv_clamp=1", "conv_clamp=2"], "--set: expected conv_clamp once, got 'conv_clamp=2' beside 1"),
        (["num_fp16_res=2", "--dtype", "bfloat16"], "--dtype: expected float32 beside num_fp16_res"),
        (["conv_clamp={[]:1}"], "--set: conv_clamp: expected a number, got str"),
        (["activation=" + 3000 * "-" + "1"], "--set: activation: expected one of"),
        (["head_size=(1000000000,1000000000)"], "--set: "),
        (["mbstd_num_channels=3", "--dtype", "float32"], "--set: x: expected channels that are a multiple of 3"),
    ],
)
def test_wrong_settings_are_refused(settings, message, capsys):
    network = "discriminator256" if "mbstd" in settings[0] else "generator64"
    with pytest.raises(SystemExit) as stopped:
        traffic.main(["--network", network, "--set", *settings])
    assert stopped.value.code == 2 and message in capsys.readouterr().err


def test_batches_without_groups_are_free(capsys):
    arguments = ["--network", "discriminator256", "--batch", "6", "--dtype", "float32"]
    assert traffic.main([*arguments, "--set", "mbstd_num_channels=0"]) == 0


def test_settings_are_in_the_titles_of_our_networks_alone(capsys, monkeypatch):
    counted = Traffic([Kernel("add", 4, 4, 0, "float32")])
    result = lambda by, name, dtype, *more: Result(name, by.name, dtype, 1, 4, {"inference N=1": counted})  # noqa: E731
    monkeypatch.setattr(traffic, "count_network", result)
    monkeypatch.setattr(traffic, "count_layer", result)
    monkeypatch.setattr(traffic.options, "peer_paths", lambda *args, **wanted: {"nvlabs": None})
    peer = types.SimpleNamespace(name="nvlabs", refuses=lambda kind, dtype: None)
    monkeypatch.setattr(traffic_peer, "NVlabs", lambda checkout: peer)
    arguments = ["--layer", "plain", "plain", "--network", "generator64", "--set", "num_fp16_res=2", "conv_clamp=256"]
    assert traffic.main(arguments) == 0
    titles = [line.partition(";")[0] for line in capsys.readouterr().out.splitlines() if "; S = " in line]
    assert titles == [
        "plain, float32, ours", "plain, float32, nvlabs",
        "generator64, float32, ours with num_fp16_res=2 conv_clamp=256",
        "generator64, float32, nvlabs with its own settings",
    ]  # fmt: skip


def test_a_layer_that_no_memory_holds_is_counted():
    small, large = (count_layer(Ours(), "plain", "float16", 64, size=size) for size in (1000, 100_000))
    assert large.unit == 10**4 * small.unit == 64 * 64 * 10**10 * 2
    assert large.phases["forward"].launches == small.phases["forward"].launches
