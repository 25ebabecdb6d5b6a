"""Checks of the launch tables of CUDA, and of POSGAN_FAST_CUDA_TABLE, which replaces their rows."""

from __future__ import annotations

import itertools
import math
import os

import harness
from tilings import FACTORS

# StyleGAN2 at 1024 pixels: (channels, side) of the larger side of each resampling.
LAYERS = ((512, 4), (512, 8), (512, 16), (512, 32), (512, 64), (256, 128), (128, 256), (64, 512), (32, 1024))


def launch_tables(rng, quick):
    """Every launch of StyleGAN2 fits the device and fills it, and the tables say where they were measured."""
    options = itertools.product((80, 90, 100), (False, True), ("float16", "bfloat16", "float32"), (1, 32), LAYERS)
    for sm, channels_last, dtype, batch, (channels, side) in options:
        half = max(side // 2, 1)
        for up, down, before, after in (
            (2, 1, half, side),
            (1, 2, side, half),
            (1, 1, side + 1, side),
            (1, 1, side, side + 1),
        ):
            x, y = (batch, channels, before, before), (batch, channels, after, after)
            call = (x, y, (4, 4), (up, up), (down, down), channels_last, dtype, sm)
            kernel, grid, block, shared = harness.upfirdn2d_plan(*call)
            assert kernel == ("fir4_channels_last" if channels_last else "fir4"), call
            threads = math.prod(block)
            assert threads % 32 == 0 and threads <= 256, (call, block)
            assert shared <= 48 * 1024 and grid[1] <= 65535, (call, shared, grid)
            # Half of the 512 threads that a multiprocessor of A100 holds at least, where the image has work for them.
            assert math.prod(grid) * threads >= min(math.prod(y) / 64, 108 * 512 / 2), (call, grid, block)
    for table in (harness.upfirdn2d_table(), harness.elementwise_table()):
        assert all(row[-1].strip() for row in table), table
        assert [row[0] for row in table] == sorted(row[0] for row in table), "the most specific row comes last"
    lines = [line.split(" ") for line in harness.describe_launch_tables().splitlines()]
    rows = [(k, sm, w, n if k.startswith("fir4") else n[:1]) for sm, k, w, n, _ in harness.upfirdn2d_table()]
    rows += [("elementwise", sm, numel, [n]) for sm, numel, n, _ in harness.elementwise_table()]
    assert [(k, int(sm), int(size), [int(n) for n in ns.split(",")]) for k, sm, size, ns in lines] == rows
    for kernel, _, _, numbers in lines:  # a row of a table is a valid override
        harness.parse_launch_overrides(f"{kernel}={numbers}")


def launch_overrides(rng, quick):
    """POSGAN_FAST_CUDA_TABLE stands for the rows of a kernel; whatever it accepts launches, or an error names it."""
    check_accepted()
    check_refused()
    check_launches()


def check_accepted():
    expected = {
        "": {}, ";": {}, " fir4 = 256, 32,1 ,2,256; ": {0: [256, 32, 1, 2, 256]},
        "fir4_channels_last=128,16,4,64,67584;elementwise=256": {1: [128, 16, 4, 64, 67584], 4: [256]},
        "tiled=64;direct=32 ;elementwise=96": {2: [64], 3: [32], 4: [96]},
    }  # fmt: skip
    for text, rows in expected.items():
        assert harness.parse_launch_overrides(text) == [rows.get(i, []) for i in range(5)], text


def check_refused():
    for text, word in (
        ("fir=128", "KERNEL one of"), ("fir4", "KERNEL=NUMBERS"), ("fir4=128=1", "KERNEL=NUMBERS"), ("128", "KERNEL"),
        ("fir4=128", "fir4=threads,max_inner_threads"), ("elementwise=64,1", "elementwise=threads"),
        ("elementwise=", "whole numbers"), ("elementwise=-64", "whole numbers"), ("elementwise=0x40", "whole numbers"),
        ("elementwise=4294967360", "whole numbers"), ("elementwise=6.4e1", "whole numbers"),
        ("elementwise=0", "multiple of 32"), ("elementwise=100", "multiple of 32"), ("elementwise=288", "32 to 256"),
        ("fir4=128,33,1,2,256", "max_inner_threads"), ("fir4=128,256,1,2,256", "up to 224"),
        ("fir4_channels_last=32,64,1,2,256", "up to threads"), ("fir4_channels_last=32,0,1,2,256", "at least 1"),
        ("fir4=128,32,0,2,256", "min_rows"), ("fir4=128,32,3,2,256", "min_rows"), ("fir4=128,32,1,65537,256", "65536"),
        ("fir4=128,32,1,2,0", "resident_threads"), ("tiled=96", "each kernel once"), ("tiled=64", "each kernel once"),
        ("elementwise= 2 56", "whole numbers"), ("fir4=1 28,32,1,2,256", "whole numbers"),
        ("element wise=256", "KERNEL one of"), ("fir4=128,32,1,2,", "whole numbers"),
    ):  # fmt: skip
        try:
            harness.parse_launch_overrides("tiled=64;" + text)
        except RuntimeError as error:
            assert str(error).startswith("POSGAN_FAST_CUDA_TABLE: expected ") and word in str(error), (text, error)
            assert str(error).endswith(f", got '{text}'"), (text, error)
        else:
            raise AssertionError(f"{text}: no error")


def check_launches():
    def plan(text, side, channels_last, dtype, factors):
        os.environ["POSGAN_FAST_CUDA_TABLE"] = text
        harness.reread_launch_overrides()
        up, down = factors
        x, y = ((2, 32, s, s) for s in (side * down[0], side * up[0]))
        return harness.upfirdn2d_plan(x, y, (4, 4), up, down, channels_last, dtype, 90)

    for numbers in ((256, 32, 1, 1, 256), (32, 224, 64, 65536, 999999999), (64, 64, 3, 5, 256), (224, 192, 8, 8, 1000)):
        for side, dtype, factors in itertools.product((1, 7, 100, 1000), ("float16", "float32"), FACTORS):
            text = "fir4=" + ",".join(map(str, numbers))
            _, grid, block, shared = plan(text, side, False, dtype, factors)
            assert math.prod(block) <= 256 and math.prod(block) % 32 == 0 and shared <= 48 * 1024, (text, side, block)
            text = "fir4_channels_last=" + ",".join(map(str, (numbers[0], min(numbers[:2]), *numbers[2:])))
            _, grid, block, shared = plan(text, side, True, dtype, factors)
            assert block == (numbers[0], 1, 1) and shared == 0 and min(grid) > 0, (text, side, block, grid)
    before = harness.elementwise_threads(90, 2**24)
    plan("elementwise=96", 8, False, "float32", FACTORS[0])
    assert harness.elementwise_threads(90, 2**24) == 96
    plan("", 8, False, "float32", FACTORS[0])
    assert harness.elementwise_threads(90, 2**24) == before
