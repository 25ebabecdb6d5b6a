"""The sliced Wasserstein distance (SWD) between sets of patches, and of images at several levels.

Patches are projected on random directions; the distance is the mean over the directions of the Wasserstein distance
between the two sets of projections. Images become a Laplacian pyramid, G_0 = image::

    G_{k+1} = down(G_k)        L_k = G_k - up(G_{k+1})        the last level is G itself

and random 7x7 patches of each level, normalised by the mean and the deviation of their channel over the set, which
hides errors of overall colour and contrast. Values are multiplied by 1000. Finite sets differ even when they are drawn
alike, so a distance means little without that between two sets of real images. Source: "Progressive Growing of GANs"
(ICLR 2018), with half of its patches and a quarter of its directions.
"""

from __future__ import annotations

import ot
import torch
from torch.nn import functional as F

from .. import functional as PF
from ..ops.common import checks
from ..recipes.draws import generator

PATCH, PATCHES, DIRECTIONS = 7, 64, 128


def distance(a: torch.Tensor, b: torch.Tensor, seed: int = 0) -> float:
    """Return the sliced Wasserstein distance of ``a`` [N, D] and ``b`` [M, D]."""
    return float(ot.sliced_wasserstein_distance(a.numpy(), b.numpy(), n_projections=DIRECTIONS, p=1, seed=seed % 2**32))


def multi_level(real: torch.Tensor, fake: torch.Tensor, levels: int = 2, seed: int = 0) -> dict[str, float]:
    """Return the distance of each level, by its height and width in pixels, and their mean; all times 1000.

    Args:
        real, fake: images [N, C, H, W] and [M, C, H, W].
        levels: levels of the pyramid; H and W have the factor 2 ** (levels - 1).
        seed: seed of patches and directions.

    Raises:
        ValueError: images of two sizes, or of one that cannot be halved so often.

    Example:
        >>> sorted(multi_level(torch.randn(8, 3, 32, 32), torch.randn(8, 3, 32, 32)))
        ['16x16', '32x32', 'mean']
    """
    if real.shape[1:] != fake.shape[1:]:
        raise ValueError(f"fake: expected images of {list(real.shape[1:])}, got {list(fake.shape[1:])}")
    found: dict[str, float] = {}
    for level, pair in enumerate(zip(*(laplacian_pyramid(images, levels) for images in (real, fake)), strict=True)):
        ours, theirs = (descriptors(images, generator(seed, "patches", level, k)) for k, images in enumerate(pair))
        found["x".join(str(side) for side in pair[0].shape[2:])] = 1000 * distance(ours, theirs, seed)
    return found | {"mean": sum(found.values()) / len(found)}


def laplacian_pyramid(images: torch.Tensor, levels: int) -> list[torch.Tensor]:
    """Split ``images`` [N, C, H, W] into details of falling size and a last, smooth image.

    Raises:
        TypeError: ``levels`` is no int.
        ValueError: no level, or a side that cannot be halved so often, or then is smaller than a patch.
    """
    factor = 2 ** (checks.integer(levels, "levels", minimum=1) - 1)
    if any(side % factor or side // factor < PATCH for side in images.shape[2:]):
        raise ValueError(
            f"images: expected sides that are multiples of {factor} from {factor * PATCH} on, "
            f"got shape {tuple(images.shape)}"
        )
    f = PF.setup_filter([1, 4, 6, 4, 1])
    found = []
    for _ in range(levels - 1):
        half = PF.upfirdn2d(F.pad(images, (2,) * 4, mode="reflect"), f, down=2)
        found.append(images - PF.upfirdn2d(_mirrored(half), f, up=2, gain=4))
        images = half
    return [*found, images]


def descriptors(images: torch.Tensor, random: torch.Generator) -> torch.Tensor:
    """Take ``PATCHES`` normalised patches of each image [N, C, H, W]: [N * PATCHES, C * PATCH * PATCH]."""
    n, _, h, w = images.shape
    y, x = (torch.randint(side - PATCH + 1, (n, PATCHES), generator=random) for side in (h, w))
    chosen = windows(images)[torch.arange(n)[:, None], y, x].flatten(0, 1)  # [N * PATCHES, C, PATCH, PATCH]
    std, mean = torch.std_mean(chosen, (0, 2, 3), keepdim=True, correction=0)
    return ((chosen - mean) / std.clamp_min(1e-8)).flatten(1)


def windows(images: torch.Tensor) -> torch.Tensor:
    """View all patches of ``images`` [N, C, H, W] by their position: [N, H - 6, W - 6, C, PATCH, PATCH]."""
    return images.unfold(2, PATCH, 1).unfold(3, PATCH, 1).permute(0, 2, 3, 1, 4, 5)


def _mirrored(x: torch.Tensor) -> torch.Tensor:
    """Pad ``x`` by one pixel: the second from the top and the left, the last from the bottom and the right.

    Enlarged by zeros between its pixels, ``x`` then continues as its mirror image, without repeating the outermost one.
    """
    x = torch.cat([x[:, :, 1:2], x, x[:, :, -1:]], 2)
    return torch.cat([x[..., 1:2], x, x[..., -1:]], 3)
