"""Pictures for training: from a folder, a zip archive or a single file, as uint8 RGB of one size."""

from __future__ import annotations

import hashlib
import io
import os
import signal
import threading
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from .draws import generator, sample_indices

_ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".gif"}
_UNREADABLE = (  # what Pillow and zipfile raise for files that are damaged, encrypted or of an unknown kind
    RuntimeError,
    EOFError,
    zlib.error,
    OSError,
    SyntaxError,
    ValueError,
    zipfile.BadZipFile,
    Image.DecompressionBombError,
)


class UnreadablePictureError(ValueError):
    """The pixels of a picture cannot be read."""


class Images(torch.utils.data.Dataset):
    """The pictures of a folder (with its subfolders), a zip archive or one file, in the order of their names.

    Pictures of other kinds become RGB: grey is repeated, 16 bits are divided by 257, floating point is taken as 0 to 1
    or, beyond 1, as 0 to 255, CMYK is converted, transparent pixels become white, and of an animation the first picture
    counts. The orientation in a photograph's EXIF is applied. With ``side`` the centre square is cut out and resized.
    ``notes`` tells how many pictures were converted, and which files could not be read.

    Args:
        source: path.
        side: pixels of both sides; None: as they are.

    Raises:
        FileNotFoundError: there is no such path.
        ValueError: no picture that can be read.

    Example:
        >>> len(Images("photos", side=64))  # doctest: +SKIP
        1200
    """

    def __init__(self, source: str | os.PathLike, side: int | None = None) -> None:
        self.source, self.side = Path(source), side
        self._local = threading.local()  # an archive has one position, which threads and processes cannot share
        if not self.source.exists():
            raise FileNotFoundError(f"data: no such file or folder: {self.source}")
        names = self._names()
        self.names, kinds = [], Counter[str]()
        self.unread: dict[str, str] = {}  # names of files that are no pictures inside, and why
        for name in names:
            try:
                with self._open(name) as picture:
                    kinds[_kind(picture)] += 1
                self.names.append(name)
            except _UNREADABLE as error:
                self.unread[name] = str(error)
        unread = list(self.unread)
        if not self.names:
            some = f"; unreadable: {', '.join(unread[:4])}" if unread else ""
            raise ValueError(
                f"data: expected pictures ({', '.join(sorted(_ENDINGS))}) in {self.source}, got none{some}"
            )
        self.notes = [f"{count} {kind} pictures are converted to RGB" for kind, count in kinds.items() if kind]
        if unread:
            self.notes.append(f"{len(unread)} files cannot be read and are left out: {', '.join(unread[:4])}")

    def __len__(self) -> int:
        return len(self.names)

    def digest(self) -> str:
        """Return a hash of the names of the pictures."""
        return hashlib.blake2b("\n".join(self.names).encode("utf-8", "surrogateescape"), digest_size=16).hexdigest()

    def __getitem__(self, index: int) -> torch.Tensor:  # => [3, H, W], uint8
        """Read a picture; in place of one whose pixels cannot be read, the next one, with a warning."""
        for step in range(len(self.names)):
            try:
                return self.read(self.names[(index + step) % len(self.names)])
            except UnreadablePictureError as error:
                warnings.warn(f"{error}; the next picture takes its place", stacklevel=2)
        raise ValueError(f"data: no picture in {self.source} can be read")

    def read(self, name: str) -> torch.Tensor:  # => [3, H, W], uint8
        """Read the picture of a name.

        Raises:
            UnreadablePictureError: its pixels cannot be read.
        """
        try:
            with self._open(name) as picture:
                return torch.from_numpy(np.array(_to_rgb(picture, self.side))).permute(2, 0, 1)
        except _UNREADABLE as error:
            raise UnreadablePictureError(f"{name}: cannot be read ({error})") from None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_local"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._local = threading.local()

    def _names(self) -> list[str]:
        if self.source.is_dir():
            paths = [path for path in self.source.rglob("*") if path.is_file()]
            return sorted(str(path.relative_to(self.source)) for path in paths if _is_picture(path.name))
        if zipfile.is_zipfile(self.source):
            try:
                with zipfile.ZipFile(self.source) as archive:
                    return sorted(entry for entry in archive.namelist() if _is_picture(entry))
            except (zipfile.BadZipFile, NotImplementedError) as error:
                raise ValueError(f"data: damaged archive {self.source}: {error}") from None
        return [self.source.name]

    def _open(self, name: str) -> Image.Image:
        if self.source.is_dir():
            return Image.open(self.source / name)
        if not zipfile.is_zipfile(self.source):
            return Image.open(self.source)
        if getattr(self._local, "process", None) != os.getpid():
            self._local.process, self._local.archive = os.getpid(), zipfile.ZipFile(self.source)
        return Image.open(io.BytesIO(self._local.archive.read(name)))


def read_mask(path: str | os.PathLike) -> torch.Tensor:  # => [H, W]
    """Read a picture as a mask, True where its colours are brighter than half on average.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it cannot be read, or marks no pixel.
    """
    picture = Images(path)
    mask = picture.read(picture.names[0]).float().mean(0) > 127
    if not bool(mask.any()):
        raise ValueError(f"{path}: expected white pixels, got none brighter than half")
    return mask


