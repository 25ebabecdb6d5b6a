"""A convolution with batch normalisation and an activation, the layer of DCGAN and SinGAN."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from .. import functional as PF
from ..ops.bias_act import ACTIVATIONS
from ..ops.common import activations, checks, layout
from ..ops.conv2d.convolution import convolve

PADDING_MODES = ("zeros", "reflect")


class ConvNormAct2d(torch.nn.Module):
    """``act(norm(conv(x)))``: convolve, normalise over the batch, activate.

    In evaluation mode the normalisation is folded into the kernel and the bias, which the activation adds, so the
    layer is a convolution and one more pass over its output. Training normalises by the batch, as
    :class:`torch.nn.BatchNorm2d` does.

    Args:
        in_channels, out_channels, kernel_size: I, O, k.
        stride: rows and columns between the positions of the kernel; with ``transposed`` the factor of upsampling.
        padding: pixels around the input; with ``transposed`` as in :class:`torch.nn.ConvTranspose2d`.
        padding_mode: "zeros" or "reflect".
        transposed: True convolves transposed.
        norm: False leaves the normalisation out; the convolution then has a bias.
        act, alpha: arguments of :func:`posgan_fast.functional.bias_act`, whose gain is 1 here.

    State: ``conv.weight`` [O, I, k, k], or [I, O, k, k] with ``transposed``; ``conv.bias`` [O] without ``norm``;
    ``bn.weight``, ``bn.bias``, ``bn.running_mean``, ``bn.running_var`` [O] and ``bn.num_batches_tracked`` with it. The
    names are those of mmcv's ConvModule. Parametrizations of these modules count; their hooks do not run.

    Example:
        >>> ConvNormAct2d(3, 32, padding=1)(torch.randn(2, 3, 16, 16)).shape
        torch.Size([2, 32, 16, 16])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        *,
        stride: int = 1,
        padding: int = 0,
        padding_mode: str = "zeros",
        transposed: bool = False,
        norm: bool = True,
        act: str = "lrelu",
        alpha: float | None = None,
    ) -> None:
        super().__init__()
        named = (("in_channels", in_channels), ("out_channels", out_channels), ("kernel_size", kernel_size))
        i, o, k = (checks.integer(value, name, minimum=1) for name, value in named)
        self.stride = checks.integer(stride, "stride", minimum=1, maximum=checks.MAX_FACTOR)
        self.padding = checks.integer(padding, "padding", minimum=0, maximum=checks.MAX_PADDING)
        self.padding_mode = checks.choice(padding_mode, "padding_mode", PADDING_MODES)
        if checks.flag(transposed, "transposed") and padding_mode != "zeros":
            raise ValueError(f"padding_mode: expected 'zeros' with transposed, got {padding_mode!r}")
        self.transposed = transposed
        self.act = checks.choice(act, "act", tuple(ACTIVATIONS))
        self.alpha = None if alpha is None else checks.real(alpha, "alpha")
        make = torch.nn.ConvTranspose2d if transposed else torch.nn.Conv2d
        self.conv = make(i, o, k, self.stride, self.padding, bias=not checks.flag(norm, "norm"))
        self.bn = torch.nn.BatchNorm2d(o) if norm else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [N, I, H, W] to [N, O, H', W'].

        Raises:
            TypeError: ``x`` is no tensor of a supported dtype.
            ValueError: ``x`` has another number of channels or another device, or is too small for the kernel or for
                reflection.
        """
        checks.features(x, "x", self.conv.in_channels, self.conv.weight)
        self._check_size(x)
        if not self.training and not torch.is_grad_enabled() and x.device.type == "cpu":
            x = layout.in_format(x, torch.channels_last)  # faster, except for the gradient of the weight
        if self.bn is not None and self.bn.training:
            return self._activate(self.bn(self._convolve(x, self.conv.weight)))
        scale, bias = self._folded()
        if not self.transposed:
            geometry: dict[str, Any] = dict(stride=self.stride, padding=self.padding, padding_mode=self.padding_mode)
            activation: dict[str, Any] = dict(act=self.act, alpha=self.alpha, gain=1)
            return PF.conv2d(x, self.conv.weight, bias, scale=scale, **geometry, **activation)
        y = self._convolve(x, self.conv.weight if scale is None else self.conv.weight * scale.reshape(1, -1, 1, 1))
        reads_input = activations.derivative_reads(self.act, self._slope(), clamp=-1) == "input"
        activate = PF.bias_act if bias is None or reads_input else PF.bias_act_
        bias = None if bias is None else bias.to(y.dtype)
        return activate(y, bias, act=self.act, alpha=self.alpha, gain=1)

    def extra_repr(self) -> str:
        return f"act={self.act!r}, alpha={self.alpha}, padding_mode={self.padding_mode!r}"

    def _activate(self, y: torch.Tensor) -> torch.Tensor:
        """Activate ``y`` in place where torch has an op for that, which without a bias is the fastest in training."""
        if self.act == "relu":
            return F.relu_(y)
        if self.act == "lrelu" and self._slope() >= 0:  # others cannot be differentiated in place
            return F.leaky_relu_(y, self._slope())
        return PF.bias_act(y, act=self.act, alpha=self.alpha, gain=1)

    def _slope(self) -> float:
        return ACTIVATIONS["lrelu"].alpha if self.alpha is None else self.alpha

    def _check_size(self, x: torch.Tensor) -> None:
        h, w = x.shape[2:]
        if self.padding_mode == "reflect" and min(h, w) <= self.padding:
            raise ValueError(f"x: expected sides > {self.padding} to reflect, got shape {tuple(x.shape)}")
        k = self.conv.kernel_size[0]
        if self.transposed and (min(h, w) - 1) * self.stride - 2 * self.padding + k < 1:
            raise ValueError(f"x: expected larger sides for {self.padding=}, got shape {tuple(x.shape)}")
        if self.bn is not None and self.bn.training and x.dtype == torch.float64 != self.conv.weight.dtype:
            raise TypeError(f"x: expected dtype {self.conv.weight.dtype} or half precision in training, got {x.dtype}")
        if not self.transposed and min(h, w) + 2 * self.padding < k:
            raise ValueError(
                f"x: expected sides >= {k - 2 * self.padding} for a kernel of {k}, got shape {tuple(x.shape)}"
            )

    @property
    def kept_weights(self) -> list[torch.Tensor]:
        """The weights that :func:`posgan_fast.nn.prepack` prepares."""
        return [] if self.transposed else [self.conv.weight]

    def _folded(self) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Return the factor of the kernel and the bias of the layer in evaluation mode, [O] each."""
        bn = self.bn
        if bn is None:
            return None, self.conv.bias
        assert bn.running_mean is not None and bn.running_var is not None  # for the type checker
        scale = bn.weight * (bn.running_var + bn.eps).rsqrt()
        return scale, bn.bias - bn.running_mean * scale

    def _convolve(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Convolve without a bias."""
        weight, padding = weight.to(x.dtype), self.padding
        if self.transposed:
            return F.conv_transpose2d(x, weight, stride=self.stride, padding=padding)
        if self.padding_mode == "reflect" and padding:
            x, padding = PF.prologue2d(x, padding=padding, mode="reflect"), 0
        return convolve(x, weight, stride=self.stride, padding=padding)
