"""Codes of pictures: the latents and the padding maps that a StyleGAN2 generator turns into images.

A file of codes is one safetensors file::

    ws               [N, num_ws, w_dim], as all tensors in float32
    pad_maps.0       [N, C, 4, 4], replaces the constant
    pad_maps.K       [N, C, 2 * (H + W) + 4], the ring around the input of convolution K - 1; only the K that have one

    format           "posgan_fast codes", in the metadata, as all below
    schema           "1"
    generator        fingerprint of the generator that the codes belong to
    names            JSON list of N names

An entry that is missing stands for the generator's own: its constant, or zeros.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from .. import functional as PF
from ..models import CheckpointError, Generator
from ..models.stylegan2_synthesis import Maps
from ..nn import StyleConv, ToRGB
from ..ops.common import checks
from .checkpoint import replacing

FORMAT, SCHEMA = "posgan_fast codes", "1"
SPACES = ("both", "latents", "padding")

_INDICES = {f"pad_maps.{k}": k for k in range(64)}

PadMaps = tuple[torch.Tensor | None, ...]


@dataclass(frozen=True)
class Codes:
    """Codes of N pictures for one generator.

    Attributes:
        ws: latents [N, num_ws, w_dim].
        pad_maps: one entry for the constant and one for each convolution, as in the file; None is the generator's own.
        names: N names.

    Example:
        >>> generator = Generator(8, z_dim=16, w_dim=16, channel_max=8, mapping_layers=1).eval()
        >>> codes = average_codes(generator)
        >>> render(generator, codes).shape
        torch.Size([1, 3, 8, 8])
    """

    ws: torch.Tensor
    pad_maps: PadMaps
    names: tuple[str, ...]

    def __len__(self) -> int:
        return self.ws.shape[0]

    def __iter__(self) -> Iterator[Codes]:
        """Yield the codes of each picture."""
        return self.split(1)

    def split(self, count: int) -> Iterator[Codes]:
        """Yield the codes of ``count`` pictures at a time."""
        for k in range(0, len(self), count):
            part = slice(k, k + count)
            yield Codes(self.ws[part], self._each(lambda p, part=part: p[part]), self.names[part])  # type: ignore[misc]

    def to(self, where: torch.device | torch.dtype | str | torch.Tensor) -> Codes:
        """Return the codes on a device, in a dtype, or in both as a tensor has them."""
        return replace(self, ws=self.ws.to(where), pad_maps=self._each(lambda p: p.to(where)))

    def detach(self) -> Codes:
        return replace(self, ws=self.ws.detach(), pad_maps=self._each(torch.Tensor.detach))

    def _each(self, change: Callable[[torch.Tensor], torch.Tensor]) -> PadMaps:
        return tuple(None if p is None else change(p) for p in self.pad_maps)


def codes_of(generator: Generator, ws: torch.Tensor, pad_maps: Maps = None, names: Sequence[str] = ()) -> Codes:
    """Make codes from latents and maps, of which only what the generator reads is kept.

    Args:
        generator: the generator that they are for.
        ws: [N, num_ws or more, w_dim]; further latents are dropped, which PadInv's encoders make for small generators.
        pad_maps: maps or rings as in :meth:`posgan_fast.models.Generator`; None: the generator's own.
        names: N names; none: "0", "1", ...

    Raises:
        TypeError, ValueError: another generator's sizes.

    Example:
        >>> generator = Generator(8, z_dim=16, w_dim=16, channel_max=8, mapping_layers=1)
        >>> maps = [None, torch.zeros(1, 8, 10, 10)]
        >>> codes_of(generator, torch.zeros(1, 4, 16), maps).pad_maps[1].shape
        torch.Size([1, 8, 20])
    """
    synthesis = stylegan2(generator).synthesis
    checks.tensor(ws, "ws", ndim=3)
    n = ws.shape[0]
    if ws.shape[1] < synthesis.num_ws or ws.shape[2] != synthesis.w_dim:
        raise ValueError(
            f"ws: expected shape [N, {synthesis.num_ws} or more, {synthesis.w_dim}], got {tuple(ws.shape)}"
        )
    sizes = synthesis.pad_map_sizes()
    found: list[torch.Tensor | None] = []
    for k, size in enumerate(sizes):
        p = None if pad_maps is None or k >= len(pad_maps) else pad_maps[k]
        if p is None:
            found.append(None)
            continue
        checks.tensor(p, f"pad_maps[{k}]")
        if size is None:
            raise ValueError(f"pad_maps[{k}]: expected None for a convolution without padding, got {tuple(p.shape)}")
        c, h, w = size
        ring = (n, c, 2 * (h + w) - 4)
        if not (k and p.shape == ring):
            if p.ndim != 4 or p.shape[:2] != (n, c) or p.shape[2] < h or p.shape[3] < w:
                raise ValueError(f"pad_maps[{k}]: expected [{n}, {c}, >= {h}, >= {w}], got {tuple(p.shape)}")
            y, x = (p.shape[2] - h) // 2, (p.shape[3] - w) // 2
            p = PF.ring_from_map(p, h - 2, w - 2) if k else p[:, :, y : y + h, x : x + w]
        found.append(p)
    names = tuple(names) or tuple(map(str, range(n)))
    if len(names) != n:
        raise ValueError(f"names: expected {n}, got {len(names)}")
    return Codes(ws[:, : synthesis.num_ws], tuple(found), names)


def average_codes(generator: Generator) -> Codes:
    """Return the codes of the average image: the average latent, and the generator's own constant and zeros."""
    average = stylegan2(generator).mapping.w_avg
    if average is None:
        raise ValueError("generator: expected one with an average latent")
    return codes_of(generator, average.detach().expand(1, generator.num_ws, -1), names=["average"])


