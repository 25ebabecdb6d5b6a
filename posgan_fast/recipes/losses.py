"""Losses of adversarial training."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch.nn import functional as F


def logistic_generator(fake: torch.Tensor) -> torch.Tensor:
    """Mean of softplus(-D(G(z)))."""
    return F.softplus(-fake).mean()


def logistic_discriminator(fake: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Mean of softplus(D(G(z))) + softplus(-D(x))."""
    return F.softplus(fake).mean() + F.softplus(-real).mean()


def r1(scores: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Mean over the batch of the squared norm of dD(x) / dx; ``images`` require a gradient."""
    (grad,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
    return grad.square().sum((1, 2, 3)).mean()


def wasserstein_generator(fake: torch.Tensor) -> torch.Tensor:
    """Mean of -D(G(z))."""
    return -fake.mean()


def wasserstein_discriminator(fake: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
    """Mean of D(G(z)) - D(x)."""
    return fake.mean() - real.mean()


def norm(x: torch.Tensor) -> torch.Tensor:
    """Mean over the batch of the l2 norm of each sample; ``x`` is [N, ...]."""
    return torch.linalg.vector_norm(x.flatten(1), dim=1).mean()


def gradient_norm(scores: torch.Tensor, images: torch.Tensor) -> torch.Tensor:
    """Mean over the batch of the norm of dD(x) / dx, not squared; ``images`` require a gradient."""
    (grad,) = torch.autograd.grad(scores.sum(), images, create_graph=True)
    return norm(grad)


def gradient_penalty(
    discriminator: Callable[[torch.Tensor], torch.Tensor],
    real: torch.Tensor,
    fake: torch.Tensor,
    alpha: torch.Tensor,
    per_pixel: bool,
) -> torch.Tensor:
    """Mean of (norm of dD(x) / dx - 1)^2 at ``alpha * real + (1 - alpha) * fake``.

    Args:
        discriminator: D.
        real, fake: images [N, C, H, W].
        alpha: weight of each sample's real image, [N].
        per_pixel: True takes the norm over the channels of each pixel (SinGAN), False over the whole image (PGGAN).
    """
    images = fake.detach().to(real.dtype).lerp(real, alpha.reshape(-1, 1, 1, 1)).requires_grad_()
    (grad,) = torch.autograd.grad(discriminator(images).sum(), images, create_graph=True)
    norm = torch.linalg.vector_norm(grad, dim=1 if per_pixel else (1, 2, 3))
    return (norm - 1).square().mean()


def path_lengths(image: torch.Tensor, ws: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Return, for each sample, the length of the gradient of sum(image * noise) / sqrt(H * W) by the latents: [N].

    The square root of the mean over the layers of the sum over the channels; ``ws`` [N, num_ws, w_dim] require a
    gradient.
    """
    noise = noise / math.sqrt(image.shape[2] * image.shape[3])
    (grad,) = torch.autograd.grad((image * noise).sum(), ws, create_graph=True)
    return grad.square().sum(2).mean(1).sqrt()
