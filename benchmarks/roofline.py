"""Compares measured times with the roofline of the very GPU that was measured.

The rates are those of a large copy and of large matrix products on that GPU; the bytes and operations are what
:mod:`benchmarks.traffic` counts for the same call. The share of the roofline is the predicted time over the measured
one: at 1 every kernel runs at a rate of its GPU. It can exceed 1 where a kernel finds its input in the L2 cache.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from . import harness
from .traffic_counter import Counter, Traffic
from .traffic_cuda import META, meta_as_cuda
from .traffic_rates import Gpu, graph_seconds

SIDE = 8192  # of the square matrices


def measured_rates(device: torch.device, side: int = SIDE, effort: harness.Effort = harness.FULL) -> Gpu:
    """Measure the rates of a device: bytes of a copy and operations of matrix products per second."""
    copy = harness.bandwidths(device, effort)[harness.COPY]
    half, tf32, float32 = (_matrix_rate(device, side, p) for p in ("float16", "tf32", "float32"))
    if device.type != "cuda":
        return Gpu("cpu", "dry run", copy, half, tf32, float32, "measured here")
    major, minor = torch.cuda.get_device_capability(device)
    name = torch.cuda.get_device_properties(device).name
    return Gpu(f"sm_{major}{minor}", name, copy, half, tf32, float32, "measured here")


def counted(prepare: Callable[[torch.device], Callable[[], Any]]) -> Traffic:
    """Count the kernels of the call that ``prepare`` makes for a device, in inference."""
    with meta_as_cuda():
        call = prepare(META)
        with torch.no_grad(), Counter() as counter:
            call()
    return counter.traffic


def seconds(traffic: Traffic, gpu: Gpu, precision: str) -> float:
    """Return the time of all kernels at the rates of ``gpu``, in a precision of ``network_calls.PRECISIONS``.

    TF32 serves convolutions and matrix products in the precision "tf32" and neither in the others, as measured.
    """
    rate = gpu.tf32 if precision == "tf32" else gpu.float32
    return graph_seconds(traffic, gpu._replace(tf32=rate, float32=rate))


def share(traffic: Traffic, gpu: Gpu, precision: str, measured: float) -> float:
    """Return the predicted time over the measured one."""
    return seconds(traffic, gpu, precision) / measured


def _matrix_rate(device: torch.device, side: int, precision: str) -> float:
    """Return the operations per second of the best of ten products."""
    dtype = torch.float16 if precision == "float16" else torch.float32
    a, b = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    best = float("inf")
    with harness.tf32(precision == "tf32"):
        for _ in range(10):
            _synchronize(device)
            begin = time.perf_counter()
            a @ b
            _synchronize(device)
            best = min(best, time.perf_counter() - begin)
    return 2 * side**3 / best


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
