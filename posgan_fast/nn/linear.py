"""The fully connected layer with an equalised learning rate."""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from .. import functional as PF
from ..ops.bias_act import ACTIVATIONS
from ..ops.common import autocast, checks
from .activation import bias_parameter
from .foreign import EQUAL_LINEAR, Convertible
from .unchanged import remembered


@remembered
class EqualLinear(Convertible):
    """``act(x @ (weight * lr_multiplier / sqrt(in_features)).T + bias * lr_multiplier)``, times the gain of act.

    The layer computes in the dtype of ``x`` even under autocast, so that latents keep their precision.

    Args:
        in_features, out_features: sizes of input and result.
        bias: False leaves the bias out.
        act: activation, one of those of :func:`posgan_fast.functional.bias_act`.
        lr_multiplier: learning rate of this layer relative to the rest of the network.
        bias_init: first value of the bias.

    State: ``weight`` [out_features, in_features], N(0, 1) / lr_multiplier at first; ``bias`` [out_features],
    ``bias_init`` at first.

    Example:
        >>> EqualLinear(512, 512, act="lrelu", lr_multiplier=0.01)(torch.randn(4, 512)).shape
        torch.Size([4, 512])
    """

    _foreign = EQUAL_LINEAR

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        bias: bool = True,
        act: str = "linear",
        lr_multiplier: float = 1.0,
        bias_init: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features = checks.integer(in_features, "in_features", minimum=1)
        self.out_features = checks.integer(out_features, "out_features", minimum=1)
        self.act = checks.choice(act, "act", tuple(ACTIVATIONS))
        self.lr_multiplier = checks.real(lr_multiplier, "lr_multiplier")
        if self.lr_multiplier <= 0:
            raise ValueError(f"lr_multiplier: expected a number > 0, got {lr_multiplier}")
        checks.device(device)
        checks.parameter_dtype(dtype)
        self.weight_gain = self.lr_multiplier / math.sqrt(in_features)
        weight = torch.randn(out_features, in_features, device=device, dtype=dtype) / self.lr_multiplier
        self.weight = torch.nn.Parameter(weight)
        self.bias = bias_parameter(bias, out_features, bias_init, device, dtype)

    def forward(self, x: torch.Tensor, gain: float = 1.0) -> torch.Tensor:
        """Map [..., in_features] to [..., out_features], times ``gain`` where there is no activation."""
        if checks.tensor(x, "x").shape[-1:] != (self.in_features,):
            raise ValueError(f"x: expected shape [..., {self.in_features}], got {tuple(x.shape)}")
        checks.same_device(x, "x", self.weight, like="weight")
        if gain != 1 and self.act != "linear":
            raise ValueError(f"gain: expected 1 in a layer with an activation, got {gain}")
        with autocast.disabled(x):
            weight, bias = self.weight.to(x.dtype), None if self.bias is None else self.bias.to(x.dtype)
            if x.ndim == 2 and bias is not None and self.act == "linear":  # one operator
                return torch.addmm(bias, x, weight.t(), beta=gain * self.lr_multiplier, alpha=gain * self.weight_gain)
            x = x * (gain * self.weight_gain)  # has fewer elements than the weight
            if bias is not None and gain * self.lr_multiplier != 1:
                bias = bias * (gain * self.lr_multiplier)
            if self.act == "linear":
                return F.linear(x, weight, bias)
            return PF.bias_act(F.linear(x, weight), bias, -1, self.act)

    def extra_repr(self) -> str:
        return (
            f"{self.in_features}, {self.out_features}, act={self.act!r}, lr_multiplier={self.lr_multiplier:g},"
            f" bias={self.bias is not None}"
        )
