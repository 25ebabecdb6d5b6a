"""Editing images along directions that the weights of a StyleGAN2 tell, without training (SeFa).

Source: "Closed-Form Factorization of Latent Semantics in GANs" (CVPR 2021) in the form of mmgeneration's modified_sefa:
the affine weights of all style layers, one below the other, are factorised as they are, without normalising them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image, ImageDraw

from ..models import Generator
from ..nn import StyleConv
from ..ops.common import checks
from .codes import stylegan2
from .images import grid


def sefa(generator: Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """Factorise the affine weights of the style layers, those of toRGB left out.

    Returns:
        Directions [w_dim, k], one a column of norm 1, the one that changes the styles most first; their singular
        values [k]. The sign of a direction is chosen so that its largest number is positive.

    Raises:
        TypeError: no StyleGAN2 generator of this library.

    Example:
        >>> directions, values = sefa(Generator(8, w_dim=16, z_dim=16, channel_max=8, mapping_layers=1))
        >>> directions.shape
        torch.Size([16, 16])
    """
    layers = [
        module.affine.weight for module in stylegan2(generator).synthesis.modules() if isinstance(module, StyleConv)
    ]
    weights = torch.cat([weight.detach().double() for weight in layers])  # [sum of I, w_dim]
    _, values, rows = torch.linalg.svd(weights, full_matrices=False)
    largest = rows.gather(1, rows.abs().argmax(1, keepdim=True))
    return (rows * largest.sign()).T.to(layers[0].dtype), values.to(layers[0].dtype)


@torch.no_grad()
def edited(
    generator: Generator,
    ws: torch.Tensor,
    direction: torch.Tensor,
    degrees: Sequence[float],
    *,
    layers: Sequence[int] | None = None,
    **arguments: Any,
) -> list[torch.Tensor]:
    """Make images of ``ws + degree * direction`` for each degree.

    Args:
        generator: a StyleGAN2.
        ws: latents [N, num_ws, w_dim].
        direction: [w_dim].
        degrees: factors of the direction.
        layers: indices of the latents that change; None: all.
        arguments: arguments of ``generator.synthesis``, the same for each image.

    Returns:
        Images [N, channels, H, W], one tensor for each degree.

    Raises:
        ValueError: a layer that the generator does not have.
    """
    mask = ws.new_zeros(generator.num_ws)
    for layer in range(generator.num_ws) if layers is None else layers:
        mask[checks.integer(layer, "layers", minimum=0, maximum=generator.num_ws - 1)] = 1
    step = mask[:, None] * direction  # [num_ws, w_dim]
    return [generator.synthesis(ws + degree * step, **arguments) for degree in degrees]


def strip(images: Sequence[torch.Tensor], labels: Sequence[str], title: str, rows: Sequence[str] = ()) -> Image.Image:
    """Arrange images [N, 3, H, W], a column for each label, below the labels and a title, with a name for each row."""
    columns = len(images)
    sheet = grid(torch.stack(list(images), 1).flatten(0, 1), columns)  # of [N * columns, 3, H, W]
    head, margin = 28, 7 * max((len(name) for name in rows), default=0)
    canvas = Image.new("RGB", (max(margin + sheet.width, 8 * len(title)), sheet.height + head), "white")
    canvas.paste(sheet, (margin, head))
    draw = ImageDraw.Draw(canvas)
    draw.text((2, 1), title, fill="black")
    across, down = (sheet.width + 2) // columns, (sheet.height + 2) // max(1, len(images[0]))
    for k, label in enumerate(labels):
        draw.text((margin + k * across + 2, 14), label, fill="black")
    for k, name in enumerate(rows):
        draw.text((2, head + k * down + 2), name, fill="black")
    return canvas
