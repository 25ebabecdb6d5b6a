"""The traffic that ``python -m benchmarks.traffic`` counts: its rules on small calls, today's counts of the layers."""

from __future__ import annotations

import json
import sys
import types
from unittest import mock

import pytest
import torch
from torch.nn import functional as F

from benchmarks import traffic, traffic_peer, traffic_rates
from benchmarks.traffic_calls import LAYERS, Ours, Result, count_layer, count_network
from benchmarks.traffic_counter import Counter, Kernel, Traffic, record
from benchmarks.traffic_cuda import META, Launcher, autocast, meta_as_cuda
from posgan_fast import backend
from posgan_fast import functional as PF
from posgan_fast.ops.common import op
from posgan_fast.ops.modulated_conv2d import triton

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
    ("generator256", "float16"): ((474665436, 79), (1287210396, 86), (1642275500, 169), (3826892792, 423)),
    ("generator256", "float32"): ((863939528, 77), (2673195592, 84), (3145496968, 139), (7134637224, 414)),
    ("discriminator256", "float16"): ((854378996, 133), (2181635732, 133), (2181635732, 133), (3456008740, 217)),
    ("discriminator256", "float32"): ((1361921460, 107), (4001762196, 107), (4001762196, 107), (6186379940, 165)),
    ("training256", "float16"): ((41084475620, 3166),),
    ("training256", "float32"): ((77109275392, 2849),),
}


def counted(call) -> Traffic:
    with Counter() as counter:
        call()
    return counter.traffic


def empty(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, device=META, dtype=dtype)


def bytes_of(found: Traffic) -> tuple[int, int, int]:
    return found.read, found.written, found.launches


def test_an_operator_reads_each_tensor_once_and_writes_its_result():
    a, b = empty(8, 16), empty(8, 16)
    assert bytes_of(counted(lambda: a + b)) == (1024, 512, 1)
    assert bytes_of(counted(lambda: a * a)) == (512, 512, 1)
    assert bytes_of(counted(lambda: a[:4] + a[4:])) == (512, 256, 1)
    assert bytes_of(counted(lambda: a.sum(1))) == (512, 32, 1)
    assert bytes_of(counted(lambda: torch.cat([a, b]))) == (1024, 1024, 1)
    assert bytes_of(counted(lambda: a.half())) == (512, 256, 1)
    assert bytes_of(counted(lambda: a.float())) == (0, 0, 0)
    assert bytes_of(counted(lambda: torch.randn(8, 16, device=META))) == (0, 512, 1)


def test_views_allocations_and_empty_tensors_cost_nothing():
    a = empty(8, 16).requires_grad_()
    views = lambda: (a.view(16, 8), a.t(), a[1:], a.expand(3, 8, 16), a.detach(), a.flatten(), a.unsqueeze(0))  # noqa: E731
    assert bytes_of(counted(views)) == (0, 0, 0)
    fresh = lambda: (torch.empty_like(a), a.new_empty(3), empty(0, 4) + 1, empty(0).clone())  # noqa: E731
    assert bytes_of(counted(fresh)) == (0, 0, 0)


def test_expanded_dimensions_hold_one_element():
    a, b = empty(8, 16), empty(16)
    assert bytes_of(counted(lambda: a + b)) == (512 + 64, 512, 1)
    assert bytes_of(counted(lambda: b.expand(8, 16).contiguous())) == (64, 512, 1)


def test_in_place_reads_where_the_old_values_count():
    a, b = empty(8, 16), empty(8, 16)
    assert bytes_of(counted(lambda: a.add_(b))) == (1024, 512, 1)
    assert bytes_of(counted(lambda: a.copy_(b))) == (512, 512, 1)
    assert bytes_of(counted(a.zero_)) == (0, 512, 1)
    assert bytes_of(counted(lambda: torch.add(a, b, out=a))) == (1024, 512, 1)
    assert bytes_of(counted(lambda: torch.add(b, b, out=a))) == (512, 512, 1)


def test_scalars_of_the_host_cost_nothing():
    a, scalar = empty(8, 16), torch.tensor(2.0)
    assert bytes_of(counted(lambda: a * scalar)) == (512, 512, 1)
    assert bytes_of(counted(lambda: scalar + torch.ones(100))) == (0, 0, 0)


