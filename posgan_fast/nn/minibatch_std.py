"""A layer that shows the discriminator how much the samples of a batch differ."""

from __future__ import annotations

import torch

from ..ops.common import checks
from .foreign import MINIBATCH_STD, Convertible


class MinibatchStd(Convertible):
    """Append to each sample the standard deviation within its group, averaged over channels and pixels.

    With n groups, sample i belongs to group i mod n. The layer has no state. It computes in float64 for every dtype of
    input: R1 asks for the second derivative, which in a group of two is a difference of nearly equal numbers and would
    lose all digits of float32.

    Args:
        group_size: samples in a group; a smaller batch forms one group. None: the whole batch is one group.
        num_channels: channels to append. Each averages over its own share of the input channels.

    Example:
        >>> MinibatchStd(group_size=4)(torch.randn(8, 512, 4, 4)).shape
        torch.Size([8, 513, 4, 4])
    """

    _foreign = MINIBATCH_STD

    def __init__(self, group_size: int | None = 4, num_channels: int = 1) -> None:
        super().__init__()
        self.group_size = None if group_size is None else checks.integer(group_size, "group_size", minimum=1)
        self.num_channels = checks.integer(num_channels, "num_channels", minimum=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [N, C, H, W] to [N, C + num_channels, H, W].

        Raises:
            ValueError: N is no multiple of the group size, or C is no multiple of ``num_channels``.
        """
        n, c, h, w = checks.tensor(x, "x", ndim=4).shape
        group = max(n if self.group_size is None else min(self.group_size, n), 1)
        if n % group:
            raise ValueError(f"x: expected a batch that is a multiple of group_size={group}, got {n}")
        if c % self.num_channels:
            raise ValueError(f"x: expected channels that are a multiple of {self.num_channels}, got {c}")
        acc = checks.arithmetic(x.dtype) if x.device.type == "mps" else torch.float64  # Apple's GPUs lack it
        y = x.to(acc).reshape(group, n // group, self.num_channels, c // self.num_channels, h, w)
        y = y - y.mean(0)
        deviation = (y.square().mean(0) + 1e-8).sqrt()  # [n, F, C / F, H, W]
        y = deviation.mean((2, 3, 4)).repeat(group, 1).to(x.dtype)  # [N, F]
        return torch.cat([x, y[:, :, None, None].expand(-1, -1, h, w)], dim=1)

    def extra_repr(self) -> str:
        return f"group_size={self.group_size}, num_channels={self.num_channels}"
