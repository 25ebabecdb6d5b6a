"""upfirdn2d on the host's backends: its contract, random calls, filters, and what torch's tools make of it."""

from __future__ import annotations

import oracle
import pytest
import torch
from contract.common import HOST, each_of
from contract.upfirdn2d import FILTERS, Upfirdn2dContract
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import assert_close

from posgan_fast import functional as PF

BACKENDS = ("reference", "cpu")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
LAYOUTS = (torch.contiguous_format, torch.channels_last)
backend = each_of(HOST)


class TestContract(Upfirdn2dContract):
    """The contract on the CPU."""


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("c,w", [(40, 60), (40, 59), (700, 7), (2100, 4)])
@pytest.mark.parametrize("up,down", [(1, 1), (2, 1), (1, 2)])
def test_long_rows(c, w, up, down, dtype):
    """Rows go through the cache in pieces, down to a pixel each, with padding, cropping and rows beyond both."""
    f = torch.tensor([1.0, -2.0, 3.0, 5.0]) / 8
    x = torch.randn(2, c, 3, w, generator=torch.manual_seed(0)).to(dtype).contiguous(memory_format=torch.channels_last)
    for padding in ((1, 2, 1, 2), (0, 0, 2, 2), (-1, 3, 0, 1), (9, 0, 5, -1)):
        for flip in (False, True):
            expected = oracle.upfirdn2d(x, f, (1, up), (1, down), padding, flip, 1.0)
            assert_close(PF.upfirdn2d(x, f, (1, up), (1, down), padding, flip), expected, "upfirdn2d", dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("h,w", [(3, 8), (20, 30), (140, 128)])
@pytest.mark.parametrize("up,down", [(1, 1), (2, 1), (1, 2)])
def test_small_planes(h, w, up, down, dtype):
    """Rows are filtered together where the padding keeps their proportion, in parts of a plane and beyond its ends."""
    f = torch.tensor([1.0, -2.0, 3.0, 5.0]) / 8
    x = torch.randn(1, 2, h, w, generator=torch.manual_seed(0)).to(dtype)
    rest = 4 - down  # of the padding, so that the width is that of the factors
    for before in (1, 2, 5, -2, w * up, w * up + 4):
        for top, bottom in ((before, rest - before), (0, 3), (h * up + 6, 1), (3 - h * up, h * up)):
            padding = (before, rest - before, top, bottom)
            expected = oracle.upfirdn2d(x, f, (up, up), (down, down), padding, False, 1.0)
            assert expected.shape[3] == w * up // down
            assert_close(PF.upfirdn2d(x, f, up, down, padding), expected, "upfirdn2d", dtype)


@pytest.mark.parametrize("taps", [1, 2, 3, 5, 6, 8, 12])
@pytest.mark.parametrize("name", ["filter2d", "upsample2d", "downsample2d"])
def test_filters_whose_rows_and_columns_differ_in_length(name, taps):
    """They are outer products all the same, and treated as separable."""
    x, row = torch.randn(1, 3, 16, 16), torch.tensor([1.0, 3.0, 3.0, 1.0])
    for f in (torch.outer(torch.ones(taps), row), torch.outer(row, torch.ones(taps))):
        expected = getattr(PF, name)(x.double(), f.double(), backend="reference")
        assert_close(getattr(PF, name)(x, f), expected, "upfirdn2d", torch.float32)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize(
    "arguments", [dict(padding=(2, 1)), dict(up=2, padding=(2, 1)), dict(down=2, padding=1)], ids=str
)
def test_bits_depend_on_neither_threads_nor_other_samples(arguments, layout):
    x, f = torch.randn(3, 16, 30, 34).contiguous(memory_format=layout), PF.setup_filter([1, 3, 3, 1])
    together, threads = PF.upfirdn2d(x, f, **arguments), torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            assert torch.equal(PF.upfirdn2d(x, f, **arguments), together)
            assert torch.equal(PF.upfirdn2d(x[1:2], f, **arguments), together[1:2])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("up,down", [(1, 1), (2, 1), (1, 2), (3, 2)])
def test_equals_scipy_upfirdn(up, down, backend):
    f = torch.randn(7, dtype=torch.float64, generator=torch.manual_seed(1))
    x = torch.randn(1, 2, 9, 11, dtype=torch.float64, generator=torch.manual_seed(2))
    # scipy's own padding: taps - 1 before, and after the last sample not its trailing zeros but taps - 1 more
    actual = PF.upfirdn2d(x, f, up, down, [6, 7 - up, 6, 7 - up], backend=backend)
    assert_close(actual, oracle.upfirdn_separable(x, f, up, down), "upfirdn2d", torch.float64)


@settings(max_examples=120, deadline=None)
@given(
    n=st.integers(0, 2), c=st.integers(1, 9), h=st.integers(1, 12), w=st.integers(1, 40),
    up=st.tuples(st.integers(1, 4), st.integers(1, 4)), down=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    padding=st.tuples(*[st.integers(-4, 9)] * 4), taps=st.tuples(st.integers(1, 7), st.integers(1, 7)),
    separable=st.booleans(), flip=st.booleans(), channels_last=st.booleans(),
    dtype=st.sampled_from(DTYPES), seed=st.integers(0, 2**20),
)  # fmt: skip
def test_backends_agree(n, c, h, w, up, down, padding, taps, separable, flip, channels_last, dtype, seed):
    generator = torch.manual_seed(seed)
    f = torch.randn(taps[0], generator=generator) if separable else torch.randn(taps, generator=generator)
    x = torch.randn(n, c, h, w, generator=generator).to(dtype)
    x = x.contiguous(memory_format=LAYOUTS[channels_last])
    fw, fh = f.shape[-1], f.shape[0]
    if w * up[0] + padding[0] + padding[1] < fw or h * up[1] + padding[2] + padding[3] < fh:
        with pytest.raises(ValueError, match="^padding:"):
            PF.upfirdn2d(x, f, up, down, padding, flip)
        return
    expected = PF.upfirdn2d(x.double(), f.double(), up, down, padding, flip, 0.7, backend="reference")
    for backend in BACKENDS:
        actual = PF.upfirdn2d(x, f, up, down, padding, flip, 0.7, backend=backend)
        # Cancellation in random filters: compare to the sums' size, not to what is left of them.
        scale = PF.upfirdn2d(x.double().abs(), f.double().abs(), up, down, padding, flip, 0.7, backend="reference")
        bound = {torch.float64: 1e-14, torch.float32: 1e-6, torch.float16: 6e-4, torch.bfloat16: 5e-3}[dtype]
        subnormal = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
        assert ((actual.double() - expected).abs() <= bound * scale + subnormal).all()


def test_third_derivative():
    x = torch.randn(1, 1, 5, 5, dtype=torch.float64, requires_grad=True)
    cube = lambda t: PF.upfirdn2d(t, FILTERS["separable4"], 2, 1, [2, 1]).pow(3).sum()  # noqa: E731
    (g,) = torch.autograd.grad(cube(x), x, create_graph=True)
    assert torch.autograd.gradgradcheck(lambda t: torch.autograd.grad(cube(t), t, create_graph=True)[0], x)
    assert g.shape == x.shape


def test_more_elements_than_32_bits_index():
    """Check the ends of a result beyond 2^31 elements: a row of padding, the image, 2 GiB of padding behind it."""
    if _free_memory() < 6 << 30:
        pytest.skip("needs 6 GiB of free memory")
    x = torch.randn(1, 1, 2, 4, generator=torch.manual_seed(5)).bfloat16()
    y = PF.upfirdn2d(x, None, padding=[0, (1 << 16) - 4, 1, (1 << 15) - 2], backend="cpu")
    assert y.numel() > 2**31
    assert torch.equal(y[0, 0, 1:3, :4], x[0, 0])
    assert not y[0, 0, 0].any() and not y[0, 0, 3:5].any() and not y[0, 0, -2:].any()


def _free_memory() -> int:
    with open("/proc/meminfo") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) << 10


