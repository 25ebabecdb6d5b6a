"""The CUDA kernel bodies on the host (tests/native), against float64: plain, under ASan and UBSan, and under TSan."""

from __future__ import annotations

import importlib.util
import math
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

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
    """All variants at once, the slowest first."""
    if compiler() is not None:
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(build, ("asan", "tsan", "plain")))


@pytest.fixture(scope="module")
def harness() -> ModuleType:
    [path] = [path for path in build("plain").iterdir() if path.stem.startswith("harness")]
    spec = importlib.util.spec_from_file_location("harness", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_cases(variant: str, group: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(NATIVE / "check_kernels.py"), str(build(variant)), group]
    return subprocess.run(command, env=environment(variant), capture_output=True, text=True, timeout=300)


@needs_compiler
@pytest.mark.parametrize("group", ["fir4", "any", "bias_act", "prologue2d", "epilogue2d"])
@pytest.mark.parametrize("variant", ["plain", "asan", "tsan"])
def test_kernels_agree_with_float64(variant: str, group: str) -> None:
    result = run_cases(variant, f"{group}:quick" if variant == "tsan" else group)
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"{group}: passed" in result.stdout


@needs_compiler
def test_kernels_reach_past_2_31_elements() -> None:
    result = run_cases("plain", "far")
    assert result.returncode == 0, result.stdout + result.stderr


# Every barrier of every kernel: fir4 has one for each of its five stages here and one before it goes to other planes.
BARRIERS = [("fir4", 6), ("separable", 2), ("two_dimensional", 2)]


@needs_compiler
@pytest.mark.parametrize("barrier", [f"{kernel}:{i}" for kernel, count in BARRIERS for i in range(count)])
def test_a_missing_barrier_is_reported(barrier: str) -> None:
    result = run_cases("tsan", f"missing:{barrier}")
    assert result.returncode == 66, result.stdout + result.stderr
    assert "ThreadSanitizer: data race" in result.stderr


@needs_compiler
def test_no_barrier_left_out_is_not_reported() -> None:
    for kernel, _ in BARRIERS:
        result = run_cases("tsan", f"missing:{kernel}:-1")
        assert result.returncode == 0, result.stdout + result.stderr


@needs_compiler
def test_a_write_past_the_end_is_reported() -> None:
    result = run_cases("asan", "overrun")
    assert result.returncode != 0
    assert "heap-buffer-overflow" in result.stderr


# What StyleGAN2 runs at 1024 pixels and below: (channels, side) of the larger side of each resampling.
LAYERS = [(512, 4), (512, 8), (512, 16), (512, 32), (512, 64), (256, 128), (128, 256), (64, 512), (32, 1024)]


@needs_compiler
@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("sm", [80, 90, 100])
def test_launch_table_fits_the_device(harness: ModuleType, sm: int, channels_last: bool, dtype: str) -> None:
    for batch, (channels, side) in [(n, layer) for n in (1, 32) for layer in LAYERS]:
        half = max(side // 2, 1)
        resamplings = [(2, 1, half, side), (1, 2, side, half), (1, 1, side + 1, side), (1, 1, side, side + 1)]
        for up, down, before, after in resamplings:
            x, y, factors = (batch, channels, before, before), (batch, channels, after, after), ((up, up), (down, down))
            kernel, grid, block, shared = harness.upfirdn2d_plan(x, y, (4, 4), *factors, channels_last, dtype, sm)
            assert kernel == ("fir4_channels_last" if channels_last else "fir4")
            threads = math.prod(block)
            assert threads % 32 == 0 and threads <= 256, block
            assert shared <= 48 * 1024 and grid[1] <= 65535
            # Half of the 512 threads that a multiprocessor of A100 holds at least, where the image has work for them.
            assert math.prod(grid) * threads >= min(math.prod(y) / 64, 108 * 512 / 2), (x, y, grid, block)


@needs_compiler
def test_launch_tables_say_where_they_were_measured(harness: ModuleType) -> None:
    for table in (harness.upfirdn2d_table(), harness.elements_table()):
        assert all(row[-1].strip() for row in table), table
        assert [row[0] for row in table] == sorted(row[0] for row in table), "the most specific row comes last"


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
    for got, want in zip(kernel_oracle.jet(act, v, 0.2), oracle.activation(act, v, 0.2), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-12)
