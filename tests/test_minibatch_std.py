"""MinibatchStd against float64, through two derivatives: R1 is a penalty on the first, so training takes the second."""

from __future__ import annotations

import pytest
import torch

from posgan_fast import nn
from posgan_fast.models.stylegan2 import Discriminator, Mapping


def _derivatives(module, x, seed=1):
    """The value, its gradient along one direction, and that gradient's along another."""
    generator = torch.Generator().manual_seed(seed)
    x = x.clone().requires_grad_()
    y = module(x)[:, x.shape[1] :]
    along_y, along_x = (torch.randn(t.shape, generator=generator).to(x.dtype) for t in (y, x))
    (first,) = torch.autograd.grad((y * along_y).sum(), x, create_graph=True)
    (second,) = torch.autograd.grad((first * along_x).sum(), x)
    return y.detach(), first.detach(), second


def _reference(x, group):
    """Differences from the first sample, then closed forms of float64: nothing large is subtracted."""
    y = x.reshape(group, -1, *x.shape[1:])
    y = y - y[:1].detach()
    y = y - y.mean(0)
    y = (y.square().mean(0) + 1e-8).sqrt().mean((1, 2, 3)).repeat(group)
    return torch.cat([x, y[:, None, None, None].expand(-1, -1, *x.shape[2:])], dim=1)


def _samples(group, spread, size):
    generator = torch.Generator().manual_seed(0)
    common, own = (torch.randn(n, 16, 4, 4, generator=generator) for n in (1, 2 * group))
    return size * common + spread * own


@pytest.mark.parametrize("group", [2, 3, 4])
@pytest.mark.parametrize("spread", [0.01, 1])
@pytest.mark.parametrize("size", [1, 100])
def test_two_derivatives_in_float32(group, spread, size):
    x = _samples(group, spread, size)
    expected = _derivatives(lambda x: _reference(x, group), x.double())
    for actual, e in zip(_derivatives(nn.MinibatchStd(group), x), expected, strict=True):
        assert actual.dtype == torch.float32
        assert (actual - e).norm() <= 3e-6 * e.norm()


def test_gradient_of_r1_in_a_batch_of_two():
    """Between activations that are linear in pieces, the deviation alone bends: R1's gradient of a bias is its."""

    def gradients(dtype):
        torch.manual_seed(0)
        network = Discriminator(8, channel_max=8).to(dtype)
        image = (torch.randn(1, 3, 8, 8) + 0.1 * torch.randn(2, 3, 8, 8)).to(dtype).requires_grad_()
        (g,) = torch.autograd.grad(network(image).sum(), image, create_graph=True)
        biases = [network.b8.fromrgb.bias, network.b8.conv0.bias, network.b8.conv1.bias]
        return torch.autograd.grad(g.square().sum(), biases)

    for actual, expected in zip(gradients(torch.float32), gradients(torch.float64), strict=True):
        assert (actual - expected).norm() <= 1e-3 * expected.norm()  # the features round before their difference


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_rounds_once(dtype):
    x = _samples(2, 0.5, 100).to(dtype)
    y = nn.MinibatchStd(2)(x)
    assert y.dtype == dtype and torch.equal(y, nn.MinibatchStd(2)(x.double()).to(dtype))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_equal_samples_and_empty_batches(dtype):
    x = torch.randn(1, 4, 2, 2).expand(4, -1, -1, -1).to(dtype)
    assert all(t.isfinite().all() for t in _derivatives(nn.MinibatchStd(), x))
    assert nn.MinibatchStd()(x[:0]).shape == (0, 5, 2, 2)


def test_transforms_and_exports():
    module, x = nn.MinibatchStd(), _samples(2, 1, 1)
    torch.testing.assert_close(
        torch.func.grad(lambda x: module(x).square().sum())(x),
        torch.autograd.grad(module(y := x.clone().requires_grad_()).square().sum(), y)[0],
    )
    batch = torch.export.Dim("batch")
    program = torch.export.export(module, (torch.cat([x, x]),), dynamic_shapes=({0: 4 * batch},)).module()
    x = torch.cat([x, x, x])
    torch.testing.assert_close(program(x), module(x))


def test_latents_are_normalised_outside_of_half_precision():
    """A label's embedding may be zero or large: float16 has neither 1e-8 nor squares beyond 65504."""
    torch.manual_seed(0)
    mapping = Mapping(0, 3, 8, 2, num_layers=1).half()
    assert torch.equal(mapping(None, torch.zeros(2, 3)), torch.zeros(2, 2, 8).half())
    large, one = mapping(None, torch.tensor([[1000.0, 0, 0], [1, 0, 0]]))
    torch.testing.assert_close(large, one, rtol=1e-2, atol=1e-3)
    assert one.abs().max() > 0


def test_training_mappings_export_with_a_symbolic_batch_and_take_an_empty_one():
    mapping = Mapping(8, 0, 8, 2, num_layers=1)
    mapping(torch.zeros(0, 8))
    assert torch.equal(mapping.w_avg, torch.zeros(8))
    batch = torch.export.Dim("batch")
    program = torch.export.export(mapping, (torch.randn(8, 8),), dynamic_shapes=({0: batch},)).module()
    assert program(torch.randn(3, 8)).shape == (3, 2, 8)
    assert program.w_avg.abs().max() > 0
