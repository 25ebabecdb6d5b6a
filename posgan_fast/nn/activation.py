"""A layer that adds a bias and applies an activation."""

from __future__ import annotations

from typing import Any

import torch

from .. import functional as PF
from ..ops.bias_act import ACTIVATIONS
from ..ops.common import checks
from .foreign import BIAS_ACT, Convertible


class BiasAct(Convertible):
    """``clamp(gain * act(x + bias), -clamp, clamp)`` with the bias along dimension ``dim`` of any input.

    Args:
        channels: size of the bias; None accepts any size and requires ``bias=False``.
        dim, act, alpha, gain, clamp: arguments of :func:`posgan_fast.functional.bias_act`.
        bias: False leaves the bias out.

    State: ``bias`` [channels], zeros at first.

    Example:
        >>> BiasAct(64, act="lrelu", clamp=256)(torch.randn(1, 64, 8, 8)).shape
        torch.Size([1, 64, 8, 8])
    """

    _foreign = BIAS_ACT

    def __init__(
        self,
        channels: int | None,
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
        if channels is not None or checks.flag(bias, "bias"):
            channels = checks.integer(channels, "channels", minimum=1)
        self.channels = channels
        self.dim = checks.integer(dim, "dim")
        self.alpha = None if alpha is None else checks.real(alpha, "alpha")
        self.gain = None if gain is None else checks.real(gain, "gain")
        self.clamp = checks.bound(clamp, "clamp")
        self.act = checks.choice(act, "act", tuple(ACTIVATIONS))
        self.bias = bias_parameter(bias, channels, 0.0, device, dtype)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Apply to ``x`` of any shape with ``channels`` along ``dim``; shape and dtype stay."""
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return PF.bias_act(x, bias, self.dim, self.act, self.alpha, self.gain, self.clamp)

    def extra_repr(self) -> str:
        return f"{self.channels}, act={self.act!r}, gain={self.gain}, clamp={self.clamp}, bias={self.bias is not None}"


def bias_parameter(bias, size, value, device, dtype):
    """Make a bias [size] filled with ``value``, or None where ``bias`` is False."""
    checks.device(device)
    if not checks.flag(bias, "bias"):
        return None
    return torch.nn.Parameter(torch.full([size], checks.real(value, "bias_init"), device=device, dtype=dtype))


def epilogue_arguments(act: str, clamp: float | None, gain: float) -> dict[str, Any]:
    """Arguments of the epilogue for a layer whose result and clamp are multiplied by ``gain``."""
    gain = checks.real(gain, "gain")
    return dict(act=act, gain=ACTIVATIONS[act].gain * gain, clamp=None if clamp is None else clamp * abs(gain))
