"""prologue2d, rings and encodings against definitions in float64, every backend that runs here, and their contracts."""

from __future__ import annotations

import itertools
import math

import numpy as np
import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import assert_close

from posgan_fast import functional as PF

BACKENDS = ("reference", "cpu")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
LAYOUTS = (torch.contiguous_format, torch.channels_last)
FORMS = ("none", "zeros", "reflect", "map", "ring")
ENCODINGS = ((None, "add"), ("spe", "add"), ("spe", "concat"), ("csg", "add"), ("csg", "concat"))

each_backend = pytest.mark.parametrize("backend", BACKENDS)


@each_backend
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_equals_the_definition(form, dtype, layout, backend):
    for (encode, join), scaled, added in itertools.product(ENCODINGS, (False, True), (False, True)):
        for pe_layout in ("mmgen", "paper") if encode else ("mmgen",):
            x, arguments = make((2, 2 if encode == "csg" else 8, 5, 7), form, encode, join, scaled, added, dtype)
            x = x.contiguous(memory_format=layout)
            y = PF.prologue2d(x, **arguments, layout=pe_layout, backend=backend)
            assert_close(y, define(x, **arguments, layout=pe_layout), "prologue2d", dtype)
            assert y.is_contiguous(memory_format=layout)


@each_backend
@pytest.mark.parametrize("encode,join", ENCODINGS)
@pytest.mark.parametrize("form", FORMS)
def test_derivatives(form, encode, join, backend):
    """In x, styles, residual and the border, and theirs."""
    x, arguments = make((2, 2 if encode == "csg" else 8, 2, 3), form, encode, join, True, True, torch.float64)
    names = [name for name, value in arguments.items() if isinstance(value, torch.Tensor)]
    inputs = [x, *(arguments[name] for name in names)]

    def function(x, *values):
        return PF.prologue2d(x, **arguments | dict(zip(names, values, strict=True)), backend=backend)

    assert torch.autograd.gradcheck(function, [t.requires_grad_() for t in inputs], fast_mode=encode is not None)
    assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("form", FORMS[1:])
def test_derivatives_without_the_optional_parts(form):
    x, arguments = make((1, 2, 3, 2), form, None, "add", False, False, torch.float64)
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: PF.prologue2d(x, **arguments), x)
    assert torch.autograd.gradgradcheck(lambda x: PF.prologue2d(x, **arguments), x)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("form", FORMS)
def test_gradients_in_every_dtype(form, dtype):
    """In the dtype of their input; half precision is rounded once, but for the sum over an image."""
    x, arguments = make((2, 8, 4, 5), form, "spe", "concat", True, True, dtype)
    names = [name for name, value in arguments.items() if isinstance(value, torch.Tensor)]
    inputs = [t.requires_grad_() for t in (x, *(arguments[name] for name in names))]
    wide = [t.detach().double().requires_grad_() for t in inputs]
    y = PF.prologue2d(x, **arguments)
    g = random(y.shape, 9).to(dtype)
    actual = torch.autograd.grad(y, inputs, g)
    y = PF.prologue2d(wide[0], **arguments | dict(zip(names, wide[1:], strict=True)), backend="reference")
    for a, e in zip(actual, torch.autograd.grad(y, wide, g.double()), strict=True):
        assert_close(a, e, "prologue2d", dtype)


@settings(max_examples=150, deadline=None)
@given(
    shape=st.tuples(st.integers(0, 3), st.integers(0, 9), st.integers(1, 6), st.integers(1, 40)),
    form=st.sampled_from(FORMS), encode=st.sampled_from([None, "spe", "csg"]), scaled=st.booleans(),
    added=st.booleans(), dtype=st.sampled_from(DTYPES), view=st.integers(0, 6), seed=st.integers(0, 2**20),
)  # fmt: skip
def test_backends_agree(shape, form, encode, scaled, added, dtype, view, seed):
    """Any size, an empty batch and no channels included, in strided, sliced and expanded views."""
    if form == "reflect" and min(shape[2:]) == 1:
        form = "zeros"
    x, arguments = make(shape, form, encode, "concat", scaled, added, dtype, seed)
    x = VIEWS[view](x)
    for name in ("residual", "pad_map"):
        if name in arguments:
            arguments[name] = VIEWS[(view + seed) % len(VIEWS)](arguments[name])
    expected = define(x, **arguments)
    strides = None
    for backend in BACKENDS:
        y = PF.prologue2d(x, **arguments, backend=backend)
        assert_close(y, expected, "prologue2d", dtype)
        assert strides in (None, y.stride())
        strides = y.stride()


