"""epilogue2d on the host's backends: its contract, random calls, large sizes, and what torch's tools make of it."""

from __future__ import annotations

import pytest
import torch
from contract.common import DTYPES, HOST, LAYOUTS, each_layout, each_of
from contract.epilogue2d import PARTS, RESAMPLINGS, Epilogue2dContract, answer, operands
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import assert_close

from posgan_fast import functional as PF
from posgan_fast.ops.bias_act import ACTIVATIONS

backend = each_of(HOST)


class TestContract(Epilogue2dContract):
    """The contract on the CPU."""


@each_layout
@pytest.mark.parametrize("shape", [(1, 40, 65, 67), (2, 3, 200, 3), (1, 1100, 2, 3), (1, 2, 1100, 1000)], ids=str)
@pytest.mark.parametrize("name", ["none", "blur"])
def test_sizes_of_every_path(name, shape, layout):
    """Rows and pixels longer than a chunk, segments, results that are written past the caches."""
    x, call = operands(shape, torch.float32, layout, RESAMPLINGS[name])
    y = PF.epilogue2d(x, **call, act="lrelu", backend="cpu")
    expected = PF.epilogue2d(x.double(), **call, act="lrelu", backend="reference")
    assert_close(y, expected, "epilogue2d", torch.float32)


@settings(max_examples=120, deadline=None)
@given(
    n=st.integers(0, 3), c=st.integers(1, 20), h=st.integers(1, 9), w=st.integers(1, 20),
    name=st.sampled_from(sorted(RESAMPLINGS)), scaled=st.booleans(), noises=st.sampled_from([0, 1, 3]),
    biased=st.booleans(), act=st.sampled_from(sorted(ACTIVATIONS)), clamp=st.sampled_from([None, 0.5]),
    dtype=st.sampled_from(DTYPES), channels_last=st.booleans(), cut=st.booleans(), seed=st.integers(0, 2**20),
)  # fmt: skip
def test_backends_agree(n, c, h, w, name, scaled, noises, biased, act, clamp, dtype, channels_last, cut, seed):
    resampling = RESAMPLINGS[name]
    grow = {"blur": 1, "up2": 0, "down2": 1, "uneven": 2, "none": int(cut)}[name]  # to the filter, or by what is cut
    h, w = h + grow, w + grow
    x, call = operands((n, c, h, w), dtype, LAYOUTS[channels_last], resampling, scaled, noises, biased, seed)
    if name == "none" and cut:  # gaps between rows
        x = x[:, :, 1:, 1:]
        call["noise"] = None if call["noise"] is None else call["noise"][:, :, 1:, 1:]
    if call["noise"] is not None and n == 0:
        call["noise"] = None
    expected = answer(x, act, clamp=clamp, **call)
    bound = {torch.float64: 1e-13, torch.float32: 2e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    # Cancellation in sums: compare to the size of what is summed.
    parts = [t.double().abs().max().item() for t in (x, call["noise"], call["b"]) if t is not None and t.numel()]
    scale = 12 * max(parts, default=0.0)
    for name in ("reference", "cpu"):
        y = PF.epilogue2d(x, **call, act=act, clamp=clamp, backend=name)
        assert y.dtype == dtype
        assert ((y.double() - expected).abs() <= bound * (expected.abs() + (scale if bound < 1e-5 else 1))).all()


@pytest.mark.parametrize("act", ["linear", "relu", "lrelu"])
def test_third_derivative_of_piecewise_linear_ones(act):
    x, call = operands((1, 2, 3, 3), torch.float64, LAYOUTS[0], RESAMPLINGS["up2"])
    inputs = [t.requires_grad_() for t in (x, *(call.pop(key) for key in PARTS))]

    def gradients(x, scale, noise, b):
        y = PF.epilogue2d(x, scale=scale, noise=noise, b=b, act=act, **call)
        return torch.autograd.grad(y.pow(3).sum(), (x, scale, noise, b), create_graph=True)

    assert torch.autograd.gradgradcheck(gradients, inputs, fast_mode=True)


def test_third_derivative_of_smooth_ones_raises():
    x = torch.randn(1, 1, 2, 2, dtype=torch.float64, requires_grad=True)
    g = PF.epilogue2d(x, scale=torch.ones(1, 1), act="tanh").sum()
    for _ in range(2):
        (g,) = torch.autograd.grad(g.sum(), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="no third derivative of 'tanh'"):
        torch.autograd.grad(g.sum(), x)


@each_layout
def test_opcheck(layout):
    for backend, act, name in (("cpu", "lrelu", "none"), ("cpu", "swish", "up2"), ("reference", "swish", "none")):
        x, call = operands((2, 3, 5, 6), torch.float32, layout, RESAMPLINGS[name])
        full = dict(f=None, up=(1, 1), down=(1, 1), padding=(0, 0, 0, 0), filter_gain=1.0) | RESAMPLINGS[name]
        parts = [call[key].requires_grad_() for key in PARTS]
        rest = (act, 0.2, 1.5, 2.0, backend)
        resampling = (full["up"], full["down"], full["padding"], False, full["filter_gain"])
        arguments = (x.requires_grad_(), full["f"], *parts, *resampling, *rest)
        torch.library.opcheck(torch.ops.posgan_fast.epilogue2d.default, arguments)
        if name == "none":
            parts = [t.detach() for t in parts]
            torch.library.opcheck(torch.ops.posgan_fast.epilogue2d_.default, (x.detach().clone(), *parts, *rest))


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("act", ["lrelu", "swish"])
def test_compiles_without_a_graph_break(act, dynamic):
    x, call = operands((2, 3, 6, 6), torch.float32, LAYOUTS[0], RESAMPLINGS["up2"])
    inputs = [t.requires_grad_() for t in (x, *(call.pop(key) for key in PARTS))]

    def block(x, scale, noise, b):
        return PF.epilogue2d(x.sin(), scale=scale, noise=noise, b=b, act=act, clamp=1.0, **call)

    compiled = torch.compile(block, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    expected = torch.autograd.grad(block(*inputs).square().sum(), inputs)
    actual = torch.autograd.grad(compiled(*inputs).square().sum(), inputs)
    torch.testing.assert_close(actual, expected)


def test_autocast_keeps_the_dtype_of_x():
    x, call = operands((1, 2, 5, 5), torch.bfloat16, LAYOUTS[0], RESAMPLINGS["blur"])
    call |= {key: call[key].float().requires_grad_() for key in PARTS}
    with torch.autocast("cpu", torch.bfloat16):
        y = PF.epilogue2d(x, **call, act="lrelu")
        assert PF.epilogue2d(x.float(), **call).dtype == torch.float32
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert all(call[key].grad.dtype == torch.float32 for key in PARTS)


def test_the_gradient_of_the_scale_is_summed_in_float32():
    x, scale = torch.full((1, 1, 8, 8), 200, dtype=torch.float16), torch.ones(1, 1, requires_grad=True)
    y = PF.epilogue2d(x, scale=scale)
    (g,) = torch.autograd.grad(y, scale, torch.full_like(y, 10))
    assert g.item() == 8 * 8 * 200 * 10  # beyond the range of float16


@pytest.mark.parametrize("given", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_factors_of_any_dtype(dtype, given):
    """Scale, noise and bias may have another dtype than ``x``, and gradients theirs."""
    values = dict(scale=torch.rand(2, 4) + 0.5, noise=torch.randn(1, 1, 5, 6), b=torch.randn(4))
    factors = {name: value.to(given).requires_grad_() for name, value in values.items()}
    x = torch.randn(2, 4, 5, 6).to(dtype)
    y = PF.epilogue2d(x, **factors, act="lrelu")
    exact = PF.epilogue2d(x.double(), **{name: value.double() for name, value in factors.items()}, act="lrelu")
    assert y.dtype == dtype and (y.double() - exact).norm() <= 1e-2 * exact.norm()
    y.sum().backward()
    assert all(value.grad.dtype == given for value in factors.values())
