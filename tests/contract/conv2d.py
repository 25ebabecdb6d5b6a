"""The contract of conv2d: correlations in float64, and what every backend promises beside its values."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import pytest
import torch

from posgan_fast import functional as PF
from posgan_fast.ops.bias_act import ACTIVATIONS

from .common import DTYPES, LAYOUTS, each_act, each_dtype, oracle


@dataclass(frozen=True)
class Layer:
    """A use of the op; ``scaled``: "" for none, "number" or "vector"."""

    name: str
    kernel: tuple[int, int] = (3, 3)
    stride: int = 1
    padding: int = 1
    padding_mode: str = "zeros"
    scaled: str = ""
    biased: bool = True

    @property
    def arguments(self) -> dict[str, Any]:
        return dict(stride=self.stride, padding=self.padding, padding_mode=self.padding_mode)


LAYERS = (
    Layer("plain"),
    Layer("no padding", padding=0, scaled="number"),
    Layer("wide padding", padding=3),
    Layer("reflect", padding_mode="reflect", scaled="vector"),
    Layer("reflect by 2", padding=2, padding_mode="reflect"),
    Layer("stride 2", stride=2, scaled="vector"),
    Layer("stride 2, no padding", stride=2, padding=0),
    Layer("stride 3", stride=3, biased=False),
    Layer("one pixel", (1, 1), padding=0),
    Layer("uneven kernel", (2, 3), padding=1, scaled="number", biased=False),
)
each_layer = pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)


def tensors(layer, n=2, i=8, o=6, h=5, w=7, dtype=torch.float64, seed=0):
    """x, weight, bias and scale."""
    generator = torch.Generator().manual_seed(seed)

    def values(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    wide = torch.promote_types(dtype, torch.float32)
    scale = {"": None, "number": 0.3, "vector": values(o).to(wide)}[layer.scaled]
    bias = values(o).to(dtype) if layer.biased else None
    kernel = values(o, i, *layer.kernel) / (i * layer.kernel[0] * layer.kernel[1]) ** 0.5
    return values(n, i, h, w).to(dtype), kernel.to(wide), bias, scale


def answer(layer, x, weight, bias, scale, act="lrelu", clamp=4.0):
    row = ACTIVATIONS[act]
    activation = dict(act=act, alpha=row.alpha, gain=row.gain, clamp=clamp)
    return oracle.conv2d(x, weight, bias, scale, **layer.arguments, **activation)


def run(layer, x, weight, bias, scale, act="lrelu", clamp=4.0, backend=None):
    activation = dict(act=act, clamp=clamp)
    return PF.conv2d(x, weight, bias, scale=scale, backend=backend, **layer.arguments, **activation)


@functools.cache
def _case(layer, n, dtype):
    """Tensors for a call, and the answer that every backend and layout must give."""
    given = tensors(layer, n, dtype=dtype)
    return given, answer(layer, *given)


class Conv2dContract:
    @each_dtype
    @each_layer
    def test_value(self, layer, dtype, backend):
        """One sample and two, both layouts, in inference and in training."""
        for n in backend.some((1, 2), DTYPES.index(dtype)):
            (x, *rest), expected = _case(layer, n, dtype)
            for layout in LAYOUTS:
                for training in (False, True):
                    x = x.detach().contiguous(memory_format=layout).requires_grad_(training)
                    weight = rest[0].contiguous(memory_format=LAYOUTS[n - 1])
                    y = run(layer, *backend.put([x, weight, *rest[1:]]), backend=backend.name)
                    backend.assert_close(y, expected, "conv2d", dtype)
                    assert training or y.is_contiguous(memory_format=layout)

    @each_act
    def test_activations(self, act, backend):
        for clamp in (None, 0.75):
            given = tensors(LAYERS[0], 1, 8, 4, 5, 7, torch.float32)
            y = run(LAYERS[0], *backend.put(list(given)), act=act, clamp=clamp, backend=backend.name)
            backend.assert_close(y, answer(LAYERS[0], *given, act=act, clamp=clamp), "conv2d", torch.float32)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64], ids=str)
    @each_layer
    def test_an_empty_batch_and_one_filter(self, layer, dtype, backend):
        for n, i, o in ((0, 4, 1), (2, 8, 1)):
            given = tensors(layer, n, i, o, 6, 6, dtype)
            expected = run(layer, *given, backend="reference")
            y = run(layer, *backend.put(list(given)), backend=backend.name)
            assert y.shape == expected.shape and y.dtype == dtype
            if n:
                backend.assert_close(y, answer(layer, *given), "conv2d", dtype)
