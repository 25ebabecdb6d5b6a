"""The fuzzer of the ops: it finds nothing in them, and finds what is planted."""

from __future__ import annotations

import os
import signal

import fuzz_ops
import numpy as np
import pytest
import torch
from fuzz_calls import Call
from fuzz_ops import FUNCTIONS, Mismatch, T, checked, outcome, survey

from posgan_fast import functional as PF

X, B = "T((2, 3, 4, 5), seed=1)", "T((3,), seed=2)"
BIASED = Call("bias_act", {"x": X, "b": B, "act": "'lrelu'"})


def test_random_calls_keep_the_contract():
    summary = survey(1200, seed=20)
    assert summary.failures == []
    assert summary.calls == 1200 and summary.kinds["ok"] > 400
    assert summary.kinds["TypeError"] > 100 and summary.kinds["ValueError"] > 100


def _wrong_value(x, b, backend=None, **rest):
    return PF.bias_act(x, b, backend=backend, **rest) * (1.001 if backend == "cpu" else 1)


def _wrong_slope(x, b, backend=None, **rest):
    y = PF.bias_act(x, b, backend=backend, **rest)
    return y.detach() + 2 * (y - y.detach()) if backend == "cpu" else y


def _no_slope(x, b, **rest):
    return PF.bias_act(x, b.detach(), **rest)


def _writes(x, b, **rest):
    y = PF.bias_act(x, b, **rest)
    x.data.add_(1)
    return y


def _undocumented(x, b, **rest):
    raise KeyError("b")


def _nameless(x, b, **rest):
    raise ValueError("something is wrong")


def _one_sided(x, b, backend=None, **rest):
    if backend == "cpu":
        raise ValueError("b: expected another")
    return PF.bias_act(x, b, backend=backend, **rest)


@pytest.mark.parametrize(
    "fault, message",
    [
        (_wrong_value, "result: differs"),
        (_wrong_slope, "gradient of x: differs"),
        (_no_slope, "gradient of b: there is none"),
        (_writes, "x: was written to"),
        (_undocumented, "KeyError: 'b'"),
        (_nameless, "ValueError names no argument"),
        (_one_sided, "cpu: ValueError, reference: ok"),
    ],
)
def test_a_planted_fault_is_found(fault, message):
    assert checked(BIASED, PF.bias_act) == "ok"
    with pytest.raises(Mismatch, match=message):
        checked(BIASED, fault)


def test_a_call_prints_as_a_line_that_runs():
    kind, line = outcome(BIASED, {"bias_act": _wrong_value})
    assert kind == "mismatch"
    assert torch.equal(eval(line, vars(fuzz_ops)), PF.bias_act(T((2, 3, 4, 5), seed=1), T((3,), seed=2), act="lrelu"))


def _dies(*args, **rest):
    os.kill(os.getpid(), signal.SIGFPE)


def test_a_call_that_ends_the_process_is_named_and_the_rest_still_runs():
    summary = survey(6, seed=3, op="setup_filter", functions=FUNCTIONS | {"setup_filter": _dies})
    assert summary.kinds == {"death": 6}
    assert all(f.startswith("setup_filter(") and f.endswith("SIGFPE") for f in summary.failures)


HUGE, LIMIT = 10**400, 2**30 - 1


@pytest.mark.parametrize(
    "call, argument",
    [
        (lambda: PF.upfirdn2d(torch.ones(1, 1, 2, 2), None, gain=HUGE), "gain"),
        (lambda: PF.epilogue2d(torch.ones(1, 1, 2, 2), clamp=HUGE), "clamp"),
        (lambda: PF.setup_filter(HUGE), "f"),
        (lambda: PF.setup_filter([1.0], gain=HUGE), "gain"),
        (lambda: PF.setup_filter([1.0], device="paper"), "device"),
        (lambda: PF.setup_filter([1.0], device=-1), "device"),
        (lambda: PF.setup_filter([1.0], device=2**64), "device"),
        (lambda: PF.setup_filter([1.0], device=[0]), "device"),
        (lambda: PF.setup_filter(torch.ones(4, device="meta")), "f"),
        (lambda: PF.cartesian_grid2d(4, 4, device="paper"), "device"),
        (lambda: PF.cartesian_grid2d(4, 4, dtype=np.array([2, 1])), "dtype"),
        (lambda: PF.cartesian_grid2d(4, 2**63), "width"),
        (lambda: PF.cartesian_grid2d(2**31, 4), "height"),
        (lambda: PF.cartesian_grid2d(4, 4, layout="paper", base_size=[4, 2**64]), "base_size[1]"),
        (lambda: PF.sinusoidal_encoding2d(4, 4, HUGE), "channels"),
        (lambda: PF.sinusoidal_encoding2d(4, 4, 8, device=torch.tensor(0)), "device"),
        (lambda: _styled(padding=HUGE), "padding"),
        (lambda: _styled(padding=2**30), "padding"),
        (lambda: PF.map_from_ring(torch.ones(1, 1, 12), np.uint8(2), 2**62), "ring"),
    ],
)
def test_numbers_and_devices_that_torch_cannot_take(call, argument):
    with pytest.raises((TypeError, ValueError)) as caught:
        call()
    assert str(caught.value).startswith(f"{argument}: expected ")


def test_integers_of_numpy_do_not_wrap_around():
    x, f, u = torch.ones(1, 1, 40, 40), torch.ones(4), np.uint8
    assert torch.equal(PF.upfirdn2d(x, f, u(8), 1, u(250)), PF.upfirdn2d(x, f, 8, 1, 250))
    assert PF.map_from_ring(torch.ones(1, 1, 404), u(100), u(100)).shape == (1, 1, 102, 102)
    assert torch.equal(PF.sinusoidal_encoding2d(u(9), u(9), u(64)), PF.sinusoidal_encoding2d(9, 9, 64))
    assert torch.equal(_styled(padding=u(200)), _styled(padding=200))


@pytest.mark.parametrize("padding", [[-LIMIT, LIMIT, 0, 0], [LIMIT, -LIMIT, 0, 0], [0, 0, -LIMIT, LIMIT]])
def test_a_result_of_padding_alone_takes_no_memory(padding):
    x = torch.ones(1, 17, 3, 5).contiguous(memory_format=torch.channels_last).requires_grad_()
    y = PF.epilogue2d(x, torch.ones(3, 2), b=torch.ones(17), padding=padding, act="relu", gain=1.0, backend="cpu")
    assert torch.equal(y, torch.ones(1, 17, 1, 4))
    y.sum().backward()
    assert torch.equal(x.grad, torch.zeros_like(x))


def _styled(**rest):
    return PF.modulated_conv2d(torch.ones(1, 2, 40, 40), torch.ones(2, 2, 3, 3), torch.ones(1, 2), **rest)
