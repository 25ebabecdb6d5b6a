"""Tables of the names that each family of StyleGAN2 code gives its tensors.

A table maps the name in NVlabs' stylegan2-ada-pytorch, which is also the name in ``stylegan2.py``, to the name in the
family. Both are templates over these numbers:

    generator      b = 1, 2, ... for the blocks of side r = 8, 16, ...; up = 2b-2, odd = 2b-1, even = 2b, below = b-1
    discriminator  d = 0, 1, ... for the blocks of side r = R, R/2, ..., 8; next = d+1, even = 2d, odd = 2d+1;
                   depth = their number, last = 2*depth, fc = 2*depth+1, out = 2*depth+2
    both           j = 0, 1, ... for the layers of the mapping, next_j = j+1
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

_LAYER = ("weight", "bias", "affine.weight", "affine.bias", "noise_strength")
_RGB = ("weight", "bias", "affine.weight", "affine.bias")


@dataclass(frozen=True)
class Family:
    """The tables of a family, and the ways in which its values differ from NVlabs'."""

    generator: Mapping[str, str]
    discriminator: Mapping[str, str]
    generator_filter_sum: float = 1.0  # sum of a FIR buffer: 4 where it includes the gain of upsampling
    affine_plus: float = 0.0  # added to styles at run time, where NVlabs stores it in the bias
    flipped_up: bool = False  # kernels of upsampling convolutions are stored mirrored
    mirrored_filters: bool = False  # FIR buffers are correlated, where NVlabs convolves
    placeholders: Mapping[str, str] = field(default_factory=dict)  # name: reason why it holds nothing
    note: str = ""


def _module(source: str, name: str, parts: Mapping[str, str]) -> dict[str, str]:
    """Map the tensors of NVlabs' module ``name`` to those of the family's module ``source``."""
    return {f"{name}.{ours}": f"{source}.{theirs}" for ours, theirs in parts.items()}


def _same(prefix: str, parts: tuple[str, ...]) -> dict[str, str]:
    return _module(prefix, prefix, {part: part for part in parts})


_NVLABS = Family(
    generator={
        **_same("mapping.embed", ("weight", "bias")),
        **_same("mapping.fc{j}", ("weight", "bias")),
        **_same("mapping", ("w_avg",)),
        **_same("synthesis.b4", ("const", "resample_filter")),
        **_same("synthesis.b4.conv1", (*_LAYER, "noise_const", "resample_filter")),
        **_same("synthesis.b4.torgb", _RGB),
        **_same("synthesis.b{r}", ("resample_filter",)),
        **_same("synthesis.b{r}.skip", ("weight", "resample_filter")),
        **_same("synthesis.b{r}.conv0", (*_LAYER, "noise_const", "resample_filter")),
        **_same("synthesis.b{r}.conv1", (*_LAYER, "noise_const", "resample_filter")),
        **_same("synthesis.b{r}.torgb", _RGB),
    },
    discriminator={
        **_same("mapping.embed", ("weight", "bias")),
        **_same("mapping.fc{j}", ("weight", "bias")),
        **_same("b{r}", ("resample_filter",)),
        **_same("b{r}.fromrgb", ("weight", "bias", "resample_filter")),
        **_same("b{r}.conv0", ("weight", "bias", "resample_filter")),
        **_same("b{r}.conv1", ("weight", "bias", "resample_filter")),
        **_same("b{r}.skip", ("weight", "resample_filter")),
        **_same("b4.fromrgb", ("weight", "bias", "resample_filter")),
        **_same("b4.conv", ("weight", "bias", "resample_filter")),
        **_same("b4.fc", ("weight", "bias")),
        **_same("b4.out", ("weight", "bias")),
    },
)

_ROS_RGB = {"weight": "conv.weight", "bias": "bias"}
_ROS_RGB |= {"affine.weight": "conv.modulation.weight", "affine.bias": "conv.modulation.bias"}
_ROS_LAYER = {**_ROS_RGB, "bias": "activate.bias", "noise_strength": "noise.weight"}

