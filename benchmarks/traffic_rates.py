"""Predicts times from counted traffic, by a roofline. Nothing here was measured on the GPUs it speaks of.

A kernel takes the longer of its bytes at the rate of a large copy and its operations at the vendor's peak of dense
matrix products. The GPU takes the sum over all kernels ("graph": launches cost nothing). Launched one by one, a call
takes no less than the host needs for its launches ("eager"), since the host runs ahead of the GPU.

Real kernels reach a part of these rates, small ones a small part, so a prediction is a lower bound, and the ratio of
two predictions says more than either.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from .traffic_counter import Kernel, Traffic

LAUNCH = 5e-6  # seconds of the host for an operator of torch and its launch; Python and autograd take more


class Gpu(NamedTuple):
    """The rates of a GPU: bytes read and written per second, and dense operations per second by dtype."""

    arch: str
    name: str
    copy: float
    half: float
    tf32: float
    float32: float
    source: str


GPUS = (
    Gpu("sm_80", "A100 SXM 80 GB", 1.6e12, 312e12, 156e12, 19.5e12,
        "copy: assumed, 0.8 of the 2.04 TB/s of NVIDIA's data sheet; the others: data sheet"),
    Gpu("sm_90", "H100 SXM", 3.0e12, 989e12, 495e12, 67e12,
        "copy: assumed, 0.9 of the 3.35 TB/s of the data sheet; the others: data sheet"),
    Gpu("sm_100", "B200", 7.0e12, 2250e12, 1100e12, 75e12,
        "copy: assumed, 0.9 of the 8 TB/s of the data sheet; the others: data sheet, half of its sparse rates"),
)  # fmt: skip


def rate(kernel: Kernel, gpu: Gpu) -> float:
    """Return the operations per second: in float32 the vendor's convolutions round to TF32, torch's default; matrix
    products and the fused kernel do not."""
    if getattr(torch, kernel.dtype).itemsize == 2:
        return gpu.half
    return gpu.tf32 if kernel.name.startswith("convolution") else gpu.float32


def graph_seconds(traffic: Traffic, gpu: Gpu) -> float:
    """Return the time of the kernels, one after the other."""
    return sum(max(k.moved / gpu.copy, k.flops / rate(k, gpu) if k.flops else 0.0) for k in traffic.kernels)


def eager_seconds(traffic: Traffic, gpu: Gpu) -> float:
    """Return the time of the kernels or, where it is longer, that of launching them."""
    return max(graph_seconds(traffic, gpu), traffic.launches * LAUNCH)
