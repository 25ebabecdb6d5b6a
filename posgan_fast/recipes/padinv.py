"""Training the encoder of PadInv: inversion of a StyleGAN2 generator, which stays as it is.

Each iteration steps the encoder E with x^ = G(E(x)), constant noise, and then, where the configuration has an
adversarial term, the discriminator on images that E encodes anew. Larger images x^ are averaged down to the encoder's
size; for a generator smaller than that the pictures are averaged down to its size instead::

    loss_E = 1 * pixel + 0.8 * perceptual + l_id * identity + l_adv * adversarial + 0.003 * regularisation

    term             as released                            as in the paper
    pixel            mean of (x - x^)^2                     |x - x^|                   (Eq. 1)
    perceptual       LPIPS                                  |phi(x) - phi(x^)|         (Eq. 2)
    identity         1 - <psi(x), psi(x^)>                  the same                   (Eq. 3)
    adversarial      softplus(-D(x^))                       -D(x^)                     (Eq. 4)
    regularisation   |w - average latent|                   the same                   (Eq. 5)

    loss_D           softplus(D(x^)) + softplus(-D(x))      D(x^) - D(x) + 5 |dD(x) / dx|    (Eq. 7)
                     + 5 |dD(x) / dx|^2

All are means over the batch, and |.| is the l2 norm over all numbers of one sample; w includes the latents that a small
generator does not read. phi(x) are LPIPS's weighted features at every pixel: LPIPS averages their squared differences
over the pixels, Eq. 2 takes the root of the sum. Eq. 7 prints a minus sign before its penalty, which would reward steep
discriminators; this is taken as a misprint. The penalty runs at every iteration, yet the discriminator's Adam has the
rates of a penalty at every 16th, as released. The paper tells neither these rates nor whether pictures are mirrored,
so its configurations follow the released code there.

Batch normalisation takes the statistics of each process's own batch. Both encodings of an iteration move the running
averages, which are then averaged over the processes.

Source: "High-fidelity GAN Inversion with Padding Space" (ECCV 2022), section 3.4, and its released code.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..models import (
    CheckpointError,
    Discriminator,
    Generator,
    PadInvEncoder,
    load_backbone,
    load_discriminator,
    read_checkpoint,
)
from ..models.containers import holds, is_run
from ..models.padinv import LEAST_SIZE, PADDINGS
from . import checkpoint, losses, perception, ranks
from .codes import fingerprint
from .draws import seeded_weights
from .images import Batches, Images, to_float
from .inversion import fitted
from .loop import Recipe, Settings, option
from .sampling import Sampler
from .sampling import load as load_sampler

BETAS, DISCRIMINATOR_BETAS = (0.9, 0.999), (0.9, 0.99)  # of Adam
SHARE = 16 / 17  # power of the discriminator's betas, and factor of its learning rate
PENALTY = 10 / 2  # gamma / 2
SHOWN = 8  # pictures in a grid of samples


class Config(NamedTuple):
    """Form and weights of the losses.

    Example:
        >>> CONFIGS["bedroom"].adversarial, CONFIGS["paper-bedroom"].adversarial
        (0.05, 0.03)
    """

    form: str  # "released" or "paper"
    identity: float
    adversarial: float
    mirror: bool  # whether every other picture is mirrored, at random
    pixel: float = 1.0
    perceptual: float = 0.8
    regularisation: float = 0.003


CONFIGS: dict[str, Config] = {
    #                      form,       identity, adversarial, mirror
    "ffhq":          Config("released", 0.1,      0.0,         True),
    "church":        Config("released", 0.0,      0.03,        False),
    "bedroom":       Config("released", 0.0,      0.05,        False),
    "paper-ffhq":    Config("paper",    0.1,      0.0,         True),
    "paper-church":  Config("paper",    0.0,      0.03,        False),
    "paper-bedroom": Config("paper",    0.0,      0.03,        False),
}  # fmt: skip
_PATHS = ("generator", "discriminator", "backbone", "perceptual", "identity")


@dataclass(frozen=True)
class PadInvSettings(Settings):
    """Settings of :class:`PadInv`.

    Example:
        >>> PadInvSettings(data="photos", out="run", generator="stylegan2.pkl", config="church").iterations
        100000
    """

    generator: str = option("", "file of the StyleGAN2 to invert: published weights, or a run of train mspie")
    config: str = option("ffhq", "losses: as released, or in the paper's forms", choices=tuple(CONFIGS))
    size: int = option(256, "side of the encoder's images, in pixels, a power of two", minimum=LEAST_SIZE)
    padding: str = option(
        "heads",
        "padding maps: one head for each layer (as released), one map for all layers, the paper's projection, or none "
        "(pSp)",
        choices=(*PADDINGS, "none"),
    )
    pad_layers: int = option(0, "layers with a padding map; 0: four, or fewer for a generator of less than 64 pixels")
    constant_only: bool = option(False, "replace the generator's constant, but no padding")
    latents: int = option(0, "latents of the encoder; 0: those that the generator reads (released: 18 for any)")
    depth: int = option(50, "layers of the IResNet: 50, 100 or 152")
    backbone: str = option("", "file of weights that the IResNet begins with, such as ArcFace's")
    perceptual: str = option("", "file of LPIPS; default: what the package lpips and torchvision have stored here")
    identity: str = option("", "file of ArcFace's IR-SE-50")
    discriminator: str = option(
        "", "file of the discriminator to begin with; default: that in the generator's file, or a new one"
    )
    learning_rate: float = option(1e-4, "of the encoder; the discriminator's is 16/17 of it")
    batch: int = option(8, "images of a process and iteration", minimum=1)
    iterations: int = option(100_000, "iterations in all", minimum=1)
    save_every: int = option(2000, "iterations between checkpoints", minimum=1)

    def __post_init__(self) -> None:
        for name in _PATHS:
            if isinstance(value := getattr(self, name), os.PathLike):
                object.__setattr__(self, name, os.fspath(value))
        super().__post_init__()


class PadInv(Recipe):
    """Train an encoder with the losses of one of ``CONFIGS``.

    A term whose weights are missing is left out, and ``notes`` says so. The checkpoint holds encoder and discriminator;
    :func:`load_trained_encoder` reads it.

    Raises:
        FileNotFoundError: there is no such file.
        UnsafeFileError, CheckpointError: a file is damaged, or holds another network.
        TypeError, ValueError: a wrong setting, or networks that do not go together.
    """

    name = "padinv"
    settings_type = PadInvSettings
    settings: PadInvSettings

    def __init__(self, settings: PadInvSettings, device: torch.device) -> None:
        super().__init__(settings, device)
        self.config = CONFIGS[settings.config]
        sampler = _load_generator(settings.generator)
        self.G: Generator = sampler.generator.to(device).requires_grad_(False)  # type: ignore[assignment]
        self.bgr = sampler.bgr  # which G makes and D judges; E and the other networks see RGB
        self.side = min(settings.size, self.G.size)  # of the images that are compared
        self.fingerprint = fingerprint(self.G)
        if sampler.report is not None:
            self.notes += [f"generator: {note}" for note in sampler.report.notes]
        with seeded_weights(settings.seed):
            self.encoder = self._new_encoder().to(device)
            D = self._first_discriminator() if self.config.adversarial else None
        self.D = None if D is None else D.to(device).train()
        self.perceptual = self._load_perceptual()
        self.identity = self._load_identity()
        self._note_unused()
        self.modules = {"encoder": self.encoder}
        self.optimizers = {"encoder": torch.optim.Adam(self.encoder.parameters(), settings.learning_rate, BETAS)}
        if self.D is not None:
            self.modules["discriminator"] = self.D
            a, b = (beta**SHARE for beta in DISCRIMINATOR_BETAS)
            self.optimizers["discriminator"] = torch.optim.Adam(
                self.D.parameters(), settings.learning_rate * SHARE, (a, b)
            )
        if not settings.data:
            raise ValueError("data: expected a folder, a zip archive or a picture")
        self.images = Images(settings.data, settings.size)
        self.notes += self.images.notes
        compiled = torch.compile if settings.compile else lambda network: network
        self.fast_encoder, self.fast_synthesis = compiled(self.encoder), compiled(self.G.synthesis)
        self.fast_D = None if self.D is None else compiled(self.D)

    def batches(self, start: int) -> Iterator[torch.Tensor]:
        settings = self.settings
        batches = Batches(self.images, settings.batch, settings.seed, self.config.mirror, settings.workers)
        return batches.start(start, self.total())

    def data_digest(self) -> str:
        return self.images.digest()

    def step(self, iteration: int, real: torch.Tensor) -> dict[str, torch.Tensor | float]:
        images = to_float(real, self.device)
        if self.D is not None:
            self.D.requires_grad_(False)
        loss, log = self.encoder_loss(images)
        self.update(self.optimizers["encoder"], loss)
        if self.D is not None:
            self.D.requires_grad_(True)
            loss, more = self.discriminator_loss(images)
            self.update(self.optimizers["discriminator"], loss)
            log |= more
        self.synchronise(self.encoder)
        return {name: ranks.average(value.detach().float()) for name, value in log.items()}

    def invert(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode images and make them again.

        Args:
            images: x [N, 3, size, size].

        Returns:
            All latents of the encoder, [N, latents, w_dim], and x^ [N, 3, side, side], RGB in float32.
        """
        with self.autocast():
            ws, pad_maps = self.fast_encoder(images)
            made = self.fast_synthesis(ws[:, : self.G.num_ws], pad_maps=pad_maps, noise_mode="const", force_fp32=True)
        made = fitted(made.float(), self.side)
        return ws.float(), made.flip(1) if self.bgr else made

    def encoder_loss(self, images: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the loss of the encoder on images [N, 3, size, size], and its terms."""
        ws, made = self.invert(images)
        real = fitted(images, self.side)
        paper = self.config.form == "paper"
        terms = {"pixel": losses.norm(real - made) if paper else (real - made).square().mean()}
        if self.perceptual is not None:
            terms["perceptual"] = (self.perceptual.norm if paper else self.perceptual)(made, real).mean()
        if self.identity is not None:
            terms["identity"] = 1 - (self.identity(made) * self.identity(real)).sum(1).mean()
        if self.D is not None:
            with self.autocast():
                scores = self._judge(self.fast_D, made)
            terms["adversarial"] = (losses.wasserstein_generator if paper else losses.logistic_generator)(scores)
        terms["regularisation"] = losses.norm(ws - self.encoder.latent_average)
        loss = torch.stack([getattr(self.config, name) * value for name, value in terms.items()]).sum()
        return loss, {"loss_E": loss} | terms

    def discriminator_loss(self, images: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the loss of the discriminator on images [N, 3, size, size], and numbers for the log."""
        with torch.no_grad():
            made = self.invert(images)[1]
        real = fitted(images, self.side).detach().requires_grad_()
        with self.autocast():
            made_scores, real_scores = self._judge(self.fast_D, made), self._judge(self.D, real)
            if self.config.form == "paper":
                main = losses.wasserstein_discriminator(made_scores, real_scores)
                penalty = losses.gradient_norm(real_scores, real)
            else:
                main = losses.logistic_discriminator(made_scores, real_scores)
                penalty = losses.r1(real_scores, real)
        return main + PENALTY * penalty, {"loss_D": main, "penalty": penalty}

    def samples(self) -> tuple[torch.Tensor, int]:
        """The first pictures, each with its inversion to the right, two pairs in a row."""
        count = min(SHOWN, len(self.images))
        pictures = to_float(torch.stack([self.images[k] for k in range(count)]), self.device)
        self.encoder.eval()
        made = torch.cat([self.invert(part)[1] for part in pictures.split(self.settings.batch)])
        self.encoder.train()
        return torch.stack([fitted(pictures, self.side), made], dim=1).flatten(0, 1), 4

    def extra_state(self) -> dict[str, Any]:
        return {
            "encoder_settings": _settings_of(self.encoder, self.settings.depth),
            "generator_fingerprint": self.fingerprint,
            "terms": self._terms(),
        }

    def load_extra_state(self, state: Mapping[str, Any]) -> None:
        _check_fingerprint(state, self.fingerprint)
        if state["terms"] != self._terms():
            raise ValueError(f"expected the terms {', '.join(state['terms'])}, got {', '.join(self._terms())}")

    def _terms(self) -> list[str]:
        networks = {"perceptual": self.perceptual, "identity": self.identity, "adversarial": self.D}
        return ["pixel", *(name for name, network in networks.items() if network is not None), "regularisation"]

    def _judge(self, D: Any, images: torch.Tensor) -> torch.Tensor:
        return D(images.flip(1) if self.bgr else images)

    def _new_encoder(self) -> PadInvEncoder:
        settings, G = self.settings, self.G
        padding = None if settings.padding == "none" else settings.padding
        arguments: dict[str, Any] = dict(padding=padding, depth=settings.depth)
        if settings.constant_only:
            if padding is None or settings.pad_layers:
                raise ValueError("constant_only: expected False beside pad_layers, or without padding maps, got True")
            arguments |= dict(padding="shared" if padding == "heads" else padding, pad_layers=0)
        if settings.pad_layers:
            if padding is None:
                raise ValueError(f"pad_layers: expected 0 without padding maps, got {settings.pad_layers}")
            arguments["pad_layers"] = settings.pad_layers
        if settings.latents:
            if settings.latents < G.num_ws:
                raise ValueError(f"latents: expected at least the generator's {G.num_ws}, got {settings.latents}")
            arguments["num_ws"] = settings.latents
        encoder = PadInvEncoder.for_generator(G, settings.size, **arguments)
        if settings.backbone:
            _require_file(settings.backbone, "backbone")
            try:
                load_backbone(encoder, settings.backbone)
            except CheckpointError as error:
                raise type(error)(f"backbone: {error}") from None
        return encoder.train()

    def _first_discriminator(self) -> Discriminator:
        """Load the discriminator that the run begins with, or make a new one."""
        settings, side = self.settings, self.side
        if settings.discriminator:
            D = _load_discriminator(settings.discriminator, "discriminator")
            if D is None:
                raise CheckpointError(f"discriminator: expected one of StyleGAN2 in {settings.discriminator}, got none")
            if unfit := _unfit(D, side):
                raise ValueError(f"discriminator: expected one for {side} x {side} pixels, RGB, no labels, got {unfit}")
        else:
            D = _load_discriminator(settings.generator, "generator")
            unfit = "none" if D is None else _unfit(D, side)
            if unfit:
                self.notes.append(
                    f"discriminator: a new one for {side} x {side} pixels, RGB, no labels; {settings.generator} has "
                    f"{unfit}"
                )
                channels = self.G.get_parameter("synthesis.b4.conv1.weight").shape[0]
                D = Discriminator(side, channel_max=channels)
        assert D is not None
        mbstd = D.b4.mbstd
        group = 1 if mbstd is None else min(mbstd.group_size or settings.batch, settings.batch)
        if settings.batch % group:
            raise ValueError(f"batch: expected up to {group} or a multiple of it, got {settings.batch}")
        return D

    def _load_perceptual(self) -> perception.LPIPS | None:
        small = f"images of {self.side} pixels, less than the {perception.LEAST_SIDE} of LPIPS"
        if path := self.settings.perceptual:
            if self.side < perception.LEAST_SIDE:
                raise ValueError(f"perceptual: expected no file for {small}")
            return perception.load_lpips(path).to(self.device)
        paths, why = perception.installed_lpips()
        if self.side < perception.LEAST_SIDE:
            why = small
        elif paths:
            try:
                return perception.load_lpips(*paths).to(self.device)
            except (CheckpointError, OSError) as error:
                why = str(error)
        self.notes.append(f"the perceptual term is off: no file given, and {why}")
        return None

    def _load_identity(self) -> perception.ArcFace | None:
        if not self.config.identity:
            return None
        if self.settings.identity:
            return perception.load_arcface(self.settings.identity).to(self.device)
        self.notes.append("the identity term is off: no file given")
        return None

    def _note_unused(self) -> None:
        for name, weight in (("identity", self.config.identity), ("discriminator", self.config.adversarial)):
            if getattr(self.settings, name) and not weight:
                self.notes.append(f"{name}: not used, config {self.settings.config} has no such term")


def load_trained_encoder(path: str | os.PathLike, generator: Generator) -> PadInvEncoder:
    """Load the encoder that :class:`PadInv` trained, in evaluation mode and on the device of the generator.

    Args:
        path: the checkpoint of the run.
        generator: the generator that it was trained for.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is damaged, of another recipe, or of an encoder for another generator.
        TypeError: the generator is no StyleGAN2.

    Example:
        >>> generator = load_sampler("stylegan2.pkl").generator  # doctest: +SKIP
        >>> ws, pad_maps = load_trained_encoder("run/checkpoint.pt", generator)(images)  # doctest: +SKIP
    """
    mark = fingerprint(generator)
    content, path = checkpoint.load(path, PadInv.name), Path(path)
    checkpoint.restore(lambda state: _check_fingerprint(state, mark), content, path, "encoder")
    try:
        encoder = PadInvEncoder(**content["encoder_settings"])
        state = content["models"]["encoder"]
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged: encoder_settings or models: {error}") from None
    checkpoint.restore(encoder.load_state_dict, state, path, "encoder")
    return encoder.to(next(generator.parameters()).device).eval()


def _check_fingerprint(state: Mapping[str, Any], mark: str) -> None:
    if state["generator_fingerprint"] != mark:
        raise CheckpointError("generator: expected the one that the encoder was trained for, got another")


def _settings_of(encoder: PadInvEncoder, depth: int) -> dict[str, Any]:
    """Return the arguments that make such an encoder."""
    settings = dict(
        size=encoder.size,
        num_ws=encoder.num_ws,
        levels=list(encoder.levels),
        w_dim=encoder.w_dim,
        depth=depth,
        width=encoder.channels // 8,
        padding=encoder.padding,
        pad_layers=encoder.pad_layers,
        pad_constant=encoder.pad_constant,
    )
    if encoder.padding == "heads":
        heads: Any = encoder.padding_modulation_heads
        settings["pad_channels"] = [head.out_channels for head in heads]
    if encoder.padding in ("heads", "shared"):
        settings["extractor_depth"] = len(encoder.padding_extractor)
    return settings


def _require_file(path: str, name: str) -> None:
    if not Path(path).is_file():
        raise FileNotFoundError(f"{name}: no such file: {path}")


def _load_generator(path: str) -> Sampler:
    if not path:
        raise ValueError("generator: expected a file with a StyleGAN2 generator")
    _require_file(path, "generator")
    try:
        sampler = load_sampler(path)
    except CheckpointError as error:
        raise type(error)(f"generator: {error}") from None
    G: Any = sampler.generator
    if not isinstance(G, Generator):
        raise CheckpointError(f"generator: expected a StyleGAN2, got a {sampler.kind} in {path}")
    if G.img_channels != 3 or G.img_size != (G.size, G.size):
        raise ValueError(
            f"generator: expected one of square RGB images, got {G.img_channels} channels of {G.img_size} pixels"
        )
    return sampler


def _load_discriminator(path: str, name: str) -> Discriminator | None:
    """Load the discriminator in a file, or return None if there is none of StyleGAN2."""
    _require_file(path, name)
    try:
        data = read_checkpoint(path)
        if is_run(data):  # of which only MS-PIE's has a StyleGAN2
            data = data["models"].get("discriminator", {}) if data["recipe"] == "mspie" else {}
        return load_discriminator(data, num_fp16_res=0) if holds(data, "discriminator") else None
    except CheckpointError as error:
        raise type(error)(f"{name}: {error}") from None


def _unfit(D: Discriminator, side: int) -> str:
    """Say what keeps D from judging RGB images of ``side`` pixels; "" if nothing does."""
    if D.c_dim:
        return "one with labels"
    if D.img_channels != 3:
        return f"one of {D.img_channels} channels"
    if not D.adaptive_pool and D.img_size != (side, side):
        return f"one for {D.img_size[0]} x {D.img_size[1]} pixels"
    return ""
