"""Whole networks built from :mod:`posgan_fast.nn`, and functions that load their weights."""

from __future__ import annotations

from .convert import convert_discriminator, convert_generator
from .files import read_checkpoint
from .loading import load_discriminator, load_generator
from .report import CheckpointError, LoadReport, UnsafeFileError
from .stylegan2 import Discriminator, Generator

__all__ = [
    "CheckpointError",
    "Discriminator",
    "Generator",
    "LoadReport",
    "UnsafeFileError",
    "convert_discriminator",
    "convert_generator",
    "load_discriminator",
    "load_generator",
    "read_checkpoint",
]
