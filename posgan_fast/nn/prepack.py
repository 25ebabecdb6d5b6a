"""Weights prepared once for inference on the CPU."""

from __future__ import annotations

from typing import TypeVar

import torch

from ..ops.common import checks
from ..ops.modulated_conv2d import weight_cache
from .style import ModulatedConv2d, StyleConv

M = TypeVar("M", bound=torch.nn.Module)


def prepack(module: M, enable: bool = True) -> M:
    """Keep the weights of the modulated convolutions in ``module`` as inference on the CPU reads them.

    Otherwise each call casts and reorders its weight, which below 64 pixels takes longer than the convolution. The
    copies are made at the first call in each dtype and take as much memory as the weights in that dtype. Each call
    reads the weight once to see whether its values changed, whoever wrote them: an optimiser, ``load_state_dict``,
    ``.data``, NumPy. Then it is prepared anew. ``load_state_dict(assign=True)`` brings other tensors, which are not
    kept: call this again after it. Calls with gradients and other backends are not affected, nor are copies and pickles
    of the module.

    With ``torch.__future__.set_swap_module_params_on_conversion(True)`` torch refuses to convert such a module or to
    load into it ("Couldn't swap"), as it does with any weight that is referred to weakly: forget the copies first.

    Args:
        module: any module; its :class:`StyleConv` and :class:`ModulatedConv2d` layers count.
        enable: False forgets the copies and keeps no more.

    Returns:
        ``module``.

    Raises:
        TypeError: not a module.
    """
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"module: expected a torch.nn.Module, got {type(module).__name__}")
    checks.flag(enable, "enable")
    weights = [m.weight for m in module.modules() if isinstance(m, (ModulatedConv2d, StyleConv))]
    for weight in weights:
        if enable:
            weight_cache.keep(weight)
        else:
            weight_cache.forget(weight)
    return module
