"""epilogue2d_backward on the host's backends: its contract, sizes of every path, bits, and the native op's checks."""

from __future__ import annotations

import math

import pytest
import torch
from contract.common import CPU, HOST, each_layout, each_of
from contract.epilogue2d_backward import BackwardContract, check
from torch.autograd import forward_ad

from posgan_fast import functional as PF
from posgan_fast.ops.common.records import Activation
from posgan_fast.ops.epilogue2d import backward
from posgan_fast.ops.epilogue2d.backward import GRADIENTS, Factors, gradients

backend = each_of(HOST)


@pytest.fixture(autouse=True)
def one_pass(monkeypatch):
    """Take the kernel in float32 and float64 too, where separate passes are the faster ones on the CPU."""
    monkeypatch.setattr(backward, "_has_fast_passes", lambda dy, backend: False)


class TestContract(BackwardContract):
    """The contract on the CPU."""


def test_separate_passes_agree(monkeypatch):
    monkeypatch.undo()
    assert backward._has_fast_passes(torch.zeros(1), "cpu") and not backward._has_fast_passes(torch.zeros(1), "cuda")
    for act in ("lrelu", "swish", "linear"):
        check((2, 16, 5, 7), torch.float32, torch.channels_last, act, CPU)


@each_layout
@pytest.mark.parametrize("act", ["lrelu", "swish"])
@pytest.mark.parametrize("shape", [(1, 40, 65, 67), (2, 3, 200, 3), (1, 2100, 2, 3), (8, 1, 257, 256)], ids=str)
def test_sizes_of_every_path(shape, act, layout):
    """Pixels with more channels than a span, planes and tiles longer than one."""
    check(shape, torch.float32, layout, act, CPU)


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (2, 3, 0, 4)], ids=str)
def test_no_pixels(shape):
    x = torch.randn(shape)
    n, c, h, w = shape
    factors = Factors(torch.ones(n, c), torch.zeros(n, 1, h, w), torch.zeros(c))
    found = gradients(x, x, x, factors, Activation("lrelu", 0.2), set(GRADIENTS), "cpu")
    assert found["x"].shape == shape and not any(found[name].any() for name in GRADIENTS)


def test_bits_do_not_depend_on_threads():
    x, dy = (torch.randn(3, 24, 33, 35).contiguous(memory_format=torch.channels_last) for _ in range(2))
    factors = Factors(torch.rand(3, 24), torch.randn(3, 1, 33, 35), torch.randn(24))

    def run():
        return gradients(dy, x, x, factors, Activation("lrelu", 0.2), set(GRADIENTS), "cpu")

    threads, several = torch.get_num_threads(), run()
    torch.set_num_threads(1)
    try:
        alone = run()
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(several[name], alone[name]) for name in GRADIENTS)


