"""Training MS-PIE StyleGAN2: one generator at several scales.

Each iteration draws a scale, resizes the real images to it, and steps discriminator and generator at that scale, with
the logistic loss. R1 runs at the current scale every 16th iteration, path length every 4th at scale 0 or at the current
one. The average of the generator's weights follows at each iteration.

Source: "Positional Encoding as Spatial Inductive Bias in GANs" (CVPR 2021), section 3.5 and 4, with the numbers of
mmgeneration's configurations. The paper draws scales with the probabilities 0.5, 0.25, 0.25; the released code draws
them uniformly, which is the default here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from ..models import Generator, mspie
from ..models.precision import HALF_DTYPES
from ..ops.common import checks
from . import losses, ranks
from .adversarial import Adversarial
from .draws import Draws, choose
from .loop import Settings, option

R1_INTERVAL, R1_WEIGHT = 16, 10 / 2  # times the interval, at the iterations that have it
PATH_INTERVAL, PATH_WEIGHT, PATH_DECAY, PATH_SHRINK = 4, 2.0, 0.01, 2
MIXING = 0.9  # probability of two latents in one image
LEARNING_RATE = 0.002
PAPER_PROBABILITIES = (0.5, 0.25, 0.25)


@dataclass(frozen=True)
class MSPIESettings(Settings):
    """Settings of :class:`MSPIE`.

    Example:
        >>> MSPIESettings(data="photos", out="run", config="f-1024").iterations
        1500002
    """

    config: str = option("f", "configuration of the paper", choices=tuple(mspie.CONFIGS))
    size: int = option(0, "side of the images at scale 0, in pixels; 0: that of the configuration")
    channel_max: int = option(512, "most channels of a layer", minimum=1)
    scales: tuple[int, ...] | None = option(None, "scales to train at; default: those of the configuration")
    probabilities: str = option(
        "uniform",
        "probabilities of the scales: uniform (released code), or 0.5, 0.25, 0.25 (paper)",
        choices=("uniform", "paper"),
    )
    path_scale: str = option("base", "scale of the path length, 0 as released or current", choices=("base", "current"))
    num_fp16_res: int = option(0, "highest resolutions in half precision, as in NVlabs' code, which has 4")
    half_dtype: str = option("float16", "their dtype; precision goes before it", choices=tuple(HALF_DTYPES))
    conv_clamp: int = option(0, "bound of the convolutions' results, 256 in NVlabs' half precision; 0: none")
    layout: str = option("mmgen", "formulas of the encoding", choices=("mmgen", "paper"))
    average: float = option(0.5 ** (32 / 10_000), "share of the averaged generator that stays at an iteration")
    batch: int = option(0, "images of a process and iteration; 0: those of the configuration")
    iterations: int = option(0, "iterations in all; 0: those of the configuration")
    save_every: int = option(10_000, "iterations between checkpoints", minimum=1)
    sample_every: int = option(5000, "iterations between grids of samples", minimum=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("size", "batch", "iterations"):
            if not getattr(self, name):
                object.__setattr__(self, name, getattr(mspie.CONFIGS[self.config], name))
        if self.scales is not None:
            if not isinstance(self.scales, (tuple, list)) or not self.scales:
                raise ValueError(f"scales: expected one int or more, got {self.scales!r}")
            object.__setattr__(self, "scales", tuple(checks.integer(s, "scales", minimum=0) for s in self.scales))
        if self.probabilities == "paper" and len(self.all_scales()) != len(PAPER_PROBABILITIES):
            raise ValueError(f"probabilities: the paper has three, for {len(self.all_scales())} scales take uniform")

    def all_scales(self) -> tuple[int, ...]:
        return mspie.CONFIGS[self.config].scales if self.scales is None else self.scales

    def networks(self) -> dict[str, Any]:
        """Return the arguments of the configuration's networks that the settings replace."""
        half = {"num_fp16_res": self.num_fp16_res, "half_dtype": self.half_dtype}
        return {"size": self.size, "channel_max": self.channel_max, "conv_clamp": self.conv_clamp or None, **half}


