"""Lets the backend "cuda" serve tensors of the CPU, so that a test runs the path that a GPU would take: the native ops
of the CPU library stand in for those of the CUDA library, and plain torch for those that it alone has."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from posgan_fast import _native, backend
from posgan_fast.ops.modulated_conv2d import cuda, trained_factors, triton

_THREADS, _SHARED = 256, 48 * 2**10  # of a block of modulated_factors: threads, bytes of shared memory


def stand_in(monkeypatch: pytest.MonkeyPatch, *, with_triton: bool = False) -> None:
    """Take the CPU for a GPU until the end of the test, by default for one without Triton."""
    assert _native.load(_native.CPU).loaded
    for name in ("_elsewhere", "_unavailable", "_driver_too_old", "_not_built_for"):
        monkeypatch.setattr(backend, name, lambda *args: None)
    monkeypatch.setattr(
        cuda, "algorithm", lambda call: cuda.FUSED if with_triton and triton.serves(call) else cuda.STAGES
    )
    for function in (modulated_factors, modulated_factors_backward):
        monkeypatch.setattr(torch.ops.posgan_fast_native, function.__name__, function, raising=False)
    epilogue2d = torch.ops.posgan_fast_native.epilogue2d.default

    def with_post_scale(*args: Any) -> None:
        *before, post_scale, y = args[:8]
        epilogue2d(*before, None, y, *args[8:])
        if post_scale is not None:
            y.mul_(post_scale[:, :, None, None])

    monkeypatch.setattr(torch.ops.posgan_fast_native, "epilogue2d", with_post_scale)


def modulated_factors(
    weight: torch.Tensor, styles: torch.Tensor, bias: Any, noise: Any, strength: Any, out: torch.Tensor, cast_bias: Any,
    dcoefs: Any, scaled_styles: Any, scaled_noise: Any, divisors: Any, eps: float, fold: bool, transposed: bool,
    flip: bool,
) -> None:  # fmt: skip
    """The definition of the native op; csrc/modulated_conv2d.cuh has the formulas."""
    _check_memory(weight, styles, (bias, noise, strength, cast_bias, dcoefs, scaled_styles, scaled_noise))
    per_filter, per_sample = torch.ones(len(weight), 1, 1, 1), torch.ones(len(styles), 1)
    if dcoefs is not None and out.dtype == torch.float16:
        per_filter = _or_one(weight.abs().amax((1, 2, 3), keepdim=True) * math.sqrt(weight[0].numel()))
        per_sample = _or_one(styles.abs().amax(1, keepdim=True))
    if dcoefs is not None:
        sums = torch.einsum("ni,oikl->no", styles.square(), weight.square()) + eps
        dcoefs.copy_(sums.rsqrt() * per_filter.reshape(1, -1) * per_sample)
    w, s = weight / per_filter, styles / per_sample
    w = w.flip((2, 3)) if flip else w
    if fold:
        w = (w * s[:, None, :, None, None]).flatten(0, 1)
    out.copy_(w.transpose(0, 1) if transposed else w)
    for result, value in ((scaled_styles, s), (cast_bias, bias)):
        if result is not None:
            result.copy_(value)
    if scaled_noise is not None:
        scaled_noise.copy_(noise * strength)
    if divisors is not None:
        divisors.copy_(torch.cat([per_filter.flatten(), per_sample.flatten()]))


def modulated_factors_backward(
    weight: torch.Tensor, styles: torch.Tensor, dcoefs: torch.Tensor, divisors: Any, d_dcoefs: torch.Tensor,
    d_scaled: Any, d_weight: Any, d_styles: Any,
) -> None:  # fmt: skip
    """The definition of the native op, by autograd; csrc/modulated_factors_backward.cuh has the formulas."""
    _check_memory(weight, styles, (dcoefs, divisors, d_dcoefs, d_scaled, d_styles))
    assert d_weight is None or d_weight.stride() == weight.stride()
    if trained_factors.STYLE_SAMPLES * (len(weight) + _THREADS) * weight.itemsize > _SHARED:
        raise RuntimeError("modulated_factors_backward: expected fewer channels and samples")
    constants = weight.new_ones(len(weight) + len(styles)) if divisors is None else divisors
    filters, samples = constants[: len(weight)], constants[len(weight) :, None]
    with torch.enable_grad():
        w, s = weight.detach().requires_grad_(), styles.detach().requires_grad_()
        sums = torch.einsum("ni,oikl->no", s.square(), w.square())
        eps = (dcoefs / filters / samples) ** -2 - sums.detach()
        loss = ((sums + eps).rsqrt() * filters * samples * d_dcoefs).sum()
        if d_scaled is not None:
            loss = loss + (s / samples * d_scaled).sum()
        found = torch.autograd.grad(loss, (w, s))
    for result, value in zip((d_weight, d_styles), found, strict=True):
        if result is not None:
            result.copy_(value)


def _check_memory(weight: torch.Tensor, styles: torch.Tensor, others: Sequence[torch.Tensor | None]) -> None:
    """Refuse strides and sizes that the native op refuses, because its kernel would read astray."""
    is_dense = weight.is_contiguous() or weight.is_contiguous(memory_format=torch.channels_last)
    assert is_dense and (styles.shape[1] == 1 or styles.stride(1) == 1)
    assert all(t is None or t.is_contiguous() for t in others)
    assert (sum(styles.shape) + 2 * _THREADS) * styles.element_size() <= _SHARED


def _or_one(t: torch.Tensor) -> torch.Tensor:
    return torch.where((t > 0) & t.isfinite(), t, 1)