def test_training_takes_the_fused_pass_and_higher_orders_do_not(monkeypatch):
    paths = []
    for name in ("_run", "_composed"):
        run = getattr(backward, name)
        monkeypatch.setattr(backward, name, lambda call, run=run, name=name: (paths.append(name), run(call))[1])
    x, scale = torch.randn(2, 8, 6, 6, requires_grad=True), torch.rand(2, 8, requires_grad=True)
    y = PF.epilogue2d(x, scale=scale, act="swish")
    y.sum().backward(retain_graph=True)
    assert paths == ["_run"]
    torch.autograd.grad(y.sum(), x, create_graph=True)
    assert paths == ["_run", "_composed"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_second_derivatives_agree_with_float64(dtype):
    x = torch.randn(2, 8, 6, 6, dtype=dtype, requires_grad=True)
    scale, b = torch.rand(2, 8, requires_grad=True), torch.randn(8, dtype=dtype, requires_grad=True)

    def second(x, scale, b, backend):
        y = PF.epilogue2d(x, scale=scale, b=b, act="swish", backend=backend)
        (g,) = torch.autograd.grad(y.square().sum(), x, create_graph=True)
        return torch.autograd.grad(g.square().sum(), (x, scale, b))

    found = second(x, scale, b, "cpu")
    exact = second(*(t.detach().double().requires_grad_() for t in (x, scale, b)), "reference")
    bound = {torch.float16: 5e-3, torch.bfloat16: 4e-2, torch.float32: 1e-5}[dtype]
    for got, want in zip(found, exact, strict=True):
        assert (got.double() - want).norm() <= bound * want.norm()


def test_the_gradient_of_a_bias_in_float32_does_not_pass_through_half_precision():
    x, b = torch.zeros(4, 2, 256, 256, dtype=torch.float16), torch.zeros(2, requires_grad=True)
    PF.epilogue2d(x, b=b).sum(dtype=torch.float32).backward()
    assert torch.equal(b.grad, torch.full((2,), 4.0 * 256 * 256))  # beyond float16


def test_recorded_gradients_of_factors_do_not_pass_through_half_precision():
    """Sums beyond float16 survive where the caller may ask for second derivatives, too."""
    x, scale = torch.ones(2, 128, 32, 32, dtype=torch.float16), torch.ones(2, 128, requires_grad=True)
    noise, b = (torch.zeros(shape, requires_grad=True) for shape in ((2, 1, 32, 32), (128,)))
    y = PF.epilogue2d(x, scale=scale, noise=noise, b=b, act="softplus", gain=1)
    found = torch.autograd.grad(y, (scale, noise, b), torch.full_like(y, 1000), create_graph=True)
    g = 1000 / (1 + math.exp(-1))  # everywhere
    for gradient, terms in zip(found, (32 * 32, 128, 2 * 32 * 32), strict=True):
        torch.testing.assert_close(gradient, torch.full_like(gradient, g * terms), rtol=2e-3, atol=0)


def test_a_forward_derivative_passes_the_gradients():
    """They are linear in the gradient of the result, so the tangent is the gradient that the tangent would give."""
    x, scale = torch.randn(2, 3, 4, 5, requires_grad=True), torch.rand(2, 3, requires_grad=True)
    y = PF.epilogue2d(x, scale=scale, act="softplus", backend="cpu")
    tangent = torch.randn_like(y)
    with forward_ad.dual_level():
        found = torch.autograd.grad(
            y, (x, scale), forward_ad.make_dual(torch.randn_like(y), tangent), retain_graph=True
        )
        tangents = [forward_ad.unpack_dual(gradient).tangent for gradient in found]
    torch.testing.assert_close(tangents, list(torch.autograd.grad(y, (x, scale), tangent)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "change",
    [
        dict(y=torch.zeros(1, 2, 4, 6)),
        dict(x=torch.zeros(1, 2, 4, 5).double()),
        dict(dx=torch.zeros(1, 2, 5, 4).transpose(2, 3)),
        dict(x=None),
        dict(y=None, x=None, channel_sums=None),
        dict(act=4),
        dict(scale=torch.zeros(1, 3)),
        dict(scale=torch.zeros(1, 2).double()),
        dict(channel_sums=torch.zeros(2, 1, 1, 2)),
        dict(pixel_sums=torch.zeros(1, 19)),
        dict(tile=0),
        dict(act=10),
        dict(dy=torch.zeros(1, 2, 4, 10)[:, :, :, ::2]),
    ],
    ids=lambda change: ",".join(change),
)
def test_the_native_op_guards_its_memory(change):
    PF.explain("epilogue2d", torch.zeros(1, 1, 1, 1))  # loads the library
    call = dict(
        dy=torch.zeros(1, 2, 4, 5), y=torch.zeros(1, 2, 4, 5), x=torch.zeros(1, 2, 4, 5), scale=torch.zeros(1, 2),
        noise=torch.zeros(1, 1, 4, 5), b=torch.zeros(2), dx=torch.zeros(1, 2, 4, 5),
        channel_sums=torch.zeros(2, 1, 2, 2), pixel_sums=torch.zeros(1, 20), tile=16, act=3,
    )  # fmt: skip

    def run(dy, y, x, scale, noise, b, dx, channel_sums, pixel_sums, tile, act):
        torch.ops.posgan_fast_native.epilogue2d_backward(
            dy, y, x, scale, noise, b, dx, channel_sums, pixel_sums, tile, act, 0.2, 1.0, -1.0
        )

    run(**call)
    with pytest.raises(RuntimeError, match="epilogue2d_backward: "):
        run(**call | change)
