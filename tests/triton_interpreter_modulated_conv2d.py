"""The Triton kernel of modulated_conv2d in Triton's interpreter: its contract and launch table; see test_triton.py."""

from __future__ import annotations

from dataclasses import replace

import cuda_on_cpu
import numpy as np
import pytest
import torch
import triton.language as tl
from contract.common import INTERPRETER
from contract.modulated_conv2d import Layer, ModulatedConv2dContract, answer, run, tensors
from interpreter import backend, force_64_bit_indices, numpy_warns, record_choices  # noqa: F401
from posgan_fast.kernels import modulated_conv2d as kernel
from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

pytestmark = numpy_warns

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
PLAIN, MAP, RING = (Layer(border or "plain", border=border) for border in ("", "map", "ring"))
ONE_PIXEL = Layer("one pixel", (1, 1), padding=0)
TO_RGB = replace(ONE_PIXEL, demodulate=False)
SMALL = tuple(row._replace(pixels=0) for row in kernel.TABLE)


class TestContract(ModulatedConv2dContract):
    """The contract in the interpreter."""


each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)
each_layer = pytest.mark.parametrize("layer", [PLAIN, MAP, RING, ONE_PIXEL, TO_RGB], ids=lambda layer: layer.name)


ROWS = [
    pytest.param(row, layer, dtype, id=f"{i}-{layer.name}-{dtype}")
    for i, row in enumerate(SMALL)
    for layer in ((PLAIN, MAP) if row.side == 3 else (ONE_PIXEL,))
    for dtype in DTYPES
    if dtype.itemsize == row.itemsize
]


@pytest.mark.parametrize("row,layer,dtype", ROWS)
def test_row(row, layer, dtype, calls, monkeypatch):
    """Every row of the launch table is chosen for the layers it says, and right there, in whole vectors or not."""
    chosen = record_choices(kernel, monkeypatch)
    i, o = 66 if row.channels == 128 else min(row.channels, 40), row.filters
    for less in (0, 1):
        check(layer, *tensors(layer, 1, i - less, o - less, 5, 15, dtype, less))
    assert set(chosen) == {row} and len(calls) == 2


@each_dtype
@pytest.mark.parametrize("n,noises,flip", [(1, 0, True), (2, 1, False), (2, 2, True)])
@each_layer
def test_layers(layer, n, noises, flip, dtype, calls):
    """Samples with styles, coefficients, borders and noise of their own."""
    layer = replace(layer, flip_weight=flip)
    x, weight, styles, _, bias, border = tensors(layer, n, 12, 3, 6, 9, dtype)
    noise = torch.randn(noises, 1, 6, 9, generator=torch.Generator().manual_seed(1)) if noises else None
    check(layer, x, weight, styles, noise, bias if noises else None, border)
    assert len(calls) == 1


@pytest.mark.parametrize(
    "layer,large",
    [(PLAIN, False), (MAP, False), (PLAIN, True), (RING, True), (ONE_PIXEL, True)],
    ids=lambda value: value.name if isinstance(value, Layer) else "64-bit" if value else "32-bit",
)
@pytest.mark.parametrize(
    "n,i,o,h,w", [(3, 2, 1, 1, 3), (2, 3, 5, 1, 18), (1, 17, 3, 8, 16), (1, 33, 18, 9, 5), (1, 8, 16, 17, 2)]
)
def test_ragged_sizes(n, i, o, h, w, layer, large, calls, monkeypatch):
    if large:
        force_64_bit_indices(kernel, monkeypatch)
    check(layer, *tensors(layer, n, i, o, h, w, torch.float16))
    assert len(calls) == 1


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x[:, :, 1:, 2:],
        lambda x: x[:, 8:],
        lambda x: x[:, 1:],
        lambda x: x[:, :, ::2, ::2],
        lambda x: x[:1].expand(2, -1, -1, -1),
        lambda x: x.flip(0)[:, :, :, :3],
    ],
)
@pytest.mark.parametrize("layer", [RING, ONE_PIXEL], ids=lambda layer: layer.name)
def test_views(view, layer, calls):
    x = view(torch.randn(2, 24, 7, 8).contiguous(memory_format=torch.channels_last)).half()
    _, *rest = tensors(layer, 2, x.shape[1], 6, *x.shape[2:], torch.float16)
    check(layer, x, *rest, keep=True)
    assert len(calls) == 1


@pytest.mark.parametrize("layer", [PLAIN, MAP, RING], ids=lambda layer: layer.name)
def test_float16_stays_in_range(layer, calls):
    """Weights and styles that would overflow, and a map in proportion to them: what float32 gives, in float16."""
    x, weight, styles, noise, bias, border = tensors(layer, dtype=torch.float32)
    weight, styles = weight * 300, styles * 500
    border = None if border is None else border * 500  # beyond float16 in places, were it not scaled
    exact = run(layer, x, weight, styles, noise, bias, border, clamp=None, backend="reference")
    half = x.half().contiguous(memory_format=torch.channels_last)
    y = run(layer, half, weight, styles, noise, bias.half(), border, clamp=None, backend="triton")
    assert len(calls) == 1 and y.isfinite().all()
    assert (y.float() - exact).norm() <= 2e-3 * exact.norm()


def test_an_empty_batch(calls):
    x, *rest = tensors(PLAIN, 0, dtype=torch.float16)
    y = run(PLAIN, x.contiguous(memory_format=torch.channels_last), *rest, backend="triton")
    assert y.shape == (0, 6, 5, 7)


