"""Preparing weights once for inference on the CPU."""

from __future__ import annotations

from typing import TypeVar

import torch

from ..ops.common import checks, weight_cache

M = TypeVar("M", bound=torch.nn.Module)


def prepack(module: M, enable: bool = True) -> M:
    """Cache the weights of the convolutions in ``module`` in the form that inference on the CPU reads.

    Without the cache each call transforms or reorders its weight. Results may differ by rounding where the vendor's
    convolution reads the copy.

    - The first call in each dtype makes the copies. They take as much memory as the weights in that dtype. Where
      Winograd's algorithm runs (:func:`posgan_fast.set_algorithm`), they are made once for all dtypes and take four
      times as much as the weights in float32.
    - Every call compares the weight's values with those that were prepared, and prepares the weight again if an
      optimiser, ``load_state_dict``, a write through ``.data`` or NumPy changed them.
    - ``load_state_dict(assign=True)`` replaces the weights by tensors that are not cached: call ``prepack`` again.
    - Calls with gradients, other backends, and copies and pickles of the module do not use the cache.
    - With ``torch.__future__.set_swap_module_params_on_conversion(True)`` torch refuses to convert the module or to
      load into it ("Couldn't swap"), because the cache refers weakly to the weights: empty the cache first.

    Args:
        module: any module; every layer in it is prepared that has ``kept_weights``: :class:`StyleConv`,
            :class:`ModulatedConv2d`, :class:`Conv2d`, :class:`EqualConv2d`, :class:`PaddingSpaceConv2d`,
            :class:`ConvNormAct2d` and the blocks of :class:`posgan_fast.models.PadInvEncoder`.
        enable: False empties the cache and stops caching.

    Returns:
        ``module``.

    Raises:
        TypeError: ``module`` is no torch.nn.Module, or ``enable`` no bool.

    Example:
        >>> from posgan_fast.nn import StyleConv
        >>> layer = prepack(StyleConv(64, 64, w_dim=512).eval())
        >>> with torch.no_grad():
        ...     layer(torch.randn(1, 64, 16, 16), torch.randn(1, 512), noise_mode="none").shape
        torch.Size([1, 64, 16, 16])
    """
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"module: expected a torch.nn.Module, got {type(module).__name__}")
    checks.flag(enable, "enable")
    weights = [weight for m in module.modules() for weight in getattr(m, "kept_weights", ())]
    for weight in weights:
        if enable:
            weight_cache.keep(weight)
        else:
            weight_cache.forget(weight)
    return module
