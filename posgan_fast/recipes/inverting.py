"""Inversion of many pictures, each into files of its own, so that a run can stop, go on and be shared by processes.

For the picture ``photo.jpg`` the folder gets ``photo.jpg.png``, the picture beside its inversion, and then
``photo.jpg.safetensors``, its codes: a picture with codes is done.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from tqdm import tqdm

from ..models import CheckpointError, Generator, PadInvEncoder, load_encoder, read_checkpoint
from ..models.containers import is_run
from ..ops.common import checks
from . import codes as code_files
from . import ranks
from .checkpoint import replacing
from .codes import Codes, average_codes
from .editing import strip
from .images import Images, UnreadablePictureError, to_float
from .inversion import encode, errors, fitted, optimise
from .padinv import load_trained_encoder
from .sampling import Sampler

AVERAGES = ("file", "generator", "zeros")
SETTINGS = "inversion.json"


@dataclass
class Result:
    """What became of the pictures of one process.

    Attributes:
        errors: mean squared error of each picture that was inverted now, by name.
        before: pictures that had codes already.
        unreadable: names of pictures that cannot be read, and why.
    """

    errors: dict[str, float] = field(default_factory=dict)
    before: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)


def open_encoder(path: str | os.PathLike, generator: Generator, average: str = "file") -> PadInvEncoder:
    """Load an encoder for a generator: a run of ``posgan-fast train padinv``, or a file of PadInv or pSp.

    Args:
        path: the file.
        generator: the generator; a run belongs to the one that it was trained with.
        average: source of the average latent of a file: "file", "generator" or "zeros".

    Raises:
        UnsafeFileError, CheckpointError: as :func:`posgan_fast.models.load_encoder`.
    """
    checks.choice(average, "average", AVERAGES)
    data = read_checkpoint(path)
    if is_run(data):
        return load_trained_encoder(path, generator)
    given = {"file": None, "generator": generator, "zeros": torch.zeros(generator.w_dim)}[average]
    return load_encoder(data, latent_average=given)


def shown(sampler: Sampler, codes: Codes, batch: int = 8) -> torch.Tensor:
    """Make the images of codes as RGB, on the CPU, ``batch`` at a time: [N, 3, H, W]."""
    generator: Any = sampler.generator
    with torch.no_grad():
        parts = [code_files.render(generator, some).float().cpu() for some in codes.split(batch)]
    images = torch.cat(parts)
    return images.flip(1) if sampler.bgr else images


def invert_pictures(
    sampler: Sampler,
    source: str | os.PathLike,
    out: str | os.PathLike,
    *,
    encoder: PadInvEncoder | None = None,
    size: int | None = None,
    batch: int = 8,
    steps: int = 0,
    autocast: torch.dtype | None = None,
    settings: Mapping[str, Any] | None = None,
    quiet: bool = False,
    say: Callable[[str], None] = tqdm.write,
    **search: Any,
) -> Result:
    """Invert every picture of a folder, a zip archive or a file that has no codes in ``out`` yet.

    Of several processes each takes its share.

    Args:
        sampler: a StyleGAN2.
        source: the pictures; the centre square of each counts.
        out: folder for codes and images.
        encoder: gives the codes to start from; None: the average.
        size: side of the pictures; None: that of the encoder, or of the generator.
        batch: pictures at a time.
        steps: of :func:`posgan_fast.recipes.inversion.optimise`, which follows the encoder unless it is 0.
        autocast: dtype for the encoder and the generator; None: theirs.
        settings: what a second start must have in common with the first, such as the path of the encoder.
        quiet: True shows no progress.
        say: takes messages.
        search: further arguments of that function.

    Raises:
        ValueError: no picture, or results of other settings in ``out``.
        CheckpointError: ``out`` has codes of another generator.
    """
    generator, folder = sampler.generator, Path(out)
    if not isinstance(generator, Generator):
        raise TypeError(f"generator: expected a StyleGAN2, got a {sampler.kind}")
    batch = checks.integer(batch, "batch", minimum=1)
    side = encoder.size if encoder is not None else generator.size if size is None else size
    images = Images(source, side=checks.integer(side, "size", minimum=1))
    mark = code_files.fingerprint(generator)
    plain = {name: value for name, value in search.items() if not callable(value)}
    kept = dict(generator=mark, size=side, steps=steps) | plain | dict(settings or {})
    _agree(folder / SETTINGS, kept)
    result = Result()
    result.unreadable |= images.unread
    for note in images.notes if ranks.rank() == 0 else ():
        say(f"note: {note}")
    todo = []
    for name in images.names[ranks.rank() :: ranks.world_size()]:
        path = _path(folder, name)
        if path is None:
            result.unreadable[name] = "a name that leads out of the folder"
            say(f"{name}: left out, {result.unreadable[name]}")
        elif path.exists():
            code_files.load_codes(path, generator, mark)
            result.before += 1
        else:
            todo.append(name)
    device = next(generator.parameters()).device
    with tqdm(total=len(todo), disable=quiet, desc="pictures", dynamic_ncols=True) as bar:
        for names, pictures in _batches(images, todo, batch, result, say):
            targets = to_float(pictures, device)
            with torch.autocast(device.type, autocast or torch.bfloat16, enabled=autocast is not None):
                start = None if encoder is None else encode(encoder, generator, targets, names)
                wanted = targets.flip(1) if sampler.bgr else targets
                if steps or start is None:
                    found, _ = optimise(generator, wanted, start=start, steps=steps, names=names, **search)
                else:
                    found = start
                made = shown(sampler, found, batch)
            found = _in_float(found)
            mse = errors(made, targets.cpu())
            for k, (name, one) in enumerate(zip(names, found, strict=True)):
                result.errors[name] = float(mse[k])
                path = _path(folder, name)
                assert path is not None  # those without were left out above
                pair = [fitted(targets[k : k + 1].cpu(), made.shape[2]), made[k : k + 1]]
                write_strip(path.with_name(f"{Path(name).name}.png"), pair, ["picture", f"MSE {mse[k]:.4f}"], name)
                code_files.save_codes(path, one, mark)
            bar.update(len(names))
    return result


def write_strip(path: Path, columns: list[torch.Tensor], labels: list[str], title: str) -> None:
    """Write images [N, 3, H, W], a column for each label, as PNG; smaller ones are enlarged."""
    side = max(column.shape[2] for column in columns)
    grown = [
        column if column.shape[2] == side else torch.nn.functional.interpolate(column, (side, side), mode="nearest")
        for column in columns
    ]
    with replacing(path) as file:
        strip(grown, labels, title).save(file, "PNG")


def codes_from(paths: list[str], generator: Generator) -> Codes:
    """Read the codes in some files; the word "average" stands for the average image."""
    mark = code_files.fingerprint(generator)
    parts = [
        average_codes(generator) if path == "average" else code_files.load_codes(path, generator, mark)
        for path in paths
    ]
    return code_files.joined(parts, generator)


def _batches(
    images: Images, todo: list[str], batch: int, result: Result, say: Callable[[str], None]
) -> Iterator[tuple[list[str], torch.Tensor]]:
    """Yield names and pictures [n, 3, side, side]; report those that cannot be read, and leave them out."""
    names: list[str] = []
    pictures: list[torch.Tensor] = []
    for name in todo:
        try:
            pictures.append(images.read(name))
            names.append(name)
        except UnreadablePictureError as error:
            result.unreadable[name] = str(error)
            say(f"{error}; left out")
        if len(names) == batch or (name == todo[-1] and names):
            yield names, torch.stack(pictures)
            names, pictures = [], []


def _path(folder: Path, name: str) -> Path | None:
    """Return the file of a picture's codes, or None for a name that leads out of the folder."""
    inside = PurePosixPath(name.replace("\\", "/"))
    if inside.is_absolute() or ".." in inside.parts:
        return None
    return folder / f"{inside}.safetensors"


def _agree(path: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings of a run, or compare them with those of the run before."""
    text = json.loads(json.dumps(settings))
    if not path.exists():
        if ranks.rank() == 0:
            with replacing(path, "w") as file:
                json.dump(text, file, indent=1)
        ranks.wait()
        return
    ranks.wait()
    try:
        before = json.loads(path.read_text())
    except ValueError:
        raise CheckpointError(f"{path}: damaged settings; choose another folder") from None
    for name, value in text.items():
        if before.get(name) != value:
            raise ValueError(
                f"{name}: expected {before.get(name)!r}, as in {path}, got {value!r}; choose another folder"
            )


def _in_float(codes: Codes) -> Codes:
    """Return the codes in float32, in which files keep them."""
    return Codes(codes.ws.float(), tuple(None if p is None else p.float() for p in codes.pad_maps), codes.names)
