"""Training SinGAN on one picture, with the paddings and encodings of the CVPR 2021 paper.

Stages train one after the other, from the coarsest; each iteration takes three discriminator and three generator steps
of the current stage. The losses are those of WGAN with a gradient penalty for each pixel, and ten times the squared
error of the reconstruction. A stage starts from the weights of the one before where their shapes agree. Its noise is
weighted by a tenth of the root-mean-square error between its real image and the enlarged reconstruction of the stage
before. As in the released code, that error is measured after the first iteration of the stage before.

Only the current block learns, so the stages before it run without a graph, and their reconstruction is computed once a
stage. Source: "SinGAN: Learning a Generative Model from a Single Natural Image" (ICCV 2019) in the form of
mmgeneration.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F

from ..models import SinGANDiscriminator, SinGANGenerator
from ..models.singan import resize
from . import losses, ranks
from .draws import Draws, generator, seeded_weights
from .images import Images, to_float
from .loop import Recipe, Settings, option

CONFIGS: dict[str, dict[str, Any]] = {
    "original": {},
    "csg": dict(encode="csg"),
    "spe": dict(encode="spe"),
    "interp-pad": dict(padding="interp"),
    "interp-pad-disc-nobn": dict(padding="interp"),
    "reflect": dict(padding="reflect"),
    "no-pad": dict(padding="none"),
    "csg-no-pad": dict(encode="csg", padding="none"),
    "spe-no-pad": dict(encode="spe", padding="none"),
}
STEPS = 3  # of each network in an iteration
PENALTY, RECONSTRUCTION, NOISE = 0.1, 10.0, 0.1
FACTOR = 0.75  # between the sides of two stages, about


@dataclass(frozen=True)
class SinGANSettings(Settings):
    """Settings of :class:`SinGAN`.

    Example:
        >>> SinGANSettings(data="photo.png", out="run", config="spe", max_size=120).iterations_per_stage
        2000
    """

    config: str = option("original", "padding and encoding", choices=tuple(CONFIGS))
    min_size: int = option(25, "shorter side of the coarsest stage, in pixels", minimum=12)
    max_size: int = option(250, "longer side of the finest stage, in pixels", minimum=12)
    iterations_per_stage: int = option(2000, "iterations of a stage", minimum=1)
    width: int = option(32, "channels of the first four stages; each further four have twice as many", minimum=1)
    layout: str = option("mmgen", "formulas of the encoding", choices=("mmgen", "paper"))
    learning_rate: float = option(5e-4, "of both networks; a tenth after four fifths of a stage")
    batch: int = option(1, "random samples of a process and step", minimum=1)
    iterations: int = option(0, "iterations in all; 0: all stages")


class SinGAN(Recipe):
    """Train one of ``CONFIGS``."""

    name = "singan"
    settings_type = SinGANSettings
    settings: SinGANSettings

    def __init__(self, settings: SinGANSettings, device: torch.device) -> None:
        super().__init__(settings, device)
        if settings.compile:
            raise ValueError(
                "compile: expected False; the penalty differentiates twice, which torch's compiler refuses"
            )
        if not settings.data:
            raise ValueError("data: expected a picture")
        pictures = Images(settings.data)
        if len(pictures) != 1:
            raise ValueError(f"data: expected one picture, got {len(pictures)} in {settings.data}")
        self.notes += pictures.notes
        self.reals = pyramid(to_float(pictures[0][None]), settings.min_size, settings.max_size)
        self.reals = [real.to(device) for real in self.reals]
        norm = not settings.config.endswith("nobn")
        with seeded_weights(settings.seed):
            arguments = CONFIGS[settings.config] | dict(layout=settings.layout, width=settings.width)
            most = 4 * settings.width
            self.G = SinGANGenerator(len(self.reals), max_width=most, **arguments).to(device)
            self.D = SinGANDiscriminator(len(self.reals), norm=norm, width=settings.width, max_width=most).to(device)
        self.modules = {"generator": self.G, "discriminator": self.D}
        self.noises = self._fixed_noises()
        self.noise_weights = [1.0]
        self.stage = -1
        self.before: torch.Tensor | None = None

    def total(self) -> int:
        whole = len(self.reals) * self.settings.iterations_per_stage
        return min(self.settings.iterations or whole, whole)

    def batches(self, start: int) -> Iterator[None]:
        return itertools.repeat(None)

    def data_digest(self) -> str:
        picture = self.reals[-1].cpu().contiguous().numpy().tobytes()
        return hashlib.blake2b(picture, digest_size=16).hexdigest()

    def step(self, iteration: int, real: Any) -> dict[str, torch.Tensor | float]:
        stage, inside = divmod(iteration, self.settings.iterations_per_stage)
        if stage != self.stage:
            self._start(stage)
        if self.before is None:
            self.before = self._reconstruction_before()
        lr = self.settings.learning_rate * (0.1 if inside >= 0.8 * self.settings.iterations_per_stage else 1)
        for optimizer in self.optimizers.values():
            optimizer.param_groups[0]["lr"] = lr
        draws = Draws(self.settings.seed, iteration, self.settings.batch, self.device, torch.float32)
        self.G.train(), self.D.train()
        log: dict[str, torch.Tensor | float] = {"stage": float(stage)}
        for k in range(STEPS):
            log["loss_D"] = self._discriminator_step(draws, k)
        self.D.requires_grad_(False)
        for k in range(STEPS):
            log |= self._generator_step(draws, k)
        self.D.requires_grad_(True)
        self.synchronise(self.G, self.D.blocks[stage])
        if inside == 0 and stage + 1 < len(self.reals):
            self.noise_weights.append(NOISE * self._error_of_next(stage))
        return log

    def samples(self) -> tuple[torch.Tensor, int]:
        """The real picture, the reconstruction and random samples, of the current stage."""
        self.G.store_noises(self.noises[: self.stage + 1], self.noise_weights)
        self.G.eval()
        images = [self.reals[self.stage], self.G.reconstruct(), self.G.sample(2, seed=self.settings.seed)]
        self.G.train()
        return torch.cat(images), 4

    def extra_state(self) -> dict[str, Any]:
        done = self.stage + 1
        return {
            "stage": self.stage,
            "fixed_noises": self.noises[:done],
            "noise_weights": self.noise_weights[:done],
            "next_noise_weights": self.noise_weights[done:],
            "before": self.before,
        }

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        self.noise_weights = [*state["noise_weights"], *state["next_noise_weights"]]
        self.stage = state["stage"]
        self.before = None if state["before"] is None else state["before"].to(self.device)
        self._make_optimizers()

    def _fixed_noises(self) -> list[torch.Tensor]:
        """Normal noise for stage 0 and zeros for the others, in the published shapes."""
        original = self.settings.config == "original"
        first, others = (self.G.first_input.channels if self.G.encode else 1), 3 if original else 1
        shapes = [
            (1, others if t else first, h + self.G.margin, w + self.G.margin)
            for t, (h, w) in enumerate(real.shape[2:] for real in self.reals)
        ]
        noise = torch.randn(shapes[0], generator=generator(self.settings.seed, "fixed noise"))
        return [noise.to(self.device), *[torch.zeros(shape, device=self.device) for shape in shapes[1:]]]

    def _start(self, stage: int) -> None:
        """Begin a stage: weights of the stage before where they fit, new optimisers."""
        self.stage, self.before = stage, None
        for network in (self.G, self.D):
            if stage:
                new, old = network.blocks[stage], network.blocks[stage - 1].state_dict()
                if all(value.shape == old[name].shape for name, value in new.state_dict().items()):
                    new.load_state_dict(old)
        self._make_optimizers()

    def _make_optimizers(self) -> None:
        self.optimizers = {
            name: torch.optim.Adam(network.blocks[self.stage].parameters(), self.settings.learning_rate, (0.5, 0.999))
            for name, network in (("generator", self.G), ("discriminator", self.D))
        }

    @torch.no_grad()
    def _image_before(self, noises: list[torch.Tensor]) -> torch.Tensor:
        """Run the stages before the current one, and enlarge their image: [N, 3, h, w]."""
        size = self.reals[self.stage].shape[2:]
        if self.stage == 0:
            return noises[0].new_zeros(noises[0].shape[0], 3, *size)
        return resize(self.G(noises[: self.stage], self.noise_weights[: self.stage]), size)

    def _reconstruction_before(self) -> torch.Tensor:
        self.G.train()
        with self.autocast():
            return self._image_before(self.noises)

    def _random(self, draws: Draws, purpose: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Draw noise for all stages; return the current one's and the image before."""
        shapes = [noise.shape[1:] for noise in self.noises[: self.stage + 1]]
        noises = [draws.normal(f"{purpose} {t}", *shape) for t, shape in enumerate(shapes)]
        return noises[-1], self._image_before(noises)

    def _image(self, noise: torch.Tensor, before: torch.Tensor) -> torch.Tensor:
        return self.G.stage(self.stage, noise, self.noise_weights[self.stage], before)

    def _judge(self, image: torch.Tensor) -> torch.Tensor:
        return self.D(image, self.stage)

    def _discriminator_step(self, draws: Draws, k: int) -> torch.Tensor:
        real = self.reals[self.stage]
        with self.autocast():
            with torch.no_grad():
                fake = self._image(*self._random(draws, f"D{k}"))
            loss = self._judge(fake).mean() - self._judge(real).mean()
            alpha = draws.uniform(f"penalty {k}")
            real = real.expand_as(fake)
            loss = loss + PENALTY * losses.gradient_penalty(self._judge, real, fake, alpha, per_pixel=True)
        self.update(self.optimizers["discriminator"], loss)
        return ranks.average(loss.detach())

    def _generator_step(self, draws: Draws, k: int) -> dict[str, torch.Tensor]:
        with self.autocast():
            adversarial = -self._judge(self._image(*self._random(draws, f"G{k}"))).mean()
            assert self.before is not None
            error = F.mse_loss(self._image(self.noises[self.stage], self.before), self.reals[self.stage])
            loss = adversarial + RECONSTRUCTION * error
        self.update(self.optimizers["generator"], loss)
        return {"loss_G": ranks.average(adversarial.detach()), "reconstruction": ranks.average(error.detach())}

    @torch.no_grad()
    def _error_of_next(self, stage: int) -> float:
        """Root-mean-square error of the reconstruction, enlarged to the next stage."""
        assert self.before is not None
        image = F.interpolate(self._image(self.noises[stage], self.before), self.reals[stage + 1].shape[2:])
        return math.sqrt(float(F.mse_loss(image, self.reals[stage + 1])))


