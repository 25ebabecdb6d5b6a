"""Derivatives of every order of the vendor's convolution, against torch's own."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.traffic_counter import Counter
from benchmarks.traffic_cuda import META, meta_as_cuda
from posgan_fast import nn
from posgan_fast.ops.conv2d.derivatives import Geometry, convolve, direct

GEOMETRIES = [
    (3, Geometry(1, (1, 1), False)),
    (3, Geometry(2, (0, 1), False)),  # one row is left over
    (1, Geometry(3, (0, 0), False)),
    (4, Geometry(2, (1, 2), False)),
    (3, Geometry(1, (0, 2), True)),
    (3, Geometry(2, (1, 0), True)),
    (3, Geometry(2, (1, 1), True, (1, 0))),
]


def tensors(kernel: int, geometry: Geometry) -> list[torch.Tensor]:
    sides = (2, 3) if geometry.transposed else (3, 2)
    shapes = (2, 2, 6, 5), (*sides, kernel, kernel)
    return [torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


@pytest.mark.parametrize(("kernel", "geometry"), GEOMETRIES[:-1], ids=str)  # torch's lack the third of the last
def test_derivatives_of_three_orders(kernel, geometry):
    x, weight = tensors(kernel, geometry)

    def orders(function):
        y = function(x, weight, geometry)
        first = torch.autograd.grad((y**3).sum(), (x, weight), create_graph=True)
        second = torch.autograd.grad(sum((t**2).sum() for t in first), (x, weight), create_graph=True)
        return [y, *first, *second, *torch.autograd.grad(sum((t**2).sum() for t in second), (x, weight))]

    for found, expected in zip(orders(convolve), orders(direct), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("kernel", "geometry"), GEOMETRIES[:2] + GEOMETRIES[5:], ids=str)
def test_gradcheck(kernel, geometry):
    given = tensors(kernel, geometry)
    assert torch.autograd.gradcheck(lambda x, weight: convolve(x, weight, geometry), given, fast_mode=True)
    assert torch.autograd.gradgradcheck(lambda x, weight: convolve(x, weight, geometry), given, fast_mode=True)


@pytest.mark.parametrize("wanted", [(0,), (1,), (0, 1)])
def test_only_what_is_awaited_is_computed(wanted):
    """A penalty on the gradient of an input needs no gradient of a weight, which requires one."""
    given = tensors(3, GEOMETRIES[0][1])
    costs = []
    for function in (convolve, direct):
        y = function(*(t * 1 for t in given), GEOMETRIES[0][1])
        with FlopCounterMode(display=False) as counted:
            torch.autograd.grad(y.sum(), [given[i] for i in wanted])
        costs.append(counted.get_total_flops())
    assert costs[0] == costs[1] > 0


@pytest.mark.parametrize("frozen", ["x", "weight"])
def test_frozen_arguments(frozen):
    x, weight = tensors(3, GEOMETRIES[0][1])
    (x if frozen == "x" else weight).requires_grad_(False)
    given = weight if frozen == "x" else x
    y = convolve(x, weight, GEOMETRIES[0][1])
    (first,) = torch.autograd.grad((y**2).sum(), given, create_graph=True)
    (second,) = torch.autograd.grad((first**2).sum(), given)
    y = direct(x, weight, GEOMETRIES[0][1])
    (expected,) = torch.autograd.grad((y**2).sum(), given, create_graph=True)
    torch.testing.assert_close(first, expected)
    torch.testing.assert_close(second, torch.autograd.grad((expected**2).sum(), given)[0])


def test_batched_gradients_and_modes_get_those_of_torch():
    x, weight = tensors(3, GEOMETRIES[0][1])
    y = convolve(x, weight, GEOMETRIES[0][1])
    rows = torch.randn(3, *y.shape, dtype=y.dtype)
    batched = torch.autograd.grad(y, weight, rows, retain_graph=True, is_grads_batched=True)[0]
    torch.testing.assert_close(batched[1], torch.autograd.grad(y, weight, rows[1], retain_graph=True)[0])
    with FlopCounterMode(display=False):
        (found,) = torch.autograd.grad((y**2).sum(), x, create_graph=True)
    torch.testing.assert_close(found, torch.autograd.grad((y**2).sum(), x)[0])


def test_a_penalty_on_gradients_convolves_with_no_image():
    """Torch copies images to convolve with them, and no vendor has a fast algorithm for such kernels."""
    with META, meta_as_cuda():
        network = torch.nn.Sequential(
            nn.EqualConv2d(3, 64, 3), nn.EqualConv2d(64, 8, 1), nn.EqualConv2d(8, 8, 3, down=2)
        )
        x = torch.empty(2, 3, 16, 16).contiguous(memory_format=torch.channels_last).requires_grad_()
        with Counter() as counted:
            (gradient,) = torch.autograd.grad(network(x).sum(), x, create_graph=True)
            gradient.square().sum().backward()
    names = [kernel.name for kernel in counted.traffic.kernels]
    assert names.count("convolution_backward dw") == 3  # one for each layer
