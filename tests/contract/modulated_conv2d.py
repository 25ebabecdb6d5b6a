"""The contract of modulated_conv2d: its definition sample by sample, and what every backend promises beside it."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from posgan_fast import functional as PF
from posgan_fast.ops.bias_act import ACTIVATIONS

from .common import DTYPES, LAYOUTS, each_act, each_dtype, oracle

FILTER = PF.setup_filter([1, 3, 3, 1])


@dataclass(frozen=True, eq=False)
class Layer:
    """A use of the op; ``border``: "map" or "ring"."""

    name: str
    kernel: tuple[int, int] = (3, 3)
    up: int = 1
    down: int = 1
    padding: int = 1
    border: str = ""
    demodulate: bool = True
    flip_weight: bool = True
    f: torch.Tensor | None = FILTER

    @property
    def arguments(self) -> dict[str, Any]:
        return dict(
            up=self.up, down=self.down, padding=self.padding, demodulate=self.demodulate, flip_weight=self.flip_weight
        )


LAYERS = (
    Layer("plain"),
    Layer("plain, convolution", flip_weight=False),
    Layer("no padding", padding=0),
    Layer("wide padding", padding=3),
    Layer("toRGB", (1, 1), padding=0, demodulate=False),
    Layer("up", up=2, flip_weight=False),
    Layer("up, correlation", up=2),
    Layer("up, no padding", up=2, padding=0),
    Layer("up, wide padding", up=2, padding=2, flip_weight=False),
    Layer("up by 3, uneven kernel", (2, 3), up=3, padding=2, f=PF.setup_filter([1, 2, 3, 4, 5, 6], separable=True)),
    Layer("up, no filter", up=2, f=None),
    Layer("up, one pixel", (1, 1), up=2, padding=0),
    Layer("down", down=2),
    Layer("down, one pixel", (1, 1), down=2, padding=0),
    Layer("down, no filter", down=2, f=None),
    Layer("map", border="map"),
    Layer("ring", border="ring"),
    Layer("map, up", up=2, border="map", flip_weight=False),
    Layer("ring, up", up=2, border="ring"),
)
each_layer = pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)


def tensors(layer, n=2, i=8, o=6, h=5, w=7, dtype=torch.float64, seed=0):
    """x, weight, styles, noise, bias and the border."""
    generator = torch.Generator().manual_seed(seed)

    def values(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    wide = torch.promote_types(dtype, torch.float32)
    x, weight, styles = values(n, i, h, w).to(dtype), values(o, i, *layer.kernel).to(wide), values(n, i).to(wide)
    border = None
    if layer.border:
        h, w, c = (h, w, i) if layer.up == 1 else (2 * h + 1, 2 * w + 1, o)
        border = values(n, c, h + 5, w + 4) if layer.border == "map" else values(n, c, 2 * (h + w) + 4)
        border = border.to(dtype)
    out = PF.modulated_conv2d(x, weight, styles, resample_filter=layer.f, backend="reference", **layer.arguments)
    noise = values(1, 1, *out.shape[2:]).to(wide)
    return x, weight, styles, noise, values(o).to(dtype), border


# The clamp bounds some values, not so many that errors would be measured against it alone.
def answer(layer, x, weight, styles, noise, bias, border, act="lrelu", clamp=4.0):
    if oracle is None:
        wide = [None if t is None else t.double() for t in (x, weight, styles, noise, bias, border)]
        return run(layer, *wide, act=act, clamp=clamp, backend="reference")
    row = ACTIVATIONS[act]
    return oracle.modulated_conv2d(
        x, weight, styles, layer.up, layer.down, layer.padding, border, layer.f, layer.demodulate, layer.flip_weight,
        noise, bias, act, row.alpha, row.gain, clamp,
    )  # fmt: skip


def run(layer, x, weight, styles, noise, bias, border, act="lrelu", clamp=4.0, backend=None):
    return PF.modulated_conv2d(
        x, weight, styles, pad_map=border, resample_filter=layer.f, noise=noise, bias=bias, act=act, clamp=clamp,
        backend=backend, **layer.arguments,
    )  # fmt: skip


@functools.cache
def _case(layer, n, dtype):
    """Tensors for a call, and the answer that every backend and layout must give."""
    given = tensors(layer, n, dtype=dtype)
    return given, answer(layer, *given)


class ModulatedConv2dContract:
    @each_dtype
    @each_layer
    def test_value(self, layer, dtype, backend):
        """One sample and two, both layouts, with the op of inference; one of them with the stages of training."""
        d = DTYPES.index(dtype)
        for n in backend.some((1, 2), d):
            (x, *rest), expected = _case(layer, n, dtype)
            calls = [(layout, False) for layout in LAYOUTS] + [(LAYOUTS[d // 2], True)] * (n == 1 + d % 2)
            for layout, training in calls:
                x = x.detach().contiguous(memory_format=layout).requires_grad_(training)
                y = run(layer, *backend.put([x, *rest]), backend=backend.name)
                backend.assert_close(y, expected, "modulated_conv2d", dtype)
                assert training or y.is_contiguous(memory_format=layout)

    @each_act
    def test_activations(self, act, backend):
        for clamp in (None, 0.75):
            given = tensors(LAYERS[0], 1, 8, 4, 5, 7, torch.float32)
            y = run(LAYERS[0], *backend.put(list(given)), act=act, clamp=clamp, backend=backend.name)
            backend.assert_close(y, answer(LAYERS[0], *given, act=act, clamp=clamp), "modulated_conv2d", torch.float32)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
    @each_layer
    def test_an_empty_batch_and_one_filter(self, layer, dtype, backend):
        for n, i, o in ((0, 4, 1), (0, 8, 6), (2, 8, 1)):
            given = tensors(layer, n, i, o, 6, 6, dtype)
            expected = run(layer, *given, backend="reference")
            y = run(layer, *backend.put(list(given)), backend=backend.name)
            assert y.shape == expected.shape and y.stride() == expected.stride() and y.dtype == dtype
            if n:
                backend.assert_close(y, answer(layer, *given), "modulated_conv2d", dtype)

    @pytest.mark.parametrize("up", [1, 2])
    def test_a_map_is_read_only_and_only_its_ring_counts(self, up, backend):
        layer = Layer("map", up=up, border="map")
        *given, border = tensors(layer)
        before = border.clone()
        y = run(layer, *given, border, backend=backend.name)
        assert torch.equal(border, before)
        h, w = (5, 7) if up == 1 else (11, 15)
        ring = PF.ring_from_map(border, h, w)
        assert torch.equal(run(layer, *given, ring, backend=backend.name), y)
        assert torch.equal(run(layer, *given, PF.map_from_ring(ring, h, w), backend=backend.name), y)

    @pytest.mark.parametrize(
        "layer", [Layer("plain"), Layer("map", border="map"), Layer("ring, up", up=2, border="ring")]
    )
    def test_float16_stays_in_range(self, layer, backend):
        """Weights and styles that would overflow, with a map in proportion, give in float16 what float32 gives."""
        x, weight, styles, noise, bias, border = tensors(layer, dtype=torch.float32)
        weight, styles = weight * 300, styles * 500
        border = None if border is None else border * 60
        given = (noise, bias, border)
        exact = run(layer, x, weight, styles, *given)
        half = [None if t is None else t.half() for t in (x, *given)]
        y = run(layer, half[0], weight, styles, *half[1:], backend=backend.name)
        assert y.isfinite().all()
        assert (y.float() - exact).norm() <= 2e-3 * exact.norm()

    @pytest.mark.parametrize("layer", [LAYERS[15], LAYERS[18]], ids=lambda layer: layer.name)
    @pytest.mark.parametrize("size", [1e-7, 0.0])
    def test_float16_stays_in_range_beside_a_large_map(self, layer, backend, size):
        """A map far larger than the features counts on its ring alone, and leaves other samples and filters alone."""
        x, weight, styles, noise, bias, border = tensors(layer, dtype=torch.float32)
        styles[0] *= size
        weight[1] *= 1e-6
        if border.ndim == 4:
            border = PF.map_from_ring(PF.ring_from_map(border, 5, 7), 5, 7)
            border[:, :, 1:-1, 1:-1] = float("inf")
        exact = run(layer, x, weight, styles, noise, bias, border, clamp=1e3)
        half = (None if t is None else t.half() for t in (noise, bias))
        y = run(layer, x.half(), weight, styles, *half, border, backend=backend.name, clamp=1e3)
        assert y.isfinite().all()
        for n in range(2):
            assert (y.float() - exact)[n].norm() <= 2e-3 * exact[n].norm()

    def test_float16_sums_over_a_whole_ring(self, backend):
        """A sum of equal signs over every channel stays in range because of the ring's own factor."""
        x, styles = torch.zeros(1, 2048, 1, 1), torch.ones(1, 2048)
        weight, ring = torch.full((2, 2048, 3, 3), 1e-9), torch.full((1, 2048, 8), 2e3)
        exact = PF.modulated_conv2d(x, weight, styles, padding=1, pad_map=ring)
        y = PF.modulated_conv2d(x.half(), weight, styles, padding=1, pad_map=ring, backend=backend.name)
        assert 100 < exact.max() < 1000
        torch.testing.assert_close(y.float(), exact, rtol=2e-3, atol=0)
