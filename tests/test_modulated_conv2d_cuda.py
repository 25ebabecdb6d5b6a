"""The path of modulated_conv2d on CUDA, on tensors of the CPU: its contract, and what reaches the native ops."""

from __future__ import annotations

import contextlib
import warnings
from pathlib import Path

import cuda_on_cpu
import pytest
import torch
from contract.common import Backend, each_of
from contract.modulated_conv2d import ModulatedConv2dContract
from tolerances import assert_close
from torch.utils.flop_counter import FlopCounterMode

import posgan_fast
from posgan_fast import functional as PF
from posgan_fast import models, nn
from posgan_fast.models import stylegan2_synthesis
from posgan_fast.nn import joint_styles
from posgan_fast.ops.modulated_conv2d import cuda, trained_factors

backend = each_of([Backend("cuda")])


@pytest.fixture(autouse=True)
def device(monkeypatch):
    cuda_on_cpu.stand_in(monkeypatch)


class TestContract(ModulatedConv2dContract):
    """The contract by the kernels of CUDA, as the host can run them."""


@pytest.fixture
def factors(monkeypatch):
    """The calls of the native op that prepares factors, as lists of arguments."""
    calls, run = [], cuda_on_cpu.modulated_factors
    monkeypatch.setattr(
        torch.ops.posgan_fast_native, "modulated_factors", lambda *args: (calls.append(args), run(*args))
    )
    return calls


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("n", [1, 3])
def test_a_layer_prepares_its_factors_in_one_launch(n, dtype, factors):
    layer = nn.StyleConv(8, 6, 16, 10, up=2).eval()
    with torch.no_grad():
        layer.noise_strength.fill_(0.7)
        layer.bias.copy_(torch.randn(6))
        x = torch.randn(n, 8, 5, 5).to(dtype).contiguous(memory_format=torch.channels_last)
        w = torch.randn(n, 16)
        with posgan_fast.use_backend("reference"):
            exact = layer.double()(x.double(), w.double())
        layer.float()
        y = layer(x, w)
    assert_close(y, exact, "modulated_conv2d", dtype)
    ((_, styles, bias, noise, strength, out, cast_bias, *_, fold, transposed, _),) = factors
    assert fold == (n == 1) and transposed and out.dtype == dtype and styles.dtype == torch.float32
    assert (bias is None) == (dtype == torch.float32) == (cast_bias is None)
    assert noise.shape[-2:] == (10, 10) and strength.numel() == 1


LAYERS = [dict(padding=1), dict(padding=1, flip_weight=False), dict(padding=1, up=2), dict(padding=1, down=2)]


def arguments(layer, dtype, x_dtype=None):
    """Return x, weight, styles and the keyword arguments of a layer."""
    f = None if layer.keys() <= {"padding", "flip_weight"} else PF.setup_filter([1, 3, 3, 1])
    tensors = torch.randn(3, 4, 4, 4), torch.randn(5, 4, 3, 3), torch.randn(3, 4)
    dtypes = x_dtype or dtype, dtype, dtype
    given = [t.to(d).requires_grad_() for t, d in zip(tensors, dtypes, strict=True)]
    return given, dict(layer, resample_filter=f, backend="cuda")


@pytest.fixture
def native(monkeypatch):
    """The names of the native ops of the factors that are called."""
    names = []
    for name in ("modulated_factors", "modulated_factors_backward"):
        run = getattr(cuda_on_cpu, name)
        monkeypatch.setattr(
            torch.ops.posgan_fast_native, name, lambda *args, name=name, run=run: (names.append(name), run(*args))
        )
    return names


