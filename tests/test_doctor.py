"""``posgan-fast doctor`` and ``posgan-fast verify``: the report, its advice, and the exit status."""

from __future__ import annotations

import json
import math
import sys

import pytest
import torch
from native_ops import spoil

from posgan_fast import _native, doctor
from posgan_fast import functional as PF
from posgan_fast.backend import BACKENDS
from posgan_fast.integrations import devices
from posgan_fast.integrations.changes import Changes


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    monkeypatch.delenv("POSGAN_FAST_BACKEND", raising=False)
    monkeypatch.delenv("POSGAN_FAST_ISA", raising=False)
    monkeypatch.delenv("POSGAN_FAST_CUDA_TABLE", raising=False)


@pytest.fixture
def libraries(monkeypatch, tmp_path):
    """Sets the folder of the native libraries to an empty one with this record of the build."""

    def setting(record: dict):
        (tmp_path / "build.json").write_text(json.dumps(record))
        monkeypatch.setattr(_native, "LIB_DIR", tmp_path)
        _native.load.cache_clear()

    yield setting
    _native.load.cache_clear()


@pytest.fixture
def cuda_on_the_cpu(monkeypatch):
    """A device "cuda" that is the CPU."""
    changes = Changes()
    devices.send_to_cpu(changes)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    yield
    monkeypatch.undo()
    changes.undo()


def report(capsys, status: int = 0) -> str:
    assert doctor.main() == status
    return capsys.readouterr().out


def line(text: str, start: str) -> str:
    (found,) = (one for one in text.splitlines() if one.startswith(start))
    return found.removeprefix(start)


def test_a_whole_installation(capsys):
    text = report(capsys)
    used = f"instruction set {_native.instruction_set()}, built against torch {_native.build_record()['cpu']['torch']}"
    assert line(text, "native library for cpu: loaded, ").startswith(used)
    assert line(text, "native library for cuda: missing: ")
    assert line(text, "prepacked weights: in the layout of ") == "oneDNN"
    for op in PF.OPS:
        assert f"\n  {op}" in text and all(backend in text for backend in BACKENDS)
    assert "POSGAN_FAST_BACKEND" not in text and "on cuda tensors" not in text
    assert text.endswith("\nnothing to mend\n")  # the missing CUDA library is none of a machine without a GPU


def test_a_replaced_launch_table_is_told(monkeypatch, capsys):
    assert "POSGAN_FAST_CUDA_TABLE" not in report(capsys)
    monkeypatch.setenv("POSGAN_FAST_CUDA_TABLE", "fir4=nonsense")
    told = line(report(capsys), "POSGAN_FAST_CUDA_TABLE=fir4=nonsense is set, ")
    assert told == "which the CUDA library reads at its first launch"


def test_a_forced_backend_is_told(monkeypatch, capsys):
    monkeypatch.setenv("POSGAN_FAST_BACKEND", "reference")
    text = report(capsys)
    advice = "is set; to let every op choose: unset POSGAN_FAST_BACKEND"
    assert line(text, "POSGAN_FAST_BACKEND=reference ") == advice
    assert "nothing to mend" in text


def test_a_forced_backend_that_is_none(monkeypatch, capsys):
    monkeypatch.setenv("POSGAN_FAST_BACKEND", "fastest")
    text = report(capsys, 1)
    assert line(text, "which is no backend; there are ") == "cpu, cuda, reference, triton"
    assert "unset POSGAN_FAST_BACKEND" in text and "native library" not in text


