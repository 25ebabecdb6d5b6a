"""StyleGAN2, config F, with two extensions: padding maps (PadInv) and positional encodings at any scale (MS-PIE).

Without them the networks are NVlabs stylegan2-ada's, with its names and shapes of state. ``models/mspie.py`` has the
configurations of MS-PIE.
"""

from __future__ import annotations

from typing import Any

import torch

from ..ops.common import checks
from .precision import Precision
from .report import LoadReport
from .stylegan2_discriminator import Discriminator
from .stylegan2_mapping import Mapping, check_blocks, mapping_arguments, widths
from .stylegan2_synthesis import BlockConfig, HeadConfig, Maps, Synthesis

__all__ = ["Discriminator", "Generator", "Mapping", "Synthesis"]


class Generator(torch.nn.Module):
    """Make images from latents: ``synthesis(mapping(z, c))``.

    Args:
        size: side of the images, a power of two >= 8 (with ``head_size`` (4, 4) and scale 0).
        z_dim, w_dim, c_dim: sizes of the latent, the intermediate latent and the label; c_dim=0: no labels.
        channel_multiplier, channel_max: min(16384 * channel_multiplier // r, channel_max) channels at resolution r.
        mapping_layers: number of layers of the mapping network.
        architecture: "skip", "resnet" or "orig".
        head: input of the first convolution: a learned "constant", a Cartesian grid ("csg", 2 channels) or a
            sinusoidal encoding ("spe", as many channels as the constant).
        head_size: height and width of the first block's features at scale 0: the images are
            [size * height / 4, size * width / 4]. Without padding the head itself has two more rows and columns.
        interp_head: True interpolates the encoding of scale 0 at other scales; False encodes the size that is asked
            for. A constant is always interpolated.
        no_pad: True leaves the convolutions without padding; each block then interpolates its input to twice the size
            plus 4 pixels.
        up_after_conv: None upsamples with a transposed convolution and the filter, True with bilinear interpolation
            after the convolution, False with bilinear interpolation ahead of it. With ``no_pad`` None means False.
        interp_pad: pixels that the interpolation adds to twice the size: 4 with ``no_pad``, else 0; None: this value.
        conv_clamp: bound of the convolutions' results; None: no bound. NVlabs' is 256 beside half precision.
        num_fp16_res: number of the highest resolutions whose features are in half precision, as in NVlabs' code; that
            of 4 x 4 pixels is never one of them. Parameters, styles, demodulation and images stay in float32. float64
            stays too, and under autocast its dtype is that of every block. A number of 1 or more also converts the
            features of the other blocks to float32. A call ``generator(z, force_fp32=True)``, or of ``synthesis``
            alone, runs all blocks in float32; ``mapping``, which has no half precision, takes no such argument.
        half_dtype: float16 or bfloat16, as a torch.dtype or by its name. On the CPU, where float16 is slow, blocks of
            float16 run in float32, as in NVlabs stylegan3; bfloat16 runs on every device.
        layout, div_half_dim: arguments of :func:`posgan_fast.functional.sinusoidal_encoding2d`.
        img_channels: number of channels of the images.
        activation: nonlinearity of the convolutions.
        mapping_activation: nonlinearity of the mapping; None: ``activation``.
        lr_multiplier: learning rate of the mapping relative to the rest.

    State: ``mapping`` (:class:`Mapping`: ``fc{i}.weight``, ``fc{i}.bias``, ``w_avg``) and ``synthesis``
    (:class:`Synthesis`: ``b{r}.const``, ``b{r}.conv0``, ``b{r}.conv1``, ``b{r}.torgb``, ``b{r}.skip``,
    ``b{r}.resample_filter``), the names of NVlabs stylegan2-ada. All configurations have the same state, except that
    encodings need no ``b4.const``.

    FSDP2 cannot shard scalars, and every ``noise_strength`` is one. Shard the two halves that training calls, leave
    the scalars out, and average their gradients by hand::

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
        TypeError: an argument has the wrong type.
        ValueError: a wrong size or number, an unknown choice, or arguments that do not go together.

    Example:
        >>> generator = Generator(32, z_dim=16, w_dim=16, channel_max=8, mapping_layers=2).eval()
        >>> ws = generator.mapping(torch.randn(2, 16), truncation_psi=0.7)
        >>> generator.synthesis(ws, noise_mode="const").shape
        torch.Size([2, 3, 32, 32])
    """

    report: LoadReport

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
        num_fp16_res: int = 0,
        half_dtype: torch.dtype | str = torch.float16,
        layout: str = "mmgen",
        div_half_dim: bool = False,
        img_channels: int = 3,
        channel_max: int = 512,
        activation: str = "lrelu",
        mapping_activation: str | None = None,
        lr_multiplier: float = 0.01,
    ) -> None:
        super().__init__()
        img_channels = check_blocks(img_channels, architecture, conv_clamp, activation)
        mapping = mapping_arguments(mapping_layers, lr_multiplier, activation, mapping_activation)
        up_after_conv = _check_upsampling(no_pad, up_after_conv, interp_pad)
        self.z_dim, self.c_dim = (checks.integer(v, k, minimum=0) for v, k in ((z_dim, "z_dim"), (c_dim, "c_dim")))
        self.w_dim, self.img_channels = checks.integer(w_dim, "w_dim", minimum=1), img_channels
        precision = Precision.checked(num_fp16_res, half_dtype)
        self.num_fp16_res, self.half_dtype = precision
        config = BlockConfig(
            self.w_dim, img_channels, architecture, no_pad, up_after_conv, conv_clamp, activation, precision
        )
        first = HeadConfig(head, head_size, interp_head, layout, div_half_dim).checked()
        channels = widths(size, channel_multiplier, channel_max)
        self.size = max(channels)
        self.img_size = (self.size * first.head_size[0] // 4, self.size * first.head_size[1] // 4)
        self.synthesis = Synthesis(channels, first, config)
        self.num_ws = self.synthesis.num_ws
        self.mapping = Mapping(self.z_dim, self.c_dim, self.w_dim, self.num_ws, **mapping)

    def forward(
        self,
        z: torch.Tensor,
        c: torch.Tensor | None = None,
        *,
        truncation_psi: float = 1.0,
        truncation_cutoff: int | None = None,
        skip_w_avg_update: bool = False,
        pad_maps: Maps = None,
        noise_mode: str | None = None,
        noises: Maps = None,
        scale: int | tuple[int, int] = 0,
        force_fp32: bool = False,
    ) -> torch.Tensor:
        """Make images [N, img_channels, height, width] in float32, or in float64 if the network is.

        Args:
            z, c: latents [N, z_dim] and labels [N, c_dim].
            truncation_psi, truncation_cutoff, skip_w_avg_update: arguments of :meth:`Mapping.forward`.
            pad_maps, noise_mode, noises, scale, force_fp32: arguments of :meth:`Synthesis.forward`.
        """
        ws = self.mapping(z, c, truncation_psi, truncation_cutoff, skip_w_avg_update=skip_w_avg_update)
        return self.synthesis(
            ws, pad_maps=pad_maps, noise_mode=noise_mode, noises=noises, scale=scale, force_fp32=force_fp32
        )

    def extra_repr(self) -> str:
        half = Precision(self.num_fp16_res, self.half_dtype).described()
        return f"size={self.size}, img_size={self.img_size}, num_ws={self.num_ws}{half}"


def _check_upsampling(no_pad: Any, up_after_conv: Any, interp_pad: Any) -> Any:
    """Return ``up_after_conv`` as the blocks take it, which upsample ahead of convolutions without padding."""
    if checks.flag(no_pad, "no_pad") and up_after_conv:
        raise ValueError("up_after_conv: expected False or None with no_pad, got True")
    if interp_pad not in (None, 4 if no_pad else 0):
        raise ValueError(f"interp_pad: expected {4 if no_pad else 0} or None with {no_pad=}, got {interp_pad}")
    return False if no_pad else up_after_conv
