"""Training PGGAN: networks that grow from 4 pixels to the full size.

Each side trains for a number of images, of which the first ``transition`` fade the new block in. Source: "Progressive
Growing of GANs for Improved Quality, Stability, and Variation" (ICLR 2018) with the numbers of mmgeneration's
configurations: WGAN with a gradient penalty of weight 10 and a drift of 5e-4 on real and on fake scores.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from ..models import PGGANDiscriminator, PGGANGenerator
from . import losses, ranks
from .adversarial import PADDING_CONFIGS, Adversarial
from .draws import Draws
from .loop import Settings, option

CONFIGS = PADDING_CONFIGS
PENALTY, DRIFT = 10.0, 0.5e-3


@dataclass(frozen=True)
class PGGANSettings(Settings):
    """Settings of :class:`PGGAN`.

    Example:
        >>> PGGANSettings(data="photos", out="run", size=32).sides()
        [4, 8, 16, 32]
    """

    config: str = option("padded", "rows a to c of the paper's Table 3", choices=tuple(CONFIGS))
    size: int = option(128, "side of the images, in pixels, a power of two", minimum=8)
    max_channels: int = option(512, "most channels of a layer", minimum=1)
    layout: str = option("mmgen", "formulas of the encoding", choices=("mmgen", "paper"))
    images_first: int = option(600_000, "images at 4 pixels", minimum=1)
    images: int = option(1_200_000, "images at each further side but the last", minimum=1)
    transition: int = option(600_000, "images of a side during which its block fades in", minimum=1)
    learning_rate: float = option(1e-3, "of both networks; from 128 pixels on 1.5 times as high")
    average: float = option(0.999, "share of the averaged generator that stays at an iteration")
    batch: int = option(16, "images of a process and iteration", minimum=1)
    iterations: int = option(300_000, "iterations in all; the last side takes those that remain", minimum=1)

    def sides(self) -> list[int]:
        return [4 << i for i in range(max(1, self.size.bit_length() - 2))]


class PGGAN(Adversarial):
    """Train one of ``CONFIGS``."""

    name = "pggan"
    settings_type = PGGANSettings
    betas = (0.0, 0.99)
    group = 4
    settings: PGGANSettings
    G: PGGANGenerator

    def __init__(self, settings: PGGANSettings, device: torch.device) -> None:
        self.side = settings.size
        super().__init__(settings, device)

    def networks(self) -> tuple[torch.nn.Module, torch.nn.Module]:
        settings = self.settings
        arguments = CONFIGS[settings.config] | {"layout": settings.layout, "max_channels": settings.max_channels}
        return (
            PGGANGenerator(settings.size, **arguments),
            PGGANDiscriminator(settings.size, max_channels=settings.max_channels),
        )

    def growth(self, iteration: int) -> tuple[int, float]:
        """Return the side of the images and the weight of its block at an iteration."""
        settings = self.settings
        shown = iteration * settings.batch * ranks.world_size()
        sides = settings.sides()
        for side in sides:
            images = settings.images_first if side == sides[0] else settings.images
            if shown < images or side == sides[-1]:
                break
            shown -= images
        return side, 1.0 if side == sides[0] else min(1.0, shown / settings.transition)

    def prepare(self, iteration: int, real: torch.Tensor, draws: Draws) -> torch.Tensor:
        before = self.growth(max(0, iteration - 1))[0]
        self.current, self.weight = self.growth(iteration)
        if self.current != before:  # as in the released code, which makes new optimisers
            for optimizer in self.optimizers.values():
                optimizer.state.clear()
        faster = 1.5 if self.current >= 128 else 1.0
        for optimizer in self.optimizers.values():
            for group in optimizer.param_groups:
                group["lr"] = self.settings.learning_rate * faster
        return F.interpolate(real, (self.current, self.current), mode="bilinear", align_corners=True)

    def judge(self, images: torch.Tensor) -> torch.Tensor:
        return self.fast_D(images, transition=self.weight)

    def _score(self, images: torch.Tensor) -> torch.Tensor:
        return self.D(images, transition=self.weight)

    def fakes(self, draws: Draws, purpose: str) -> torch.Tensor:
        z = draws.normal(f"{purpose} z", self.G.z_dim)
        return self.fast_G(z, size=self.current, transition=self.weight)

    def discriminator_loss(
        self, iteration: int, fake: torch.Tensor, real: torch.Tensor, draws: Draws
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        fake_scores, real_scores = self.judge(fake), self.judge(real)
        main = fake_scores.mean() - real_scores.mean()
        penalty = losses.gradient_penalty(self._score, real, fake, draws.uniform("penalty"), per_pixel=False)
        drift = fake_scores.square().mean() + real_scores.square().mean()
        loss = main + PENALTY * penalty + DRIFT * drift
        return loss, {"loss_D": main, "penalty": penalty}

    def generator_loss(self, iteration: int, draws: Draws) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        loss = -self.judge(self.fakes(draws, "generator")).mean()
        return loss, {"loss_G": loss}

    def samples(self) -> tuple[torch.Tensor, int]:
        draws = Draws(self.settings.seed, 0, 32, self.device, torch.float32)
        z = draws.normal("samples", self.G.z_dim, n=32)
        images = self.G_ema(z, size=self.current, transition=self.weight)
        return F.interpolate(images.float(), (self.side, self.side), mode="nearest"), 8
