"""Whatever lies in the folder of the native libraries: ops answer, ``doctor`` says what is wrong and what mends it."""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from posgan_fast import _native, doctor

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the libraries are built on Linux")
LIBRARY = _native.LIB_DIR / "libposgan_fast_cpu.so"


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """A folder of libraries of one's own, and nothing remembered of the true one."""
    monkeypatch.setattr(_native, "LIB_DIR", tmp_path)
    _native.load.cache_clear()
    yield tmp_path
    _native.load.cache_clear()


def compile_library(target: Path, source: str = "") -> None:
    shared = ["g++", "-shared", "-fPIC", "-x", "c++", "-", "-o", str(target)]
    subprocess.run(shared, input=source, text=True, check=True)


def test_broken_folders(tmp_path):
    """In a process that never saw the true library: its native ops would stay registered."""
    whole = LIBRARY.read_bytes()
    files = {
        "empty": b"",
        "garbage": b"not a library",
        "an ELF header alone": whole[:64],
        "half a library": whole[: len(whole) // 2],
        "all but the last byte": whole[:-1],
    }
    for name, content in files.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / LIBRARY.name).write_bytes(content)
    (tmp_path / "a folder" / LIBRARY.name).mkdir(parents=True)
    (tmp_path / "a broken link").mkdir()
    (tmp_path / "a broken link" / LIBRARY.name).symlink_to(tmp_path / "nowhere")
    (tmp_path / "no ops").mkdir()
    compile_library(tmp_path / "no ops" / LIBRARY.name)
    (tmp_path / "undefined symbols").mkdir()
    source = "extern int nowhere(); int here() { return nowhere(); } int early = here();"
    compile_library(tmp_path / "undefined symbols" / LIBRARY.name, source)
    (tmp_path / "other schemas").mkdir()
    (tmp_path / "other schemas" / LIBRARY.name).symlink_to(LIBRARY)
    (tmp_path / "other schemas" / "build.json").write_text('{"cpu": {"built": true, "schemas": "of old"}}')
    code = """
        import contextlib, io, json, pathlib, sys, warnings
        import torch
        from posgan_fast import _native, doctor, nn, functional as PF
        warnings.simplefilter("ignore")
        found, x = {}, torch.ones(1, 4, 4, 4)
        root = pathlib.Path(sys.argv[1])
        for folder in [*sorted(root.iterdir()), root / "nowhere"]:
            _native.LIB_DIR = folder
            _native.load.cache_clear()
            status = _native.load("cpu")
            with contextlib.redirect_stdout(io.StringIO()) as said:
                assert doctor.main() == 0
            assert torch.equal(PF.bias_act(x, act="relu", gain=1.0), x)
            assert not status.loaded and status.remedy and status.reason in said.getvalue(), folder
            assert "to mend: the cpu library is missing" in said.getvalue()
            found[folder.name] = status.reason
        layer = nn.prepack(nn.StyleConv(4, 4, 8, resolution=4)).eval()
        with torch.no_grad():
            layer(x, torch.ones(1, 8))
        _native.LIB_DIR = root / "no ops"
        _native.load.cache_clear()
        library = torch.library.Library("posgan_fast_native", "IMPL")
        for name in ("upfirdn2d", "bias_act"):
            library.impl(name, lambda *args: None, "CPU")
        found["two ops"] = _native.load("cpu").reason
        print(json.dumps(found))
    """
    command = [sys.executable, "-c", textwrap.dedent(code), str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    reasons = json.loads(result.stdout)
    for name in ("an ELF header alone", "half a library", "all but the last byte"):
        assert reasons.pop(name) == f"{LIBRARY.name} is not a whole library"
    for name in ("empty", "garbage", "a folder", "undefined symbols"):
        assert reasons.pop(name).startswith(f"{LIBRARY.name} does not load: ")
    for name in ("a broken link", "nowhere"):
        assert reasons.pop(name) == f"{LIBRARY.name} is not in this installation"
    ops = "upfirdn2d, bias_act, modulated_weight, prologue2d, epilogue2d, epilogue2d_backward, winograd3x3"
    ops += ", winograd3x3_gradient, winograd3x3_weight"
    assert reasons == {
        "no ops": f"{LIBRARY.name} lacks {ops}: it is of another version",
        "two ops": f"{LIBRARY.name} lacks {ops.partition('bias_act, ')[2]}: it is of another version",
        "other schemas": f"{LIBRARY.name} was built from another version of posgan_fast",
    }


@pytest.mark.parametrize(
    "record",
    [
        b"",
        b"\xff\xfe",
        b"[1, 2]",
        b"null",
        b'"cpu"',
        b"[" * 100_000,
        b'{"cpu": 3, "cuda": null}',
        b'{"cpu": {"torch": 1}}',
    ],
    ids=range(8),
)
def test_a_record_that_cannot_be_read(record, fresh, capsys):
    """The library itself is whole, and serves."""
    (fresh / LIBRARY.name).symlink_to(LIBRARY)
    (fresh / "build.json").write_bytes(record)
    assert _native.load("cpu").loaded
    assert not _native.load("cuda").loaded
    assert doctor.main() == 0
    assert "native library for cpu: loaded" in capsys.readouterr().out


def test_a_record_that_is_a_folder(fresh):
    (fresh / "build.json").mkdir()
    assert _native.build_record() == {}


def test_a_library_that_cannot_name_its_instruction_set(fresh, capsys):
    compile_library(fresh / LIBRARY.name)  # the native ops are those of the true library, loaded before
    assert _native.instruction_set() == "unknown"
    assert doctor.main() == 0
    assert "instruction set unknown" in capsys.readouterr().out


def test_a_wrong_instruction_set_is_told(monkeypatch, capsys):
    monkeypatch.setenv("POSGAN_FAST_ISA", "mmx")
    with pytest.raises(ValueError, match="^POSGAN_FAST_ISA: expected one of avx512, avx2, baseline, got 'mmx'"):
        _native.instruction_set()
    assert doctor.main() == 1
    assert "unset POSGAN_FAST_ISA" in capsys.readouterr().out


def test_the_library_names_no_folder_of_the_machine_that_built_it():
    text = LIBRARY.read_bytes()
    assert b"library.cpp" in text  # the place of a failed check
    for folder in (Path(__file__).parents[1], Path(torch.__file__).parents[1], Path.home()):
        assert str(folder).encode() not in text, folder


@pytest.mark.parametrize(
    "source, version",
    [
        ('extern "C" int cuDriverGetVersion(int* v) { *v = 12040; return 0; }', (12, 4)),
        ('extern "C" int cuDriverGetVersion(int*) { return 100; }', None),  # a driver without a device
        ("int other;", None),
        (None, None),
    ],
    ids=["a driver", "one that fails", "another library", "no driver"],
)
def test_the_driver_tells_what_it_serves(source, version, monkeypatch, tmp_path):
    driver = tmp_path / "libcuda.so.1"
    if source is not None:
        compile_library(driver, source)
    monkeypatch.setattr(_native, "_DRIVER", str(driver))
    assert _native.cuda_driver() == version


@pytest.mark.parametrize(
    "runtime, version",
    [("13.0", (13, 0)), ("12.10", (12, 10)), ("", None), (13, None), ("13", None), ("13.0.1", None), (None, None)],
)
def test_the_build_tells_the_runtime_in_the_cuda_library(runtime, version, fresh):
    (fresh / "build.json").write_text(json.dumps({"cuda": {"runtime": runtime}}))
    assert _native.cuda_runtime() == version


WHOLE = LIBRARY.read_bytes() if LIBRARY.exists() else b""


@pytest.mark.parametrize(
    "content, record, reason",
    [
        (None, {}, "{} is not in this installation"),
        (None, {"reason": "not built: no nvcc"}, "not built: no nvcc"),
        (WHOLE, {"schemas": "of old"}, "{} was built from another version of posgan_fast"),
        (WHOLE[:-1], {}, "{} is not a whole library"),
        (b"not a library", {}, "{} does not load: "),
        (b"", {}, "{} does not load: "),
        # The CPU library has its ops for CPU tensors only.
        (
            WHOLE,
            {},
            "{} lacks upfirdn2d, bias_act, modulated_factors, modulated_factors_backward, prologue2d, epilogue2d,"
            " epilogue2d_backward: ",
        ),
    ],
    ids=["absent", "not built", "other schemas", "truncated", "garbage", "empty", "without its ops"],
)
def test_why_a_library_does_not_serve(content, record, reason, fresh):
    path = fresh / "libposgan_fast_cuda.so"
    if content is not None:
        path.write_bytes(content)
    (fresh / "build.json").write_text(json.dumps({"cuda": record}))
    status = _native.load("cuda")
    assert not status.loaded and status.reason.startswith(reason.format(path.name))
    assert status.remedy == _native.rebuild() and _native.load("cuda") is status


def test_a_remedy_of_the_build_is_handed_on(fresh):
    (fresh / "build.json").write_text('{"cpu": {"reason": "not built", "remedy": "install g++"}}')
    assert _native.load("cpu") == _native.Status(False, "not built", "install g++")
    assert _native.instruction_set() == "unknown"


def test_launch_tables_without_a_cuda_library(fresh):
    assert _native.cuda_table() == []
    _native.reread_cuda_table()
    rows = _native.parse_cuda_table("fir4 90 33 128,192,16,64,101376\nelementwise 0 0 64\n")
    assert rows == [("fir4", 90, 33, (128, 192, 16, 64, 101376)), ("elementwise", 0, 0, (64,))]


def test_a_library_that_is_a_folder(fresh):
    (fresh / LIBRARY.name).mkdir()
    assert _native.load("cpu").reason.startswith(f"{LIBRARY.name} does not load: ")


def test_a_library_that_vanishes_after_it_was_loaded(fresh):
    (fresh / LIBRARY.name).symlink_to(LIBRARY)
    assert _native.load("cpu").loaded
    (fresh / LIBRARY.name).unlink()
    assert _native.instruction_set() == "unknown"


@pytest.mark.parametrize("installed", [True, False])
def test_triton_is_found_without_importing_it(installed, monkeypatch):
    found: list[str] = []
    monkeypatch.setattr(_native.importlib.util, "find_spec", lambda name: found.append(name) or (installed or None))
    assert _native.has_triton.__wrapped__() is installed and found == ["triton"]
