"""Runs the CUDA kernel bodies on the host and compares them with the oracle. tests/test_cuda_host.py starts it once per
build of the harness and group of cases, with the sanitizer's runtime preloaded:

    python check_kernels.py FOLDER_OF_HARNESS GROUP
"""

from __future__ import annotations

import itertools
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

FOLDER, GROUP = sys.argv[1:]
sys.path[:0] = [FOLDER, str(Path(__file__).parent)]
import harness  # noqa: E402
import kernel_oracle as oracle  # noqa: E402
from check_backward import WANTED, epilogue2d_backward  # noqa: E402
from check_backward import run as run_backward  # noqa: E402
from check_epilogue2d import epilogue2d_fir4, epilogue2d_group  # noqa: E402
from check_factors import differentiate, modulated_factors, modulated_factors_backward, prepare  # noqa: E402
from check_launch import launch_overrides, launch_tables  # noqa: E402
from storage import STORAGE, compare, load, place, store  # noqa: E402
from tilings import FACTORS, FIR, SMALL, TABLE  # noqa: E402


def run_upfirdn2d(
    rng,
    kernel,
    shape,
    f,
    up=(1, 1),
    down=(1, 1),
    pad=(0, 0, 0, 0),
    flip=False,
    gain=1.7,
    dtype="float32",
    layout="nchw",
    offset=(0, 0),
    slack=0,
    tiling=SMALL,
    max_grid_y=2,
    forced="",
    spoil=None,
):
    x = rng.standard_normal(shape)
    if spoil is not None:
        x[0, 0, 1, 2] = spoil
    x = store(x, dtype)
    acc = np.float64 if dtype == "float64" else np.float32
    f = np.ascontiguousarray(f, acc)
    want = oracle.upfirdn2d(load(x, dtype), f.astype(np.float64), up, down, pad, flip, gain)
    poison = store(np.full(want.shape, np.nan), dtype)
    x, y = place(x, layout, offset[0], slack), place(poison, layout, offset[1])
    ran = harness.upfirdn2d(x, f, y, up, down, (pad[0], pad[2]), flip, gain, dtype, forced, tiling, max_grid_y)
    what = f"{kernel} {shape} f{f.shape} up {up} down {down} pad {pad} {dtype} {layout} {offset} {slack}"
    assert ran == kernel, f"{what}: ran {ran}"
    compare(y, want, dtype, what)


def upfirdn2d_fir4(rng, quick):
    filters = [FIR, np.outer(FIR, FIR), rng.standard_normal(4), rng.standard_normal((4, 4))]
    filters += [1e-25 * rng.standard_normal((4, 4)), np.outer(FIR, [1, 0, 2, 1])]  # squares underflow; no pivot
    pads = [(2, 1, 2, 1), (1, 1, 1, 1), (-1, 5, 3, -2)]
    count = 0
    for (up, down), dtype, f in itertools.product(FACTORS, ("float16", "bfloat16", "float32"), filters):
        for layout, kernel in (("nchw", "fir4"), ("nhwc", "fir4_channels_last")):
            pad = pads[count % 3]
            count += 1
            if quick and count % 5:
                continue
            channels = 3 if layout == "nchw" else (4, 8, 36)[count % 3]
            shape = (1 + count % 2, channels, 9 + 8 * (count % 3), 11 + 6 * (count % 4))
            gain = 1.7 / np.abs(f).max()
            run_upfirdn2d(rng, kernel, shape, f, up, down, pad, bool(count % 2), gain, dtype, layout)
    for (up, down), dtype in itertools.product(FACTORS, ("float16", "float32")):
        common = dict(f=FIR, up=up, down=down, pad=(2, 2, 2, 2), dtype=dtype)
        for offset in ((1, 0), (0, 1), (3, 5)):  # misaligned starts, rows of odd pitch
            run_upfirdn2d(rng, "fir4", (1, 2, 7, 10), offset=offset, slack=offset[0], **common)
        run_upfirdn2d(rng, "fir4", (2, 5, 1, 1), **common)  # one pixel in
        one = common | dict(pad=(1, 1, 1, 1) if up == (2, 2) else (2, 1, 2, 1))  # one pixel in and out
        run_upfirdn2d(rng, "fir4", (2, 5, 1, 1), **one)
        run_upfirdn2d(rng, "fir4_channels_last", (2, 8, 1, 1), layout="nhwc", **one)
        run_upfirdn2d(rng, "fir4", (1, 20, 8, 8), tiling=(32, 8, 8, 8, 32), **common)  # several planes to a block
        if not quick:  # as the launch table has it
            run_upfirdn2d(rng, "fir4", (1, 1, 41, 131), tiling=TABLE["fir4"], **common)
            run_upfirdn2d(rng, "fir4", (1, 9, 16, 16), tiling=TABLE["narrow"], **common)
            common |= dict(layout="nhwc", tiling=TABLE["channels_last"])
            run_upfirdn2d(rng, "fir4_channels_last", (1, 72, 20, 18), **common)
    common = dict(f=FIR, pad=(1, 2, 2, 1))
    run_upfirdn2d(rng, "fir4", (1, 2, 6, 9), spoil=np.nan, **common)
    common |= dict(layout="nhwc")
    run_upfirdn2d(rng, "fir4_channels_last", (1, 4, 6, 9), spoil=np.inf, dtype="float16", **common)
    run_upfirdn2d(rng, "fir4_channels_last", (1, 8, 5, 6), slack=4, **common)


