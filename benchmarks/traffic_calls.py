"""The layers and networks whose traffic is counted, in training and in inference.

A layer in half precision has features of that dtype and parameters in float32, which it casts. A network in half
precision runs under autocast, in NVlabs' code by its own setting. In training modules draw noise anew, in inference
theirs is constant. Optimisers and scalers of gradients are not counted.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from posgan_fast import nn
from posgan_fast.models import Discriminator, Generator
from posgan_fast.nn.style_pair import run_pair

from . import network_calls
from .subjects import DTYPES
from .traffic_counter import Counter, Traffic
from .traffic_cuda import META, autocast, meta_as_cuda

LAYERS = ("plain", "up", "pair", "torgb")  # pair: the two convolutions of a block, "up" and "plain"
NETWORKS = {  # kind and size of the images
    "generator64": ("generator", 64),
    "generator256": ("generator", 256),
    "generator1024": ("generator", 1024),
    "discriminator256": ("discriminator", 256),
    "training256": ("training", 256),
}


class Contender(Protocol):
    """An implementation of the layers and networks."""

    name: str

    def refuses(self, kind: str, dtype: str) -> str | None: ...
    def as_on_cuda(self) -> contextlib.AbstractContextManager[None]: ...
    def layer(self, name: str, channels: int, size: int) -> Any: ...
    def call_layer(self, layer: Any, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor: ...
    def generator(self, size: int, dtype: str) -> Any: ...
    def discriminator(self, size: int, dtype: str) -> Any: ...


class Ours:
    """The layers and networks of this package; ``settings`` are further arguments of the networks.

    A setting that makes a network mix dtypes by itself is counted with the dtype float32, which adds no autocast.
    """

    name = "ours"

    def __init__(self, settings: dict[str, Any] | None = None) -> None:
        self.settings = settings or {}

    def refuses(self, kind: str, dtype: str) -> str | None:
        return None

    def as_on_cuda(self) -> contextlib.AbstractContextManager[None]:
        return meta_as_cuda()

    def layer(self, name: str, channels: int, size: int) -> Any:
        if name == "torgb":
            return nn.ToRGB(channels, 3, 512, clamp=256)
        if name == "pair":
            return torch.nn.ModuleList(self.layer(part, channels, size) for part in ("up", "plain"))
        return nn.StyleConv(channels, channels, 512, size, up=2 if name == "up" else 1, clamp=256)

    def call_layer(self, layer: Any, x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
        if isinstance(layer, torch.nn.ModuleList):
            return run_pair(list(layer), x, (w, w))
        return layer(x, w)

    def generator(self, size: int, dtype: str) -> Any:
        return Generator(size, **self.settings)

    def discriminator(self, size: int, dtype: str) -> Any:
        return Discriminator(size, **self.settings)


@dataclass(frozen=True)
class Result:
    """The traffic of a case by phase; ``unit`` is the bytes of a layer's result or a network's images, of a batch."""

    case: str
    contender: str
    dtype: str
    batch: int
    unit: int
    phases: dict[str, Traffic]

    def in_units(self, phase: str) -> float:
        """Return the bytes that a phase moves, in bytes of its result."""
        samples = 1 if phase == "inference N=1" else self.batch
        return self.phases[phase].moved * self.batch / (self.unit * samples)


def count_layer(by: Contender, name: str, dtype: str, batch: int, channels: int = 64, size: int = 128) -> Result:
    """Count one of :data:`LAYERS`, of ``channels`` to ``channels`` (to 3: "torgb"), with a result of ``size`` pixels a
    side."""
    side = size // 2 if name in ("up", "pair") else size

    def inputs(n: int) -> list[torch.Tensor]:
        x = torch.empty(n, channels, side, side, device=META, dtype=DTYPES[dtype])
        if isinstance(by, Ours):  # the format in which our generator's features are
            x = x.contiguous(memory_format=torch.channels_last)
        return [x, torch.empty(n, 512, device=META)]

    with by.as_on_cuda():
        with META:  # the noise of a large layer has no place in memory
            layer = by.layer(name, channels, size)
        unit, phases = _phases(layer, inputs, lambda x, w: by.call_layer(layer, x, w), batch)
    return Result(f"layer {name}", by.name, dtype, batch, unit, phases)


def count_network(by: Contender, name: str, dtype: str, batch: int) -> Result:
    """Count a network, or a training step of two."""
    kind, size = NETWORKS[name]
    with by.as_on_cuda():
        kinds = [k for k in ("generator", "discriminator") if kind in (k, "training")]
        with META:
            networks = [getattr(by, k)(size, dtype) for k in kinds]
        if kind == "training":
            unit, phases = _step(by, networks, size, dtype, batch)
        elif kind == "generator":
            unit, phases = _generator(by, networks[0], dtype, batch)
        else:
            unit, phases = _discriminator(by, networks[0], size, dtype, batch)
    return Result(name, by.name, dtype, batch, unit, phases)


def _phases(
    module: torch.nn.Module,
    inputs: Callable[[int], Sequence[torch.Tensor]],
    call: Callable[..., torch.Tensor],
    batch: int,
) -> tuple[int, dict[str, Traffic]]:
    """Count inference, and the forward and backward pass of training; return the bytes of the result, too."""
    phases = {}
    module.eval()
    for n in dict.fromkeys((1, batch)):
        given = inputs(n)
        with torch.no_grad(), Counter() as counted:
            call(*given)
        phases[f"inference N={n}"] = counted.traffic
    module.train()
    given = [t.requires_grad_() for t in inputs(batch)]
    with Counter() as counted:
        y = call(*given)
    phases["forward"] = counted.traffic
    dy = torch.empty_like(y)
    with Counter() as counted:
        y.backward(dy)
    phases["backward"] = counted.traffic
    return y.numel() * y.element_size(), phases


def _generator(by: Contender, g: Any, dtype: str, batch: int) -> tuple[int, dict[str, Traffic]]:
    """Count the synthesis; the mapping is a thousandth of it."""

    def call(ws: torch.Tensor) -> torch.Tensor:
        with _precision(by, dtype):
            return g.synthesis(ws, noise_mode="random" if g.training else "const")

    return _phases(g, lambda n: [torch.empty(n, g.num_ws, 512, device=META)], call, batch)


def _discriminator(by: Contender, d: Any, size: int, dtype: str, batch: int) -> tuple[int, dict[str, Traffic]]:
    def call(x: torch.Tensor) -> torch.Tensor:
        with _precision(by, dtype):
            return d(x, None)

    unit, phases = _phases(d, lambda n: [torch.empty(n, 3, size, size, device=META)], call, batch)
    return unit * 3 * size * size, phases  # its result is one number for each image


def _step(by: Contender, networks: Sequence[Any], size: int, dtype: str, batch: int) -> tuple[int, dict[str, Traffic]]:
    """Count losses, R1, path length and all gradients, as ``benchmarks.networks`` measures them."""
    g, d = (network.train() for network in networks)
    z, real = torch.empty(batch, 512, device=META), torch.empty(batch, 3, size, size, device=META)
    with Counter() as counted, _precision(by, dtype):
        network_calls.training_step(g, lambda x: d(x, None), z, real, (z.new_empty(batch, 0),))
    return real.numel() * real.element_size(), {"step": counted.traffic}


@contextlib.contextmanager
def _precision(by: Contender, dtype: str) -> Iterator[None]:
    """Run our networks in half precision under autocast; NVlabs' are made for a dtype."""
    half = DTYPES[dtype].itemsize == 2
    with autocast(DTYPES[dtype]) if half and isinstance(by, Ours) else contextlib.nullcontext():
        yield
