"""Choice of backend: order, reasons, one warning, and what happens without the native library."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

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


def test_a_library_that_does_not_load_says_so(monkeypatch, tmp_path):
    (tmp_path / "libposgan_fast_cpu.so").write_bytes(b"not a library")
    monkeypatch.setattr(_native, "LIB_DIR", tmp_path)
    status = _native.load.__wrapped__("cpu")
    assert not status.loaded and "does not load" in status.reason and status.remedy


@pytest.mark.parametrize(
    "built, capability, refused",
    [
        (["80", "90", "100"], (7, 5), True),
        (["80", "90", "100"], (8, 6), False),
        (["80", "90", "100"], (9, 0), False),
        (["80", "90", "100"], (12, 0), False),
        (["86", "100"], (8, 0), True),
        (["80", "100"], (9, 0), True),
        ([], (7, 5), False),
    ],
)
def test_a_device_that_the_library_was_not_built_for(built, capability, refused, monkeypatch):
    monkeypatch.setattr(backend._native, "build_record", lambda: {"cuda": {"architectures": built}})
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    refusal = backend._not_built_for.__wrapped__(0)
    assert (refusal is not None) == refused
    if refused:
        assert f"the device is sm_{capability[0]}{capability[1]}" in str(refusal)
        assert f"POSGAN_FAST_CUDA_ARCHS={capability[0]}{capability[1]}" in refusal.remedy


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
        heavy = {"triton", "torch.utils.cpp_extension", "torch._inductor", "setuptools"}
        assert not heavy & added, heavy & added
        assert sys.meta_path == before[1]
        print(posgan_fast.__version__)
    """
    result = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True)
    assert result.stdout.strip() == posgan_fast.__version__, result.stderr


def test_tuning_the_allocator():
    code = "import posgan_fast, torch; print(posgan_fast.tune_allocator()); torch.zeros(1 << 24).clone()"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert result.stdout.strip() == str(sys.platform.startswith("linux")), result.stderr


def test_the_remedy_mends_the_package_that_was_imported(monkeypatch, tmp_path):
    monkeypatch.setattr(_native, "__file__", str(tmp_path / "posgan_fast" / "_native.py"))
    assert "--force-reinstall" in _native.rebuild()
    (tmp_path / "setup.py").touch()  # a checkout, which hides what is installed elsewhere
    assert " -e ." in _native.rebuild()
