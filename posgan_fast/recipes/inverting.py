"""Inversion of many pictures, each into files of its own, so that a run can stop, go on and be shared by processes.

For the picture ``photo.jpg`` the folder gets ``photo.jpg.png``, the picture beside its inversion, and then
``photo.jpg.safetensors``, its codes: a picture with codes is done.
"""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
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
from .images import Images, UnreadablePictureError, check_outside, to_float
from .inversion import encode, errors, fitted, optimise
from .padinv import load_trained_encoder
from .sampling import Sampler

AVERAGES = ("file", "generator", "zeros")
SETTINGS = "inversion.json"
LEAST_SHOWN = 128  # side of an image in a strip, in pixels


@dataclass
class Result:
    """Counts the pictures of this process, and in the first process those of all.

    Attributes:
        errors: mean squared error of each picture that was inverted now, by name.
        before: number of pictures that had codes already.
        failed: names of pictures that were left out, and why.
    """

    errors: dict[str, float] = field(default_factory=dict)
    before: int = 0
    failed: dict[str, str] = field(default_factory=dict)


def open_encoder(
    path: str | os.PathLike, generator: Generator, average: str = "file", **arguments: Any
) -> PadInvEncoder:
    """Load an encoder for a generator: a run of ``posgan-fast train padinv``, or a file of PadInv or pSp.

    Args:
        path: the file.
        generator: the generator; a run belongs to the one that it was trained with.
        average: source of the average latent of a published file: the "file", the "generator", or "zeros".
        arguments: what no tensor of a published file tells.

    Raises:
        UnsafeFileError, CheckpointError: as :func:`posgan_fast.models.load_encoder`.
        ValueError: an average or arguments for a run, which knows its own.
    """
    checks.choice(average, "average", AVERAGES)
    data = read_checkpoint(path)
    if is_run(data):
        if arguments or average != "file":
            raise ValueError(f"average: expected 'file', and no arguments, for {path}, a run with its own settings")
        return load_trained_encoder(path, generator)
    given = {"file": None, "generator": generator, "zeros": torch.zeros(generator.w_dim)}[average]
    return load_encoder(data, latent_average=given, **arguments)


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
    quiet: bool = False,
    say: Callable[[str], None] = tqdm.write,
    **search: Any,
) -> Result:
    """Invert every picture of a folder, a zip archive or a file that has no codes in ``out`` yet.

    Of several processes each takes its share. A picture that cannot be read, or whose codes are not finite or cannot be
    written, is left out, and ``say`` tells why.

    Args:
        sampler: a StyleGAN2.
        source: the pictures; the centre square of each counts.
        out: folder for codes and images.
        encoder: gives the codes to start from; None: the average.
        size: side of the pictures; None: that of the encoder, or of the generator.
        batch: pictures at a time.
        steps: of :func:`posgan_fast.recipes.inversion.optimise`, which follows the encoder unless it is 0.
        autocast: dtype for the encoder and the generator; None: theirs.
        quiet: True shows no progress.
        say: takes messages.
        search: further arguments of that function.

    Raises:
        TypeError: no StyleGAN2.
        ValueError: no picture, a wrong argument, a generator of other than square RGB images, or results of other
            settings in ``out``.
        CheckpointError: ``out`` has codes of another generator.
        OSError: the folder cannot be written.
    """
    folder = Path(out)
    check_outside(folder, source)
    task = _Task(sampler, encoder, _side(sampler, encoder, size), steps, autocast, search)
    batch = checks.integer(batch, "batch", minimum=1)
    images = Images(source, side=task.side)
    task.check()
    _agree(folder / SETTINGS, {"data": str(Path(source).resolve()), **task.settings()})
    result = Result()
    if ranks.rank() == 0:
        result.failed |= images.unread
        for note in images.notes:
            say(f"note: {note}")

    def leave_out(name: str, why: object) -> None:
        result.failed[name] = str(why)
        say(f"{name}: left out: {why}")

    todo = []
    for name in images.names[ranks.rank() :: ranks.world_size()]:
        path = _path(folder, name)
        if path is None:
            leave_out(name, "a name that leads out of the folder")
        elif _is_done(path, task.fingerprint, say):
            result.before += 1
        else:
            todo.append((name, path))
    with tqdm(total=len(todo), disable=quiet, desc="pictures", dynamic_ncols=True) as bar:
        for places, pictures in _batches(images, todo, batch, leave_out):
            for (name, path), one, pair, mse in zip(places, *task.run(pictures, places), strict=True):
                try:
                    _write(path, one, task.fingerprint, pair, mse)
                    result.errors[name] = mse
                except (ValueError, OSError) as error:
                    if isinstance(error, OSError) and error.errno not in _OF_ONE_PICTURE:
                        raise
                    leave_out(name, error)
            bar.update(len(places))
    _gather(result)
    return result


_OF_ONE_PICTURE = (errno.ENAMETOOLONG, errno.EEXIST, errno.ENOTDIR, errno.EISDIR)
Place = tuple[str, Path]  # name of a picture, and file of its codes


