"""The public ops. Each name is documented where it is defined, in :mod:`posgan_fast.ops`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch

from . import backend as _backend
from .ops import _check
from .ops import bias_act as _bias_act
from .ops import epilogue2d as _epilogue2d
from .ops import modulated_conv2d as _modulated_conv2d
from .ops import prologue2d as _prologue2d
from .ops import upfirdn2d as _upfirdn2d
from .ops.bias_act import bias_act, bias_act_
from .ops.cartesian_grid2d import cartesian_grid2d
from .ops.epilogue2d import epilogue2d
from .ops.modulated_conv2d import modulated_conv2d
from .ops.prologue2d import instance_pad2d, map_from_ring, prologue2d, ring_from_map
from .ops.sinusoidal_encoding2d import sinusoidal_encoding2d
from .ops.upfirdn2d import downsample2d, filter2d, setup_filter, upfirdn2d, upsample2d

__all__ = [
    "bias_act", "bias_act_", "cartesian_grid2d", "downsample2d", "epilogue2d", "explain", "filter2d", "instance_pad2d",
    "map_from_ring", "modulated_conv2d", "prologue2d", "ring_from_map", "setup_filter", "sinusoidal_encoding2d",
    "upfirdn2d", "upsample2d",
]  # fmt: skip

OPS: dict[str, tuple[Callable[..., Any], tuple[_backend.Impl, ...]]] = {
    "upfirdn2d": (upfirdn2d, _upfirdn2d.IMPLS),
    "filter2d": (filter2d, _upfirdn2d.IMPLS),
    "upsample2d": (upsample2d, _upfirdn2d.IMPLS),
    "downsample2d": (downsample2d, _upfirdn2d.IMPLS),
    "bias_act": (bias_act, _bias_act.IMPLS),
    "bias_act_": (bias_act_, _bias_act.IMPLS),
    "modulated_conv2d": (modulated_conv2d, _modulated_conv2d.IMPLS),
    "prologue2d": (prologue2d, _prologue2d.IMPLS),
    "instance_pad2d": (instance_pad2d, _prologue2d.IMPLS),
    "epilogue2d": (epilogue2d, _epilogue2d.IMPLS),
    "sinusoidal_encoding2d": (sinusoidal_encoding2d, _prologue2d.IMPLS),
    "cartesian_grid2d": (cartesian_grid2d, _prologue2d.IMPLS),
}


def explain(op_name: str, *args: Any, **kwargs: Any) -> _backend.Choice:
    """Which backend ``op_name(*args, **kwargs)`` would run on, and the reason for or against each; runs nothing.

    Raises:
        ValueError: ``op_name`` is no op of this library.
        TypeError: the arguments do not fit the op's signature.
    """
    if op_name not in OPS:
        raise ValueError(f"op_name: expected one of {sorted(OPS)}, got {op_name!r}")
    function, impls = OPS[op_name]
    bound = inspect.signature(function).bind(*args, **kwargs).arguments
    x = bound["x"] if "x" in bound else torch.empty(0, device=bound.get("device"))  # an encoding reads no tensor
    return _backend.choice(op_name, impls, _check.tensor(x, "x"), bound.get("backend"))
