"""Helpers of the tests of foreign code: fixture folders, and programs started plain or under the hooks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import torch

import posgan_fast

FIXTURES = Path(__file__).parent / "fixtures"
SCRIPTS = FIXTURES / "scripts"
ROOT = Path(posgan_fast.__file__).parents[1]
TAPS = torch.tensor([1.0, 3.0, 3.0, 1.0]).outer(torch.tensor([1.0, 2.0, 4.0])) / 28  # of no symmetry


def python(*arguments: object, path: tuple[object, ...] = (), **kwargs: object) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, (*path, ROOT))), "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("POSGAN_FAST_BACKEND", None)
    command = [sys.executable, *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, **kwargs)  # type: ignore[call-overload]


def hooked(*arguments: object, **kwargs: object) -> subprocess.CompletedProcess[str]:
    return python("-m", "posgan_fast", "run", *arguments, **kwargs)  # type: ignore[arg-type]


def is_ours(function: object) -> bool:
    return hasattr(function, "__wrapped__") and "posgan_fast" in function.__code__.co_filename  # type: ignore[attr-defined]