_ROSINALITY = Family(
    generator={
        **_module("style.{next_j}", "mapping.fc{j}", {"weight": "weight", "bias": "bias"}),
        "mapping.w_avg": "latent_avg",  # beside the network in the file
        "synthesis.b4.const": "input.input",
        **_module("conv1", "synthesis.b4.conv1", _ROS_LAYER),
        "synthesis.b4.conv1.noise_const": "noises.noise_0",
        **_module("to_rgb1", "synthesis.b4.torgb", _ROS_RGB),
        "synthesis.b{r}.resample_filter": "to_rgbs.{below}.upsample.kernel",
        **_module("convs.{up}", "synthesis.b{r}.conv0", {**_ROS_LAYER, "resample_filter": "conv.blur.kernel"}),
        "synthesis.b{r}.conv0.noise_const": "noises.noise_{odd}",
        **_module("convs.{odd}", "synthesis.b{r}.conv1", _ROS_LAYER),
        "synthesis.b{r}.conv1.noise_const": "noises.noise_{even}",
        **_module("to_rgbs.{below}", "synthesis.b{r}.torgb", _ROS_RGB),
    },
    discriminator={
        "b{R}.fromrgb.weight": "convs.0.0.weight",
        "b{R}.fromrgb.bias": "convs.0.1.bias",
        "b{r}.conv0.weight": "convs.{next}.conv1.0.weight",
        "b{r}.conv0.bias": "convs.{next}.conv1.1.bias",
        "b{r}.conv1.resample_filter": "convs.{next}.conv2.0.kernel",
        "b{r}.conv1.weight": "convs.{next}.conv2.1.weight",
        "b{r}.conv1.bias": "convs.{next}.conv2.2.bias",
        "b{r}.skip.resample_filter": "convs.{next}.skip.0.kernel",
        "b{r}.skip.weight": "convs.{next}.skip.1.weight",
        "b4.conv.weight": "final_conv.0.weight",
        "b4.conv.bias": "final_conv.1.bias",
        **_module("final_linear.0", "b4.fc", {"weight": "weight", "bias": "bias"}),
        **_module("final_linear.1", "b4.out", {"weight": "weight", "bias": "bias"}),
    },
    generator_filter_sum=4.0,
)

_MMG_RGB = {"weight": "conv.weight_orig", "bias": "bias"}
_MMG_RGB |= {"affine.weight": "conv.style_modulation.linear.weight_orig"}
_MMG_RGB |= {"affine.bias": "conv.style_modulation.bias"}
_MMG_LAYER = {**_MMG_RGB, "bias": "activate.bias", "noise_strength": "noise_injector.weight"}
_MMG_LINEAR = {"weight": "linear.weight_orig", "bias": "bias"}

_MMGENERATION = Family(
    generator={
        **_module("style_mapping.{next_j}", "mapping.fc{j}", _MMG_LINEAR),
        "synthesis.b4.const": "constant_input.input",
        **_module("conv1", "synthesis.b4.conv1", _MMG_LAYER),
        "synthesis.b4.conv1.noise_const": "injected_noise_0",
        **_module("to_rgb1", "synthesis.b4.torgb", _MMG_RGB),
        "synthesis.b{r}.resample_filter": "to_rgbs.{below}.upsample.kernel",
        **_module("convs.{up}", "synthesis.b{r}.conv0", {**_MMG_LAYER, "resample_filter": "conv.blur.kernel"}),
        "synthesis.b{r}.conv0.noise_const": "injected_noise_{odd}",
        **_module("convs.{odd}", "synthesis.b{r}.conv1", _MMG_LAYER),
        "synthesis.b{r}.conv1.noise_const": "injected_noise_{even}",
        **_module("to_rgbs.{below}", "synthesis.b{r}.torgb", _MMG_RGB),
    },
    discriminator={
        "b{R}.fromrgb.weight": "convs.0.0.conv.weight_orig",
        "b{R}.fromrgb.bias": "convs.0.1.bias",
        "b{r}.conv0.weight": "convs.{next}.conv1.0.conv.weight_orig",
        "b{r}.conv0.bias": "convs.{next}.conv1.1.bias",
        "b{r}.conv1.resample_filter": "convs.{next}.conv2.0.kernel",
        "b{r}.conv1.weight": "convs.{next}.conv2.1.conv.weight_orig",
        "b{r}.conv1.bias": "convs.{next}.conv2.2.bias",
        "b{r}.skip.resample_filter": "convs.{next}.skip.0.kernel",
        "b{r}.skip.weight": "convs.{next}.skip.1.conv.weight_orig",
        "b4.conv.weight": "final_conv.0.conv.weight_orig",
        "b4.conv.bias": "final_conv.1.bias",
        **_module("final_linear.0", "b4.fc", _MMG_LINEAR),
        **_module("final_linear.1", "b4.out", _MMG_LINEAR),
    },
    generator_filter_sum=4.0,
    placeholders={"head_pos_enc._float_tensor": "remembers a device and a dtype, its value was never set"},
    note="weights trained with mmgeneration make BGR images; official ones converted for it make RGB",
)

_HAMMER_RGB = {"weight": "weight", "bias": "bias", "affine.weight": "style.weight", "affine.bias": "style.bias"}
_HAMMER_LAYER = {**_HAMMER_RGB, "noise_strength": "noise_strength", "noise_const": "noise"}
_WEIGHT_BIAS = {"weight": "weight", "bias": "bias"}

