"""The contract of epilogue2d: scipy and closed forms in float64, and what every backend promises beside its values."""

from __future__ import annotations

import functools
import itertools
from typing import Any

import pytest
import torch

from posgan_fast import functional as PF
from posgan_fast.ops.bias_act import ACTIVATIONS

from . import bias_act, upfirdn2d
from .common import (
    DTYPES,
    INTERPRETER,
    LAYOUTS,
    VIEWS,
    check_derivatives,
    each_act,
    each_dtype,
    each_layout,
    each_view,
    random,
)

F4 = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
RESAMPLINGS: dict[str, dict[str, Any]] = {
    "none": {},
    "blur": dict(f=F4, padding=(1, 1, 1, 1), filter_gain=4.0),
    "up2": dict(f=torch.outer(F4, F4), up=(2, 2), padding=(2, 1, 2, 1), filter_gain=4.0),
    "down2": dict(f=F4, down=(2, 2), padding=(1, 1, 1, 1)),
    "uneven": dict(
        f=torch.arange(15.0).reshape(3, 5).sin(), up=(3, 2), down=(2, 3), padding=(-2, 7, 6, -1), flip_filter=True
    ),
}
PARTS = ("scale", "noise", "b")


def operands(shape, dtype, layout, resampling, scaled=True, noises=2, biased=True, seed=0):
    """x, and what epilogue2d takes beside it: noise for so many samples, or none."""
    generator = torch.manual_seed(seed)
    n, c = shape[:2]
    x = torch.randn(shape, generator=generator).to(dtype).contiguous(memory_format=layout)
    size = PF.epilogue2d(torch.empty(shape, device="meta"), **_on_meta(resampling), backend="reference").shape[2:]
    acc = torch.promote_types(dtype, torch.float32)
    return x, resampling | dict(
        scale=torch.rand(n, c, generator=generator).to(acc) + 0.5 if scaled else None,
        noise=torch.randn(min(noises, n), 1, *size, generator=generator).to(acc) if noises else None,
        b=torch.randn(c, generator=generator).to(dtype) if biased else None,
    )


def _on_meta(call):
    return {key: value.to("meta") if isinstance(value, torch.Tensor) else value for key, value in call.items()}


def answer(x, act="linear", alpha=None, gain=None, clamp=None, scale=None, noise=None, b=None, f=None, **resampling):
    """The op in float64."""
    z = x.double()
    if f is not None:
        resampling["gain"] = resampling.pop("filter_gain", 1.0)
        z = upfirdn2d.answer(x, f, **resampling)
    z = z if scale is None else z * scale.double()[:, :, None, None]
    z = z if noise is None else z + noise.double()
    return bias_act.answer(z, b, 1, act, alpha, gain, clamp)[0]


