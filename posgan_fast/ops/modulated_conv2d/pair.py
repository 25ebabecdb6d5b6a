"""Two style layers in succession: the first one multiplies its result by the styles of the second.

A convolution of several samples by one weight needs features that are multiplied by their styles, a pass over memory of
its own. The epilogue of the layer before does it on CUDA if that layer enlarges its input, no derivative is asked for,
and no mode watches the operators.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..common import autocast
from ..common.op import is_plain, is_recorded
from . import _run, check, cuda, trained_factors
from .call import Call, empty_output


def modulated_conv2d_pair(first: dict[str, Any], second: Callable[[torch.Tensor], dict[str, Any]]) -> torch.Tensor:
    """Run two layers, the second on the result of the first.

    Args:
        first: all arguments of :func:`posgan_fast.functional.modulated_conv2d` by name.
        second: returns those of the second layer, where ``x`` is the tensor that it gets, whose values it must not
            read; more than once if ``x`` is another tensor, made from it.
    """
    call = check(_call(first))
    if not _can_scale_result(call):
        y = autocast.run(call, _run)
        return autocast.run(check(_call(second(y))), _run)
    call = call._replace(x=autocast.cast(call.x))
    y = empty_output(call)
    following = check(_call(second(y)))
    with autocast.disabled(y):
        if following.x is y and _can_take_scaled(following):
            return cuda.infer_pair(call, following)
        if following.x is not y:
            return _run(check(_call(second(_run(call)))))
        following = following._replace(x=call.x)
        del y  # its memory is free for the result
        return _run(following._replace(x=_run(call)))


def _call(given: dict[str, Any]) -> Call:
    return Call(
        f=given["resample_filter"], **{name: value for name, value in given.items() if name != "resample_filter"}
    )


def _can_scale_result(call: Call) -> bool:
    return call.up > 1 and call.x.shape[0] > 1 and _runs_in_stages(call)


def _can_take_scaled(call: Call) -> bool:
    return call.up * call.down == 1 and call.pad_map is None and _runs_in_stages(call)


def _runs_in_stages(call: Call) -> bool:
    """Tell whether a call is one of inference, whose factors one launch prepares for separate stages."""
    if call.backend != "cuda" or is_recorded(call) or not is_plain(*(t for t in call if isinstance(t, torch.Tensor))):
        return False
    return trained_factors.fits_one_launch(call) and cuda.algorithm(call) == cuda.STAGES
