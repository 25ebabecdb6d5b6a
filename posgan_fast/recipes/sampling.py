"""Images from any generator that loads: checkpoints of the recipes, and the files of every family."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from ..models import (
    CheckpointError,
    Generator,
    LoadReport,
    PGGANGenerator,
    SinGANGenerator,
    load_dcgan,
    load_generator,
    load_pggan,
    load_singan,
    mspie,
    read_checkpoint,
)
from ..models.containers import holds, is_run
from ..ops.common import checks
from . import dcgan, pggan, singan
from .draws import generator as seeded
from .mspie import MSPIESettings

Scale = float | Sequence[float] | None
MOST_PSI = 100


class Sampler:
    """A generator with one way to ask for images, whatever its kind.

    Attributes:
        kind: "StyleGAN2", "SinGAN", "PGGAN" or "DCGAN".
        generator: the network, in evaluation mode.
        report: of a published file: what became of its tensors; None for a checkpoint of a recipe.
        bgr: True if it makes blue, green and red.
    """

    def __init__(self, kind: str, generator: torch.nn.Module, report: LoadReport | None, bgr: bool) -> None:
        self.kind, self.generator, self.report, self.bgr = kind, generator.eval(), report, bgr

    @torch.no_grad()
    def images(
        self, n: int, *, size: Sequence[int] | None = None, scale: Scale = None, seed: int = 0, psi: float = 1.0
    ) -> Iterator[torch.Tensor]:
        """Yield ``n`` images [3, H, W], RGB from -1 to 1; each depends on its number and the seed only.

        Args:
            n: number of images.
            size: [height, width]. StyleGAN2: multiples of a quarter of the generator's size, from that size on; PGGAN:
                a side that it grew through; SinGAN: any.
            scale: instead of a size. StyleGAN2: rows and columns that are added to the first feature map, as in MS-PIE;
                SinGAN: factor of both sides or [rows, columns].
            seed: seed of latents and noise.
            psi: truncation of StyleGAN2; 1 is none.

        Raises:
            ValueError: a size, scale or truncation that this generator does not have.
        """
        n = checks.integer(n, "n", minimum=0)
        if size is not None and scale is not None:
            raise ValueError("size: expected None beside scale")
        seed = checks.integer(seed, "seed", minimum=0)
        if abs(checks.real(psi, "psi")) > MOST_PSI:
            raise ValueError(f"psi: expected a number from {-MOST_PSI} to {MOST_PSI}, got {psi}")
        make = self._maker(size, scale, psi)
        for k in range(n):
            image = make(seed, k)[0]
            if not bool(image.isfinite().all()):
                raise CheckpointError("the generator makes numbers that are not finite")
            yield image.flip(0) if self.bgr else image

    def _maker(self, size: Any, scale: Any, psi: float) -> Callable[[int, int], torch.Tensor]:
        G: Any = self.generator
        like = next(G.parameters())
        if psi != 1 and self.kind != "StyleGAN2":
            raise ValueError(f"psi: expected 1 for {self.kind}, got {psi}")

        def normal(seed: int, k: int, purpose: str, *shape: int) -> torch.Tensor:
            random = seeded(seed, purpose, k, device=like.device)
            return torch.randn(shape, generator=random, device=like.device, dtype=like.dtype)

        if isinstance(G, SinGANGenerator):
            return lambda seed, k: G.sample(1, scale=scale, size=size, seed=seeded(seed, "singan", k).initial_seed())
        if isinstance(G, Generator):
            added = _added(G, size, scale)
            sides = G.synthesis.noise_sizes(added)

            def stylegan2(seed: int, k: int) -> torch.Tensor:
                noises = [normal(seed, k, f"noise {i}", 1, 1, *side) for i, side in enumerate(sides)]
                label = None if not G.c_dim else torch.eye(G.c_dim, device=like.device)[None, k % G.c_dim]
                z = normal(seed, k, "z", 1, G.z_dim) if G.z_dim else None
                return G(z, label, truncation_psi=psi, noises=noises, scale=added)

            return stylegan2
        if scale is not None:
            raise ValueError(f"scale: expected None for {self.kind}, got {scale}")
        side = _square(size)
        if isinstance(G, PGGANGenerator):
            return lambda seed, k: G(normal(seed, k, "z", 1, G.z_dim), size=side)
        if side not in (None, G.size):
            raise ValueError(f"size: expected {G.size} x {G.size}, got {side} x {side}")
        return lambda seed, k: G(normal(seed, k, "z", 1, G.z_dim))


def load(path: str | os.PathLike, noises: str | os.PathLike | None = None, **arguments: Any) -> Sampler:
    """Load the generator of any kind in a file.

    Args:
        path: a checkpoint of a recipe, or a file that :func:`posgan_fast.models.load_generator`, ``load_singan``,
            ``load_pggan`` or ``load_dcgan`` reads.
        noises: the .pkl of a published SinGAN.
        arguments: for those functions; not for checkpoints of a recipe, which know their settings.

    Raises:
        UnsafeFileError, CheckpointError: as those functions.
        TypeError: an argument that the generator does not take.
    """
    data = read_checkpoint(path)
    if is_run(data):
        if data["recipe"] == "padinv":
            raise CheckpointError(
                f"{path}: an encoder, which makes no images; posgan_fast.recipes.load_trained_encoder reads it"
            )
        if arguments or noises is not None:
            given = ", ".join([*arguments, *(["noises"] if noises is not None else [])])
            raise TypeError(
                f"{given}: expected none for {path}, a checkpoint of posgan-fast train, which has its settings"
            )
        try:
            return _from_recipe(data)
        except (KeyError, RuntimeError, TypeError, ValueError) as error:
            raise CheckpointError(f"{path}: damaged checkpoint of posgan-fast train: {error}") from None
    loaders: dict[str, Callable[..., Any]] = {"SinGAN": load_singan, "PGGAN": load_pggan, "DCGAN": load_dcgan}
    kind = next((kind for kind in loaders if holds(data, f"{kind} generator")), "StyleGAN2")
    if noises is not None:
        if kind != "SinGAN":
            raise CheckpointError(f"{path}: noises belong to a SinGAN, which it does not hold")
        arguments["noises"] = noises
    model = loaders.get(kind, load_generator)(data, **arguments)
    return Sampler(kind, model, model.report, bgr=kind != "StyleGAN2" or _is_bgr(model))


def _from_recipe(data: Mapping[str, Any]) -> Sampler:
    """Build the generator of a checkpoint of a recipe."""
    recipe, settings = data["recipe"], data["settings"]
    if recipe == "singan":
        arguments = singan.CONFIGS[settings["config"]] | {"layout": settings["layout"]}
        return Sampler("SinGAN", load_singan(data["models"]["generator"], noises=data, **arguments), None, bgr=False)
    state = data["models"]["generator_ema"]
    if recipe == "mspie":
        chosen = MSPIESettings(**settings)
        model = mspie.generator(chosen.config, layout=chosen.layout, **chosen.networks())
        model.load_state_dict(state, strict=True)
        return Sampler("StyleGAN2", model, None, bgr=False)
    kind, loader, configs = {
        "pggan": ("PGGAN", load_pggan, pggan.CONFIGS),
        "dcgan": ("DCGAN", load_dcgan, dcgan.CONFIGS),
    }[recipe]
    arguments = configs[settings["config"]]
    layout = {"layout": settings["layout"]} if arguments.get("encode") else {}
    return Sampler(kind, loader(state, **arguments, **layout), None, bgr=False)


def _is_bgr(model: Generator) -> bool:
    """Tell whether mmgeneration trained the weights; official ones that were converted for it make RGB."""
    settings = model.report.settings
    multi_scale = (
        settings.get("head") != "constant" or settings.get("no_pad") or settings.get("up_after_conv") is not None
    )
    return model.report.family == "mmgeneration" and bool(multi_scale)


def _added(G: Generator, size: Any, scale: Any) -> tuple[int, int]:
    """Return the rows and columns that are added to the first feature map of a StyleGAN2."""
    if size is None:
        return checks.pair(0 if scale is None else scale, "scale", minimum=0, axes="[rows, columns]")
    step, found = G.size // 4, []
    for side, least, name in zip(checks.size(size, "size"), G.img_size, ("height", "width"), strict=True):
        if side < least or side % step:
            raise ValueError(
                f"size: expected a {name} of {least}, {least + step}, {least + 2 * step}, ... , got {side}"
            )
        found.append((side - least) // step)
    return found[0], found[1]


def _square(size: Any) -> int | None:
    if size is None:
        return None
    height, width = checks.size(size, "size")
    if height != width:
        raise ValueError(f"size: expected a square for this generator, got {height} x {width}")
    return height
