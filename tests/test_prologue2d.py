"""prologue2d on the host's backends: its contract, random calls, rings, encodings, and torch's tools."""

from __future__ import annotations

import math

import oracle
import pytest
import torch
from contract.common import DTYPES, HOST, LAYOUTS, each_of, random
from contract.prologue2d import FORMS, VIEWS, Prologue2dContract, answer, make
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import assert_close

from posgan_fast import functional as PF

backend = each_of(HOST)


class TestContract(Prologue2dContract):
    """The contract on the CPU."""


@settings(max_examples=150, deadline=None)
@given(
    shape=st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(1, 6), st.integers(1, 40)),
    form=st.sampled_from(FORMS), encode=st.sampled_from([None, "spe", "csg"]), scaled=st.booleans(),
    added=st.booleans(), dtype=st.sampled_from(DTYPES), view=st.integers(0, 6), seed=st.integers(0, 2**20),
)  # fmt: skip
def test_backends_agree(shape, form, encode, scaled, added, dtype, view, seed):
    """Try any size, an empty batch and no channels included, in strided, sliced and expanded views."""
    if form == "reflect" and min(shape[2:]) == 1:
        form = "zeros"
    x, arguments = make(shape, form, encode, "concat", scaled, added, dtype, seed)
    x = VIEWS[view](x)
    for name in ("residual", "pad_map"):
        if name in arguments:
            arguments[name] = VIEWS[(view + seed) % len(VIEWS)](arguments[name])
    expected = answer(x, **arguments)
    strides = None
    for backend in ("reference", "cpu"):
        y = PF.prologue2d(x, **arguments, backend=backend)
        assert_close(y, expected, "prologue2d", dtype)
        assert strides in (None, y.stride())
        strides = y.stride()


def test_results_too_large_for_the_caches():
    x, styles = random((1, 20, 256, 260), seed=0), random((1, 20), seed=1)
    for layout in LAYOUTS:
        t = x.contiguous(memory_format=layout)
        y = PF.prologue2d(t, styles, padding=1, backend="cpu")
        assert torch.equal(y, PF.prologue2d(t, styles, padding=1, backend="reference"))


def test_nothing_to_do_returns_x():
    x = torch.randn(1, 2, 3, 4)
    assert PF.prologue2d(x) is x


# ----------------------------------------------------------------------------------------------------------- rings


def test_the_gradient_of_a_map_is_zero_off_its_ring():
    x, pad_map = random((1, 2, 4, 4), seed=0), random((1, 2, 9, 8), seed=1).requires_grad_()
    g = random((1, 2, 6, 6), seed=2)
    (gradient,) = torch.autograd.grad(PF.instance_pad2d(x, pad_map), pad_map, g)
    g[:, :, 1:-1, 1:-1] = 0
    expected = torch.zeros_like(pad_map)
    expected[:, :, 1:7, 1:7] = g
    assert torch.equal(gradient, expected)


def test_maps_that_no_one_may_write():
    """Neither a parameter nor a map shared by a batch can be written in place, so instance_pad2d must not."""
    x, pad_map = random((3, 2, 4, 4), seed=0), random((1, 2, 6, 6), seed=1).requires_grad_()
    y = PF.instance_pad2d(x, pad_map.expand(3, -1, -1, -1))
    (gradient,) = torch.autograd.grad(y.sum(), pad_map)
    assert torch.equal(gradient, 3.0 * PF.map_from_ring(torch.ones(1, 2, 20), 4, 4))


@pytest.mark.parametrize("height,width", [(1, 1), (4, 4), (3, 5)])
def test_order_and_round_trip_of_a_ring(height, width):
    ring = torch.arange(2.0 * (height + width) + 4).expand(2, 3, -1)
    pad_map = PF.map_from_ring(ring, height, width)
    rows, columns = oracle.ring_positions(height, width).T
    assert torch.equal(pad_map[:, :, rows, columns], ring)
    assert pad_map[:, :, 1:-1, 1:-1].count_nonzero() == 0
    assert torch.equal(PF.ring_from_map(pad_map), ring)
    assert pad_map[0, 0, 0].tolist() == list(range(width + 2)), "the top row comes first, with its corners"
    larger = torch.nn.functional.pad(pad_map, (1, 2, 2, 2))  # half a pixel is rounded down
    assert torch.equal(PF.ring_from_map(larger, height, width), ring)