def test_padding_and_gradients_of_slices_are_two_kernels():
    a = empty(8, 16)
    assert bytes_of(counted(lambda: F.pad(a, (1, 1, 0, 0)))) == (512, 8 * 18 * 4 + 512, 2)
    x = empty(8, 16).requires_grad_()
    y = x[2:4]
    assert bytes_of(counted(lambda: torch.autograd.grad(y, x, torch.empty_like(y)))) == (128, 512 + 128, 2)
    image = empty(1, 2, 8, 8).requires_grad_()
    y = F.pad(image, (1, 1, 1, 1), mode="reflect")
    assert bytes_of(counted(lambda: torch.autograd.grad(y, image, torch.empty_like(y)))) == (800, 512 + 800, 2)


@pytest.mark.parametrize("mask", [(True, False, False), (False, True, False), (True, True, True)])
def test_a_convolution_has_a_kernel_for_each_gradient(mask):
    x, w = empty(2, 4, 8, 8), empty(6, 4, 3, 3)
    found = counted(lambda: F.conv2d(x, w, padding=1))
    sizes = (x, w, dy) = [t.numel() * 4 for t in (x, w, empty(2, 6, 8, 8))]
    products = 2 * 2 * 6 * 64 * 4 * 9
    assert bytes_of(found) == (x + w, dy, 1) and found.flops == products
    arguments = [empty(2, 6, 8, 8), empty(2, 4, 8, 8), empty(6, 4, 3, 3), [6], [1, 1], [1, 1], [1, 1], False, [0, 0], 1]
    found = counted(lambda: torch.ops.aten.convolution_backward(*arguments, list(mask)))
    kernels = [("dx", dy + w, x, products), ("dw", dy + x, w, products), ("db", dy, 24, 0)]
    expected = [
        Kernel(f"convolution_backward {name}", *rest, "float32")
        for wanted, (name, *rest) in zip(mask, kernels, strict=True)
        if wanted
    ]
    assert found.kernels == expected and min(sizes) > 0


def test_a_convolution_copies_operands_of_another_memory_format():
    x, w = empty(2, 4, 8, 8).contiguous(memory_format=torch.channels_last), empty(6, 4, 3, 3)
    found = counted(lambda: F.conv2d(x, w))
    assert [kernel.name for kernel in found.kernels] == ["convolution contiguous", "convolution"]
    assert found.kernels[0].moved == 2 * w.numel() * 4
    with Counter():
        assert F.conv2d(x, w).is_contiguous(memory_format=torch.channels_last)
        assert F.conv2d(x.double(), w.double()).is_contiguous()  # cuDNN has no float64 in channels_last


def test_an_op_of_ours_counts_as_its_native_kernels():
    x, b = empty(2, 4, 8, 8), empty(4)
    with meta_as_cuda():
        found = counted(lambda: PF.bias_act(x, b, act="lrelu"))
        strided = counted(lambda: PF.bias_act(x[..., ::2], b, act="lrelu"))
    assert found.kernels == [Kernel("native bias_act", 2048 + 16, 2048, 0, "float32")]
    assert [kernel.name for kernel in strided.kernels] == ["clone", "native bias_act"]


def test_inference_writes_over_the_result_of_the_convolution():
    x, w, styles = empty(2, 4, 8, 8), empty(4, 4, 3, 3), empty(2, 4)
    with meta_as_cuda(), torch.no_grad():
        found = counted(lambda: PF.modulated_conv2d(x, w, styles, padding=1, demodulate=False, act="lrelu"))
    names = ["native modulated_factors", "native prologue2d", "convolution", "native epilogue2d"]
    assert [kernel.name for kernel in found.kernels] == names
    assert found.moved == (576 + 32 + 576 + 32) + (2048 + 32 + 2048) + (2048 + 576 + 2048) + (2048 + 2048)


def test_the_choice_of_backend_is_as_before_afterwards():
    x = empty(1, 1, 2, 2)
    with meta_as_cuda():
        assert PF.explain("bias_act", x).backend == "cuda" and backend.cpu_can_run(x) is not None
    assert backend.cuda_can_run(x) is not None and not op.is_watched()


