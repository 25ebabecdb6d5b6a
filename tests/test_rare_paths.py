"""Paths of the ops that few programs take, and that the contracts of the ops do not reach."""

from __future__ import annotations

import warnings

import pytest
import torch
from tolerances import assert_close

from posgan_fast import backend
from posgan_fast import functional as PF
from posgan_fast.ops.bias_act.grad import GRAD2, Grad2Call


@pytest.mark.parametrize("name", ["reference", "cpu"])
def test_the_second_derivative_of_bias_act_is_linear_in_both_gradients(name):
    generator = torch.manual_seed(0)
    g, dy, x = (torch.randn(3, 4, dtype=torch.float64, generator=generator) for _ in range(3))

    def second(g, dy):
        return GRAD2(Grad2Call(g, dy, x, None, 0, "tanh", 0.0, 1.5, -1.0, name))

    assert torch.autograd.gradcheck(second, (g.requires_grad_(), dy.requires_grad_()))


@pytest.mark.parametrize("padding", [(2, 0, 0, 0), (0, 1, 0, 2)])
def test_a_reflection_on_some_sides_has_a_gradient(padding):
    x = torch.randn(1, 2, 4, 5, dtype=torch.float64, generator=torch.manual_seed(0)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: PF.prologue2d(x, padding=padding, mode="reflect"), (x,))


def test_autocast_leaves_forward_mode_derivatives_alone():
    x, f = torch.randn(1, 3, 8, 8, generator=torch.manual_seed(0)), PF.setup_filter([1, 3, 3, 1])
    with torch.autocast("cpu"):
        y, tangent = torch.func.jvp(lambda x: PF.upfirdn2d(x, f, up=2, padding=2), (x,), (x,))
    expected = PF.upfirdn2d(x.double(), f, up=2, padding=2)
    assert_close(y, expected, "upfirdn2d", torch.float32)
    assert_close(tangent, expected, "upfirdn2d", torch.float32)


def test_few_filters_with_padding():
    generator = torch.manual_seed(0)
    x, weight, styles = (torch.randn(s, generator=generator) for s in ((2, 8, 4, 5), (2, 8, 1, 1), (2, 8)))
    y, expected = (
        PF.modulated_conv2d(*(t.to(d) for t in (x, weight, styles)), padding=1, backend=backend)
        for d, backend in ((torch.float32, "cpu"), (torch.float64, "reference"))
    )
    assert_close(y, expected, "modulated_conv2d", torch.float32)


def test_vmap_over_samples_and_a_shared_argument():
    generator = torch.manual_seed(0)
    x, b = torch.randn(3, 2, 4, generator=generator), torch.randn(3, 4, generator=generator)
    expected = torch.stack([PF.bias_act(*entry, act="lrelu") for entry in zip(x, b, strict=True)])
    assert torch.equal(torch.vmap(lambda x, b: PF.bias_act(x, b, act="lrelu"))(x, b), expected)


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_the_gradient_of_a_bias_is_summed_over_the_other_dimensions(dim):
    x, b = torch.zeros(2, 3, 4), torch.zeros((2, 3, 4)[dim], requires_grad=True)
    g = torch.arange(24.0).reshape(2, 3, 4)
    (actual,) = torch.autograd.grad(PF.bias_act(x, b, dim), b, g)
    assert torch.equal(actual, g.sum([i for i in range(3) if i != dim]))


@pytest.mark.parametrize("padding", [[3, 0, 0, 0], [0, 3, 0, 0], [0, 0, 2, 0], [0, 0, 0, 2]])
def test_a_reflection_needs_fewer_pixels_than_the_image_has(padding):
    with pytest.raises(ValueError, match="^padding: expected less than the size 2 x 3 to reflect"):
        PF.prologue2d(torch.zeros(1, 1, 2, 3), padding=padding, mode="reflect")


def test_a_registered_op_refuses_a_backend_that_cannot_run():
    with pytest.raises(backend.BackendError, match="bias_act: backend 'cuda' cannot run: x is on cpu"):
        torch.ops.posgan_fast.bias_act(torch.zeros(1, 2), None, 0, "relu", 0.0, 1.0, -1.0, "cuda")


def test_a_skipped_backend_is_named_once(monkeypatch):
    monkeypatch.setattr(backend, "_warned", set())
    monkeypatch.setattr(backend, "_unavailable", lambda library: backend.Unsupported("no library", "build it"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            PF.bias_act(torch.zeros(1, 2), act="relu")
    assert [str(w.message) for w in caught] == [
        "posgan_fast.bias_act: the cpu backend is skipped: no library (remedy: build it)"
    ]


@pytest.mark.parametrize(
    "function",
    [
        lambda x: PF.upsample2d(x, PF.setup_filter([1, 3, 3, 1])),
        lambda x: PF.prologue2d(x, encode="csg", join="concat"),
        lambda x: PF.epilogue2d(x, PF.setup_filter([1.0] * 8), up=2, padding=4),
    ],
    ids=["upsample2d", "prologue2d", "epilogue2d"],
)
def test_a_decomposition_keeps_the_memory_format(function):
    x = torch.randn(2, 8, 6, 5).contiguous(memory_format=torch.channels_last)
    y = torch.jit.trace(function, x, check_trace=False)(x)
    assert y.stride() == function(x).stride()
