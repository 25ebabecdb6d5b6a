"""The public ops. Each name is documented where it is defined, in :mod:`posgan_fast.ops`."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from . import backend as _backend
from .ops import _check
from .ops import bias_act as _bias_act
from .ops import upfirdn2d as _upfirdn2d
from .ops.bias_act import bias_act, bias_act_
from .ops.upfirdn2d import downsample2d, filter2d, setup_filter, upfirdn2d, upsample2d

__all__ = ["bias_act", "bias_act_", "downsample2d", "explain", "filter2d", "setup_filter", "upfirdn2d", "upsample2d"]

OPS: dict[str, tuple[Callable[..., Any], tuple[_backend.Impl, ...]]] = {
    "upfirdn2d": (upfirdn2d, _upfirdn2d.IMPLS),
    "filter2d": (filter2d, _upfirdn2d.IMPLS),
    "upsample2d": (upsample2d, _upfirdn2d.IMPLS),
    "downsample2d": (downsample2d, _upfirdn2d.IMPLS),
    "bias_act": (bias_act, _bias_act.IMPLS),
    "bias_act_": (bias_act_, _bias_act.IMPLS),
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
    return _backend.choice(op_name, impls, _check.tensor(bound["x"], "x"), bound.get("backend"))