def check_outside(out: Path, data: str | os.PathLike) -> None:
    """Refuse a folder for results inside the folder of pictures, where they would be taken for pictures."""
    if os.path.isdir(data) and out.resolve().is_relative_to(Path(data).resolve()):
        raise ValueError(f"out: expected a folder outside the data, got {out}")


class Batches:
    """Batches of a data set without end, the same however often a run is interrupted.

    Every epoch has an order of its own. Iteration k takes the pictures that follow those of iteration k - 1; of several
    processes each takes its share.

    Args:
        images: the pictures.
        batch: pictures a process and iteration.
        seed: seed of the order and of the mirroring.
        mirror: True mirrors every other picture, at random.
        workers: processes that read ahead.
    """

    def __init__(self, images: Images, batch: int, seed: int, mirror: bool, workers: int = 0) -> None:
        self.images, self.batch, self.seed, self.mirror, self.workers = images, batch, seed, mirror, workers

    def start(self, iteration: int, end: int) -> Iterator[torch.Tensor]:
        """Yield the batches of the iterations from ``iteration`` to ``end`` - 1: [batch, 3, H, W], uint8."""
        stream = _Stream(self.images, self.seed, self.mirror)
        loader = torch.utils.data.DataLoader(
            stream,
            self.batch,
            sampler=_Positions(self.batch, iteration, end),
            num_workers=self.workers,
            worker_init_fn=_ignore_interruption,
        )
        return iter(loader)


class _Positions(torch.utils.data.Sampler):
    """The positions in the stream that this process reads from one iteration to another."""

    def __init__(self, batch: int, start: int, end: int) -> None:
        self.batch, self.start, self.end = batch, start, end

    def __iter__(self) -> Iterator[int]:
        indices = sample_indices(self.batch)
        whole = self.batch * indices.step
        return (k * whole + i for k in range(self.start, self.end) for i in indices)

    def __len__(self) -> int:
        return self.batch * max(0, self.end - self.start)


def _ignore_interruption(worker: int) -> None:
    """Leave Ctrl-C and SIGTERM, which reach the whole group of processes, to the process that trains."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


class _Stream(torch.utils.data.Dataset):
    """The endless sequence of pictures, by position."""

    def __init__(self, images: Images, seed: int, mirror: bool) -> None:
        self.images, self.seed, self.mirror = images, seed, mirror
        self.epoch, self.order = -1, torch.empty(0)

    def __getitem__(self, position: int) -> torch.Tensor:
        epoch, offset = divmod(position, len(self.images))
        if epoch != self.epoch:
            random = generator(self.seed, "order", epoch)
            self.epoch, self.order = epoch, torch.randperm(len(self.images), generator=random)
        picture = self.images[int(self.order[offset])]
        mirrored = self.mirror and torch.rand((), generator=generator(self.seed, "mirror", position)) < 0.5
        return picture.flip(2) if mirrored else picture


def to_float(pictures: torch.Tensor, device: torch.device | str = "cpu") -> torch.Tensor:
    """Turn uint8 into float32 from -1 to 1."""
    return pictures.to(device).float().div_(127.5).sub_(1)


def to_uint8(images: torch.Tensor) -> torch.Tensor:
    """Turn images from -1 to 1 into uint8, rounded and clamped."""
    return images.detach().float().add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8).cpu()


def grid(images: torch.Tensor, columns: int) -> Image.Image:
    """Arrange images [N, 3, H, W] from -1 to 1 in rows of ``columns``, two white pixels apart."""
    n, c, h, w = images.shape
    if c not in (1, 3):
        raise ValueError(f"images: expected 1 or 3 channels to show, got {c}")
    rows = -(-n // columns)
    sheet = torch.full((3, rows * (h + 2) - 2, columns * (w + 2) - 2), 255, dtype=torch.uint8)
    for k, image in enumerate(to_uint8(images)):
        y, x = (k // columns) * (h + 2), (k % columns) * (w + 2)
        sheet[:, y : y + h, x : x + w] = image
    return Image.fromarray(sheet.permute(1, 2, 0).numpy())


def _is_picture(name: str) -> bool:
    path = Path(name)
    return path.suffix.lower() in _ENDINGS and not path.name.startswith(".")


def _kind(picture: Image.Image) -> str:
    """Name what makes a picture other than RGB, or return ""."""
    if picture.mode == "RGB":
        return ""
    if picture.mode.startswith("I") or picture.mode == "F":
        return "16-bit" if picture.mode != "F" else "floating-point"
    if picture.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in picture.info:
        return "transparent"
    return {"L": "grey", "1": "black-and-white", "P": "palette", "CMYK": "CMYK"}.get(picture.mode, picture.mode)


def _to_rgb(picture: Image.Image, side: int | None) -> Image.Image:
    picture = ImageOps.exif_transpose(picture)
    kind = _kind(picture)
    if kind in ("16-bit", "floating-point"):
        values = np.asarray(picture, dtype=np.float64)
        if not np.isfinite(values).all():
            raise ValueError("numbers that are not finite")
        top = 65535 if kind == "16-bit" else 255 if values.max() > 1 else 1
        picture = Image.fromarray(np.clip((values * (255 / top)).round(), 0, 255).astype(np.uint8))
    elif kind == "transparent":
        picture = picture.convert("RGBA")
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture)
    picture = picture.convert("RGB")
    return picture if side is None else ImageOps.fit(picture, (side, side), Image.Resampling.LANCZOS)
