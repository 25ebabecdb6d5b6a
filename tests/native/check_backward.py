"""Compares the CUDA kernel of epilogue2d_backward, run on the host, with its definition in float64."""

from __future__ import annotations

import itertools

import harness
import kernel_oracle as oracle
import numpy as np
from storage import STORAGE, compare, load, place, store

# N, C, H, W; elements before the start; pixels of a tile; threads of a block
SHAPES = (
    ((2, 16, 5, 8), 0, 16, 8),  # whole vectors in both layouts; the last tile is not whole
    ((2, 3, 7, 5), 0, 16, 8),  # rows that end inside a vector
    ((2, 8, 2, 4), 1, 16, 8),  # misaligned
    ((1, 72, 3, 3), 0, 4, 8),  # more channels than the threads of a row hold
    ((1, 2, 2, 70), 0, 128, 8),  # more pixels than that
    ((1, 72, 2, 34), 0, 64, 32),  # so many threads along a row that two steps add it up
    ((5, 13, 1, 1), 0, 16, 8),  # one pixel
)
WANTED = ((True, 2, True), (True, 1, False), (False, 2, False), (True, 0, True), (False, 0, True))  # dx, sums


def epilogue2d_backward(rng, quick):
    acts = [(act, 0.2) for act in oracle.ACTS] + [("lrelu", -0.2)]  # a negative slope hides the sign of the input
    cases = itertools.product(acts, STORAGE, ("nchw", "nhwc"), (True, False), (0, 1, 2))
    for i, (act, dtype, layout, scaled, noises) in enumerate(cases):
        if quick and i % 17:
            continue
        case = SHAPES[i % len(SHAPES)]
        run(rng, act, dtype, layout, case, scaled, noises, i % 3 > 0, (-1.0, 0.5)[i // 2 % 2], WANTED[0])
    for dtype, layout, case, wanted in itertools.product(STORAGE, ("nchw", "nhwc"), SHAPES, WANTED):
        if not quick or (dtype, case) == ("float32", SHAPES[0]):
            run(rng, ("lrelu", 0.2), dtype, layout, case, True, 2, True, 0.7, wanted)
            run(rng, ("linear", 0.0), dtype, layout, case, False, 0, False, -1.0, wanted)


def run(rng, activation, dtype, layout, case, scaled, noises, biased, clamp, wanted):
    (act, alpha), (shape, offset, tile, threads), (wants_dx, quantities, pixels) = activation, case, wanted
    n, c, h, w = shape
    acc = np.float64 if dtype == "float64" else np.float32
    x, dy = (store(2 * rng.standard_normal(shape), dtype) for _ in range(2))
    scale = rng.uniform(0.5, 1.5, (n, c)).astype(acc) if scaled else None
    noise = rng.standard_normal((n if noises == 2 else 1, 1, h, w)).astype(acc) if noises else None
    b = store(rng.standard_normal(c), dtype) if biased else None
    v = load(x, dtype) * (1 if scale is None else scale.astype(np.float64)[:, :, None, None])
    v = v + (0 if noise is None else noise.astype(np.float64))
    v = v + (0 if b is None else load(b, dtype)[:, None, None])
    clamp = clamp if clamp < 0 else float(load(store(np.array([clamp]), dtype), dtype)[0])  # as callers round it
    y = store(oracle.bias_act(v, 0, 0, 0, 0, act, alpha, 1.3, clamp), dtype)
    g = oracle.bias_act(v, 0, load(dy, dtype), 0, 1, act, alpha, 1.3, clamp)
    reads_y = act in ("relu", "lrelu") and alpha >= 0 and quantities < 2  # else x is there to read
    if reads_y and clamp >= 0:  # the kernel sees the clamp in the rounded result
        g = np.where(
            np.abs(load(y, dtype)) < clamp, oracle.bias_act(v, 0, load(dy, dtype), 0, 1, act, alpha, 1.3, -1.0), 0
        )

    def fresh(*sizes):
        return np.full(sizes, np.nan, acc)

    images = [None if t is None else place(t, layout, offset) for t in (dy, y if reads_y else None, x)]
    dx = place(store(np.full(shape, np.nan), dtype), layout, offset) if wants_dx else None
    channel_sums = fresh(quantities, n, -(-h * w // tile), c) if quantities else None
    pixel_sums = fresh(n, h * w) if pixels else None
    call = (tile, layout == "nhwc", oracle.ACTS.index(act) + 1, alpha, 1.3, clamp, dtype, threads)
    harness.epilogue2d_backward(*images, scale, noise, b, dx, channel_sums, pixel_sums, *call)

    what = f"epilogue2d_backward {activation} {dtype} {layout} {case} {scaled} {noises} {biased} {clamp} {wanted}"
    if wants_dx:
        compare(dx, g * (1 if scale is None else scale.astype(np.float64)[:, :, None, None]), dtype, f"{what}: dx")
    size = np.abs(load(dy, dtype))  # a slope is a difference, and may be smaller than its terms
    for q in range(quantities):
        factor = load(x, dtype) if q else 1
        want, terms = (g * factor).sum((2, 3)), (size * np.abs(factor)).sum((2, 3))
        close(channel_sums[q].sum(1), want, terms, dtype, f"{what}: channels {q}")
    if pixels:
        close(pixel_sums, g.sum(1).reshape(n, -1), size.sum(1).reshape(n, -1), dtype, f"{what}: pixels")


def close(got, want, magnitude, dtype, what):
    """Compare sums, whose errors are those of their terms: a sum may cancel."""
    bound = {"float32": 2e-6, "float64": 1e-14}.get(dtype, 3e-5)  # half precision has fast exponentials
    assert (np.abs(got - want) <= bound * magnitude + 1e-30).all(), f"{what}: {np.abs(got - want).max():.2e}"