def test_rings_are_differentiable():
    pad_map = random((1, 2, 5, 6), seed=0).double().requires_grad_()
    ring = random((1, 2, 14), seed=1).double().requires_grad_()
    for function, x in ((lambda t: PF.ring_from_map(t, 3, 2), pad_map), (lambda t: PF.map_from_ring(t, 3, 2), ring)):
        assert torch.autograd.gradcheck(function, x)
        assert torch.autograd.gradgradcheck(function, x)


# ------------------------------------------------------------------------------------------------------- encodings


def test_values_of_the_cartesian_grid():
    mmgen, paper = PF.cartesian_grid2d(3, 4)[0], PF.cartesian_grid2d(3, 4, layout="paper")[0]
    torch.testing.assert_close(mmgen[0], torch.tensor([-1, -1 / 3, 1 / 3, 1]).expand(3, 4))
    torch.testing.assert_close(mmgen[1], torch.tensor([-1.0, 0.0, 1.0])[:, None].expand(3, 4))
    torch.testing.assert_close(paper[1], torch.tensor([-1.0, -0.5, 0.0, 0.5]).expand(3, 4))
    assert PF.cartesian_grid2d(1, 1).flatten().tolist() == [-1, -1]


def test_values_of_the_sinusoidal_encoding():
    one = [math.sin(1), math.sin(1e-4), math.cos(1), math.cos(1e-4)]  # channels of an axis: 4, at position 1
    two = [math.sin(2), math.sin(2e-4), math.cos(2), math.cos(2e-4)]
    y = PF.sinusoidal_encoding2d(2, 1, 8, dtype=torch.float64)[0, :, 1, 0]
    torch.testing.assert_close(y, torch.tensor(one + two, dtype=torch.float64))
    torch.testing.assert_close(y[:4], torch.tensor([0.841471, 0.0001, 0.540302, 1.0]).double(), rtol=0, atol=1e-6)
    y = PF.sinusoidal_encoding2d(4, 4, 512, dtype=torch.float64)[0]
    expected = torch.tensor([math.sin(1), math.sin(1e-4), math.cos(1)]).double()
    torch.testing.assert_close(y[[0, 127, 128], 0, 0], expected, rtol=0, atol=1e-7)
    assert torch.equal(y[256:], y[:256].transpose(1, 2)), "rows as columns"


