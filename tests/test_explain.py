"""explain() of whole modules, and a refused backend even where an op has nothing to do."""

from __future__ import annotations

import copy
from collections import Counter

import pytest
import torch

import posgan_fast
from posgan_fast import functional as PF
from posgan_fast import nn
from posgan_fast.backend import BackendError
from posgan_fast.models import Discriminator, Generator


@pytest.mark.parametrize("training", [False, True])
def test_a_network_is_explained_call_by_call_and_left_as_it_was(training):
    generator = Generator(16, channel_max=8, mapping_layers=2).train(training)
    z = torch.randn(2, 512)
    before, drawn = copy.deepcopy(generator.state_dict()), torch.get_rng_state()
    choices = posgan_fast.explain(generator, z)
    counts = Counter()
    for choice, count in choices.counts:
        counts[choice.op] += count
    assert counts == {"bias_act": 2, "modulated_conv2d": 8, "upfirdn2d": 2}  # two layers of mapping, 4, 8 and 16 pixels
    assert "3 x modulated_conv2d: " in str(choices)  # toRGB
    assert all(torch.equal(before[name], value) for name, value in generator.state_dict().items())
    assert torch.equal(drawn, torch.get_rng_state()), "no random numbers are drawn"


@pytest.mark.parametrize("network, x", [(Generator, torch.randn(1, 512)), (Discriminator, torch.randn(1, 3, 16, 16))])
def test_blocks_of_float16_are_noted_where_they_run_in_float32(network, x):
    note = "note: blocks of float16 run in float32 on the CPU, which is slow in float16"
    half = network(16, channel_max=8, num_fp16_res=2, conv_clamp=256)
    explained = posgan_fast.explain(half, x)
    assert str(explained).endswith("\n" + note) and len(explained.notes) == 1
    full = network(16, channel_max=8), network(16, channel_max=8, num_fp16_res=2, half_dtype="bfloat16")
    others = [posgan_fast.explain(one, x) for one in full] + [posgan_fast.explain(half, x, force_fp32=True)]
    others.append(posgan_fast.explain(half.to("meta"), x.to("meta")))
    with torch.autocast("cpu", torch.bfloat16):
        others.append(posgan_fast.explain(half.to_empty(device="cpu"), x))
    assert not any(other.notes or "note" in str(other) for other in others)


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


class _Stateful(torch.nn.Module):
    """Whatever a forward may write to: buffers, attributes, its input."""

    def __init__(self):
        super().__init__()
        self.register_buffer("mean", torch.zeros(()))
        self.norm = torch.nn.BatchNorm2d(4)

    def forward(self, x):
        if not hasattr(self, "bias"):
            self.bias = torch.ones(4)
        self.mean += 1
        self.mean = self.mean + x.mean()
        x.add_(1)
        return PF.bias_act(self.norm(x), self.bias, act="lrelu", backend="reference")


def test_a_module_and_its_input_stay_as_they_are():
    module, x = _Stateful(), torch.zeros(1, 4, 2, 2)
    before = copy.deepcopy(module.state_dict())
    ((choice, _),) = posgan_fast.explain(module, x).counts
    assert choice.backend == "reference" and "chosen by the backend argument" in str(choice)
    assert not hasattr(module, "bias") and not x.any()
    torch.testing.assert_close(module.state_dict(), before, rtol=0, atol=0)


def test_a_compiled_module_is_explained():
    compiled = torch.compile(nn.BiasAct(4, act="lrelu"), backend="eager")
    assert [count for _, count in posgan_fast.explain(compiled, torch.zeros(1, 4, 2, 2)).counts] == [1]


def test_modules_that_fake_tensors_cannot_run_are_refused_and_left_alone():
    class Reads(torch.nn.Module):
        def forward(self, x):
            return x * x.sum().item()

    with pytest.raises(ValueError, match="^target: expected a forward that reads no values"):
        posgan_fast.explain(Reads(), torch.zeros(1))
    lazy = torch.nn.Sequential(torch.nn.LazyConv2d(4, 3), nn.BiasAct(4))
    with pytest.raises(ValueError, match="^target: expected parameters with a shape, got a lazy module"):
        posgan_fast.explain(lazy, torch.zeros(1, 3, 8, 8))
    assert lazy(torch.zeros(1, 3, 8, 8)).shape == (1, 4, 6, 6)


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