@pytest.mark.parametrize("weight_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("layer", LAYERS)
def test_factors_have_derivatives_of_both_orders(layer, weight_format, native):
    given, call = arguments(layer, torch.float64)
    given[1] = given[1].detach().contiguous(memory_format=weight_format).requires_grad_()
    assert torch.autograd.gradcheck(lambda *args: PF.modulated_conv2d(*args, **call), given)
    assert set(native) == {"modulated_factors", "modulated_factors_backward"}
    assert torch.autograd.gradgradcheck(lambda *args: PF.modulated_conv2d(*args, **call), given)


@pytest.mark.parametrize("wanted", [(0, 1, 2), (1,), (2,), (0, 2)])
@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_gradients_of_prepared_factors_are_as_exact_as_those_of_composed_ones(
    dtype, layer, wanted, native, monkeypatch
):
    given, call = arguments(layer, torch.float32, dtype)
    given64 = [t.double() for t in given]
    dy = torch.randn(PF.modulated_conv2d(*given, **call).shape).to(dtype)
    exact = PF.modulated_conv2d(*given64, **dict(call, backend="reference"))
    exact = torch.autograd.grad(exact, [given64[i] for i in wanted], dy.double())

    def errors():
        y = PF.modulated_conv2d(*given, **call)
        found = torch.autograd.grad(y, [given[i] for i in wanted], dy)
        assert y.dtype == dtype and [(d.dtype, d.shape) for d in found] == [
            (given[i].dtype, given[i].shape) for i in wanted
        ]
        return torch.stack([(d.double() - e).norm() / e.norm() for d, e in zip(found, exact, strict=True)])

    native.clear()
    prepared = errors()
    assert native == ["modulated_factors", "modulated_factors_backward"]
    monkeypatch.setattr(trained_factors, "serve", lambda call: False)
    assert (prepared <= 1.2 * errors() + 1e-6).all() and len(native) == 2


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_gradients_are_the_same_where_another_derivative_follows(dtype, layer, native):
    given, call = arguments(layer, torch.float32, dtype)
    y = PF.modulated_conv2d(*given, **call)
    dy = torch.randn_like(y)
    found = torch.autograd.grad(y, given, dy, create_graph=True)
    assert native == ["modulated_factors"]
    for a, b in zip(found, torch.autograd.grad(y, given, dy), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5 if dtype == torch.float32 else 1e-3)
    assert native == ["modulated_factors", "modulated_factors_backward"]


def test_frozen_parts_of_a_layer_get_no_gradient(native):
    for frozen in (1, 2):
        given, call = arguments(LAYERS[2], torch.float32, torch.float16)
        given[frozen].requires_grad_(False)
        PF.modulated_conv2d(*given, **call).float().square().sum().backward()
        assert given[frozen].grad is None and given[3 - frozen].grad.isfinite().all()


def test_transforms_and_modes_compose_the_factors(native):
    """They see no native op that writes over its arguments."""
    given, call = arguments(LAYERS[0], torch.float32)
    loss = lambda *args: PF.modulated_conv2d(*args, **call).square().sum()  # noqa: E731
    expected = torch.autograd.grad(loss(*given), given)
    assert len(native) == 2
    found = torch.func.grad(loss, (0, 1, 2))(*(t.detach() for t in given))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    tangents = [torch.randn_like(t) for t in given]
    _, along = torch.func.jvp(loss, tuple(t.detach() for t in given), tuple(tangents))
    torch.testing.assert_close(along, sum((t * d).sum() for t, d in zip(tangents, expected, strict=True)))
    with FlopCounterMode(display=False):
        loss(*given)
    y = loss(*given)
    native.clear()
    with FlopCounterMode(display=False):
        for a, b in zip(torch.autograd.grad(y, given), expected, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    assert not native
    rows = torch.eye(3)[:, :, None, None, None] * torch.ones(1, 3, 5, 4, 4)
    y = PF.modulated_conv2d(*given, **call)
    batched = torch.autograd.grad(y, given[2], rows, retain_graph=True, is_grads_batched=True)[0]
    one_by_one = [torch.autograd.grad(y, given[2], row, retain_graph=True)[0] for row in rows]
    torch.testing.assert_close(batched, torch.stack(one_by_one))


@pytest.mark.parametrize("name", ["weight", "styles", "noise", "bias"])
def test_factors_are_prepared_from_dense_memory(name, factors):
    """The stand-in refuses, as the native op does, what the kernel could not read."""
    given = dict(weight=torch.randn(6, 8, 3, 3), styles=torch.randn(2, 8), noise=torch.randn(4, 6), bias=torch.randn(6))
    given[name] = torch.stack([given[name]] * 2, -1)[..., 0]
    call = dict(padding=1, noise_strength=torch.tensor(0.5))
    x = torch.randn(2, 8, 4, 6)
    expected = PF.modulated_conv2d(x.double(), **given, **call, backend="reference")
    y = PF.modulated_conv2d(x, **given, **call, backend="cuda")
    assert_close(y, expected, "modulated_conv2d", torch.float32)
    assert len(factors) == 1


@pytest.mark.parametrize(
    "channels, dtype, fits",
    [
        (10239, torch.float32, True),
        (10240, torch.float32, False),
        (5119, torch.float64, True),
        (5120, torch.float64, False),
    ],
)
def test_layers_that_exceed_shared_memory_are_separate_stages(channels, dtype, fits, factors):
    """The kernel keeps a number of each channel and sample in shared memory."""
    x, weight, styles = torch.rand(1, channels, 1, 1), torch.rand(2, channels, 1, 1), torch.rand(1, channels)
    x = x.to(dtype)
    expected = PF.modulated_conv2d(x.double(), weight.double(), styles.double(), backend="reference")
    assert_close(PF.modulated_conv2d(x, weight, styles, backend="cuda"), expected, "modulated_conv2d", dtype)
    assert len(factors) == fits


@pytest.mark.parametrize(
    ("filters", "dtype", "fits"),
    [
        (2560, torch.float32, True),
        (2561, torch.float32, False),
        (1280, torch.float64, True),
        (1281, torch.float64, False),
    ],
)
def test_gradients_that_exceed_shared_memory_are_composed(filters, dtype, fits, native):
    """The kernel keeps a number of each filter for a few samples in shared memory."""
    x, weight = torch.rand(1, 2, 1, 1).to(dtype), torch.rand(filters, 2, 1, 1).to(dtype)
    styles = torch.rand(1, 2).to(dtype).requires_grad_()
    loss = lambda backend: PF.modulated_conv2d(x, weight, styles, backend=backend).square().sum()  # noqa: E731
    (found,) = torch.autograd.grad(loss("cuda"), styles)
    torch.testing.assert_close(found, torch.autograd.grad(loss("reference"), styles)[0], rtol=1e-3, atol=1e-5)
    assert len(native) == 2 * fits


def test_bounds_are_those_of_the_kernel():
    text = (Path(__file__).parents[1] / "csrc" / "modulated_factors_backward.cuh").read_text()
    assert f"kStyleSamples = {trained_factors.STYLE_SAMPLES}," in text


@pytest.mark.parametrize("architecture", ["skip", "resnet", "orig"])
def test_joint_styles_are_those_of_the_layers(architecture, monkeypatch):
    """Several layers share a product where launches are dear; the images are the same."""
    generator = models.Generator(16, channel_max=32, architecture=architecture).eval()
    ws = torch.randn(2, generator.num_ws, 512)
    for layer in generator.synthesis.modules():
        if hasattr(layer, "affine"):
            torch.nn.init.normal_(layer.affine.bias)
    with torch.no_grad():
        expected = generator.synthesis(ws)
        seen = []
        monkeypatch.setattr(joint_styles, "_CHEAP_LAUNCHES", ())
        run = joint_styles.joint_styles
        monkeypatch.setattr(stylegan2_synthesis, "joint_styles", lambda *args: seen.append(run(*args)) or seen[-1])
        images = generator.synthesis(ws)
    assert torch.allclose(images, expected, rtol=1e-5, atol=1e-5)
    assert len(seen) == 1 and len(seen[0]) == sum(hasattr(m, "affine") for m in generator.synthesis.modules())


CHANGES_OF_A_LAYER = (
    "hook",
    "pre-hook",
    "global hook",
    "replaced",
    "subclass",
    "act",
    "lr_multiplier",
    "bias",
    "dtype",
)


@pytest.mark.parametrize("change", CHANGES_OF_A_LAYER)
def test_layers_that_someone_changed_compute_their_own_styles(change, monkeypatch):
    monkeypatch.setattr(joint_styles, "_CHEAP_LAUNCHES", ())
    synthesis = models.Generator(8, channel_max=32).eval().synthesis
    layer, ws = synthesis.b8.conv1, torch.randn(1, synthesis.num_ws, 512)
    if change == "hook":
        layer.affine.register_forward_hook(lambda module, given, styles: styles + 1)
    elif change == "pre-hook":
        layer.register_forward_pre_hook(lambda module, given: (given[0], given[1] + 1))
    elif change == "replaced":
        layer.affine = torch.nn.Linear(512, 32)
    elif change == "subclass":
        layer.affine.__class__ = type("Louder", (nn.EqualLinear,), dict(forward=lambda self, w, gain=1.0: w[:, :32]))
    elif change == "dtype":
        layer.affine.double()
    elif change != "global hook":
        layer.affine = nn.EqualLinear(512, 32, **{change: dict(act="lrelu", lr_multiplier=0.5, bias=False)[change]})
    with torch.no_grad():
        assert joint_styles.joint_styles([synthesis.b8.conv0], ws, [0])
        with _global_hook() if change == "global hook" else contextlib.nullcontext():
            assert joint_styles.joint_styles([layer], ws, [0]) is None


@contextlib.contextmanager
def _global_hook():
    hook = torch.nn.modules.module.register_module_forward_hook(lambda module, given, result: None)
    try:
        yield
    finally:
        hook.remove()


def test_styles_are_joint_where_launches_are_dearer_than_products(monkeypatch):
    """A product of every latent with every weight has to be small, and no derivative may be asked for."""
    layer = nn.StyleConv(8, 8, 16)
    few, many = torch.randn(4, 16, 16), torch.randn(5, 13, 16)
    with torch.no_grad():
        assert joint_styles.joint_styles([layer], few, [0]) is None  # a launch on the CPU is cheap
        monkeypatch.setattr(joint_styles, "_CHEAP_LAUNCHES", ())
        assert joint_styles.joint_styles([layer], few, [0])
        assert joint_styles.joint_styles([layer], many, [0]) is None
    assert joint_styles.joint_styles([layer], few, [0]) is None


@pytest.fixture
def small():
    """A network whose layers all have biases that matter, and its latents."""
    synthesis = models.Generator(32, z_dim=16, w_dim=16, channel_max=8, mapping_layers=2).eval().synthesis
    for name, parameter in synthesis.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter)
    return synthesis, torch.randn(2, synthesis.num_ws, 16)


class Wrapper(torch.nn.Module):
    def __init__(self, module):
        super().__init__()
        self.inner = module

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


def _share_layers(synthesis):
    synthesis.b16.conv1, synthesis.b16.torgb = synthesis.b8.conv1, synthesis.b8.torgb


def _replace_forward(module, function):
    forward = module.forward
    module.forward = lambda *args, **kwargs: function(forward, *args, **kwargs)


@torch.no_grad()
def _fold_gain(affine):
    affine.weight.mul_(affine.weight_gain)
    affine.weight_gain = 1.0


CHANGES_OF_A_NETWORK = {
    "shared layers": _share_layers,
    "pre-hook": lambda s: s.b16.register_forward_pre_hook(lambda block, a: (*a[:2], a[2] + 1, *a[3:])),
    "forward": lambda s: _replace_forward(s.b16, lambda forward, x, image, ws, *a: forward(x, image, ws + 1, *a)),
    "forward of an affine layer": lambda s: _replace_forward(s.b16.conv0.affine, lambda forward, w, *a: 2 * forward(w)),
    "wrapped block": lambda s: setattr(s, "b16", Wrapper(s.b16)),
    "gain in the weight": lambda s: _fold_gain(s.b8.conv1.affine),
    "dtype of a bias": lambda s: s.b8.conv0.affine._parameters.update(
        bias=torch.nn.Parameter(s.b8.conv0.affine.bias.double())
    ),
}


@pytest.mark.parametrize("change", CHANGES_OF_A_NETWORK)
def test_joint_styles_respect_changes_of_a_network(change, small, monkeypatch):
    synthesis, ws = small
    CHANGES_OF_A_NETWORK[change](synthesis)
    with torch.no_grad():
        expected = synthesis(ws)
        monkeypatch.setattr(joint_styles, "_CHEAP_LAUNCHES", ())
        torch.testing.assert_close(synthesis(ws), expected, rtol=1e-5, atol=1e-5)
    assert synthesis(ws).requires_grad


def test_joint_styles_are_in_float32_under_autocast(monkeypatch):
    monkeypatch.setattr(joint_styles, "_CHEAP_LAUNCHES", ())
    layer, ws = nn.StyleConv(8, 8, 16), torch.randn(1, 2, 16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        (styles,) = joint_styles.joint_styles([layer], ws, [1])
        assert styles.dtype == torch.float32
        torch.testing.assert_close(styles, layer.affine(ws[:, 1]))


def test_stages_serve_where_triton_cannot_compile(monkeypatch):
    """And the reason is said once."""
    probe = pytest.importorskip("posgan_fast.kernels.probe")
    monkeypatch.setattr(cuda, "algorithm", lambda call: cuda.FUSED)
    monkeypatch.setattr(probe.torch, "zeros", _no_compiler)
    x, weight, styles = torch.randn(1, 2, 4, 4), torch.randn(3, 2, 3, 3), torch.ones(1, 2)
    expected = PF.modulated_conv2d(x, weight, styles, padding=1, backend="reference")
    cuda._triton_fails_on.cache_clear()
    try:
        with pytest.warns(RuntimeWarning, match="Triton cannot compile it here: RuntimeError: no C compiler"):
            y = PF.modulated_conv2d(x, weight, styles, padding=1, backend="cuda")
        torch.testing.assert_close(y, expected)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            PF.modulated_conv2d(x, weight, styles, padding=1, backend="cuda")
    finally:
        cuda._triton_fails_on.cache_clear()


def _no_compiler(*args, **kwargs):
    raise RuntimeError("no C compiler")


def test_explain_tells_the_algorithm():
    with torch.no_grad():
        x, weight, styles = torch.zeros(1, 2, 4, 4), torch.zeros(3, 2, 3, 3), torch.ones(1, 2)
        assert "algorithm: stages" in str(posgan_fast.explain("modulated_conv2d", x, weight, styles, padding=1))


def test_noise_strength_is_checked():
    x, weight, styles = torch.randn(1, 2, 4, 4), torch.randn(3, 2, 3, 3), torch.ones(1, 2)
    noise = torch.randn(4, 4)
    call = dict(padding=1, backend="cuda")
    with pytest.raises(ValueError, match="noise_strength: expected None without noise"):
        PF.modulated_conv2d(x, weight, styles, noise_strength=torch.ones(()), **call)
    with pytest.raises(ValueError, match=r"noise_strength: expected a tensor of one element, got shape \(2,\)"):
        PF.modulated_conv2d(x, weight, styles, noise=noise, noise_strength=torch.ones(2), **call)
    with pytest.raises(TypeError, match="noise_strength: expected a tensor of one element, got float"):
        PF.modulated_conv2d(x, weight, styles, noise=noise, noise_strength=0.5, **call)