def upfirdn2d_any(rng, quick):
    cases = [
        dict(f=FIR, up=(2, 1), pad=(2, 1, 1, 2)),
        dict(f=FIR, up=(2, 2), down=(2, 2), pad=(2, 1, 2, 1)),
        dict(f=np.outer(FIR, FIR), up=(3, 2), down=(2, 3), pad=(2, 3, 1, 4)),
        dict(f=rng.standard_normal(12), up=(2, 2), pad=(6, 5, 6, 5)),
        dict(f=rng.standard_normal(12), down=(2, 2), pad=(5, 5, 5, 5)),
        dict(f=rng.standard_normal(7), up=(5, 3), down=(3, 5), pad=(-3, 9, 4, 4), flip=True),
        dict(f=rng.standard_normal((3, 5)), up=(2, 3), down=(3, 1), pad=(4, 0, -1, 3), flip=True),
        dict(f=np.array([1.0]), pad=(1, 0, -1, 0)),
        dict(f=np.array([[0.5]]), up=(2, 2), pad=(0, 0, 0, 0)),
        dict(f=rng.standard_normal(2), up=(4, 4), pad=(3, 0, 3, 0)),  # outputs no tap reaches
        dict(f=rng.standard_normal((1, 6)), pad=(3, 2, 0, 0)),
    ]
    for i, case in enumerate(cases):
        for dtype, layout in itertools.product(STORAGE, ("nchw", "nhwc")):
            if quick and (i + (dtype == "float64") + (layout == "nhwc")) % 3:
                continue
            shape = (1 + i % 2, 3, 6, 9)
            tiled = dict(rng=rng, kernel="tiled", shape=shape, dtype=dtype, layout=layout, **case)
            run_upfirdn2d(offset=(i % 3, i % 2), **tiled)
            if dtype in ("float32", "float64"):
                run_upfirdn2d(**{**tiled, "kernel": "direct"}, forced="direct")
    # Misaligned pixels and odd channel counts leave the vectors of fir4_channels_last.
    for offset, channels in (((1, 0), 4), ((0, 1), 4), ((0, 0), 5)):
        run_upfirdn2d(rng, "tiled", (1, channels, 6, 7), FIR, (2, 2), pad=(2, 1, 2, 1), layout="nhwc", offset=offset)
    run_upfirdn2d(rng, "tiled", (1, 2, 7, 6), FIR, (2, 2), pad=(2, 1, 2, 1), dtype="float64")
    run_upfirdn2d(rng, "tiled", (1, 70, 3, 3), np.ones(3), pad=(1, 1, 1, 1), layout="nhwc")
    run_upfirdn2d(rng, "tiled", (1, 1, 40, 70), np.ones(3) / 3, pad=(1, 1, 1, 1))
    run_upfirdn2d(rng, "direct", (1, 1, 83, 82), np.ones((80, 80)), dtype="float64")  # too large for shared memory