def test_a_bad_map_is_refused():
    x, *rest, border = tensors(MAP, dtype=torch.float16)
    with pytest.raises(ValueError, match="pad_map: expected at least 7 x 9 pixels"):
        run(MAP, x.contiguous(memory_format=torch.channels_last), *rest, border[:, :, :6, :9], backend="triton")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("layer", [PLAIN, MAP, ONE_PIXEL, TO_RGB], ids=lambda layer: layer.name)
@pytest.mark.parametrize("n,flip", [(1, True), (3, False)])
def test_the_cuda_backend_takes_the_kernel(n, flip, layer, dtype, calls, monkeypatch):
    """Without a padding map, a weight for each sample holds the styles."""
    cuda_on_cpu.stand_in(monkeypatch, with_triton=True)
    layer = replace(layer, flip_weight=flip)
    x, *rest = tensors(layer, n, 12, 3, 6, 9, dtype)
    y = run(layer, x.contiguous(memory_format=torch.channels_last), *rest, backend="cuda")
    INTERPRETER.assert_close(y, answer(layer, x, *rest), "modulated_conv2d", dtype)
    if not (layer.border and dtype == torch.float16):  # whose map has to be scaled in step with its factors
        (call,) = calls
        assert (call[2] is None) == (not layer.border) and call[1].shape[0] == (3 if layer.border else 3 * n)


def test_the_stages_run_where_derivatives_are_asked_for(calls):
    x, *rest = tensors(PLAIN, dtype=torch.float16)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    assert run(PLAIN, x, *rest, backend="triton").requires_grad and not calls


@pytest.mark.parametrize(
    "layer",
    [
        Layer("up", up=2),
        Layer("down", down=2),
        Layer("wide padding", padding=3),
        Layer("uneven", (1, 3)),
        Layer("even", (2, 2)),
        Layer("5 x 5", (5, 5), padding=2),
        Layer("padded pixel", (1, 1), padding=1),
    ],
    ids=lambda layer: layer.name,
)
def test_other_layers_are_staged(layer, calls):
    check(layer, *tensors(layer, 1, dtype=torch.float32, o=3))
    assert not calls


def test_other_tensors_are_staged(calls):
    x, *rest = tensors(PLAIN, dtype=torch.float64)
    check(PLAIN, x, *rest)
    x, *rest = tensors(PLAIN, dtype=torch.float16)
    check(PLAIN, x, *rest, keep=True)  # NCHW
    check(PLAIN, *tensors(PLAIN, 1, 129, 3, dtype=torch.float16))
    check(PLAIN, *tensors(PLAIN, 1, 8, 129, dtype=torch.float16))
    assert not calls


def test_the_table_lists_layers_bound_by_memory(monkeypatch):
    """StyleGAN2's high resolutions and every toRGB in half precision, in float32 the latter only."""
    monkeypatch.undo()
    kernel.select.cache_clear()
    for resolution in (4, 8, 16, 32, 64, 128, 256, 512, 1024):
        c = min(32768 // resolution, 512)
        for arch in (80, 90, 100):
            assert (kernel.select(arch, 2, 3, c, c, resolution**2) is not None) == (c <= 128)
            assert kernel.select(arch, 4, 3, c, c, resolution**2) is None
            for itemsize in (2, 4):
                assert kernel.select(arch, itemsize, 1, c, 3, resolution**2) is not None
            assert kernel.select(arch, 8, 1, c, 3, resolution**2) is None
    assert kernel.select(90, 2, 3, 32, 32, 2**16 - 1) is None


def test_compiles_to_one_graph(calls):
    x, *rest = tensors(MAP, dtype=torch.float16)
    given = [x.contiguous(memory_format=torch.channels_last), *rest]
    compiled = torch.compile(lambda *given: run(MAP, *given, backend="triton"), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(*given), run(MAP, *given, backend="triton"))
    assert len(calls) == 2


def check(layer, x, *rest, keep=False, **activation):
    """Compare with the definition; ``keep``: x as it lies in memory, else in channels_last."""
    x = x if keep else x.contiguous(memory_format=torch.channels_last)
    y = run(layer, x, *rest, **activation, backend="triton")
    assert y.stride() == run(layer, x, *rest, **activation, backend="reference").stride()
    INTERPRETER.assert_close(y, answer(layer, x, *rest, **activation), "modulated_conv2d", x.dtype)


@pytest.fixture(autouse=True)
def small_layers(monkeypatch):
    """The interpreter's time is the number of programs: every row serves few pixels."""
    select = kernel.select
    select.cache_clear()
    monkeypatch.setattr(kernel, "TABLE", SMALL)
    yield
    select.cache_clear()


@pytest.fixture(autouse=True)
def products_of_bfloat16(monkeypatch):
    """The interpreter multiplies the bits of bfloat16; a GPU, their values."""
    create_dot = InterpreterBuilder.create_dot

    def wide(handle):
        if handle.dtype.scalar.name != "bf16":
            return handle
        return TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)

    monkeypatch.setattr(
        InterpreterBuilder, "create_dot", lambda self, a, b, *rest: create_dot(self, wide(a), wide(b), *rest)
    )


@pytest.fixture
def calls(monkeypatch):
    """The calls that the fused kernel got."""
    made, launch = [], kernel.modulated_conv2d
    monkeypatch.setattr(kernel, "modulated_conv2d", lambda *args: made.append(args) or launch(*args))
    return made
