"""modulated_conv2d on the host's backends: its contract, derivatives, random calls, and torch's tools."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import product

import oracle
import pytest
import torch
from contract.common import DTYPES, HOST, LAYOUTS, check_derivatives, each_of
from contract.modulated_conv2d import LAYERS, Layer, ModulatedConv2dContract, answer, each_layer, run, tensors
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import assert_close

import posgan_fast
from posgan_fast import functional as PF
from posgan_fast.nn import StyleConv
from posgan_fast.ops import modulated_conv2d as room
from posgan_fast.ops.bias_act import ACTIVATIONS

backend = each_of(HOST)


class TestContract(ModulatedConv2dContract):
    """The contract on the CPU."""


@each_layer
def test_derivatives(layer, backend):
    x, *rest = tensors(layer, i=2, o=2, h=3, w=4)

    def function(*given):
        border = given[5] if layer.border else None
        return run(layer, *given[:5], border, clamp=None, act="swish", backend=backend.name)

    check_derivatives(function, [t for t in (x, *rest) if t is not None])


@pytest.mark.parametrize("clamp", [None, 1.0])
@pytest.mark.parametrize("act", ACTIVATIONS)
def test_derivatives_of_every_activation(act, clamp):
    layer = Layer("up, map", up=2, border="map", flip_weight=False)
    given = tensors(layer, n=1, i=2, o=1, h=2, w=2, seed=4)
    check_derivatives(lambda *given: run(layer, *given, act=act, clamp=clamp), given)


@pytest.mark.parametrize("up", [1, 2])
def test_the_gradient_of_a_map_is_that_of_its_ring(up):
    layer = Layer("map", up=up, border="map")
    *given, border = tensors(layer)
    border.requires_grad_()
    (gradient,) = torch.autograd.grad(run(layer, *given, border).sum(), border)
    h, w = (5, 7) if up == 1 else (11, 15)
    ring = torch.zeros_like(border, dtype=torch.bool)
    top, left = (border.shape[2] - h - 2) // 2, (border.shape[3] - w - 2) // 2
    rows, columns = oracle.ring_positions(h, w).T
    ring[:, :, rows + top, columns + left] = True
    assert gradient[~ring].count_nonzero() == 0 and (gradient[ring] != 0).double().mean() > 0.9


def test_styles_of_a_sample_have_no_scale():
    """A positive factor on all styles of a sample is undone by the demodulation, up to eps."""
    x, weight, styles, *_ = tensors(LAYERS[0])
    y = PF.modulated_conv2d(x, weight, styles, padding=1)
    scaled = PF.modulated_conv2d(x, weight, styles * torch.tensor([[3.0], [70.0]]), padding=1)
    assert (y - scaled).abs().max() < 1e-9


@pytest.mark.parametrize("layer", [LAYERS[0], LAYERS[5], LAYERS[12], LAYERS[15]], ids=lambda layer: layer.name)
@pytest.mark.parametrize("training", [False, True])
def test_passes_opcheck(layer, training):
    """In float32 and in bfloat16, each in one of the layouts."""
    dtype, layout = (torch.float32, LAYOUTS[1]) if training else (torch.bfloat16, LAYOUTS[0])
    given = tensors(layer, n=1, dtype=dtype)
    x, weight, styles, noise, bias, border = (t if t is None else t.requires_grad_(training) for t in given)
    f = layer.f if layer.up * layer.down > 1 else None
    strength = torch.tensor(0.7, requires_grad=training)
    arguments = (
        x.contiguous(memory_format=layout), weight, styles, layer.up, layer.down, layer.padding, border, f, True,
        layer.flip_weight, 1e-8, noise, strength, bias, "lrelu", 0.2, 1.0, -1.0, "cpu",
    )  # fmt: skip
    torch.library.opcheck(torch.ops.posgan_fast.modulated_conv2d, arguments)


@pytest.mark.parametrize("up", [1, 2])
def test_the_strength_multiplies_the_noise(up, backend):
    layer = Layer("up" if up > 1 else "plain", up=up)
    x, weight, styles, noise, bias, _ = tensors(layer)
    strength = torch.tensor(0.7, dtype=x.dtype, requires_grad=True)
    call = dict(up=up, padding=1, resample_filter=layer.f, flip_weight=up == 1, bias=bias, act="lrelu")
    expected = PF.modulated_conv2d(x, weight, styles, noise=noise * strength, backend="reference", **call)
    y = PF.modulated_conv2d(x, weight, styles, noise=noise, noise_strength=strength, backend=backend.name, **call)
    torch.testing.assert_close(y, expected)
    gradients = [torch.autograd.grad(t.square().sum(), strength)[0] for t in (y, expected)]
    torch.testing.assert_close(*gradients)
    with torch.no_grad():
        y = PF.modulated_conv2d(x, weight, styles, noise=noise, noise_strength=strength, backend=backend.name, **call)
    torch.testing.assert_close(y, expected.detach())


def test_gradients_of_float16_are_rounded_between_the_stages(backend):
    """The gradient of a small loss vanishes on its way through a stage, unless the loss is scaled; not so in the
    reference, which computes in float32 inside."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, 4, 8, 8, generator=generator).half().requires_grad_()
    weight, styles = torch.randn(4, 4, 3, 3, generator=generator) * 1e-3, torch.full((1, 4), 1e3)
    dy = torch.randn(1, 4, 8, 8, generator=generator).half()

    def gradient(scale: float, backend: str) -> torch.Tensor:
        y = PF.modulated_conv2d(x, weight, styles, padding=1, demodulate=False, backend=backend)
        return torch.autograd.grad(y, x, dy * scale)[0].float() / scale

    expected = gradient(1, "reference")
    torch.testing.assert_close(gradient(1, backend.name), expected, rtol=1e-2, atol=1e-2)
    small = gradient(2**-16, backend.name)
    if backend.name == "reference":
        torch.testing.assert_close(small, expected, rtol=1e-1, atol=1e-1)
    else:
        assert (small == 0).float().mean() > 0.3


