"""Builds the package of a source tree into a folder, without installing it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

# Library: the variable that tells setup.py whether to build it.
VARIABLES = {"cpu": "POSGAN_FAST_NATIVE", "cuda": "POSGAN_FAST_CUDA"}


def command(folder: Path) -> list[str]:
    """The command, to be run in the source tree, that puts the package and its native libraries into ``folder``."""
    python = [sys.executable, "setup.py", "-q"]
    return [*python, "egg_info", "--egg-base", str(folder), "build_py", "--build-lib", str(folder)]


def environment(library: str, wish: str | None = "1") -> dict[str, str]:
    """The variables that make setup.py build one library and not the other.

    Args:
        library: "cpu" or "cuda".
        wish: "1" makes a failed build an error, "0" builds a pure Python package, None leaves the choice to the
            caller's environment.
    """
    found = dict.fromkeys(VARIABLES.values(), "0")
    if wish is None:
        wish = os.environ.get(VARIABLES[library], "")
    found[VARIABLES[library]] = wish
    if library == "cuda" and torch.cuda.is_available():
        found["POSGAN_FAST_CUDA_ARCHS"] = "{}{}".format(*torch.cuda.get_device_capability())
    return found
