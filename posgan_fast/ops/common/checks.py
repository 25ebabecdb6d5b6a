"""Argument checks of all ops and modules. An error names the argument, what was expected and what came."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import torch

MAX_FACTOR, MAX_PADDING = 2**24 - 1, 2**30 - 1  # kernels index a row with 32 bits
MAX_SIZE = 2**31 - 1  # the most pixels of a side, and the most channels
_SIDES = ("padding[0]", "padding[1]", "padding[2]", "padding[3]")
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def tensor(value: Any, name: str, *, ndim: int | None = None, shape: tuple[int, ...] | None = None) -> torch.Tensor:
    """Require a strided tensor of a supported dtype, with ``ndim`` dimensions or ``shape`` if given."""
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name}: expected a torch.Tensor, got {type(value).__name__}")
    if value.layout != torch.strided:
        raise TypeError(f"{name}: expected a strided tensor, got layout {value.layout}")
    if value.dtype not in FLOATS:
        raise TypeError(f"{name}: expected dtype float16, bfloat16, float32 or float64, got {value.dtype}")
    if ndim is not None and value.ndim != ndim:
        raise ValueError(f"{name}: expected {ndim} dimensions, got shape {tuple(value.shape)}")
    if shape is not None and tuple(value.shape) != shape:
        raise ValueError(f"{name}: expected shape {shape}, got {tuple(value.shape)}")
    return value


def features(value: Any, name: str, channels: int, weight: torch.Tensor) -> torch.Tensor:
    """Require a tensor [N, ``channels``, H, W] on the device of ``weight``."""
    if tensor(value, name, ndim=4).shape[1] != channels:
        raise ValueError(f"{name}: expected {channels} channels, got shape {tuple(value.shape)}")
    same_device(value, name, weight, like="weight")
    return value


def arithmetic(dtype: Any) -> torch.dtype:
    """Return the dtype in which kernels sum and activate values of a supported dtype."""
    if not isinstance(dtype, torch.dtype) or dtype not in FLOATS:
        raise TypeError(f"dtype: expected float16, bfloat16, float32 or float64, got {dtype}")
    return torch.float64 if dtype == torch.float64 else torch.float32


def parameter_dtype(dtype: Any) -> None:
    """Require a dtype that the parameters of a module can have; None is torch's default."""
    if dtype is not None and (not isinstance(dtype, torch.dtype) or dtype not in FLOATS):
        raise TypeError(f"dtype: expected one of {', '.join(map(str, FLOATS))} or None, got {dtype!r}")


def same_device(value: torch.Tensor, name: str, x: torch.Tensor, like: str = "x") -> None:
    if value.device != x.device:
        raise ValueError(f"{name}: expected device {x.device} like {like}, got {value.device}")


def integer(value: Any, name: str, *, minimum: int | None = None, maximum: int | None = None) -> int:
    if type(value) is int:  # the common case, without the slow look at abstract base classes
        pass
    elif isinstance(value, torch.Tensor) and torch.jit.is_tracing():  # TorchScript's tracer hands out sizes so
        value = int(value)
    elif isinstance(value, bool) or not isinstance(value, (Integral, torch.SymInt)):
        raise TypeError(f"{name}: expected an int, got {type(value).__name__}")
    elif not isinstance(value, torch.SymInt):
        value = int(value)  # numpy's integers wrap around
    if minimum is not None and value < minimum:
        raise ValueError(f"{name}: expected an int >= {minimum}, got {value}")
    if maximum is not None and value > maximum:
        raise ValueError(f"{name}: expected an int <= {maximum}, got {value}")
    return value  # type: ignore[return-value]


def real(value: Any, name: str, *, minimum: float | None = None) -> float:
    if type(value) is not float and (isinstance(value, bool) or not isinstance(value, Real)):
        raise TypeError(f"{name}: expected a number, got {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not -math.inf < number < math.inf:
        raise ValueError(f"{name}: expected a finite number, got {value}")
    if minimum is not None and number < minimum:
        raise ValueError(f"{name}: expected a number >= {minimum}, got {value}")
    return number


def device(value: Any) -> None:
    """Refuse a device that torch cannot use here; None is torch's default."""
    if value is not None and not isinstance(value, (str, torch.device)) and type(value) is not int:
        raise TypeError(f"device: expected a torch.device, a str or None, got {type(value).__name__}")
    try:
        torch.empty(0, device=value)
    except (
        AssertionError,
        NotImplementedError,
        RuntimeError,
        ValueError,
    ) as error:  # torch raises any
        raise ValueError(f"device: expected one that torch can use here, got {value!r} ({error})") from None


def bound(value: Any, name: str) -> float | None:
    """Require a number >= 0, or None for no clamp."""
    return None if value is None else real(value, name, minimum=0)


def choice(value: Any, name: str, options: Sequence[str]) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name}: expected one of {tuple(options)}, got {type(value).__name__}")
    if value not in options:
        raise ValueError(f"{name}: expected one of {tuple(options)}, got {value!r}")
    return value


def flag(value: Any, name: str) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected a bool, got {type(value).__name__}")
    return value


def factors(up: Any, down: Any) -> tuple[int, int]:
    """Require two factors of resampling, at most one of which differs from 1."""
    up, down = (integer(v, name, minimum=1, maximum=MAX_FACTOR) for v, name in ((up, "up"), (down, "down")))
    if up > 1 and down > 1:
        raise ValueError(f"down: expected 1 beside up={up}, got {down}")
    return up, down


def pair(value: Any, name: str, *, minimum: int, maximum: int | None = None, axes: str = "[x, y]") -> tuple[int, int]:
    """Require an int for both axes, or a pair with one for each of ``axes``; return the pair."""
    if type(value) is int or not isinstance(value, Sequence) or isinstance(value, str):
        both = integer(value, name, minimum=minimum, maximum=maximum)
        return both, both
    if len(value) != 2:
        raise ValueError(f"{name}: expected an int or {axes}, got {len(value)} values")
    first = integer(value[0], f"{name}[0]", minimum=minimum, maximum=maximum)
    return first, integer(value[1], f"{name}[1]", minimum=minimum, maximum=maximum)


def resampling(up: Any, down: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    """Require factors of resampling; return each as [x, y]."""
    return pair(up, "up", minimum=1, maximum=MAX_FACTOR), pair(down, "down", minimum=1, maximum=MAX_FACTOR)


def size(value: Any, name: str) -> tuple[int, int]:
    """Require [height, width], each >= 1."""
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise TypeError(f"{name}: expected [height, width], got {type(value).__name__}")
    if len(value) != 2:
        raise ValueError(f"{name}: expected [height, width], got {len(value)} values")
    return pair(value, name, minimum=1, maximum=MAX_SIZE)


def padding(value: Any) -> tuple[int, int, int, int]:
    """Require an int for every side, [x, y], or one int for each side; return [x0, x1, y0, y1]."""
    if type(value) is int or not isinstance(value, Sequence) or isinstance(value, str):
        p = integer(value, "padding", minimum=-MAX_PADDING, maximum=MAX_PADDING)
        return p, p, p, p
    if len(value) not in (2, 4):
        raise ValueError(f"padding: expected an int, [x, y] or [x0, x1, y0, y1], got {len(value)} values")
    values = [
        integer(v, side, minimum=-MAX_PADDING, maximum=MAX_PADDING) for v, side in zip(value, _SIDES, strict=False)
    ]
    if len(values) == 2:
        return values[0], values[0], values[1], values[1]
    return values[0], values[1], values[2], values[3]