class MSPIE(Adversarial):
    """Train one of the configurations of :data:`posgan_fast.models.mspie.CONFIGS`."""

    name = "mspie"
    settings_type = MSPIESettings
    group = 4
    settings: MSPIESettings
    G: Generator

    def __init__(self, settings: MSPIESettings, device: torch.device) -> None:
        self.scales = settings.all_scales()
        self.sides = mspie.CONFIGS[settings.config]._replace(size=settings.size, scales=self.scales).sides
        self.side = max(self.sides)
        super().__init__(settings, device)
        self.path_mean = torch.zeros((), device=device)
        on_gpu = device.type == "cuda" and settings.precision == "float32"  # else no block runs in float16
        if on_gpu and settings.num_fp16_res and settings.half_dtype == "float16":
            self.scaler = torch.amp.GradScaler(device.type)
        self.fast_synthesis = torch.compile(self.G.synthesis) if settings.compile else self.G.synthesis

    def networks(self) -> tuple[torch.nn.Module, torch.nn.Module]:
        settings = self.settings
        shared = settings.networks()
        pool = {"adaptive_pool": mspie.CONFIGS[settings.config].pools or max(self.scales) > 0}
        G = mspie.generator(settings.config, layout=settings.layout, **shared)
        return G, mspie.discriminator(settings.config, **shared, **pool)

    def make_optimizers(self) -> tuple[torch.optim.Optimizer, torch.optim.Optimizer]:
        return tuple(
            torch.optim.Adam(module.parameters(), lr=LEARNING_RATE * share, betas=(0.0, 0.99**share))
            for module, share in ((self.G, _lazy(PATH_INTERVAL)), (self.D, _lazy(R1_INTERVAL)))
        )  # type: ignore[return-value]

    def scale_of(self, iteration: int) -> int:
        """Return the scale of an iteration, the same in every process."""
        draws = Draws(self.settings.seed, iteration, 1, self.device, torch.float32)
        uniform = [1 / len(self.scales)] * len(self.scales)
        return self.scales[
            choose(PAPER_PROBABILITIES if self.settings.probabilities == "paper" else uniform, draws.number("scale"))
        ]

    def prepare(self, iteration: int, real: torch.Tensor, draws: Draws) -> torch.Tensor:
        self.scale = self.scale_of(iteration)
        side = self.sides[self.scales.index(self.scale)]
        if real.shape[2] == side:
            return real
        return F.interpolate(real, (side, side), mode="bilinear", align_corners=True)

    def latents(self, draws: Draws, purpose: str, n: int | None = None) -> torch.Tensor:
        """Draw latents, some of which change to another at a random layer: [N, num_ws, w_dim]."""
        z = draws.normal(f"{purpose} z", 2, self.G.z_dim, n=n)
        ws = self.G.mapping(z[:, 0])
        if draws.number(f"{purpose} mixing") < MIXING:
            cut = 1 + int(draws.number(f"{purpose} cut") * (self.G.num_ws - 1))
            other = self.G.mapping(z[:, 1], skip_w_avg_update=True)
            ws = torch.cat([ws[:, :cut], other[:, cut:]], dim=1)
        return ws

    def noises(self, draws: Draws, purpose: str, scale: int, n: int | None = None) -> list[torch.Tensor]:
        sizes = self.G.synthesis.noise_sizes(scale)
        return [draws.normal(f"{purpose} noise {k}", 1, *size, n=n) for k, size in enumerate(sizes)]

    def fakes(self, draws: Draws, purpose: str) -> torch.Tensor:
        ws = self.latents(draws, purpose)
        return self.fast_synthesis(ws, noises=self.noises(draws, purpose, self.scale), scale=self.scale)

    def discriminator_loss(
        self, iteration: int, fake: torch.Tensor, real: torch.Tensor, draws: Draws
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        fake_scores, real_scores = self.fast_D(fake), self.fast_D(real)
        loss = main = losses.logistic_discriminator(fake_scores, real_scores)
        log = {"loss_D": main}
        if iteration % R1_INTERVAL == 0:
            images = real.detach().requires_grad_()
            log["r1"] = losses.r1(self.D(images), images)
            loss = loss + R1_WEIGHT * R1_INTERVAL * log["r1"]
        return loss, log

    def generator_loss(self, iteration: int, draws: Draws) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        loss = main = losses.logistic_generator(self.fast_D(self.fakes(draws, "generator")))
        log = {"loss_G": main}
        if iteration % PATH_INTERVAL == 0:
            penalty = self._path_penalty(draws)
            log["path"] = penalty
            loss = loss + PATH_WEIGHT * PATH_INTERVAL * penalty
        return loss, log

    def _path_penalty(self, draws: Draws) -> torch.Tensor:
        scale = 0 if self.settings.path_scale == "base" else self.scale
        n = max(1, draws.batch // PATH_SHRINK)
        ws = self.latents(draws, "path", n)
        image = self.G.synthesis(ws, noises=self.noises(draws, "path", scale, n), scale=scale)
        lengths = losses.path_lengths(image, ws, draws.normal("path direction", *image.shape[1:], n=n))
        mean = self.path_mean + PATH_DECAY * (ranks.average(lengths.mean()) - self.path_mean)
        self.path_mean = mean.detach()
        return (lengths - mean).square().mean()

    def samples(self) -> tuple[torch.Tensor, int]:
        """Four latents, one in each column, at every scale, resized to the largest."""
        draws = Draws(self.settings.seed, 0, 4, self.device, torch.float32)
        z = draws.normal("samples", self.G.z_dim, n=4)
        rows = []
        for scale in self.scales:
            image = self.G_ema(z, scale=scale, noise_mode="none")
            rows.append(F.interpolate(image.float(), (self.side, self.side), mode="bilinear", antialias=True))
        return torch.cat(rows), 4

    def extra_state(self) -> dict[str, Any]:
        return {"path_mean": self.path_mean}

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        self.path_mean = state["path_mean"].to(self.device)


def _lazy(interval: int) -> float:
    """Return the factor of learning rate and betas for a penalty that runs at every ``interval``-th iteration."""
    return interval / (interval + 1)
