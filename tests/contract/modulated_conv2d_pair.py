"""The contract of two style layers in succession, on any device."""

from __future__ import annotations

import pytest
import torch
from tolerances import TOLERANCES

from contract.common import each_dtype
from posgan_fast import functional as PF
from posgan_fast.ops.modulated_conv2d import pair


def layers(**second):
    """Return the arguments of an enlarging layer in float64, and a function that returns those of a layer behind it."""

    def arguments(x, i, o, size, **others):
        given = dict(
            x=x, weight=torch.randn(o, i, 3, 3), styles=torch.randn(3, i), up=1, down=1, padding=1, pad_map=None,
            resample_filter=None, demodulate=True, flip_weight=True, noise=torch.randn(3, 1, size, size),
            noise_strength=torch.tensor(0.4), bias=torch.randn(o), act="lrelu", alpha=None, gain=None, clamp=2.0,
            eps=1e-8, backend=None,
        )  # fmt: skip
        return given | others

    up = dict(up=2, flip_weight=False, resample_filter=PF.setup_filter([1, 3, 3, 1]))
    first = arguments(torch.randn(3, 8, 5, 5), 8, 4, 10, **up)
    following = arguments(None, 4, 6, 10, **second)
    return first, following


def reference(first, following):
    def call(given, x):
        wide = {k: v.double() if isinstance(v, torch.Tensor) else v for k, v in given.items()}
        return PF.modulated_conv2d(**wide | dict(x=x.double(), backend="reference"))

    return call(following, call(first, first["x"]))


class ModulatedConv2dPairContract:
    """Subclasses run it on ``DEVICE``."""

    DEVICE = "cpu"

    @pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
    @pytest.mark.parametrize("act", ["lrelu", "swish"])
    @each_dtype
    def test_values(self, dtype, act, layout):
        """One kernel enlarges, finishes and scales; behind a smooth activation and in float64 there are two."""
        first, following = layers(act=act)
        first |= dict(x=first["x"].to(dtype).contiguous(memory_format=layout), act=act)
        expected = reference(first, following)
        there = [{k: _there(v, self.DEVICE) for k, v in given.items()} for given in (first, following)]
        with torch.no_grad():
            y = pair.modulated_conv2d_pair(there[0], lambda x: there[1] | dict(x=x))
        assert y.is_contiguous(memory_format=layout) and y.dtype == dtype
        two_layers = 2 * TOLERANCES["modulated_conv2d", dtype][0]
        assert (y.cpu().double() - expected).norm() < two_layers * expected.norm()


def _there(value, device):
    return value.to(device) if isinstance(value, torch.Tensor) else value