def render(generator: Generator, codes: Codes) -> torch.Tensor:
    """Make the images of codes, [N, channels, H, W], with the generator's constant noise."""
    return generator.synthesis(codes.ws, pad_maps=codes.pad_maps, noise_mode="const")


def interpolate(generator: Generator, a: Codes, b: Codes, t: float, space: str = "both") -> Codes:
    """Return ``(1 - t) * a + t * b`` in the latents, in the padding maps or in both; the rest is that of ``a``.

    Where one has a map and the other does not, the generator's own takes its place. t = 0 is ``a``; beyond 1 the result
    goes on past ``b``.

    Raises:
        ValueError: an unknown space, or codes of another number of pictures.
    """
    checks.choice(space, "space", SPACES)
    _check_pair(a, b)
    t = checks.real(t, "t")
    ws = a.ws if space == "padding" else torch.lerp(a.ws, b.ws, t)
    if space == "latents":
        return replace(a, ws=ws)
    pairs = _aligned(generator, a, b)
    _check_maps(space, [p is not None for p, _ in pairs])
    maps = [None if p is None or q is None else torch.lerp(p, q, t) for p, q in pairs]
    return replace(a, ws=ws, pad_maps=tuple(maps))


def blend(details: Codes, structure: Codes) -> Codes:
    """Return the latents of one picture, which tell details, with the padding maps of another, which tell structure.

    Source: PadInv, section 4.3: G(w_A, p_B).
    """
    _check_pair(details, structure)
    names = tuple(f"{a} in {b}" for a, b in zip(details.names, structure.names, strict=True))
    return Codes(details.ws, structure.pad_maps, names)