@dataclass
class _Task:
    """Inverts pictures, a batch at a time."""

    sampler: Sampler
    encoder: PadInvEncoder | None
    side: int
    steps: int
    autocast: torch.dtype | None
    search: dict[str, Any]

    def __post_init__(self) -> None:
        self.generator = code_files.stylegan2(self.sampler.generator)
        self.like = next(self.generator.parameters())
        self.fingerprint = code_files.fingerprint(self.generator)

    def check(self) -> None:
        """Raise the error of a wrong argument before anything is written."""
        if self.steps or self.encoder is None:
            optimise(self.generator, torch.zeros(1, 3, self.side, self.side).to(self.like), steps=0, **self.search)

    def settings(self) -> dict[str, Any]:
        """Return what a second start must have in common with the first."""
        return dict(
            generator=self.fingerprint,
            encoder=None if self.encoder is None else code_files.hash_of(self.encoder),
            bgr=self.sampler.bgr,
            autocast=str(self.autocast),
            size=self.side,
            steps=self.steps,
            **{name: value for name, value in self.search.items() if not callable(value)},
        )

    def run(
        self, pictures: torch.Tensor, places: Sequence[Place]
    ) -> tuple[Codes, list[list[torch.Tensor]], list[float]]:
        """Return the codes of pictures [N, 3, side, side], each picture beside its inversion, and the errors."""
        targets, names = to_float(pictures, self.like.device), [name for name, _ in places]
        with torch.autocast(self.like.device.type, self.autocast or torch.bfloat16, enabled=self.autocast is not None):
            codes = None if self.encoder is None else encode(self.encoder, self.generator, targets, names)
            if self.steps or codes is None:
                wanted = targets.flip(1) if self.sampler.bgr else targets
                codes, _ = optimise(self.generator, wanted, start=codes, steps=self.steps, names=names, **self.search)
            made = shown(self.sampler, codes, len(names))
        targets = targets.cpu()
        pairs = [[fitted(x[None], made.shape[2]), y[None]] for x, y in zip(targets, made, strict=True)]
        return codes.to(torch.float32), pairs, errors(made, targets).tolist()


def _side(sampler: Sampler, encoder: PadInvEncoder | None, size: int | None) -> int:
    """Return the side of the pictures to invert."""
    generator = code_files.stylegan2(sampler.generator)
    side, width = generator.img_size
    if side != width or generator.img_channels != 3:
        raise ValueError(
            f"generator: expected square RGB images, got {side} x {width} of {generator.img_channels} channels"
        )
    if encoder is None:
        return side if size is None else checks.integer(size, "size", minimum=1)
    if size not in (None, encoder.size):
        raise ValueError(f"size: expected {encoder.size}, that of the encoder, got {size}")
    return encoder.size


def _gather(result: Result) -> None:
    """Add the results of the other processes to that of the first."""
    parts = ranks.gathered(result)
    for part in parts[1:] if ranks.rank() == 0 else ():
        result.errors |= part.errors
        result.before += part.before
        result.failed |= part.failed


def _write(path: Path, one: Codes, mark: str, pair: list[torch.Tensor], mse: float) -> None:
    """Write the strip of a picture, and then its codes, which say that it is done."""
    if not math.isfinite(mse):
        raise ValueError("codes or image that are not finite")
    strip_path = path.with_name(path.name.removesuffix(".safetensors") + ".png")
    write_strip(strip_path, pair, ["picture", f"MSE {mse:.4f}"], one.names[0])
    code_files.save_codes(path, one, mark)


def _is_done(path: Path, mark: str, say: Callable[[str], None]) -> bool:
    """Tell whether a picture has codes; those of another generator are refused, damaged ones are made again."""
    if not path.exists():
        return False
    try:
        found = code_files.read_fingerprint(path)
    except CheckpointError as error:
        say(f"{error}; made again")
        return False
    if found != mark:
        raise CheckpointError(f"{path}: codes of another generator; choose another folder")
    return True


def write_strip(
    path: Path, columns: list[torch.Tensor], labels: Sequence[str], title: str, rows: Sequence[str] = ()
) -> None:
    """Write images [N, 3, H, W], a column for each label and a row for each name, as PNG; small ones are enlarged."""
    side = max(column.shape[2] for column in columns)
    side *= -(-LEAST_SHOWN // side)  # so that labels have room
    grown = [torch.nn.functional.interpolate(column, (side, side), mode="nearest") for column in columns]
    with replacing(path) as file:
        strip(grown, labels, title, rows).save(file, "PNG")


def file_name(name: str) -> str:
    """Return the name of a picture as part of a file's name."""
    return name.replace("/", "_").replace("\\", "_")


def codes_from(paths: list[str], generator: Generator) -> Codes:
    """Read the codes in some files; the word "average" stands for the average image."""
    mark = code_files.fingerprint(generator)
    parts = [
        average_codes(generator) if path == "average" else code_files.load_codes(path, generator, mark)
        for path in paths
    ]
    return code_files.joined(parts, generator)


def _batches(
    images: Images, todo: list[Place], batch: int, leave_out: Callable[[str, object], None]
) -> Iterator[tuple[list[Place], torch.Tensor]]:
    """Yield places and pictures [n, 3, side, side]; leave out those that cannot be read."""
    places: list[Place] = []
    pictures: list[torch.Tensor] = []
    for place in todo:
        try:
            pictures.append(images.read(place[0]))
            places.append(place)
        except UnreadablePictureError as error:
            leave_out(place[0], error)
        if len(places) == batch or (place is todo[-1] and places):
            yield places, torch.stack(pictures)
            places, pictures = [], []


def _path(folder: Path, name: str) -> Path | None:
    """Return the file of a picture's codes, or None for a name that leads out of the folder."""
    inside = PurePosixPath(name)
    if inside.is_absolute() or ".." in inside.parts or "\0" in name:
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
    if not isinstance(before, dict):
        raise CheckpointError(f"{path}: damaged settings; choose another folder")
    for name, value in text.items():
        if before.get(name) != value:
            raise ValueError(
                f"{name}: expected {before.get(name)!r}, as in {path}, got {value!r}; choose another folder"
            )
