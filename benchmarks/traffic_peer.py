"""Runs NVlabs' networks from a checkout as on a GPU, on tensors of the device "meta".

Their plugins of CUDA code become records of what one of their kernels reads and writes; the autograd functions around
them run as they are. A plugin's kernel loads each tensor that it is given and stores its result, in one launch. Nothing
of the checkout is copied or changed.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch._prims_common import suggest_memory_format

from . import peers, traffic_counter
from .traffic_cuda import META


class Plugin:
    """Stands in for both plugins: the functions have the positions of theirs."""

    @staticmethod
    def upfirdn2d(x, f, upx, upy, downx, downy, padx0, padx1, pady0, pady1, flip, gain):
        h = (x.shape[2] * upy + pady0 + pady1 - f.shape[0]) // downy + 1
        w = (x.shape[3] * upx + padx0 + padx1 - f.shape[1]) // downx + 1
        y = torch.empty((*x.shape[:2], h, w), dtype=x.dtype, device=x.device, memory_format=suggest_memory_format(x))
        traffic_counter.record("plugin upfirdn2d", (x, f), (y,))
        return y

    @staticmethod
    def bias_act(x, b, xref, yref, dy, grad, *settings):
        y = torch.empty_like(x)
        traffic_counter.record("plugin bias_act", (x, b, xref, yref, dy), (y,))  # those that it lacks are empty
        return y


class NVlabs:
    """The networks and layers of a checkout of stylegan2-ada-pytorch or stylegan3."""

    name = "nvlabs"

    def __init__(self, checkout: Path) -> None:
        self.networks = peers.nvlabs_networks(checkout, META)[0]
        self.is_ada = self.networks.__name__ == "training.networks"
        self._ops = [importlib.import_module(f"torch_utils.ops.{op}") for op in ("upfirdn2d", "bias_act")]

    def refuses(self, kind: str, dtype: str) -> str | None:
        """Return why a layer or a network does not run in a dtype, or None."""
        if dtype not in ("float16", "float32"):
            return "its plugins have no bfloat16"
        if kind != "layer" and dtype == "float16" and not self.is_ada:
            return "networks of stylegan3 fall back to float32 on every other device than cuda; take stylegan2-ada's"
        return None

    @contextlib.contextmanager
    def as_on_cuda(self) -> Iterator[None]:
        """Let its ops take their CUDA path, with the plugins replaced."""
        with contextlib.ExitStack() as stack:
            for module in self._ops:
                op = module.__name__.rpartition(".")[2]
                stack.enter_context(mock.patch.object(module, "_plugin", Plugin))
                stack.enter_context(mock.patch.object(module, op, _cuda_path(module, op)))
            upfirdn2d = self._ops[0]
            on_meta = functools.partial(upfirdn2d.setup_filter, device=META)  # by default it takes the CPU
            stack.enter_context(mock.patch.object(upfirdn2d, "setup_filter", on_meta))
            yield

    def layer(self, name: str, channels: int, size: int) -> Any:
        """Make one of the layers that :mod:`benchmarks.traffic_calls` names."""
        if name == "torgb":
            return self.networks.ToRGBLayer(channels, 3, 512, conv_clamp=256)
        if name == "pair":
            return torch.nn.ModuleList(self.layer(part, channels, size) for part in ("up", "plain"))
        return self.networks.SynthesisLayer(channels, channels, 512, size, up=2 if name == "up" else 1, conv_clamp=256)

    def call_layer(self, layer: Any, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        """Run a layer as a block of its network does: with one weight for each sample in inference, except where
        stylegan2-ada scales a batch in float16 instead."""
        if isinstance(layer, torch.nn.ModuleList):
            for part in layer:
                x = self.call_layer(part, x, w)
            return x
        scales = layer.training or (self.is_ada and x.dtype == torch.float16 and x.shape[0] > 1)
        noise = {} if isinstance(layer, self.networks.ToRGBLayer) else {"noise_mode": _noise_mode(layer)}
        return layer(x, w, fused_modconv=not scales, **noise)

    def generator(self, size: int, dtype: str) -> Any:
        """Make a generator; in float16 its four last resolutions are, as in NVlabs' own training."""
        options = _mixed(dtype)
        extra = {"synthesis_kwargs": options} if self.is_ada else options
        return self.networks.Generator(512, 0, 512, size, 3, mapping_kwargs=dict(num_layers=8), **extra)

    def discriminator(self, size: int, dtype: str) -> Any:
        return self.networks.Discriminator(0, size, 3, **_mixed(dtype))


def _cuda_path(module: Any, op: str) -> Any:
    """Return an op that skips the question for the device, with the signature of the original."""
    signature = inspect.signature(getattr(module, op))
    make = getattr(module, f"_{op}_cuda")

    def call(*args: Any, **kwargs: Any) -> torch.Tensor:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        x, second, *_ = bound.arguments.values()
        settings = dict(list(bound.arguments.items())[2:])
        del settings["impl"]
        return make(**settings).apply(x, second)

    return call


def _mixed(dtype: str) -> dict[str, Any]:
    return dict(num_fp16_res=4, conv_clamp=256) if dtype == "float16" else dict(num_fp16_res=0, conv_clamp=None)


def _noise_mode(layer: Any) -> str:
    return "random" if layer.training else "const"
