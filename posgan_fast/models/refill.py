"""Buffers of StyleGAN2 that can be made again: files may lack them, or hold them for images of another size."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from .report import CheckpointError

if TYPE_CHECKING:
    from .convert import Conversion

Shape = Callable[[str], tuple[int, ...] | None]
Wanted = Callable[[str], bool]


def fill_noise(work: Conversion, shape: Shape, wanted: Wanted) -> None:
    """Draws the constant noise of each convolution that has none, from the number of the convolution as seed."""
    names = [here for here in work.every if here.endswith("noise_const") and wanted(here)]
    for seed, here in enumerate(names):
        if here not in work.out:
            size, like = shape(here) or (), work.out[here.replace("noise_const", "bias")]
            noise = torch.randn(size, generator=torch.Generator().manual_seed(seed))
            work.out[here] = noise.to(like.device, like.dtype)
            work.report.filled[here] = "drawn from a fixed seed, the number of the convolution"


def fill_filters(work: Conversion, wanted: Wanted) -> None:
    """NVlabs keeps the filter in every layer, used or not; the families only where they resample."""
    found = [value for name, value in work.out.items() if name.endswith("resample_filter")]
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    default = found[0] if found else torch.outer(taps, taps) / 64
    why = "the filter of the other layers" if found else "the usual filter [1, 3, 3, 1]"
    for here in work.every:
        if here.endswith("resample_filter") and here not in work.out and wanted(here):
            work.out[here] = default.clone()
            work.report.filled[here] = why


def filter_of(work: Conversion, there: str, here: str, value: torch.Tensor) -> torch.Tensor:  # => [4, 4]
    """The filter of a layer, [k, k] with sides of 1, or one for each channel, or its taps [k]."""
    family = work.family
    expected = family.generator_filter_sum if work.network == "generator" else 1.0
    if value.ndim > 2 and value.numel():  # for each channel the same
        channels = value.reshape(-1, *value.shape[-2:])
        value = channels[0] if bool((channels == channels[:1]).all()) else value
    total = float(value.sum())
    if value.ndim not in (1, 2) or not abs(total - expected) <= 1e-3 * expected:
        raise CheckpointError(f"{there}: expected a filter of sum {expected:g}, got {list(value.shape)}, {total:g}")
    if family.mirrored_filters:
        value = value.flip(tuple(range(value.ndim)))
    if expected != 1:
        work.report.changed[here] = f"divided by {expected:g}: the gain is in the call here"
        value = value / expected
    if 1 in value.shape or value.ndim == 1:
        value = torch.outer(value.flatten(), value.flatten())
        work.report.changed[here] = "made from its taps" + (f", of sum {expected:g}" if expected != 1 else "")
    if value.shape != (4, 4):
        raise CheckpointError(f"{there}: expected a filter of 4 taps ({here}), got {list(value.shape)}")
    return value


def one_average(value: torch.Tensor) -> torch.Tensor:
    """The average of w where there is a copy for each layer, [L, w]."""
    if value.ndim < 2 or value.numel() == 0:
        return value
    rows = value.reshape(-1, value.shape[-1])
    return rows[0] if bool((rows == rows[:1]).all()) else value