@functools.cache
def _cases(name, dtype):
    """Calls with the answer that every backend and layout must give."""
    parts = itertools.cycle(itertools.product((False, True), (0, 1, 2), (False, True)))
    found = []
    for i, (act, clamp) in enumerate(itertools.product(ACTIVATIONS, (None, 0.75))):
        shape = (2, (3, 5, 20)[i % 3], 9, 14)
        x, call = operands(shape, dtype, LAYOUTS[0], RESAMPLINGS[name], *next(parts), seed=i)
        call |= dict(act=act, alpha=(None, -0.3)[i % 2], gain=(None, -1.5)[i // 2 % 2], clamp=clamp)
        found.append((x, call, answer(x, **call)))
    return found


class Epilogue2dContract:
    @each_layout
    @each_dtype
    @pytest.mark.parametrize("name", RESAMPLINGS)
    def test_value(self, name, dtype, layout, backend):
        """Check every activation, and every combination of the optional parts."""
        turn = [*RESAMPLINGS].index(name) + len(LAYOUTS) * DTYPES.index(dtype) + LAYOUTS.index(layout)
        for x, call, expected in backend.some(_cases(name, dtype), turn):
            x = x.contiguous(memory_format=layout)
            y = PF.epilogue2d(backend.put(x), **backend.put(call), backend=backend.name)
            if backend.name in ("cuda", "triton") and name != "none" and dtype.itemsize == 2:
                # These backends round the resampled image too, and what is added to it may cancel.
                bound = {torch.float16: 3e-3, torch.bfloat16: 2e-2}[dtype]
                assert y.dtype == dtype and (y.double().cpu() - expected).norm() <= bound * expected.norm()
            else:
                backend.assert_close(y, expected, "epilogue2d", dtype)
            assert y.is_contiguous(memory_format=layout)

    @each_layout
    @each_act
    def test_derivatives(self, act, layout, backend):
        """Check x, scale, noise and b, with every resampling and either noise."""
        i = list(ACTIVATIONS).index(act) + LAYOUTS.index(layout)
        cases = [*itertools.islice(_cycled(("none", "up2", "down2"), (None, 2.0)), i, i + 2)]
        if backend == INTERPRETER and act != "lrelu":  # upfirdn2d's contract has the derivative of resampling
            cases = [("none", cases[0][1])]
        for name, clamp in cases:
            x, call = operands((2, 2, 4, 5), torch.float64, layout, RESAMPLINGS[name], noises=1 + i % 2, seed=i)
            inputs = backend.put([x, *(call.pop(key) for key in PARTS)])
            call = backend.put(call) | dict(act=act, clamp=clamp, backend=backend.name)
            check_derivatives(lambda x, *parts, call=call: _called(x, parts, call), inputs)

    @pytest.mark.parametrize("given", [("scale",), ("noise",), ("b",), ()], ids=str)
    def test_derivatives_without_the_other_parts(self, given, backend):
        name = "none" if backend == INTERPRETER else "up2"
        x, call = operands((2, 3, 3, 4), torch.float64, LAYOUTS[0], RESAMPLINGS[name])
        parts = {key: value for key in PARTS if (value := call.pop(key)) is not None and key in given}
        call = backend.put(call) | dict(backend=backend.name)
        x, *values = backend.put([x, *parts.values()])
        for act in backend.some(("linear", "lrelu", "swish"), len(given)):

            def function(x, *values, act=act):
                return PF.epilogue2d(x, **call, **dict(zip(parts, values, strict=True)), act=act)

            check_derivatives(function, [x, *values])
            if parts:  # x has none
                check_derivatives(lambda *values, function=function: function(x, *values), values)

    @each_dtype
    @pytest.mark.parametrize("act", ["linear", "lrelu", "swish"])
    def test_gradients_of_every_dtype(self, act, dtype, backend):
        """A gradient has the dtype of its input and the value of the float64 gradient."""
        tolerance = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 3e-3, torch.bfloat16: 2e-2}[dtype]
        for name, layout in itertools.product(("none", "up2"), LAYOUTS):
            x, call = operands((2, 8, 6, 7), dtype, layout, RESAMPLINGS[name])
            parts = [x, *(call.pop(key) for key in PARTS)]
            call |= dict(act=act)
            wide = [t.double().detach().requires_grad_() for t in parts]
            y = _called(wide[0], wide[1:], call | dict(backend="reference"))
            g = random(y.shape, dtype, 9)
            expected = torch.autograd.grad(y, wide, g.double())
            inputs = [t.requires_grad_() for t in backend.put(parts)]
            y = _called(inputs[0], inputs[1:], backend.put(call) | dict(backend=backend.name))
            for actual, e, part in zip(torch.autograd.grad(y, inputs, backend.put(g)), expected, inputs, strict=True):
                assert actual.dtype == part.dtype and actual.shape == part.shape
                assert (actual.double().cpu() - e).norm() <= tolerance * e.norm()

    @each_view
    @pytest.mark.parametrize("name", ["none", "up2"])
    def test_views(self, name, view, backend):
        storage = random((2, 4, 9, 11), seed=4)
        x = view(storage)
        before, there = x.clone(), view(backend.put(storage))
        _, call = operands(x.shape, x.dtype, LAYOUTS[0], RESAMPLINGS[name], noises=1)
        call["scale"] = call["scale"].t().contiguous().t()
        call["noise"] = call["noise"].expand(len(x), -1, -1, -1) if len(x) else None
        call["b"] = call["b"].repeat_interleave(2)[::2]
        call["act"] = "lrelu"
        y = PF.epilogue2d(there, **backend.put(call), backend=backend.name)
        backend.assert_close(y, answer(x, **call), "epilogue2d", x.dtype)
        assert torch.equal(there.cpu(), before)
        meta = torch.empty_strided(x.shape, x.stride(), device="meta")
        fake = PF.epilogue2d(meta, **_on_meta(call), backend="reference")
        assert (fake.shape, fake.stride()) == (y.shape, y.stride())

    @each_dtype
    @pytest.mark.parametrize(
        "view", ["dense", "channels last", "misaligned", "channels last, misaligned", "transposed", "every other"]
    )
    def test_in_place(self, view, dtype, backend):
        storage = backend.put(random((2, 5, 8, 9), dtype, 5))
        x = VIEWS[view](storage)
        _, call = operands(x.shape, dtype, LAYOUTS[0], {})
        expected, strides = answer(x.cpu(), "lrelu", clamp=1.0, **call), x.stride()
        parts = backend.put([call[key] for key in PARTS])
        torch.ops.posgan_fast.epilogue2d_(x, *parts, "lrelu", 0.2, 2**0.5, 1.0, backend.name)
        backend.assert_close(x, expected, "epilogue2d", dtype)
        assert x.stride() == strides

    @each_layout
    def test_not_a_number_and_infinity_stay(self, layout, backend):
        x = torch.zeros(1, 2, 1, 3)
        x[0, :, 0, 1], x[0, :, 0, 2] = float("nan"), -float("inf")
        there = backend.put(x.contiguous(memory_format=layout))
        ones = backend.put(torch.ones(1, 2))
        y = PF.epilogue2d(there, scale=ones, act="lrelu", backend=backend.name)
        torch.testing.assert_close(y.cpu(), x, equal_nan=True)
        y = PF.epilogue2d(there, b=ones[0], clamp=0.5, backend=backend.name)
        torch.testing.assert_close(y.cpu(), (x + 1).clamp(-0.5, 0.5), equal_nan=True)


def _cycled(names, clamps):
    return itertools.cycle(itertools.product(names, clamps))


def _called(x, parts, call):
    return PF.epilogue2d(x, **call, **dict(zip(PARTS, parts, strict=True)))
