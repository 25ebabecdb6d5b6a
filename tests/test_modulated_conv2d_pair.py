"""Two style layers in succession on CUDA, whose first multiplies its result by the styles of the second, on the CPU."""

from __future__ import annotations

import weakref
from unittest import mock

import cuda_on_cpu
import pytest
import torch
from contract.modulated_conv2d_pair import ModulatedConv2dPairContract, layers, reference
from tolerances import assert_close

from posgan_fast import functional as PF
from posgan_fast import models, nn
from posgan_fast.nn.style_pair import run_pair
from posgan_fast.ops import epilogue2d
from posgan_fast.ops.modulated_conv2d import cuda, pair


@pytest.fixture(autouse=True)
def device(monkeypatch):
    cuda_on_cpu.stand_in(monkeypatch)


@pytest.fixture
def scaled(monkeypatch):
    """The features that a first layer scaled."""
    written, run = [], epilogue2d.write_scaled
    monkeypatch.setattr(epilogue2d, "write_scaled", lambda *args: (run(*args), written.append(args[-1])))
    return written


class TestContract(ModulatedConv2dPairContract):
    """The contract of pairs of layers by the kernels of CUDA, as the host can run them."""

    @pytest.fixture(autouse=True)
    def features_are_scaled(self, scaled):
        yield
        assert len(scaled) == 1


def test_large_styles_stay_in_the_range_of_float16(scaled):
    first, following = layers()
    following["styles"] *= 1e6
    x = first["x"].half()
    with torch.no_grad():
        y = pair.modulated_conv2d_pair(first | dict(x=x), lambda x: following | dict(x=x))
    assert scaled[0].abs().max() <= 2 and y.isfinite().all()
    assert (y.double() - reference(first | dict(x=x), following)).norm() < 2e-3 * y.double().norm()


@pytest.mark.parametrize(
    ("change", "second"),
    [
        (dict(x=torch.randn(1, 8, 5, 5), styles=torch.ones(1, 8), noise=None, noise_strength=None), {}),
        (dict(x=torch.randn(0, 8, 5, 5), styles=torch.ones(0, 8), noise=None, noise_strength=None), {}),
        (dict(up=1, resample_filter=None, noise=None, noise_strength=None), {}),
        (dict(weight=torch.randn(4, 8, 3, 3).requires_grad_()), {}),
        (dict(backend="cpu"), {}),
        ({}, dict(pad_map=torch.randn(3, 4, 12, 12))),
        ({}, dict(up=2, resample_filter=PF.setup_filter([1, 3, 3, 1]), noise=None, noise_strength=None)),
        ({}, dict(bias=torch.randn(6).requires_grad_())),
        ({}, dict(backend="reference")),
    ],
    ids=["one sample", "none", "not enlarged", "gradient", "CPU", "map", "enlarged again", "gradient after", "backend"],
)
def test_other_pairs_run_one_after_the_other(change, second, scaled):
    first, following = layers(**second)
    first |= change
    n = len(first["x"])
    following |= dict(styles=following["styles"][:n], noise=following["noise"] if n == 3 else None)
    if following["noise"] is None or first["up"] == 1:
        following |= dict(noise=None, noise_strength=None)
    calls = []
    y = pair.modulated_conv2d_pair(first, lambda x: (calls.append(x), following | dict(x=x))[1])
    assert len(calls) == 1 and not scaled
    expected = reference(first, following)
    assert_close(y.detach(), expected.detach(), "modulated_conv2d", torch.float32) if n else None
    wanted = [t for t in (first["weight"], following["bias"]) if t.requires_grad]
    assert y.requires_grad == bool(wanted)


def test_layers_of_the_fused_kernel_keep_their_input(scaled, monkeypatch):
    first, following = layers()
    monkeypatch.setattr(cuda, "algorithm", lambda call: cuda.STAGES if call.up > 1 else cuda.FUSED)
    monkeypatch.setattr(cuda, "_triton_fails_on", lambda device: "it is not here")
    with torch.no_grad():
        y = pair.modulated_conv2d_pair(first, lambda x: following | dict(x=x))
    assert not scaled
    assert_close(y, reference(first, following), "modulated_conv2d", torch.float32)


@pytest.mark.parametrize("noise_mode", ["const", "random"])
@pytest.mark.parametrize("architecture", ["skip", "resnet", "orig"])
def test_generators_make_the_same_images(architecture, noise_mode, scaled, monkeypatch):
    generator = models.Generator(16, channel_max=16, architecture=architecture, conv_clamp=256).eval()
    for name, parameter in generator.named_parameters():
        if name.endswith(("bias", "noise_strength")):
            torch.nn.init.normal_(parameter)
    ws = torch.randn(2, generator.num_ws, 512)

    def images():
        torch.manual_seed(1)
        with torch.no_grad():
            return generator.synthesis(ws, noise_mode=noise_mode)

    found = images()
    assert len(scaled) == 2  # the blocks of 8 and 16 pixels
    monkeypatch.setattr(pair, "_can_scale_result", lambda call: False)
    torch.testing.assert_close(found, images(), rtol=1e-5, atol=1e-5)
    assert len(scaled) == 2


def test_autocast_gives_both_layers_its_dtype(scaled):
    first, second = nn.StyleConv(8, 4, 16, 10, up=2).eval(), nn.StyleConv(4, 6, 16, 10).eval()
    x, w = torch.randn(2, 8, 5, 5), torch.randn(2, 16)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        y = run_pair((first, second), x, (w, w))
        expected = second(first(x, w), w)
    assert scaled[0].dtype == y.dtype == torch.bfloat16
    assert (y - expected).norm() < 1e-2 * expected.norm()


