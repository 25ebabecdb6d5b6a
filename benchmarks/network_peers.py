"""Makes the networks and layers of other projects beside ours, with the same weights where both have them."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from . import network_calls, peers


def nvlabs_module(checkout: Path | None, device: torch.device) -> tuple[Any, str]:
    """Return NVlabs' networks, or None, and why they run on their plain torch path on CUDA, or ""."""
    return (None, "") if checkout is None else peers.nvlabs_networks(checkout, device)


def pair(
    size: int, device: torch.device, nvlabs: Any, kind: str = "Generator", precision: str = "float32"
) -> tuple[Any, Any]:
    """Make our network, and NVlabs' with the same weights, or None where they have no such network.

    Args:
        nvlabs: the module of NVlabs' networks, or None.
        kind: "Generator" or "Discriminator".
        precision: one of ``network_calls.PRECISIONS``.
    """
    make = network_calls.generator if kind == "Generator" else network_calls.discriminator
    ours = make(size, device, **network_calls.settings(precision))
    if nvlabs is None or precision not in network_calls.NVLABS_PRECISIONS:
        return ours, None
    options = network_calls.HALF if network_calls.settings(precision) else dict(num_fp16_res=0, conv_clamp=None)
    if kind == "Generator":
        extra = {"synthesis_kwargs": options} if nvlabs.__name__ == "training.networks" else options
        peer = nvlabs.Generator(512, 0, 512, size, 3, mapping_kwargs=dict(num_layers=8), **extra)
    else:
        peer = nvlabs.Discriminator(0, size, 3, **options)
    peer.load_state_dict(ours.state_dict())
    return ours, peer.to(device).eval()


def nvlabs_op(nvlabs: Any, x: Any, bias: Any, act: str, clamp: float, **arguments: Any) -> Callable[[], torch.Tensor]:
    """A call of NVlabs' functions with the arguments of ``modulated_conv2d``."""
    from torch_utils.ops import bias_act  # type: ignore[import-not-found]  # the checkout's

    x = x.contiguous()
    return lambda: bias_act.bias_act(nvlabs.modulated_conv2d(x=x, **arguments), bias, act=act, clamp=clamp)


def nvlabs_layer(nvlabs: Any, layer: network_calls.Layer, ours: torch.nn.Module) -> Any:
    """A layer of NVlabs' with the weights of ours."""
    if layer.kind == "torgb":
        peer = nvlabs.ToRGBLayer(layer.inner, 3, 512, conv_clamp=256)
    else:
        up = 2 if layer.kind == "up" else 1
        peer = nvlabs.SynthesisLayer(layer.inner, layer.outer, 512, layer.resolution, up=up, conv_clamp=256)
    peer.load_state_dict(ours.state_dict())
    return peer.to(next(ours.parameters()).device).eval()


def rosinality_generator(checkout: Path, size: int, device: torch.device) -> Any:
    """A generator of rosinality's, with weights of its own; building its extensions is up to its import."""
    sys.path.insert(0, str(checkout))
    try:
        model = importlib.import_module("model")
    finally:
        sys.path.remove(str(checkout))
    torch.manual_seed(0)
    return model.Generator(size, 512, 8).to(device).eval()
