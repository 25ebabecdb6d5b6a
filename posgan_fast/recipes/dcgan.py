"""Training DCGAN, with and without padding and encoding.

Source: "Unsupervised Representation Learning with Deep Convolutional Generative Adversarial Networks" (ICLR 2016) with
the numbers of mmgeneration's configurations: binary cross-entropy on logits, Adam with 2e-4 and (0.5, 0.999).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ..models import DCGANDiscriminator, DCGANGenerator
from . import losses
from .adversarial import PADDING_CONFIGS, Adversarial
from .draws import Draws
from .loop import Settings, option

CONFIGS: dict[str, dict[str, Any]] = {
    "original": {},
    **PADDING_CONFIGS,
    "padded": dict(deconv2conv=True, no_pad=False),  # no_pad, because the loader assumes it beside deconv2conv
}


@dataclass(frozen=True)
class DCGANSettings(Settings):
    """Settings of :class:`DCGAN`.

    Example:
        >>> DCGANSettings(data="photos", out="run", config="no-pad-spe").size
        64
    """

    config: str = option(
        "original",
        "original, or rows a to c of the paper's Table 4: padded, no-pad, no-pad-spe",
        choices=tuple(CONFIGS),
    )
    size: int = option(64, "side of the images, in pixels, a power of two", minimum=8)
    base_channels: int = option(
        1024, "channels of the generator's first feature map; the discriminator starts at an eighth", minimum=1
    )
    layout: str = option("mmgen", "formulas of the encoding", choices=("mmgen", "paper"))
    learning_rate: float = option(2e-4, "of both networks")
    average: float = option(0.999, "share of the averaged generator that stays at an iteration")
    batch: int = option(128, "images of a process and iteration", minimum=1)
    iterations: int = option(300_000, "iterations in all", minimum=1)


class DCGAN(Adversarial):
    """Train one of ``CONFIGS``."""

    name = "dcgan"
    settings_type = DCGANSettings
    betas = (0.5, 0.999)
    settings: DCGANSettings
    G: DCGANGenerator

    def __init__(self, settings: DCGANSettings, device: torch.device) -> None:
        self.side = settings.size
        super().__init__(settings, device)

    def networks(self) -> tuple[torch.nn.Module, torch.nn.Module]:
        settings = self.settings
        arguments = CONFIGS[settings.config] | {"layout": settings.layout, "base_channels": settings.base_channels}
        return (
            DCGANGenerator(settings.size, **arguments),
            DCGANDiscriminator(settings.size, base_channels=max(1, settings.base_channels // 8)),
        )

    def fakes(self, draws: Draws, purpose: str) -> torch.Tensor:
        return self.fast_G(draws.normal(f"{purpose} z", self.G.z_dim))

    def discriminator_loss(
        self, iteration: int, fake: torch.Tensor, real: torch.Tensor, draws: Draws
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        loss = losses.logistic_discriminator(self.fast_D(fake), self.fast_D(real))
        return loss, {"loss_D": loss}

    def generator_loss(self, iteration: int, draws: Draws) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        loss = losses.logistic_generator(self.fast_D(self.fakes(draws, "generator")))
        return loss, {"loss_G": loss}

    def samples(self) -> tuple[torch.Tensor, int]:
        draws = Draws(self.settings.seed, 0, 32, self.device, torch.float32)
        return self.G_ema(draws.normal("samples", self.G.z_dim, n=32)), 8