def test_autocast_gives_the_layer_its_dtype():
    x, w, styles = empty(2, 4, 8, 8), empty(4, 4, 3, 3), empty(2, 4)
    with meta_as_cuda(), torch.no_grad():
        with autocast(torch.bfloat16):
            assert PF.modulated_conv2d(x, w, styles).dtype == torch.bfloat16
            assert PF.modulated_conv2d(x.double(), w, styles).dtype == torch.float64
        assert PF.modulated_conv2d(x, w, styles).dtype == torch.float32


def test_a_launcher_of_triton_is_one_kernel(monkeypatch):
    def launch(x, weight, y):
        raise AssertionError("ran")

    module = types.ModuleType("launchers")
    module.launch, module.arch_of = launch, lambda device: 0
    monkeypatch.setitem(sys.modules, "launchers", module)
    row = Launcher("launchers", "launch", ("y",), lambda arguments: arguments["y"].numel())
    x, weight, y = empty(2, 4), empty(4), empty(2, 4)
    with mock.patch("benchmarks.traffic_cuda.LAUNCHERS", (row,)), meta_as_cuda():
        found = counted(lambda: module.launch(x, y=y, weight=weight))
    assert found.kernels == [Kernel("triton launch", 48, 32, 8, "float32")]
    assert module.launch is launch
    record("nobody looks on", (x,), (y,))


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


def test_gradients_of_styles_alone_do_not_convolve_for_the_weight():
    x, w, styles = empty(2, 4, 8, 8), empty(4, 4, 3, 3).requires_grad_(), empty(2, 4).requires_grad_()
    with meta_as_cuda():
        with Counter():
            y = PF.modulated_conv2d(x, w, styles, padding=1)
        found = counted(lambda: torch.autograd.grad(y, styles, torch.empty_like(y)))
    names = [kernel.name for kernel in found.kernels]
    assert "convolution_backward dx" in names and "convolution_backward dw" not in names


def test_explain_does_not_name_a_kernel_that_cannot_serve():
    """A map beside factors that keep float16 in range, and more samples than shared memory holds."""
    with meta_as_cuda(), torch.no_grad():
        x = torch.empty(1, 64, 256, 256, dtype=torch.float16, device="meta").contiguous(
            memory_format=torch.channels_last
        )
        weight, styles = torch.empty(64, 64, 3, 3, device="meta"), torch.empty(1, 64, device="meta")
        pad_map = torch.empty(1, 64, 258, 258, device="meta")
        explained = lambda *args, **call: str(PF.explain("modulated_conv2d", *args, **call))  # noqa: E731
        assert "algorithm: one Triton kernel" in explained(x, weight, styles, padding=1)
        assert "algorithm: stages" in explained(x, weight, styles, padding=1, pad_map=pad_map)
        x = torch.empty(10300, 8, 8, 8, dtype=torch.float16, device="meta").contiguous(
            memory_format=torch.channels_last
        )
        weight, styles = torch.empty(3, 8, 1, 1, device="meta"), torch.empty(10300, 8, device="meta")
        assert "algorithm: stages" in explained(x, weight, styles)


@pytest.mark.parametrize(("n", "size"), [(16, 64), (256, 16), (4096, 4)])
def test_the_fused_kernel_moves_no_more_than_stages(n, size):
    """It takes styles apart where a weight for each sample would have more elements than the features."""
    moved = []
    for with_triton in (True, False):
        with meta_as_cuda(), torch.no_grad(), Counter() as counter:
            x = torch.empty(n, 128, size, size, dtype=torch.bfloat16, device="meta")
            weight, styles = torch.empty(128, 128, 3, 3, device="meta"), torch.empty(n, 128, device="meta")
            with mock.patch.object(triton, "serves", triton.serves if with_triton else lambda call: False):
                PF.modulated_conv2d(x.contiguous(memory_format=torch.channels_last), weight, styles, padding=1)
        moved.append(sum(kernel.moved for kernel in counter.traffic.kernels if kernel.name != "convolution contiguous"))
    assert moved[0] < 0.75 * moved[1]


