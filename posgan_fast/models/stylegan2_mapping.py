"""The mapping network of StyleGAN2, and helpers that generator and discriminator share."""

from __future__ import annotations

from typing import Any

import torch

from .. import functional as PF
from .. import nn
from ..ops.common import checks
from ..ops.common.activations import ACTIVATIONS
from ..ops.common.op import transforms_active
from .precision import to_full_precision

ARCHITECTURES = ("skip", "resnet", "orig")


class Mapping(torch.nn.Module):
    """Map latents and labels to the intermediate latent w, and track the average of w for truncation.

    Args:
        z_dim, c_dim, w_dim: sizes of z, of the label and of w; 0: no z, no label.
        num_ws: copies of w to return, one for each layer; None: return w itself and keep no average.
        num_layers: number of fully connected layers.
        lr_multiplier, activation: settings of those layers.
        w_avg_beta: decay of the average, which moves in training mode.

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
        activation: str = "lrelu",
        w_avg_beta: float = 0.995,
    ) -> None:
        super().__init__()
        z_dim = checks.integer(z_dim, "z_dim", minimum=0)
        c_dim = checks.integer(c_dim, "c_dim", minimum=0)
        if z_dim + c_dim == 0:
            raise ValueError("z_dim: expected a latent or a label, got z_dim=0 and c_dim=0")
        w_dim = checks.integer(w_dim, "w_dim", minimum=1)
        num_layers = checks.integer(num_layers, "num_layers", minimum=1)
        checks.choice(activation, "activation", tuple(ACTIVATIONS))
        self.z_dim, self.c_dim, self.w_dim, self.num_ws = z_dim, c_dim, w_dim, num_ws
        self.num_layers, self.w_avg_beta = num_layers, checks.real(w_avg_beta, "w_avg_beta")
        self.embed = nn.EqualLinear(c_dim, w_dim) if c_dim else None
        features = [z_dim + (w_dim if c_dim else 0), *[w_dim] * num_layers]
        for i in range(num_layers):
            layer = nn.EqualLinear(features[i], features[i + 1], act=activation, lr_multiplier=lr_multiplier)
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
            z, c: None for a network without latent or label.
            truncation_psi: weight of w against its average: 1 is w, 0 the average.
            truncation_cutoff: number of copies, from the first, to truncate; None: all.
            skip_w_avg_update: True keeps the average as it is in training mode; under torch.func it never moves.

        Returns:
            [N, num_ws, w_dim], or [N, w_dim] where ``num_ws`` is None.

        Raises:
            TypeError, ValueError: a latent or label has another type or shape, is missing, or is not taken.
        """
        psi = checks.real(truncation_psi, "truncation_psi")
        if truncation_cutoff is not None:
            truncation_cutoff = checks.integer(truncation_cutoff, "truncation_cutoff", minimum=0)
        check_latent(z, "z", self.z_dim, self.fc0.weight)
        check_latent(c, "c", self.c_dim, self.fc0.weight, z if self.z_dim else None)
        parts = []
        dtype = self.fc0.weight.dtype
        if z is not None and self.z_dim:
            parts.append(_normalized(z.to(dtype)))
        if c is not None and self.embed is not None:
            parts.append(_normalized(self.embed(c.to(dtype))))
        x = torch.cat(parts, dim=1)
        for i in range(self.num_layers):
            x = getattr(self, f"fc{i}")(x)
        if self.w_avg is None or self.num_ws is None:
            if psi != 1:
                raise ValueError(f"truncation_psi: expected 1 without an average of w, got {truncation_psi}")
            return x
        updates = self.training and not skip_w_avg_update and not transforms_active()  # torch.func refuses the write
        if updates and x.shape[0]:  # len() would be a constant in exports
            self.w_avg.copy_(x.detach().mean(0).lerp(self.w_avg, self.w_avg_beta))
        ws = x[:, None].repeat(1, self.num_ws, 1)  # [N, num_ws, w_dim]
        if psi == 1:
            return ws
        truncated = self.w_avg.lerp(ws, psi)
        if truncation_cutoff is None:
            return truncated
        return torch.cat([truncated[:, :truncation_cutoff], ws[:, truncation_cutoff:]], dim=1)

    def extra_repr(self) -> str:
        return f"z_dim={self.z_dim}, c_dim={self.c_dim}, w_dim={self.w_dim}, num_ws={self.num_ws}"


