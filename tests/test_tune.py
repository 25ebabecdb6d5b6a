"""Tuning plans its calls, tries the rows that could serve them, and writes the best ones as the sources have them."""

from __future__ import annotations

import functools
import itertools
import json
import os
import types
from collections import namedtuple

import pytest
import torch

from benchmarks import harness, tune, tune_calls, tune_rows
from posgan_fast._native import CudaTableRow

GPU = {"name": "a device", "capability": "9.0", "multiprocessors": 132}
TABLE = [
    CudaTableRow("fir4", 0, 0, (128, 32, 8, 32, 108 * 768)),
    CudaTableRow("fir4_channels_last", 0, 0, (128, 16, 4, 64, 108 * 512)),
    CudaTableRow("fir4", 90, 0, (128, 32, 8, 32, 132 * 768)),
    CudaTableRow("fir4", 90, 33, (128, 192, 16, 64, 132 * 768)),
    CudaTableRow("tiled", 0, 0, (256,)),
    CudaTableRow("elementwise", 0, 0, (64,)),
    CudaTableRow("elementwise", 90, 2**20, (256,)),
]


def test_every_table_has_calls_and_the_most_important_come_first():
    plan = list(tune_calls.plan())
    tables = {(name, call.op if name == "triton" else call.cuda_kernel[0]) for call, name in plan}
    ops = ("upfirdn2d", "bias_act", "prologue2d", "epilogue2d", "modulated_conv2d")
    kernels = ("fir4", "fir4_channels_last", "tiled", "elementwise")
    assert tables == {("triton", op) for op in ops} | {("cuda", kernel) for kernel in kernels}
    first = plan[0][0]
    assert (first.dtype, first.layout, first.resolution) == (torch.float16, torch.channels_last, 1024)
    assert [(call.dtype, call.layout) for call, _ in plan] == [
        kind for kind in tune_calls.KINDS for call, _ in plan if (call.dtype, call.layout) == kind
    ]
    assert len({(call.op, call.name, call.dtype, call.layout, name) for call, name in plan}) == len(plan)


def test_a_dry_run_makes_every_kind_of_call(tmp_path, capsys):
    assert tune.main(["--dry-run", str(tmp_path / "tune.json"), "1"]) == 0
    result = json.loads((tmp_path / "tune.json").read_text())
    smallest = [call for call, _ in tune_calls.plan() if call.resolution == tune_calls.RESOLUTIONS[-1]]
    assert len(result["calls"]) == len(smallest) and result["planned"] > 200
    assert f"measured none, wrote {tmp_path / 'tune.json'}" in capsys.readouterr().out


