"""Layers that pad with pixels from the caller."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from .. import functional as PF
from ..ops.common import checks
from .unchanged import has_hooks


class InstancePad2d(torch.nn.Module):
    """Pad each sample by one pixel taken from a map: :func:`posgan_fast.functional.instance_pad2d`. No state.

    Example:
        >>> InstancePad2d()(torch.randn(2, 64, 8, 8), torch.randn(2, 64, 10, 10)).shape
        torch.Size([2, 64, 10, 10])
    """

    def forward(self, x: torch.Tensor, pad_map: torch.Tensor) -> torch.Tensor:
        """Pad ``x`` [N, C, H, W] to [N, C, H + 2, W + 2].

        Args:
            x: features.
            pad_map: a map [N, C, h, w] with h >= H + 2 and w >= W + 2, or a ring [N, C, 2 * (H + W) + 4].
        """
        return PF.instance_pad2d(x, pad_map)


class PaddingSpaceConv2d(torch.nn.Conv2d):
    """A torch.nn.Conv2d with zero padding of 1, which a map for each sample can replace.

    Called without a map it computes what torch.nn.Conv2d does. The arguments are those of torch.nn.Conv2d.

    State: ``weight`` [O, I / groups, kh, kw] and ``bias`` [O], as in torch.nn.Conv2d.

    Example:
        >>> conv = PaddingSpaceConv2d.from_conv(torch.nn.Conv2d(64, 64, 3, padding=1))
        >>> conv(torch.randn(1, 64, 8, 8), pad_map=torch.randn(1, 64, 10, 10)).shape
        torch.Size([1, 64, 8, 8])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, int] = 3,
        stride: int | tuple[int, int] = 1,
        *,
        dilation: int | tuple[int, int] = 1,
        groups: int = 1,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        in_channels = checks.integer(in_channels, "in_channels", minimum=1)
        out_channels = checks.integer(out_channels, "out_channels", minimum=1)
        kernel_size, stride, dilation = (
            checks.pair(value, name, minimum=1, axes="[height, width]")
            for value, name in ((kernel_size, "kernel_size"), (stride, "stride"), (dilation, "dilation"))
        )
        checks.flag(bias, "bias")
        super().__init__(
            in_channels, out_channels, kernel_size, stride, 1, dilation, groups, bias, device=device, dtype=dtype
        )

    @classmethod
    def from_conv(cls, conv: torch.nn.Conv2d) -> PaddingSpaceConv2d:
        """Make the layer that shares, rather than copies, the parameters of ``conv``.

        Raises:
            TypeError: ``conv`` is not a plain torch.nn.Conv2d; subclasses, hooks and parametrizations may compute
                something else.
            ValueError: ``conv`` does not pad with 1 zero on each side; "same" is taken where it means that.
        """
        if type(conv) is not torch.nn.Conv2d:  # parametrized ones have a class of their own too
            raise TypeError(f"conv: expected a plain torch.nn.Conv2d, got {type(conv).__name__}")
        if has_hooks(conv):
            raise TypeError("conv: expected a torch.nn.Conv2d without hooks, got one with them")
        same = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]  # left and right together
        one = conv.padding == (1, 1) or (conv.padding == "same" and same == [2, 2])
        if not one or conv.padding_mode != "zeros":
            raise ValueError(f"conv: expected padding 1 of zeros, got {conv.padding} of {conv.padding_mode!r}")
        with torch.device("meta"):
            layer = cls(
                conv.in_channels,
                conv.out_channels,
                conv.kernel_size,  # type: ignore[arg-type]
                conv.stride,  # type: ignore[arg-type]
                dilation=conv.dilation,  # type: ignore[arg-type]
                groups=conv.groups,
                bias=conv.bias is not None,
            )
        layer.weight, layer.bias = conv.weight, conv.bias
        return layer.train(conv.training)

    def forward(self, x: torch.Tensor, pad_map: torch.Tensor | None = None) -> torch.Tensor:
        """Convolve [N, I, H, W] to [N, O, H', W'].

        Args:
            x: features.
            pad_map: map or ring as in :class:`InstancePad2d`, which the convolution reads as it reads ``x``.
        """
        checks.features(x, "x", self.in_channels, self.weight)
        padding = 1
        if pad_map is not None:
            x, padding = PF.instance_pad2d(x, pad_map), 0  # [N, I, H + 2, W + 2]
        stride = self.stride[0]
        if self.groups == 1 and self.dilation == (1, 1) and self.stride == (stride, stride):
            return PF.conv2d(x, self.weight, self.bias, stride=stride, padding=padding)
        return F.conv2d(x, self.weight, self.bias, self.stride, padding, self.dilation, self.groups)

    @property
    def kept_weights(self) -> list[torch.Tensor]:
        """The weights that :func:`posgan_fast.nn.prepack` prepares."""
        return [self.weight]
