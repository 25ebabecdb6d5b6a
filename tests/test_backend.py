"""Choice of backend: order, reasons, one warning, and what happens without the native library."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import types

import pytest
import torch

import posgan_fast
from posgan_fast import BackendError, _native, backend, explain, use_backend
from posgan_fast import functional as PF

X = torch.randn(1, 2, 4, 4)


def test_order_of_choice(monkeypatch):
    assert explain("bias_act", X).backend == "cpu"
    monkeypatch.setenv("POSGAN_FAST_BACKEND", "reference")
    assert explain("bias_act", X).backend == "reference"
    with use_backend("cpu"):
        assert explain("bias_act", X).backend == "cpu"
        assert explain("bias_act", X, backend="reference").backend == "reference"
        with use_backend(None):
            assert explain("bias_act", X).backend == "reference"
    monkeypatch.setenv("POSGAN_FAST_BACKEND", "fastest")
    with pytest.raises(ValueError, match="^POSGAN_FAST_BACKEND:"):
        PF.bias_act(X, act="relu")


@pytest.mark.parametrize("op", ["upfirdn2d", "filter2d", "upsample2d", "downsample2d"])
def test_explain_answers_for_every_backend(op):
    answer = explain(op, X, torch.ones(4))
    reasons = dict(answer.rows)
    assert set(reasons) == set(backend.BACKENDS)
    assert reasons["cpu"].startswith("chosen")
    assert reasons["cuda"] == "cannot run: x is on cpu, not on cuda"
    assert "TRITON_INTERPRET" in reasons["triton"]
    assert reasons["reference"] == "can run, but 'cpu' comes first"
    assert all(name in str(answer) for name in backend.BACKENDS)


def test_a_choice_that_cannot_run_raises_its_reason():
    with pytest.raises(BackendError, match=r"backend 'cuda' \(from the backend argument\) cannot run: x is on cpu"):
        PF.bias_act(X, act="relu", backend="cuda")
    with use_backend("cuda"), pytest.raises(BackendError, match=r"from use_backend\(\)"):
        PF.upfirdn2d(X, torch.ones(4), padding=2)


def test_a_missing_library_is_named_once_with_its_remedy(monkeypatch, recwarn):
    monkeypatch.setattr(_native, "load", lambda library: _native.Status(False, "not built: no compiler", "install g++"))
    monkeypatch.setattr(backend, "_warned", set())
    for _ in range(2):
        assert torch.equal(PF.bias_act(X, act="relu", gain=1), X.relu())
    messages = [str(w.message) for w in recwarn]
    assert messages == [
        "posgan_fast.bias_act: the cpu backend is skipped: not built: no compiler (remedy: install g++)"
    ]
    assert dict(explain("bias_act", X).rows)["cpu"] == "cannot run: not built: no compiler (remedy: install g++)"
    with pytest.raises(BackendError, match="install g"):
        PF.bias_act(X, act="relu", backend="cpu")


@pytest.fixture
def record(monkeypatch):
    """Sets what the build of the CUDA library recorded, and what the device and its driver are."""

    def setting(entry, capability=(9, 0), driver=(13, 0)):
        monkeypatch.setattr(_native, "build_record", lambda: {"cuda": entry})
        monkeypatch.setattr(_native, "cuda_driver", lambda: driver)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        return backend._driver_too_old.__wrapped__(), backend._not_built_for.__wrapped__(0)

    return setting


@pytest.mark.parametrize(
    "built, ptx, capability, refused",
    [
        (["80", "90", "100"], ["100"], (7, 5), True),
        (["80", "90", "100"], ["100"], (8, 6), False),
        (["80", "90", "100"], ["100"], (9, 0), False),
        (["80", "90", "100"], ["100"], (12, 0), False),
        (["86", "100"], ["100"], (8, 0), True),
        (["80", "100"], ["100"], (9, 0), True),
        (["100", "80", "90"], ["100"], (8, 9), False),  # in any order
        (["100", "80"], None, (12, 0), False),  # older builds kept the PTX of the last one and did not say so
        (["120", "80"], None, (11, 0), False),
        (["100", "90a"], None, (12, 0), True),
        (["90a"], [], (9, 0), False),
        (["90a"], [], (10, 0), True),
        (["80", "90a"], ["80"], (10, 0), False),
        (["90a"], ["90a"], (10, 0), True),
        (["100f"], [], (10, 3), False),
        (["100f"], ["100f"], (12, 0), True),
        (["103f"], [], (10, 0), True),
        (["100a"], [], (10, 3), True),
        (["121"], ["121"], (12, 0), True),
        ([], None, (7, 5), False),
        (None, None, (7, 5), False),
        ("90", None, (7, 5), False),
        ([90], [90], (9, 0), False),
        (["native", None], None, (9, 0), False),
    ],
)
def test_a_device_that_the_library_was_not_built_for(built, ptx, capability, refused, record):
    _, unsupported = record({"architectures": built, **({} if ptx is None else {"ptx": ptx})}, capability)
    assert (unsupported is not None) == refused
    if refused:
        assert f"the device is sm_{capability[0]}{capability[1]}" in str(unsupported)
        assert f"POSGAN_FAST_CUDA_ARCHS={capability[0]}{capability[1]}" in unsupported.remedy


def test_a_driver_older_than_the_runtime_in_the_library(record):
    """Minor versions of one major serve each other; a torch of CUDA 12 runs where a library of CUDA 13 does not."""
    assert record({"runtime": "13.0"}, driver=(13, 0))[0] is None
    assert record({"runtime": "13.1"}, driver=(13, 0))[0] is None
    assert record({"runtime": "12.8"}, driver=(13, 0))[0] is None
    assert record({"runtime": "13.0"}, driver=None)[0] is None
    for unknown in ({}, {"runtime": ""}, {"runtime": None}, {"runtime": 13}):
        assert record(unknown, driver=(12, 4))[0] is None
    unsupported, _ = record({"runtime": "13.0"}, driver=(12, 4))
    assert unsupported.reason == "the cuda library is built with CUDA 13.0, the driver serves CUDA 12.4 at most"
    assert unsupported.remedy.startswith("install an NVIDIA driver R580 or later, or with a CUDA 12 toolkit: ")
    assert record({"runtime": "12.8"}, driver=(11, 8))[0].remedy.startswith("install an NVIDIA driver R525 or later")
    assert record({"runtime": "15.0"}, driver=(13, 0))[0].remedy.startswith("install a later NVIDIA driver")


def test_ptx_needs_a_driver_of_its_version(record):
    """Machine code of a later minor version loads, PTX of it does not."""
    built = {"runtime": "13.1", "architectures": ["80", "90"], "ptx": ["90"]}
    assert record(built, (9, 0), driver=(13, 0)) == (None, None)
    assert record(built, (10, 0), driver=(13, 1)) == (None, None)
    assert record(built, (10, 0), driver=None) == (None, None)
    unsupported = record(built, (10, 0), driver=(13, 0))[1]
    assert "sm_100, by PTX of CUDA 13.1 alone, and the driver takes that of CUDA 13.0 at most" in unsupported.reason
    assert unsupported.remedy.startswith("POSGAN_FAST_CUDA_ARCHS=100 ")


def test_a_refused_device_is_refused_by_the_op(record, monkeypatch):
    record({"runtime": "13.0", "architectures": ["90"], "ptx": ["90"]}, driver=(12, 4))
    monkeypatch.setattr(_native, "load", lambda library: _native.Status(True))
    for cached in (backend._driver_too_old, backend._not_built_for):
        cached.cache_clear()
    x = types.SimpleNamespace(device=torch.device("cuda", 0))
    assert "the driver serves CUDA 12.4" in str(backend.cuda_can_run(x))
    for cached in (backend._driver_too_old, backend._not_built_for):
        cached.cache_clear()


def test_rows_are_complete():
    for _, impls in PF.OPS.values():
        assert [i.backend for i in impls] == list(backend.BACKENDS)
    assert set(PF.OPS) == set(PF.__all__) - {"explain", "setup_filter", "ring_from_map", "map_from_ring"}


@pytest.mark.parametrize("instruction_set", ["baseline", "avx2"])
def test_every_instruction_set_computes_the_same(instruction_set):
    """The library takes the widest set the processor has; a test must reach the others as well."""
    code = """
        import torch, posgan_fast
        from posgan_fast import functional as PF, _native
        g = torch.manual_seed(0)
        torch.use_deterministic_algorithms(True, warn_only=True)  # for the NaN in fresh memory
        assert _native.load("cpu").loaded
        assert _native.instruction_set() == {name!r}, _native.instruction_set()
        bounds = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 1e-3, torch.float64: 1e-14}
        for dtype, bound in bounds.items():
            x = torch.randn(2, 5, 9, 37, generator=g).to(dtype)
            f = torch.randn(4, generator=g)
            for mode in (dict(up=2), dict(down=2), dict(up=3, down=2)):
                for t in (x, x.contiguous(memory_format=torch.channels_last)):
                    y = PF.upfirdn2d(t, f, padding=3, backend="cpu", **mode)
                    z = PF.upfirdn2d(t.double(), f.double(), padding=3, backend="reference", **mode)
                    assert (y.double() - z).norm() <= bound * z.norm()
            for act in ("lrelu", "tanh", "elu", "softplus", "swish"):
                y, z = PF.bias_act(x, act=act, backend="cpu"), PF.bias_act(x.double(), act=act, backend="reference")
                assert (y.double() - z).norm() <= bound * z.norm(), act
        print("equal")
    """
    record = _native.build_record()["cpu"]
    if instruction_set not in record["instruction_sets"]:
        pytest.skip(f"{instruction_set} is not built for this processor family")
    environment = os.environ | {"POSGAN_FAST_ISA": instruction_set}
    code = textwrap.dedent(code).replace("{name!r}", repr(instruction_set))
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert result.stdout.strip() == "equal", result.stderr


def test_import_is_light():
    """Importing compiles nothing, probes no device, patches nothing and pulls in no heavy module."""
    code = """
        import sys, torch, time
        before = set(sys.modules), list(sys.meta_path)
        start = time.perf_counter()
        import posgan_fast
        assert time.perf_counter() - start < 1.0
        added = set(sys.modules) - before[0]
        heavy = {"triton", "torch.utils.cpp_extension", "torch._inductor", "setuptools", "packaging"}
        assert not heavy & added, heavy & added
        assert sys.meta_path == before[1]
        print(posgan_fast.__version__)
    """
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert result.stdout.strip() == posgan_fast.__version__, result.stderr


def test_the_remedy_mends_the_package_that_was_imported(monkeypatch, tmp_path):
    monkeypatch.setattr(_native, "__file__", str(tmp_path / "posgan_fast" / "_native.py"))
    assert "--force-reinstall" in _native.rebuild()
    (tmp_path / "setup.py").touch()  # a checkout, which hides what is installed elsewhere
    assert " -e ." in _native.rebuild()
