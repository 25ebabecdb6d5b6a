"""bias_act against closed forms in float64, every backend that runs here, and its contract."""

from __future__ import annotations

import itertools

import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import assert_close

from posgan_fast import functional as PF
from posgan_fast.ops.bias_act import ACTIVATIONS

BACKENDS = ("reference", "cpu")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
SMOOTH = ("tanh", "sigmoid", "elu", "selu", "softplus", "swish")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_equals_closed_form(act, dtype, backend):
    """Value and both derivatives, over alpha, gain, clamp, bias, dimension and layout."""
    row = ACTIVATIONS[act]
    cases = itertools.product((None, 0.5, -0.3), (None, 2.0, -1.5), (None, 0.75), ((1, True), (-1, True), (1, False)))
    for alpha, gain, clamp, (dim, biased) in cases:
        generator = torch.manual_seed(0)
        x, g, h = (torch.randn(2, 5, 4, 5, generator=generator).to(dtype) * 2 for _ in range(3))
        b = torch.randn(5, generator=generator).to(dtype) if biased else None
        x = x.contiguous(memory_format=torch.channels_last) if clamp else x
        slope = alpha if alpha is not None and act == "lrelu" else row.alpha
        y, dx, d_g, d_x = oracle.bias_act(x, b, dim, act, slope, row.gain if gain is None else gain, clamp, g, h)
        inputs = [t.requires_grad_() for t in ((x, b, g) if biased else (x, g))]
        actual = PF.bias_act(x, b, dim, act, alpha, gain, clamp, backend=backend)
        assert_close(actual, y, "bias_act", dtype)
        assert actual.stride() == x.stride()
        actual_dx, *db = torch.autograd.grad(actual, inputs[:-1], g, create_graph=True)
        assert_close(actual_dx, dx, "bias_act", dtype)
        over = [i for i in range(4) if i != dim % 4]
        if biased:
            assert_close(db[0], dx.sum(over), "bias_act", dtype)
        second = torch.autograd.grad(actual_dx, inputs, h, allow_unused=True)
        assert_close(second[-1], d_g, "bias_act", dtype)
        if act in SMOOTH:
            assert_close(second[0], d_x, "bias_act", dtype)
            if biased:
                assert_close(second[1], d_x.sum(over), "bias_act", dtype)
        elif second[0] is not None:
            assert second[0].count_nonzero() == 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("clamp", [None, 0.6])
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_derivatives(act, clamp, backend):
    generator = torch.manual_seed(1)
    x = torch.randn(2, 3, 4, dtype=torch.float64, generator=generator)
    x = torch.where(x.abs() < 0.05, 0.1, x).requires_grad_()  # finite differences must not straddle a kink
    b = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    function = lambda x, b: PF.bias_act(x, b, act=act, clamp=clamp, backend=backend)  # noqa: E731
    assert torch.autograd.gradcheck(function, (x, b))
    assert torch.autograd.gradgradcheck(function, (x, b))


@pytest.mark.parametrize("act", ["linear", "relu", "lrelu"])
def test_third_derivative_of_piecewise_linear_ones(act):
    x = torch.randn(3, 4, dtype=torch.float64, generator=torch.manual_seed(2)).requires_grad_()
    b = torch.zeros(4, dtype=torch.float64, requires_grad=True)

    def gradient(x, b):
        return torch.autograd.grad(PF.bias_act(x, b, act=act).pow(3).sum(), (x, b), create_graph=True)

    assert torch.autograd.gradgradcheck(gradient, (x, b))


@pytest.mark.parametrize("act", SMOOTH)
def test_third_derivative_of_smooth_ones_raises(act):
    x = torch.randn(3, 4, requires_grad=True)
    (first,) = torch.autograd.grad(PF.bias_act(x, act=act).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="third derivative"):
        torch.autograd.grad(second.sum(), x)


def test_gradient_is_zero_at_the_clamp():
    x = torch.tensor([[-2.0, -1.0, 0.5, 1.0, 2.0]])
    for act, backend, dtype in itertools.product(("linear", "lrelu"), BACKENDS, DTYPES):
        t = x.to(dtype).requires_grad_()
        y = PF.bias_act(t, act=act, alpha=0.5, gain=1.0, clamp=1.0, backend=backend)
        (g,) = torch.autograd.grad(y.sum(), t)
        assert g.tolist() == [[0.0, 0.0 if act == "linear" else 0.5, 1.0, 0.0, 0.0]]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_clamp_that_rounds_still_masks(dtype):
    x = torch.tensor([[5.0, 0.01]], dtype=dtype, requires_grad=True)
    for backend in BACKENDS:
        (g,) = torch.autograd.grad(PF.bias_act(x, act="linear", clamp=0.1, backend=backend).sum(), x)
        assert g.tolist() == [[0.0, 1.0]]


