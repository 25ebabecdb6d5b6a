"""A bias and an activation as a layer."""

from __future__ import annotations

import torch

from .. import functional as PF
from ..ops import _check
from ..ops.bias_act import ACTIVATIONS


class BiasAct(torch.nn.Module):
    """``clamp(gain * act(x + bias), -clamp, clamp)`` with the bias along dimension ``dim`` of any input.

    Args:
        channels: size of the bias.
        dim, act, alpha, gain, clamp: of :func:`posgan_fast.functional.bias_act`.
        bias: False leaves the bias out.

    State: ``bias`` [channels], zeros at first.
    """

    def __init__(
        self,
        channels: int,
        *,
        dim: int = 1,
        bias: bool = True,
        act: str = "lrelu",
        alpha: float | None = None,
        gain: float | None = None,
        clamp: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.channels = _check.integer(channels, "channels", minimum=1)
        self.dim, self.alpha, self.gain, self.clamp = dim, alpha, gain, clamp
        self.act = _check.choice(act, "act", tuple(ACTIVATIONS))
        self.bias = torch.nn.Parameter(torch.zeros(channels, device=device, dtype=dtype)) if bias else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Any shape with ``channels`` along ``dim``, to the same shape and dtype."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return PF.bias_act(x, bias, self.dim, self.act, self.alpha, self.gain, self.clamp)

    def extra_repr(self) -> str:
        return f"{self.channels}, act={self.act!r}, gain={self.gain}, clamp={self.clamp}, bias={self.bias is not None}"
