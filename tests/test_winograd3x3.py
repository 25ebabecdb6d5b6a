"""Winograd's convolution: its values on every instruction set, its derivatives, what it leaves to the vendor, and
prepared weights."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import oracle
import pytest
import setup_script
import torch
from contract import modulated_conv2d as layers
from contract.common import check_derivatives
from hypothesis import given, settings
from hypothesis import strategies as st
from tolerances import assert_close
from torch.nn import functional as F

import posgan_fast
from posgan_fast import _native, nn, use_backend
from posgan_fast import functional as PF
from posgan_fast.models import Generator, PadInvEncoder
from posgan_fast.models.iresnet import Bottleneck
from posgan_fast.ops import winograd3x3
from posgan_fast.ops.common import weight_cache
from posgan_fast.ops.conv2d import convolution
from posgan_fast.ops.winograd3x3 import Form

sys.path.append(str(Path(__file__).parent / "native"))
from build_harness import compiler

ISAS = ("avx512", "avx2", "baseline")
MODES = ("zeros", "reflect", "instance")

pytestmark = pytest.mark.skipif(not _native.load("cpu").loaded, reason="needs the CPU library")


@pytest.fixture
def everywhere():
    """Take Winograd's algorithm wherever it can compute a call."""
    before = posgan_fast.set_algorithm("winograd")
    yield
    posgan_fast.set_algorithm(before)


def reference(x, weight, form, padding=1, mode=0, pad_map=None, alpha=1.0, gain=1.0, clamp=-1.0, **factors):
    """The docstring's formula in float64."""

    def column(name, otherwise):
        t = factors.get(name)
        return otherwise if t is None else t.double()[..., None, None]

    z = x.double() * column("in_scale", 1) + column("in_shift", 0)
    if form == Form.UP:
        y = F.conv_transpose2d(z, weight.double().transpose(0, 1), stride=2)
    else:
        z = oracle.surrounded(z, pad_map) if mode == 2 else oracle.padded(z, [padding] * 4, MODES[mode])
        y = F.conv2d(torch.from_numpy(z), weight.double(), stride=1 + (form == Form.DOWN))
    y = y * column("scale", 1) + column("shift", 0)
    y = y if factors.get("noise") is None else y + factors["noise"].double()
    y = gain * torch.where(y < 0, y * column("slope", alpha), y)
    return y if clamp < 0 else y.clamp(-clamp, clamp)


def convolve(x, weight, form=Form.PLAIN, **arguments):
    return winograd3x3.run(x, winograd3x3.prepare(weight, form), form, **arguments)


def weight_gradient(x, dy, form, padding):
    """The gradient of a weight [O, I, 3, 3] by torch in float64."""
    weight = torch.zeros(dy.shape[1], x.shape[1], 3, 3, dtype=torch.float64, requires_grad=True)
    if form == Form.UP:
        y = F.conv_transpose2d(x.double(), weight.transpose(0, 1), stride=2)
    else:
        y = F.conv2d(x.double(), weight, stride=1 + (form == Form.DOWN), padding=padding)
    return torch.autograd.grad(y, weight, dy.double())[0]


def error(found, expected):
    return float((found.detach().double() - expected).norm() / expected.norm())


