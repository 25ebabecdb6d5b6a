"""StyleGAN2 layers, networks and training steps as calls to measure, made with the public functions and modules alone.

``python -m benchmarks.networks`` measures them beside other implementations, ``python -m benchmarks --base`` beside
another revision of this library.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from posgan_fast import functional as PF

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


def generator(size: int, device: torch.device) -> Any:
    """A generator with the weights of seed 0."""
    from posgan_fast.models import Generator

    torch.manual_seed(0)
    return Generator(size).to(device).eval()


def discriminator(size: int, device: torch.device) -> Any:
    """A discriminator with the weights of seed 0."""
    from posgan_fast.models import Discriminator

    torch.manual_seed(0)
    return Discriminator(size).to(device).eval()


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


def training_inputs(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Latents and images of a training step."""
    n, size = TRAINING_BATCH, TRAINING_SIZE
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
