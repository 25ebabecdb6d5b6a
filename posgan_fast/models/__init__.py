"""Whole networks, written with :mod:`posgan_fast.nn`."""

from __future__ import annotations

from .stylegan2 import Discriminator, Generator

__all__ = ["Discriminator", "Generator"]