_CASES = """
    import sys
    import torch
    sys.path.insert(0, "tests")
    from posgan_fast import _native
    from posgan_fast.ops import winograd3x3
    from posgan_fast.ops.winograd3x3 import Form
    from test_winograd3x3 import convolve, error, reference, weight_gradient

    assert _native.instruction_set() == sys.argv[1]
    random = torch.Generator().manual_seed(int(sys.argv[2]))
    draw = lambda *shape: torch.randn(shape, generator=random)
    pick = lambda low, high: int(torch.randint(low, high + 1, (), generator=random))
    for case in range(400):
        form, mode = Form(pick(0, 2)), pick(0, 2)
        mode = 0 if form == Form.UP else mode
        padding = 1 if form == Form.UP or mode == 2 else pick(0, 2)
        n, h, w, i, o = pick(1, 3), pick(1, 19), pick(1, 19), pick(1, 50), pick(1, 70)
        i += 128 * (case % 10 == 0)  # partial sums
        padding = max(padding, int(min(h, w) < 3))
        mode = 0 if mode == 1 and min(h, w) <= padding else mode
        x, weight = draw(n, i, h, w), draw(o, i, 3, 3)
        x = x if pick(0, 1) else x.contiguous(memory_format=torch.channels_last)
        strided = [weight.contiguous(memory_format=torch.channels_last), weight.transpose(2, 3)]
        strided.append(weight.transpose(0, 1).contiguous().transpose(0, 1))
        weight = [weight, *strided][pick(0, 3)]
        flip = pick(0, 1) == 1
        sizes = dict(in_scale=i, scale=o, shift=o, slope=o) | (dict(in_shift=i) if mode < 2 else {})
        factors = {name: draw(*[(size,), (n, size)][pick(0, 1)]) for name, size in sizes.items() if pick(0, 1)}
        if pick(0, 1):
            factors["noise"] = draw([1, n][pick(0, 1)], 1, *winograd3x3.out_size(x, form, padding))
        if mode == 2:
            factors["pad_map"] = [draw(n, i, h + pick(2, 5), w + pick(2, 5)), draw(n, i, 2 * (h + w) + 4)][pick(0, 1)]
        epilogue = dict(alpha=0.2, gain=1.4, clamp=[-1.0, 4.0 * i][pick(0, 1)]) if pick(0, 1) else {}
        arguments = dict(padding=padding, mode=mode) | factors | epilogue
        y = winograd3x3.run(x, winograd3x3.prepare(weight, form, flip), form, **arguments)
        raw = winograd3x3.prepare(weight, form, flip, tiles=1)  # each thread transforms it for itself
        assert raw.transformed is None and torch.equal(winograd3x3.run(x, raw, form, **arguments), y)
        rounded = x.bfloat16()  # images in bfloat16 are computed as in float32, and rounded once
        single = winograd3x3.run(rounded.float(), raw, form, **arguments)
        wrong = (winograd3x3.run(rounded, raw, form, **arguments) - single).abs() - single.abs() / 256
        assert wrong.max() < 1e-5 * single.abs().max(), (case, form, n, h, w, i, o, arguments.keys())
        dy = draw(*y.shape)
        gradient = winograd3x3.weight_gradient(x, dy, form, padding), weight_gradient(x, dy, form, padding)
        assert error(*gradient) < 4e-6 or not gradient[1].any(), (case, form, n, h, w, i, o)
        kernel = weight.flip((2, 3)) if flip else weight
        found = error(y, reference(x, kernel, form, **arguments))
        assert y.is_contiguous(memory_format=torch.channels_last)
        assert found < 4e-6, (case, found, form, n, h, w, i, o, arguments.keys())
"""