def test_networks_are_counted_with_their_settings():
    small = Ours({"channel_max": 16})
    phases = {dtype: count_network(small, "generator64", dtype, 2).phases for dtype in ("bfloat16", "float32")}
    for found in phases.values():
        assert list(found) == ["inference N=1", "inference N=2", "forward", "backward"]
        assert all(t.launches > 50 for t in found.values())
    assert phases["bfloat16"]["forward"].moved < 0.7 * phases["float32"]["forward"].moved
    step = count_network(small, "training256", "float32", 2).phases["step"]
    assert step.launches > 1000 and {"native bias_act", "native upfirdn2d"} <= {k.name for k in step.kernels}


def test_an_affine_product_is_two_kernels_unless_its_bias_is_one_of_cublaslt():
    a, b, bias = empty(4, 8), empty(8, 6), empty(6)
    assert counted(lambda: torch.addmm(bias, a, b)).launches == 1
    assert counted(lambda: torch.addmm(bias, a[:1], b)).launches == 2
    assert bytes_of(counted(lambda: torch.addmm(bias, a, b, beta=0.5))) == (24 + 128 + 192, 96 + 96, 2)


def test_an_epilogue_behind_a_filter_that_is_not_fused_is_two_kernels():
    f = PF.setup_filter([1, 3, 3, 1]).to(META)
    for act, channels, dtype, kernels in (
        ("lrelu", 4, torch.float32, 1), ("swish", 4, torch.float32, 2), ("lrelu", 3, torch.float32, 2),
        ("lrelu", 4, torch.float64, 2),
    ):  # fmt: skip
        x = empty(1, channels, 8, 8, dtype=dtype).contiguous(memory_format=torch.channels_last)
        with meta_as_cuda(), torch.no_grad():
            found = counted(lambda x=x, act=act: PF.epilogue2d(x, f, padding=[2, 1, 2, 1], act=act))
        assert sum(kernel.name.startswith("native") for kernel in found.kernels) == kernels


@pytest.mark.parametrize(
    "taps, factors, kernels",
    [(4, dict(up=2), 1), (4, dict(down=2), 1), (4, dict(up=4), 2), (4, dict(up=2, down=2), 2), (4, dict(up=[2, 1]), 2),
     (3, {}, 2), (6, dict(up=2), 2)],
)  # fmt: skip
def test_only_the_resamplings_of_stylegan2_are_fused(taps, factors, kernels):
    """Filters of 4 x 4 taps that keep, double or halve both sides, as in csrc/upfirdn2d.cuh."""
    f = PF.setup_filter([1] * taps, separable=False).to(META)
    with meta_as_cuda(), torch.no_grad():
        found = counted(lambda: PF.epilogue2d(empty(1, 3, 8, 8), f, padding=[3, 3, 3, 3], act="lrelu", **factors))
    assert sum(kernel.name.startswith("native") for kernel in found.kernels) == kernels


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
        (["mbstd_num_channels=3", "--dtype", "float32"], "--set: x: expected channels that are a multiple of 3"),
    ],
)
def test_wrong_settings_are_refused(settings, message, capsys):
    network = "discriminator256" if "mbstd" in settings[0] else "generator64"
    with pytest.raises(SystemExit) as stopped:
        traffic.main(["--network", network, "--set", *settings])
    assert stopped.value.code == 2 and message in capsys.readouterr().err


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


def test_nvlabs_layers_are_counted_with_their_plugins(peers):
    by = traffic_peer.NVlabs(peers["nvlabs"])
    assert count_layer(by, "up", "float32", 64, size=100_000).unit == 64 * 64 * 10**10 * 4
    found = count_layer(by, "plain", "float32", batch=4)
    assert 8 < found.in_units("forward") < 8.3 and found.phases["inference N=1"].launches == 13
    assert [k.name for k in found.phases["forward"].kernels].count("plugin bias_act") == 1
    assert by.refuses("layer", "bfloat16") and not by.refuses("layer", "float16")
    enlarging = count_layer(by, "up", "float32", batch=4).phases
    assert [k.name for t in enlarging.values() for k in t.kernels].count("plugin upfirdn2d") == 4
