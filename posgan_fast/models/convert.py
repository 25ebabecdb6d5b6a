"""State dictionaries of every family, converted to NVlabs' names, shapes and conventions.

No tensor is dropped in silence. A tensor of the input is used, or listed as left because it is known to hold nothing,
or an error names it. A tensor of the output comes from the input or from a rule that the report names, or an error
says that it is missing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..ops.common import checks
from ..ops.common.activations import ACTIVATIONS
from .conversion import Conversion, State, positive
from .report import CheckpointError, LoadReport
from .structure import head_of, last_features, multiplier, sides
from .stylegan2_mapping import SAMPLES, mean_latent
from .stylegan2_synthesis import HEADS


def convert_generator(
    state: Mapping[str, Any],
    family: str | None = None,
    *,
    head: str | None = None,
    head_size: tuple[int, int] | None = None,
    no_pad: bool | None = None,
    lr_multiplier: float = 0.01,
    mapping_activation: str = "lrelu",
) -> tuple[State, LoadReport]:
    """Convert the generator ``state`` of a family to NVlabs' names. ``state`` stays as it is; tensors may be shared.

    Noise, filters and the average of w can be made again: they may be missing or have another shape.

    Args:
        family: one of ``FAMILIES``, or None to tell it from the names.
        head: "constant", "csg" or "spe"; None: inferred. "spe" has no tensors: give it where a file has no constant.
        head_size, no_pad: arguments of ``Generator``; None: inferred from the tensors, or assumed.
        lr_multiplier, mapping_activation: settings of the mapping, which computes the average of w that a file lacks.

    Raises:
        CheckpointError: names are missing or unknown, or shapes contradict each other or an argument.
        TypeError, ValueError: an argument that ``Generator`` would not take.

    Example:
        >>> from posgan_fast.models import Generator
        >>> weights = Generator(8, w_dim=16, channel_max=8, mapping_layers=1).state_dict()
        >>> state, report = convert_generator(weights, "nvlabs")
        >>> report.settings["w_dim"], state["mapping.w_avg"].shape
        (16, torch.Size([16]))
    """
    if head is not None:
        checks.choice(head, "head", HEADS)
    if head_size is not None:
        head_size = checks.size(head_size, "head_size")
    if no_pad is not None:
        checks.flag(no_pad, "no_pad")
    positive(lr_multiplier, "lr_multiplier")
    checks.choice(mapping_activation, "mapping_activation", tuple(ACTIVATIONS))
    conversion = Conversion("generator", state, family)
    tensors = _generator_tensors(conversion, head, head_size, no_pad)
    conversion.run(tensors)
    out, report = conversion.out, conversion.report
    if "mapping.w_avg" not in out:
        average = mean_latent(out, conversion.mapping_layers, tensors.z_dim, lr_multiplier, mapping_activation)
        out["mapping.w_avg"] = average
        report.filled["mapping.w_avg"] = f"the file has none; mean over {SAMPLES} latents of seed 0"
    return out, report


def convert_discriminator(
    state: Mapping[str, Any],
    family: str | None = None,
    *,
    head_size: tuple[int, int] | None = None,
    adaptive_pool: bool | None = None,
) -> tuple[State, LoadReport]:
    """Convert the discriminator ``state`` of a family to NVlabs' names; see :func:`convert_generator`.

    Args:
        family: one of ``FAMILIES``, or None to tell it from the names.
        head_size, adaptive_pool: arguments of ``Discriminator``; None: inferred from the tensors, or assumed.

    Raises:
        CheckpointError: names are missing or unknown, or shapes contradict each other or an argument.
        TypeError, ValueError: an argument that ``Discriminator`` would not take.

    Example:
        >>> from posgan_fast.models import Discriminator
        >>> state, report = convert_discriminator(Discriminator(8, channel_max=8).state_dict())
        >>> report.family, report.settings["architecture"]
        ('nvlabs', 'resnet')
    """
    if head_size is not None:
        head_size = checks.size(head_size, "head_size")
    if adaptive_pool is not None:
        checks.flag(adaptive_pool, "adaptive_pool")
    conversion = Conversion("discriminator", state, family)
    conversion.run(_discriminator_tensors(conversion, head_size, adaptive_pool))
    return conversion.out, conversion.report


class GeneratorTensors(NamedTuple):
    """Sizes that determine the shapes of a generator's tensors."""

    side: int
    channels: dict[int, int]  # at each side
    head: str
    head_channels: int  # input of the first convolution
    head_size: tuple[int, int]
    border: int  # rows and columns that a network without padding adds to the head
    z_dim: int
    w_dim: int
    c_dim: int
    embedded: int  # size of the label's embedding
    img_channels: int
    architecture: str

    @property
    def rebuilt(self) -> tuple[str, ...]:
        return ("noise_const",) if self.c_dim else ("noise_const", "w_avg")  # labels move w, and a file has none

    def shape(self, name: str) -> tuple[int, ...]:
        module, _, part = name.rpartition(".")
        if module.startswith("mapping"):
            return self._mapping_shape(module, part)
        if name == "synthesis.b4.const":
            return (self.channels[4], *(side + self.border for side in self.head_size))
        _, block, layer, *_ = name.split(".")
        r = int(block[1:])
        if part == "noise_const":
            extra = self.border if layer == "conv0" else 0
            height, width = self.head_size
            return (height * r // 4 + extra, width * r // 4 + extra)
        reads_head = r == 4 and layer == "conv1"
        i = self.head_channels if reads_head else self.channels[r // 2 if layer in ("conv0", "skip") else r]
        if ".affine." in name:
            return (i, self.w_dim) if part == "weight" else (i,)
        o = self.img_channels if layer == "torgb" else self.channels[r]
        k = 3 if layer in ("conv0", "conv1") else 1
        return {"weight": (o, i, k, k), "bias": (o,), "noise_strength": ()}[part]

    def _mapping_shape(self, module: str, part: str) -> tuple[int, ...]:
        o = self.embedded if module == "mapping.embed" else self.w_dim
        if part != "weight":
            return (o,)
        inputs = {"mapping.embed": self.c_dim, "mapping.fc0": self.z_dim + self.embedded}
        return (o, inputs.get(module, self.w_dim))

    def wants(self, name: str) -> bool:
        if name.startswith("mapping.embed"):
            return self.c_dim > 0
        if ".skip." in name:
            return self.architecture == "resnet"
        if ".torgb." in name:
            return self.architecture == "skip" or name.startswith(f"synthesis.b{self.side}.")
        return name != "synthesis.b4.const" or self.head == "constant"


def _generator_tensors(
    conversion: Conversion, head: str | None, head_size: tuple[int, int] | None, no_pad: bool | None
) -> GeneratorTensors:
    """Infer the sizes of a generator, and note them in the report as arguments of ``Generator``."""
    channels = conversion.channels(lambda r: f"synthesis.b{r}.conv1.bias")
    affine = conversion.get("synthesis.b4.conv1.affine.weight", 2)
    head_channels, w_dim = affine.shape[0], affine.shape[-1]
    head = head_of(conversion, head_channels, head)
    resnet = conversion.has_any(".skip.")
    skip = not resnet and conversion.has_any(".torgb.", outside=f".b{conversion.side}.")
    architecture = "resnet" if resnet else "skip" if skip else "orig"
    first = conversion.get("mapping.fc0.weight", 2).shape[-1]
    img_channels = conversion.get(f"synthesis.b{conversion.side}.torgb.bias").numel()
    c_dim, embedded = conversion.label_sizes()
    conversion.report.settings |= {
        "size": conversion.side,
        "z_dim": first - embedded,
        "w_dim": w_dim,
        "c_dim": c_dim,
        **multiplier(channels),
        "mapping_layers": conversion.mapping_layers,
        "architecture": architecture,
        "head": head,
        "img_channels": img_channels,
    }
    height, width, border = sides(conversion, head, head_size, no_pad)
    return GeneratorTensors(
        conversion.side, channels, head, head_channels, (height, width), border, first - embedded, w_dim, c_dim,
        embedded, img_channels, architecture,
    )  # fmt: skip


class DiscriminatorTensors(NamedTuple):
    """Sizes that determine the shapes of a discriminator's tensors."""

    side: int
    channels: dict[int, int]  # at each side
    mbstd_channels: int
    features: int  # input of the first dense layer
    c_dim: int
    embedded: int  # size of the label's embedding
    img_channels: int
    resnet: bool
    skip: bool
    rebuilt: tuple[str, ...] = ()

    def shape(self, name: str) -> tuple[int, ...]:
        module, _, part = name.rpartition(".")
        outputs = self.embedded or 1
        if module.startswith("mapping"):
            return (outputs, self.c_dim if module == "mapping.embed" else outputs) if part == "weight" else (outputs,)
        block, _, layer = module.partition(".")
        r = int(block[1:])
        inputs = {"fromrgb": self.img_channels, "conv": self.channels[r] + self.mbstd_channels, "fc": self.features}
        i = inputs.get(layer, self.channels[r])
        o = self.channels[r // 2] if layer in ("conv1", "skip") else outputs if layer == "out" else self.channels[r]
        kernel = {"fc": (), "out": (), "fromrgb": (1, 1), "skip": (1, 1)}.get(layer, (3, 3))
        return (o, i, *kernel) if part == "weight" else (o,)

    def wants(self, name: str) -> bool:
        if name.startswith("mapping."):
            return self.c_dim > 0
        if ".skip." in name:
            return self.resnet
        return ".fromrgb." not in name or self.skip or name.startswith(f"b{self.side}.")


def _discriminator_tensors(
    conversion: Conversion, head_size: tuple[int, int] | None, adaptive_pool: bool | None
) -> DiscriminatorTensors:
    """Infer the sizes of a discriminator, and note them in the report as arguments of ``Discriminator``."""
    channels = conversion.channels(lambda r: f"b{r}.conv0.bias" if r > 4 else "b4.conv.bias")
    resnet = conversion.has_any(".skip.")
    skip = conversion.has_any(".fromrgb.", outside=f"b{conversion.side}.")
    mbstd_channels = conversion.get("b4.conv.weight", 4).shape[1] - channels[4]
    c_dim, embedded = conversion.label_sizes()
    features = conversion.get("b4.fc.weight", 2).shape[1]
    img_channels = conversion.get(f"b{conversion.side}.fromrgb.weight", 4).shape[1]
    if mbstd_channels < 0:
        source = conversion.sources["b4.conv.weight"]
        raise CheckpointError(f"{source}: expected {channels[4]} input channels or more")
    conversion.report.settings |= {
        "size": conversion.side,
        "c_dim": c_dim,
        **multiplier(channels),
        "architecture": "resnet" if resnet else "skip" if skip else "orig",
        "mbstd_num_channels": mbstd_channels,
        "img_channels": img_channels,
        **last_features(conversion, features, channels[4], head_size, adaptive_pool),
    } | ({"mapping_layers": conversion.mapping_layers} if c_dim else {})
    return DiscriminatorTensors(
        conversion.side, channels, mbstd_channels, features, c_dim, embedded, img_channels, resnet, skip
    )