@pytest.mark.parametrize("instruction_set", ISAS)
def test_generated_calls_agree_with_float64(instruction_set):
    """400 on each instruction set; results that cancel in the shift lose a digit."""
    available = ISAS[ISAS.index(_native.instruction_set()) :]
    if instruction_set not in available:
        pytest.skip(f"this machine has no {instruction_set}")
    environment = os.environ | {"POSGAN_FAST_ISA": instruction_set}
    command = [sys.executable, "-c", textwrap.dedent(_CASES), instruction_set, str(ISAS.index(instruction_set))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@settings(max_examples=100, deadline=None)
@given(
    n=st.integers(1, 3), i=st.integers(1, 140), o=st.integers(1, 40), h=st.integers(1, 20), w=st.integers(1, 20),
    stride=st.integers(1, 2), padding=st.integers(1, 4), channels_last=st.booleans(), seed=st.integers(0, 2**20),
)  # fmt: skip
def test_drawn_convolutions_agree_with_float64(n, i, o, h, w, stride, padding, channels_last, seed):
    random = torch.Generator().manual_seed(seed)
    x, weight = torch.randn(n, i, h, w, generator=random), torch.randn(o, i, 3, 3, generator=random)
    x = x.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    before = posgan_fast.set_algorithm("winograd")
    try:
        y = PF.conv2d(x, weight, stride=stride, padding=padding)
    finally:
        posgan_fast.set_algorithm(before)
    expected = F.conv2d(x.double(), weight.double(), stride=stride, padding=padding)
    # A sum of a few products may cancel, and the transform of a weight mixes taps that meet zeros.
    size = max(expected.norm(), x.double().norm() * weight.double().norm() / i**0.5)
    assert (y.double() - expected).norm() < 4e-6 * size


@pytest.mark.parametrize("form", Form)
@pytest.mark.parametrize(("channels", "side"), [(64, 32), (128, 24), (256, 16), (512, 16)])
def test_errors_on_the_layers_of_stylegan2_stay_below_the_bound(channels, side, form):
    """The bound is that of the table."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(1, channels, side, side, generator=random)
    weight = torch.randn(channels, channels, 3, 3, generator=random)
    assert_close(convolve(x, weight, form), reference(x, weight, form), "winograd3x3", torch.float32)


@pytest.mark.parametrize("form", Form)
@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_errors_are_relative_to_the_numbers(scale, form):
    """The magnitudes of the channels differ by a thousand."""
    x, weight = torch.randn(1, 64, 20, 20), torch.randn(32, 64, 3, 3)
    x *= scale * 10 ** torch.linspace(-3, 0, 64)[:, None, None]
    assert error(convolve(x, weight, form) / scale, reference(x, weight, form) / scale) < 2e-6


def test_images_of_a_generator_stay_within_a_ten_thousandth(everywhere):
    generator = Generator(64, w_dim=64, z_dim=64, channel_multiplier=1 / 8).eval().requires_grad_(False)
    for name, value in generator.named_parameters():
        if name.endswith("noise_strength"):
            value.fill_(0.1)
    ws = generator.mapping(torch.randn(2, 64, generator=torch.Generator().manual_seed(0)))
    with torch.no_grad():
        images = generator.synthesis(ws, noise_mode="const")
        exact = generator.double().synthesis(ws.double(), noise_mode="const")
    assert images.dtype == torch.float32 and (images - exact).abs().max() < 1e-4 * exact.abs().max()


@pytest.mark.parametrize("form", Form)
def test_bits_depend_on_neither_threads_nor_other_samples(form):
    x, weight = torch.randn(3, 32, 21, 18), torch.randn(48, 32, 3, 3)
    together = convolve(x, weight, form)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            assert torch.equal(convolve(x, weight, form), together)
            assert torch.equal(convolve(x[1:2], weight, form), together[1:2])
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("arguments", [dict(), dict(up=2), dict(down=2)], ids=str)
@pytest.mark.parametrize("side", [16, 8, 4])
def test_a_samples_style_layer_depends_on_neither_threads_nor_the_batch_nor_prepack(side, arguments):
    x, weight, styles = torch.randn(20, 128, side, side), torch.randn(128, 128, 3, 3), torch.rand(20, 128)
    arguments = dict(padding=1, bias=torch.randn(128), act="lrelu") | arguments
    if len(arguments) > 3:
        arguments["resample_filter"] = PF.setup_filter([1, 3, 3, 1])
    together, threads = PF.modulated_conv2d(x, weight, styles, **arguments), torch.get_num_threads()
    assert error(together, PF.modulated_conv2d(x.double(), weight.double(), styles.double(), **arguments)) < 2e-6
    served = posgan_fast.explain("modulated_conv2d", x, weight, styles, **arguments).algorithm == "winograd"
    assert served == (side * arguments.get("up", 1) // arguments.get("down", 1) >= (16 if "up" in arguments else 8))
    if not served:  # torch's convolution makes no such promise
        return
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            for part in (slice(1, 2), slice(1, 4)):
                assert torch.equal(PF.modulated_conv2d(x[part], weight, styles[part], **arguments), together[part])
        weight_cache.keep(weight)
        assert torch.equal(PF.modulated_conv2d(x[:2], weight, styles[:2], **arguments), together[:2])
    finally:
        weight_cache.forget(weight)
        torch.set_num_threads(threads)


@pytest.mark.parametrize("side", [16, 64])
def test_a_samples_map_around_an_enlarged_image_does_not_depend_on_the_batch(side):
    x, weight, styles = torch.randn(4, 64, side, side), torch.randn(64, 64, 3, 3), torch.randn(4, 64)
    maps = torch.randn(4, 64, 2 * side + 3, 2 * side + 3)

    def run(part):
        f = PF.setup_filter([1, 3, 3, 1])
        return PF.modulated_conv2d(
            x[part], weight, styles[part], up=2, padding=1, resample_filter=f, pad_map=maps[part]
        )

    assert torch.equal(run(slice(0, 1)), run(slice(0, 4))[:1]) and torch.equal(run(slice(1, 3)), run(slice(0, 4))[1:3])


def test_bfloat16_is_stored_as_torch_rounds_it():
    """Also infinities, NaN and what rounds to infinity, in whole vectors and parts of them."""
    values = torch.tensor([3.4e38, -3.4e38, 3.39e38, torch.inf, -torch.inf, torch.nan, 1e-40, 1.00390625, 1.01171875])
    shift = torch.cat([values, values, values, torch.zeros(3)])
    image = torch.zeros(1, 16, 4, 4, dtype=torch.bfloat16)
    y = convolve(image, torch.zeros(30, 16, 3, 3), shift=shift)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y[0, :, 2, 1], shift.bfloat16(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_number_that_is_not_finite_spoils_the_results_of_its_tiles_only(value):
    x, weight = torch.randn(1, 16, 16, 16), torch.randn(16, 16, 3, 3)
    clean = convolve(x, weight)
    x[0, 3, 5, 5] = value
    spoilt = convolve(x, weight)
    expected = torch.zeros(16, 16, dtype=torch.bool)
    expected[4:8, 4:8] = True
    assert torch.equal(~spoilt[0].isfinite().all(0), expected)
    assert torch.equal(spoilt[:, :, ~expected], clean[:, :, ~expected])


def test_the_epilogue_lets_nan_through_and_relu_makes_zeros_of_minus_infinity():
    x, weight = torch.zeros(1, 16, 4, 4), torch.zeros(16, 16, 3, 3)
    shift = torch.zeros(16)
    shift[:3] = torch.tensor([-torch.inf, torch.nan, torch.inf])
    y = convolve(x, weight, shift=shift, alpha=0.0, clamp=7.0)[0, :3, 0, 0]
    torch.testing.assert_close(y, torch.tensor([0.0, torch.nan, 7.0]), equal_nan=True)


@layers.each_layer
@pytest.mark.parametrize("training", [False, True])
def test_the_style_layer_keeps_its_contract(layer, training, everywhere):
    """Sizes that leave tiles incomplete, channels that leave vectors incomplete, both memory formats."""
    given = layers.tensors(layer, n=2, i=20, o=18, h=9, w=14, dtype=torch.float32)
    expected = layers.answer(layer, *given)
    for layout in (torch.contiguous_format, torch.channels_last):
        x = given[0].detach().contiguous(memory_format=layout).requires_grad_(training)
        y = layers.run(layer, x, *given[1:], backend="cpu")
        assert_close(y, expected, "winograd3x3", torch.float32)


def test_the_style_layer_runs_it_where_explain_says_so(monkeypatch):
    x, weight, styles = torch.randn(1, 32, 64, 64), torch.randn(32, 32, 3, 3), torch.ones(1, 32)
    called = []
    monkeypatch.setattr(winograd3x3, "run", lambda *a, run=winograd3x3.run, **k: called.append(a[2]) or run(*a, **k))
    f = PF.setup_filter([1, 3, 3, 1])
    for arguments, form in ((dict(), Form.PLAIN), (dict(up=2), Form.UP), (dict(down=2), Form.DOWN)):
        call = (x, weight, styles), dict(padding=1, resample_filter=f if arguments else None, **arguments)
        assert posgan_fast.explain("modulated_conv2d", *call[0], **call[1]).algorithm == "winograd"
        PF.modulated_conv2d(*call[0], **call[1])
        assert called.pop() == form and not called
    assert "it resamples by 3" in posgan_fast.explain("modulated_conv2d", x, weight, styles, up=3).algorithm


CONVOLUTIONS = {
    "plain": dict(padding=1),
    "no padding": dict(),
    "padding of 3": dict(padding=3),
    "stride": dict(stride=2, padding=1),
    "stride, odd": dict(stride=2),
    "transposed": dict(stride=2, transposed=True),
}


def _operands(arguments, dtype, i=3, o=4, h=7, w=8):
    sides = (i, o) if arguments.get("transposed") else (o, i)
    return torch.randn(2, i, h, w, dtype=dtype), torch.randn(*sides, 3, 3, dtype=dtype)


@pytest.mark.parametrize("arguments", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_derivatives_of_the_op_agree_with_finite_differences(arguments):
    """In float64 the op takes the direct algorithm; its formulas are the same."""
    x, weight = _operands(arguments, torch.float64)
    padding = [arguments.get("padding", 0)] * 2
    call = convolution.Call(x, weight, arguments.get("stride", 1), padding, "transposed" in arguments)
    check_derivatives(lambda x, weight: convolution.OP(call._replace(x=x, weight=weight)), [x, weight])


@pytest.mark.parametrize("arguments", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_derivatives_of_the_weights_gradient_agree_with_finite_differences(arguments):
    x, weight = _operands(arguments, torch.float64)
    stride, padding, transposed = (
        arguments.get("stride", 1),
        [arguments.get("padding", 0)] * 2,
        "transposed" in arguments,
    )
    dy = torch.randn_like(convolution.convolve(x, weight, **arguments))
    call = convolution.GradientCall(x, dy, stride, padding, transposed, 3, 3)
    check_derivatives(lambda x, dy: convolution.GRADIENT(call._replace(x=x, dy=dy)), [x, dy])


@pytest.mark.parametrize("arguments", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_derivatives_of_both_orders_agree_with_torchs(arguments, everywhere):
    """The gradient of a gradient penalty, in float32 by Winograd's algorithm and in float64 by torch."""
    results = []
    for dtype in (torch.float32, torch.float64):
        torch.manual_seed(0)
        x, weight = (t.to(dtype).requires_grad_() for t in _operands(arguments, torch.float32, 20, 18, 13, 13))
        y = convolution.convolve(x, weight, **arguments)
        assert ("winograd3x3" in y.grad_fn.name()) == (dtype == torch.float32)
        (dx,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        results.append([y, dx, *torch.autograd.grad(dx.square().sum() + dx.sum() * y.sum(), (x, weight))])
    for found, expected in zip(*results, strict=True):
        assert found.shape == expected.shape and error(found, expected) < 5e-6


@pytest.mark.parametrize("arguments", CONVOLUTIONS.values(), ids=CONVOLUTIONS)
def test_the_op_passes_opcheck(arguments, everywhere):
    x, weight = (t.requires_grad_() for t in _operands(arguments, torch.float32, 16, 16))
    padding = [arguments.get("padding", 0)] * 2
    torch.library.opcheck(
        torch.ops.posgan_fast.winograd3x3.default,
        (x, weight, arguments.get("stride", 1), padding, "transposed" in arguments),
        atol=1e-4,
        rtol=1e-4,
    )
    dy = torch.randn_like(convolution.convolve(x, weight, **arguments)).requires_grad_()
    torch.library.opcheck(
        torch.ops.posgan_fast.winograd3x3_gradient.default,
        (x, dy, arguments.get("stride", 1), padding, "transposed" in arguments, 3, 3),
        atol=1e-3,
        rtol=1e-3,
    )


def test_transforms_take_the_direct_algorithm(everywhere):
    x, weight = torch.randn(3, 2, 16, 12, 12), torch.randn(16, 16, 3, 3)
    mapped = torch.func.vmap(lambda x: convolution.convolve(x, weight, padding=1))(x)
    assert torch.equal(mapped, F.conv2d(x.flatten(0, 1), weight, padding=1).unflatten(0, (3, 2)))
    _, tangent = torch.func.jvp(lambda x: convolution.convolve(x, weight, padding=1), (x[0],), (x[1],))
    torch.testing.assert_close(tangent, F.conv2d(x[1], weight, padding=1))
    compiled = torch.compile(lambda x: convolution.convolve(x, weight, padding=1), backend="eager", fullgraph=True)
    assert torch.equal(compiled(x[0]), F.conv2d(x[0], weight, padding=1))


def test_calls_that_it_does_not_serve():
    x, weight = torch.randn(1, 32, 32, 32), torch.randn(32, 32, 3, 3)

    def serves(x, weight):
        return winograd3x3.serves(x, weight, Form.PLAIN, 1)

    assert not serves(x, weight)  # a derivative may follow
    with torch.no_grad():
        assert serves(x, weight)
        assert not serves(x.double(), weight.double())
        assert not serves(x, torch.randn(32, 32, 5, 5))
        assert not serves(x, torch.randn(8, 32, 3, 3))
        assert not serves(x[:, :, :4], weight)
        assert not serves(x[:0], weight)
        with use_backend("reference"):
            assert not serves(x, weight)
        with torch.autocast("cpu", torch.bfloat16):
            assert not serves(x, weight)
        seen = []
        torch.func.vmap(lambda one: seen.append(serves(one, weight)) or one)(x[None])
        assert seen == [False]


@pytest.mark.parametrize(("channels", "stride"), [((32, 32), 1), ((32, 32), 2), ((16, 32), 2)])
def test_a_block_of_the_encoder_agrees_with_its_layers(channels, stride, everywhere):
    block = Bottleneck(*channels, stride).eval()
    for name, value in [*block.named_parameters(), *block.named_buffers()]:
        if value.is_floating_point():
            torch.nn.init.uniform_(value, 0.3, 1.5) if "var" in name else torch.nn.init.normal_(value)
    x = torch.randn(2, channels[0], 20, 22)
    expected = block.double()(x.double()).detach()
    block.float()
    with torch.no_grad():
        assert error(block(x), expected) < 5e-6
        with use_backend("reference"):
            assert error(block(x), expected) < 5e-6


def test_prepared_weights_give_the_same_bits_and_notice_changes(everywhere):
    encoder = PadInvEncoder(32, num_ws=2, levels=(1, 1, 0), width=16, padding=None).eval()
    images = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        plain = encoder(images)[0]
        nn.prepack(encoder)
        weight = encoder.backbone_stages[1][1].res_layer[1].weight
        assert weight_cache.packed(weight, "any form", lambda: True)
        assert torch.equal(encoder(images)[0], plain) and torch.equal(encoder(images)[0], plain)
        weight.data.mul_(1.5)
        changed = encoder(images)[0]
        nn.prepack(encoder, enable=False)
        assert not torch.equal(changed, plain) and torch.equal(encoder(images)[0], changed)


REFUSED = {
    "transformed": dict(transformed=torch.zeros(36 * 16 * 32 - 1)),
    "eps": dict(eps=1e-8),
    "squares": dict(eps=1e-8, squares=torch.zeros(16, 15)),
    "map of form 2": dict(form=2, mode=1, y=torch.zeros(1, 17, 17, 16).permute(0, 3, 1, 2)),
    "two weights": dict(weight=torch.zeros(16, 16, 3, 3)),
    "no weight": dict(transformed=None),
    "filters": dict(transformed=None, weight=torch.zeros(8, 16, 3, 3)),
    "kernel": dict(transformed=None, weight=torch.zeros(16, 16, 3, 2)),
    "x in NCHW": dict(x=torch.zeros(1, 16, 8, 8)),
    "x in float16": dict(x=torch.zeros(1, 8, 8, 16, dtype=torch.float16).permute(0, 3, 1, 2)),
    "y in float32": dict(x=torch.zeros(1, 8, 8, 16, dtype=torch.bfloat16).permute(0, 3, 1, 2)),
    "x in float64": dict(x=torch.zeros(1, 16, 8, 8, dtype=torch.float64)),
    "size": dict(y=torch.zeros(1, 7, 8, 16).permute(0, 3, 1, 2)),
    "no sample": dict(x=torch.zeros(0, 8, 8, 16).permute(0, 3, 1, 2), y=torch.zeros(0, 8, 8, 16).permute(0, 3, 1, 2)),
    "form": dict(form=3),
    "mode": dict(mode=3),
    "padding": dict(padding=-1),
    "no map": dict(mode=2),
    "small map": dict(mode=2, pad_map=torch.zeros(1, 16, 9, 10)),
    "short ring": dict(mode=2, pad_map=torch.zeros(1, 16, 35)),
    "reflection": dict(mode=1, padding=8, y=torch.zeros(1, 22, 22, 16).permute(0, 3, 1, 2)),
    "in_scale": dict(in_scale=torch.zeros(2, 16)),
    "slope": dict(slope=torch.zeros(15)),
    "noise": dict(noise=torch.zeros(1, 1, 8, 7)),
}


@pytest.mark.parametrize("change", REFUSED.values(), ids=REFUSED)
def test_the_native_op_refuses_what_does_not_fit(change):
    """It checks the memory that it reads, whoever calls it."""
    image = torch.zeros(1, 8, 8, 16).permute(0, 3, 1, 2)
    none = dict.fromkeys(("pad_map", "in_scale", "in_shift", "scale", "shift", "slope", "noise"))
    call = dict(x=image, transformed=torch.zeros(36 * 16 * 32), form=0, mode=0, padding=1)
    call |= none | dict(alpha=1.0, gain=1.0, clamp=-1.0, y=image.clone(), squares=None, weight=None)
    call |= dict(flip=False, eps=-1.0)
    torch.ops.posgan_fast_native.winograd3x3(**call)
    with pytest.raises(RuntimeError, match="winograd3x3: "):
        torch.ops.posgan_fast_native.winograd3x3(**call | change)


def test_squares_come_out_of_the_same_pass():
    weight = torch.randn(40, 20, 3, 3)
    torch.testing.assert_close(winograd3x3.prepare(weight).squares, weight.square().sum((2, 3)).t())


@pytest.mark.parametrize("form", Form)
def test_few_tiles_are_demodulated_by_the_kernel(form):
    x, weight, styles = torch.randn(2, 150, 12, 12), torch.randn(40, 150, 3, 3), torch.rand(2, 150) + 0.5
    dcoefs = ((weight.double() * styles.double()[:, None, :, None, None]).square().sum((2, 3, 4)) + 0.3).rsqrt()
    raw = winograd3x3.prepare(weight, form, tiles=1)
    found = winograd3x3.run(x, raw, form, in_scale=styles, eps=0.3)
    assert error(found, reference(x, weight, form, in_scale=styles, scale=dcoefs)) < 2e-6


@pytest.mark.parametrize(("has", "forms"), [("", 3), ("avx512_bf16", 1), ("amx_bf16", 0)])
def test_bfloat16_takes_it_where_the_processor_is_slower_at_direct_convolutions(has, forms, monkeypatch):
    monkeypatch.setattr(winograd3x3, "_processor_has", lambda capability: capability == has)
    x, weight, styles = torch.randn(1, 64, 64, 64).bfloat16(), torch.randn(64, 64, 3, 3), torch.rand(1, 64)
    f, chosen = PF.setup_filter([1, 3, 3, 1]), []
    for arguments in (dict(), dict(up=2, resample_filter=f), dict(down=2, resample_filter=f)):
        call = dict(padding=1, bias=torch.randn(64).bfloat16(), **arguments)
        algorithm = posgan_fast.explain("modulated_conv2d", x, weight, styles, **call).algorithm
        chosen.append(algorithm == "winograd")
        assert chosen[-1] or "the processor multiplies bfloat16 by" in algorithm
        y = PF.modulated_conv2d(x, weight, styles, **call)
        expected = PF.modulated_conv2d(x.double(), weight.double(), styles.double(), **call)
        assert y.dtype == torch.bfloat16 and error(y, expected) < 6e-3
    assert sum(chosen) == forms


@pytest.mark.skipif(compiler() is None, reason="no C++ compiler")
def test_kernels_keep_to_their_memory(tmp_path):
    """Under AddressSanitizer and UndefinedBehaviorSanitizer, for the instruction set of this machine."""
    source, program = Path(__file__).parent / "native/winograd_cases.cpp", tmp_path / "cases"
    flags = setup_script.load().ISA_FLAGS[_native.instruction_set()]
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    subprocess.run([compiler(), "-std=c++17", "-O1", "-g", *flags, *sanitizers, source, "-o", program], check=True)
    done = subprocess.run([program], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and "winograd3x3: passed" in done.stdout, done.stderr