def resolutions(size: int) -> list[int]:
    """List 4, 8, ... ``size``.

    Raises:
        TypeError, ValueError: ``size`` is not a power of two >= 8.
    """
    size = checks.integer(size, "size")
    if size < 8 or size & (size - 1):
        raise ValueError(f"size: expected a power of two >= 8, got {size}")
    return [2**i for i in range(2, size.bit_length())]


def widths(size: int, multiplier: float, maximum: int) -> dict[int, int]:
    """Channels at each resolution, as in config F.

    Raises:
        TypeError, ValueError: ``multiplier`` leaves no channel at the last resolution, or ``maximum`` is < 1.
    """
    multiplier = checks.real(multiplier, "channel_multiplier", minimum=resolutions(size)[-1] / 16384)
    maximum = checks.integer(maximum, "channel_max", minimum=1)
    return {r: min(int(16384 * multiplier) // r, maximum) for r in resolutions(size)}


def check_blocks(img_channels: Any, architecture: Any, conv_clamp: Any, activation: Any) -> int:
    """Check the settings that the blocks of both networks have; return ``img_channels`` as an int."""
    checks.choice(architecture, "architecture", ARCHITECTURES)
    checks.choice(activation, "activation", tuple(ACTIVATIONS))
    checks.bound(conv_clamp, "conv_clamp")
    return checks.integer(img_channels, "img_channels", minimum=1)


def mapping_arguments(layers: Any, lr_multiplier: Any, activation: str, mapping_activation: Any) -> dict[str, Any]:
    """Check a network's arguments for its mapping, and return them as :class:`Mapping` takes them."""
    layers = checks.integer(layers, "mapping_layers", minimum=1)
    if mapping_activation is not None:
        activation = checks.choice(mapping_activation, "mapping_activation", tuple(ACTIVATIONS))
    return dict(num_layers=layers, lr_multiplier=lr_multiplier, activation=activation)


def check_latent(value: Any, name: str, size: int, like: torch.Tensor, beside: torch.Tensor | None = None) -> None:
    """Check that ``value`` is real, [N, size] and on the device of the weight ``like``, with the N of ``beside``.

    Where ``size`` is 0, the value is None or, as in NVlabs' code, [N, 0].

    Raises:
        TypeError, ValueError: ``value`` is anything else.
    """
    if value is None and not size:
        return
    n = "N" if beside is None else beside.shape[0]
    expected = f"shape [{n}, {size}]" if size else f"None with {name}_dim=0"
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name}: expected {expected}, got {type(value).__name__}")
    if value.is_complex():
        raise TypeError(f"{name}: expected real numbers, got {value.dtype}")
    checks.same_device(value, name, like, like="the network")
    if value.ndim != 2 or value.shape[1] != size or (beside is not None and value.shape[0] != n):
        raise ValueError(f"{name}: expected {expected}, got {tuple(value.shape)}")


def _normalized(x: torch.Tensor) -> torch.Tensor:
    y = to_full_precision(x)  # in float16 the squares overflow and 1e-8 is zero
    return (y * (y.square().mean(1, keepdim=True) + 1e-8).rsqrt()).to(x.dtype)


SAMPLES = 4096
_CHUNK = SAMPLES * 512  # numbers in memory at a time: all samples at once in the usual width


def mean_latent(
    state: dict[str, torch.Tensor], layers: int, z_dim: int, lr_multiplier: float = 0.01, activation: str = "lrelu"
) -> torch.Tensor:  # => [w]
    """Average the mapping's results over random latents, as the families without a stored average do.

    The file decides how wide a latent is, so chunks bound the memory. Each chunk has a multiple of 16 rows: randn then
    draws the same numbers as in one call.
    """
    names = [f"mapping.fc{j}" for j in range(layers)]
    fcs = [(state[f"{name}.weight"].float().cpu(), state[f"{name}.bias"].float().cpu()) for name in names]
    rows = max(_CHUNK // max(z_dim, *(len(bias) for _, bias in fcs)) // 16 * 16, 16)
    generator = torch.Generator().manual_seed(0)
    total = torch.zeros(())
    for start in range(0, SAMPLES, rows):
        z = torch.randn(min(rows, SAMPLES - start), z_dim, generator=generator)
        x = z * (z.square().mean(1, keepdim=True) + 1e-8).rsqrt()  # [rows, z]
        for weight, bias in fcs:
            x = x @ (weight * (lr_multiplier / weight.shape[1] ** 0.5)).t()
            x = PF.bias_act(x, bias * lr_multiplier, act=activation)
        total = total + x.sum(0)
    return total / SAMPLES
