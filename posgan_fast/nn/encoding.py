"""Layers that join a positional encoding to their input without holding the grid in memory."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .. import functional as PF
from ..ops import prologue2d
from ..ops.common import checks, encodings


class _Encoding(torch.nn.Module):
    kind: str

    def __init__(self, join: str, layout: str, base_size: Sequence[int] | None) -> None:
        super().__init__()
        self.join = checks.choice(join, "join", prologue2d.JOINS)
        self.layout = checks.choice(layout, "layout", encodings.LAYOUTS)
        self.base_size = encodings.check_base(base_size)

    def extra_repr(self) -> str:
        return f"join={self.join!r}, layout={self.layout!r}, base_size={self.base_size}"


class SinusoidalEncoding2d(_Encoding):
    """Add sines and cosines of row and column to ``x``, or append them as channels. No state.

    Args:
        channels: channels of the encoding, a multiple of 4; with "add" as many as ``x`` has.
        join: "add" or "concat".
        layout, div_half_dim: arguments of :func:`posgan_fast.functional.sinusoidal_encoding2d`.
        base_size: [height, width] interpolates the encoding of that size. None counts positions from the top left,
            for inputs of any size.

    Example:
        >>> SinusoidalEncoding2d(8, join="concat")(torch.randn(1, 3, 16, 16)).shape
        torch.Size([1, 11, 16, 16])
    """

    def __init__(
        self,
        channels: int,
        *,
        join: str = "add",
        layout: str = "mmgen",
        div_half_dim: bool = False,
        base_size: Sequence[int] | None = None,
    ) -> None:
        super().__init__(join, layout, base_size)
        self.div_half_dim = checks.flag(div_half_dim, "div_half_dim")
        self.channels = encodings.check_channels(channels, layout, div_half_dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [N, C, H, W] to the same shape ("add", C = channels) or to [N, C + channels, H, W] ("concat")."""
        checks.tensor(x, "x", ndim=4)
        if self.join == "add" and x.shape[1] != self.channels:
            raise ValueError(f"x: expected {self.channels} channels to add the encoding to, got {x.shape[1]}")
        return PF.prologue2d(
            x,
            encode="spe",
            join=self.join,
            channels=self.channels,
            layout=self.layout,
            div_half_dim=self.div_half_dim,
            base_size=self.base_size,
        )

    def extra_repr(self) -> str:
        return f"{self.channels}, {super().extra_repr()}, div_half_dim={self.div_half_dim}"


class CartesianGrid2d(_Encoding):
    """Add normalised coordinates to the two channels of ``x``, or append them as channels. No state.

    Args:
        join: "add" or "concat".
        layout, base_size: arguments of :func:`posgan_fast.functional.cartesian_grid2d`.

    Example:
        >>> CartesianGrid2d()(torch.randn(1, 3, 16, 16)).shape
        torch.Size([1, 5, 16, 16])
    """

    def __init__(self, *, join: str = "concat", layout: str = "mmgen", base_size: Sequence[int] | None = None) -> None:
        super().__init__(join, layout, base_size)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [N, C, H, W] to [N, C + 2, H, W] ("concat") or, with C = 2, to the same shape ("add")."""
        return PF.prologue2d(x, encode="csg", join=self.join, layout=self.layout, base_size=self.base_size)


class PositionalNoise2d(torch.nn.Module):
    """Make the input of a SinGAN stage, ``pad((noise + encoding) * weight + image)``, in one pass. No state.

    Args:
        channels: channels of the result, 2 for "csg"; noise of one channel is repeated.
        encode: "spe", "csg" or None.
        padding: pixels on each side, as :func:`posgan_fast.functional.prologue2d` takes them.
        mode: "zeros" or "reflect".
        layout, div_half_dim, base_size: arguments of the encoding, see :class:`SinusoidalEncoding2d`.

    Example:
        >>> stage_input = PositionalNoise2d(3, padding=5)
        >>> stage_input(torch.randn(1, 1, 16, 16), torch.randn(1, 3, 16, 16), weight=0.1).shape
        torch.Size([1, 3, 26, 26])
    """

    def __init__(
        self,
        channels: int,
        *,
        encode: str | None = None,
        padding: int | Sequence[int] = 0,
        mode: str = "zeros",
        layout: str = "mmgen",
        div_half_dim: bool = False,
        base_size: Sequence[int] | None = None,
    ) -> None:
        super().__init__()
        self.channels = checks.integer(channels, "channels", minimum=1)
        self.encode = None if encode is None else checks.choice(encode, "encode", encodings.KINDS)
        self.padding = checks.padding(padding)
        if min(self.padding) < 0:
            raise ValueError(f"padding: expected no negative number, got {self.padding}")
        self.mode = checks.choice(mode, "mode", ("zeros", "reflect"))
        self.layout = checks.choice(layout, "layout", encodings.LAYOUTS)
        self.div_half_dim = checks.flag(div_half_dim, "div_half_dim")
        self.base_size = encodings.check_base(base_size)
        if encode == "spe":
            encodings.check_channels(channels, layout, div_half_dim)
        if encode == "csg" and channels != 2:
            raise ValueError(f"channels: expected 2 with encode='csg', got {channels}")
        if encode is None and base_size is not None:
            raise ValueError(f"base_size: expected None without an encoding, got {self.base_size}")

    def forward(
        self, noise: torch.Tensor, image: torch.Tensor | None = None, weight: float | torch.Tensor = 1.0
    ) -> torch.Tensor:
        """Return [N, channels, H + top + bottom, W + left + right] in the dtype of the image.

        Args:
            noise: [N, channels or 1, H, W].
            image: [N, channels, H, W]; None: nothing is added.
            weight: factor of noise and encoding, a number or a tensor of one element.
        """
        checks.tensor(noise, "noise", ndim=4)
        if image is not None:
            n, _, h, w = noise.shape
            checks.tensor(image, "image", shape=(n, self.channels, h, w))
            checks.same_device(image, "image", noise, like="noise")
            noise = noise.to(image.dtype)
        if noise.shape[1] == 1:
            noise = noise.expand(-1, self.channels, -1, -1)
        elif noise.shape[1] != self.channels:
            raise ValueError(f"noise: expected 1 or {self.channels} channels, got shape {tuple(noise.shape)}")
        styles = None
        if isinstance(weight, torch.Tensor):
            if weight.numel() != 1:
                raise ValueError(f"weight: expected a number or a tensor of one, got shape {tuple(weight.shape)}")
            styles = weight.reshape(1, 1).expand(1, self.channels)
        elif checks.real(weight, "weight") != 1:
            styles = torch.full((1, self.channels), weight, dtype=torch.float64, device=noise.device)
        return PF.prologue2d(
            noise,
            styles,
            residual=image,
            padding=self.padding,
            mode=self.mode,
            encode=self.encode,
            layout=self.layout,
            div_half_dim=self.div_half_dim,
            base_size=self.base_size,
        )

    def extra_repr(self) -> str:
        return f"{self.channels}, encode={self.encode!r}, padding={self.padding}, mode={self.mode!r}"
