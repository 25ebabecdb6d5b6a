"""Training the systems of the papers; needs the packages of ``posgan_fast[train]``.

``train(MSPIE, MSPIESettings(data="photos", out="run"))`` does what ``posgan-fast train mspie`` does.
"""

from __future__ import annotations

from .checkpoint import load
from .dcgan import DCGAN, DCGANSettings
from .loop import Recipe, Settings, train
from .mspie import MSPIE, MSPIESettings
from .pggan import PGGAN, PGGANSettings
from .singan import SinGAN, SinGANSettings

RECIPES: dict[str, tuple[type[Recipe], type[Settings]]] = {
    "mspie": (MSPIE, MSPIESettings),
    "singan": (SinGAN, SinGANSettings),
    "pggan": (PGGAN, PGGANSettings),
    "dcgan": (DCGAN, DCGANSettings),
}

__all__ = [
    "DCGAN",
    "MSPIE",
    "PGGAN",
    "RECIPES",
    "DCGANSettings",
    "MSPIESettings",
    "PGGANSettings",
    "Recipe",
    "Settings",
    "SinGAN",
    "SinGANSettings",
    "load",
    "train",
]
