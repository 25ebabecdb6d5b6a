"""Compares the CUDA kernels of modulated_conv2d's factors and of their gradients, run on the host, with float64."""

from __future__ import annotations

import itertools

import harness
import numpy as np
from storage import STORAGE, compare, load, store

SIZES = ((3, 5, 7, 9), (1, 13, 1, 1), (11, 3, 40, 1), (2, 4, 3, 4))  # N, O, I, taps
GRADIENT_SIZES = ((3, 5, 7, 9), (1, 13, 60, 1), (11, 3, 40, 1), (6, 14, 3, 4))  # alike, of more products


def modulated_factors(rng, quick):
    options = itertools.product(STORAGE, SIZES, (True, False), (True, False), (True, False), ("nchw", "nhwc"))
    for i, (dtype, size, fold, demodulate, flip, layout) in enumerate(options):
        if not quick or i % 13 == 0:
            prepare(rng, dtype, size, fold, demodulate, flip, layout, (1.0, 1e8, 1e-8)[i % 3])


def prepare(rng, dtype, size, fold, demodulate, flip, layout, scale):
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
    divisors = np.full(o + n, np.nan, acc)
    extra = (bias, noise, strength) if fold else (None, None, None)
    written = (cast_bias, scaled_noise) if fold else (None, None)
    with np.errstate(divide="ignore"):
        harness.modulated_factors(
            laid_out(weight, layout), strided, *extra, out, written[0], dcoefs, scaled, written[1], divisors, eps, fold,
            flip, in_range, dtype, 64,
        )  # fmt: skip
        if fold:
            assert np.array_equal(cast_bias, store(bias.astype(np.float64), dtype))
            assert np.array_equal(scaled_noise, noise * strength)
        what = f"{dtype} {size} {fold} {layout}"
        check(weight, styles, out, dcoefs, scaled, divisors, eps, fold, flip, in_range, dtype, what)


def check(weight, styles, out, dcoefs, scaled, divisors, eps, fold, flip, in_range, dtype, what):
    w, s = weight.astype(np.float64), styles.astype(np.float64)
    filters, samples = divisors_of(w, s, in_range)
    stored = (w / filters[:, None, None])[:, :, :: -1 if flip else 1]
    want = stored * (s / samples[:, None])[:, None, :, None] if fold else stored
    compare(np.ascontiguousarray(out), want, dtype, f"modulated_factors {what}: out")
    wide = "float64" if dtype == "float64" else "float32"
    compare(divisors, np.concatenate([filters, samples]), wide, f"{what}: divisors")
    if scaled is not None:
        compare(scaled, s / samples[:, None], wide, f"{what}: styles")
    if dcoefs is not None:
        sums = np.einsum("ni,oik->no", s**2, w**2) + eps
        compare(dcoefs, samples[:, None] * filters / np.sqrt(sums), wide, f"{what}: dcoefs")
        assert np.abs(load(out, dtype)).max() <= 1 or not in_range


def laid_out(weight, layout):
    """Return a weight [O, I, taps], in memory [O, taps, I] for "nhwc"."""
    return weight if layout == "nchw" else np.moveaxis(np.ascontiguousarray(np.moveaxis(weight, 1, 2)), 2, 1)


def divisors_of(w, s, in_range):
    """Return the divisors of the filters and of the samples."""
    if not in_range:
        return np.ones(len(w)), np.ones(len(s))
    return _or_one(np.abs(w).max((1, 2)) * np.sqrt(w[0].size)), _or_one(np.abs(s).max(1))


def _or_one(divisor):
    return np.where((divisor > 0) & np.isfinite(divisor), divisor, 1.0)


def modulated_factors_backward(rng, quick):
    for dtype in ("float32", "float64"):
        for size, in_range, wanted, layout in itertools.product(
            GRADIENT_SIZES[quick:], (True, False), ("both", "weight", "styles"), ("nchw", "nhwc")
        ):
            differentiate(rng, dtype, size, in_range, wanted, layout)


def differentiate(rng, dtype, size, in_range, wanted, layout):
    """Compare the gradients of weight and styles with complex-step derivatives of the definition in float64."""
    n, o, i, taps = size
    weight, styles, d_dcoefs, d_scaled = (
        rng.standard_normal(shape).astype(dtype) for shape in ((o, i, taps), (n, i), (n, o), (n, i))
    )
    w, s = weight.astype(np.float64), styles.astype(np.float64)
    filters, samples = divisors_of(w, s, in_range)

    def coefficients(w, s):  # as modulated_factors defines them, with the divisors as constants
        return np.outer(samples, filters) / np.sqrt(np.einsum("ni,oik->no", s**2, w**2) + 1e-2)

    def loss(w, s):
        return (coefficients(w, s) * d_dcoefs).sum() + ((s / samples[:, None] * d_scaled).sum() if in_range else 0)

    d_weight = None if wanted == "styles" else laid_out(np.full((o, i, taps), np.nan, dtype), layout)
    d_styles = None if wanted == "weight" else np.full((n, i), np.nan, dtype)
    harness.modulated_factors_backward(
        laid_out(weight, layout), np.concatenate([styles, styles], 1)[:, :i], coefficients(w, s).astype(dtype),
        np.concatenate([filters, samples]).astype(dtype) if in_range else None, d_dcoefs,
        d_scaled if in_range else None, d_weight, d_styles, dtype, 64,
    )  # fmt: skip
    what = f"modulated_factors_backward {dtype} {size} {in_range} {layout}"
    if d_weight is not None:
        compare(d_weight, slopes(w, lambda w: loss(w, s)), dtype, f"{what}: weight")
    if d_styles is not None:
        compare(d_styles, slopes(s, lambda s: loss(w, s)), dtype, f"{what}: styles")


def slopes(t, function, step=1e-40):
    found = np.empty_like(t)
    for at in np.ndindex(t.shape):
        moved = t.astype(np.complex128)
        moved[at] += step * 1j
        found[at] = function(moved).imag / step
    return found
