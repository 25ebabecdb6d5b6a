"""StyleGAN2 layers, networks and training steps as calls to measure, made with the public functions and modules alone.

``python -m benchmarks.networks`` measures them beside other implementations, ``python -m benchmarks --base`` beside
another revision of this library.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

import posgan_fast
from posgan_fast import functional as PF

PRECISIONS = ("float16", "bfloat16", "tf32", "float32")
NVLABS_PRECISIONS = ("float16", "tf32", "float32")  # NVlabs' plugins have no bfloat16
HALF = dict(num_fp16_res=4, conv_clamp=256)  # half precision as NVlabs train and publish it
LAYER_SIZES = (16, 64, 256, 512)  # pixels at the output
TRAINING_SIZE, TRAINING_BATCH = 64, 4


def style_layer(resolution: int, up: int, batch: int, device: torch.device) -> dict[str, Any]:
    """The arguments of ``modulated_conv2d`` for a style layer of the 1024-pixel network, by name."""
    o, i = (min(32768 // size, 512) for size in (resolution, resolution // up))
    x = torch.randn(batch, i, resolution // up, resolution // up, device=device)
    return dict(
        x=x.contiguous(memory_format=torch.channels_last),
        weight=torch.randn(o, i, 3, 3, device=device),
        styles=torch.rand(batch, i, device=device) + 0.5,
        up=up,
        padding=1,
        resample_filter=PF.setup_filter([1, 3, 3, 1], device=device),
        flip_weight=up == 1,
        noise=torch.randn(1, 1, resolution, resolution, device=device),
        bias=torch.zeros(o, device=device),
        act="lrelu",
        clamp=256,
    )


def layer_name(resolution: int, up: int) -> str:
    """A style layer by its channels and its size at the output."""
    o, i = (min(32768 // size, 512) for size in (resolution, resolution // up))
    return f"{i} to {o} at {resolution}{' up' if up == 2 else ''}"


@dataclass(frozen=True)
class Layer:
    """A layer of the 1024-pixel generator, with the affine layer that makes its styles.

    Args:
        kind: "plain", "up" or "torgb".
        resolution: pixels at the output.
    """

    kind: str
    resolution: int

    @property
    def outer(self) -> int:
        """The channels of the result."""
        return 3 if self.kind == "torgb" else width(self.resolution)

    @property
    def inner(self) -> int:
        """The channels of the input."""
        return width(self.resolution // 2 if self.kind == "up" else self.resolution)

    @property
    def name(self) -> str:
        return f"{self.kind}, {self.inner} to {self.outer} at {self.resolution}"

    def module(self, device: torch.device) -> Any:
        """The layer with the weights of seed 0."""
        from posgan_fast import nn

        torch.manual_seed(0)
        if self.kind == "torgb":
            return nn.ToRGB(self.inner, 3, 512, clamp=256).to(device).eval()
        up = 2 if self.kind == "up" else 1
        return nn.StyleConv(self.inner, self.outer, 512, self.resolution, up=up, clamp=256).to(device).eval()

    def inputs(self, batch: int, dtype: torch.dtype, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """Features [N, I, h, w] in channels_last, as our generator has them, and latents [N, 512]."""
        side = self.resolution // 2 if self.kind == "up" else self.resolution
        x = torch.randn(batch, self.inner, side, side, device=device).to(dtype)
        return x.contiguous(memory_format=torch.channels_last), torch.randn(batch, 512, device=device)


def width(resolution: int) -> int:
    """The channels of the 1024-pixel generator at a resolution."""
    return min(32768 // resolution, 512)


def settings(precision: str) -> dict[str, Any]:
    """The arguments of a network that runs in a precision of ``PRECISIONS``."""
    return {**HALF, "half_dtype": precision} if dtype_of(precision).itemsize == 2 else {}


def dtype_of(precision: str) -> torch.dtype:
    """The dtype of the features in a precision of ``PRECISIONS``."""
    return torch.float32 if precision == "tf32" else getattr(torch, precision)


def generator(size: int, device: torch.device, **arguments: Any) -> Any:
    """A generator with the weights of seed 0."""
    from posgan_fast.models import Generator

    torch.manual_seed(0)
    return Generator(size, **arguments).to(device).eval()


def discriminator(size: int, device: torch.device, **arguments: Any) -> Any:
    """A discriminator with the weights of seed 0."""
    from posgan_fast.models import Discriminator

    torch.manual_seed(0)
    return Discriminator(size, **arguments).to(device).eval()


def latents(g: Any, n: int, device: torch.device) -> torch.Tensor:
    """The intermediate latents [N, layers, 512] of the noise of seed 0."""
    return g.mapping(torch.randn(n, 512, generator=torch.Generator().manual_seed(0)).to(device))


def padding_maps(device: torch.device) -> list[torch.Tensor | None]:
    """The padding maps of PadInv, for the layers 0, 1, 3, 5 and 7 of the first eight."""
    maps: list[torch.Tensor | None] = [None] * 8
    for index in (0, 1, 3, 5, 7):
        maps[index] = torch.randn(1, 512, 34, 34, device=device)
    return maps


def in_dtype(dtype: str, call: Callable[[], torch.Tensor]) -> torch.Tensor:
    """The result of a call, under autocast unless the dtype is float32."""
    if dtype == "float32":
        return call()
    with torch.autocast("cuda" if torch.cuda.is_available() else "cpu", getattr(torch, dtype)):
        return call()


def on_reference(call: Callable[[], torch.Tensor]) -> torch.Tensor:
    """The result of a call on the reference backend."""
    with posgan_fast.use_backend("reference"):
        return call()


def convolutions_alone(size: int, n: int, dtype: str, device: torch.device) -> Callable[[], None]:
    """The convolutions of a generator alone; plain ones at the size of the input replace those that upsample, since
    they multiply as often."""
    kind = getattr(torch, dtype)
    pairs = []
    for r in (4 << k for k in range(size.bit_length() - 2)):
        o, i = min(32768 // r, 512), min(32768 // max(r // 2, 4), 512)
        shapes = [(o, o, r, 3), (3, o, r, 1)] + ([(o, i, r // 2, 3)] if r > 4 else [])
        for out, into, side, k in shapes:
            x, w = torch.randn(n, into, side, side, device=device), torch.randn(out, into, k, k, device=device)
            last = torch.channels_last
            pairs.append((x.to(kind).to(memory_format=last), w.to(kind).to(memory_format=last), k // 2))

    def run() -> None:
        for x, w, padding in pairs:
            torch.nn.functional.conv2d(x, w, padding=padding)

    return run


def training_inputs(
    device: torch.device, size: int | None = None, n: int | None = None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents and images of a training step; by default those of ``TRAINING_SIZE`` and ``TRAINING_BATCH``."""
    size, n = size or TRAINING_SIZE, n or TRAINING_BATCH
    return torch.randn(n, 512, device=device), torch.randn(n, 3, size, size, device=device)


