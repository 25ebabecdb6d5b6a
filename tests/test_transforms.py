"""Every op under torch's transforms, against reverse mode of plain calls, one at a time, in float64."""

from __future__ import annotations

import pytest
import torch
from capability_cases import OPS, Case
from torch.autograd import forward_ad
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.overrides import TorchFunctionMode

from posgan_fast import functional as PF

pytestmark = pytest.mark.usefixtures("one_thread")

DIRECTIONS = 3
ARGUMENTS = [(name, i) for name, case in OPS.items() for i in range(len(case.inputs))]
each_argument = pytest.mark.parametrize("name,position", ARGUMENTS, ids=[f"{n}-{i}" for n, i in ARGUMENTS])


WRITES_OVER_SHARED = ("bias_act_", 1)  # under vmap torch writes over no tensor without the mapped dimension


class Curve:
    """An op as a function of three numbers that move one of its arguments, or all, with a result of three numbers."""

    def __init__(self, case: Case, moving: list[int]) -> None:
        generator = torch.Generator().manual_seed(1)
        self.case, self.t = case, torch.zeros(DIRECTIONS, dtype=torch.float64)
        self.steps = {
            i: torch.randn(DIRECTIONS, *case.inputs[i].shape, generator=generator, dtype=torch.float64) for i in moving
        }
        size = case.function(*case.inputs).numel()
        self.weights = torch.randn(size, DIRECTIONS, generator=generator, dtype=torch.float64) / size**0.5

    def __call__(self, t: torch.Tensor) -> torch.Tensor:
        inputs = list(self.case.inputs)
        for i, steps in self.steps.items():
            inputs[i] = inputs[i] + (t @ steps.flatten(1)).reshape(inputs[i].shape)
        return self.case.function(*inputs).flatten() @ self.weights

    def energy(self, t: torch.Tensor) -> torch.Tensor:
        return self(t).square().sum()

    def jacobian(self) -> torch.Tensor:
        t = self.t.clone().requires_grad_()
        y = self(t)
        return torch.stack([torch.autograd.grad(value, t, retain_graph=True)[0] for value in y])

    def hessian(self) -> torch.Tensor:
        t = self.t.clone().requires_grad_()
        (slope,) = torch.autograd.grad(self.energy(t), t, create_graph=True)
        return torch.stack([torch.autograd.grad(value, t, retain_graph=True)[0] for value in slope])


def check_reverse(curve: Curve, mapped: bool = True) -> None:
    """torch.func's reverse mode and, unless ``mapped`` is False, vmap of it and it of vmap."""
    t, jacobian = curve.t, curve.jacobian()
    v = torch.arange(1.0, 4.0, dtype=t.dtype)
    close(vjp(curve, t)[1](v)[0], v @ jacobian)
    close(grad(lambda t: curve(t) @ v)(t), v @ jacobian)
    close(jacrev(curve)(t), jacobian)
    close(jacrev(grad(curve.energy))(t), curve.hessian())
    if not mapped:
        return
    points = torch.stack([t, t + 0.1, t - 0.2])
    each = torch.stack([grad(curve.energy)(point) for point in points])
    close(vmap(grad(curve.energy))(points), each)
    close(grad(lambda points: vmap(curve.energy)(points).sum())(points), each)


def check_forward(curve: Curve) -> None:
    """torch.func's forward mode, forward over reverse, and dual tensors."""
    t, jacobian = curve.t, curve.jacobian()
    v = torch.arange(1.0, 4.0, dtype=t.dtype)
    value, tangent = jvp(curve, (t,), (v,))
    close(value, curve(t))
    close(tangent, jacobian @ v)
    close(jacfwd(curve)(t), jacobian)
    close(hessian(curve.energy)(t), curve.hessian())
    close(torch.autograd.functional.jacobian(curve, t, vectorize=True, strategy="forward-mode"), jacobian)
    with forward_ad.dual_level():
        close(forward_ad.unpack_dual(curve(forward_ad.make_dual(t, v))).tangent, jacobian @ v)


