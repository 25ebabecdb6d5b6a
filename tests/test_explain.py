"""What explain() tells of whole modules, and a backend that is refused also where there is nothing to do."""

from __future__ import annotations

import copy

import pytest
import torch

import posgan_fast
from posgan_fast import functional as PF
from posgan_fast import nn
from posgan_fast.backend import BackendError
from posgan_fast.models import Generator


@pytest.mark.parametrize("training", [False, True])
def test_a_network_is_explained_call_by_call_and_left_as_it_was(training):
    generator = Generator(16, channel_max=8, mapping_layers=2).train(training)
    z = torch.randn(2, 512)
    before, drawn = copy.deepcopy(generator.state_dict()), torch.get_rng_state()
    choices = posgan_fast.explain(generator, z)
    counts = {choice.op: count for choice, count in choices.counts}
    assert counts == {"bias_act": 2, "modulated_conv2d": 8, "upfirdn2d": 2}  # two layers of mapping, 4, 8 and 16 pixels
    assert "8 x modulated_conv2d: " in str(choices)
    assert all(torch.equal(before[name], value) for name, value in generator.state_dict().items())
    assert torch.equal(drawn, torch.get_rng_state()), "no random numbers are drawn"


def test_a_layer_is_explained_under_a_forced_backend():
    layer, x = nn.BiasAct(4, act="lrelu"), torch.zeros(1, 4, 2, 2)
    with posgan_fast.use_backend("reference"):
        ((choice, count),) = posgan_fast.explain(layer, x).counts
    assert (choice.op, choice.backend, count) == ("bias_act", "reference", 1)
    assert any("use_backend() asks for 'reference'" in why for _, why in choice.rows)
    assert str(posgan_fast.explain(torch.nn.Identity(), x)) == "no op of posgan_fast is called"


def test_explain_takes_names_and_modules_only():
    with pytest.raises(TypeError, match="^target: expected the name of an op or a module, got function"):
        posgan_fast.explain(PF.bias_act, torch.zeros(1, 2))


@pytest.mark.parametrize(
    "call",
    [
        lambda x, backend: PF.bias_act(x, backend=backend),
        lambda x, backend: PF.bias_act_(x, backend=backend),
        lambda x, backend: PF.prologue2d(x, backend=backend),
        lambda x, backend: PF.upfirdn2d(x, None, backend=backend),
        lambda x, backend: PF.epilogue2d(x, backend=backend),
    ],
)
def test_a_backend_is_checked_also_where_there_is_nothing_to_do(call):
    x = torch.zeros(1, 2, 3, 3)
    with pytest.raises(ValueError, match=r"^backend: expected one of .*, got 'nonsense'"):
        call(x, "nonsense")
    with pytest.raises(TypeError, match="^backend: expected one of"):
        call(x, 3)
    with pytest.raises(BackendError, match="backend 'cuda' .from the backend argument. cannot run: x is on cpu"):
        call(x, "cuda")