def bias_act_group(rng, quick):
    memories = [  # numel, step, channels, elements before the start
        (2 * 3 * 40, 40, 3, 0),  # a channel per vector
        (5 * 16, 1, 16, 0),  # channels innermost
        (3 * 7 * 5, 5, 7, 0),  # a channel changes inside a vector
        (2 * 3 * 40, 40, 3, 1),  # misaligned
        (13, 1, 13, 0),  # a tail only
        (1, 1, 1, 0),
    ]
    cases = itertools.product(oracle.ACTS, (0, 1, 2), STORAGE, (-1.0, 0.5))
    for i, (act, grad, dtype, clamp) in enumerate(cases):
        if quick and i % 3:
            continue
        alpha = -0.3 if act == "lrelu" and (grad == 2 or i % 2) else 0.2
        run_bias_act(rng, act, grad, dtype, clamp, alpha, memories[i % len(memories)], with_bias=i % 4 != 3)
    for dtype, memory in itertools.product(STORAGE, memories):
        run_bias_act(rng, "lrelu", 0, dtype, 0.7, 0.2, memory)
        run_bias_act(rng, "swish", 1, dtype, -1.0, 0.0, memory)
    for d in (1, 2, 3, 5, 7, 64, 641, 263169, 2**31 - 1):
        for n in (0, 1, d - 1, d, d + 1, 3 * d, 2**31 - 1):
            if n < 2**31:
                assert harness.quotient(n, d) == n // d, (n, d)
    for i, step, channels in ((2**40 + 12345, 2**33 + 1, 77), (2**35 + 3, 513 * 513, 512), (2**32 - 1, 1, 3)):
        assert harness.bias_coords(i, step, channels, False) == (i // step % channels, step - i % step)
        i %= 2**31
        if step < 2**31:
            assert harness.bias_coords(i, step, channels, True) == (i // step % channels, step - i % step)


def run_bias_act(rng, act, grad, dtype, clamp, alpha, memory, with_bias=True):
    numel, step, channels, offset = memory

    def tensor(values):
        buffer = np.empty(offset + numel, STORAGE[dtype])
        buffer[offset:] = store(values, dtype)
        return buffer[offset:]

    gain, act_id = 1.3, oracle.ACTS.index(act) + 1
    x, g, dy = (tensor(2 * rng.standard_normal(numel)) for _ in range(3))
    b = store(rng.standard_normal(channels), dtype) if with_bias else None
    bias = load(b, dtype)[np.arange(numel) // step % channels] if with_bias else 0.0
    wide_x, wide_g, wide_dy = (load(values, dtype) for values in (x, g, dy))
    ref = x
    if grad == 1 and (act == "relu" or (act == "lrelu" and alpha > 0)):
        # The kernel decides from the stored output, so the oracle gets the input that has exactly this output.
        ref = tensor(oracle.bias_act(wide_x, bias, 0, 0, 0, act, alpha, gain, clamp))
        slope = np.where(load(ref, dtype) > 0, 1, alpha if act == "lrelu" else 1)
        wide_x, bias = load(ref, dtype) / (slope * gain), 0.0
    want = oracle.bias_act(wide_x, bias, wide_g, wide_dy, grad, act, alpha, gain, clamp)
    first = x if grad == 0 else g
    out = x if grad == 0 else tensor(np.full(numel, np.nan))  # in place where the op allows it
    refs = (ref if grad > 0 else None, dy if grad > 1 else None)
    threads = 4 if numel < 100 else 8
    harness.bias_act(first, b, *refs, out, step, grad, act_id, alpha, gain, clamp, dtype, threads)
    compare(out, want, dtype, f"bias_act {act} grad {grad} {dtype} clamp {clamp} alpha {alpha} {memory}")


def prologue2d_group(rng, quick):
    shapes = [(2, 8, 4, 8), (1, 5, 3, 7), (2, 16, 5, 3), (1, 1, 1, 1), (1, 3, 6, 16)]
    options = itertools.product(STORAGE, ("nchw", "nhwc"), ("zeros", "reflect", "map", "ring"), (None, "add", "concat"))
    seen = set()
    for i, (dtype, layout, mode, join) in enumerate(options):
        if quick and i % 5:
            continue
        for k, shape in enumerate(shapes):
            odd, one = join == "add" and shape[1] % 2, layout == "nhwc" and shape[1] == 1
            if odd or one or (mode == "reflect" and k == 3):
                continue
            offset, slack = ((0, 0), 0) if i % 4 else ((1, k % 2), k % 3)
            given = (i + k) % 4
            vectorized = run_prologue2d(rng, shape, dtype, layout, mode, join, given, bool(i % 2), offset, slack)
            seen.add((layout, vectorized))
    for layout, shape, mode, join in (("nchw", (2, 3, 4, 8), "rows", None), ("nhwc", (1, 24, 3, 5), "map", "concat")):
        for dtype in STORAGE:  # all vectors are whole
            assert run_prologue2d(rng, shape, dtype, layout, mode, join, 3, True)
            seen.add((layout, True))
    for layout in ("nchw", "nhwc"):  # the encoding alone
        run_prologue2d(rng, (1, 0, 6, 5), "float32", layout, "zeros", "concat", 1, False)
    assert len(seen) == 4, "both kernels, in both layouts"
    for i, sizes in itertools.product((0, 1, 12345, 2**31 - 1, 2**40 + 77), ((3, 5, 7), (512, 34, 35), (1, 1, 1))):
        (c, h, w), n = sizes, i // (sizes[0] * sizes[1] * sizes[2])
        nchw = (n, i // (w * h) % c, i // w % h, i % w)
        nhwc = (n, i % c, i // (c * w) % h, i // c % w)
        for use_int32_index in (False, True)[: 1 + (i < 2**31)]:
            assert harness.prologue2d_coords(i, sizes, use_int32_index) == (nchw, nhwc)


def run_prologue2d(rng, shape, dtype, layout, mode, join, given, height_first, offset=(0, 0), slack=0):
    """Bit 0 of given adds styles, bit 1 a residual. Returns whether the vectorized kernel ran."""
    n, c, h, w = shape
    half = {None: 0, "add": c // 2, "concat": 8 if c % 8 == 0 else 3}[join]
    out_c = c + 2 * half * (join == "concat")
    pad = {"zeros": (2, 1, 0, 3), "rows": (0, 0, 2, 1)}.get(mode, (1, 1, 1, 1))
    if mode == "reflect":
        pad = (min(2, w - 1), 1, min(3, h - 1), 1)
    wide = np.float64 if dtype == "float64" else np.float32
    x, residual = (store(rng.standard_normal((n, channels, h, w)), dtype) for channels in (c, out_c))
    styles, columns, rows = (rng.standard_normal(size).astype(wide) for size in ((n, out_c), (half, w), (half, h)))
    border = None
    if mode == "map":  # columns apart, as in channels_last, and more than is needed on every side
        border = store(rng.standard_normal((n, h + 5, w + 4, out_c)), dtype).transpose(0, 3, 1, 2)
    elif mode == "ring":
        border = store(rng.standard_normal((n, 2 * (h + w) + 4, out_c)), dtype).transpose(0, 2, 1)
    given_styles, given_residual = styles if given & 1 else None, residual if given & 2 else None
    tables = (columns, rows) if join else (None, None)
    name = {"map": "instance", "ring": "instance", "rows": "zeros"}.get(mode, mode)
    optional = [None if a is None else load(a, dtype) for a in (given_residual, border)]
    factors = None if given_styles is None else styles.astype(np.float64)
    want = oracle.prologue2d(
        load(x, dtype), optional[0], factors, optional[1], *tables, pad, name, join == "concat", height_first
    )
    y = place(store(np.full(want.shape, np.nan), dtype), layout, offset[1])
    x = place(x, layout, offset[0], slack)
    if given_residual is not None:
        given_residual = place(residual, layout, offset[1], 2 * slack)
    if join and layout == "nhwc":
        tables = tuple(np.asfortranarray(t) for t in tables)
    number = ("zeros", "reflect", "instance").index(name)
    flags = (join == "concat", height_first, layout == "nhwc")
    vectorized = harness.prologue2d(
        x, given_residual, given_styles, border, *tables, y, pad[0], pad[2], number, *flags, dtype, 4
    )
    compare(y, want, dtype, f"prologue2d {shape} {dtype} {layout} {mode} {join} {given} {offset} {slack}")
    return vectorized


BARRIERS = {
    "fir4": 6,
    "separable": 2,
    "two_dimensional": 2,
    "epilogue2d_backward": 3,
    "modulated_factors": 5,
    "modulated_factors_backward": 2,
}


def barriers(rng, quick):
    """Leave out each barrier of each kernel in a process of its own. ThreadSanitizer must report every one, and nothing
    where none is left out. Here fir4 has a barrier for each of five stages and one before it goes to other planes;
    epilogue2d_backward has three for each batch of rows, of which the first is tried, modulated_factors two for each
    batch of samples."""
    for kernel, count in BARRIERS.items():
        for index in range(-1, count):
            code, output = forked(lambda kernel=kernel, index=index: run_without_barrier(rng, kernel, index))
            reported = code == 66 and "ThreadSanitizer: data race" in output
            assert reported if index >= 0 else code == 0, f"{kernel} without barrier {index}: {code}\n{output}"


def forked(function):
    """The exit code and the stderr of a function in a forked process, which need not import anything again."""
    with tempfile.TemporaryFile() as output:
        child = os.fork()
        if child == 0:
            os.dup2(output.fileno(), 2)
            function()
            os._exit(0)
        _, status = os.waitpid(child, 0)
        output.seek(0)
        return os.waitstatus_to_exitcode(status), output.read().decode()


def run_without_barrier(rng, kernel, index):
    harness.skip_barrier(index)
    common = dict(pad=(2, 1, 2, 1), max_grid_y=1)
    if kernel == "fir4":
        run_upfirdn2d(rng, "fir4", (1, 3, 36, 9), FIR, tiling=(8, 8, 40, 40, 8), **common)
    elif kernel == "separable":
        run_upfirdn2d(rng, "tiled", (1, 3, 6, 9), FIR, up=(2, 1), **common)
    elif kernel == "epilogue2d_backward":
        run_backward(rng, ("lrelu", 0.2), "float32", "nhwc", ((1, 40, 2, 8), 0, 16, 32), True, 1, True, -1.0, WANTED[0])
    elif kernel == "modulated_factors":
        prepare(rng, "float16", (5, 2, 7, 9), True, True, False, "nchw", 1.0)
    elif kernel == "modulated_factors_backward":
        differentiate(rng, "float32", (3, 5, 7, 9), True, "both", "nchw")
    else:
        run_upfirdn2d(rng, "tiled", (1, 3, 6, 9), np.outer(FIR, FIR), up=(2, 1), **common)


def overrun(rng, quick):
    """Write past an output that is one element short, which AddressSanitizer must report."""
    x, memory = rng.standard_normal((1, 1, 6, 9)).astype(np.float32), np.empty(6 * 9 - 1, np.float32)
    y = np.lib.stride_tricks.as_strided(memory, x.shape, x.strides)
    harness.upfirdn2d(x, FIR.astype(np.float32), y, (1, 1), (1, 1), (2, 2), False, 1.0, "float32", "", SMALL, 1)


def far(rng, quick):
    """Crop all but the last pixels of more than 2^31 elements; the others are never touched, so they take no memory."""
    for kernel, shape, layout in (
        ("fir4", (1, 2, 40000, 40001), "nchw"),
        ("fir4_channels_last", (1, 4, 30000, 30001), "nhwc"),
        ("tiled", (1, 2, 40000, 40001), "nchw"),
        ("direct", (1, 2, 40000, 40001), "nchw"),
    ):
        n, c, h, w = shape
        x = np.zeros(shape if layout == "nchw" else (n, h, w, c), np.float16)
        x = x if layout == "nchw" else x.transpose(0, 3, 1, 2)
        x[:, :, -16:, -16:] = rng.standard_normal((n, c, 16, 16))
        near = (-2, 1, -2, 1)
        want = oracle.upfirdn2d(x[:, :, -16:, -16:].astype(np.float64), FIR, (1, 1), (1, 1), near, False, 1.0)
        y = place(np.full(want.shape, np.nan, np.float16), layout)
        pad0 = (near[0] - (w - 16), near[2] - (h - 16))
        f = FIR.astype(np.float32)
        ran = harness.upfirdn2d(x, f, y, (1, 1), (1, 1), pad0, False, 1.0, "float16", kernel, SMALL, 2)
        assert ran == kernel
        compare(y, want, "float16", f"{kernel} far")


GROUPS = {
    "fir4": upfirdn2d_fir4,
    "any": upfirdn2d_any,
    "bias_act": bias_act_group,
    "prologue2d": prologue2d_group,
    "epilogue2d": epilogue2d_group,
    "epilogue2d_backward": epilogue2d_backward,
    "modulated_factors": modulated_factors,
    "modulated_factors_backward": modulated_factors_backward,
    "epilogue2d_fir4": epilogue2d_fir4,
    "far": far,
    "launch_tables": launch_tables,
    "launch_overrides": launch_overrides,
    "barriers": barriers,
    "overrun": overrun,
}

if __name__ == "__main__":
    name, _, rest = GROUP.partition(":")
    GROUPS[name](np.random.default_rng(0), rest == "quick")
    print(f"{name}: passed")
