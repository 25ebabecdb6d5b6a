"""The contract of upfirdn2d: scipy in float64, and what every backend promises beside its values."""

from __future__ import annotations

import functools
import itertools

import cases
import pytest
import torch

from posgan_fast import functional as PF

from .common import DTYPES, LAYOUTS, check_derivatives, each_dtype, each_layout, each_view, oracle, random

FILTERS = {
    "separable4": torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8,
    "outer4x4": torch.outer(torch.tensor([1.0, 3.0, 3.0, 1.0]), torch.tensor([1.0, 3.0, 3.0, 1.0])) / 64,
    "full3x5": torch.arange(15.0).reshape(3, 5).sin(),
    "separable12": torch.hann_window(14, periodic=False)[1:-1] / 6,
    "separable1": torch.tensor([0.5]),
    "identity": None,
}
# up, down, padding
MODES = [
    ((1, 1), (1, 1), (1, 1, 1, 1)),
    ((2, 2), (1, 1), (2, 1, 2, 1)),
    ((1, 1), (2, 2), (1, 1, 1, 1)),
    ((2, 1), (1, 3), (3, 4, 7, 5)),
    ((3, 4), (2, 3), (6, 7, 9, 8)),
    ((2, 2), (2, 2), (-3, 12, 11, -2)),
    ((1, 1), (1, 1), (-2, -1, -1, -3)),
]
# x, taps (one: separable), up, down, padding
ODD = [
    ((2, 1, 3, 2), (1, 1), (3, 3), (1, 1), (0, 2, 0, 2)),  # most outputs have no tap
    ((1, 2, 1, 1), (4, 4), (1, 1), (1, 1), (3, 3, 3, 3)),
    ((1, 2, 4, 3), (2, 5), (4, 2), (3, 4), (-2, 3, 7, -1)),
    ((1, 1, 7, 9), (3, 1), (1, 1), (4, 3), (-1, -2, 0, -3)),
    ((1, 2, 3, 2), (3,), (1, 4), (4, 1), (9, -4, 5, 1)),
    ((1, 2, 2, 3), (12,), (2, 1), (1, 2), (6, 5, 7, 8)),
    ((1, 2, 3, 2), (26,), (1, 1), (1, 1), (13, 14, 12, 13)),
    ((1, 2, 2, 3), (9, 2), (1, 7), (6, 5), (4, 4, -3, 8)),
    ((0, 3, 4, 4), (4, 4), (2, 2), (1, 1), (2, 1, 2, 1)),
]


SHAPE = (2, 3, 18, 21)


def answer(x, f, up=(1, 1), down=(1, 1), padding=(0, 0, 0, 0), flip_filter=False, gain=1.0):
    if oracle is not None:
        return oracle.upfirdn2d(x, f, up, down, padding, flip_filter, gain)
    f = None if f is None else f.double()
    return PF.upfirdn2d(x.double(), f, up, down, padding, flip_filter, gain, backend="reference")


@functools.cache
def _answer_for(name, dtype, *call):
    """The answer that every backend and layout must give."""
    return answer(random(SHAPE, dtype), FILTERS[name], *call)


