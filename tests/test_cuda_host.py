"""Runs the CUDA kernel bodies on the host (tests/native) and compares them with float64.

The whole list of cases runs under AddressSanitizer and UndefinedBehaviorSanitizer, a part of it under ThreadSanitizer,
which takes ten times as long. A run without sanitizers would compare nothing else.
"""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import oracle
import pytest
import torch

NATIVE = Path(__file__).parent / "native"
sys.path.append(str(NATIVE))
import kernel_oracle  # noqa: E402
from build_harness import build, compiler, environment  # noqa: E402

needs_compiler = pytest.mark.skipif(compiler() is None, reason="no C++ compiler")


@pytest.fixture(scope="module", autouse=True)
def builds() -> None:
    if compiler() is not None:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(build, ("asan", "tsan")))


def run_cases(variant: str, group: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(NATIVE / "check_kernels.py"), str(build(variant)), group]
    return subprocess.run(command, env=environment(variant), capture_output=True, text=True, timeout=300)


def check_cases(variant: str, group: str) -> None:
    result = run_cases(variant, group)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"{group.partition(':')[0]}: passed" in result.stdout


GROUPS = ("fir4", "any", "bias_act", "prologue2d", "epilogue2d", "epilogue2d_fir4", "epilogue2d_backward")


@needs_compiler
@pytest.mark.parametrize("group", [*GROUPS, "modulated_factors", "modulated_factors_backward"])
@pytest.mark.parametrize("variant", ["asan", "tsan"])
def test_kernels_agree_with_float64(variant: str, group: str) -> None:
    check_cases(variant, f"{group}:quick" if variant == "tsan" else group)


@needs_compiler
def test_kernels_reach_past_2_31_elements() -> None:
    check_cases("asan", "far")


@needs_compiler
def test_a_missing_barrier_is_reported() -> None:
    check_cases("tsan", "barriers")


@needs_compiler
def test_a_write_past_the_end_is_reported() -> None:
    result = run_cases("asan", "overrun")
    assert result.returncode != 0
    assert "heap-buffer-overflow" in result.stderr


@needs_compiler
def test_the_launch_tables_fit_the_device() -> None:
    check_cases("asan", "launch_tables")


@needs_compiler
def test_a_variable_replaces_rows_of_the_launch_tables() -> None:
    check_cases("asan", "launch_overrides")


@pytest.mark.parametrize("flip", [False, True])
def test_the_two_upfirdn2d_oracles_agree(flip: bool) -> None:
    rng = np.random.default_rng(0)
    for f in (rng.standard_normal(4), rng.standard_normal((3, 5))):
        x, call = rng.standard_normal((2, 3, 9, 8)), ((2, 3), (3, 1), (4, -1, 2, 3), flip, 1.7)
        want = oracle.upfirdn2d(torch.from_numpy(x), torch.from_numpy(f), *call)
        np.testing.assert_allclose(kernel_oracle.upfirdn2d(x, f, *call), want, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("act", kernel_oracle.ACTS)
def test_the_two_activation_oracles_agree(act: str) -> None:
    v = 3 * np.random.default_rng(0).standard_normal(100)
    for got, want in zip(kernel_oracle.activation(act, v, 0.2), oracle.activation(act, v, 0.2), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)
