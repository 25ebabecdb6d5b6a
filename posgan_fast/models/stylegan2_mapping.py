"""The mapping network of StyleGAN2, and what both networks share."""

from __future__ import annotations

import torch

from .. import nn

ARCHITECTURES = ("skip", "resnet", "orig")


class Mapping(torch.nn.Module):
    """Latents and labels to the intermediate latent w, with the average of w for truncation.

    Args:
        z_dim, c_dim, w_dim: sizes of z, of the label and of w; 0: no z, no label.
        num_ws: copies of w to return, one for each layer; None: w itself, and no average.
        num_layers: fully connected ones.
        lr_multiplier: of those layers.
        w_avg_beta: decay of the average, tracked in training mode.

    State: ``fc{i}.weight``, ``fc{i}.bias``; with labels ``embed.weight`` [w_dim, c_dim], ``embed.bias``; ``w_avg``
    [w_dim].
    """

    fc0: nn.EqualLinear
    w_avg: torch.Tensor | None

    def __init__(
        self,
        z_dim: int,
        c_dim: int,
        w_dim: int,
        num_ws: int | None,
        *,
        num_layers: int = 8,
        lr_multiplier: float = 0.01,
        w_avg_beta: float = 0.995,
    ) -> None:
        super().__init__()
        if z_dim + c_dim < 1 or num_layers < 1:
            raise ValueError(f"z_dim: expected a latent or a label and a layer, got {z_dim=}, {c_dim=}, {num_layers=}")
        self.z_dim, self.c_dim, self.w_dim, self.num_ws = z_dim, c_dim, w_dim, num_ws
        self.num_layers, self.w_avg_beta = num_layers, w_avg_beta
        self.embed = nn.EqualLinear(c_dim, w_dim) if c_dim else None
        features = [z_dim + (w_dim if c_dim else 0), *[w_dim] * num_layers]
        for i in range(num_layers):
            layer = nn.EqualLinear(features[i], features[i + 1], act="lrelu", lr_multiplier=lr_multiplier)
            self.add_module(f"fc{i}", layer)
        self.register_buffer("w_avg", None if num_ws is None else torch.zeros(w_dim))

    def forward(
        self,
        z: torch.Tensor | None,
        c: torch.Tensor | None = None,
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
        skip_w_avg_update: bool = False,
    ) -> torch.Tensor:
        """Map ``z`` [N, z_dim] and the label ``c`` [N, c_dim].

        Args:
            z, c: above; None where there is none.
            truncation_psi: 1 leaves w alone, 0 is the average.
            truncation_cutoff: truncates the first so many copies only; None: all.
            skip_w_avg_update: leaves the average alone in training mode.

        Returns:
            [N, num_ws, w_dim], or [N, w_dim] where ``num_ws`` is None.
        """
        parts = []
        dtype = self.fc0.weight.dtype
        if self.z_dim:
            parts.append(_normalized(_expect(z, "z", self.z_dim).to(dtype)))
        if self.embed is not None:
            parts.append(_normalized(self.embed(_expect(c, "c", self.c_dim).to(dtype))))
        x = torch.cat(parts, dim=1)
        for i in range(self.num_layers):
            x = getattr(self, f"fc{i}")(x)
        if self.w_avg is None or self.num_ws is None:
            if truncation_psi != 1:
                raise ValueError(f"truncation_psi: expected 1 without an average of w, got {truncation_psi}")
            return x
        if self.training and not skip_w_avg_update and len(x):
            self.w_avg.copy_(x.detach().mean(0).lerp(self.w_avg, self.w_avg_beta))
        ws = x[:, None].repeat(1, self.num_ws, 1)  # [N, num_ws, w_dim]
        if truncation_psi == 1:
            return ws
        truncated = self.w_avg.lerp(ws, truncation_psi)
        if truncation_cutoff is None:
            return truncated
        return torch.cat([truncated[:, :truncation_cutoff], ws[:, truncation_cutoff:]], dim=1)

    def extra_repr(self) -> str:
        return f"z_dim={self.z_dim}, c_dim={self.c_dim}, w_dim={self.w_dim}, num_ws={self.num_ws}"


def resolutions(size: int) -> list[int]:
    """4, 8, ... ``size``.

    Raises:
        ValueError: not a power of two >= 8.
    """
    if not isinstance(size, int) or size < 8 or size & (size - 1):
        raise ValueError(f"size: expected a power of two >= 8, got {size!r}")
    return [2**i for i in range(2, size.bit_length())]


def widths(size: int, multiplier: float, maximum: int) -> dict[int, int]:
    """Channels at each resolution: config F."""
    return {r: min(int(16384 * multiplier) // r, maximum) for r in resolutions(size)}


def choice(value: str, name: str, options: tuple[str, ...]) -> str:
    """``value``, one of ``options``."""
    if value not in options:
        raise ValueError(f"{name}: expected one of {options}, got {value!r}")
    return value


def pair(value: tuple[int, int], name: str) -> tuple[int, int]:
    """``value``, a height and a width >= 1."""
    if len(value) != 2 or min(value) < 1:
        raise ValueError(f"{name}: expected a height and a width >= 1, got {value}")
    return value[0], value[1]


def _expect(value: torch.Tensor | None, name: str, size: int) -> torch.Tensor:
    if value is None or value.ndim != 2 or value.shape[1] != size:
        raise ValueError(f"{name}: expected shape [N, {size}], got {None if value is None else tuple(value.shape)}")
    return value


def _normalized(x: torch.Tensor) -> torch.Tensor:
    return x * (x.square().mean(1, keepdim=True) + 1e-8).rsqrt()
