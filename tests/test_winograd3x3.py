"""Winograd's convolution: its values on every instruction set, what it leaves to the vendor, and prepared weights."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest
import torch
from torch.nn import functional as F

from posgan_fast import _native, nn, use_backend
from posgan_fast.models import PadInvEncoder
from posgan_fast.models.iresnet import Bottleneck
from posgan_fast.ops import winograd3x3
from posgan_fast.ops.modulated_conv2d import weight_cache

ISAS = ("avx512", "avx2", "baseline")

pytestmark = pytest.mark.skipif(not _native.load("cpu").loaded, reason="needs the CPU library")


def reference(x, weight, in_scale=None, in_shift=None, scale=None, shift=None, slope=None):
    """The docstring's formula in float64."""

    def column(t, otherwise):
        return otherwise if t is None else t.double()[:, None, None]

    z = x.double() * column(in_scale, 1) + column(in_shift, 0)
    y = F.conv2d(z, weight.double(), padding=1) * column(scale, 1) + column(shift, 0)
    return y if slope is None else F.prelu(y, slope.double())


def error(found, expected):
    return float((found.double() - expected).norm() / expected.norm())


_CASES = """
    import sys
    import torch
    sys.path.insert(0, "tests")
    from posgan_fast import _native
    from posgan_fast.ops import winograd3x3
    from test_winograd3x3 import error, reference

    assert _native.instruction_set() == sys.argv[1]
    random = torch.Generator().manual_seed(int(sys.argv[2]))
    draw = lambda *shape: torch.randn(shape, generator=random)
    pick = lambda low, high: int(torch.randint(low, high + 1, (), generator=random))
    for case in range(350):
        n, h, w, i, o = pick(1, 3), pick(1, 19), pick(1, 19), 16 * pick(1, 4), 16 * pick(1, 4)
        x, weight = draw(n, i, h, w), draw(o, i, 3, 3)
        x = x if pick(0, 1) else x.contiguous(memory_format=torch.channels_last)
        strided = weight.contiguous(memory_format=torch.channels_last), weight.transpose(2, 3)
        weight = [weight, *strided][pick(0, 2)]
        sizes = dict(in_scale=i, in_shift=i, scale=o, shift=o, slope=o)
        factors = {name: draw(size) for name, size in sizes.items() if pick(0, 1)}
        y = winograd3x3.conv2d(x, weight, **factors)
        found = error(y, reference(x, weight, **factors))
        assert y.is_contiguous(memory_format=torch.channels_last)
        assert found < 3e-6, (case, found, n, h, w, i, o, factors.keys())
"""


@pytest.mark.parametrize("instruction_set", ISAS)
def test_generated_calls_agree_with_float64(instruction_set):
    """350 on each instruction set; the bound is three times the greatest error that was seen, 1e-6."""
    available = ISAS[ISAS.index(_native.instruction_set()) :]
    if instruction_set not in available:
        pytest.skip(f"this machine has no {instruction_set}")
    environment = os.environ | {"POSGAN_FAST_ISA": instruction_set}
    command = [sys.executable, "-c", textwrap.dedent(_CASES), instruction_set, str(ISAS.index(instruction_set))]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(("channels", "side"), [(64, 32), (128, 24), (256, 16), (512, 16)])