def edit_pair(
    generator: Generator, codes: Codes, before: Codes, after: Codes, space: str, strength: float = 1.0
) -> Codes:
    """Return ``codes + strength * (after - before)`` in one space.

    Source: PadInv, section 4.4. "padding" suits changes of shape, "latents" changes of colour and texture; "both" is
    what the paper advises against.

    Args:
        generator: the generator that all codes are for.
        codes: those of the pictures to edit.
        before, after: those of one picture and of the same picture as someone has changed it.
        space: "padding", "latents" or "both".
        strength: factor of the difference.

    Raises:
        ValueError: an unknown space; ``before`` or ``after`` of more than one picture.
    """
    checks.choice(space, "space", SPACES)
    strength = checks.real(strength, "strength")
    if len(before) != 1 or len(after) != 1:
        raise ValueError(f"before: expected codes of one picture, as after, got {len(before)} and {len(after)}")
    ws = codes.ws if space == "padding" else codes.ws + strength * (after.ws - before.ws)
    if space == "latents":
        return replace(codes, ws=ws)
    steps = [None if p is None or q is None else strength * (q - p) for p, q in _aligned(generator, before, after)]
    changed = [step is not None for step in steps]
    _check_maps(space, changed)
    filled = _filled(generator, codes, changed)
    maps = [p if step is None or p is None else p + step for p, step in zip(filled, steps, strict=True)]
    return replace(codes, ws=ws, pad_maps=tuple(maps))


def fingerprint(generator: Generator) -> str:
    """Return a hash of what turns codes into images: parameters, noise and settings of ``generator.synthesis``."""
    synthesis = stylegan2(generator).synthesis
    settings = [synthesis.b4.head, synthesis.b4.base_size, sorted(synthesis.b4.encoding.items())]
    for name, layer in synthesis.named_modules():
        if isinstance(layer, StyleConv):
            settings.append((name, layer.act, layer.clamp, layer.up_after_conv, layer.interp_pad, layer.padding))
        elif isinstance(layer, ToRGB):
            settings.append((name, layer.clamp))
    return hash_of(synthesis, repr(settings))


