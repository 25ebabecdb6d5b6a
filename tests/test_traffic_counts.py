"""The traffic of layers and networks as ``python -m benchmarks.traffic`` counts it today."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import traffic, traffic_peer, traffic_table
from benchmarks.traffic_calls import LAYERS, Ours, count_layer, count_network

# Bytes that move and kernels of a layer of 64 to 64 (toRGB: 3) channels, 128 pixels, N=4: in inference of one sample,
# in inference, and forward and backward in training. Lower numbers replace these; greater ones need a reason.
TODAY = {
    ("plain", "float16"): ((9015300, 5), (17855236, 3), (51821588, 8), (87368212, 17)),
    ("plain", "bfloat16"): ((9015300, 5), (17855236, 3), (51820292, 8), (87369732, 18)),
    ("plain", "float32"): ((17551108, 5), (101448196, 5), (102299140, 7), (171476740, 17)),
    ("up", "float16"): ((7508292, 5), (32358212, 5), (33210452, 8), (98521172, 19)),
    ("up", "bfloat16"): ((7508292, 5), (32358212, 5), (33209156, 8), (98522692, 20)),
    ("up", "float32"): ((14537028, 5), (64225860, 5), (65076804, 7), (193905220, 20)),
    ("pair", "float16"): ((16523592, 10), (50213448, 8), (85032040, 16), (185913960, 37)),
    ("pair", "bfloat16"): ((16523592, 10), (50213448, 8), (85029448, 16), (185917000, 39)),
    ("pair", "float32"): ((32088136, 10), (132119624, 9), (167375944, 14), (365406536, 38)),
    ("torgb", "float16"): ((2331160, 4), (8928280, 4), (9720856, 7), (19341700, 17)),
    ("torgb", "bfloat16"): ((2331160, 4), (8928280, 4), (9720856, 7), (19341700, 17)),
    ("torgb", "float32"): ((4527372, 4), (17713164, 4), (19286028, 5), (38083448, 15)),
}
# The same of networks of 256 pixels; a whole step of training is one phase.
NETWORKS_TODAY = {
    ("generator256", "float16"): ((474665436, 79), (1287210396, 86), (1642275500, 169), (3825876984, 389)),
    ("generator256", "float32"): ((863939528, 77), (2673195592, 84), (3145496968, 139), (7133621416, 380)),
    ("discriminator256", "float16"): ((854378996, 133), (2181635732, 133), (2181635732, 133), (3456008740, 217)),
    ("discriminator256", "float32"): ((1361921460, 107), (4001762196, 107), (4001762196, 107), (6186379940, 165)),
    ("training256", "float16"): ((39025745892, 2994),),
    ("training256", "float32"): ((73390178560, 2677),),
}


def test_the_committed_table_is_that_of_today():
    """To renew it, write benchmarks/results/traffic.json as docs/gpu-traffic.md says, and the table behind its text."""
    cases = json.loads(traffic_table.FILES["now"].read_text())["cases"]
    found = {
        (case["case"].removeprefix("layer "), case["dtype"]): tuple(
            (phase["read"] + phase["written"], phase["launches"]) for phase in case["phases"].values()
        )
        for case in cases
        if case["contender"] == "ours"
    }
    expected = TODAY | NETWORKS_TODAY
    assert {key: found.get(key) for key in expected} == expected
    page = (Path(__file__).parents[1] / "docs" / "gpu-traffic.md").read_text()
    assert page.endswith("\n\n" + "\n".join(traffic_table.rows(traffic_table.FILES)) + "\n")


@pytest.mark.parametrize("dtype", traffic.DTYPES)
@pytest.mark.parametrize("name", LAYERS)
def test_layers_move_and_launch_no_more_than_they_do_today(name, dtype):
    found = count_layer(Ours(), name, dtype, batch=4)
    assert tuple((t.moved, t.launches) for t in found.phases.values()) == TODAY[name, dtype]
    assert found.unit == 4 * (3 if name == "torgb" else 64) * 128**2 * (4 if dtype == "float32" else 2)


@pytest.mark.parametrize("name,dtype", NETWORKS_TODAY)
def test_networks_move_and_launch_no_more_than_they_do_today(name, dtype):
    found = count_network(Ours(), name, dtype, 4)
    assert tuple((t.moved, t.launches) for t in found.phases.values()) == NETWORKS_TODAY[name, dtype]


def test_a_layer_takes_few_passes():
    """One pass is a reading or a writing of the layer's result, S bytes. Training: prologue, convolution and epilogue
    read and write forward; epilogue, both gradients of the convolution and prologue backward. Inference of one sample:
    convolution and epilogue, since the weight holds the styles; an enlarging layer reads a quarter in some places."""
    for dtype in traffic.DTYPES:
        plain, up = (count_layer(Ours(), name, dtype, batch=4) for name in ("plain", "up"))
        assert plain.in_units("forward") < 6.4 and plain.in_units("backward") < 10.7
        assert up.in_units("forward") < 4.2 and up.in_units("backward") < 12
        for layer in (plain, up):  # the affine layer, factors, convolution and epilogue; torch makes two of the first
            assert layer.phases["inference N=1"].launches <= 5
        alone = {name: count_layer(Ours(), name, dtype, batch=1, size=512) for name in ("plain", "up")}
        assert alone["up"].in_units("inference N=1") < 3.6
        assert alone["plain"].in_units("inference N=1") < (2.15 if dtype != "float32" else 4.1)  # one kernel, or stages


def test_parameters_in_channels_last_are_read_as_they_are():
    class InChannelsLast(Ours):
        def layer(self, name, channels, size):
            return super().layer(name, channels, size).to(memory_format=torch.channels_last)

    for dtype in traffic.DTYPES:
        found = count_layer(InChannelsLast(), "plain", dtype, batch=4)
        assert tuple((t.moved, t.launches) for t in found.phases.values()) == TODAY["plain", dtype]


def test_a_generator_of_1024_pixels_takes_few_launches():
    for dtype in traffic.DTYPES:
        (found,) = (count_network(Ours(), "generator1024", dtype, 1).phases[name] for name in ("inference N=1",))
        assert found.launches <= 101


def test_backward_multiplies_twice_what_forward_does():
    found = count_layer(Ours(), "plain", "bfloat16", batch=4).phases
    convolution = 2 * 4 * 64 * 64 * 9 * 128**2
    flops = {phase: sum(k.flops for k in t.kernels if "conv" in k.name) for phase, t in found.items()}
    assert flops == {
        "inference N=1": convolution // 4, "inference N=4": convolution,
        "forward": convolution, "backward": 2 * convolution,
    }  # fmt: skip


def test_networks_are_counted_with_their_settings():
    small = Ours({"channel_max": 16})
    phases = {dtype: count_network(small, "generator64", dtype, 2).phases for dtype in ("bfloat16", "float32")}
    for found in phases.values():
        assert list(found) == ["inference N=1", "inference N=2", "forward", "backward"]
        assert all(t.launches > 50 for t in found.values())
    assert phases["bfloat16"]["forward"].moved < 0.7 * phases["float32"]["forward"].moved
    step = count_network(small, "training256", "float32", 2).phases["step"]
    assert step.launches > 1000 and {"native bias_act", "native upfirdn2d"} <= {k.name for k in step.kernels}


def test_nvlabs_layers_are_counted_with_their_plugins(peers):
    by = traffic_peer.NVlabs(peers["nvlabs"])
    assert count_layer(by, "up", "float32", 64, size=100_000).unit == 64 * 64 * 10**10 * 4
    found = count_layer(by, "plain", "float32", batch=4)
    assert 8 < found.in_units("forward") < 8.3 and found.phases["inference N=1"].launches == 13
    assert [k.name for k in found.phases["forward"].kernels].count("plugin bias_act") == 1
    assert by.refuses("layer", "bfloat16") and not by.refuses("layer", "float16")
    enlarging = count_layer(by, "up", "float32", batch=4).phases
    assert [k.name for t in enlarging.values() for k in t.kernels].count("plugin upfirdn2d") == 4
