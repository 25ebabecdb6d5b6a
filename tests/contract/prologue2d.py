"""The contract of prologue2d and its encodings: definitions in float64, and what every backend promises beside them."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from tolerances import assert_close

from posgan_fast import functional as PF

from .common import DTYPES, LAYOUTS, check_derivatives, each_dtype, each_layout, oracle, random

FORMS = ("none", "zeros", "reflect", "map", "ring")
ENCODINGS = ((None, "add"), ("spe", "add"), ("spe", "concat"), ("csg", "add"), ("csg", "concat"))

each_form = pytest.mark.parametrize("form", FORMS)
each_encoding = pytest.mark.parametrize("encode,join", ENCODINGS)


def make(shape, form, encode, join, scaled, added, dtype, seed=0):
    """x and the arguments of a call."""
    n, c, h, w = shape
    channels = c
    arguments = dict(encode=encode, join=join)
    if encode is not None and join == "concat":
        channels += 12 if encode == "spe" else 2
        arguments["channels"] = 12 if encode == "spe" else None
    if scaled:
        arguments["styles"] = random((n, channels), dtype, seed + 1)
    if added:
        arguments["residual"] = random((n, channels, h, w), dtype, seed + 2)
    if form == "zeros":
        arguments["padding"] = (3, 1, 0, 2)
    elif form == "reflect":
        arguments |= dict(padding=(min(2, w - 1), w - 1, 1, h - 1), mode="reflect")
    elif form != "none":
        sides = (2 * (h + w) + 4,) if form == "ring" else (h + 3, w + 5)
        pad_map = random((n, channels, *sides), dtype, seed + 3)
        arguments |= dict(padding=1, mode="instance", pad_map=pad_map)
    return random(shape, dtype, seed), arguments


def answer(
    x, styles=None, residual=None, padding=0, mode="zeros", pad_map=None, encode=None, join="add", channels=None,
    layout="mmgen",
):  # fmt: skip
    """The op in float64."""
    if oracle is None:
        styles, residual, pad_map = (None if t is None else t.double() for t in (styles, residual, pad_map))
        return PF.prologue2d(
            x.double(), styles, residual=residual, padding=padding, mode=mode, pad_map=pad_map, encode=encode,
            join=join, channels=channels, layout=layout, backend="reference",
        )  # fmt: skip
    n, c, h, w = x.shape
    z = x.detach().double()
    if encode is not None:
        total = c if join == "add" or channels is None else channels
        e = torch.from_numpy(oracle.spe(h, w, total, layout) if encode == "spe" else oracle.csg(h, w, layout))
        z = z + e if join == "add" else torch.cat([z, e.expand(n, *e.shape)], 1)
    if styles is not None:
        z = z * styles.detach().double()[:, :, None, None]
    if residual is not None:
        z = z + residual.detach().double()
    if mode == "instance":
        return torch.from_numpy(oracle.surrounded(z.numpy(), pad_map))
    sides = (padding,) * 4 if isinstance(padding, int) else padding
    return torch.from_numpy(oracle.padded(z.numpy(), sides, mode))


def _gapped(t):
    """``t`` with NaN around it in memory."""
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


class Prologue2dContract:
    def check(self, x, arguments, backend):
        y = PF.prologue2d(backend.put(x), **backend.put(arguments), backend=backend.name)
        backend.assert_close(y, answer(x, **arguments), "prologue2d", x.dtype)
        return y

    @each_layout
    @each_dtype
    @each_form
    def test_value(self, form, dtype, layout, backend):
        """Check every encoding; the dtypes and layouts take turns with the optional parts."""
        turn = DTYPES.index(dtype) + LAYOUTS.index(layout)
        for i, (encode, join) in backend.some([*enumerate(ENCODINGS)], turn):
            parts = turn + i
            for given, pe_layout in ((parts, "mmgen"), (parts + 2, "paper"))[: 2 if encode else 1]:
                # 8 channels and 16 columns are whole vectors
                shape = (2, 2 if (encode, join) == ("csg", "add") else 8, 5, 16 if parts % 2 else 7)
                x, arguments = make(shape, form, encode, join, bool(given & 1), bool(given & 2), dtype)
                arguments["layout"] = pe_layout
                y = self.check(x.contiguous(memory_format=layout), arguments, backend)
                assert y.is_contiguous(memory_format=layout)

    @each_encoding
    @each_form
    def test_derivatives(self, form, encode, join, backend):
        """Check the gradients in x, styles, residual and the border, and their own gradients."""
        shape = (2, 2 if encode == "csg" else 8, 2, 3)
        x, arguments = make(shape, form, encode, join, True, True, torch.float64)
        names = [name for name, value in arguments.items() if isinstance(value, torch.Tensor)]
        inputs = backend.put([x, *(arguments.pop(name) for name in names)])

        def function(x, *values):
            return PF.prologue2d(x, **arguments, **dict(zip(names, values, strict=True)), backend=backend.name)

        check_derivatives(function, inputs)

    @pytest.mark.parametrize("form", FORMS[1:])
    def test_derivatives_without_the_optional_parts(self, form, backend):
        x, arguments = make((1, 2, 3, 2), form, None, "add", False, False, torch.float64)
        arguments = backend.put(arguments)
        check_derivatives(lambda x: PF.prologue2d(x, **arguments, backend=backend.name), [backend.put(x)])

    @each_dtype
    @each_form
    def test_gradients_in_every_dtype(self, form, dtype, backend):
        """A gradient has the dtype of its input; half precision rounds once, except in the sum over an image."""
        x, arguments = make((2, 8, 4, 5), form, "spe", "concat", True, True, dtype)
        names = [name for name, value in arguments.items() if isinstance(value, torch.Tensor)]
        inputs = [x, *(arguments.pop(name) for name in names)]
        wide, there = [t.double() for t in inputs], backend.put(inputs)
        g = None
        results = []
        for x, *values in (wide, there):
            given = [t.detach().requires_grad_() for t in (x, *values)]
            name = "reference" if x is wide[0] else backend.name
            y = PF.prologue2d(given[0], **arguments, **dict(zip(names, given[1:], strict=True)), backend=name)
            g = random(y.shape, dtype, 9) if g is None else g
            results.append(torch.autograd.grad(y, given, g.to(y)))
        for expected, actual in zip(*results, strict=True):
            assert_close(actual, expected, "prologue2d", dtype)  # by torch, which does not cut as the interpreter

    @each_form
    @pytest.mark.parametrize("shape", [(1, 3, 5, 7), (3, 4, 2, 9), (2, 0, 3, 2), (0, 4, 3, 3), (1, 1, 6, 2)], ids=str)
    def test_ragged_sizes(self, shape, form, backend):
        for layout in LAYOUTS:
            x, arguments = make(shape, form, "spe", "concat", True, True, torch.float32)
            self.check(x.contiguous(memory_format=layout), arguments, backend)

    @pytest.mark.parametrize("view", range(len(VIEWS)))
    def test_views(self, view, backend):
        for form in ("map", "ring"):
            x, arguments = make((2, 4, 3, 5), form, "csg", "concat", True, True, torch.float32)
            for name in ("residual", "pad_map"):
                arguments[name] = VIEWS[view](arguments[name])
            self.check(VIEWS[view](x), arguments, backend)

    @pytest.mark.parametrize("form", ["none", "zeros", "map", "ring"])
    def test_one_pixel(self, form, backend):
        x, arguments = make((2, 4, 1, 1), form, "spe", "concat", True, False, torch.float32)
        self.check(x, arguments, backend)

    @pytest.mark.parametrize("c", [3, 63, 64, 1030])
    def test_channels_beside_each_other(self, c, backend):
        """Pixels shorter and longer than a kernel's buffers."""
        for width, call in ((37, ("zeros", None, "add", True, True)), (5, ("ring", "csg", "concat", True, False))):
            x, arguments = make((2, c, 3, width), *call, torch.float32)
            self.check(x.contiguous(memory_format=torch.channels_last), arguments, backend)

    def test_styles_may_be_shared_and_in_float32(self, backend):
        x, styles = random((3, 4, 5, 6), torch.float16), random((1, 4), seed=1)
        y = PF.prologue2d(backend.put(x), backend.put(styles), backend=backend.name)
        backend.assert_close(y, x.double() * styles.double()[:, :, None, None], "prologue2d", torch.float16)
        assert torch.equal(y, PF.prologue2d(backend.put(x), backend.put(styles.expand(3, -1)), backend=backend.name))

    @pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
    def test_zeros_stay_zeros_beside_what_is_not_finite(self, value, backend):
        x = torch.full((1, 2, 3, 3), value)
        styles = backend.put(torch.full((1, 2), value))
        y = PF.prologue2d(backend.put(x), styles, padding=1, backend=backend.name).cpu()
        assert y[:, :, 0].count_nonzero() == y[:, :, :, -1].count_nonzero() == 0
        assert torch.equal(y[:, :, 1:-1, 1:-1], x * value) or math.isnan(value)

    @pytest.mark.parametrize("size", [(6, 7), (7, 8), (8, 9), (9, 12)])
    def test_instance_pad2d_takes_the_centre(self, size, backend):
        x, pad_map = random((2, 3, 4, 5)), random((2, 3, *size), seed=1)
        there, map_there = backend.put(x), backend.put(pad_map)
        kept = map_there.clone()
        y = PF.instance_pad2d(there, map_there, backend=backend.name)
        assert torch.equal(y.double().cpu(), answer(x, padding=1, mode="instance", pad_map=pad_map))
        assert torch.equal(map_there, kept), "the caller's map was written"
        compact = PF.ring_from_map(map_there, 4, 5)
        assert torch.equal(PF.instance_pad2d(there, compact, backend=backend.name), y)

    def test_only_the_ring_of_a_map_matters(self, backend):
        x, pad_map = backend.put(random((2, 3, 4, 4))), PF.map_from_ring(random((2, 3, 20), seed=1), 4, 4)
        filled = pad_map.clone()
        filled[:, :, 1:-1, 1:-1] = math.nan
        y, z, without = (
            PF.instance_pad2d(x, backend.put(t), backend=backend.name) for t in (pad_map, filled, 0 * pad_map)
        )
        assert torch.equal(y, z)
        assert torch.equal(without, PF.prologue2d(x, padding=1, backend=backend.name))

    @each_dtype
    @pytest.mark.parametrize("layout", ["mmgen", "paper"])
    def test_encodings(self, layout, dtype, backend):
        if oracle is None:
            pytest.skip("the oracle needs scipy")
        call = dict(layout=layout, dtype=dtype, device=backend.device, backend=backend.name)
        for height, width in ((1, 1), (4, 4), (7, 3), (2, 33)):
            grid = PF.cartesian_grid2d(height, width, **call)
            backend.assert_close(grid[0], torch.from_numpy(oracle.csg(height, width, layout)), "prologue2d", dtype)
            for channels, half in itertools.product((8, 20), (False, True)):
                y = PF.sinusoidal_encoding2d(height, width, channels, div_half_dim=half, **call)
                expected = torch.from_numpy(oracle.spe(height, width, channels, layout, half))
                backend.assert_close(y[0], expected, "prologue2d", dtype)
