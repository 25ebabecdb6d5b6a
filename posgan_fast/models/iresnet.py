"""The blocks of the IResNet with squeeze and excitation, which PadInv's and pSp's encoders and ArcFace are made of."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch.nn import functional as F

from .. import functional as PF
from ..ops import winograd3x3


class Bottleneck(torch.nn.Module):
    """A residual block of the IResNet: normalise, convolve, PReLU, convolve with ``stride``, normalise, excite.

    State: ``res_layer`` and, where the number of channels changes, ``shortcut_layer``.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1) -> None:
        super().__init__()
        self.stride = stride
        if in_channels == out_channels:
            self.shortcut_layer = None
        else:
            self.shortcut_layer = torch.nn.Sequential(
                torch.nn.Conv2d(in_channels, out_channels, 1, stride, bias=False), torch.nn.BatchNorm2d(out_channels)
            )
        self.res_layer = torch.nn.Sequential(
            torch.nn.BatchNorm2d(in_channels),
            torch.nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False),
            torch.nn.PReLU(out_channels),
            torch.nn.Conv2d(out_channels, out_channels, 3, stride, padding=1, bias=False),
            torch.nn.BatchNorm2d(out_channels),
            Excitation(out_channels),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [N, I, H, W] to [N, O, ceil(H / stride), ceil(W / stride)]."""
        s, layers = self.stride, cast(Any, self.res_layer)
        if self.shortcut_layer is None:
            shortcut = x[:, :, ::s, ::s]
        else:
            conv, norm = cast(Any, self.shortcut_layer)
            shortcut = norm(conv2d(x, conv))
        before, first, act, second, after, excitation = layers
        y = _convolve(x, first, before=before, slope=act.weight)
        y = _convolve(y, second, after=after)
        return PF.prologue2d(y, excitation(y), residual=shortcut.to(y.dtype))  # scales and adds in one pass

    @property
    def kept_weights(self) -> list[torch.Tensor]:
        """The weights that :func:`posgan_fast.nn.prepack` prepares."""
        convs = [layer for layer in self.res_layer if isinstance(layer, torch.nn.Conv2d)]
        return [conv.weight for conv in convs]


def _convolve(
    x: torch.Tensor,
    conv: Any,
    *,
    before: Any = None,
    after: Any = None,
    slope: torch.Tensor | None = None,
) -> torch.Tensor:
    """Normalise (``before``), convolve with a 3x3 kernel, normalise (``after``), apply PReLU; each where it is given.

    In inference on the CPU the convolution is Winograd's, which takes the rest along.
    """
    norm = before or after
    form = winograd3x3.Form.PLAIN if conv.stride == (1, 1) else winograd3x3.Form.DOWN
    if not norm.training and winograd3x3.serves(x, conv.weight, form, padding=1):
        scale, shift = _affine(norm)
        factors: dict[str, Any] = dict(in_scale=scale, in_shift=shift) if before else dict(scale=scale, shift=shift)
        tiles = winograd3x3.tiles_of(x, form, winograd3x3.out_size(x, form, 1))
        weight = winograd3x3.prepare(conv.weight, form, tiles=tiles)
        return winograd3x3.run(x, weight, form, **factors, slope=slope)
    y = conv2d(x if before is None else before(x), conv)
    y = y if after is None else after(y)
    return y if slope is None else F.prelu(y, slope)


def conv2d(x: torch.Tensor, conv: Any) -> torch.Tensor:
    """Convolve by a layer, in NCHW where the gradient of its weight may follow.

    In channels_last torch 2.13 computes that gradient slowly for stride 2, and for few channels it writes beyond its
    memory: a 1x1 convolution of 8 channels with stride 2 ends the process.
    """
    weight = conv.weight
    if torch.is_grad_enabled() and weight.requires_grad:
        # Flattening leaves a 1x1 kernel the strides of NCHW too, which torch takes for either format.
        x, weight = x.contiguous(), weight.contiguous().flatten().view(weight.shape)
    return F.conv2d(x, weight, conv.bias, conv.stride, conv.padding)


def _affine(norm: torch.nn.BatchNorm2d) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the scale and the shift of a normalisation in evaluation mode, [C] each."""
    assert norm.running_mean is not None and norm.running_var is not None  # for the type checker
    scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
    return scale, norm.bias - norm.running_mean * scale


class Excitation(torch.nn.Module):
    """Squeeze and excitation: factors of the channels, which follow from their means.

    State: ``fc1.weight`` [C / 16, C, 1, 1], ``fc2.weight`` [C, C / 16, 1, 1].
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = max(1, channels // 16)
        self.fc1 = torch.nn.Conv2d(channels, squeezed, 1, bias=False)
        self.fc2 = torch.nn.Conv2d(squeezed, channels, 1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map [N, C, H, W] to [N, C]."""
        x = F.relu(F.linear(x.mean((2, 3)), self.fc1.weight[:, :, 0, 0]))
        return F.linear(x, self.fc2.weight[:, :, 0, 0]).sigmoid()