def training_step(
    g: Any, d: Callable[[torch.Tensor], torch.Tensor], z: torch.Tensor, real: torch.Tensor, label: tuple[Any, ...] = ()
) -> torch.Tensor:
    """Losses of discriminator and generator, R1 and path length, and all their gradients; returns the loss [1].

    Args:
        g, d: generator and discriminator.
        z, real: latents and images.
        label: further arguments of the mapping network.
    """
    softplus = torch.nn.functional.softplus
    ws = g.mapping(z, *label)
    fake = g.synthesis(ws)
    real = real.detach().requires_grad_()
    real_logits = d(real)
    (r1,) = torch.autograd.grad(real_logits.sum(), real, create_graph=True)
    noise = torch.ones_like(fake) / fake.shape[2]
    (path,) = torch.autograd.grad((fake * noise).sum(), ws, create_graph=True)
    loss = softplus(-real_logits).mean() + softplus(d(fake)).mean()
    loss = loss + r1.square().sum((1, 2, 3)).mean() + path.square().sum(2).mean(1).sqrt().var()
    loss.backward()
    return loss.detach().reshape(1)


def generator_step(
    g: Any, d: Callable[[torch.Tensor], torch.Tensor], z: torch.Tensor, label: tuple[Any, ...] = ()
) -> torch.Tensor:
    """Loss of the generator with path length and its gradients; returns the loss [1]."""
    ws = g.mapping(z, *label)
    fake = g.synthesis(ws)
    noise = torch.ones_like(fake) / fake.shape[2]
    (path,) = torch.autograd.grad((fake * noise).sum(), ws, create_graph=True)
    loss = torch.nn.functional.softplus(-d(fake)).mean() + path.square().sum(2).mean(1).sqrt().var()
    return _with_gradients(loss, g)


def discriminator_step(
    g: Any, d: Any, judge: Callable[[torch.Tensor], torch.Tensor], z: torch.Tensor, real: torch.Tensor,
    label: tuple[Any, ...] = (),
) -> torch.Tensor:  # fmt: skip
    """Loss of the discriminator with R1 and its gradients; ``judge(images)`` calls ``d``; returns the loss [1]."""
    softplus = torch.nn.functional.softplus
    with torch.no_grad():
        fake = g.synthesis(g.mapping(z, *label))
    real = real.detach().requires_grad_()
    real_logits = judge(real)
    (r1,) = torch.autograd.grad(real_logits.sum(), real, create_graph=True)
    loss = softplus(-real_logits).mean() + softplus(judge(fake)).mean() + r1.square().sum((1, 2, 3)).mean()
    return _with_gradients(loss, d)


def _with_gradients(loss: torch.Tensor, network: torch.nn.Module) -> torch.Tensor:
    """Compute the gradients of the network's parameters alone."""
    torch.autograd.grad(loss, list(network.parameters()), allow_unused=True)
    return loss.detach().reshape(1)