def check_batched(curve: Curve) -> None:
    """Batched gradients, of first and second order."""
    t = curve.t.clone().requires_grad_()
    eye = torch.eye(DIRECTIONS, dtype=t.dtype)
    close(torch.autograd.grad(curve(t), t, eye, is_grads_batched=True)[0], curve.jacobian())
    close(torch.autograd.functional.jacobian(curve, curve.t, vectorize=True), curve.jacobian())
    (slope,) = torch.autograd.grad(curve.energy(t), t, create_graph=True)
    close(torch.autograd.grad(slope, t, eye, is_grads_batched=True)[0], curve.hessian())


def check_vmap(case: Case, position: int) -> None:
    """vmap over one argument, along either of its first dimensions; the others are shared."""

    def call(argument: torch.Tensor) -> torch.Tensor:
        return case.function(*case.inputs[:position], argument, *case.inputs[position + 1 :])

    value = case.inputs[position]
    entries = [value, 2 * value, -value]
    expected = torch.stack([call(entry) for entry in entries])
    for dim in (0, 1):
        close(vmap(call, in_dims=dim)(torch.stack(entries, dim)), expected)
    close(vmap(call, out_dims=-1)(torch.stack(entries)), expected.movedim(0, -1))


@each_argument
def test_reverse_mode(name, position):
    check_reverse(Curve(OPS[name], [position]), mapped=(name, position) != WRITES_OVER_SHARED)


@each_argument
def test_forward_mode(name, position):
    check_forward(Curve(OPS[name], [position]))


@each_argument
def test_batched_gradients(name, position):
    check_batched(Curve(OPS[name], [position]))


@each_argument
def test_vmap(name, position):
    if (name, position) != WRITES_OVER_SHARED:
        check_vmap(OPS[name], position)
        return
    with pytest.raises(RuntimeError, match="vmap: inplace arithmetic"):
        check_vmap(OPS[name], position)


def close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-12)


# One argument of each op, which a number moves. Differences of values know nothing of any derivative of ours.
_X, _TAPS = torch.arange(32.0, dtype=torch.float64).reshape(1, 2, 4, 4), torch.ones(4)
_RING, _STYLES = torch.zeros(1, 2, 20, dtype=torch.float64), torch.ones(1, 2, dtype=torch.float64)
_WEIGHT = torch.ones(3, 2, 3, 3, dtype=torch.float64)
MOVED = {
    "upfirdn2d": lambda t: PF.upfirdn2d(_X + t, _TAPS, padding=2),
    "bias_act": lambda t: PF.bias_act(_X, t.new_zeros(2) + t),
    "prologue2d": lambda t: PF.prologue2d(_X, t.new_ones(1, 2) * t, padding=1),
    "instance_pad2d": lambda t: PF.instance_pad2d(_X, _RING + t),
    "epilogue2d": lambda t: PF.epilogue2d(_X, scale=t.new_ones(1, 2) * t),
    "modulated_conv2d": lambda t: PF.modulated_conv2d(_X, _WEIGHT, _STYLES * t, padding=1, demodulate=False),
}


@pytest.mark.parametrize("name", MOVED)
def test_a_tangent_is_the_difference_of_values(name):
    t, step = torch.ones((), dtype=torch.float64), 1e-6
    value, tangent = jvp(MOVED[name], (t,), (t,))
    torch.testing.assert_close(value, MOVED[name](t))
    difference = (MOVED[name](t + step) - MOVED[name](t - step)) / (2 * step)
    assert difference.abs().max() > 0
    torch.testing.assert_close(tangent, difference, rtol=1e-6, atol=1e-6)


class _Differentiating(TorchFunctionMode):
    """Tells for every call of an op whether autograd records what a mode computes around it."""

    def __init__(self):
        super().__init__()
        self.records = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if "posgan_fast" in str(function):
            self.records.append((torch.ones((), requires_grad=True) * 2).requires_grad)
        return function(*args, **(kwargs or {}))


def test_a_mode_of_functions_finds_autograd_at_work_in_a_call_without_derivatives():
    with _Differentiating() as mode:
        PF.bias_act(_X, act="relu")
    assert mode.records and all(mode.records)
