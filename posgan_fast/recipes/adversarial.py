"""Recipes of a generator and a discriminator that train in turns on the same data."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch

from . import ranks
from .draws import Draws, seeded_weights
from .images import Batches, Images, to_float
from .loop import Recipe

# The rows a to c of the paper's Table 3; those of Table 4 differ in the first.
PADDING_CONFIGS: dict[str, dict[str, Any]] = {
    "padded": {},
    "no-pad": dict(no_pad=True),
    "no-pad-spe": dict(no_pad=True, encode="spe"),
}


class Adversarial(Recipe):
    """A discriminator step and a generator step in each iteration, and an average of the generator's weights.

    Subclasses define :meth:`networks`, :meth:`fakes`, :meth:`discriminator_loss` and :meth:`generator_loss`.
    """

    settings: Any
    side: int  # of the pictures that are read
    mirror = True
    betas: tuple[float, float]  # of Adam
    group = 0  # samples that the discriminator compares with each other; 0: none

    def __init__(self, settings: Any, device: torch.device) -> None:
        super().__init__(settings, device)
        if self.group and settings.batch > self.group and settings.batch % self.group:
            raise ValueError(f"batch: expected up to {self.group} or a multiple of it, got {settings.batch}")
        with seeded_weights(settings.seed):
            G, D = self.networks()
        self.G, self.D = G.to(device).train(), D.to(device).train()
        self.G_ema = copy.deepcopy(self.G).eval().requires_grad_(False)
        self.modules = {"generator": self.G, "generator_ema": self.G_ema, "discriminator": self.D}
        g, d = self.make_optimizers()
        self.optimizers = {"generator": g, "discriminator": d}
        if not settings.data:
            raise ValueError("data: expected a folder, a zip archive or a picture")
        self.images = Images(settings.data, self.side)
        self.notes += self.images.notes
        self.fast_G = torch.compile(self.G) if settings.compile else self.G
        self.fast_D = torch.compile(self.D) if settings.compile else self.D

    def networks(self) -> tuple[torch.nn.Module, torch.nn.Module]:
        """Build generator and discriminator."""
        raise NotImplementedError

    def make_optimizers(self) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
        """Build the optimisers of generator and discriminator; by default both have the settings' learning rate."""
        lr = self.settings.learning_rate
        G, D = (torch.optim.Adam(network.parameters(), lr=lr, betas=self.betas) for network in (self.G, self.D))
        return G, D

    def data_digest(self) -> str:
        return self.images.digest()

    def prepare(self, iteration: int, real: torch.Tensor, draws: Draws) -> torch.Tensor:
        """Resize the real images [N, 3, side, side] for the iteration."""
        return real

    def fakes(self, draws: Draws, purpose: str) -> torch.Tensor:
        """Draw latents and make images."""
        raise NotImplementedError

    def discriminator_loss(
        self, iteration: int, fake: torch.Tensor, real: torch.Tensor, draws: Draws
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the loss and numbers for the log."""
        raise NotImplementedError

    def generator_loss(self, iteration: int, draws: Draws) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the loss and numbers for the log."""
        raise NotImplementedError

    def batches(self, start: int) -> Iterator[torch.Tensor]:
        settings = self.settings
        batches = Batches(self.images, settings.batch, settings.seed, self.mirror, settings.workers)
        return batches.start(start, self.total())

    def step(self, iteration: int, real: torch.Tensor) -> dict[str, torch.Tensor | float]:
        settings = self.settings
        draws = Draws(settings.seed, iteration, settings.batch, self.device, torch.float32)
        images = self.prepare(iteration, to_float(real, self.device), draws)
        self.D.requires_grad_(True)
        self.G.requires_grad_(False)
        with self.autocast():
            with torch.no_grad():
                fake = self.fakes(draws, "discriminator")
            loss, log_d = self.discriminator_loss(iteration, fake, images, draws)
        self.update(self.optimizers["discriminator"], loss)
        self.D.requires_grad_(False)
        self.G.requires_grad_(True)
        with self.autocast():
            loss, log_g = self.generator_loss(iteration, draws)
        self.update(self.optimizers["generator"], loss)
        self.synchronise(self.G, self.D)
        update_average(self.G_ema, self.G, settings.average)
        numbers = log_d | log_g
        return {name: ranks.average(value.detach().float()) for name, value in numbers.items()}


@torch.no_grad()
def update_average(average: torch.nn.Module, module: torch.nn.Module, decay: float) -> None:
    """Move the parameters of ``average`` towards those of ``module``, and copy the buffers."""
    ours: list[torch.Tensor] = list(average.parameters())
    theirs: list[torch.Tensor] = list(module.parameters())
    torch._foreach_lerp_(ours, theirs, 1 - decay)
    for a, b in zip(average.buffers(), module.buffers(), strict=True):
        a.copy_(b)
