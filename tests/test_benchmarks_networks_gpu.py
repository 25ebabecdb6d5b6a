"""Networks on a GPU are measured by priority, within a budget, beside their roofline; here by small stand-ins."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import types

import pytest
import torch

import posgan_fast
from benchmarks import (
    gpu_timing,
    harness,
    network_calls,
    network_report,
    network_works,
    networks,
    networks_gpu,
    networks_plan,
    roofline,
)
from benchmarks.network_report import GpuRow
from benchmarks.network_works import Contender, Peers, Work
from benchmarks.networks_plan import Budget, Case, planned
from benchmarks.traffic_counter import Kernel, Traffic
from benchmarks.traffic_rates import Gpu
from posgan_fast import nn
from posgan_fast.models import Discriminator, Generator

pytestmark = pytest.mark.usefixtures("one_thread")

RATES = Gpu("sm_1", "G", copy=1e9, half=4e9, tf32=2e9, float32=1e9, source="")
FEW = harness.Effort(2, 2, 0.0, 0.0)


def options(**given):
    empty = dict(
        what=None, size=None, batch=None, dtype=None, dry_run=False, rounds=2, seconds=None, one=None, name="n"
    )
    return argparse.Namespace(**{**empty, **given})


@pytest.fixture
def run(tmp_path):
    """Makes a run whose clock a test moves: ``made.now[0]`` is the time."""

    def make(seconds=None, **given):
        now = [0.0]
        found = networks_gpu.Run(options(out=tmp_path, **given), gpu_timing.Host(), Budget(seconds, lambda: now[0]))
        found.now = now
        return found

    return make


def nvlabs():
    """Our own modules under the names and arguments of NVlabs'."""

    def generator(z_dim, c_dim, w_dim, size, channels, mapping_kwargs, **options):
        return Generator(size, **options)

    def discriminator(c_dim, size, channels, **options):
        return Discriminator(size, **options)

    class Synthesis(nn.StyleConv):
        def __init__(self, inner, outer, w_dim, resolution, up, conv_clamp):
            super().__init__(inner, outer, w_dim, resolution, up=up, clamp=conv_clamp)

        def forward(self, x, w, noise_mode, fused_modconv):
            assert fused_modconv
            return super().forward(x, w, noise_mode=noise_mode)

    class ToRGB(nn.ToRGB):
        def __init__(self, inner, outer, w_dim, conv_clamp):
            super().__init__(inner, outer, w_dim, clamp=conv_clamp)

        def forward(self, x, w, fused_modconv):
            return super().forward(x, w)

    return types.SimpleNamespace(
        __name__="training.networks_stylegan2", Generator=generator, Discriminator=discriminator,
        SynthesisLayer=Synthesis, ToRGBLayer=ToRGB,
    )  # fmt: skip


def test_the_plan_begins_with_what_matters_most():
    plan = planned(options(), ["nvlabs", "rosinality"])
    assert len(set(plan)) == len(plan)
    half = ["float16", "bfloat16"]
    layers = [("layer", kind, size, 1, p) for p in half for size in (256, 512) for kind in ("plain", "up")]
    networks = [("generator", "", size, n, p) for size, n in ((1024, 1), (256, 32)) for p in half]
    first = [*layers, *networks, *(("training", "iteration", 256, 8, p) for p in half)]
    assert [dataclasses.astuple(case)[:5] for case in plan[: len(first)]] == first
    compiled = [case for case in plan if case.what == "compiled"]
    assert {(c.peer, c.kind, c.size, c.batch, c.precision) for c in compiled} == {
        (peer, mode, size, n, p)
        for peer, p in (("nvlabs", "float16"), ("rosinality", "tf32"))
        for mode in ("default", "max-autotune") for size, n in ((1024, 1), (256, 32))
    }  # fmt: skip
    assert not any(case.kind == "up" and case.size == 4 for case in plan)
    shares = {(c.kind, c.size) for c in plan if c.what == "layer" and (c.batch, c.precision) == (1, "float16")}
    assert len(shares) == 3 * 9 - 1


