"""conv2d on the host's backends: its contract, derivatives, arguments, its layer, and the choice of the algorithm."""

from __future__ import annotations

import pytest
import torch
from contract.common import HOST, check_derivatives, each_of
from contract.conv2d import LAYERS, Conv2dContract, answer, each_layer, run, tensors
from tolerances import assert_close

import posgan_fast
from posgan_fast import _native, nn
from posgan_fast import functional as PF

backend = each_of(HOST)
needs_kernels = pytest.mark.skipif(not _native.load("cpu").loaded, reason="needs the CPU library")


class TestContract(Conv2dContract):
    """The contract on the CPU."""


@each_layer
def test_derivatives(layer, backend):
    x, weight, bias, scale = tensors(layer, i=2, o=2, h=4, w=5)
    given = [x, weight, *(t for t in (bias, scale) if isinstance(t, torch.Tensor))]

    def function(x, weight, *rest):
        rest = list(rest)
        here = [rest.pop(0) if isinstance(t, torch.Tensor) else t for t in (bias, scale)]
        return run(layer, x, weight, *here, act="swish", clamp=None, backend=backend.name)

    check_derivatives(function, given)


WRONG = {
    "x": (dict(x=torch.zeros(2, 4, 4)), ValueError, "expected 4 dimensions"),
    "weight": (dict(weight=torch.zeros(2, 3, 3, 3)), ValueError, "expected shape .O, 4, kh, kw. for x of 4 channels"),
    "weight, empty": (dict(weight=torch.zeros(0, 4, 3, 3)), ValueError, "expected shape"),
    "bias": (dict(bias=torch.zeros(3)), ValueError, r"expected shape \(2,\), got \(3,\)"),
    "scale": (dict(scale=torch.zeros(2, 1)), ValueError, r"expected shape \(2,\), got \(2, 1\)"),
    "scale, text": (dict(scale="1"), TypeError, "expected a number, got str"),
    "stride": (dict(stride=0), ValueError, "expected an int >= 1, got 0"),
    "padding": (dict(padding=-1), ValueError, "expected an int >= 0, got -1"),
    "padding, reflect": (dict(padding=5, padding_mode="reflect"), ValueError, "expected less than the size 5 x 6"),
    "padding, small": (dict(x=torch.zeros(1, 4, 2, 6)), ValueError, "expected an input of at least the kernel's 3 x 3"),
    "padding_mode": (dict(padding_mode="circular"), ValueError, "expected one of"),
    "act": (dict(act="gelu"), ValueError, "expected one of"),
    "clamp": (dict(clamp=-1), ValueError, "expected a number >= 0"),
    "backend": (dict(backend="cudnn"), ValueError, "expected one of"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_named(name):
    change, error, message = WRONG[name]
    with pytest.raises(error, match=f"^{name.partition(',')[0]}: {message}"):
        PF.conv2d(**dict(x=torch.zeros(1, 4, 5, 6), weight=torch.zeros(2, 4, 3, 3)) | change)


def test_autocast_decides_the_dtype():
    given = tensors(LAYERS[3], dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y, exact = run(LAYERS[3], *given), run(LAYERS[3], given[0].double(), *given[1:])
    assert y.dtype == torch.bfloat16 and exact.dtype == torch.float64
    assert_close(y, answer(LAYERS[3], *given), "conv2d", torch.bfloat16)


LAYER_CASES = {
    "plain": dict(padding=1),
    "valid": dict(padding="valid", act="lrelu"),
    "same": dict(padding="same", act="relu"),
    "reflect": dict(padding=1, padding_mode="reflect", act="lrelu", alpha=0.1, clamp=3),
    "circular": dict(padding=1, padding_mode="circular"),
    "stride": dict(stride=2, padding=1, gain=0.5),
    "two strides": dict(stride=(1, 2), padding=1),
    "two paddings": dict(padding=(0, 1), act="swish"),
    "groups": dict(groups=2, padding=1, act="lrelu"),
    "dilation": dict(dilation=2, bias=False),
}


@pytest.mark.parametrize("arguments", LAYER_CASES.values(), ids=LAYER_CASES)
@pytest.mark.parametrize("training", [False, True])
def test_the_layer_is_torchs_with_an_activation(arguments, training):
    activation = {key: arguments[key] for key in ("act", "alpha", "gain", "clamp") if key in arguments}
    layer = nn.Conv2d(16, 32, 3, **arguments)
    plain = torch.nn.Conv2d(16, 32, 3, **{k: v for k, v in arguments.items() if k not in activation}).double()
    plain.load_state_dict(layer.state_dict())
    x = torch.randn(3, 16, 20, 24)
    with torch.set_grad_enabled(training):
        y = layer(x)
    expected = PF.bias_act(plain(x.double()), **activation, backend="reference")
    assert_close(y, expected, "winograd3x3", torch.float32)
    if training:
        (found,), (wanted,) = (torch.autograd.grad(t.sum(), m.weight) for t, m in ((y, layer), (expected, plain)))
        assert (found - wanted).norm() <= 5e-6 * wanted.norm()


@needs_kernels
def test_set_algorithm_chooses_and_explain_tells():
    x, weight = torch.randn(4, 16, 56, 56).contiguous(memory_format=torch.channels_last), torch.randn(16, 16, 3, 3)

    def told(*call):
        return posgan_fast.explain(*call, padding=1).algorithm

    assert told("conv2d", x, weight) == "winograd"
    assert "algorithm: winograd" in str(posgan_fast.explain("modulated_conv2d", x, weight, torch.ones(4, 16)))
    assert told("conv2d", x.double(), weight) == "direct, because x is float64, not float32"
    assert told("conv2d", x[:1, :, :4, :12], weight) == "direct, because fewer than 4 tiles of 4 x 4 results"
    few = "direct, because 14 tiles of 4 x 4 results are few for 16 channels and 16 filters"
    assert told("conv2d", x[:, :, :4], weight) == few
    before = posgan_fast.set_algorithm("direct")
    try:
        assert before == "auto" and told("conv2d", x, weight) == "direct, because set_algorithm asks for it"
        direct = PF.conv2d(x, weight, padding=1)
        assert torch.equal(direct, torch.nn.functional.conv2d(x, weight, padding=1))
        assert posgan_fast.set_algorithm("winograd") == "direct"
        assert told("conv2d", x[:, :, :4], weight) == "winograd"
        found = PF.conv2d(x, weight, padding=1)
        assert not torch.equal(found, direct) and (found - direct).norm() < 5e-6 * direct.norm()
    finally:
        posgan_fast.set_algorithm("auto")


@needs_kernels
def test_the_reason_against_winograds_algorithm_is_that_of_the_call_as_it_runs():
    wide, narrow = torch.randn(1, 64, 32, 32), torch.randn(1, 32, 32, 32)

    def told(x, **arguments):
        weight = torch.randn(x.shape[1], x.shape[1], 3, 3)
        return posgan_fast.explain("conv2d", x, weight, padding=1, **arguments).algorithm

    assert told(wide) == told(narrow.contiguous(memory_format=torch.channels_last)) == "winograd"
    assert told(narrow) == "direct, because fewer than 64 channels or filters outside of channels_last"
    assert told(wide, stride=2) == "direct, because x is not in channels_last, and the stride is 2"
    assert told(wide.requires_grad_()) == "winograd"
    dense = narrow.contiguous(memory_format=torch.channels_last).requires_grad_()
    assert told(dense) == "direct, because fewer than 64 channels or filters with a derivative"
    styles, weight = torch.ones(1, 64), torch.randn(64, 64, 3, 3)
    half = wide.detach().bfloat16().requires_grad_()
    recorded = posgan_fast.explain("modulated_conv2d", half, weight, styles, padding=1).algorithm
    assert recorded == "direct, because x is bfloat16, not float32"
    with torch.autocast("cpu", torch.bfloat16):
        assert told(wide.detach()) == recorded


@pytest.mark.parametrize(("name", "error"), [("fft", ValueError), (None, TypeError)])
def test_set_algorithm_refuses_other_names(name, error):
    with pytest.raises(error, match=r"^name: expected one of \('auto', 'direct', 'winograd'\), got"):
        posgan_fast.set_algorithm(name)
