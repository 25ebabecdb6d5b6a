"""python -m benchmarks.convolutions: measure 3x3 convolutions of StyleGAN2's sizes against torch's on the CPU.

"ours" is Winograd's algorithm on a weight that is prepared, "unprepared" the same on a weight as it is, which layers
transform at each call, "torch" torch's convolution of channels_last tensors alone. The plain layer has styles, noise,
bias and activation, torch's convolution has not. "sgemm" is the time that the products of ours would take at the rate
of torch's matrix product of 2048 x 2048 numbers. In float32; times are medians of interleaved rounds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch.nn import functional as F

from posgan_fast import _native
from posgan_fast.ops import winograd3x3
from posgan_fast.ops.winograd3x3 import Form

from . import harness, options
from .timed import OURS, Row, line, measured, write

UNPREPARED, TORCH, SGEMM = "unprepared", "torch", "sgemm"
# Input channels, filters and pixels of a side of the input: the layers of a generator and a discriminator of 1024.
SHAPES = {
    Form.PLAIN: [
        (512, 512, 16), (512, 512, 32), (512, 512, 64), (256, 256, 128), (128, 128, 256), (64, 64, 512), (32, 32, 1024),
    ],
    Form.UP: [(512, 512, 16), (512, 512, 32), (512, 256, 64), (256, 128, 128), (128, 64, 256), (64, 32, 512)],
    Form.DOWN: [(512, 512, 33), (512, 512, 65), (256, 512, 129), (128, 256, 257), (64, 128, 513), (32, 64, 1025)],
}  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        allow_abbrev=False, prog="python -m benchmarks.convolutions", description=__doc__.splitlines()[0]
    )
    rounds, batch = options.at_least(2, ", for quartiles"), options.at_least(1)
    parser.add_argument("--rounds", type=rounds, default=9, help="interleaved rounds (default: 9)")
    parser.add_argument("--batch", type=batch, default=1, help="samples (default: 1)")
    parser.add_argument("--quick", action="store_true", help="the smallest layer of each form, to see that all runs")
    options.add_allocator(parser)
    options.add_output(parser)
    args = parser.parse_args(argv)
    if args.allocator and args.allocator != harness.allocator():
        return options.run_again("benchmarks.convolutions", sys.argv[1:] if argv is None else argv, args.allocator)
    library = _native.load(_native.CPU)
    if not library.loaded:
        parser.error(f"no kernels to measure: {library.reason}")
    with torch.inference_mode():
        rate = _sgemm_rate()
        rows = []
        for row in _rows(args, rate):
            print(line(row), flush=True)
            rows.append(row)
    write(args, rows, "convolutions")
    return 0


def _sgemm_rate() -> float:
    """Measure the multiplications per second of torch's matrix product."""
    side = 2048
    a, b = torch.randn(side, side), torch.randn(side, side)
    return side**3 / measured("sgemm", "", {OURS: lambda: a @ b}, 5).medians[OURS]


def _rows(args: argparse.Namespace, rate: float) -> Iterator[Row]:
    for form, shapes in SHAPES.items():
        for i, o, side in shapes[:1] if args.quick else shapes:
            calls, products = _calls(form, args.batch, i, o, side)
            row = measured(form.name.lower(), f"{i} to {o} at {side}, N={args.batch}", calls, args.rounds)
            row.error = None  # torch's lacks the epilogue
            row.medians[SGEMM] = products / rate
            yield row


def _calls(form: Form, n: int, i: int, o: int, side: int) -> tuple[dict[str, Callable[[], Any]], int]:
    """Make the contenders of a shape; return them and the products of Winograd's algorithm."""
    x = torch.randn(n, i, side, side).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(o, i, 3, 3)
    padding = 1 if form == Form.PLAIN else 0
    h, w = winograd3x3.out_size(x, form, padding)
    step = 8 if form == Form.UP else 4
    products = n * -(-h // step) * -(-w // step) * (36 if form == Form.PLAIN else 81) * i * o
    arguments: dict[str, Any] = dict(padding=padding or int(form == Form.UP))
    if form == Form.PLAIN:
        arguments |= dict(in_scale=torch.rand(n, i), scale=torch.rand(n, o), shift=torch.rand(o), alpha=0.2, gain=1.4)
        arguments |= dict(noise=torch.randn(1, 1, h, w))
    prepared = winograd3x3.prepare(weight, form)
    transposed = form == Form.UP
    kernel = (weight.transpose(0, 1) if transposed else weight).contiguous(memory_format=torch.channels_last)
    vendor = F.conv_transpose2d if transposed else F.conv2d
    stride = 1 if form == Form.PLAIN else 2
    calls: dict[str, Callable[[], Any]] = {
        OURS: lambda: winograd3x3.run(x, prepared, form, **arguments),
        UNPREPARED: lambda: winograd3x3.run(
            x, winograd3x3.prepare(weight, form, tiles=winograd3x3.tiles_of(x, form, (h, w))), form, **arguments
        ),
        TORCH: lambda: vendor(x, kernel, stride=stride, padding=padding),
    }
    return calls, products


if __name__ == "__main__":
    sys.exit(main())