class Upfirdn2dContract:
    @each_dtype
    @each_layout
    @pytest.mark.parametrize("name", FILTERS)
    def test_value(self, name, layout, dtype, backend):
        f = FILTERS[name]
        x = random(SHAPE, dtype).contiguous(memory_format=layout)
        there = backend.put(x), backend.put(f)
        turn = [*FILTERS].index(name) + len(LAYOUTS) * DTYPES.index(dtype) + LAYOUTS.index(layout)
        modes = [*zip(MODES, itertools.cycle((False, True)), strict=False)]
        for (up, down, padding), flip in backend.some(modes, turn):
            for flip_filter, gain in ((flip, 1.5), (not flip, -1.5))[: 2 if name == "full3x5" else 1]:
                y = PF.upfirdn2d(*there, up, down, padding, flip_filter, gain, backend=backend.name)
                expected = _answer_for(name, dtype, up, down, padding, flip_filter, gain)
                backend.assert_close(y, expected, "upfirdn2d", dtype)
                assert y.is_contiguous(memory_format=layout)

    @pytest.mark.parametrize("case", cases.UPFIRDN2D_SMALL, ids=lambda case: case.name)
    def test_value_and_both_derivatives(self, case, backend):
        """Check small calls like those of StyleGAN2; the dtypes take turns."""
        i = cases.UPFIRDN2D_SMALL.index(case)
        for layout in backend.some(LAYOUTS, i):
            dtype = DTYPES[(i + LAYOUTS.index(layout)) % len(DTYPES)]
            x, f = case.tensors(dtype, layout)
            g, h = (random(shape, dtype, 1).contiguous(memory_format=layout) for shape in (case.out_shape, case.shape))
            expected = _derivatives(case, *(t.double() for t in (x, f, g, h)), "reference")
            actual = _derivatives(case, *backend.put([x, f, g, h]), backend.name)
            for a, e in zip(actual, expected, strict=True):
                backend.assert_close(a, e, "upfirdn2d", dtype)

    @pytest.mark.parametrize("name", ["full3x5", "separable4"])
    @each_layout
    def test_derivatives(self, layout, name, backend):
        f, flip = backend.put(FILTERS[name].double()), layout == LAYOUTS[0]
        x = backend.put(random((1, 2, 8, 9), torch.float64, 3).contiguous(memory_format=layout))
        modes = MODES[LAYOUTS.index(layout) ^ (name == "full3x5") :: 2]
        for mode in backend.some(modes, LAYOUTS.index(layout)):

            def function(t, mode=mode):
                return PF.upfirdn2d(t, f, *mode, flip, gain=1.3, backend=backend.name)

            check_derivatives(function, [x])

    @each_layout
    @pytest.mark.parametrize("shape,taps,up,down,padding", ODD, ids=str)
    def test_odd_sizes(self, shape, taps, up, down, padding, layout, backend):
        x, f = random(shape).contiguous(memory_format=layout), random(taps, seed=1)
        y = PF.upfirdn2d(backend.put(x), backend.put(f), up, down, padding, backend=backend.name)
        backend.assert_close(y, answer(x, f, up, down, padding), "upfirdn2d", x.dtype)

    def test_one_pixel(self, backend):
        """A gradient of one pixel is dense in both memory formats."""
        x, f = random((2, 3, 1, 1), torch.float64, 8), FILTERS["separable4"]
        g = random((2, 3, 2, 2), torch.float64, 9).contiguous(memory_format=torch.channels_last)
        (expected,) = _gradients(x, f, g.contiguous(), "reference")
        (actual,) = _gradients(backend.put(x), backend.put(f), backend.put(g), backend.name)
        backend.assert_close(actual, expected, "upfirdn2d", torch.float64)

    @each_dtype
    def test_narrow_images(self, dtype, backend):
        """Fewer columns than the narrowest vector, for each of the special row passes."""
        f = FILTERS["separable4"]
        there = backend.put(f)
        sizes = [*itertools.product(range(1, 10), ((1, 1), (2, 1), (1, 2)))]
        for w, (up, down) in backend.some(sizes, DTYPES.index(dtype)):
            x, padding = random((1, 2, 3, w), dtype, w), ((2, 1, 2, 1), (3, 2, 1, 2))[w % 2]
            y = PF.upfirdn2d(backend.put(x), there, up, down, padding, backend=backend.name)
            backend.assert_close(y, answer(x, f, (up, up), (down, down), padding), "upfirdn2d", dtype)

    @each_view
    def test_views(self, view, backend):
        f, storage = FILTERS["full3x5"], random((2, 4, 9, 11), seed=4)
        x = view(storage)
        before, there = x.clone(), view(backend.put(storage))
        y = PF.upfirdn2d(there, backend.put(f), 2, 1, [3, 3], backend=backend.name)
        backend.assert_close(y, answer(x, f, (2, 2), (1, 1), (3, 3, 3, 3)), "upfirdn2d", x.dtype)
        assert torch.equal(there.cpu(), before)
        meta = torch.empty_strided(x.shape, x.stride(), device="meta")
        fake = PF.upfirdn2d(meta, f.to("meta"), 2, 1, [3, 3], backend="reference")
        assert (fake.shape, fake.stride()) == (y.shape, y.stride())

    def test_backward_runs_where_forward_ran(self, backend, monkeypatch):
        from posgan_fast.ops import upfirdn2d as room

        ran = []
        monkeypatch.setattr(
            room, "IMPLS", [type(i)(i.backend, i.can_run, _recorded(i.run, i.backend, ran)) for i in room.IMPLS]
        )
        x = backend.put(random((1, 1, 5, 5))).requires_grad_()
        y = PF.upfirdn2d(x, backend.put(FILTERS["separable4"]), 2, padding=2, backend=backend.name)
        torch.autograd.grad(y.sum(), x, create_graph=True)
        assert ran == [backend.name, backend.name]

    def test_the_usual_filter_spreads_one_pixel(self, backend):
        f, up = PF.setup_filter([1, 3, 3, 1]), PF.setup_filter([1, 3, 3, 1], gain=4)
        pixel = torch.zeros(1, 1, 3, 3)
        pixel[:, :, 1, 1] = 1
        y = PF.upsample2d(backend.put(pixel), backend.put(f), backend=backend.name)
        assert torch.equal(y[0, 0, 1:5, 1:5].cpu(), up)

    def test_autocast_leaves_the_arithmetic_alone(self, backend):
        x, f = backend.put(random((1, 2, 9, 9), seed=3)), backend.put(PF.setup_filter([1, 3, 3, 1]))
        with torch.autocast(backend.device, torch.bfloat16):
            y = PF.upsample2d(x, f, backend=backend.name)
        assert torch.equal(y, PF.upsample2d(x, f, backend=backend.name))

    def test_the_largest_factor_runs_forward_and_backward(self, backend):
        if backend.name == "reference":
            pytest.skip("the reference inserts the zeros, 2^24 to a side")
        x = backend.put(random((1, 1, 3, 3))).requires_grad_()
        y = PF.upfirdn2d(x, None, down=2**24 - 1, backend=backend.name)
        (dx,) = torch.autograd.grad(y.sum(), x)
        assert torch.equal(y, x[:, :, :1, :1])
        assert dx[0, 0, 0, 0] == 1 and dx.sum() == 1


def _derivatives(case, x, f, g, h, backend):
    """The value, its gradient along ``g``, and the gradient of that in ``g`` along ``h``."""
    x, g = x.detach().requires_grad_(), g.detach().requires_grad_()
    y = PF.upfirdn2d(x, f, **case.arguments, backend=backend)
    (dx,) = torch.autograd.grad(y, x, g, create_graph=True)
    return y, dx, *torch.autograd.grad(dx, g, h)


def _gradients(x, f, g, backend):
    x = x.detach().requires_grad_()
    return torch.autograd.grad(PF.upsample2d(x, f, backend=backend), x, g)


def _recorded(run, name, ran):
    return lambda *args: (ran.append(name), run(*args))[1]