def _gapped(t):
    wide = t.new_full([size + 2 for size in t.shape], float("nan"))
    inner = wide[tuple(slice(1, -1) for _ in t.shape)]
    return inner.copy_(t)


VIEWS = [
    lambda t: t,
    lambda t: t.transpose(-1, -2).contiguous().transpose(-1, -2),
    lambda t: t.movedim(1, -1).contiguous().movedim(-1, 1),
    lambda t: _gapped(t.movedim(1, -1)).movedim(-1, 1),
    _gapped,
    lambda t: t[:1].expand(t.shape) if t.shape[0] else t,
    lambda t: t.repeat_interleave(2, -1)[..., ::2],
]


@each_backend
@pytest.mark.parametrize("c", [3, 63, 64, 1030])
def test_channels_beside_each_other(c, backend):
    """Pixels shorter and longer than the buffers of the CPU kernel."""
    x, arguments = make((2, c, 3, 37), "zeros", None, "add", True, True, torch.float32)
    x = x.contiguous(memory_format=torch.channels_last)
    assert_close(PF.prologue2d(x, **arguments, backend=backend), define(x, **arguments), "prologue2d", x.dtype)
    x, arguments = make((2, c, 3, 5), "ring", "csg", "concat", True, False, torch.float32)
    x = x.contiguous(memory_format=torch.channels_last)
    assert_close(PF.prologue2d(x, **arguments, backend=backend), define(x, **arguments), "prologue2d", x.dtype)


def test_results_too_large_for_the_caches():
    x, styles = random((1, 20, 256, 260), 0), random((1, 20), 1)
    for layout in LAYOUTS:
        t = x.contiguous(memory_format=layout)
        y = PF.prologue2d(t, styles, padding=1, backend="cpu")
        assert torch.equal(y, PF.prologue2d(t, styles, padding=1, backend="reference"))


@each_backend
def test_styles_may_be_shared_and_in_float32(backend):
    x, styles = random((3, 4, 5, 6), 0).half(), random((1, 4), 1)
    y = PF.prologue2d(x, styles, backend=backend)
    assert_close(y, x.double() * styles.double()[:, :, None, None], "prologue2d", torch.float16)
    assert torch.equal(y, PF.prologue2d(x, styles.expand(3, -1), backend=backend))


@each_backend
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_zeros_stay_zeros_beside_what_is_not_finite(value, backend):
    x = torch.full((1, 2, 3, 3), value)
    y = PF.prologue2d(x, torch.full((1, 2), value), padding=1, backend=backend)
    assert y[:, :, 0].count_nonzero() == y[:, :, :, -1].count_nonzero() == 0
    assert torch.equal(y[:, :, 1:-1, 1:-1], x * value) or math.isnan(value)


def test_nothing_to_do_returns_x():
    x = torch.randn(1, 2, 3, 4)
    assert PF.prologue2d(x) is x


# ----------------------------------------------------------------------------------------------------------- rings


@each_backend
@pytest.mark.parametrize("size", [(6, 7), (7, 8), (8, 9), (9, 12)])
def test_instance_pad2d_takes_the_centre(size, backend):
    x, pad_map = random((2, 3, 4, 5), 0), random((2, 3, *size), 1)
    kept = pad_map.clone()
    y = PF.instance_pad2d(x, pad_map, backend=backend)
    assert np.array_equal(y.double().numpy(), oracle.surrounded(x.double().numpy(), pad_map))
    assert torch.equal(pad_map, kept), "the caller's map was written"
    compact = PF.ring_from_map(pad_map, 4, 5)
    assert torch.equal(PF.instance_pad2d(x, compact, backend=backend), y)


@each_backend
def test_only_the_ring_of_a_map_matters(backend):
    x = random((2, 3, 4, 4), 0)
    pad_map = PF.map_from_ring(random((2, 3, 20), 1), 4, 4)
    filled = pad_map.clone()
    filled[:, :, 1:-1, 1:-1] = math.nan
    assert torch.equal(PF.instance_pad2d(x, pad_map, backend=backend), PF.instance_pad2d(x, filled, backend=backend))
    zeros = torch.zeros_like(pad_map)
    assert torch.equal(PF.instance_pad2d(x, zeros, backend=backend), PF.prologue2d(x, padding=1, backend=backend))


def test_the_gradient_of_a_map_is_zero_off_its_ring():
    x, pad_map = random((1, 2, 4, 4), 0), random((1, 2, 9, 8), 1).requires_grad_()
    g = random((1, 2, 6, 6), 2)
    (gradient,) = torch.autograd.grad(PF.instance_pad2d(x, pad_map), pad_map, g)
    g[:, :, 1:-1, 1:-1] = 0
    expected = torch.zeros_like(pad_map)
    expected[:, :, 1:7, 1:7] = g
    assert torch.equal(gradient, expected)