@pytest.mark.parametrize("filter_name", ["separable4", "outer4x4", "separable12"])
def test_helpers_keep_their_sizes(filter_name):
    f = FILTERS[filter_name]
    x = torch.randn(1, 2, 8, 6, generator=torch.manual_seed(6))
    fw = f.shape[-1]
    same, large, small = PF.filter2d(x, f), PF.upsample2d(x, f), PF.downsample2d(x, f)
    assert (same.shape[2:], large.shape[2:], small.shape[2:]) == ((8, 6), (16, 12), (4, 3))
    pads = {
        "same": (fw // 2, (fw - 1) // 2),
        "large": ((fw + 1) // 2, (fw - 2) // 2),
        "small": ((fw - 1) // 2, (fw - 2) // 2),
    }
    for y, name, up, down, gain in ((same, "same", 1, 1, 1), (large, "large", 2, 1, 4), (small, "small", 1, 2, 1)):
        expected = oracle.upfirdn2d(x, f, (up, up), (down, down), pads[name] * 2, False, gain)
        assert_close(y, expected, "upfirdn2d", torch.float32)


def test_setup_filter():
    f = PF.setup_filter([1, 3, 3, 1])
    assert torch.equal(f, torch.outer(torch.tensor([1.0, 3, 3, 1]), torch.tensor([1.0, 3, 3, 1])) / 64)
    taps = torch.arange(1.0, 9.0)
    separable = PF.setup_filter(taps, gain=4, flip_filter=True)
    assert separable.shape == (8,) and torch.allclose(separable, taps.flip(0) / 36 * 2)
    assert torch.equal(taps, torch.arange(1.0, 9.0)), "the caller's tensor is not written"
    assert torch.equal(PF.setup_filter(None), torch.ones(1, 1))
    assert PF.setup_filter([1, 1], separable=True).shape == (2,)
    assert PF.setup_filter(taps, separable=False, normalize=False)[7, 7] == 64


def test_values_of_the_usual_filter():
    assert PF.setup_filter([1, 3, 3, 1], separable=True).tolist() == [0.125, 0.375, 0.375, 0.125]
    f, up = PF.setup_filter([1, 3, 3, 1]), PF.setup_filter([1, 3, 3, 1], gain=4)
    assert (f[0, 0], f[3, 3], f[1, 1], f[1, 2], f.sum()) == (1 / 64, 1 / 64, 9 / 64, 9 / 64, 1)
    assert (up[0, 0], up[3, 3], up[1, 1], up[1, 2], up.sum()) == (1 / 16, 1 / 16, 9 / 16, 9 / 16, 4)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_opcheck(layout):
    x = torch.randn(2, 3, 6, 7).contiguous(memory_format=layout).requires_grad_()
    for backend in BACKENDS:
        args = (x, FILTERS["outer4x4"], [2, 2], [1, 1], [2, 1, 2, 1], False, 4.0, backend)
        torch.library.opcheck(torch.ops.posgan_fast.upfirdn2d.default, args)


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_without_a_graph_break(dynamic):
    f = PF.setup_filter([1, 3, 3, 1])

    def block(x):
        return PF.downsample2d(PF.upsample2d(x, f).sin(), f)

    x = torch.randn(1, 2, 8, 8, generator=torch.manual_seed(7)).requires_grad_()
    compiled = torch.compile(block, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    (expected,) = torch.autograd.grad(block(x).square().sum(), x)
    (actual,) = torch.autograd.grad(compiled(x).square().sum(), x)
    torch.testing.assert_close(actual, expected)


def test_autocast_keeps_the_dtype_of_x():
    x = torch.randn(1, 2, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert PF.upsample2d(x, FILTERS["separable4"]).dtype == torch.float32
        assert PF.upsample2d(x.bfloat16(), FILTERS["separable4"]).dtype == torch.bfloat16


def test_setup_filter_follows_the_default_device():
    with torch.device("meta"):
        assert PF.setup_filter([1, 3, 3, 1]).is_meta
        assert PF.setup_filter(torch.ones(2, device="cpu")).device.type == "cpu"
        assert PF.setup_filter([1, 3, 3, 1], device="cpu").sum() == 1


@pytest.mark.parametrize("name", ["upfirdn2d", "epilogue2d"])
def test_the_definition_takes_no_convolution_that_could_round_to_tf32(name, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("the reference called a convolution")

    monkeypatch.setattr(torch.nn.functional, "conv2d", refuse)
    x = torch.randn(1, 2, 5, 5, generator=torch.manual_seed(8))
    for f in (f for f in FILTERS.values() if f is not None):
        getattr(PF, name)(x, f, up=2, padding=6, backend="reference")
