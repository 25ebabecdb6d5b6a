"""Compares the CUDA kernels of epilogue2d, run on the host, with its definition in float64."""

from __future__ import annotations

import itertools

import harness
import kernel_oracle as oracle
import numpy as np
from storage import STORAGE, compare, load, place, store
from tilings import FACTORS, FIR, SMALL, TABLE


def epilogue2d_group(rng, quick):
    shapes = [  # N, C, H, W; elements before the start
        ((2, 3, 8, 5), 0),  # whole vectors along a plane
        ((2, 16, 3, 5), 0),  # and along the channels
        ((2, 3, 7, 5), 0),  # a plane and a pixel end inside a vector
        ((2, 8, 2, 4), 1),  # misaligned
        ((1, 13, 1, 1), 0),  # a tail only
        ((3, 1, 1, 1), 0),
    ]
    cases = itertools.product(oracle.ACTS, STORAGE, ("nchw", "nhwc"), (True, False), (0, 1, 2))
    for i, (act, dtype, layout, scaled, noises) in enumerate(cases):
        if quick and i % 7:
            continue
        shape, offset = shapes[i % len(shapes)]
        run_epilogue2d(rng, act, dtype, layout, shape, offset, scaled, noises, i % 3 > 0, (-1.0, 0.5)[i % 2])
    for dtype, layout, (shape, offset) in itertools.product(STORAGE, ("nchw", "nhwc"), shapes):
        run_epilogue2d(rng, "lrelu", dtype, layout, shape, offset, True, 2, True, 0.7)
    shape = (2**9, 2**11 + 5, 2**11 + 1, 3)
    for last, i in itertools.product((False, True), (0, 2**31 - 1, 2**31, 2**32 + 77, 2**33 + 12345)):
        n, rest = divmod(i, shape[1] * shape[2] * shape[3])
        c, pixel = reversed(divmod(rest, shape[1])) if last else divmod(rest, shape[2] * shape[3])
        assert tuple(harness.epilogue2d_coords(i, shape, last, False)) == (n, c, pixel), (i, last)
    for last, use_int32_index in itertools.product((False, True), (False, True)):
        for i in range(2 * 3 * 5 * 2):
            n, rest = divmod(i, 30)
            c, pixel = reversed(divmod(rest, 3)) if last else divmod(rest, 10)
            assert tuple(harness.epilogue2d_coords(i, (2, 3, 5, 2), last, use_int32_index)) == (n, c, pixel), (i, last)


def run_epilogue2d(rng, act, dtype, layout, shape, offset, scaled, noises, biased, clamp):
    n, c, h, w = shape
    acc = np.float64 if dtype == "float64" else np.float32
    x = store(2 * rng.standard_normal(shape), dtype)
    scale = rng.uniform(0.5, 1.5, (n, c)).astype(acc) if scaled else None
    noise = rng.standard_normal((n if noises == 2 else 1, 1, h, w)).astype(acc) if noises else None
    b = store(rng.standard_normal(c), dtype) if biased else None
    v = load(x, dtype) * (1 if scale is None else scale.astype(np.float64)[:, :, None, None])
    v = v + (0 if noise is None else noise.astype(np.float64))
    bias = 0.0 if b is None else load(b, dtype)[:, None, None]
    post_scale = rng.uniform(-1.5, 1.5, (n, c)).astype(acc) if noises else None
    want = oracle.bias_act(v, bias, 0, 0, 0, act, 0.2, 1.3, clamp)
    want = want if post_scale is None else want * post_scale.astype(np.float64)[:, :, None, None]
    x = place(x, layout, offset)
    y = x if offset == 0 else place(store(np.full(shape, np.nan), dtype), layout, offset)  # in place and not
    call = (layout == "nhwc", oracle.ACTS.index(act) + 1, 0.2, 1.3, clamp, dtype, 8)
    harness.epilogue2d(x, scale, noise, b, post_scale, y, *call)
    compare(y, want, dtype, f"epilogue2d {act} {dtype} {layout} {shape} {offset} {scaled} {noises} {biased} {clamp}")


