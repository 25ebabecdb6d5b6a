"""setup_filter: prepares the filter of the resampling ops."""

from __future__ import annotations

from typing import Any

import torch

from .common import checks


def setup_filter(
    f: Any,
    device: torch.device | str | None = None,
    normalize: bool = True,
    flip_filter: bool = False,
    gain: float = 1.0,
    separable: bool | None = None,
) -> torch.Tensor:
    """Prepare a float32 filter for the ops of this module; the argument is never modified.

    Args:
        f: numbers, array or tensor of shape [taps], [fh, fw] or []; None stands for the identity.
        device: where the result goes; None: where a tensor is, else the default device.
        normalize: divide by the sum.
        flip_filter: reverse every axis.
        gain: factor on the whole filter (its square root on each axis of a separable one).
        separable: keep rank 1 (True) or expand to the outer product (False); None keeps 8 taps and more.

    Raises:
        TypeError: ``f`` is not numeric, or another argument of the wrong type.
        ValueError: ``f`` has more than two axes, is empty or not finite, sums to zero under ``normalize``, or is
            two-dimensional with ``separable=True``; ``gain`` is negative for a separable filter.

    Example:
        >>> setup_filter([1, 3])
        tensor([[0.0625, 0.1875],
                [0.1875, 0.5625]])
    """
    try:
        here = f.device if isinstance(f, torch.Tensor) else "cpu"  # not the default device, which may hold no values
        taps = torch.as_tensor(1.0 if f is None else f, dtype=torch.float32, device=here).detach().clone()
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        raise TypeError(f"f: expected numbers, an array or a tensor, got {type(f).__name__} ({error})") from None
    if taps.ndim > 2 or taps.numel() == 0:
        raise ValueError(f"f: expected a non-empty filter [taps] or [fh, fw], got shape {tuple(taps.shape)}")
    if taps.is_meta:
        raise ValueError("f: expected taps that can be read, got some on the device meta")
    if not taps.isfinite().all():
        raise ValueError("f: expected finite taps, got NaN or infinity")
    gain, normalize = checks.real(gain, "gain"), checks.flag(normalize, "normalize")
    checks.flag(flip_filter, "flip_filter")
    checks.device(device)
    if separable is not None:
        checks.flag(separable, "separable")
    if taps.ndim == 0:
        taps = taps[None]
    if separable is None:
        separable = taps.ndim == 1 and taps.numel() >= 8
    if separable and taps.ndim == 2:
        raise ValueError(f"separable: expected False or None for a filter of shape {tuple(taps.shape)}, got True")
    if separable and gain < 0:
        raise ValueError(f"gain: expected a number >= 0 for a separable filter, got {gain}")
    if taps.ndim == 1 and not separable:
        taps = torch.outer(taps, taps)
    if normalize:
        total = taps.sum()
        if total == 0:
            raise ValueError("f: expected taps with a non-zero sum to normalise, got a sum of 0")
        taps = taps / total
    if flip_filter:
        taps = taps.flip(list(range(taps.ndim)))
    if device is None and not isinstance(f, torch.Tensor):
        device = torch.get_default_device()
    return (taps * gain ** (taps.ndim / 2)).contiguous().to(device)
