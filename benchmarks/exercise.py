"""python -m benchmarks.exercise BACKEND: run every kernel of a backend on small cases, with few launches each.

The GPU gate runs this program under compute-sanitizer. It calls forward passes, first and second derivatives, and style
layers with all options of their prologue and epilogue.
"""

from __future__ import annotations

import sys
from typing import Any

import cases
import torch

from posgan_fast import functional as PF
from posgan_fast import nn
from posgan_fast.nn.style_pair import run_pair

DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
LAYOUTS = (torch.contiguous_format, torch.channels_last)


def main(backend: str) -> int:
    device = "cuda" if backend in ("cuda", "triton") else "cpu"
    count = 0
    for dtype in DTYPES:
        for layout in LAYOUTS:
            for op, small in cases.SMALL.items():
                for case in small:
                    x, extra = (None if t is None else t.to(device) for t in case.tensors(dtype, layout))
                    assert x is not None
                    x.requires_grad_()
                    y = getattr(PF, op)(x, extra, **case.arguments, backend=backend)
                    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y), create_graph=True)
                    if dx.requires_grad:
                        torch.autograd.grad(dx, x, torch.ones_like(dx), allow_unused=True)
                    count += 1
            count += _layers(dtype, layout, device, backend)
    if device == "cuda":
        torch.cuda.synchronize()
    print(f"exercised {count} calls on {backend}")
    return 0


def _layers(dtype: torch.dtype, layout: torch.memory_format, device: str, backend: str) -> int:
    """Run style layers and return the number of calls."""

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device, dtype=dtype)

    for up, side in ((1, 9), (2, 18)):
        x = randn(2, 20, 9, 9).contiguous(memory_format=layout).requires_grad_()
        given: dict[str, Any] = dict(
            up=up, padding=1, pad_map=randn(2, 20 if up == 1 else 12, 23, 24), noise=randn(2, 1, side, side),
            resample_filter=PF.setup_filter([1, 3, 3, 1], device=device), bias=randn(12), act="lrelu", clamp=1.0,
            backend=backend,
        )  # fmt: skip
        weight, styles = randn(12, 20, 3, 3), randn(2, 20)
        with torch.no_grad():
            PF.modulated_conv2d(x, weight, styles, **given)
            # the Triton backend computes toRGB in one kernel
            PF.modulated_conv2d(x, randn(3, 20, 1, 1), styles, demodulate=False, bias=randn(3), backend=backend)
        y = PF.modulated_conv2d(x, weight, styles, **given)
        (dx,) = torch.autograd.grad(y, x, torch.ones_like(y), create_graph=True)
        torch.autograd.grad(dx, x, torch.ones_like(dx), allow_unused=True)
        z = PF.prologue2d(x, padding=2, mode="reflect", encode="spe", join="concat", channels=8, backend=backend)
        torch.autograd.grad(z.sum(), x)
    count = 8 + _gradients(dtype, layout, device, backend)
    filter, resamplings = PF.setup_filter([1, 3, 3, 1], device=device), ((1, 1, 11), (2, 1, 20), (1, 2, 6))
    with torch.no_grad():
        for up, down, side in resamplings:
            parts = dict(scale=randn(2, 20), noise=randn(2, 1, side, side), b=randn(20), act="relu", clamp=1.0)
            given = dict(f=filter, up=up, down=down, padding=[2, 3, 2, 3], **parts)
            PF.epilogue2d(x, **given, backend=backend)
    return count + len(resamplings)


def _gradients(dtype: torch.dtype, layout: torch.memory_format, device: str, backend: str) -> int:
    """Run every reduction of the epilogue's gradients, and style layers without a map; return the number of calls."""

    def randn(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device=device, dtype=dtype)

    sizes = (2, 20, 9, 11), (1, 72, 16, 16)
    for act in ("linear", "lrelu", "swish"):
        for n, c, h, w in sizes:
            given = [randn(n, c, h, w).contiguous(memory_format=layout), randn(n, c), randn(n, 1, h, w), randn(c)]
            x, scale, noise, b = (t.requires_grad_() for t in given)
            y = PF.epilogue2d(x, None, scale, noise, b, act=act, clamp=1.0, backend=backend)
            torch.autograd.grad(y, (x, scale, noise, b), torch.ones_like(y))
            y = PF.epilogue2d(x, None, None, noise, b, act=act, backend=backend)
            torch.autograd.grad(y, (x, noise, b), torch.ones_like(y))
    for n, up in ((1, 1), (1, 2), (2, 2)):
        x, weight, styles = randn(n, 20, 9, 9).contiguous(memory_format=layout), randn(12, 20, 3, 3), randn(n, 20)
        noise, strength = randn(9 * up, 9 * up), torch.ones((), device=device)
        with torch.no_grad():
            PF.modulated_conv2d(
                x, weight, styles, up=up, padding=1, noise=noise, noise_strength=strength, bias=randn(12),
                backend=backend,
            )  # fmt: skip
    return 2 * 3 * len(sizes) + 3 + _pairs(dtype, layout, device)


def _pairs(dtype: torch.dtype, layout: torch.memory_format, device: str) -> int:
    """Run two layers of a block, on the backend that serves the device; return the number of calls."""
    for act in ("lrelu", "swish"):
        first = nn.StyleConv(20, 12, 8, 18, up=2, act=act, device=device).eval()
        second = nn.StyleConv(12, 12, 8, 18, act=act, device=device).eval()
        x, w = torch.randn(2, 20, 9, 9, device=device, dtype=dtype), torch.randn(2, 8, device=device)
        with torch.no_grad():
            run_pair((first, second), x.contiguous(memory_format=layout), (w, w))
    return 2


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
