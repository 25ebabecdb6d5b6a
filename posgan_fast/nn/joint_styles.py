"""The styles of several layers at once, for devices on which a launch costs more than the arithmetic of a product."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.modules.module import _has_any_global_hook

from ..ops.common import autocast
from .linear import EqualLinear
from .style import StyleConv, ToRGB

_FEW_LATENTS = 64
_CHEAP_LAUNCHES = ("cpu",)  # devices


def joint_styles(
    layers: Sequence[StyleConv | ToRGB], ws: torch.Tensor, places: Sequence[int]
) -> dict[torch.nn.Module, torch.Tensor]:
    """Compute the styles of several layers by a product for each of their gains, instead of one for each layer.

    Every latent meets every weight, which is worth it where launches cost more than arithmetic: where no derivative is
    recorded, off the CPU, and for few latents. Elsewhere, and where a layer is not the library's own or has hooks,
    which would not run, the dict is empty and the layers compute their styles themselves.

    Args:
        layers: the layers, with affine layers of one shape of latent.
        ws: latents [N, L, w_dim] in the dtype of the weights.
        places: the layers' positions along L.

    Returns:
        The styles [N, I] by layer, as rows with gaps, in the dtype of ``ws``; or an empty dict.
    """
    n, count = ws.shape[:2]
    recorded = torch.is_grad_enabled() or torch.compiler.is_compiling()
    if recorded or ws.device.type in _CHEAP_LAUNCHES or n * count > _FEW_LATENTS:
        return {}
    if not all(_is_plain(layer, StyleConv, ToRGB) and _serves(layer.affine, ws) for layer in layers):
        return {}
    groups: dict[float, list[int]] = {}
    for i, layer in enumerate(layers):
        groups.setdefault(layer.style_gain, []).append(i)
    rows = ws.flatten(0, 1)
    found: dict[torch.nn.Module, torch.Tensor] = {}
    for gain, members in groups.items():
        affines = [layers[i].affine for i in members]
        weight, bias = _joined([a.weight for a in affines]), _joined([a.bias for a in affines])
        with autocast.disabled(ws):
            styles = torch.addmm(bias, rows, weight.t(), beta=gain, alpha=gain * affines[0].weight_gain)
        parts = styles.unflatten(0, (n, count)).split([a.out_features for a in affines], 2)
        found |= {layers[i]: part[:, places[i]] for i, part in zip(members, parts, strict=True)}
    return found


def _serves(affine: Any, ws: torch.Tensor) -> bool:
    """Tell whether a product of weight and latents, plus the bias, is all that an affine layer computes."""
    if not _is_plain(affine, EqualLinear) or affine.bias is None or affine.weight.dtype != ws.dtype:
        return False
    return affine.act == "linear" and affine.lr_multiplier == 1


def _is_plain(module: Any, *kinds: type) -> bool:
    """Tell whether a module is exactly of one of the kinds and calling it runs no hook."""
    hooks = module._forward_hooks or module._forward_pre_hooks or _has_any_global_hook()
    return type(module) in kinds and not hooks


def _joined(tensors: list[Any]) -> torch.Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)
