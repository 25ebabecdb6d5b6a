"""bias_act on the host's backends: its contract, random calls, refusals, and what torch's tools make of it."""

from __future__ import annotations

import oracle
import pytest
import torch
from contract.bias_act import SMOOTH, BiasActContract
from contract.common import HOST, each_of
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import assert_close

from posgan_fast import functional as PF
from posgan_fast.ops.bias_act import ACTIVATIONS

BACKENDS = ("reference", "cpu")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
backend = each_of(HOST)


class TestContract(BiasActContract):
    """The contract on the CPU."""


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


@settings(max_examples=120, deadline=None)
@given(
    shape=st.lists(st.integers(0, 7), min_size=1, max_size=5), dim=st.integers(-5, 4), biased=st.booleans(),
    act=st.sampled_from(sorted(ACTIVATIONS)), clamp=st.sampled_from([None, 0.0, 0.5]),
    gain=st.sampled_from([None, 0.0, -2.0]), dtype=st.sampled_from(DTYPES), order=st.permutations(range(5)),
    stretch=st.booleans(), seed=st.integers(0, 2**20),
)  # fmt: skip
def test_backends_agree(shape, dim, biased, act, clamp, gain, dtype, order, stretch, seed):
    """Try any rank, permuted and gapped strides, and empty tensors."""
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


def test_nothing_to_do_returns_x():
    x = torch.randn(2, 3)
    assert PF.bias_act(x) is x


def test_opcheck():
    x, g, h = (torch.randn(2, 3, 4, 4, requires_grad=True) for _ in range(3))
    b = torch.randn(3, requires_grad=True)
    for backend, act, alpha in (("cpu", "lrelu", 0.2), ("reference", "lrelu", -0.2), ("cpu", "swish", 0.0)):
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