def pyramid(image: torch.Tensor, min_size: int, max_size: int) -> list[torch.Tensor]:
    """Resize ``image`` [1, 3, H, W] to the sides of all stages, the coarsest first.

    The shorter side of the coarsest is ``min_size``, the longer of the finest at most ``max_size``; the factor between
    two stages is the same and near 0.75. Bicubic with antialiasing. The released code makes the finest image as large
    as the picture, whatever ``max_size`` is.

    Raises:
        ValueError: an image whose shorter side is, or becomes, smaller than ``min_size``.
    """
    h, w = image.shape[2:]
    if min(h, w) < min_size:
        raise ValueError(f"data: expected a picture of at least {min_size} pixels a side, got {h} x {w}")
    longest = min(max_size, max(h, w))
    stages = math.ceil(math.log(min_size / min(h, w)) / math.log(FACTOR)) + 1
    last = max(0, stages - math.ceil(math.log(longest / max(h, w)) / math.log(FACTOR)))
    finest = longest / max(h, w)
    shortest = round(min(h, w) * finest)
    if shortest < min_size:
        needed = math.ceil(min_size * max(h, w) / min(h, w))
        raise ValueError(
            f"max_size: expected at least {needed} for a picture of {h} x {w} and {min_size=}, got {max_size}"
        )
    factor = (min_size / shortest) ** (1 / last) if last else 1.0
    sizes = [(h * finest * factor ** (last - i), w * finest * factor ** (last - i)) for i in range(last + 1)]
    rounded = [(max(1, round(a)), max(1, round(b))) for a, b in sizes]
    return [
        image if size == (h, w) else F.interpolate(image, size, mode="bicubic", antialias=True).clamp(-1, 1)
        for size in rounded
    ]
