"""Every layer survives copies, pickles, dtypes, devices, autocast and compilation, and has two derivatives."""

from __future__ import annotations

import copy
import io
import pickle
import re

import pytest
import torch

from posgan_fast import nn

N, W_DIM = 2, 5


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


# name: (constructor, inputs, the names of the state). None clamps: its gradient jumps, and roundings would tell.
LAYERS = {
    "BiasAct": (lambda: nn.BiasAct(4), (randn(N, 4, 5, 6),), {"bias"}),
    "EqualLinear": (lambda: nn.EqualLinear(6, 4, act="lrelu", lr_multiplier=0.5), (randn(N, 6),), {"weight", "bias"}),
    "EqualConv2d": (lambda: nn.EqualConv2d(4, 3, act="lrelu"), (randn(N, 4, 6, 5),), {"weight", "bias"}),
    "EqualConv2d, up": (lambda: nn.EqualConv2d(4, 3, up=2), (randn(N, 4, 6, 5),), {"weight", "bias"}),
    "EqualConv2d, down": (lambda: nn.EqualConv2d(4, 3, 1, bias=False, down=2), (randn(N, 4, 6, 8),), {"weight"}),
    "ConvNormAct2d": (lambda: nn.ConvNormAct2d(4, 3, act="tanh"), (randn(N, 4, 6, 5),), {
        "conv.weight", "bn.weight", "bn.bias", "bn.running_mean", "bn.running_var", "bn.num_batches_tracked"
    }),
    "ModulatedConv2d": (lambda: nn.ModulatedConv2d(4, 3), (randn(N, 4, 6, 5), randn(N, 4)), {"weight"}),
    "StyleConv": (
        lambda: nn.StyleConv(4, 3, W_DIM, (12, 10), up=2), (randn(N, 4, 6, 5), randn(N, W_DIM)),
        {"weight", "bias", "noise_strength", "noise_const", "affine.weight", "affine.bias"},
    ),
    "StyleConv, resized after": (
        lambda: nn.StyleConv(4, 3, W_DIM, (12, 10), up=2, up_after_conv=True), (randn(N, 4, 6, 5), randn(N, W_DIM)),
        {"weight", "bias", "noise_strength", "noise_const", "affine.weight", "affine.bias"},
    ),
    "StyleConv, resized ahead": (
        lambda: nn.StyleConv(4, 3, W_DIM, 10, up=2, up_after_conv=False, padding=0, interp_pad=4, use_noise=False),
        (randn(N, 4, 6, 5), randn(N, W_DIM)), {"weight", "bias", "affine.weight", "affine.bias"},
    ),
    "ToRGB": (
        lambda: nn.ToRGB(4, 3, W_DIM), (randn(N, 4, 6, 5), randn(N, W_DIM)),
        {"weight", "bias", "affine.weight", "affine.bias"},
    ),
    "Upsample2d": (nn.Upsample2d, (randn(N, 3, 6, 5),), set()),
    "Downsample2d": (nn.Downsample2d, (randn(N, 3, 6, 5),), set()),
    "Blur2d": (nn.Blur2d, (randn(N, 3, 6, 5),), set()),
    "InstancePad2d": (nn.InstancePad2d, (randn(N, 3, 6, 5), randn(N, 3, 10, 10)), set()),
    "Conv2d": (lambda: nn.Conv2d(4, 3, 3, padding=1, act="lrelu"), (randn(N, 4, 6, 5),), {"weight", "bias"}),
    "PaddingSpaceConv2d": (
        lambda: nn.PaddingSpaceConv2d(4, 3), (randn(N, 4, 6, 5), randn(N, 4, 8, 7)), {"weight", "bias"},
    ),
    "SinusoidalEncoding2d": (lambda: nn.SinusoidalEncoding2d(8, base_size=(4, 4)), (randn(N, 8, 6, 5),), set()),
    "CartesianGrid2d": (nn.CartesianGrid2d, (randn(N, 3, 6, 5),), set()),
    "PositionalNoise2d": (
        lambda: nn.PositionalNoise2d(8, encode="spe", padding=2, mode="reflect"),
        (randn(N, 1, 6, 5), randn(N, 8, 6, 5), 0.5), set(),
    ),
    "MinibatchStd": (lambda: nn.MinibatchStd(2), (randn(4, 3, 6, 5),), set()),
}  # fmt: skip
FILTERED = ("EqualConv2d", "ModulatedConv2d", "StyleConv", "Upsample2d", "Downsample2d", "Blur2d")


@pytest.fixture(params=LAYERS)
def layer(request: pytest.FixtureRequest):
    """The module with nothing at zero, its inputs with gradients, and the names of its state."""
    build, inputs, names = LAYERS[request.param]
    torch.manual_seed(0)
    module = build().eval()  # in training the noise would be drawn anew
    for parameter in module.parameters():
        parameter.data.add_(0.5 * torch.randn_like(parameter))
    filtered = request.param.split(",")[0] in FILTERED
    return module, _like(inputs, torch.float32), names | ({"resample_filter"} if filtered else set())


def _like(inputs, dtype):
    return [x.detach().to(dtype).requires_grad_() if isinstance(x, torch.Tensor) else x for x in inputs]


def _gradients(module, inputs):
    """The result, and the gradient of each input and parameter."""
    y = module(*inputs)
    wanted = [x for x in inputs if isinstance(x, torch.Tensor)] + list(module.parameters())
    return y, torch.autograd.grad(y.square().sum(), wanted)


