"""Training the systems of the papers; needs the packages of ``posgan_fast[train]``.

``train(MSPIE, MSPIESettings(data="photos", out="run"))`` does what ``posgan-fast train mspie`` does, and
``load_sampler("run/checkpoint.pt")`` gives the trained generator, ready to make images.
"""

from __future__ import annotations

from .checkpoint import load
from .dcgan import DCGAN, DCGANSettings
from .loop import Recipe, Settings, train
from .mspie import MSPIE, MSPIESettings
from .padinv import PadInv, PadInvSettings, load_trained_encoder
from .pggan import PGGAN, PGGANSettings
from .sampling import Sampler
from .sampling import load as load_sampler
from .singan import SinGAN, SinGANSettings

RECIPES: dict[str, type[Recipe]] = {recipe.name: recipe for recipe in (MSPIE, SinGAN, PGGAN, DCGAN, PadInv)}

__all__ = [
    "DCGAN",
    "MSPIE",
    "PGGAN",
    "RECIPES",
    "DCGANSettings",
    "MSPIESettings",
    "PGGANSettings",
    "PadInv",
    "PadInvSettings",
    "Recipe",
    "Sampler",
    "Settings",
    "SinGAN",
    "SinGANSettings",
    "load",
    "load_sampler",
    "load_trained_encoder",
    "train",
]
