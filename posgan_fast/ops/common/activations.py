"""The activations of bias_act and epilogue2d: their table, and their values and derivatives in plain torch."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn import functional as F


@dataclass(frozen=True)
class Defaults:
    """A row of the table of bias_act; ``index`` is its number in the native code."""

    index: int
    alpha: float
    gain: float


ACTIVATIONS = {
    "linear": Defaults(1, 0.0, 1.0),
    "relu": Defaults(2, 0.0, math.sqrt(2)),
    "lrelu": Defaults(3, 0.2, math.sqrt(2)),
    "tanh": Defaults(4, 0.0, 1.0),
    "sigmoid": Defaults(5, 0.0, 1.0),
    "elu": Defaults(6, 0.0, 1.0),
    "selu": Defaults(7, 0.0, 1.0),
    "softplus": Defaults(8, 0.0, 1.0),
    "swish": Defaults(9, 0.0, math.sqrt(2)),
}


PIECEWISE_LINEAR = ("linear", "relu", "lrelu")


def derivative_reads(act: str, alpha: float, clamp: float) -> str | None:
    """Return what the first derivative reads: the "output", the "input", or None if it is a mere scaling."""
    if act == "linear" and clamp < 0:
        return None
    return "output" if reads_output(act, alpha) else "input"


def reads_output(act: str, alpha: float) -> bool:
    """Tell whether the first derivative reads the output. A negative slope would hide the sign of the input."""
    return act == "relu" or (act == "lrelu" and alpha >= 0)


def derivative_from_output(y, alpha, gain):
    """Return the first derivative of relu or lrelu, without the gain, from the result ``y``."""
    return torch.where(y > 0 if gain > 0 else y < 0, torch.ones_like(y), alpha)


def value(act, v, alpha):
    """Return ``act(v)`` without gain."""
    if act == "linear":
        return v
    if act == "lrelu":
        return torch.where(v > 0, v, alpha * v)
    return _FORMULAS[act](v)


_FORMULAS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "relu": F.relu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "elu": F.elu,
    "selu": F.selu,
    "softplus": lambda v: v.clamp(min=0) + torch.log1p(torch.exp(-v.abs())),
    "swish": F.silu,
}


def derivative(act, v, alpha):
    """Return ``act'(v)`` without gain."""
    s, c = torch.sigmoid(v), torch.sigmoid(-v)  # c = 1 - s without cancellation
    if act == "linear":
        return torch.ones_like(v)
    if act in ("relu", "lrelu"):
        return torch.where(v > 0, torch.ones_like(v), alpha)
    if act == "tanh":
        return torch.cosh(v).square().reciprocal()
    if act == "sigmoid":
        return s * c
    if act in ("elu", "selu"):
        scale, slope = _exponential(act)
        return torch.where(v > 0, scale, slope * v.clamp(max=0).exp())
    if act == "softplus":
        return s
    return s * (1 + v * c)


def second_derivative(act, v, alpha):
    """Return ``act''(v)`` without gain."""
    s, c = torch.sigmoid(v), torch.sigmoid(-v)
    if act == "tanh":
        return -2 * torch.tanh(v) * torch.cosh(v).square().reciprocal()
    if act == "sigmoid":
        return s * c * (c - s)
    if act in ("elu", "selu"):
        _, slope = _exponential(act)
        return torch.where(v > 0, 0, slope * v.clamp(max=0).exp())
    if act == "softplus":
        return s * c
    if act == "swish":
        return s * c * (2 + v * (c - s))
    return torch.zeros_like(v)  # piecewise linear


def _exponential(act):
    scale = 1.0507009873554805 if act == "selu" else 1.0
    return scale, scale * (1.6732632423543772 if act == "selu" else 1.0)