def test_every_layer_is_here():
    tested = {name.split(",")[0] for name in LAYERS}
    assert tested == {name for name in nn.__all__ if isinstance(getattr(nn, name), type)}


def test_state_and_representation(layer):
    module, _, names = layer
    assert set(module.state_dict()) == names
    assert re.match(rf"^{type(module).__name__}\(", repr(module))
    docstring = type(module).__doc__
    assert all(f"``{name}``" in docstring for name in names) or issubclass(type(module), torch.nn.Conv2d)
    if "resample_filter" in names:
        assert module.resample_filter.shape == (4, 4) and module.resample_filter.sum() == 1


def test_copies_and_pickles(layer):
    module, inputs, _ = layer
    expected = module(*inputs)
    saved = io.BytesIO()
    torch.save(module.state_dict(), saved)
    saved.seek(0)
    restored = pickle.loads(pickle.dumps(module))
    for parameter in restored.parameters():
        parameter.data.zero_()
    restored.load_state_dict(torch.load(saved))
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module)), restored):
        assert torch.equal(other(*inputs), expected)


def test_computes_in_the_dtype_of_its_input(layer):
    """float64 stays float64, half precision comes back as such, and both agree with float32."""
    module, inputs, _ = layer
    expected = module(*inputs).detach()
    torch.testing.assert_close(module.double()(*_like(inputs, torch.float64)).float(), expected, rtol=1e-4, atol=1e-5)
    y = module.bfloat16()(*_like(inputs, torch.bfloat16))
    assert y.dtype == torch.bfloat16
    assert (y.float() - expected).norm() <= 0.03 * expected.norm()
    floats = [tensor for tensor in module.state_dict().values() if tensor.is_floating_point()]
    assert all(tensor.dtype == torch.bfloat16 for tensor in floats)


def test_factories_take_device_and_dtype():
    meta = {"device": "meta", "dtype": torch.float64}
    modules = (
        nn.BiasAct(3, **meta), nn.EqualLinear(3, 4, **meta), nn.EqualConv2d(3, 4, **meta),
        nn.ModulatedConv2d(3, 4, **meta), nn.StyleConv(3, 4, 5, 8, **meta), nn.ToRGB(3, 4, 5, **meta),
        nn.PaddingSpaceConv2d(3, 4, **meta),
    )  # fmt: skip
    for module in modules:
        assert all(p.is_meta and p.dtype == torch.float64 for p in module.parameters())
        assert all(b.is_meta for b in module.buffers())


def test_meta_tensors(layer):
    """Sizes without memory, derivatives included."""
    module, inputs, _ = layer
    expected, module = module(*inputs), module.to("meta")
    inputs = [x.detach().to("meta").requires_grad_() if isinstance(x, torch.Tensor) else x for x in inputs]
    y, gradients = _gradients(module, inputs)
    assert y.is_meta and y.shape == expected.shape and y.stride() == expected.stride()
    assert all(g.is_meta for g in gradients)


def test_keeps_channels_last(layer):
    module, inputs, _ = layer
    if inputs[0].ndim != 4 or isinstance(module, nn.MinibatchStd) or inputs[0].shape[1] == 1:
        return
    x = inputs[0].detach().contiguous(memory_format=torch.channels_last)
    y = module(x, *inputs[1:])
    torch.testing.assert_close(y, module(*inputs), rtol=1e-5, atol=1e-5)
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_compiles_without_a_graph_break(layer):
    module, inputs, _ = layer
    expected, expected_grads = _gradients(module, inputs)
    torch._dynamo.reset()
    actual, grads = _gradients(torch.compile(module, fullgraph=True, backend="aot_eager"), inputs)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)
    for g, e in zip(grads, expected_grads, strict=True):
        torch.testing.assert_close(g, e, rtol=1e-4, atol=1e-4)


def test_autocast(layer):
    """Convolutions come out in bfloat16, the rest in the dtype of its input."""
    module, inputs, _ = layer
    expected, expected_grads = _gradients(module, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        y = module(*inputs)
    convolutions = (nn.EqualConv2d, nn.ConvNormAct2d, nn.ModulatedConv2d, nn.StyleConv, nn.ToRGB, torch.nn.Conv2d)
    assert y.dtype == (torch.bfloat16 if isinstance(module, convolutions) else torch.float32)
    assert (y.float() - expected).norm() <= 0.02 * expected.norm()
    wanted = [x for x in inputs if isinstance(x, torch.Tensor)] + list(module.parameters())
    for g, e in zip(torch.autograd.grad(y.float().square().sum(), wanted), expected_grads, strict=True):
        assert g.dtype == torch.float32
        assert (g - e).norm() <= 0.1 * e.norm() + 1e-6


def test_gradcheck(layer):
    module, inputs, _ = layer
    module.double()
    inputs = _like(inputs, torch.float64)
    tensors = [x for x in inputs if isinstance(x, torch.Tensor)]
    extra = [x for x in inputs if not isinstance(x, torch.Tensor)]
    names, values = zip(*module.named_parameters(), strict=True) if list(module.parameters()) else ((), ())

    def call(*arguments):
        given, values = arguments[: len(tensors)], arguments[len(tensors) :]
        state = dict(zip(names, values, strict=True))
        return torch.func.functional_call(module, state, (*given, *extra))

    assert torch.autograd.gradcheck(call, (*tensors, *values), fast_mode=True)
    assert torch.autograd.gradgradcheck(call, (*tensors, *values), fast_mode=True)