@settings(max_examples=120, deadline=None)
@given(
    shape=st.lists(st.integers(0, 7), min_size=1, max_size=5), dim=st.integers(-5, 4), biased=st.booleans(),
    act=st.sampled_from(sorted(ACTIVATIONS)), clamp=st.sampled_from([None, 0.0, 0.5]),
    gain=st.sampled_from([None, 0.0, -2.0]), dtype=st.sampled_from(DTYPES), order=st.permutations(range(5)),
    stretch=st.booleans(), seed=st.integers(0, 2**20),
)  # fmt: skip
def test_backends_agree(shape, dim, biased, act, clamp, gain, dtype, order, stretch, seed):
    """Any rank, permuted and gapped strides, empty tensors."""
    generator = torch.manual_seed(seed)
    x = torch.randn([n + stretch for n in shape], generator=generator).to(dtype)
    x = x.permute([i for i in order if i < x.ndim])
    x = x[tuple(slice(1, None) for _ in shape)] if stretch else x
    dim = dim if -x.ndim <= dim < x.ndim else 0
    b = torch.randn(x.shape[dim], generator=generator).to(dtype) if biased else None
    row = ACTIVATIONS[act]
    (expected,) = oracle.bias_act(x, b, dim, act, row.alpha, row.gain if gain is None else gain, clamp)
    for backend in BACKENDS:
        y = PF.bias_act(x, b, dim, act, gain=gain, clamp=clamp, backend=backend)
        assert_close(y, expected, "bias_act", dtype)
        assert act == "linear" or y.stride() == torch.empty_like(x).stride()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("channels", [1, 3, 512, 1500])
def test_bias_along_the_innermost_dimension(channels, backend):
    generator = torch.manual_seed(3)
    x, b = torch.randn(5, 7, channels, generator=generator), torch.randn(channels, generator=generator)
    (expected,) = oracle.bias_act(x, b, 2, "swish", 0, 2**0.5, None)
    assert_close(PF.bias_act(x, b, 2, "swish", backend=backend), expected, "bias_act", torch.float32)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_extremes(dtype, backend):
    """Saturation and not-a-number behave as in torch."""
    info = torch.finfo(dtype)
    x = torch.tensor(
        [-float("inf"), info.min, -100, -info.tiny, 0, info.tiny, 100, info.max, float("inf"), float("nan")],
        dtype=dtype,
    )
    for act in ACTIVATIONS:
        expected = PF.bias_act(x.double(), None, 0, act, gain=1.0, backend="reference").to(dtype)
        actual = PF.bias_act(x, None, 0, act, gain=1.0, backend=backend)
        torch.testing.assert_close(actual, expected, rtol=4 * info.eps, atol=1e-35, equal_nan=True)
    clamped = PF.bias_act(x, None, 0, "linear", clamp=3.0, backend=backend)
    torch.testing.assert_close(clamped, x.clamp(-3, 3), equal_nan=True)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("act,clamp", [("linear", None), ("relu", 1.0), ("lrelu", 1.0)])
def test_in_place_under_autograd(act, clamp, backend):
    generator = torch.manual_seed(4)
    leaf, b = torch.randn(2, 3, 4, 4, generator=generator), torch.randn(3, generator=generator)
    results = []
    for function in (PF.bias_act, PF.bias_act_):
        x, bias = leaf.clone().requires_grad_(), b.clone().requires_grad_()
        before = x * 1
        y = function(before, bias, act=act, clamp=clamp, backend=backend)
        assert (y is before) == (function is PF.bias_act_)
        results.append((y, *torch.autograd.grad(y.square().sum(), (x, bias))))
    for plain, in_place in zip(*results, strict=True):
        assert torch.equal(plain, in_place)


def test_in_place_refuses_what_it_cannot_do():
    x = torch.randn(2, 3, requires_grad=True)
    for arguments in (dict(act="swish"), dict(act="linear", clamp=1), dict(act="lrelu", alpha=-0.1)):
        with pytest.raises(ValueError, match="^act:"):
            PF.bias_act_(x * 1, **arguments)
    with pytest.raises(ValueError, match="^x:"):
        PF.bias_act_(torch.randn(2, 3, 4)[:, :, ::2])
    before = x.detach().clone()
    with pytest.raises(ValueError, match="^x:"):
        PF.bias_act_(x, act="relu")
    assert torch.equal(x, before)
    with torch.no_grad():
        y = PF.bias_act_(x.clone(), act="swish")
    torch.testing.assert_close(y, PF.bias_act(x, act="swish"))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_bias_of_one_along_any_stride(backend):
    x, b = torch.randn(6, 1), torch.randn(1)
    for view in (x, x[:, :1], x.as_strided((6, 1), (1, 0)), x.as_strided((6, 1), (1, 1000))):
        y = PF.bias_act(view, b, 1, "relu", gain=1, backend=backend)
        assert torch.equal(y, (view + b).relu())