@pytest.mark.parametrize("training", [False, True])
def test_compiles_to_one_graph(training):
    layer = Layer("map", border="map")
    given = [t.requires_grad_(training) for t in tensors(layer, dtype=torch.float32)]
    compiled = torch.compile(lambda *given: run(layer, *given), fullgraph=True, backend="aot_eager")
    y, expected = compiled(*given), run(layer, *given)
    torch.testing.assert_close(y, expected)
    if training:
        actual, wanted = (torch.autograd.grad(out.square().sum(), given) for out in (y, expected))
        torch.testing.assert_close(actual, wanted)


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("layer", [LAYERS[0], LAYERS[5]], ids=lambda layer: layer.name)
def test_autocast_computes_the_layer_in_half_precision_and_its_factors_not(layer, training):
    x, weight, styles, noise, bias, _ = tensors(layer, dtype=torch.float32)
    styles.requires_grad_(training)
    expected = run(layer, x.bfloat16(), weight, styles, noise, bias, None)
    with torch.autocast("cpu", torch.bfloat16):
        y = run(layer, x, weight, styles, noise, bias, None)
        assert torch.equal(y, expected)
        kept = run(layer, x.double(), weight.double(), styles.double(), noise.double(), bias.double(), None)
    assert kept.dtype == torch.float64
    rounded = answer(layer, x.bfloat16(), weight, styles, noise, bias.bfloat16(), None)
    assert_close(y, rounded, "modulated_conv2d", torch.bfloat16)


def test_the_gradient_of_a_bias_in_float32_does_not_pass_through_half_precision(backend):
    x, weight, styles = torch.zeros(2, 1, 256, 256).half(), torch.ones(2, 1, 1, 1), torch.ones(2, 1)
    b = torch.zeros(2, requires_grad=True)
    y = PF.modulated_conv2d(x, weight, styles, bias=b, backend=backend.name)
    assert y.dtype == torch.float16
    y.sum(dtype=torch.float32).backward()
    assert torch.equal(b.grad, torch.full((2,), 2.0 * 256 * 256))  # beyond float16


