"""Compares the CUDA kernel that prepares the factors of modulated_conv2d, run on the host, with float64."""

from __future__ import annotations

import itertools

import harness
import numpy as np
from storage import STORAGE, compare, load, store

SIZES = ((3, 5, 7, 9), (1, 13, 1, 1), (11, 3, 40, 1), (2, 4, 3, 4))  # N, O, I, taps


def modulated_factors(rng, quick):
    options = itertools.product(STORAGE, SIZES, (True, False), (True, False), (True, False), ("nchw", "nhwc"))
    for i, (dtype, size, fold, demodulate, flip, layout) in enumerate(options):
        if not quick or i % 13 == 0:
            run(rng, dtype, size, fold, demodulate, flip, layout, (1.0, 1e8, 1e-8)[i % 3])


def run(rng, dtype, size, fold, demodulate, flip, layout, scale):
    (n, o, i, taps), acc = size, np.float64 if dtype == "float64" else np.float32
    in_range = demodulate and dtype == "float16"
    scale = scale if in_range else 1.0
    weight = (rng.standard_normal((o, i, taps)) * np.sqrt(scale)).astype(acc)
    styles = (rng.standard_normal((n, i)) / scale).astype(acc)
    weight[0, 0] = 0
    styles[-1] *= 0 if n > 1 else 1
    eps = 1e-8 if scale == 1 else 0.0

    sizes = (n, o, i, taps) if fold else (o, i, taps)
    memory = store(np.full(sizes if layout == "nchw" else (*sizes[:-2], taps, i), np.nan), dtype)
    out = memory if layout == "nchw" else np.moveaxis(memory, -1, -2)
    dcoefs = np.full((n, o), np.nan, acc) if demodulate else None
    scaled = np.full((n, i), np.nan, acc) if in_range and not fold else None
    strided = np.concatenate([styles, np.full_like(styles, np.nan)], 1)[:, :i]  # rows with gaps
    bias, noise, strength = (rng.standard_normal(shape).astype(acc) for shape in (o, (1, 1, 71, 61 * n), ()))
    cast_bias, scaled_noise = store(np.full(o, np.nan), dtype), np.full(noise.shape, np.nan, acc)
    extra = (bias, noise, strength) if fold else (None, None, None)
    written = (cast_bias, scaled_noise) if fold else (None, None)
    with np.errstate(divide="ignore"):
        harness.modulated_factors(
            weight, strided, *extra, out, written[0], dcoefs, scaled, written[1], eps, fold, flip, in_range, dtype, 64
        )
        if fold:
            assert np.array_equal(cast_bias, store(bias.astype(np.float64), dtype))
            assert np.array_equal(scaled_noise, noise * strength)
        check(weight, styles, out, dcoefs, scaled, eps, fold, flip, in_range, dtype, f"{dtype} {size} {fold} {layout}")


def check(weight, styles, out, dcoefs, scaled, eps, fold, flip, in_range, dtype, what):
    w, s = weight.astype(np.float64), styles.astype(np.float64)
    filters, samples = np.ones(len(w)), np.ones(len(s))
    if in_range:
        filters = _or_one(np.abs(w).max((1, 2)) * np.sqrt(w[0].size))
        samples = _or_one(np.abs(s).max(1))
    stored = (w / filters[:, None, None])[:, :, :: -1 if flip else 1]
    want = stored * (s / samples[:, None])[:, None, :, None] if fold else stored
    compare(np.ascontiguousarray(out), want, dtype, f"modulated_factors {what}: out")
    wide = "float64" if dtype == "float64" else "float32"
    if scaled is not None:
        compare(scaled, s / samples[:, None], wide, f"{what}: styles")
    if dcoefs is not None:
        sums = np.einsum("ni,oik->no", s**2, w**2) + eps
        compare(dcoefs, samples[:, None] * filters / np.sqrt(sums), wide, f"{what}: dcoefs")
        assert np.abs(load(out, dtype)).max() <= 1 or not in_range


def _or_one(divisor):
    return np.where((divisor > 0) & np.isfinite(divisor), divisor, 1.0)
