"""Whole networks built from :mod:`posgan_fast.nn`, and functions that load their weights."""

from __future__ import annotations

from . import mspie
from .convert import convert_discriminator, convert_generator
from .dcgan import DCGANDiscriminator, DCGANGenerator
from .encoders import load_backbone, load_encoder
from .files import read_checkpoint
from .loading import load_discriminator, load_generator
from .mmgeneration import (
    load_dcgan,
    load_dcgan_discriminator,
    load_pggan,
    load_pggan_discriminator,
    load_singan,
    load_singan_discriminator,
)
from .padinv import PadInvEncoder
from .pggan import PGGANDiscriminator, PGGANGenerator
from .report import CheckpointError, LoadReport, UnsafeFileError
from .singan import SinGANDiscriminator, SinGANGenerator
from .stylegan2 import Discriminator, Generator

__all__ = [
    "CheckpointError",
    "DCGANDiscriminator",
    "DCGANGenerator",
    "Discriminator",
    "Generator",
    "LoadReport",
    "PGGANDiscriminator",
    "PGGANGenerator",
    "PadInvEncoder",
    "SinGANDiscriminator",
    "SinGANGenerator",
    "UnsafeFileError",
    "convert_discriminator",
    "convert_generator",
    "load_backbone",
    "load_dcgan",
    "load_dcgan_discriminator",
    "load_discriminator",
    "load_encoder",
    "load_generator",
    "load_pggan",
    "load_pggan_discriminator",
    "load_singan",
    "load_singan_discriminator",
    "mspie",
    "read_checkpoint",
]