def test_maps_that_no_one_may_write():
    """A leaf that is optimised, and one map for a whole batch: both fail where padding is written in place."""
    x, pad_map = random((3, 2, 4, 4), 0), random((1, 2, 6, 6), 1).requires_grad_()
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
    pad_map = random((1, 2, 5, 6), 0).double().requires_grad_()
    ring = random((1, 2, 14), 1).double().requires_grad_()
    for function, x in ((lambda t: PF.ring_from_map(t, 3, 2), pad_map), (lambda t: PF.map_from_ring(t, 3, 2), ring)):
        assert torch.autograd.gradcheck(function, x)
        assert torch.autograd.gradgradcheck(function, x)


# ------------------------------------------------------------------------------------------------------- encodings


@each_backend
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", ["mmgen", "paper"])
def test_encodings_equal_the_definition(layout, dtype, backend):
    for height, width in ((1, 1), (4, 4), (7, 3), (2, 33)):
        grid = PF.cartesian_grid2d(height, width, layout=layout, dtype=dtype, backend=backend)
        assert_close(grid[0], torch.from_numpy(oracle.csg(height, width, layout)), "prologue2d", dtype)
        for channels, half in itertools.product((8, 20), (False, True)):
            expected = torch.from_numpy(oracle.spe(height, width, channels, layout, half))
            arguments = dict(layout=layout, div_half_dim=half, dtype=dtype, backend=backend)
            y = PF.sinusoidal_encoding2d(height, width, channels, **arguments)
            assert_close(y[0], expected, "prologue2d", dtype)


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
    columns, rows = random((2, 4), 0), random((2, 3), 1)
    x, residual, styles = (random(s, 2).requires_grad_() for s in ((2, 4, 3, 4), (2, 8, 3, 4), (2, 8)))
    ring = random((2, 8, 18), 3).requires_grad_()
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
    x, styles = random((2, 4, 3, 3), 0).bfloat16(), random((2, 4), 1).requires_grad_()
    pad_map = random((2, 4, 5, 5), 2).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = PF.prologue2d(x, styles, padding=1, mode="instance", pad_map=pad_map)
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert styles.grad.dtype == pad_map.grad.dtype == torch.float32


def random(shape, seed):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make(shape, form, encode, join, scaled, added, dtype, seed=0):
    """x and the arguments of a call."""
    n, c, h, w = shape
    channels = c
    arguments = dict(encode=encode, join=join)
    if encode is not None and join == "concat":
        channels += 12 if encode == "spe" else 2
        arguments["channels"] = 12 if encode == "spe" else None
    if scaled:
        arguments["styles"] = random((n, channels), seed + 1).to(dtype)
    if added:
        arguments["residual"] = random((n, channels, h, w), seed + 2).to(dtype)
    if form == "zeros":
        arguments["padding"] = (3, 1, 0, 2)
    elif form == "reflect":
        arguments |= dict(padding=(min(2, w - 1), w - 1, 1, h - 1), mode="reflect")
    elif form != "none":
        sides = (2 * (h + w) + 4,) if form == "ring" else (h + 3, w + 5)
        pad_map = random((n, channels, *sides), seed + 3).to(dtype)
        arguments |= dict(padding=1, mode="instance", pad_map=pad_map)
    return random(shape, seed).to(dtype), arguments


def define(
    x, styles=None, residual=None, padding=0, mode="zeros", pad_map=None, encode=None, join="add", channels=None,
    layout="mmgen",
):  # fmt: skip
    """The op in float64."""
    n, c, h, w = x.shape
    z = x.detach().double().numpy()
    if encode is not None:
        total = c if join == "add" or channels is None else channels
        e = oracle.spe(h, w, total, layout) if encode == "spe" else oracle.csg(h, w, layout)
        z = z + e if join == "add" else np.concatenate([z, np.broadcast_to(e, (n, *e.shape))], axis=1)
    if styles is not None:
        z = z * styles.detach().double().numpy()[:, :, None, None]
    if residual is not None:
        z = z + residual.detach().double().numpy()
    if mode == "instance":
        return torch.from_numpy(oracle.surrounded(z, pad_map))
    left, right, top, bottom = (padding,) * 4 if isinstance(padding, int) else padding
    sides = ((0, 0), (0, 0), (top, bottom), (left, right))
    return torch.from_numpy(np.pad(z, sides, "constant" if mode == "zeros" else "reflect"))
