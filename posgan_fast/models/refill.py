"""Buffers of StyleGAN2 that can be made again: files may lack them, or hold them for images of another size."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from .report import CheckpointError

if TYPE_CHECKING:
    from .conversion import Conversion, ExpectedTensors


def fill_noise(conversion: Conversion, tensors: ExpectedTensors) -> None:
    """Draw the constant noise of each convolution that has none, with the number of the convolution as seed."""
    names = [name for name in conversion.names if name.endswith("noise_const") and tensors.wants(name)]
    for seed, name in enumerate(names):
        if name not in conversion.out:
            like = conversion.out[name.replace("noise_const", "bias")]
            noise = torch.randn(tensors.shape(name), generator=torch.Generator().manual_seed(seed))
            conversion.out[name] = noise.to(like.device, like.dtype)
            conversion.report.filled[name] = "drawn from a fixed seed, the number of the convolution"


def fill_filters(conversion: Conversion, tensors: ExpectedTensors) -> None:
    """Give every layer a filter, as NVlabs does; the other families keep filters only where layers resample."""
    found = [value for name, value in conversion.out.items() if name.endswith("resample_filter")]
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    default = found[0] if found else torch.outer(taps, taps) / 64
    why = "the filter of the other layers" if found else "the usual filter [1, 3, 3, 1]"
    for name in conversion.names:
        if name.endswith("resample_filter") and name not in conversion.out and tensors.wants(name):
            conversion.out[name] = default.clone()
            conversion.report.filled[name] = why


def filter_of(conversion: Conversion, source: str, name: str, value: torch.Tensor) -> torch.Tensor:  # => [4, 4]
    """Turn the filter of a layer into NVlabs' [4, 4]; ``value`` may have sides of 1, one copy for each channel, or be
    the taps of a separable filter."""
    family = conversion.family
    expected = family.generator_filter_sum if conversion.network == "generator" else 1.0
    if value.ndim > 2 and value.numel():
        channels = value.reshape(-1, *value.shape[-2:])
        value = channels[0] if bool((channels == channels[:1]).all()) else value
    total = float(value.sum())
    if value.ndim not in (1, 2) or not abs(total - expected) <= 1e-3 * expected:
        raise CheckpointError(f"{source}: expected a filter of sum {expected:g}, got {list(value.shape)}, {total:g}")
    if family.mirrored_filters:
        value = value.flip(tuple(range(value.ndim)))
    if expected != 1:
        conversion.report.changed[name] = f"divided by {expected:g}: the gain is in the call here"
        value = value / expected
    if 1 in value.shape or value.ndim == 1:
        value = torch.outer(value.flatten(), value.flatten())
        conversion.report.changed[name] = "made from its taps" + (f", of sum {expected:g}" if expected != 1 else "")
    if value.shape != (4, 4):
        raise CheckpointError(f"{source}: expected a filter of 4 taps ({name}), got {list(value.shape)}")
    return value


def single_average(value: torch.Tensor) -> torch.Tensor:
    """Return one row of an average of w [L, w_dim] that holds the same row for each layer; others stay as they are."""
    if value.ndim < 2 or value.numel() == 0:
        return value
    rows = value.reshape(-1, value.shape[-1])
    return rows[0] if bool((rows == rows[:1]).all()) else value
