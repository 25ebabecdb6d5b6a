"""Real pictures, which ship inside scikit-image, and short trainings on them."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from skimage import color, data
from torch.nn import functional as F

from ..recipes import RECIPES, sampling, train
from ..recipes.images import to_float, to_uint8

PHOTOGRAPHS = ("astronaut", "brick", "chelsea", "coffee", "coins", "grass", "gravel", "hubble_deep_field", "rocket")
FACES = 100  # pictures of lfw_subset that show a face; the others do not


def photograph(name: str) -> np.ndarray:
    """Return one of ``PHOTOGRAPHS``, uint8 [H, W, 3]."""
    picture = getattr(data, name)()
    return picture if picture.ndim == 3 else color.gray2rgb(picture)


def faces(side: int, resized: int | None = None) -> torch.Tensor:
    """Return 100 grey faces and their mirror images, [200, 3, side, side] from -1 to 1.

    Args:
        side: pixels of both sides; the originals have 25.
        resized: resizes from ``side`` to this side as MS-PIE does: bilinearly, with aligned corners.
    """
    images = to_float(torch.stack([torch.from_numpy(np.array(face)) for face in _faces(side)]))
    images = torch.cat([images, images.flip(2)]).permute(0, 3, 1, 2).contiguous()
    if resized is None:
        return images
    return F.interpolate(images, (resized, resized), mode="bilinear", align_corners=True)


def save_faces(folder: Path, side: int, some: slice) -> None:
    """Save some of the 100 faces as PNG, for a training."""
    _save(_faces(side)[some], folder)


def check_count(images: int, least: int) -> None:
    """Refuse a number of images below ``least``, or above that of the faces."""
    if not least <= images <= 2 * FACES:
        raise ValueError(f"--images: expected {least} to {2 * FACES}, got {images}")


def trained_on_faces(recipe: str, side: int, **settings: Any) -> sampling.Sampler:
    """Train ``recipe`` on the 100 faces at ``side`` pixels, and return its generator."""
    return _trained(recipe, _faces(side), settings)


def trained_on_photograph(picture: np.ndarray, **settings: Any) -> sampling.Sampler:
    """Train a SinGAN on ``picture``, uint8 [H, W, 3], and return its generator."""
    return _trained("singan", [Image.fromarray(picture)], settings)


def shown(image: torch.Tensor) -> np.ndarray:
    """Turn an image [3, H, W] from -1 to 1 into uint8 [H, W, 3]."""
    return to_uint8(image).permute(1, 2, 0).numpy()


def _faces(side: int) -> list[Image.Image]:
    faces = np.round(data.lfw_subset()[:FACES] * 255).astype(np.uint8)
    return [Image.fromarray(face).resize((side, side), Image.Resampling.BICUBIC).convert("RGB") for face in faces]


def _save(pictures: list[Image.Image], folder: Path) -> None:
    folder.mkdir(parents=True)
    for k, picture in enumerate(pictures):
        picture.save(folder / f"{k:03}.png")


def _trained(recipe: str, pictures: list[Image.Image], settings: dict[str, Any]) -> sampling.Sampler:
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "pictures")
        _save(pictures, source)
        make = RECIPES[recipe]
        at_the_end: dict[str, Any] = {"save_every": 10**9, "sample_every": 10**9}
        checkpoint = train(
            make, make.settings_type(**at_the_end | settings, data=str(source), out=str(Path(folder, "run")))
        )
        return sampling.load(checkpoint)