def hash_of(network: torch.nn.Module, settings: str = "") -> str:
    """Return a hash of the tensors of a network and of ``settings``, the same on every device and in float32 and up."""
    digest = hashlib.blake2b(settings.encode(), digest_size=16)
    for name, value in sorted(network.state_dict().items()):
        if not name.endswith("resample_filter"):  # the same for all, and rounded by some families
            digest.update(f"{name} {tuple(value.shape)}".encode())
            digest.update(value.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def save_codes(path: str | os.PathLike, codes: Codes, generator: Generator | str) -> None:
    """Write codes into a file, whole or not at all.

    Args:
        path: the file.
        codes: what to write.
        generator: the generator that they are for, or its fingerprint.

    Raises:
        ValueError: numbers that are not finite.
        OSError: the file cannot be written.
    """
    tensors = {"ws": codes.ws} | {f"pad_maps.{k}": p for k, p in enumerate(codes.pad_maps) if p is not None}
    tensors = {name: value.detach().float().cpu().contiguous() for name, value in tensors.items()}
    for name, value in tensors.items():
        if not bool(value.isfinite().all()):
            raise ValueError(f"{name}: expected finite numbers, got others for {', '.join(codes.names[:4])}")
    if not isinstance(generator, str):
        codes_of(generator, codes.ws, codes.pad_maps)  # refuses sizes of another generator
    mark = generator if isinstance(generator, str) else fingerprint(generator)
    metadata = {"format": FORMAT, "schema": SCHEMA, "generator": mark, "names": json.dumps(codes.names)}
    data = save(tensors, metadata)
    with replacing(Path(path)) as file:
        file.write(data)


def load_codes(path: str | os.PathLike, generator: Generator, mark: str | None = None) -> Codes:
    """Read the codes in a file onto the device of the generator that they were made for.

    Args:
        path: the file.
        generator: the generator.
        mark: its fingerprint, if it is known already.

    Raises:
        FileNotFoundError: there is no such file.
        CheckpointError: the file is damaged, holds no codes, or holds those of another generator.
    """
    metadata, tensors = _read(Path(path), with_tensors=True)
    if metadata["generator"] != (mark or fingerprint(generator)):
        raise CheckpointError(f"{path}: codes of another generator")
    try:
        if "ws" not in tensors:
            raise ValueError("no ws")
        for name, value in tensors.items():
            if not value.dtype.is_floating_point or not bool(value.isfinite().all()) or not len(value):
                raise ValueError(f"{name}: expected finite numbers for one picture or more")
        names = json.loads(metadata["names"])
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError("names: expected a list of names")
        maps: list[Any] = [None] * (generator.synthesis.num_convs + 1)
        for name, value in tensors.items():
            if name != "ws":
                maps[_INDICES[name]] = value
        return codes_of(generator, tensors["ws"], maps, names).to(next(generator.parameters()))
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged: {error}") from None


def read_fingerprint(path: str | os.PathLike) -> str:
    """Return the fingerprint of the generator that the codes in a file belong to.

    Raises:
        FileNotFoundError, CheckpointError: as :func:`load_codes`.
    """
    return _read(Path(path), with_tensors=False)[0]["generator"]


def _read(path: Path, with_tensors: bool) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Return the metadata of a file of codes and, where asked for, its tensors."""
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of codes")
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            names = file.keys() if with_tensors else ()
            tensors = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: damaged, or no file of codes: {str(error).splitlines()[0][:200]}") from None
    if metadata.get("format") != FORMAT or metadata.get("schema") != SCHEMA:
        found = f"{metadata.get('format')!r}, {metadata.get('schema')!r}"
        raise CheckpointError(f"{path}: expected {FORMAT!r} of schema {SCHEMA!r}, got {found}")
    return {"generator": "", "names": "[]"} | metadata, tensors


def joined(parts: Sequence[Codes], generator: Generator) -> Codes:
    """Put the codes of several files together; where some have a map, the others get the generator's own."""
    if not parts:
        raise ValueError("parts: expected codes, got none")
    wanted = [any(part.pad_maps[k] is not None for part in parts) for k in range(len(parts[0].pad_maps))]
    columns = zip(*(_filled(generator, part, wanted) for part in parts), strict=True)
    maps = tuple(None if column[0] is None else torch.cat(column) for column in columns)  # type: ignore[arg-type]
    return Codes(torch.cat([part.ws for part in parts]), maps, tuple(name for part in parts for name in part.names))


def stylegan2(generator: Any) -> Generator:
    """Require a StyleGAN2 generator of this library."""
    if not isinstance(generator, Generator):
        raise TypeError(f"generator: expected a StyleGAN2 generator, got {type(generator).__name__}")
    return generator


def _check_maps(space: str, there: Sequence[bool]) -> None:
    if space == "padding" and not any(there):
        raise ValueError("space: expected codes with padding maps, got some with latents alone")


def _check_pair(a: Codes, b: Codes) -> None:
    if len(a) != len(b):
        raise ValueError(f"b: expected codes of {len(a)} pictures, as in a, got {len(b)}")


def _aligned(generator: Generator, a: Codes, b: Codes) -> list[tuple[torch.Tensor | None, torch.Tensor | None]]:
    """Pair the maps of both, with the generator's own where only one has a map."""
    wanted = [p is not None or q is not None for p, q in zip(a.pad_maps, b.pad_maps, strict=True)]
    return list(zip(_filled(generator, a, wanted), _filled(generator, b, wanted), strict=True))


def _filled(generator: Generator, codes: Codes, wanted: Sequence[bool]) -> list[torch.Tensor | None]:
    """Return the maps, with the generator's own where one is wanted and missing."""
    found: list[torch.Tensor | None] = []
    for k, (p, fill) in enumerate(zip(codes.pad_maps, wanted, strict=True)):
        found.append(native_map(generator, k, codes.ws) if p is None and fill else p)
    return found


def native_map(generator: Generator, index: int, ws: torch.Tensor) -> torch.Tensor:
    """Return what the generator uses without a map, for each sample of ``ws``: its constant, or a ring of zeros."""
    size = generator.synthesis.pad_map_sizes()[index]
    if size is None:
        raise ValueError(f"pad_maps[{index}]: expected a convolution with padding")
    c, h, w = size
    if index:
        return ws.new_zeros(ws.shape[0], c, 2 * (h + w) - 4)
    if generator.synthesis.b4.head != "constant":
        raise ValueError("generator: expected one with a constant")
    return generator.synthesis.b4.const.detach().expand(ws.shape[0], -1, -1, -1).to(ws.dtype)
