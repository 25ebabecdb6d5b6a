"""StyleGAN2, config F, and what grew out of it: padding maps (PadInv) and positional encodings at any scale (MS-PIE).

The plain networks are those of NVlabs stylegan2-ada, with its names and shapes of state. The generators of
"Positional Encoding as Spatial Inductive Bias in GANs" (CVPR 2021), Table 5, are configurations:

=====  ==========================================================================================================
c      ``head="constant", up_after_conv=True``
d      ``head="csg", up_after_conv=True``
e      ``head="spe", interp_head=True, up_after_conv=True``
f, g   ``head="spe", up_after_conv=True`` (g: ``channel_multiplier=1``)
h      ``head="constant", no_pad=True``
i      ``head="csg", no_pad=True``
j      ``head="spe", interp_head=True, no_pad=True``
k      ``head="spe", no_pad=True``
=====  ==========================================================================================================

each with ``size=256`` and images of ``(4 + scale) * 64`` pixels, judged by ``Discriminator(256, adaptive_pool=True)``.
"""

from __future__ import annotations

from typing import Any

import torch

from ..ops.common import checks, encodings
from ..ops.common.activations import ACTIVATIONS
from .stylegan2_discriminator import Discriminator
from .stylegan2_mapping import ARCHITECTURES, Mapping, resolutions
from .stylegan2_synthesis import Synthesis

__all__ = ["Discriminator", "Generator", "Mapping", "Synthesis"]

HEADS = ("constant", "csg", "spe")