def test_errors_on_the_encoders_layers_stay_below_the_bound(channels, side):
    """Relative L2 against float64 below 5e-6; a direct convolution has about a quarter of it."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(1, channels, side, side, generator=random)
    weight = torch.randn(channels, channels, 3, 3, generator=random)
    assert error(winograd3x3.conv2d(x, weight), reference(x, weight)) < 5e-6


def test_bits_depend_on_neither_threads_nor_other_samples():
    x, weight = torch.randn(3, 32, 21, 18), torch.randn(48, 32, 3, 3)
    together = winograd3x3.conv2d(x, weight)
    threads = torch.get_num_threads()
    try:
        for count in (1, 2, 5):
            torch.set_num_threads(count)
            assert torch.equal(winograd3x3.conv2d(x, weight), together)
            assert torch.equal(winograd3x3.conv2d(x[1:2], weight), together[1:2])
    finally:
        torch.set_num_threads(threads)


def test_a_number_that_is_not_finite_spoils_the_results_of_its_tiles_only():
    x, weight = torch.randn(1, 16, 16, 16), torch.randn(16, 16, 3, 3)
    clean = winograd3x3.conv2d(x, weight)
    x[0, 3, 5, 5] = float("nan")
    spoilt = winograd3x3.conv2d(x, weight)
    expected = torch.zeros(16, 16, dtype=torch.bool)
    expected[4:8, 4:8] = True
    assert torch.equal(spoilt[0].isnan().any(0), expected)
    assert torch.equal(spoilt[:, :, ~expected], clean[:, :, ~expected])


def test_calls_that_it_does_not_serve():
    x, weight = torch.randn(1, 16, 16, 16), torch.randn(32, 16, 3, 3)
    assert not winograd3x3.usable(x, weight)  # a derivative may follow
    with torch.no_grad():
        assert winograd3x3.usable(x, weight)
        assert not winograd3x3.usable(x.double(), weight.double())
        assert not winograd3x3.usable(x, torch.randn(32, 16, 5, 5))
        assert not winograd3x3.usable(x, torch.randn(24, 16, 3, 3))
        assert not winograd3x3.usable(x[:, :, :12, :12], weight)
        assert not winograd3x3.usable(x[:0], weight)
        large = torch.empty(512, 256, 3, 3)
        assert not winograd3x3.usable(torch.empty(1, 256, 32, 32), large)
        weight_cache.keep(large)
        assert winograd3x3.usable(torch.empty(1, 256, 32, 32), large)
        with use_backend("reference"):
            assert not winograd3x3.usable(x, weight)
        with torch.autocast("cpu", torch.bfloat16):
            assert not winograd3x3.usable(x, weight)
        seen = []
        torch.func.vmap(lambda one: seen.append(winograd3x3.usable(one, weight)) or one)(x[None])
        assert seen == [False]


@pytest.mark.parametrize(("channels", "stride"), [((32, 32), 1), ((32, 32), 2), ((16, 32), 2)])
def test_a_block_of_the_encoder_agrees_with_its_layers(channels, stride):
    block = Bottleneck(*channels, stride).eval()
    for name, value in [*block.named_parameters(), *block.named_buffers()]:
        if value.is_floating_point():
            torch.nn.init.uniform_(value, 0.3, 1.5) if "var" in name else torch.nn.init.normal_(value)
    x = torch.randn(2, channels[0], 20, 22)
    expected = block.double()(x.double()).detach()
    block.float()
    with torch.no_grad():
        assert winograd3x3.usable(x, block.res_layer[1].weight)
        assert error(block(x), expected) < 5e-6
        with use_backend("reference"):
            assert error(block(x), expected) < 5e-6


def test_prepared_weights_give_the_same_bits_and_notice_changes():
    encoder = PadInvEncoder(32, num_ws=2, levels=(1, 1, 0), width=16, padding=None).eval()
    images = torch.rand(4, 3, 32, 32)
    with torch.no_grad():
        plain = encoder(images)[0]
        nn.prepack(encoder)
        weight = encoder.backbone_stages[1][1].res_layer[1].weight
        assert weight_cache.keeps(weight)
        assert torch.equal(encoder(images)[0], plain) and torch.equal(encoder(images)[0], plain)
        weight.data.mul_(1.5)
        changed = encoder(images)[0]
        nn.prepack(encoder, enable=False)
        assert not torch.equal(changed, plain) and torch.equal(encoder(images)[0], changed)


@pytest.mark.parametrize(
    "change",
    [
        lambda x, u, y: (x[:, :8], u, y[:, :8]),
        lambda x, u, y: (x, u[:-1], y),
        lambda x, u, y: (x.contiguous(), u, y),
        lambda x, u, y: (x.double(), u, y),
        lambda x, u, y: (x, u, y[:, :, :-1]),
        lambda x, u, y: (x[:0], u, y[:0]),
    ],
)
def test_the_native_op_refuses_what_does_not_fit(change):
    """It checks the memory that it reads, whoever calls it."""
    x = torch.randn(1, 16, 8, 8).contiguous(memory_format=torch.channels_last)
    u, y = torch.zeros(36 * 16 * 32), torch.empty_like(x)
    with pytest.raises(RuntimeError, match="winograd3x3: "):
        x, u, y = change(x, u, y)
        torch.ops.posgan_fast_native.winograd3x3(x, u, None, None, None, None, None, y)
