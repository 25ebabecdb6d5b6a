"""The styles of several layers at once, for devices on which a launch costs more than the arithmetic of a product."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..ops.common import autocast
from .linear import EqualLinear
from .style import StyleConv, ToRGB
from .unchanged import is_unchanged

_FEW_LATENTS = 64
_CHEAP_LAUNCHES = ("cpu",)  # devices


def joint_styles(
    layers: Sequence[StyleConv | ToRGB], ws: torch.Tensor, places: Sequence[int]
) -> list[torch.Tensor] | None:
    """Compute the styles of several layers by a product for each of their gains, instead of one for each layer.

    Every latent meets every weight, which is worth it where launches cost more than arithmetic: where no derivative is
    recorded, off the CPU, and for few latents. Elsewhere, and where someone changed a layer, the result is None and
    the layers compute their styles themselves.

    Args:
        layers: the layers, with affine layers of one shape of latent.
        ws: latents [N, L, w_dim] in the dtype of the weights.
        places: the layers' positions along L.

    Returns:
        The styles [N, I] of each layer, as rows with gaps, in the dtype of ``ws``; or None.
    """
    n, count = ws.shape[:2]
    recorded = torch.is_grad_enabled() or torch.compiler.is_compiling()
    if recorded or ws.device.type in _CHEAP_LAUNCHES or n * count > _FEW_LATENTS:
        return None
    if not all(is_unchanged(layer, StyleConv, ToRGB) and _serves(layer.affine, ws) for layer in layers):
        return None
    groups: dict[tuple[float, float], list[int]] = {}
    for i, layer in enumerate(layers):
        groups.setdefault((layer.style_gain, layer.affine.weight_gain), []).append(i)
    rows = ws.flatten(0, 1)
    found: dict[int, torch.Tensor] = {}
    for (gain, weight_gain), members in groups.items():
        affines = [layers[i].affine for i in members]
        weight, bias = _joined([a.weight for a in affines]), _joined([a.bias for a in affines])
        with autocast.disabled(ws):
            styles = torch.addmm(bias, rows, weight.t(), beta=gain, alpha=gain * weight_gain)
        parts = styles.unflatten(0, (n, count)).split([a.out_features for a in affines], 2)
        found |= {i: part[:, places[i]] for i, part in zip(members, parts, strict=True)}
    return [found[i] for i in range(len(layers))]


def _serves(affine: Any, ws: torch.Tensor) -> bool:
    """Tell whether a product of weight and latents, plus the bias, is all that an affine layer computes."""
    if not is_unchanged(affine, EqualLinear) or affine.act != "linear" or affine.lr_multiplier != 1:
        return False
    return all(
        type(t) is torch.nn.Parameter and t.dtype == ws.dtype and t.device == ws.device
        for t in (affine.weight, affine.bias)
    )


def _joined(tensors: list[Any]) -> torch.Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)
