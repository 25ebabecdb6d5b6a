"""epilogue2d against scipy and closed forms in float64, every backend that runs here, and its contract."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
import textwrap

import oracle
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import assert_close
from torch.nn import functional as F

from posgan_fast import _native
from posgan_fast import functional as PF
from posgan_fast.ops import upfirdn2d
from posgan_fast.ops.bias_act import ACTIVATIONS
from posgan_fast.ops.common.records import Resample

BACKENDS = ("reference", "cpu")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
LAYOUTS = (torch.contiguous_format, torch.channels_last)
F4 = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
RESAMPLINGS = {
    "none": {},
    "blur": dict(f=F4, padding=(1, 1, 1, 1), filter_gain=4.0),
    "up2": dict(f=torch.outer(F4, F4), up=(2, 2), padding=(2, 1, 2, 1), filter_gain=4.0),
    "down2": dict(f=F4, down=(2, 2), padding=(1, 1, 1, 1)),
    "uneven": dict(
        f=torch.arange(15.0).reshape(3, 5).sin(), up=(3, 2), down=(2, 3), padding=(-2, 7, 6, -1), flip_filter=True
    ),
}

each_backend = pytest.mark.parametrize("backend", BACKENDS)
each_layout = pytest.mark.parametrize("layout", LAYOUTS, ids=str)
each_act = pytest.mark.parametrize("act", ACTIVATIONS)


def operands(shape, dtype, layout, resampling, scaled=True, noises=2, biased=True, seed=0):
    """x and what epilogue2d takes beside it: noise for so many samples, or none."""
    generator = torch.manual_seed(seed)
    n, c = shape[:2]
    x = torch.randn(shape, generator=generator).to(dtype).contiguous(memory_format=layout)
    full = dict(f=None, up=(1, 1), down=(1, 1), padding=(0, 0, 0, 0)) | resampling
    resample = Resample(full["up"], full["down"], full["padding"])
    size = upfirdn2d.out_size(x, full["f"], resample)
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    return x, resampling | dict(
        scale=torch.rand(n, c, generator=generator).to(acc) + 0.5 if scaled else None,
        noise=torch.randn(min(noises, n), 1, *size, generator=generator).to(acc) if noises else None,
        b=torch.randn(c, generator=generator).to(dtype) if biased else None,
    )


def answer(x, act="linear", alpha=None, gain=None, clamp=None, scale=None, noise=None, b=None, f=None, **resampling):
    z = x.double()
    if f is not None:
        resampling["gain"] = resampling.pop("filter_gain", 1.0)
        z = oracle.upfirdn2d(x, f, **resampling)
    z = z if scale is None else z * scale.double()[:, :, None, None]
    z = z if noise is None else z + noise.double()
    row = ACTIVATIONS[act]
    alpha = alpha if alpha is not None and act == "lrelu" else row.alpha
    return oracle.bias_act(z, b, 1, act, alpha, row.gain if gain is None else gain, clamp)[0]


@each_backend
@each_layout
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", RESAMPLINGS)
def test_equals_the_oracle(name, dtype, layout, backend):
    """Every activation, and every combination of the optional parts."""
    parts = itertools.cycle(itertools.product((False, True), (0, 1, 2), (False, True)))
    cases = [(act, clamp) for act in ACTIVATIONS for clamp in (None, 0.75)]
    for i, ((act, clamp), (scaled, noises, biased)) in enumerate(zip(cases, parts, strict=False)):
        shape = (2, (3, 5, 20)[i % 3], 9, 14)
        x, call = operands(shape, dtype, layout, RESAMPLINGS[name], scaled, noises, biased, seed=i)
        call |= dict(act=act, alpha=(None, -0.3)[i % 2], gain=(None, -1.5)[i // 2 % 2], clamp=clamp)
        y = PF.epilogue2d(x, **call, backend=backend)
        assert_close(y, answer(x, **call), "epilogue2d", dtype)
        assert y.is_contiguous(memory_format=layout)


@each_backend
@each_layout
@pytest.mark.parametrize("shape", [(1, 40, 65, 67), (2, 3, 200, 3), (1, 1100, 2, 3), (1, 2, 1100, 1000)], ids=str)
@pytest.mark.parametrize("name", ["none", "blur"])
def test_sizes_of_every_path(name, shape, layout, backend):
    """Rows and pixels longer than a chunk, segments, results that are written past the caches."""
    x, call = operands(shape, torch.float32, layout, RESAMPLINGS[name])
    y = PF.epilogue2d(x, **call, act="lrelu", backend=backend)
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
    for backend in BACKENDS:
        y = PF.epilogue2d(x, **call, act=act, clamp=clamp, backend=backend)
        assert y.dtype == dtype
        assert ((y.double() - expected).abs() <= bound * (expected.abs() + (scale if bound < 1e-5 else 1))).all()


@each_backend
@each_layout
@each_act
def test_derivatives(act, layout, backend):
    """In x, scale, noise and b, with every resampling and either noise."""
    for i, (name, clamp) in enumerate((n, c) for n in ("none", "up2", "down2") for c in (None, 2.0)):
        x, call = operands((2, 2, 4, 5), torch.float64, layout, RESAMPLINGS[name], noises=1 + i % 2, seed=i)
        inputs = [t.requires_grad_() for t in (x, *(call.pop(key) for key in ("scale", "noise", "b")))]

        def function(x, scale, noise, b, call=call, clamp=clamp):
            return PF.epilogue2d(x, scale=scale, noise=noise, b=b, act=act, clamp=clamp, backend=backend, **call)

        assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
        assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@each_backend
@pytest.mark.parametrize("given", [("scale",), ("noise",), ("b",), ()], ids=str)
def test_derivatives_without_the_other_parts(given, backend):
    x, call = operands((2, 3, 3, 4), torch.float64, LAYOUTS[0], RESAMPLINGS["up2"])
    parts = [call.pop(key) for key in ("scale", "noise", "b")]
    parts = {key: t for key, t in zip(("scale", "noise", "b"), parts, strict=True) if key in given}
    for act, only in itertools.product(("linear", "lrelu", "swish"), (False, True)):
        if only and not parts:
            continue
        inputs = [t.detach().clone().requires_grad_() for t in ([] if only else [x]) + list(parts.values())]

        def function(*inputs, act=act, only=only):
            first, rest = (x, inputs) if only else (inputs[0], inputs[1:])
            beside = dict(zip(parts, rest, strict=True))
            return PF.epilogue2d(first, **call, **beside, act=act, backend=backend)

        assert torch.autograd.gradcheck(function, inputs, fast_mode=True)
        assert torch.autograd.gradgradcheck(function, inputs, fast_mode=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("act", ["linear", "lrelu", "swish"])
def test_gradients_of_every_dtype(act, dtype):
    """They have the dtype of what they are gradients of, and those of float64 as their values."""
    tolerance = {torch.float64: 1e-12, torch.float32: 2e-6, torch.float16: 3e-3, torch.bfloat16: 2e-2}[dtype]
    for name, layout in itertools.product(("none", "up2"), LAYOUTS):
        x, call = operands((2, 8, 6, 7), dtype, layout, RESAMPLINGS[name])
        results = []
        for wide, backend in ((True, "reference"), (False, "cpu")):
            parts = [x, *(call[key] for key in ("scale", "noise", "b"))]
            parts = [(t.double() if wide else t).detach().requires_grad_() for t in parts]
            beside = RESAMPLINGS[name] | dict(zip(("scale", "noise", "b"), parts[1:], strict=True))
            y = PF.epilogue2d(parts[0], **beside, act=act, backend=backend)
            g = torch.randn(y.shape, generator=torch.manual_seed(9)).to(dtype).to(y.dtype)
            results.append(torch.autograd.grad(y, parts, g))
        for expected, actual, part in zip(*results, parts, strict=True):
            assert actual.dtype == part.dtype and actual.shape == part.shape
            assert (actual.double() - expected).norm() <= tolerance * expected.norm()


@pytest.mark.parametrize("act", ["linear", "relu", "lrelu"])
def test_third_derivative_of_piecewise_linear_ones(act):
    x, call = operands((1, 2, 3, 3), torch.float64, LAYOUTS[0], RESAMPLINGS["up2"])
    inputs = [t.requires_grad_() for t in (x, *(call.pop(key) for key in ("scale", "noise", "b")))]

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


@each_backend
@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[:, :, 1:, 1:],
        lambda x: x[:, 1:3],
        lambda x: x[:, :, ::2, ::2],
        lambda x: x.transpose(2, 3),
        lambda x: x.transpose(0, 1),
        lambda x: x.flip(3),
        lambda x: x[:1].expand(3, -1, -1, -1),
        lambda x: x[:, :1].expand(-1, 4, -1, -1),
        lambda x: x.contiguous(memory_format=torch.channels_last)[:, :, 1:, 2:],
        lambda x: x.contiguous(memory_format=torch.channels_last)[:, :, 1:],
        lambda x: x.contiguous(memory_format=torch.channels_last)[:, 1:],
        lambda x: x.contiguous(memory_format=torch.channels_last)[:, :, :1, :1],
        lambda x: x[:, :, :, :1],
        lambda x: x[:, :, :1],
        lambda x: x[:0],
        lambda x: x[:, :1, :1, :1],
    ],
)
@pytest.mark.parametrize("name", ["none", "up2"])
def test_views(name, view, backend):
    x = view(torch.randn(2, 4, 9, 11, generator=torch.manual_seed(4)))
    before = x.clone()
    _, call = operands(x.shape, x.dtype, LAYOUTS[0], RESAMPLINGS[name], noises=1)
    call["scale"] = call["scale"].t().contiguous().t()
    call["noise"] = call["noise"].expand(len(x), -1, -1, -1) if len(x) else None
    call["b"] = call["b"].repeat_interleave(2)[::2]
    y = PF.epilogue2d(x, **call, act="lrelu", backend=backend)
    assert_close(y, answer(x, "lrelu", **call), "epilogue2d", x.dtype)
    assert torch.equal(x, before)
    full = dict(f=None, up=(1, 1), down=(1, 1), padding=(0, 0, 0, 0), filter_gain=1.0) | RESAMPLINGS[name]
    parts = [full["f"], *(call[key] for key in ("scale", "noise", "b"))]
    parts = [None if t is None else t.to("meta") for t in parts]
    rest = (full["up"], full["down"], full["padding"], False, full["filter_gain"], "lrelu", 0.2, 1.0, -1.0, backend)
    meta = torch.empty_strided(x.shape, x.stride(), device="meta")
    fake = torch.ops.posgan_fast.epilogue2d(meta, *parts, *rest)
    assert (fake.shape, fake.stride()) == (y.shape, y.stride())


@each_backend
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "view",
    [
        lambda x: x,
        lambda x: x.contiguous(memory_format=torch.channels_last),
        lambda x: x[:, :, 1:, 1:],
        lambda x: x.contiguous(memory_format=torch.channels_last)[:, :, 1:, 1:],
        lambda x: x.transpose(2, 3),
        lambda x: x[:, :, ::2],
    ],
)
def test_in_place(view, dtype, backend):
    x = view(torch.randn(2, 5, 8, 9, generator=torch.manual_seed(5)).to(dtype))
    _, call = operands(x.shape, dtype, LAYOUTS[0], {})
    expected = answer(x, "lrelu", clamp=1.0, **call)
    strides = x.stride()
    torch.ops.posgan_fast.epilogue2d_(x, call["scale"], call["noise"], call["b"], "lrelu", 0.2, 2**0.5, 1.0, backend)
    assert_close(x, expected, "epilogue2d", dtype)
    assert x.stride() == strides


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("c", [1, 3, 16, 200])
def test_rows_in_two_tensors(c, dtype):
    """A transposed convolution of stride 2 with a 3x3 kernel, as two plain ones and the odd form of the leaf."""
    generator = torch.manual_seed(6)
    x = torch.randn(2, 4, 5, 6, generator=generator)
    weight = torch.randn(4, c, 3, 3, generator=generator)
    whole = F.conv_transpose2d(x.double(), weight.double(), stride=2)  # [N, C, 11, 13]
    z = F.pad(whole, [0, 1]).to(dtype)  # an even width
    rows = z.permute(0, 2, 3, 1).reshape(2, 11, 7, 2 * c)  # [N, H, P, 2C]: pixel 2p + q is half q of pixel p
    even, odd = (t.contiguous().permute(0, 3, 1, 2) for t in (rows[:, ::2], rows[:, 1::2]))
    acc = torch.float64 if dtype == torch.float64 else torch.float32
    scale, noise = torch.rand(2, c, generator=generator).to(acc) + 0.5, torch.randn(2, 1, 10, 12).to(acc)
    b, f = torch.randn(c, generator=generator).to(dtype), F4.to(acc)
    y = torch.empty(2, c, 10, 12, dtype=dtype, memory_format=torch.channels_last)
    PF.explain("epilogue2d", z)  # loads the library
    torch.ops.posgan_fast_native.epilogue2d(
        even, odd, f, scale, noise, b, y, 1, 1, 1, 1, 1, 1, False, 4.0, 3, 0.2, 2**0.5, -1.0
    )
    call = dict(f=F4, padding=(1, 0, 1, 1), filter_gain=4.0, scale=scale, noise=noise, b=b)
    assert_close(y, answer(z, "lrelu", **call), "epilogue2d", dtype)
    # one row: nothing is odd
    single = even[:, :, :1]
    y = torch.empty(2, c, 1, 13, dtype=dtype).contiguous(memory_format=torch.channels_last)
    torch.ops.posgan_fast_native.epilogue2d(
        single, odd[:, :, :0], f, scale, None, b, y, 1, 1, 1, 1, 1, 2, False, 4.0, 1, 0.0, 1.0, -1.0
    )
    call = dict(f=F4, padding=(1, 1, 2, 1), filter_gain=4.0, scale=scale, b=b)
    assert_close(y, answer(z[:, :, :1], **call), "epilogue2d", dtype)


@pytest.mark.parametrize(
    "change",
    [
        dict(odd=torch.zeros(1, 4, 2, 2)),
        dict(odd=torch.zeros(1, 4, 1, 2).double()),
        dict(x=torch.zeros(1, 2, 2, 2)),
        dict(f=None),
        dict(f=torch.zeros(4).half()),
        dict(scale=torch.zeros(1, 3)),
        dict(scale=torch.zeros(1, 2).double()),
        dict(noise=torch.zeros(1, 1, 3, 4)),
        dict(b=torch.zeros(4)[::2]),
        dict(act=10),
        dict(y=torch.zeros(1, 2, 4, 4).half()),
    ],
    ids=lambda change: ",".join(change),
)
def test_the_leaf_guards_its_memory(change):
    PF.explain("epilogue2d", torch.zeros(1, 1, 1, 1))
    call = dict(
        x=torch.zeros(1, 4, 2, 2), odd=torch.zeros(1, 4, 1, 2), f=F4, scale=torch.zeros(1, 2),
        noise=torch.zeros(1, 1, 4, 5), b=torch.zeros(2), y=torch.zeros(1, 2, 4, 5), act=1,
    )  # fmt: skip
    formats = {key: torch.channels_last for key in ("x", "odd", "y")}

    def run(x, odd, f, scale, noise, b, y, act):
        torch.ops.posgan_fast_native.epilogue2d(
            x, odd, f, scale, noise, b, y, 1, 1, 1, 1, 2, 2, False, 1.0, act, 0.0, 1.0, -1.0
        )

    def placed(call):
        return {k: t.contiguous(memory_format=formats[k]) if k in formats else t for k, t in call.items()}

    run(**placed(call))
    with pytest.raises(RuntimeError, match="epilogue2d: "):
        run(**placed(call | change))


@each_layout
def test_opcheck(layout):
    for backend, act, name in itertools.product(BACKENDS, ("lrelu", "swish"), ("none", "up2")):
        x, call = operands((2, 3, 5, 6), torch.float32, layout, RESAMPLINGS[name])
        full = dict(f=None, up=(1, 1), down=(1, 1), padding=(0, 0, 0, 0), filter_gain=1.0) | RESAMPLINGS[name]
        parts = [call[key].requires_grad_() for key in ("scale", "noise", "b")]
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
    inputs = [t.requires_grad_() for t in (x, *(call.pop(key) for key in ("scale", "noise", "b")))]

    def block(x, scale, noise, b):
        return PF.epilogue2d(x.sin(), scale=scale, noise=noise, b=b, act=act, clamp=1.0, **call)

    compiled = torch.compile(block, fullgraph=True, dynamic=dynamic, backend="aot_eager")
    expected = torch.autograd.grad(block(*inputs).square().sum(), inputs)
    actual = torch.autograd.grad(compiled(*inputs).square().sum(), inputs)
    torch.testing.assert_close(actual, expected)


def test_autocast_keeps_the_dtype_of_x():
    x, call = operands((1, 2, 5, 5), torch.bfloat16, LAYOUTS[0], RESAMPLINGS["blur"])
    call |= {key: call[key].float().requires_grad_() for key in ("scale", "noise", "b")}
    with torch.autocast("cpu", torch.bfloat16):
        y = PF.epilogue2d(x, **call, act="lrelu")
        assert PF.epilogue2d(x.float(), **call).dtype == torch.float32
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert all(call[key].grad.dtype == torch.float32 for key in ("scale", "noise", "b"))


@each_backend
def test_not_a_number_and_infinity_stay(backend):
    x = torch.zeros(1, 2, 1, 3)
    x[0, :, 0, 1], x[0, :, 0, 2] = float("nan"), -float("inf")
    for layout in LAYOUTS:
        y = PF.epilogue2d(x.contiguous(memory_format=layout), scale=torch.ones(1, 2), act="lrelu", backend=backend)
        torch.testing.assert_close(y, x, equal_nan=True)
        y = PF.epilogue2d(x.contiguous(memory_format=layout), b=torch.ones(2), clamp=0.5, backend=backend)
        torch.testing.assert_close(y, (x + 1).clamp(-0.5, 0.5), equal_nan=True)


@pytest.mark.parametrize("instruction_set", ["baseline", "avx2"])
def test_every_instruction_set_computes_the_same(instruction_set):
    code = """
        import torch
        from posgan_fast import functional as PF, _native
        g = torch.manual_seed(0)
        assert _native.load("cpu").loaded
        assert _native.instruction_set() == {name!r}, _native.instruction_set()
        bounds = {torch.float32: 1e-6, torch.bfloat16: 4e-3, torch.float16: 1e-3, torch.float64: 1e-14}
        for dtype, bound in bounds.items():
            for c in (5, 33, 80):
                x, b = (torch.randn(s, generator=g).to(dtype) for s in ((2, c, 9, 37), (c,)))
                scale = torch.rand(2, c, generator=g)
                f = torch.randn(4, generator=g)
                for mode in (dict(), dict(f=f, up=2, padding=3), dict(f=f, down=2, padding=3), dict(f=f, padding=3)):
                    for act in ("linear", "lrelu", "tanh", "elu", "softplus", "swish"):
                        for t in (x, x.contiguous(memory_format=torch.channels_last)):
                            size = PF.epilogue2d(t, **mode).shape[2:]
                            call = dict(mode, scale=scale, noise=torch.randn(2, 1, *size, generator=g), b=b, act=act)
                            y = PF.epilogue2d(t, **call, backend="cpu")
                            z = PF.epilogue2d(t.double(), **call, backend="reference")
                            assert (y.double() - z).norm() <= bound * z.norm(), (dtype, c, mode, act)
        print("equal")
    """
    if instruction_set not in _native.build_record()["cpu"]["instruction_sets"]:
        pytest.skip(f"{instruction_set} is not built for this processor family")
    environment = os.environ | {"POSGAN_FAST_ISA": instruction_set}
    code = textwrap.dedent(code).replace("{name!r}", repr(instruction_set))
    result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert result.stdout.strip() == "equal", result.stderr
