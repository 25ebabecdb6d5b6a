"""The public ops. Each name is documented where it is defined, in :mod:`posgan_fast.ops`."""

from __future__ import annotations

import copy
import inspect
from collections import Counter
from collections.abc import Callable
from typing import Any, overload

import torch
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_map_only

from . import backend as _backend
from .ops import bias_act as _bias_act
from .ops import conv2d as _conv2d
from .ops import epilogue2d as _epilogue2d
from .ops import modulated_conv2d as _modulated_conv2d
from .ops import prologue2d as _prologue2d
from .ops import upfirdn2d as _upfirdn2d
from .ops.bias_act import bias_act, bias_act_
from .ops.cartesian_grid2d import cartesian_grid2d
from .ops.common import checks
from .ops.common.ring import map_from_ring, ring_from_map
from .ops.conv2d import conv2d
from .ops.epilogue2d import epilogue2d
from .ops.modulated_conv2d import modulated_conv2d
from .ops.prologue2d import instance_pad2d, prologue2d
from .ops.setup_filter import setup_filter
from .ops.sinusoidal_encoding2d import sinusoidal_encoding2d
from .ops.upfirdn2d import downsample2d, filter2d, upfirdn2d, upsample2d

__all__ = [
    "bias_act", "bias_act_", "cartesian_grid2d", "conv2d", "downsample2d", "epilogue2d", "explain", "filter2d",
    "instance_pad2d", "map_from_ring", "modulated_conv2d", "prologue2d", "ring_from_map", "setup_filter",
    "sinusoidal_encoding2d", "upfirdn2d", "upsample2d",
]  # fmt: skip

OPS: dict[str, tuple[Callable[..., Any], tuple[_backend.Impl, ...]]] = {
    "upfirdn2d": (upfirdn2d, _upfirdn2d.IMPLS),
    "filter2d": (filter2d, _upfirdn2d.IMPLS),
    "upsample2d": (upsample2d, _upfirdn2d.IMPLS),
    "downsample2d": (downsample2d, _upfirdn2d.IMPLS),
    "bias_act": (bias_act, _bias_act.IMPLS),
    "bias_act_": (bias_act_, _bias_act.IMPLS),
    "conv2d": (conv2d, _conv2d.IMPLS),
    "modulated_conv2d": (modulated_conv2d, _modulated_conv2d.IMPLS),
    "prologue2d": (prologue2d, _prologue2d.IMPLS),
    "instance_pad2d": (instance_pad2d, _prologue2d.IMPLS),
    "epilogue2d": (epilogue2d, _epilogue2d.IMPLS),
    "sinusoidal_encoding2d": (sinusoidal_encoding2d, _prologue2d.IMPLS),
    "cartesian_grid2d": (cartesian_grid2d, _prologue2d.IMPLS),
}
_CONVOLUTIONS = ("conv2d", "modulated_conv2d")


@overload
def explain(target: str, /, *args: Any, **kwargs: Any) -> _backend.Choice: ...
@overload
def explain(target: torch.nn.Module, /, *args: Any, **kwargs: Any) -> _backend.Choices: ...
def explain(target: str | torch.nn.Module, /, *args: Any, **kwargs: Any) -> _backend.Choice | _backend.Choices:
    """Tell which backend a call would run on, and the reason for or against each; for convolutions also the
    algorithm.

    Args:
        target: the name of an op, or a module; for a module, every call of an op in its forward is listed, and a note
            tells of blocks of float16 that run in float32 on the CPU.
        args, kwargs: the arguments of the op or the module. The module's forward runs on fake tensors, which have
            shapes and no values: nothing is computed, and the module and its arguments stay as they are.

    Raises:
        ValueError: ``target`` is no op of this library, or a module whose forward reads values or whose parameters have
            no shape yet.
        TypeError: the arguments do not fit the op's signature, or ``target`` is neither a name nor a module.

    Example:
        >>> explain("bias_act", torch.zeros(1, 3), act="relu", backend="reference").backend
        'reference'
    """
    if isinstance(target, torch.nn.Module):
        found = _asked_of(target, args, kwargs)
        return _backend.Choices(tuple(Counter(found.choices).items()), tuple(found.notes))
    if not isinstance(target, str):
        raise TypeError(f"target: expected the name of an op or a module, got {type(target).__name__}")
    if target not in OPS:
        raise ValueError(f"target: expected one of {sorted(OPS)}, got {target!r}")
    function, impls = OPS[target]
    bound = inspect.signature(function).bind(*args, **kwargs).arguments
    x = bound["x"] if "x" in bound else torch.empty(0, device=bound.get("device"))  # an encoding takes no tensor
    chosen = _backend.choice(target, impls, checks.tensor(x, "x"), bound.get("backend"))
    if chosen.backend not in ("cpu", "cuda") or target not in _CONVOLUTIONS:
        return chosen
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, _backend.choices_asked_for() as asked:
        function(**tree_map_only(torch.Tensor, lambda t: mode.from_tensor(t, static_shapes=True), bound))
    return asked.choices[0]


def _asked_of(module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _backend.Asked:
    """Collect the choices of one forward pass of a copy of ``module`` that holds fake tensors."""
    module = getattr(module, "_orig_mod", module)  # look inside a wrapper of torch.compile
    tensors = [*module.parameters(), *module.buffers()]
    if any(is_lazy(t) for t in tensors):
        raise ValueError("target: expected parameters with a shape, got a lazy module that has not run yet")
    with FakeTensorMode(allow_non_fake_inputs=True) as mode, _backend.choices_asked_for() as asked:
        fakes = {id(t): mode.from_tensor(t, static_shapes=True) for t in tensors}
        copied = copy.deepcopy(module, fakes)  # the memo makes deepcopy use the fakes as its copies
        fake_args, fake_kwargs = tree_map_only(torch.Tensor, mode.from_tensor, (args, kwargs))
        try:
            copied(*fake_args, **fake_kwargs)
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise ValueError(
                f"target: expected a forward that reads no values, which fake tensors lack, got one that calls {error}"
            ) from None
    return asked
