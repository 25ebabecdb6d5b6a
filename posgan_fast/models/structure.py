"""The arguments of a network behind the shapes of its tensors: told, given by the caller, or assumed and reported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .report import CheckpointError

if TYPE_CHECKING:
    from .convert import Conversion

_ENCODED = ("nvlabs", "mmgeneration")  # families with generators that have an encoding in place of the constant


def head_of(work: Conversion, channels: int, given: str | None) -> str:
    const = work.names["synthesis.b4.const"]
    told = "constant" if const in work.state else "csg" if channels == 2 else "spe"
    if given not in (None, told):
        there = "with" if const in work.state else "without"
        raise CheckpointError(f"head: expected {told!r} of tensors {there} {const}, got {given!r}")
    if given is None and told != "constant" and work.report.family not in _ENCODED:
        return "constant"  # which is missing then
    if given is None and told == "spe" and "head_pos_enc._float_tensor" not in work.state:
        raise CheckpointError(f'state: {const} is missing; if the head is an encoding without tensors, give head="spe"')
    return told


def multiplier(channels: Mapping[int, int]) -> dict[str, Any]:
    """The constructor arguments behind ``min(16384 * multiplier // side, maximum)``."""
    maximum = max(channels.values())
    base = max(r * count for r, count in channels.items())
    if min(channels.values()) == maximum:
        base = max(base, 32768)
    if any(min(base // r, maximum) != count for r, count in channels.items()):  # nor does any larger base
        raise CheckpointError(f"state: channels by side {dict(channels)} do not follow min(base // side, maximum)")
    factor = base / 16384
    return {"channel_multiplier": int(factor) if factor.is_integer() else factor, "channel_max": maximum}


def sides(work: Conversion, head: str, head_size: tuple[int, int] | None, no_pad: bool | None) -> tuple[int, int, int]:
    """Height and width of the first block, and the pixels that a generator without padding adds.

    The constant decides, then the noise; shapes of noise that fit neither are those of images of another size. Where
    nothing decides, the published generators' values are assumed.
    """
    settings, assumed = work.report.settings, work.report.assumed
    border = _border(work, head, no_pad)
    name, noise = "synthesis.b4.const", _noise(work, "b4.conv1")
    if head == "constant":
        height, width = (side - border for side in work.get(name, 2).shape[-2:])
        if min(height, width) < 1:
            raise CheckpointError(f"{work.names[name]}: expected more than {border} pixels a side")
        if head_size is not None and head_size != (height, width):
            raise CheckpointError(f"head_size: expected {(height, width)}, which the tensors tell, got {head_size}")
    else:
        height, width = head_size or noise or _first(work, border) or (4, 4)
        if head_size is None and noise is None and _first(work, border) is None:
            assumed["head_size"] = "(4, 4); there is no noise to tell"
    if (height, width) != (4, 4):
        settings["head_size"] = (height, width)
    if border:
        settings["no_pad"] = True
    elif work.report.family == "mmgeneration" and not _filters(work, "conv0."):
        settings["up_after_conv"] = True if _filters(work, "") else None
        assumed["up_after_conv"] = (
            "as in every published configuration with padding; shapes do not tell"
            if _filters(work, "")
            else "None; the file has no filters, which would tell"
        )
    if head != "constant":
        settings["interp_head"] = False
        assumed["interp_head"] = "shapes do not tell; True in configurations e and j of MS-PIE"
    return height, width, border


def last_features(
    work: Conversion, features: int, channels: int, head_size: tuple[int, int] | None, pool: bool | None
) -> dict[str, Any]:
    """``adaptive_pool`` and ``head_size`` of a discriminator with ``features`` = channels * height * width."""
    name, (area, rest) = work.names["b4.fc.weight"], divmod(features, channels)
    given = "" if head_size is None else f" for head_size={head_size}"
    given += "" if pool is None else f" with adaptive_pool={pool}"
    if rest or area == 0:
        raise CheckpointError(f"{name}: expected a multiple of {channels} inputs, got {features}")
    fits = {
        False: head_size is None or head_size[0] * head_size[1] == area,
        True: area == 4,
    }
    if not fits[True if pool is None else pool] and not fits[False if pool is None else pool]:
        raise CheckpointError(
            f"{name}: expected {16 * channels} inputs, or {4 * channels} after pooling to 2x2, or as many as head_size "
            f"says, got {features}{given}"
        )
    pooled = pool
    if pooled is None and not fits[False]:
        pooled = True
    if pooled is None and not fits[True]:
        pooled = False
    assumed = work.report.assumed
    if pooled is None:
        pooled = head_size is None
        why = "4 features a channel are also those of a head_size with 4 pixels"
        assumed["adaptive_pool"] = f"{pooled}; {why}"
    settings: dict[str, Any] = {"adaptive_pool": pooled}
    if head_size is not None:
        settings["head_size"] = head_size
    elif pooled or area == 16:
        if work.report.family == "nvlabs":  # these names are this library's too
            assumed["head_size"] = "(4, 4); a state dictionary does not tell"
    elif area == 1:
        settings["head_size"] = (1, 1)
    else:
        raise CheckpointError(
            f"{name}: {area} features a channel, expected 16, or 4 after pooling to 2x2: give head_size, whose height "
            f"times width is {area}"
        )
    return settings


def _noise(work: Conversion, layer: str) -> tuple[int, int] | None:
    value = work.state.get(work.names[f"synthesis.{layer}.noise_const"])
    return None if value is None or value.ndim < 2 or 0 in value.shape else (value.shape[-2], value.shape[-1])


def _border(work: Conversion, head: str, given: bool | None) -> int:
    """2 where the noise ahead of a convolution without padding is so much larger, else 0."""
    if given is not None:
        return 2 if given else 0
    told = set()
    for r in [2**i for i in range(3, work.side.bit_length())]:
        before, after = _noise(work, f"b{r}.conv0"), _noise(work, f"b{r}.conv1")
        if before and after:
            told.add((before[0] - after[0], before[1] - after[1]))
    b4, b8 = _noise(work, "b4.conv1"), _noise(work, "b8.conv0")
    if not told and b4 and b8:
        told.add((b8[0] - 2 * b4[0], b8[1] - 2 * b4[1]))
    if not told and head == "constant" and b4:
        const = work.get("synthesis.b4.const", 2).shape
        told.add((const[-2] - b4[0], const[-1] - b4[1]))
    if work.report.family not in _ENCODED or (_filters(work, "conv0.") and work.report.family == "mmgeneration"):
        return 0
    if told == {(2, 2)}:
        return 2
    if told != {(0, 0)}:
        work.report.assumed["no_pad"] = "False; there is no noise of these images to tell"
    return 0


def _first(work: Conversion, border: int) -> tuple[int, int] | None:
    """The size of the first block behind the noise of a later one."""
    for r in [2**i for i in range(3, work.side.bit_length())]:
        for layer, extra in ((f"b{r}.conv1", 0), (f"b{r}.conv0", border)):
            size = _noise(work, layer)
            if size is not None:
                return max((size[0] - extra) * 4 // r, 1), max((size[1] - extra) * 4 // r, 1)
    return None


def _filters(work: Conversion, part: str) -> bool:
    return any(part in here and here.endswith("resample_filter") and work.has(here) for here in work.names)