def test_a_linear_result_may_be_written_over():
    """StyleGAN2's residual blocks add into the output of their linear skip branch."""
    x, b = torch.randn(2, 3, requires_grad=True), torch.randn(3, requires_grad=True)
    y = PF.bias_act(x, b, act="linear", gain=0.5)
    y.add_(1)
    dx, db = torch.autograd.grad(y.sum(), (x, b))
    assert dx.eq(0.5).all() and db.eq(1.0).all()


def test_autograd_notices_a_value_written_over():
    w, a = torch.randn(2, 3, requires_grad=True), torch.randn(2, 3)
    y = w * a
    PF.bias_act_(a, act="lrelu")
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("gain", [1e-24, -1e-24])
def test_the_slope_survives_a_tiny_gain(gain, backend):
    x = torch.tensor([[1.0, -1.0]], requires_grad=True)
    (g,) = torch.autograd.grad(PF.bias_act(x, act="lrelu", gain=gain, backend=backend), x, torch.full((1, 2), 1e24))
    torch.testing.assert_close(g, torch.tensor([[1.0, 0.2]]) * (1 if gain > 0 else -1))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("act", SMOOTH)
def test_tails_do_not_cancel(act, backend):
    x = torch.tensor([[-30.0, -18.0, 18.0, 25.0, 30.0]], dtype=torch.float64, requires_grad=True)
    g, h = torch.ones_like(x).requires_grad_(), torch.ones_like(x)
    expected = oracle.bias_act(x, None, 1, act, 0, 1.0, None, g, h)
    y = PF.bias_act(x, act=act, gain=1.0, backend=backend)
    (dx,) = torch.autograd.grad(y, x, g, create_graph=True)
    dg, ddx = torch.autograd.grad(dx, (g, x), h)
    for actual, wanted in zip((y, dx, dg, ddx), expected, strict=True):
        torch.testing.assert_close(actual.detach(), wanted, rtol=1e-12, atol=1e-25)


def test_nothing_to_do_returns_x():
    x = torch.randn(2, 3)
    assert PF.bias_act(x) is x


def test_opcheck():
    x, g, h = (torch.randn(2, 3, 4, 4, requires_grad=True) for _ in range(3))
    b = torch.randn(3, requires_grad=True)
    for backend, (act, alpha) in itertools.product(BACKENDS, (("lrelu", 0.2), ("lrelu", -0.2), ("swish", 0.0))):
        arguments = (1, act, alpha, 1.5, 0.8, backend)
        torch.library.opcheck(torch.ops.posgan_fast.bias_act.default, (x, b, *arguments))
        torch.library.opcheck(torch.ops.posgan_fast.bias_act_grad.default, (g, x, b, *arguments))
        torch.library.opcheck(torch.ops.posgan_fast.bias_act_grad2.default, (h, g, x.detach(), b.detach(), *arguments))
        torch.library.opcheck(torch.ops.posgan_fast.bias_act_.default, (x.detach().clone(), b.detach(), *arguments))


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("act", ["lrelu", "swish"])
def test_compiles_without_a_graph_break(act, dynamic):
    def block(x, b):
        return PF.bias_act(x.sin(), b, act=act, clamp=0.5)

    x, b = torch.randn(2, 3, 8, 8, requires_grad=True), torch.randn(3, requires_grad=True)
    compiled = torch.compile(block, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    expected = torch.autograd.grad(block(x, b).square().sum(), (x, b))
    actual = torch.autograd.grad(compiled(x, b).square().sum(), (x, b))
    torch.testing.assert_close(actual, expected)


def test_compiles_in_place():
    def block(x):
        return PF.bias_act_(x.sin(), act="lrelu")

    x = torch.randn(2, 3, 4)
    compiled = torch.compile(block, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x), block(x))


def test_autocast_casts_the_bias():
    x, b = torch.randn(2, 3, 4, 4).bfloat16(), torch.randn(3, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        y = PF.bias_act(x, b, act="lrelu")
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert b.grad is not None and b.grad.dtype == torch.float32


@pytest.mark.parametrize("act", ["linear", "lrelu", "swish"])
def test_the_bias_of_a_vector_has_a_gradient_of_its_own_shape(act):
    x, b = (torch.randn(5, dtype=torch.float64).requires_grad_() for _ in range(2))
    y = PF.bias_act(x, b, dim=0, act=act)
    dx, db = torch.autograd.grad(y.square().sum(), (x, b), create_graph=True)
    torch.testing.assert_close(db, dx)  # each value of the bias belongs to one of x
    assert torch.autograd.gradgradcheck(lambda x, b: PF.bias_act(x, b, dim=0, act=act), (x, b))
