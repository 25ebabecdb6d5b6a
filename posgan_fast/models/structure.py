"""Constructor arguments inferred from the shapes of a network's tensors; the report lists those that are assumed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from .report import CheckpointError

if TYPE_CHECKING:
    from .conversion import Conversion

_ENCODED = ("nvlabs", "mmgeneration")  # families with generators that have an encoding in place of the constant


def head_of(conversion: Conversion, channels: int, given: str | None) -> str:
    """Infer ``head`` from the constant, or without one from the ``channels`` that the first convolution reads."""
    const = conversion.sources["synthesis.b4.const"]
    inferred = "constant" if const in conversion.state else "csg" if channels == 2 else "spe"
    if given not in (None, inferred):
        there = "with" if const in conversion.state else "without"
        raise CheckpointError(f"head: expected {inferred!r} of tensors {there} {const}, got {given!r}")
    if given is None and inferred != "constant" and conversion.report.family not in _ENCODED:
        return "constant"  # which the conversion then reports as missing
    if given is None and inferred == "spe" and "head_pos_enc._float_tensor" not in conversion.state:
        raise CheckpointError(f'state: {const} is missing; if the head is an encoding without tensors, give head="spe"')
    return inferred


def multiplier(channels: Mapping[int, int]) -> dict[str, Any]:
    """Infer ``channel_multiplier`` and ``channel_max`` from ``min(16384 * multiplier // side, maximum)`` channels."""
    maximum = max(channels.values())
    base = max(r * count for r, count in channels.items())
    if min(channels.values()) == maximum:
        base = max(base, 32768)
    if any(min(base // r, maximum) != count for r, count in channels.items()):  # no larger base fits either
        raise CheckpointError(f"state: channels by side {dict(channels)} do not follow min(base // side, maximum)")
    factor = base / 16384
    return {"channel_multiplier": int(factor) if factor.is_integer() else factor, "channel_max": maximum}


def sides(
    conversion: Conversion, head: str, head_size: tuple[int, int] | None, no_pad: bool | None
) -> tuple[int, int, int]:
    """Infer height and width of the first block, and the pixels that a generator without padding adds.

    The constant decides, then the noise. Noise that fits neither was made for images of another size. Where nothing
    decides, the values of the published generators are assumed.
    """
    settings, assumed = conversion.report.settings, conversion.report.assumed
    border = _border(conversion, head, no_pad)
    if head == "constant":
        height, width = _constant_size(conversion, border, head_size)
    else:
        inferred = _noise_size(conversion, "b4.conv1") or _first_block(conversion, border)
        height, width = head_size or inferred or (4, 4)
        if head_size is None and inferred is None:
            assumed["head_size"] = "(4, 4); there is no noise to tell"
    if (height, width) != (4, 4):
        settings["head_size"] = (height, width)
    if border:
        settings["no_pad"] = True
    elif conversion.report.family == "mmgeneration" and not _has_filters(conversion, "conv0."):
        filters = _has_filters(conversion, "")
        settings["up_after_conv"] = True if filters else None
        assumed["up_after_conv"] = (
            "as in every published configuration with padding; shapes do not tell"
            if filters
            else "None; the file has no filters, which would tell"
        )
    if head != "constant":
        settings["interp_head"] = False
        assumed["interp_head"] = "shapes do not tell; True in configurations e and j of MS-PIE"
    return height, width, border


def _constant_size(conversion: Conversion, border: int, head_size: tuple[int, int] | None) -> tuple[int, int]:
    name = "synthesis.b4.const"
    height, width = (side - border for side in conversion.get(name, 2).shape[-2:])
    if min(height, width) < 1:
        raise CheckpointError(f"{conversion.sources[name]}: expected more than {border} pixels a side")
    if head_size is not None and head_size != (height, width):
        raise CheckpointError(f"head_size: expected {(height, width)}, which the tensors tell, got {head_size}")
    return height, width


def last_features(
    conversion: Conversion, features: int, channels: int, head_size: tuple[int, int] | None, pool: bool | None
) -> dict[str, Any]:
    """Infer ``adaptive_pool`` and ``head_size`` of a discriminator from ``features`` = channels * height * width."""
    name, (area, rest) = conversion.sources["b4.fc.weight"], divmod(features, channels)
    if rest or area == 0:
        raise CheckpointError(f"{name}: expected a multiple of {channels} inputs, got {features}")
    fits = {False: head_size is None or head_size[0] * head_size[1] == area, True: area == 4}
    possible = [pooled for pooled in fits if fits[pooled] and pool in (None, pooled)]
    if not possible:
        given = "" if head_size is None else f" for head_size={head_size}"
        given += "" if pool is None else f" with adaptive_pool={pool}"
        raise CheckpointError(
            f"{name}: expected {16 * channels} inputs, or {4 * channels} after pooling to 2x2, or as many as head_size "
            f"says, got {features}{given}"
        )
    pooled, assumed = possible[0], conversion.report.assumed
    if len(possible) > 1:
        pooled = head_size is None
        assumed["adaptive_pool"] = f"{pooled}; 4 features a channel are also those of a head_size with 4 pixels"
    if head_size is not None:
        return {"adaptive_pool": pooled, "head_size": head_size}
    if area == 1 and not pooled:
        return {"adaptive_pool": pooled, "head_size": (1, 1)}
    if not pooled and area != 16:
        raise CheckpointError(
            f"{name}: {area} features a channel, expected 16, or 4 after pooling to 2x2: give head_size, whose height "
            f"times width is {area}"
        )
    if conversion.report.family == "nvlabs":  # the names of this library's own networks too
        assumed["head_size"] = "(4, 4); no tensor tells"
    return {"adaptive_pool": pooled}


def _noise_size(conversion: Conversion, layer: str) -> tuple[int, int] | None:
    value = conversion.state.get(conversion.sources[f"synthesis.{layer}.noise_const"])
    return None if value is None or value.ndim < 2 or 0 in value.shape else (value.shape[-2], value.shape[-1])


def _border(conversion: Conversion, head: str, given: bool | None) -> int:
    """Return 2 for a generator without padding, whose convolutions read 2 more rows than they write, else 0."""
    if given is not None:
        return 2 if given else 0
    family = conversion.report.family
    if family not in _ENCODED or (family == "mmgeneration" and _has_filters(conversion, "conv0.")):
        return 0
    differences = set(_lost_pixels(conversion, head))
    if differences == {(2, 2)}:
        return 2
    if differences != {(0, 0)}:
        conversion.report.assumed["no_pad"] = "False; there is no noise of these images to tell"
    return 0


def _lost_pixels(conversion: Conversion, head: str) -> list[tuple[int, int]]:
    """Rows and columns that convolutions take off, from the first comparison of sizes that the tensors allow."""
    layers = [
        (_noise_size(conversion, f"b{r}.conv0"), _noise_size(conversion, f"b{r}.conv1")) for r in _later(conversion)
    ]
    lost = [(before[0] - after[0], before[1] - after[1]) for before, after in layers if before and after]
    b4, b8 = _noise_size(conversion, "b4.conv1"), _noise_size(conversion, "b8.conv0")
    if not lost and b4 and b8:
        lost.append((b8[0] - 2 * b4[0], b8[1] - 2 * b4[1]))
    if not lost and head == "constant" and b4:
        const = conversion.get("synthesis.b4.const", 2).shape
        lost.append((const[-2] - b4[0], const[-1] - b4[1]))
    return lost


def _later(conversion: Conversion) -> Iterator[int]:
    """Sides of the blocks behind the first."""
    return (2**i for i in range(3, conversion.side.bit_length()))


def _first_block(conversion: Conversion, border: int) -> tuple[int, int] | None:
    """Size of the first block, from the noise of a later one."""
    for r in _later(conversion):
        for layer, extra in ((f"b{r}.conv1", 0), (f"b{r}.conv0", border)):
            size = _noise_size(conversion, layer)
            if size is not None:
                return max((size[0] - extra) * 4 // r, 1), max((size[1] - extra) * 4 // r, 1)
    return None


def _has_filters(conversion: Conversion, part: str) -> bool:
    return any(
        part in name and name.endswith("resample_filter") and conversion.has(name) for name in conversion.sources
    )