def test_features_that_are_not_scaled_hold_no_memory():
    """The fused kernel serves the largest layers."""
    first, following = layers(pad_map=torch.randn(3, 4, 12, 12))
    placeholders, alive = [], []

    def second(x):
        placeholders.append(weakref.ref(x))
        return following | dict(x=x)

    run = pair._run
    watched = mock.patch.object(pair, "_run", lambda call: (alive.append(placeholders[0]() is not None), run(call))[1])
    with watched, torch.no_grad():
        pair.modulated_conv2d_pair(first, second)
    assert alive == [False, False]


def test_tensors_of_other_classes_run_one_after_the_other(scaled):
    first, following = layers()
    following["weight"] = following["weight"].as_subclass(type("Tagged", (torch.Tensor,), {}))
    with torch.no_grad():
        y = pair.modulated_conv2d_pair(first, lambda x: following | dict(x=x))
    assert not scaled and type(y).__name__ == "Tagged"


@pytest.mark.parametrize("options", [{}, dict(up=2), dict(interp_pad=2)])
def test_a_second_layer_that_interpolates_first_gets_features(options, scaled):
    first = nn.StyleConv(8, 4, 16, 10, up=2).eval()
    second = nn.StyleConv(4, 6, 16, up_after_conv=False, noise_mode="none", **options).eval()
    x, w = torch.randn(2, 8, 5, 5), torch.randn(2, 16)
    with torch.no_grad():
        torch.testing.assert_close(run_pair((first, second), x, (w, w)), second(first(x, w), w))


def test_a_second_layer_that_does_not_read_the_features_as_they_are(scaled):
    first, following = layers(noise=None, noise_strength=None)
    half = lambda x: torch.nn.functional.avg_pool2d(x, 2)  # noqa: E731
    with torch.no_grad():
        y = pair.modulated_conv2d_pair(first, lambda x: following | dict(x=half(x)))
        features = PF.modulated_conv2d(**first)
    assert not scaled
    torch.testing.assert_close(y, PF.modulated_conv2d(**following | dict(x=half(features))))


def test_one_channel_in_between_keeps_the_memory_format(scaled):
    first, second = nn.StyleConv(8, 1, 16, 10, up=2).eval(), nn.StyleConv(1, 6, 16, 10).eval()
    x, w = torch.randn(2, 8, 5, 5).contiguous(memory_format=torch.channels_last), torch.randn(2, 16)
    with torch.no_grad():
        y, expected = run_pair((first, second), x, (w, w)), second(first(x, w), w)
    assert len(scaled) == 1 and y.stride() == expected.stride()


def test_a_forward_that_is_replaced_for_all_layers_is_called():
    generator = models.Generator(8, channel_max=8).eval()
    ws, forward = torch.randn(2, generator.num_ws, 512), nn.StyleConv.forward
    with mock.patch.object(nn.StyleConv, "forward", autospec=True, side_effect=forward) as called, torch.no_grad():
        generator.synthesis(ws)
    assert called.call_count == 3
    call = torch.nn.Module.__call__
    with mock.patch.object(torch.nn.Module, "__call__", autospec=True, side_effect=call) as called, torch.no_grad():
        generator.synthesis(ws)
    assert sum(isinstance(arguments.args[0], nn.StyleConv) for arguments in called.call_args_list) == 3


def test_hooks_may_write_to_latents():
    generator = models.Generator(8, channel_max=8).eval().requires_grad_(False)
    for layer in generator.synthesis.modules():
        if isinstance(layer, (nn.StyleConv, nn.ToRGB)):
            layer.register_forward_pre_hook(lambda module, given: (given[1].mul_(0.9), None)[1])
    ws = torch.randn(2, generator.num_ws, 512, requires_grad=True)
    generator.synthesis(ws * 1).sum().backward()
    assert ws.grad.isfinite().all() and ws.grad.abs().min() >= 0


@pytest.mark.parametrize("change", ["backward hook", "hook", "forward", "subclass", "compile", "interpolation"])
def test_layers_that_someone_changed_are_called(change, scaled):
    first, second = nn.StyleConv(8, 4, 16, 10, up=2).eval(), nn.StyleConv(4, 6, 16, 10).eval()
    x, w = torch.randn(2, 8, 5, 5), torch.randn(2, 16)
    if change == "backward hook":
        second.register_full_backward_hook(lambda module, dx, dy: None)
    elif change == "compile":
        second._compiled_call_impl = lambda x, w: 2 * x
    elif change == "hook":
        second.register_forward_hook(lambda module, given, y: y + 1)
    elif change == "forward":
        forward = first.forward
        first.forward = lambda x, w: forward(x, w) + 1
    elif change == "subclass":
        second.__class__ = type("Louder", (nn.StyleConv,), dict(forward=lambda self, x, w: 2 * x))
    else:
        first = nn.StyleConv(8, 4, 16, 10, up=2, up_after_conv=True).eval()
    with torch.no_grad():
        torch.testing.assert_close(run_pair((first, second), x, (w, w)), second(first(x, w), w))
    assert not scaled


def test_hooks_on_gradients_run_in_training():
    generator = models.Generator(8, channel_max=8)
    called = []
    for name, module in generator.synthesis.named_modules():
        if isinstance(module, nn.StyleConv):
            module.register_full_backward_hook(lambda module, dx, dy, name=name: called.append(name))
    generator.synthesis(torch.randn(2, generator.num_ws, 512)).sum().backward()
    assert sorted(called) == ["b4.conv1", "b8.conv0", "b8.conv1"]