@pytest.mark.parametrize("center_shift", [None, 100, 200])
def test_center_shift_has_no_effect(center_shift):
    """The released code's option, which the ops do not have: every setting of it gives their grid, at every side."""
    for side in range(1, 100):
        expected = oracle.spe(side, side, 8, center_shift=center_shift)
        y = PF.sinusoidal_encoding2d(side, side, 8, dtype=torch.float64)[0]
        assert_close(y, torch.from_numpy(expected), "prologue2d", torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("layout", ["mmgen", "paper"])
@pytest.mark.parametrize("extra", [2, 4, 10, 12])
def test_expanding_keeps_the_top_left(extra, layout, dtype):
    small = PF.sinusoidal_encoding2d(4, 4, 64, layout=layout, dtype=dtype)
    large = PF.sinusoidal_encoding2d(4 + extra, 4 + extra, 64, layout=layout, dtype=dtype)
    assert torch.equal(large[:, :, :4, :4], small)


@pytest.mark.parametrize("size", [(6, 6), (8, 5), (16, 14), (4, 4)])
@pytest.mark.parametrize("layout", ["mmgen", "paper"])
def test_interpolating_keeps_the_corners(layout, size):
    arguments = dict(layout=layout, dtype=torch.float64)
    for function, channels in ((PF.sinusoidal_encoding2d, [64]), (PF.cartesian_grid2d, [])):
        base = function(4, 4, *channels, **arguments)
        y = function(*size, *channels, base_size=(4, 4), **arguments)
        assert torch.equal(y[:, :, :: size[0] - 1, :: size[1] - 1], base[:, :, ::3, ::3])
        expected = torch.nn.functional.interpolate(base, size, mode="bilinear", align_corners=True)
        torch.testing.assert_close(y, expected, rtol=1e-12, atol=1e-12)
        anew = function(*size, *channels, **arguments)
        assert torch.allclose(y, anew) == (size == (4, 4) or (not channels and layout == "mmgen"))


def test_a_grid_interpolated_from_one_pixel():
    assert torch.equal(PF.cartesian_grid2d(3, 4, base_size=(1, 1)), PF.cartesian_grid2d(3, 4))
    y = PF.sinusoidal_encoding2d(3, 4, 8, base_size=(1, 1))
    assert torch.equal(y, PF.sinusoidal_encoding2d(1, 1, 8).expand(-1, -1, 3, 4))


# --------------------------------------------------------------------------------------------------- torch's tools


def test_opcheck():
    op = torch.ops.posgan_fast.prologue2d.default
    columns, rows = random((2, 4), seed=0), random((2, 3), seed=1)
    x, residual, styles = (random(s, seed=2).requires_grad_() for s in ((2, 4, 3, 4), (2, 8, 3, 4), (2, 8)))
    ring = random((2, 8, 18), seed=3).requires_grad_()
    channels_last = x.detach().contiguous(memory_format=torch.channels_last).requires_grad_()
    for t, backend in ((x, "reference"), (channels_last, "cpu")):
        instance = (ring, columns, rows, [1, 1, 1, 1], "instance", True, False, backend)
        torch.library.opcheck(op, (t, residual, styles, *instance))
        torch.library.opcheck(op, (t, None, None, None, None, None, [1, 0, 2, 1], "reflect", False, True, backend))
    zeros = (None, columns, rows, [1, 0, 2, 1], "zeros", False, True, "cpu")
    torch.library.opcheck(op, (x, None, styles[:, :4].detach(), *zeros))


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_compiles_without_a_graph_break(form, dynamic):
    def block(x, arguments):
        return PF.prologue2d(x.sin(), **arguments)

    x, arguments = make((2, 8, 4, 5), form, "spe", "add", True, True, torch.float32)
    inputs = [t.requires_grad_() for t in (x, *arguments.values()) if isinstance(t, torch.Tensor)]
    torch.compiler.reset()  # or the forms count as recompilations of one function
    compiled = torch.compile(block, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    expected = torch.autograd.grad(block(x, arguments).square().sum(), inputs)
    torch.testing.assert_close(torch.autograd.grad(compiled(x, arguments).square().sum(), inputs), expected)


def test_autocast_follows_x():
    x, styles = random((2, 4, 3, 3), seed=0).bfloat16(), random((2, 4), seed=1).requires_grad_()
    pad_map = random((2, 4, 5, 5), seed=2).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = PF.prologue2d(x, styles, padding=1, mode="instance", pad_map=pad_map)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert styles.grad.dtype == pad_map.grad.dtype == torch.float32


@pytest.mark.parametrize("given", DTYPES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_factors_of_any_dtype(dtype, given):
    """Styles, residual and map may have another dtype than ``x``, and gradients theirs."""
    values = dict(styles=torch.rand(2, 4), residual=torch.randn(2, 4, 5, 6), pad_map=torch.randn(2, 4, 7, 8))
    factors = {name: value.to(given).requires_grad_() for name, value in values.items()}
    x, call = torch.randn(2, 4, 5, 6).to(dtype), dict(padding=1, mode="instance")
    y = PF.prologue2d(x, **factors, **call)
    exact = PF.prologue2d(x.double(), **{name: value.double() for name, value in factors.items()}, **call)
    assert y.dtype == dtype and (y.double() - exact).norm() <= 1e-2 * exact.norm()
    y.sum().backward()
    assert all(value.grad.dtype == given for value in factors.values())