def epilogue2d_fir4(rng, quick):
    """Every subset of scale, noise, b and post_scale, of every kind, in both layouts, with every factor and dtype."""
    parts = list(itertools.product((False, True), (0, 1, 2), (False, True), (False, True)))
    calls = list(itertools.product(FACTORS, ("float16", "bfloat16", "float32"), ("nchw", "nhwc")))
    pads = [(2, 1, 2, 1), (1, 1, 1, 1), (-1, 5, 3, -2)]
    for i, (((up, down), dtype, layout), given) in enumerate(itertools.product(calls, parts)):
        if quick and i % 13:
            continue
        shape = (1 + i % 2 if given[1] < 2 else 2, 3 if layout == "nchw" else (4, 8, 36)[i % 3], 9 + 8 * (i % 2), 11)
        f = (FIR, np.outer(FIR, FIR), rng.standard_normal((4, 4)))[i % 3]
        act, clamp = ("linear", "relu", "lrelu")[i // 3 % 3], (-1.0, 0.6)[i // 2 % 2]
        run_epilogue2d_fir4(rng, act, dtype, layout, shape, f, up, down, pads[i % 3], given, clamp)
    everything = (True, 2, True, True)
    for dtype, layout in itertools.product(("float16", "float32"), ("nchw", "nhwc")):
        common = dict(up=(1, 1), down=(1, 1), pad=(1, 2, 2, 1), given=everything, dtype=dtype, layout=layout)
        shape = (2, 20, 8, 8)
        run_epilogue2d_fir4(rng, "lrelu", shape=shape, f=FIR, clamp=-1.0, tiling=(32, 8, 8, 8, 32), **common)
        for act in ("linear", "relu", "lrelu"):  # both signs of infinity, and NaN
            for spoil in (np.nan, np.inf, -np.inf):
                run_epilogue2d_fir4(rng, act, shape=shape, f=FIR, clamp=0.6, spoil=spoil, **common)
        if not quick:
            table = TABLE["narrow" if layout == "nchw" else "channels_last"]
            run_epilogue2d_fir4(rng, "lrelu", shape=(1, 24, 20, 18), f=FIR, clamp=9.0, tiling=table, **common)
    # Smooth activations, float64, other filters and factors that begin inside a vector have no such kernel.
    common = dict(shape=(2, 8, 9, 8), up=(1, 1), down=(1, 1), pad=(1, 2, 2, 1), given=everything, clamp=-1.0)
    for act, dtype, f, offset in (
        ("swish", "float32", FIR, 0), ("lrelu", "float64", FIR, 0), ("lrelu", "float32", FIR[:3], 0),
        ("lrelu", "float32", FIR, 1), ("lrelu", "float16", FIR, 2),
    ):  # fmt: skip
        run_epilogue2d_fir4(rng, act, dtype, "nhwc", f=f, offset=offset, fused=False, **common)
    run_epilogue2d_fir4(rng, "lrelu", "float32", "nchw", f=FIR, offset=1, **common)


def run_epilogue2d_fir4(
    rng, act, dtype, layout, shape, f, up, down, pad, given, clamp,
    tiling=SMALL, spoil=None, offset=0, fused=True,
):  # fmt: skip
    """``given``: a scale; no noise, one map or one per sample; a bias; a scale of the result. ``offset``: elements
    before the factors."""
    scaled, noises, biased, post_scaled = given
    n, c = shape[:2]
    acc = np.float64 if dtype == "float64" else np.float32
    x = rng.standard_normal(shape)
    if spoil is not None:
        x[0, 0, 1, 2] = spoil
    x, f, filter_gain = store(x, dtype), np.ascontiguousarray(f, acc), 1.7 / np.abs(f).max()
    z = oracle.upfirdn2d(load(x, dtype), f.astype(np.float64), up, down, pad, False, filter_gain)
    h, w = z.shape[2:]

    def tensor(values):
        buffer = np.empty(offset + values.size, values.dtype)
        buffer[offset:] = values.ravel()
        return buffer[offset:].reshape(values.shape)

    scale = tensor(rng.uniform(0.5, 1.5, (n, c)).astype(acc)) if scaled else None
    noise = tensor(rng.standard_normal((n if noises == 2 else 1, 1, h, w)).astype(acc)) if noises else None
    b = tensor(store(rng.standard_normal(c), dtype)) if biased else None
    post_scale = tensor(rng.uniform(-1.5, 1.5, (n, c)).astype(acc)) if post_scaled else None
    v = z * (1 if scale is None else scale.astype(np.float64)[:, :, None, None])
    v = v + (0 if noise is None else noise.astype(np.float64))
    bias = 0.0 if b is None else load(b, dtype)[:, None, None]
    want = oracle.bias_act(v, bias, 0, 0, 0, act, 0.2, 1.3, clamp)
    want = want if post_scale is None else want * post_scale.astype(np.float64)[:, :, None, None]
    y = place(store(np.full(want.shape, np.nan), dtype), layout)
    numbers = (oracle.ACTS.index(act) + 1, 0.2, 1.3, clamp, dtype, tiling, 2)
    geometry = (up, down, (pad[0], pad[2]), False, filter_gain)
    ran = harness.epilogue2d_fir4(place(x, layout), f, scale, noise, b, post_scale, y, *geometry, *numbers)
    what = f"epilogue2d_fir4 {act} {dtype} {layout} {shape} {f.shape} {up} {down} {pad} {given} {clamp} {spoil}"
    assert ran == ("" if not fused else "fir4" if layout == "nchw" else "fir4_channels_last"), f"{what}: {ran}"
    if fused:
        compare(y, want, dtype, what)
