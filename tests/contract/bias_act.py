"""The contract of bias_act: closed forms in float64, and what every backend promises beside its values."""

from __future__ import annotations

import itertools

import pytest
import tolerances
import torch

from posgan_fast import functional as PF
from posgan_fast.ops.bias_act import ACTIVATIONS

from .common import DTYPES, LAYOUTS, REFERENCE, check_derivatives, each_act, each_dtype, oracle, random

SMOOTH = ("tanh", "sigmoid", "elu", "selu", "softplus", "swish")
# Every pair of values of alpha, gain, (dim, biased) and (clamp, layout) occurs.
SETTINGS = [
    (
        (None, 0.5, -0.3)[i],
        (None, 2.0, -1.5)[j],
        ((1, True), (-1, True), (1, False))[(i + j) % 3],
        ((None, LAYOUTS[0]), (0.75, LAYOUTS[1]), (0.75, LAYOUTS[0]))[(i + 2 * j) % 3],
    )
    for i, j in itertools.product(range(3), repeat=2)
]


def answer(x, b, dim, act, alpha=None, gain=None, clamp=None, g=None, h=None):
    """The float64 result, and the gradients that the oracle lists for ``g`` and ``h``."""
    if oracle is not None:
        row = ACTIVATIONS[act]
        alpha = alpha if alpha is not None and act == "lrelu" else row.alpha
        return oracle.bias_act(x, b, dim, act, alpha, row.gain if gain is None else gain, clamp, g, h)
    call, x, b = (dim, act, alpha, gain, clamp), x.double(), None if b is None else b.double()
    if g is None:
        return [PF.bias_act(x, b, *call, backend="reference")]
    return list(derivatives(x, b, g.double(), h.double(), call, "reference")[:4])


def derivatives(x, b, g, h, call, backend):
    """y, the gradient dx of <y, g>, those of <dx, h> in g and x; with a bias those of both in b."""
    x, g = x.detach().requires_grad_(), g.detach().requires_grad_()
    b = None if b is None else b.detach().requires_grad_()
    y = PF.bias_act(x, b, *call, backend=backend)
    dx, *db = torch.autograd.grad(y, [t for t in (x, b) if t is not None], g, create_graph=True)
    inputs = [g, x] if b is None else [g, x, b]
    d_g, d_x, *d_b = torch.autograd.grad(dx, inputs, h, allow_unused=True)
    d_x = torch.zeros_like(x) if d_x is None else d_x
    return y, dx, d_g, d_x, *db, *(torch.zeros_like(b) if t is None else t for t in d_b)


def _over_others(t, dim):
    return t.double().sum([i for i in range(t.ndim) if i != dim % t.ndim])


def _away_from_the_clamp(x, b, dim, call, clamp):
    """Move values whose result could round across the clamp, where half precision has another gradient than float64."""
    if clamp is None:
        return x
    shift = 0 if b is None else b.double().reshape([-1 if i == dim % x.ndim else 1 for i in range(x.ndim)])
    y = PF.bias_act(x.double(), None if b is None else b.double(), dim, **call, clamp=clamp, backend="reference")
    near = (y.abs() / clamp - 1).abs() < 0.02
    return torch.where(near, (-0.1 - shift + torch.zeros_like(y)).to(x.dtype), x)