def test_tuning_needs_a_gpu_a_time_and_a_file(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert tune.main([str(tmp_path / "tune.json"), "1"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "no CUDA device" in line and "--dry-run" in line
    file, missing = str(tmp_path / "a.json"), str(tmp_path / "none" / "a.json")
    for wrong in ([file, "0"], [file, "nan"], [file, "inf"], [str(tmp_path), "1"], [missing, "1"]):
        with pytest.raises(SystemExit) as stopped:
            tune.main(["--dry-run", *wrong])
        assert stopped.value.code == 2 and ": expected a" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_time_that_is_up_drops_the_last_calls_and_a_failure_only_itself(monkeypatch, capsys):
    clock = itertools.count()
    monkeypatch.setattr(tune, "time", types.SimpleNamespace(perf_counter=lambda: next(clock)))

    def measure(call, name, device):
        if call.resolution == 3:
            raise RuntimeError("an error")
        return None if call.resolution == 2 else {"resolution": call.resolution}

    monkeypatch.setattr(tune, "measure", measure)
    calls = [types.SimpleNamespace(resolution=i, op="op", name="x", dtype="d", layout="l") for i in range(9)]
    records, failed, cut = tune.measure_all([(call, "cuda") for call in calls], None, 5)
    assert [record["resolution"] for record in records] == [0, 1, 4] and cut == 4
    assert failed == ["cuda op x, d, l: RuntimeError: an error"] and failed[0] in capsys.readouterr().out


def test_the_rows_of_a_triton_table():
    Row = namedtuple("Row", "arch kind limit num_warps measured")
    table = (Row(None, "a", 8, 4, ""), Row(None, "a", 2**63, 4, ""), Row(None, "b", 8, 4, ""))
    module = types.SimpleNamespace(TABLE=table)

    @functools.cache  # the kernels' own function is cached too
    def select(kind, size):
        serving = [row for row in module.TABLE if row.kind == kind and size <= row.limit]
        return serving[0]  # LookupError if there is none, as the kernels' own

    module.select = select
    today, rows = tune_rows.triton_candidates(module, lambda: module.select("a", 5))
    assert today == table[0]
    assert rows == [table[i]._replace(num_warps=w) for i in (0, 1) for w in tune_rows.WARPS]
    assert tune_rows.triton_candidates(module, lambda: None) == (None, [])
    assert tune_rows.triton_forced(module, rows[3], lambda x: module.select(x, 5))("a") is rows[3]

    def record(seconds):
        known = {str(row): row._asdict() for row in rows}
        timed = dict(zip(known, seconds, strict=True))
        return {"backend": "triton", "table": "op", "today": str(today), "rows": known, "seconds": timed}

    # the rows: the current one with 2, 4 and 8 warps, then the other
    (best,) = tune.best_rows([record([2, 2, 2, 1, 2, 8]), record([2, 2, 2, 1.5, 2, 0.1])], GPU, "today")
    assert best["row"] == {"arch": 90, "kind": "a", "limit": 8, "num_warps": 8, "measured": "a device, today"}
    assert best["text"] == "KernelConfig(90, 'a', 8, 8, 'a device, today'),"
    assert best["calls"] == 2 and best["faster"] == pytest.approx((2 / 8 * 2 / 0.1) ** 0.5)


@pytest.mark.parametrize("op", ["upfirdn2d", "bias_act", "prologue2d", "epilogue2d", "modulated_conv2d"])
def test_each_triton_table_has_rows_to_try(op):
    """Select as the launcher does for a call of the plan, with what it passes."""
    module = pytest.importorskip(f"posgan_fast.kernels.{op}")
    given = (90, 2, 3, 32, 32, 2**23) if op == "modulated_conv2d" else (90, 2, 64)
    if op == "upfirdn2d":
        key = dict.fromkeys(module.KernelKey._fields, 1) | dict(separable=False, fw=4, fh=4, vec=8)
        given = (90, module.KernelKey(**key), 2, 64)
    today, rows = tune_rows.triton_candidates(module, lambda: module.select(*given))
    assert today in module.TABLE and len(rows) >= len(tune_rows.WARPS)
    assert any(row._replace(num_warps=today.num_warps) == today for row in rows)
    assert tune_rows.bounds_of(today)
    if op == "modulated_conv2d":  # no row serves so many channels
        assert tune_rows.triton_candidates(module, lambda: module.select(90, 2, 3, 512, 512, 64)) == (None, [])


def test_the_rows_of_a_cuda_table():
    assert tune_rows.cuda_candidates(TABLE, "fir4", 90, 64)[0] == TABLE[3]
    assert tune_rows.cuda_candidates(TABLE, "fir4", 90, 32)[0] == TABLE[2]
    assert tune_rows.cuda_candidates(TABLE, "fir4", 80, 64)[0] == TABLE[0]
    assert tune_rows.cuda_candidates([], "fir4", 90, 64) == (None, [])
    for size, numel in ((0, 64), (2**20, 256)):
        today, rows = tune_rows.cuda_candidates(TABLE, "elementwise", 90, size)
        assert today.numbers == (numel,) and [row.numbers for row in rows] == [(64,), (128,), (192,), (256,)]
    for kernel in ("fir4", "fir4_channels_last"):
        today, rows = tune_rows.cuda_candidates(TABLE, kernel, 90, 1024)
        assert today in rows and len({row.numbers for row in rows}) == len(rows) < 24
        for threads, inner, low, high, resident in (row.numbers for row in rows):
            assert threads in (64, 128, 256) and 1 <= low <= high and resident >= 256
            assert inner <= threads or kernel == "fir4"


def test_a_cuda_row_stands_in_the_variable_while_it_is_measured(monkeypatch):
    read = []
    monkeypatch.setattr(tune_rows._native, "reread_cuda_table", lambda: read.append(os.environ.get(tune_rows.VARIABLE)))
    monkeypatch.setattr(tune_rows._native, "cuda_table", lambda: TABLE)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.delenv(tune_rows.VARIABLE, raising=False)
    call = next(call for call, name in tune_calls.plan() if call.filtered and call.shape[1] == 32)
    table, today, rows, calls = tune._cuda(call, lambda x: os.environ[tune_rows.VARIABLE], torch.zeros(1))
    assert table == "fir4_channels_last" and list(rows) == list(calls) and today == str(TABLE[1])
    for _ in range(2):
        assert calls[today](None) == "fir4_channels_last=128,16,4,64,55296"
    tune_rows.set_cuda_table(None)
    assert read == ["fir4_channels_last=128,16,4,64,55296", None]  # where it changed only


def test_the_best_cuda_row_is_written_as_the_table_has_it():
    today, rows = tune_rows.cuda_candidates(TABLE, "fir4", 90, 1024)
    known = {str(row): row._asdict() for row in [today, *rows]}
    wanted = today._replace(numbers=(256, 64, 16, 64, 132 * 768))
    seconds = {name: 1.0 if name == str(wanted) else 2.0 for name in known}
    record = {"backend": "cuda", "table": "fir4", "today": str(today), "rows": known, "seconds": seconds}
    (best,) = tune.best_rows([record], GPU, "today")
    assert best["faster"] == 2 and best["row"]["numbers"] == wanted.numbers
    assert best["text"] == '{90, Upfirdn2dKernel::kFir4, 33, {256, 64, 16, 64, 132 * 768}, "a device, today"},'
    assert tune_rows.cuda_text(TABLE[4], 90, 132, "n") == '{90, Upfirdn2dKernel::kTiled, 0, {256, 0, 0, 0, 0}, "n"},'
    assert tune_rows.cuda_text(TABLE[6], 90, 132, "n") == '{90, 1048576, 256, "n"},'


def test_a_call_without_a_row_to_try_is_not_measured(monkeypatch):
    monkeypatch.setattr(harness, "measure", lambda *args: pytest.fail("measured"))
    call, name = next(iter(tune_calls.plan(1, (32,))))
    assert tune.measure(call, name, torch.device("cpu")) is None  # no CUDA tensor