class Generator(torch.nn.Module):
    """Latents to images: ``synthesis(mapping(z, c))``.

    Args:
        size: side of the images, a power of two >= 8 (with ``head_size`` (4, 4) and scale 0).
        z_dim, w_dim, c_dim: of the latent, the intermediate latent and the label (0: none).
        channel_multiplier, channel_max: min(16384 * channel_multiplier // r, channel_max) channels at resolution r.
        mapping_layers: of the mapping network.
        architecture: "skip", "resnet" or "orig".
        head: what the first convolution reads: a learned "constant", a Cartesian grid ("csg", 2 channels) or a
            sinusoidal encoding ("spe", as many as the constant).
        head_size: height and width of the features of the first block at scale 0, hence of the images,
            [size * height / 4, size * width / 4]. Without padding the head itself has two pixels more each way.
        interp_head: at other scales an encoding is that of scale 0, interpolated; False: it is made for the size. The
            constant is interpolated always.
        no_pad: convolutions without padding, each block's input interpolated to twice its size and 4 pixels.
        up_after_conv: None: transposed convolution and filter; True: bilinear interpolation after the convolution,
            False: ahead of it (None with ``no_pad``: False).
        interp_pad: pixels of the interpolation beyond twice the size: 4 with ``no_pad``, else 0; None: that.
        conv_clamp: bound of the convolutions' results, None: none.
        layout, div_half_dim: of the encoding, :func:`posgan_fast.functional.sinusoidal_encoding2d`.
        img_channels: of the images.
        activation: of the convolutions and, unless ``mapping_activation`` is another, of the mapping.
        lr_multiplier: of the mapping.

    State: ``mapping`` (:class:`Mapping`: ``fc{i}.weight``, ``fc{i}.bias``, ``w_avg``) and ``synthesis``
    (:class:`Synthesis`: ``b{r}.const``, ``b{r}.conv0``, ``b{r}.conv1``, ``b{r}.torgb``, ``b{r}.skip``,
    ``b{r}.resample_filter``), the names of NVlabs stylegan2-ada, the same in every configuration but for ``b4.const``,
    which encodings do without.

    FSDP2 shards no scalars, and each ``noise_strength`` is one. Leave them out and average their gradients, and shard
    the halves that training calls::

        scalars = [p for p in generator.parameters() if p.ndim == 0]  # in one order on all ranks
        for module in (generator.mapping, generator.synthesis, generator):
            fully_shard(module, ignored_params=set(scalars))
        sharded = [p for p in generator.parameters() if p.ndim]
        optimiser = torch.optim.Adam([{"params": sharded}, {"params": scalars}])
        ...
        loss.backward()
        for p in scalars:
            torch.distributed.all_reduce(p.grad.div_(torch.distributed.get_world_size()))
        optimiser.step()

    Raises:
        TypeError: an argument of the wrong type.
        ValueError: a wrong size or number, an unknown choice, or arguments that do not go together.
    """

    def __init__(
        self,
        size: int,
        *,
        z_dim: int = 512,
        w_dim: int = 512,
        c_dim: int = 0,
        channel_multiplier: float = 2,
        mapping_layers: int = 8,
        architecture: str = "skip",
        head: str = "constant",
        head_size: tuple[int, int] = (4, 4),
        interp_head: bool = False,
        no_pad: bool = False,
        up_after_conv: bool | None = None,
        interp_pad: int | None = None,
        conv_clamp: float | None = None,
        layout: str = "mmgen",
        div_half_dim: bool = False,
        img_channels: int = 3,
        channel_max: int = 512,
        activation: str = "lrelu",
        mapping_activation: str | None = None,
        lr_multiplier: float = 0.01,
    ) -> None:
        super().__init__()
        checks.choice(architecture, "architecture", ARCHITECTURES)
        checks.choice(head, "head", HEADS)
        checks.choice(layout, "layout", encodings.LAYOUTS)
        checks.choice(activation, "activation", tuple(ACTIVATIONS))
        if mapping_activation is not None:
            checks.choice(mapping_activation, "mapping_activation", tuple(ACTIVATIONS))
        checks.flag(interp_head, "interp_head")
        checks.flag(no_pad, "no_pad")
        checks.flag(div_half_dim, "div_half_dim")
        checks.bound(conv_clamp, "conv_clamp")
        img_channels = checks.integer(img_channels, "img_channels", minimum=1)
        mapping_layers = checks.integer(mapping_layers, "mapping_layers", minimum=1)
        if no_pad and up_after_conv:
            raise ValueError("up_after_conv: expected False or None with no_pad, got True")
        if interp_pad not in (None, 4 if no_pad else 0):
            raise ValueError(f"interp_pad: expected {4 if no_pad else 0} or None with {no_pad=}, got {interp_pad}")
        z_dim, w_dim, c_dim = (
            checks.integer(v, k, minimum=m)
            for v, k, m in ((z_dim, "z_dim", 0), (w_dim, "w_dim", 1), (c_dim, "c_dim", 0))
        )
        height, width = head_size = checks.size(head_size, "head_size")
        size = resolutions(size)[-1]
        self.size, self.z_dim, self.w_dim, self.c_dim = size, z_dim, w_dim, c_dim
        self.img_channels, self.img_size = img_channels, (size * height // 4, size * width // 4)
        self.synthesis = Synthesis(
            size,
            w_dim,
            channel_multiplier=channel_multiplier,
            channel_max=channel_max,
            img_channels=img_channels,
            architecture=architecture,
            head=head,
            head_size=head_size,
            interp_head=interp_head,
            no_pad=no_pad,
            up_after_conv=False if no_pad else up_after_conv,
            conv_clamp=conv_clamp,
            layout=layout,
            div_half_dim=div_half_dim,
            activation=activation,
        )
        self.num_ws = self.synthesis.num_ws
        self.mapping = Mapping(
            z_dim,
            c_dim,
            w_dim,
            self.num_ws,
            num_layers=mapping_layers,
            lr_multiplier=lr_multiplier,
            activation=activation if mapping_activation is None else mapping_activation,
        )

    def forward(
        self,
        z: torch.Tensor,
        c: torch.Tensor | None = None,
        *,
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
        skip_w_avg_update: bool = False,
        **synthesis: Any,
    ) -> torch.Tensor:
        """``z`` [N, z_dim] and the label ``c`` [N, c_dim] to images [N, img_channels, height, width]; the truncation
        and ``skip_w_avg_update`` are those of :meth:`Mapping.forward`, the rest goes to :meth:`Synthesis.forward`."""
        ws = self.mapping(z, c, truncation_psi, truncation_cutoff, skip_w_avg_update=skip_w_avg_update)
        return self.synthesis(ws, **synthesis)

    def extra_repr(self) -> str:
        return f"size={self.size}, img_size={self.img_size}, num_ws={self.num_ws}"