class BiasActContract:
    @each_dtype
    @each_act
    def test_value_and_both_derivatives(self, act, dtype, backend):
        for alpha, gain, (dim, biased), (clamp, layout) in backend.some(SETTINGS):
            x, g, h = (random((2, 5, 4, 5), dtype, seed) * 2 for seed in range(3))
            b = random((5,), dtype, 3) if biased else None
            x = _away_from_the_clamp(x, b, dim, dict(act=act, alpha=alpha, gain=gain), clamp)
            x = x.contiguous(memory_format=layout)
            call = (dim, act, alpha, gain, clamp)
            expected = answer(x, b, *call, g, h)
            given = (backend.put(t) for t in (x, b, g, h))
            y, dx, d_g, d_x, *of_bias = derivatives(*given, call, backend.name)
            for actual, e in zip((y, dx, d_g, d_x), expected, strict=True):
                backend.assert_close(actual, e, "bias_act", dtype)
            assert y.stride() == x.stride()
            for actual, summed in zip(of_bias, (dx, d_x), strict=bool(of_bias)):  # sums of rounded gradients
                tolerances.assert_close(actual, _over_others(summed, dim), "bias_act", dtype)
            assert act in SMOOTH or d_x.count_nonzero() == 0

    @pytest.mark.parametrize("clamp", [None, 0.6])
    @each_act
    def test_derivatives(self, act, clamp, backend):
        x = random((2, 3, 4), torch.float64, 1)
        x = torch.where(x.abs() < 0.05, 0.1, x)  # finite differences must not straddle a kink
        b = torch.zeros(3, dtype=torch.float64)
        check_derivatives(
            lambda x, b: PF.bias_act(x, b, act=act, clamp=clamp, backend=backend.name), (backend.put(x), backend.put(b))
        )

    def test_gradient_is_zero_at_the_clamp(self, backend):
        x = torch.tensor([[-2.0, -1.0, 0.5, 1.0, 2.0]])
        for act, dtype in itertools.product(("linear", "lrelu"), DTYPES):
            t = backend.put(x.to(dtype)).requires_grad_()
            y = PF.bias_act(t, act=act, alpha=0.5, gain=1.0, clamp=1.0, backend=backend.name)
            (g,) = torch.autograd.grad(y.sum(), t)
            assert g.tolist() == [[0.0, 0.0 if act == "linear" else 0.5, 1.0, 0.0, 0.0]]

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
    def test_a_clamp_that_rounds_still_masks(self, dtype, backend):
        """The derivative of relu is read off the output, which is the rounded clamp."""
        x = backend.put(torch.tensor([[5.0, 0.01]], dtype=dtype)).requires_grad_()
        for act in ("linear", "relu"):
            y = PF.bias_act(x, act=act, gain=1, clamp=0.1, backend=backend.name)
            (g,) = torch.autograd.grad(y.sum(), x)
            assert g.tolist() == [[0.0, 1.0]]

    @pytest.mark.parametrize("channels", [1, 3, 512, 1500])
    def test_bias_along_the_innermost_dimension(self, channels, backend):
        x, b = random((5, 7, channels), seed=3), random((channels,), seed=4)
        y = PF.bias_act(backend.put(x), backend.put(b), 2, "swish", backend=backend.name)
        backend.assert_close(y, answer(x, b, 2, "swish")[0], "bias_act", torch.float32)

    @each_dtype
    def test_extremes(self, dtype, backend):
        """Saturation, cancellation and not-a-number behave as in torch."""
        info = torch.finfo(dtype)
        edge = [-float("inf"), info.min, -100, -info.eps, -info.tiny, 0, info.tiny, info.eps, 100, info.max]
        x = torch.tensor([*edge, float("inf"), float("nan")], dtype=dtype)
        for act in ACTIVATIONS:
            expected = PF.bias_act(x.double(), None, 0, act, gain=1.0, backend=REFERENCE.name).to(dtype)
            actual = PF.bias_act(backend.put(x), None, 0, act, gain=1.0, backend=backend.name).cpu()
            torch.testing.assert_close(actual, expected, rtol=4 * info.eps, atol=1e-35, equal_nan=True)
        clamped = PF.bias_act(backend.put(x), None, 0, "linear", clamp=3.0, backend=backend.name).cpu()
        torch.testing.assert_close(clamped, x.clamp(-3, 3), equal_nan=True)

    @pytest.mark.parametrize("act,clamp", [("linear", None), ("relu", 1.0), ("lrelu", 1.0)])
    def test_in_place_under_autograd(self, act, clamp, backend):
        leaf, b = random((2, 3, 4, 4), seed=4), random((3,), seed=5)
        results = []
        for function in (PF.bias_act, PF.bias_act_):
            x, bias = backend.put(leaf.clone()).requires_grad_(), backend.put(b.clone()).requires_grad_()
            before = x * 1
            y = function(before, bias, act=act, clamp=clamp, backend=backend.name)
            assert (y is before) == (function is PF.bias_act_)
            results.append((y, *torch.autograd.grad(y.square().sum(), (x, bias))))
        for plain, in_place in zip(*results, strict=True):
            assert torch.equal(plain, in_place)

    @each_dtype
    def test_views_of_any_rank(self, dtype, backend):
        """Misaligned, permuted, gapped and empty tensors, whose memory format the result keeps."""
        storage = random((3, 4, 9, 23), dtype, 6)
        views = (
            (storage[:, :, 1:, 3:], 1), (storage.permute(3, 0, 2, 1), -1), (storage[:, 1:3, ::2], 1),
            (storage[0, 0], 0), (storage[0, 0, 0, 1:], 0), (storage[:0], 1), (storage.flatten(2)[:, :, 5:], 2),
        )  # fmt: skip
        for x, dim in views:
            b = random((x.shape[dim] + 1,), dtype, 7)[1:]
            y = PF.bias_act(backend.put(x), backend.put(b), dim, "lrelu", clamp=1, backend=backend.name)
            backend.assert_close(y, answer(x, b, dim, "lrelu", clamp=1)[0], "bias_act", dtype)
            assert y.stride() == torch.empty_like(x).stride()

    def test_a_bias_of_one_along_any_stride(self, backend):
        x, b = random((6, 1), seed=1), random((1,), seed=2)
        for size, stride in (((6, 1), (1, 1)), ((6, 1), (1, 0)), ((6, 1), (1, 1000)), ((6, 1), (1, 2**40))):
            view = x.as_strided(size, stride)
            there = backend.put(x).as_strided(size, stride)
            y = PF.bias_act(there, backend.put(b), 1, "relu", gain=1, backend=backend.name)
            assert torch.equal(y.cpu(), (view + b).relu())

    @pytest.mark.parametrize("gain", [1e-24, -1e-24])
    def test_the_slope_survives_a_tiny_gain(self, gain, backend):
        x = backend.put(torch.tensor([[1.0, -1.0]])).requires_grad_()
        y = PF.bias_act(x, act="lrelu", gain=gain, backend=backend.name)
        (g,) = torch.autograd.grad(y, x, torch.full_like(x, 1e24))
        torch.testing.assert_close(g.cpu(), torch.tensor([[1.0, 0.2]]) * (1 if gain > 0 else -1))

    @pytest.mark.parametrize("act", SMOOTH)
    def test_tails_do_not_cancel(self, act, backend):
        x = torch.tensor([[-30.0, -18.0, 18.0, 25.0, 30.0]], dtype=torch.float64)
        call = (1, act, None, 1.0, None)
        expected = answer(x, None, *call, torch.ones_like(x), torch.ones_like(x))
        x, g, h = (backend.put(t) for t in (x, torch.ones_like(x), torch.ones_like(x)))
        y, dx, d_g, d_x = derivatives(x, None, g, h, call, backend.name)
        for actual, wanted in zip((y, dx, d_g, d_x), expected, strict=True):
            torch.testing.assert_close(actual.detach().cpu(), wanted.detach(), rtol=1e-12, atol=1e-25)
