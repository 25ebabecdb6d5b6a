"""MS-PIE StyleGAN2: the configurations of "Positional Encoding as Spatial Inductive Bias in GANs" (CVPR 2021).

A generator makes images of ``(4 + scale) * 64`` pixels, at every scale from one set of weights::

    generator = mspie.generator("f")
    image = generator(torch.randn(1, 512), scale=4)  # [1, 3, 512, 512]
    generator = load_generator("mspie-f.pth", **mspie.CONFIGS["f"].generator)  # a published file

``CONFIGS`` has Table 5 ("a" to "k"), the two of 896 and 1024 pixels that mmgeneration published beside it, and Table 2
("table2-a" to "table2-e", images of 256 pixels only). The paper publishes no files for Table 2; its text gives these
settings, but not whether configuration b interpolates before or after the convolution.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from ..ops.common import checks
from .stylegan2 import Discriminator, Generator

__all__ = ["CONFIGS", "Config", "discriminator", "generator"]


class Config(NamedTuple):
    """Settings of one row of the paper's tables.

    Example:
        >>> CONFIGS["k"].generator["no_pad"], CONFIGS["k"].sides
        (True, (256, 384, 512))
    """

    head: str
    interp_head: bool = False
    up_after_conv: bool | None = None
    no_pad: bool = False
    size: int = 256  # of the images at scale 0
    scales: tuple[int, ...] = (0, 2, 4)  # of the training
    channel_multiplier: int = 2  # of the generator
    discriminator_multiplier: int = 2
    batch: int = 3  # images of each of eight processes
    iterations: int = 1_100_002

    @property
    def pools(self) -> bool:
        """Tell whether the discriminator pools its last features to 2 x 2, for images of several sizes."""
        return len(self.scales) > 1

    @property
    def generator(self) -> dict[str, Any]:
        """Arguments of :class:`posgan_fast.models.Generator`."""
        names = ("head", "interp_head", "up_after_conv", "no_pad", "channel_multiplier")
        return {"size": self.size} | {name: getattr(self, name) for name in names}

    @property
    def discriminator(self) -> dict[str, Any]:
        """Arguments of :class:`posgan_fast.models.Discriminator`."""
        return dict(size=self.size, channel_multiplier=self.discriminator_multiplier, adaptive_pool=self.pools)

    @property
    def sides(self) -> tuple[int, ...]:
        """Sides of the images at each scale."""
        return tuple((4 + scale) * self.size // 4 for scale in self.scales)


_ONE: dict[str, Any] = dict(scales=(0,))  # plain StyleGAN2 in all but the head and the padding
CONFIGS: dict[str, Config] = {
    "a": Config("constant", **_ONE),
    "b": Config("constant", size=512, scales=(0,)),
    "c": Config("constant", up_after_conv=True),
    "d": Config("csg", up_after_conv=True),
    "e": Config("spe", interp_head=True, up_after_conv=True),
    "f": Config("spe", up_after_conv=True),
    "g": Config("spe", up_after_conv=True, channel_multiplier=1, discriminator_multiplier=1),
    "h": Config("constant", no_pad=True),
    "i": Config("csg", no_pad=True),
    "j": Config("spe", interp_head=True, no_pad=True),
    "k": Config("spe", no_pad=True),
    "f-896": Config("spe", up_after_conv=True, scales=(0, 4, 10)),
    "f-1024": Config("spe", up_after_conv=True, scales=(0, 4, 12), channel_multiplier=1, batch=2, iterations=1_500_002),
    "table2-a": Config("constant", **_ONE),
    "table2-b": Config("constant", up_after_conv=False, **_ONE),
    "table2-c": Config("constant", no_pad=True, **_ONE),
    "table2-d": Config("csg", no_pad=True, **_ONE),
    "table2-e": Config("spe", no_pad=True, **_ONE),
}  # fmt: skip


def generator(name: str, **overrides: Any) -> Generator:
    """Build the generator of a configuration, with new weights.

    Args:
        name: a key of ``CONFIGS``.
        overrides: arguments of :class:`posgan_fast.models.Generator` that replace the configuration's.

    Raises:
        TypeError, ValueError: no such configuration, or as :class:`posgan_fast.models.Generator`.

    Example:
        >>> import torch
        >>> generator("f", size=16, channel_max=8)(torch.randn(1, 512), scale=(0, 2)).shape
        torch.Size([1, 3, 16, 24])
    """
    return Generator(**(CONFIGS[_known(name)].generator | overrides))


def discriminator(name: str, **overrides: Any) -> Discriminator:
    """Build the discriminator of a configuration, with new weights.

    Args:
        name: a key of ``CONFIGS``.
        overrides: arguments of :class:`posgan_fast.models.Discriminator` that replace the configuration's.

    Raises:
        TypeError, ValueError: no such configuration, or as :class:`posgan_fast.models.Discriminator`.

    Example:
        >>> import torch
        >>> discriminator("f", size=16, channel_max=8)(torch.randn(1, 3, 16, 24)).shape
        torch.Size([1, 1])
    """
    return Discriminator(**(CONFIGS[_known(name)].discriminator | overrides))


def _known(name: Any) -> str:
    return checks.choice(name, "name", tuple(CONFIGS))