@pytest.mark.parametrize("demodulate", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_few_filters_of_a_batch(dtype, demodulate):
    """Features to images, which the CPU computes as one product for each sample."""
    layer = Layer("", (1, 1), padding=0, demodulate=demodulate)
    given = tensors(layer, n=3, i=40, o=3, dtype=dtype)
    assert_close(run(layer, *given, backend="cpu"), answer(layer, *given), "modulated_conv2d", dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("up", [1, 2])
def test_views(up, dtype):
    """Expanded noise, transposed weights and strided biases are as good as dense ones."""
    layer = Layer("", up=up, flip_weight=False)
    x, weight, styles, noise, bias, _ = tensors(layer, h=6, w=6, dtype=dtype)
    expected = run(layer, x, weight, styles, noise.expand(2, -1, -1, -1).contiguous(), bias, None)
    views = (weight.transpose(2, 3).contiguous().transpose(2, 3), styles.expand(2, -1), noise.expand(2, -1, -1, -1))
    assert torch.equal(run(layer, x, *views, torch.stack([bias, bias], 1)[:, 0], None), expected)
    assert torch.equal(run(layer, x, weight, styles, noise.mT.contiguous().mT, bias, None), expected)


def test_a_map_for_another_batch_is_refused_in_every_dtype():
    for dtype, up in product(DTYPES, (1, 2)):
        x, weight, styles, *_ = tensors(LAYERS[0], dtype=dtype)
        with pytest.raises(ValueError, match="^pad_map: "):
            PF.modulated_conv2d(x, weight, styles, up=up, padding=1, pad_map=torch.zeros(1, 8, 30, 30))


@settings(max_examples=60, deadline=None)
@given(
    layer=st.sampled_from(LAYERS), n=st.integers(0, 3), i=st.integers(1, 20), o=st.integers(1, 20),
    h=st.integers(4, 12), w=st.integers(4, 12), dtype=st.sampled_from(DTYPES), layout=st.sampled_from(LAYOUTS),
    view=st.booleans(), seed=st.integers(0, 2**20),
)  # fmt: skip
def test_backends_agree(layer, n, i, o, h, w, dtype, layout, view, seed):
    x, *rest = tensors(layer, n, i, o, h, w, dtype, seed)
    x = torch.cat([x, x])[::2] if view and n > 1 and n % 2 == 0 else x.contiguous(memory_format=layout)
    clamp = 4.0 if layer.demodulate else 20.0  # about where the largest results are
    call = dict(resample_filter=layer.f, pad_map=rest[-1], **layer.arguments)
    winograd = posgan_fast.explain("modulated_conv2d", x, *rest[:2], **call).algorithm == "winograd"
    y, expected = (run(layer, x, *rest, clamp=clamp, backend=backend) for backend in ("cpu", "reference"))
    assert y.shape == expected.shape and y.stride() == expected.stride() and y.dtype == dtype
    if n:
        assert_close(y, expected, "winograd3x3" if winograd else "modulated_conv2d", dtype)


@pytest.mark.parametrize("instruction_set", ["baseline", "avx2"])
def test_every_instruction_set_prepares_the_same_weight(instruction_set):
    code = """
        import torch, posgan_fast.functional as PF
        g = torch.Generator().manual_seed(0)
        r = lambda *s: torch.randn(s, generator=g)
        x, w, s, f = r(1, 40, 6, 6), r(24, 40, 3, 3), r(1, 40), PF.setup_filter([1, 3, 3, 1])
        for kind, bound in ((torch.float32, 1e-6), (torch.bfloat16, 1e-2), (torch.float64, 1e-14)):
            t, wide = x.to(kind), torch.promote_types(kind, torch.float32)
            for up in (1, 2):
                call = dict(up=up, padding=1, resample_filter=f)
                run = lambda b: PF.modulated_conv2d(t, w.to(wide), s.to(wide), **call, backend=b).double()
                y, e = run("cpu"), run("reference")
                assert (y - e).norm() <= bound * e.norm(), (kind, up, (y - e).norm() / e.norm())
    """
    code = "\n".join(line[8:] for line in code.splitlines())
    environment = os.environ | {"POSGAN_FAST_ISA": instruction_set}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("backend", ["cpu", "reference", "auto"])  # the last: what an exported graph holds
def test_the_op_itself_is_differentiable_twice(backend):
    """As the public function, with a weight that depends on the styles, which must count once."""
    x, weight, styles, noise, bias, border = tensors(Layer("map", border="map"))
    given = [t.requires_grad_() for t in (x, weight, styles, noise, bias, border)]
    weight = weight * styles.sum()
    activation = ("lrelu", None, None, 9)
    call = room.Call(
        x, weight, styles, 1, 1, 1, border, None, True, True, 1e-8, noise, None, bias, *activation, None
    )  # fmt: skip
    op = torch.ops.posgan_fast.modulated_conv2d(*room.check(call)._replace(backend=backend))
    stages = PF.modulated_conv2d(
        x, weight, styles, padding=1, pad_map=border, noise=noise, bias=bias, act="lrelu", clamp=9
    )
    first = [torch.autograd.grad(y.square().sum(), given, create_graph=True) for y in (op, stages)]
    torch.testing.assert_close(*first)
    second = [
        torch.autograd.grad(sum(g.square().sum() for g in gradients), given, retain_graph=True) for gradients in first
    ]
    torch.testing.assert_close(*second)


def test_an_exported_layer_trains(recwarn):
    layer = StyleConv(4, 3, 5, 6).eval()
    torch.nn.init.ones_(layer.noise_strength)
    x, w = torch.randn(2, 4, 6, 6), torch.randn(2, 5)
    with torch.no_grad():
        exported = torch.export.export(layer, (x, w)).module()
    recwarn.clear()
    x.requires_grad_()
    torch.testing.assert_close(*(torch.autograd.grad(m(x, w).square().sum(), x) for m in (exported, layer)))
    assert not [w for w in recwarn if "autograd" in str(w.message)]


def test_an_exported_layer_runs_under_autocast():
    """In the dtype that it was exported in; autocast still reaches the affine layer ahead of it."""
    # Without a kink: rounding could take the input of another activation across it.
    layer, x, w = StyleConv(4, 3, 5, 6, act="linear").eval(), torch.randn(2, 4, 6, 6), torch.randn(2, 5)
    with torch.no_grad():
        exported = torch.export.export(layer, (x, w)).module()
        expected = layer(x, w)
        with torch.autocast("cpu", torch.bfloat16):
            y = exported(x, w)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, expected, rtol=2e-2, atol=2e-2)
    x.requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        (actual,) = torch.autograd.grad(exported(x, w).sum(), x)
    torch.testing.assert_close(actual, torch.autograd.grad(layer(x, w).sum(), x)[0], rtol=2e-2, atol=2e-2)