_HAMMER = Family(
    generator={
        **_module("mapping.embedding", "mapping.embed", _WEIGHT_BIAS),
        **_module("mapping.dense{j}", "mapping.fc{j}", _WEIGHT_BIAS),
        "mapping.w_avg": "w_avg",
        "synthesis.b4.const": "synthesis.early_layer.const",
        **_module("synthesis.layer0", "synthesis.b4.conv1", _HAMMER_LAYER),
        **_module("synthesis.output0", "synthesis.b4.torgb", _HAMMER_RGB),
        "synthesis.b{r}.resample_filter": "synthesis.filter",
        **_module("synthesis.residual{b}", "synthesis.b{r}.skip", {"weight": "weight", "resample_filter": "filter"}),
        **_module("synthesis.layer{odd}", "synthesis.b{r}.conv0", {**_HAMMER_LAYER, "resample_filter": "filter"}),
        **_module("synthesis.layer{even}", "synthesis.b{r}.conv1", _HAMMER_LAYER),
        **_module("synthesis.output{b}", "synthesis.b{r}.torgb", _HAMMER_RGB),
    },
    discriminator={
        **_module("embedding", "mapping.embed", _WEIGHT_BIAS),
        **_module("mapping{j}", "mapping.fc{j}", _WEIGHT_BIAS),
        "b{r}.resample_filter": "filter",
        **_module("input{d}", "b{r}.fromrgb", _WEIGHT_BIAS),
        **_module("layer{even}", "b{r}.conv0", _WEIGHT_BIAS),
        **_module("layer{odd}", "b{r}.conv1", {**_WEIGHT_BIAS, "resample_filter": "filter"}),
        **_module("residual{d}", "b{r}.skip", {"weight": "weight", "resample_filter": "filter"}),
        **_module("input{depth}", "b4.fromrgb", _WEIGHT_BIAS),
        **_module("layer{last}", "b4.conv", _WEIGHT_BIAS),
        **_module("layer{fc}", "b4.fc", _WEIGHT_BIAS),
        **_module("output", "b4.out", _WEIGHT_BIAS),
    },
)

_GENFORCE = Family(
    generator={
        **{ours: theirs for ours, theirs in _HAMMER.generator.items() if "embed" not in ours and ".skip." not in ours},
        "mapping.w_avg": "truncation.w_avg",
        "synthesis.b{r}.resample_filter": "synthesis.upsample.kernel",
        "synthesis.b{r}.conv0.resample_filter": "synthesis.layer{odd}.filter.kernel",
    },
    discriminator={
        "b{r}.resample_filter": "downsample.kernel",
        **_module("input{d}", "b{r}.fromrgb", _WEIGHT_BIAS),
        **_module("layer{even}", "b{r}.conv0", _WEIGHT_BIAS),
        **_module("layer{odd}", "b{r}.conv1", {**_WEIGHT_BIAS, "resample_filter": "filter.kernel"}),
        **_module("skip_layer{d}", "b{r}.skip", {"weight": "weight", "resample_filter": "filter.kernel"}),
        **_module("input{depth}", "b4.fromrgb", _WEIGHT_BIAS),
        **_module("layer{last}", "b4.conv", _WEIGHT_BIAS),
        **_module("layer{fc}", "b4.fc", _WEIGHT_BIAS),
        **_module("layer{out}", "b4.out", _WEIGHT_BIAS),
    },
    generator_filter_sum=4.0,
    affine_plus=1.0,
    flipped_up=True,
    mirrored_filters=True,
)

FAMILIES: dict[str, Family] = {
    "nvlabs": _NVLABS,
    "rosinality": _ROSINALITY,
    "mmgeneration": _MMGENERATION,
    "hammer": _HAMMER,
    "genforce": _GENFORCE,
}
MAX_LOG2 = 11  # sides up to 2048


def expand(table: Mapping[str, str], network: str, log2: int, mapping_layers: int) -> dict[str, str]:
    """Fill in a table for images of side ``2 ** log2``; maps NVlabs' names to the family's."""
    blocks = list(_blocks(network, log2))
    layers = [{"j": j, "next_j": j + 1} for j in range(mapping_layers)]
    always = {"R": 2**log2, "depth": log2 - 2, "last": 2 * log2 - 4, "fc": 2 * log2 - 3, "out": 2 * log2 - 2}
    names = {}
    for name, source in table.items():
        for numbers in layers if "{j}" in name else blocks if "{r}" in name else [{}]:
            names[name.format(**always, **numbers)] = source.format(**always, **numbers)
    return names


def _blocks(network: str, log2: int) -> Iterator[dict[str, int]]:
    for index in range(log2 - 2):
        if network == "generator":
            b = index + 1
            yield {"r": 4 * 2**b, "b": b, "up": 2 * b - 2, "odd": 2 * b - 1, "even": 2 * b, "below": b - 1}
        else:
            yield {"r": 2 ** (log2 - index), "d": index, "next": index + 1, "even": 2 * index, "odd": 2 * index + 1}
