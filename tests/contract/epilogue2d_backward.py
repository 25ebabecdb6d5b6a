"""The contract of epilogue2d_backward: finite sums of the definition in float64."""

from __future__ import annotations

import pytest
import torch
from tolerances import assert_close

from posgan_fast.ops.bias_act import ACTIVATIONS
from posgan_fast.ops.common import activations
from posgan_fast.ops.common.records import Activation
from posgan_fast.ops.epilogue2d.backward import GRADIENTS, Factors, gradients

from .common import each_act, each_dtype, each_layout, oracle

SHAPES = ((2, 3, 4, 5), (1, 40, 9, 13), (2, 16, 8, 8), (3, 8, 1, 1), (1, 1, 7, 3))


def check(shape, dtype, layout, act, backend, clamp=-1.0, alpha=None, gain=1.3, shared=False, wanted=GRADIENTS):
    """Compare the wanted gradients of random images with the definition, in which the clamp is rounded to the dtype."""
    generator = torch.manual_seed(0)

    def random(*sizes, as_dtype=dtype):
        return torch.randn(*sizes, generator=generator).to(as_dtype)

    (n, c, h, w), acc = shape, torch.promote_types(dtype, torch.float32)
    x, dy = (random(*shape).contiguous(memory_format=layout) for _ in range(2))
    scale, noise = random(n, c, as_dtype=acc).abs() + 0.5, random(1 if shared else n, 1, h, w, as_dtype=acc)
    b, alpha = random(c), ACTIVATIONS[act].alpha if alpha is None else alpha
    v = x.double() * scale.double()[:, :, None, None] + noise.double() + b.double()[:, None, None]
    value, slope = _activation(act, v, alpha)
    activation = Activation(act, alpha, gain, clamp)
    clamp = clamp if clamp < 0 else torch.tensor(clamp, dtype=dtype).item()
    y = (gain * value if clamp < 0 else (gain * value).clamp(-clamp, clamp)).to(dtype)
    inside = (gain * value).abs() < clamp if clamp >= 0 else torch.ones_like(v, dtype=torch.bool)
    reads_y = act in ("relu", "lrelu") and alpha >= 0 and "scale" not in wanted
    if clamp >= 0 and reads_y:  # the clamp is read off the rounded result
        inside = y.double().abs() < clamp
    g = dy.double() * gain * slope * inside
    expected = dict(
        x=g * scale.double()[:, :, None, None],
        scale=(g * x.double()).sum((2, 3)),
        noise=g.sum((0, 1) if shared else 1, keepdim=True),
        b=g.sum((0, 2, 3)),
    )
    images, factors = backend.put([dy, y, x]), Factors(*backend.put([scale, noise, b.to(acc)]))
    found = gradients(*images, factors, activation, set(wanted), backend.name, shared_noise=shared)
    found = {name: gradient.cpu() for name, gradient in found.items()}
    assert set(found) == set(wanted)
    terms = dict(scale=(dy * x).double().abs().sum((2, 3)), noise=dy.double().abs().sum((0, 1) if shared else 1))
    terms["b"] = dy.double().abs().sum((0, 2, 3))
    assert found.get("x", x).stride() == x.stride() and found.get("x", x).dtype == dtype
    for name in wanted:
        if name == "x":
            assert_close(found[name], expected[name], "epilogue2d", dtype)
            continue
        assert found[name].shape == expected[name].shape
        assert found[name].dtype == acc
        # Sums cancel: compare to the size of what is summed.
        bound = {torch.float64: 1e-14, torch.float32: 2e-6}.get(dtype, 3e-5)
        error = (found[name].double() - expected[name]).abs()
        assert (error <= bound * terms[name].reshape(error.shape)).all(), name


def _activation(act, v, alpha):
    """The activation and its first derivative in float64."""
    if oracle is None:
        return activations.value(act, v, alpha), activations.derivative(act, v, alpha)
    value, slope, _ = map(torch.from_numpy, oracle.activation(act, v.numpy(), alpha))
    return value, slope


class BackwardContract:
    """The promises of every backend."""

    @each_layout
    @each_dtype
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_value(self, shape, dtype, layout, backend):
        check(shape, dtype, layout, "lrelu", backend)

    @each_layout
    @each_act
    @pytest.mark.parametrize("clamp", [-1.0, 0.8])
    def test_every_activation(self, act, clamp, layout, backend):
        check((2, 3, 5, 7), torch.float32, layout, act, backend, clamp)

    @each_layout
    @pytest.mark.parametrize("alpha,gain", [(-0.5, 1.3), (0.2, -1.0), (0.0, 1.0)])
    def test_slopes_that_hide_signs(self, alpha, gain, layout, backend):
        check((2, 3, 5, 7), torch.float32, layout, "lrelu", backend, 0.8, alpha, gain)

    @each_layout
    @pytest.mark.parametrize("wanted", [("x",), ("scale",), ("noise",), ("b",), ("x", "scale"), ("noise", "b")])
    def test_what_is_wanted(self, wanted, layout, backend):
        check((2, 16, 5, 7), torch.float16, layout, "lrelu", backend, clamp=0.8, wanted=wanted)
        check((2, 16, 5, 7), torch.float32, layout, "linear", backend, wanted=wanted)

    @each_layout
    def test_one_noise_for_all_samples(self, layout, backend):
        check((3, 4, 5, 7), torch.float32, layout, "lrelu", backend, shared=True)
