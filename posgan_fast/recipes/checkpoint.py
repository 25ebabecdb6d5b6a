"""Checkpoints of training: written whole or not at all, read without running anything that is in them."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import torch

from ..models import CheckpointError

SCHEMA = 1
NAME = "checkpoint.pt"


@contextlib.contextmanager
def replacing(path: Path, mode: str = "wb") -> Iterator[IO]:
    """Open a new file that takes the place of ``path`` once the block has ended; after an error nothing has changed.

    Raises:
        OSError: the file cannot be written, on a full disk for example.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    try:
        with os.fdopen(handle, mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):  # not every file system can
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def save(path: Path, recipe: str, settings: dict[str, Any], iteration: int, state: dict[str, Any]) -> None:
    """Write the state of a run.

    Raises:
        OSError: the file cannot be written; the one before it is still there.
    """
    content = {"schema": SCHEMA, "recipe": recipe, "settings": settings, "iteration": iteration, **state}
    with replacing(path) as file:
        try:
            torch.save(content, file)
        except RuntimeError as error:  # torch's writer hides the error of a full disk
            raise OSError(f"cannot write {path}: {error}") from error


def load(path: str | os.PathLike, recipe: str | None = None) -> dict[str, Any]:
    """Read a checkpoint as a dictionary: ``settings``, ``iteration``, state of ``models`` and of all else.

    Args:
        path: path of the file.
        recipe: name of the recipe that must have written it; None: any.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is damaged, or no checkpoint of this recipe.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path}: damaged, or no checkpoint: {_first_line(error)}") from None
    if not isinstance(content, dict) or not {"schema", "recipe", "settings", "iteration"} <= content.keys():
        raise CheckpointError(f"{path}: no checkpoint of posgan-fast train")
    if not isinstance(content["settings"], dict) or not isinstance(content["iteration"], int):
        raise CheckpointError(f"{path}: damaged: settings or iteration of another type")
    if content["schema"] != SCHEMA:
        raise CheckpointError(f"{path}: expected schema {SCHEMA}, got {content['schema']!r}")
    if recipe is not None and content["recipe"] != recipe:
        raise CheckpointError(f"{path}: expected a checkpoint of {recipe}, got one of {content['recipe']}")
    return content


def restore(load_state: Callable[[Any], Any], state: Any, path: Path, name: str) -> None:
    """Load one part of a checkpoint into the object that it belongs to.

    Raises:
        CheckpointError: the part does not fit.
    """
    try:
        load_state(state)
    except (KeyError, RuntimeError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: {name} does not fit: {_first_line(error)}") from None


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2])[:300] or type(error).__name__


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
