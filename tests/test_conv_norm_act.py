"""ConvNormAct2d against mmcv's order of plain torch layers, in training and with the folded normalisation."""

from __future__ import annotations

import copy

import pytest
import torch
from test_singan import lively
from tolerances import assert_close
from torch.nn import functional as F

from posgan_fast import nn, use_backend

ACTS = {"lrelu": lambda x: F.leaky_relu(x, 0.2), "relu": F.relu, "tanh": torch.tanh, "linear": lambda x: x}
SHAPES = [
    dict(padding=1),
    dict(padding=2, padding_mode="reflect"),
    dict(kernel_size=4, stride=2, padding=1),
    dict(kernel_size=4, stride=2, padding=1, transposed=True),
    dict(kernel_size=1),
]


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def plain(layer: nn.ConvNormAct2d, x: torch.Tensor) -> torch.Tensor:
    p = layer.padding
    if layer.padding_mode == "reflect":
        weight, bias = layer.conv.weight, layer.conv.bias
        y = F.conv2d(F.pad(x, (p,) * 4, mode="reflect"), weight, bias, stride=layer.stride)
    else:
        y = layer.conv(x)
    return ACTS[layer.act](y if layer.bn is None else layer.bn(y))


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_values_gradients_and_averages(shape, act, norm, training, backend):
    layer = lively(nn.ConvNormAct2d(3, 5, norm=norm, act=act, **shape)).train(training)
    twin = copy.deepcopy(layer).double()
    x = torch.randn(2, 3, 9, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
    x2 = x.detach().double().requires_grad_()
    with use_backend(backend):
        y, expected = layer(x), plain(twin, x2)
        torch.testing.assert_close(y.double(), expected, rtol=1e-5, atol=1e-5)
        rand = torch.randn(y.shape, generator=torch.Generator().manual_seed(2))
        (y * rand).sum().backward(), (expected * rand).sum().backward()
    torch.testing.assert_close(x.grad.double(), x2.grad, rtol=1e-4, atol=1e-4)
    for p, p2 in zip(layer.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(p.grad.double(), p2.grad, rtol=1e-4, atol=1e-4)
    for (name, b), b2 in zip(layer.named_buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(b.double(), b2.double(), rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("training", [True, False])
def test_two_orders_of_derivative(act, training):
    layer = lively(nn.ConvNormAct2d(2, 3, act=act, padding=1)).train(training).double()
    x = torch.randn(2, 2, 4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    assert torch.autograd.gradcheck(layer, (x,)) and torch.autograd.gradgradcheck(layer, (x,), atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("training", [True, False])
def test_half_precision_beside_parameters_in_float32(dtype, training):
    layer = lively(nn.ConvNormAct2d(4, 8, padding=1)).train(training)
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    expected = copy.deepcopy(layer).double()(x.double())  # the style layer rounds at the same places
    assert_close(layer(x.to(dtype)), expected, "modulated_conv2d", dtype)
    with torch.autocast("cpu", torch.bfloat16):
        assert_close(layer(x), expected, "modulated_conv2d", torch.bfloat16)


@pytest.mark.parametrize("norm", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_negative_slope(norm, training):
    layer = lively(nn.ConvNormAct2d(2, 3, alpha=-0.5, norm=norm)).train(training).double()
    x = torch.randn(2, 2, 4, 5, dtype=torch.float64).requires_grad_()
    assert layer(x).min() > 0 and torch.autograd.gradcheck(layer, (x,))


def test_input_is_not_written():
    x = torch.randn(1, 3, 6, 6)
    before = x.clone()
    nn.ConvNormAct2d(3, 3, 1, norm=False).eval()(x)
    assert torch.equal(x, before)


@pytest.mark.parametrize(
    "call, error, message",
    [
        (lambda: nn.ConvNormAct2d(0, 3), ValueError, "^in_channels: expected an int >= 1, got 0"),
        (lambda: nn.ConvNormAct2d(3, 3, act="elu2"), ValueError, "^act: expected one of"),
        (lambda: nn.ConvNormAct2d(3, 3, padding_mode="circular"), ValueError, "^padding_mode: expected one of"),
        (
            lambda: nn.ConvNormAct2d(3, 3, padding_mode="reflect", transposed=True),
            ValueError,
            "^padding_mode: expected",
        ),
        (lambda: nn.ConvNormAct2d(3, 3, norm="bn"), TypeError, "^norm: expected a bool, got str"),
        (lambda: nn.ConvNormAct2d(3, 3, alpha="0.2"), TypeError, "^alpha: expected a number, got str"),
        (lambda: nn.ConvNormAct2d(3, 3)(torch.zeros(1, 4, 8, 8)), ValueError, "^x: expected 3 channels"),
        (
            lambda: nn.ConvNormAct2d(3, 3)(torch.zeros(1, 3, 2, 8)),
            ValueError,
            "^x: expected sides >= 3 for a kernel of 3",
        ),
        (lambda: nn.ConvNormAct2d(3, 3)(torch.zeros(3, 8, 8)), ValueError, "^x: expected 4 dimensions"),
        (lambda: nn.ConvNormAct2d(3, 3)(torch.zeros(1, 3, 8, 8).int()), TypeError, "^x: expected dtype"),
        (
            lambda: nn.ConvNormAct2d(3, 3, padding=2, padding_mode="reflect")(torch.zeros(1, 3, 2, 8)),
            ValueError,
            "^x: expected sides > 2 to reflect",
        ),
    ],
)
def test_refusals(call, error, message):
    with pytest.raises(error, match=message):
        call()