def test_options_choose_among_the_rows():
    plan = planned(options(what=["generator"], size=[64], batch=[4], dtype=["float32"]))
    assert [case.name for case in plan] == ["64, N=4, tf32", "64, N=4, float32"]
    assert {c.what for c in planned(options(), [])} == set(networks_plan.WHAT) - {"compiled"}
    dry = planned(options(dry_run=True), ["nvlabs"])
    assert {c.what for c in dry} == set(networks_plan.WHAT) and max(c.size for c in dry) == 8
    assert not any(c.precision == "tf32" for c in dry)
    assert any(c.precision == "tf32" for c in planned(options(dry_run=True), ["rosinality"]))


def test_a_gpus_options_are_refused_on_the_cpu(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for wrong in (
        ["--dtype", "float16"],
        ["--what", "backward"],
        ["--seconds", "9"],
        ["--dry-run", "--what", "memory"],
    ):
        with pytest.raises(SystemExit):
            networks.main(wrong)
        assert f"{wrong[-2]}: expected" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        networks.main(["--peer", "/nonexistent"])
    assert "--peer: expected a checkout" in capsys.readouterr().err


def test_a_run_stops_at_its_limit_and_lists_what_it_cut(run, monkeypatch):
    """Each row takes 4 of the 10 seconds; a layer needs 1 second to begin, a network 3, a compilation 20."""
    found = run(10.0)

    def attempt(run, case):
        run.now[0] += 4.0
        return GpuRow(case.what, case.name, {"ours": 1.0})

    monkeypatch.setattr(networks_gpu, "attempt", attempt)
    kinds = ("compiled", "generator", "layer", "generator", "layer", "layer")
    cases = [Case(what, "plain", 8 * (i + 1), 1, "float16", "nvlabs") for i, what in enumerate(kinds)]
    content = networks_gpu.measure_all(found, cases, {})
    assert [row["what"] for row in content["rows"]] == ["generator", "layer", "layer"]
    assert content["cut"] == [f"{cases[i].what} {cases[i].name}" for i in (0, 3, 5)]
    assert json.loads((found.args.out / "n.json").read_text()) == json.loads(json.dumps(content))
    assert Budget(None).left == float("inf")


def test_a_run_that_is_killed_leaves_the_rows_before(run, monkeypatch):
    found = run()

    def attempt(run, case):
        if case.size == 16:
            raise KeyboardInterrupt
        return GpuRow(case.what, case.name, {"ours": 1.0})

    monkeypatch.setattr(networks_gpu, "attempt", attempt)
    with pytest.raises(KeyboardInterrupt):
        networks_gpu.measure_all(
            found, [Case("generator", "", size, 1, "float16") for size in (8, 16)], {"commit": "c"}
        )
    left = json.loads((found.args.out / "n.json").read_text())
    assert [row["case"] for row in left["rows"]] == ["8, N=1, float16"] and left["provenance"] == {"commit": "c"}
    assert [path.name for path in found.args.out.iterdir()] == ["n.json"]


def test_a_gpu_that_fails_ends_the_run(run, monkeypatch):
    found = run()
    monkeypatch.setattr(networks_gpu, "attempt", lambda run, case: GpuRow(case.what, case.name))
    found.clock.settle = lambda: (_ for _ in ()).throw(RuntimeError("CUDA error: an illegal memory access"))
    content = networks_gpu.measure_all(found, [Case("generator", "", size, 1, "float16") for size in (8, 16)], {})
    assert content["failed"] == ["generator 8, N=1, float16: RuntimeError: CUDA error: an illegal memory access"]
    assert content["cut"] == ["generator 16, N=1, float16"] and "no more calls" in content["notes"][0]


def contender(seconds, result=None, error=None, graph=None):
    """Makes a contender whose clock says ``seconds``, and ``graph`` for a replay."""

    def call():
        if error is not None:
            raise error
        return torch.ones(1) if result is None else result

    def prepare(clock):
        call()
        return gpu_timing.Timed(lambda: seconds, None if graph is None else lambda: graph, "" if graph else "no graph")

    return lambda: Contender(call, prepare)


def test_full_memory_is_said_and_the_others_are_measured():
    full = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has ...")
    row = GpuRow("generator", "1024, N=32, float16")
    contenders = {"ours": contender(2.0, graph=1.0), "nvlabs": contender(3.0, error=full)}
    networks_gpu.measure(row, Work(contenders), gpu_timing.Host(), FEW)
    assert row.medians == {"ours": 2.0, "ours, graph": 1.0} and row.refused == {"nvlabs": "out of memory"}
    assert "nvlabs: not measured, out of memory" in network_report.gpu_line(row)

    row = GpuRow("generator", "1024, N=32, float16")
    networks_gpu.measure(row, Work({"ours": contender(2.0, error=full)}), gpu_timing.Host(), FEW)
    assert not row.medians and not row.failed and row.refused == {"ours": "out of memory"}

    wrapped = RuntimeError("expected one that only queues work")
    wrapped.__cause__ = full
    assert gpu_timing.is_out_of_memory(wrapped) and gpu_timing.is_out_of_memory(
        RuntimeError("CUDNN_STATUS_ALLOC_FAILED")
    )
    assert not gpu_timing.is_out_of_memory(RuntimeError("an illegal memory access"))


def test_another_error_of_ours_fails_the_row_and_one_of_a_peer_does_not():
    bad = ValueError("x: expected less")
    for name, failed in (("ours", "ValueError: x: expected less"), ("nvlabs", "")):
        row = GpuRow("layer", "any")
        made = {"ours": contender(1.0), "nvlabs": contender(1.0)} | {name: contender(1.0, error=bad)}
        networks_gpu.measure(row, Work(made), gpu_timing.Host(), FEW)
        assert row.failed == failed and bool(row.medians) == (name == "nvlabs")
    assert network_report.gpu_line(GpuRow("layer", "any", failed="why")) == "layer any: FAILED, why"


def test_a_profiler_that_fails_fails_no_row():
    for name in ("ours", "nvlabs"):
        row = GpuRow("launches", "any")
        clock = gpu_timing.Host()
        clock.launches = lambda call: 1 / 0
        networks_gpu.count_launches(row, Work({name: contender(1.0)}), clock)
        assert not row.failed and list(row.refused) == [f"launches of {name}"] and not row.launches
    row = GpuRow("launches", "any")
    networks_gpu.count_launches(row, Work({"ours": contender(1.0, error=ValueError("no"))}), gpu_timing.Host())
    assert row.failed == "ValueError: no"


def test_eager_calls_and_replays_have_rivals_of_their_own():
    row = GpuRow("generator", "8, N=2, float16", batch=2)
    made = {
        "ours": contender(4.0, torch.full((2,), 2.0), graph=1.0), "nvlabs": contender(6.0, torch.ones(2), graph=0.5),
        "zeros": contender(2.0),
    }  # fmt: skip
    networks_gpu.measure(row, Work(made, lambda: torch.ones(1)), gpu_timing.Host(), FEW)
    assert row.ratios == {"ours": 1.0, "ours, graph": 1.0, "nvlabs": 1.5, "nvlabs, graph": 0.5, "zeros": 0.5}
    assert row.errors == {"ours": 1.0, "nvlabs": 0.0, "zeros": 0.0} and row.refused == {"zeros, graph": "no graph"}
    assert network_report.slower([row]) == [("generator", "8, N=2, float16", "nvlabs, graph")]


def test_the_report_of_a_row():
    row = GpuRow(
        "launches", "8, N=2, float16", batch=2, launches={"ours": {"kernels": 5, "copies": 2}}, counted_launches=6,
        roofline=0.8, compile_seconds={"nvlabs, compiled": 12.34}, refused={"nvlabs": "out of memory"},
    )  # fmt: skip
    assert network_report.gpu_line(row).split("\n    ") == [
        "launches 8, N=2, float16:", "ours: 5 kernels and 2 copies a call, 3.5 an image",
        "ours, counted without a GPU: 6 launches a call", "0.80 of the roofline",
        "nvlabs, compiled: 12.3 s to compile", "nvlabs: not measured, out of memory",
    ]  # fmt: skip
    assert gpu_timing.tally(["conv", "Memcpy DtoD (Device -> Device)", "Memset (Device)", "ProfilerStep#1"]) == {
        "kernels": 1, "copies": 2,
    }  # fmt: skip


def test_the_share_of_the_roofline():
    moving = Kernel("epilogue2d", 3 * 10**8, 10**8, 0, "float16")  # 0.4 s at 1 GB/s
    half = Kernel("convolution", 10**8, 10**8, 4 * 10**9, "float16")  # 1 s at 4 GFLOP/s
    single = Kernel("convolution", 0, 10**8, 2 * 10**9, "float32")  # 1 s in TF32, 2 s in float32
    product = Kernel("mm", 0, 10**8, 2 * 10**9, "float32")
    assert roofline.share(Traffic([moving, half]), RATES, "float16", 2.8) == pytest.approx(0.5)
    for precision, seconds in (("tf32", 2.0), ("float32", 4.0), ("float16", 4.0)):
        assert roofline.seconds(Traffic([single, product]), RATES, precision) == pytest.approx(seconds)


def test_layers_are_predicted_with_what_is_counted_for_the_same_call(run):
    case = Case("layer", "up", 8, 1, "float16")
    made = network_works.work(case, torch.device("cpu"), Peers())
    for medians, measured in (({"ours": 4.0}, 4.0), ({"ours": 4.0, "ours, graph": 2.0}, 2.0)):
        row = GpuRow("layer", case.name, dict(medians))
        networks_gpu.predict(row, made, RATES, case.precision)
        assert row.counted_launches > 1 and row.roofline == pytest.approx(row.predicted / measured)
    weights = 512 * 512 * 9
    assert row.predicted > 2 * weights * 8 * 8 / 4 / RATES.half  # the operations of the convolution, at a quarter size
    row = GpuRow("layer", case.name)
    networks_gpu.predict(row, Work({}, counted=lambda device: 1 / 0), RATES, case.precision)
    assert row.refused["prediction"].startswith("ZeroDivisionError") and not row.failed


def test_rates_are_measured_on_the_device():
    rates = roofline.measured_rates(torch.device("cpu"), 16, harness.QUICK)
    assert min(rates.copy, rates.half, rates.tf32, rates.float32) > 0 and rates.source == "measured here"


@pytest.mark.parametrize("name", network_calls.PRECISIONS)
def test_float32_is_measured_without_tf32_and_with_it(name):
    with gpu_timing.precision(name, benchmark=True):
        assert torch.backends.cuda.matmul.allow_tf32 is torch.backends.cudnn.allow_tf32 is (name == "tf32")
        assert torch.backends.cudnn.benchmark
    assert not torch.backends.cudnn.allow_tf32 and not torch.backends.cudnn.benchmark


@pytest.mark.parametrize(
    "what, kind",
    [
        ("layer", "plain"), ("layer", "torgb"), ("generator", ""), ("launches", ""), ("training", "generator step"),
        ("backward", "generator"), ("backward", "discriminator"), ("discriminator", ""), ("compiled", "default"),
    ],
)  # fmt: skip
def test_each_kind_of_row_has_nvlabs_beside_ours(what, kind, run, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda module, **options: module)
    found = run(dry_run=True)
    found.peers = Peers({}, nvlabs())
    found.rates = RATES
    with torch._dynamo.config.patch(recompile_limit=8):
        row = networks_gpu.attempt(found, Case(what, kind, 8, 2, "float16", "nvlabs" if what == "compiled" else ""))
    assert not row.failed and not row.refused, network_report.gpu_line(row)
    measured = {"ours", "nvlabs"} | ({"nvlabs, compiled"} if what == "compiled" else set())
    if what == "launches":
        assert set(row.launches) == measured and row.counted_launches > 10
        return
    assert {name.removesuffix(network_report.GRAPH) for name in row.medians} == measured
    assert ("ours, graph" in row.medians) == (what not in ("training", "backward"))
    assert (row.roofline is not None) == (what in ("layer", "generator", "discriminator"))
    assert (set(row.compile_seconds) == {"nvlabs, compiled"}) == (what == "compiled")
    if row.errors:
        assert (
            row.errors["ours"] == pytest.approx(row.errors["nvlabs"], rel=1e-2, abs=1e-5) and row.errors["ours"] < 1e-2
        )


def test_a_compilation_is_stopped_at_its_limit(run, monkeypatch):
    assert networks_gpu._output_within([sys.executable, "-c", "import time; time.sleep(60)"], 0.1) is None
    found = run(50.0)
    found.peers = Peers({"nvlabs": found.args.out})
    case = Case("compiled", "max-autotune", 8, 1, "float16", "nvlabs")
    given = []
    for output, said in (
        (None, "stopped after 50 s"),
        ("Traceback\nValueError: no\n", "its process ended: ValueError: no"),
    ):
        monkeypatch.setattr(networks_gpu, "_output_within", lambda *args, o=output: given.append(args) or o)
        assert networks_gpu.compiled_row(found, case).refused == {"nvlabs, compiled": said}
    command, limit = given[0]
    assert limit == 50.0 and f"nvlabs={found.args.out}" in command
    assert Case(**json.loads(command[command.index("--one") + 1])) == case

    def child(command, seconds):
        folder = command[command.index("--out") + 1]
        written = dataclasses.asdict(GpuRow("compiled", case.name, {"ours": 1.0}))
        harness.write_json(networks_gpu.Path(folder) / "row.json", written)
        return ""

    monkeypatch.setattr(networks_gpu, "_output_within", child)
    assert networks_gpu.compiled_row(found, case).medians == {"ours": 1.0}


def test_events_time_calls_and_graphs_and_a_refused_graph_has_its_reason(monkeypatch):
    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        record = synchronize = lambda self: None
        elapsed_time = lambda self, end: 500.0  # noqa: E731

    monkeypatch.setattr(torch.cuda, "Event", Event)
    calls = []
    monkeypatch.setattr(posgan_fast, "graphed", lambda module, x, **more: lambda x, copy: calls.append((more, copy)))
    timed = gpu_timing.Cuda().network(lambda x, c: x, torch.ones(1), c=None)
    assert timed.eager() == timed.graph() == 0.5 and calls == [({"c": None}, False)] and timed.refused == ""

    def refusing(*args, **kwargs):
        raise RuntimeError("network: expected one that only queues work on the GPU")

    monkeypatch.setattr(posgan_fast, "graphed", refusing)
    timed = gpu_timing.Cuda().network(lambda x: x, torch.ones(1))
    assert timed.graph is None and timed.refused.startswith("RuntimeError: network: expected one")


def test_a_dry_run_writes_its_rows_its_rates_and_what_it_cut(tmp_path, capsys):
    chosen = ["--what", "layer", "generator", "--dtype", "bfloat16", "--batch", "1"]
    common = ["--dry-run", "--rounds", "2", "--out", str(tmp_path), "--name", "small"]
    assert networks.main([*chosen, *common]) == 0
    content = json.loads((tmp_path / "small.json").read_text())
    assert {row["what"] for row in content["rows"]} == {"layer", "generator"} and not content["cut"]
    assert all(row["roofline"] > 0 for row in content["rows"]) and content["rates"]["source"] == "measured here"
    printed = capsys.readouterr().out
    assert "of the roofline" in printed
    assert all(line.startswith(("dry run on the CPU, ", " ")) for line in printed.splitlines())
    assert networks.main([*chosen, *common, "--seconds", "0.1"]) == 0
    content = json.loads((tmp_path / "small.json").read_text())
    assert not content["rows"] and len(content["cut"]) == 4
    assert "cut, no time was left: layer plain" in capsys.readouterr().out