@pytest.mark.parametrize("version, told", [("13.0", ""), (None, ": this torch is a build without CUDA")])
def test_why_there_is_no_cuda(version, told, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", version)
    assert line(report(capsys), "CUDA: ") == f"not available{told}"


def test_a_device_of_cuda_is_described_and_its_library_missed(cuda_on_the_cpu, libraries, monkeypatch, capsys):
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    libraries({"cuda": {"reason": "not built: no nvcc", "remedy": "install nvcc"}})
    text = report(capsys)
    assert line(text, "CUDA: ") == "13.0, cpu"
    on_cpu, on_cuda = text.split("\non cpu tensors\n")[1].split("\non cuda tensors\n")
    assert all(f"  {op}" in part for op in PF.OPS for part in (on_cpu, on_cuda))
    assert "to mend: the cuda library is missing (not built: no nvcc):\n    install nvcc\n" in text
    assert "to mend: the cpu library is missing (libposgan_fast_cpu.so is not in this installation):\n    pip" in text
    assert "nothing to mend" not in text


def test_no_triton(monkeypatch, capsys):
    monkeypatch.setattr(_native, "has_triton", lambda: False)
    assert line(report(capsys), "triton: ") == "not installed"


def test_a_triton_that_does_not_import(monkeypatch, capsys):
    monkeypatch.setattr(_native, "has_triton", lambda: True)
    monkeypatch.setitem(sys.modules, "triton", None)
    assert line(report(capsys), "triton: does not import: ").startswith("import of triton halted")


def test_a_layout_of_prepacked_weights_that_torch_refuses(monkeypatch, capsys):
    monkeypatch.setattr(doctor.onednn, "usable", lambda *args, **kwargs: False)
    told = line(report(capsys), "prepacked weights: in the layout of ")
    assert told == "torch, whose operators for oneDNN's refuse"


def test_a_build_that_failed_is_told_with_its_remedy(libraries, capsys):
    libraries({"cpu": {"reason": "not built: no C++ compiler", "remedy": "install g++"}})
    text = report(capsys)
    assert line(text, "native library for cpu: ") == "missing: not built: no C++ compiler"
    assert text.endswith("to mend: the cpu library is missing (not built: no C++ compiler):\n    install g++\n")


def rows(text: str) -> dict[tuple[str, ...], str]:
    """The verdicts of ``verify``, by device, op, backend and dtype."""
    found = (one.split() for one in text.splitlines() if "relative L2" in one)
    return {tuple(row[:4]): row[-1] for row in found}


def test_verify_compares_every_backend_that_runs_in_every_dtype(capsys):
    assert doctor.verify() == 0
    text = capsys.readouterr().out
    dtypes = ("float64", "float32", "bfloat16", "float16")
    expected = {("cpu", op, name, dtype) for op in PF.OPS for name in ("cpu", "reference") for dtype in dtypes}
    assert rows(text) == dict.fromkeys(expected, "equal")
    assert text.count("cannot run: ") == 2 * len(PF.OPS) and text.endswith("\nverify: all equal\n")


def test_verify_reaches_every_device(cuda_on_the_cpu, monkeypatch, capsys):
    monkeypatch.setattr(PF, "OPS", {name: PF.OPS[name] for name in ("cartesian_grid2d", "sinusoidal_encoding2d")})
    assert doctor.verify() == 0
    assert {device for device, *_ in rows(capsys.readouterr().out)} == {"cpu", "cuda"}


@pytest.mark.parametrize("wrong", [float("nan"), 7.0])
def test_verify_finds_one_wrong_element(wrong, monkeypatch, capsys):
    def spoilt(run, out):
        run()
        if out.dtype == torch.bfloat16:
            out[0, 0, 0, 0] = wrong

    spoil(monkeypatch, "bias_act", spoilt)
    monkeypatch.setattr(PF, "OPS", {name: PF.OPS[name] for name in ("upfirdn2d", "bias_act", "bias_act_")})
    assert doctor.verify() == 1
    text = capsys.readouterr().out
    differs = {row[1:] for row, verdict in rows(text).items() if verdict == "DIFFERS"}
    assert differs == {("bias_act", "cpu", "bfloat16"), ("bias_act_", "cpu", "bfloat16")}
    assert text.endswith("\nverify: 2 mismatches\n")


@pytest.mark.parametrize("errors", [[0.0, math.nan], [math.nan, 0.0], [0.0, math.nan, 1e-9]])
def test_verify_takes_no_nan_for_a_small_error(errors, monkeypatch):
    remaining = iter(errors)
    monkeypatch.setattr(doctor, "_calls", lambda name, device: errors)
    monkeypatch.setattr(doctor, "_error_of", lambda name, call, backend, dtype: next(remaining))
    assert math.isnan(doctor._error("bias_act", "cpu", "cpu", torch.float32))
