"""Loading SinGAN, PGGAN and DCGAN from mmgeneration's files, whose names the networks here share."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ..ops.common import checks, encodings
from .containers import find
from .conversion import check_weight
from .dcgan import FIRST, DCGANDiscriminator, DCGANGenerator
from .exact import Tensors, build, check_overrides, plain_state
from .loading import Source, read_source
from .pggan import PGGANDiscriminator, PGGANGenerator
from .pickles import Array
from .report import CheckpointError, LoadReport
from .singan import SinGANDiscriminator, SinGANGenerator
from .stored_settings import only_tensors

Noises = str | os.PathLike | Mapping[str, Any] | Sequence[torch.Tensor] | None


def load_singan(
    source: Source,
    *,
    noises: Noises = None,
    noise_weights: Sequence[float] | None = None,
    encode: str | None = None,
    padding: str | None = None,
    pad_at: str | None = None,
    ema: bool = True,
    **overrides: Any,
) -> SinGANGenerator:
    """Load the SinGAN generator in a file, in eval mode and with a :class:`LoadReport` as its ``report``.

    The published generators come as two files: weights (.pth) and noises (.pkl). Nothing in either is run. No tensor
    tells the padding, nor which encoding adds to the noise of stage 0: ``report.assumed`` lists what was assumed.

    Args:
        source: a path, the result of :func:`read_checkpoint`, or a state dictionary; see :func:`load_generator`.
        noises: the .pkl beside the weights, its content, or one tensor [1, C, h, w] for each stage; None: those in
            ``source``, if it holds any. Without noises the generator makes images by its ``forward`` only.
        noise_weights: factors of the noises; None: those beside the noises.
        encode, padding, pad_at: arguments of :class:`SinGANGenerator`; without ``padding`` it is "zeros". Where
            ``encode`` is None and stage 0 reads other channels than those of an image, the encoding is inferred from
            their number: 2 is "csg".
        ema: as in :func:`load_generator`.
        overrides: further arguments of :class:`SinGANGenerator`, which replace inferred ones.

    Raises:
        UnsafeFileError: a file asks for code.
        CheckpointError: a file is damaged, does not hold such a network or such noises, or its tensors contradict an
            argument.
        TypeError, ValueError: a wrong argument, or noises of the wrong shape.

    Example:
        >>> state = SinGANGenerator(3, encode="csg", width=8).state_dict()  # or the path of a file
        >>> load_singan(state, noises=[torch.randn(1, 2, 9, 9)], noise_weights=[1.0]).reconstruct().shape
        torch.Size([1, 3, 9, 9])
    """
    if encode is not None:
        checks.choice(encode, "encode", encodings.KINDS)
    data = read_source(source)
    given = (
        dict(padding="zeros" if padding is None else padding, pad_at=pad_at)
        | ({} if encode is None else dict(encode=encode))
        | overrides
    )
    model = _load(data, SinGANGenerator, _singan_generator, given, ema)
    if padding is None:
        model.report.assumed["padding"] = '"zeros"; no tensor tells'
    if pad_at is None and model.padding in ("zeros", "reflect"):
        model.report.assumed["pad_at"] = f'"{model.pad_at}", as in the published generators; no tensor tells'
    stored, weights = _noises(data if noises is None else noises, noises is not None)
    weights = noise_weights if noise_weights is not None else weights
    if stored is not None:
        if weights is None:
            raise CheckpointError("noise_weights: expected one number for each noise, got none")
        model.store_noises(stored, weights)
    elif noise_weights is not None:
        raise CheckpointError("noise_weights: expected noises beside them, got none")
    return model


def load_singan_discriminator(source: Source, **overrides: Any) -> SinGANDiscriminator:
    """Load the SinGAN discriminator in a file; see :func:`load_singan`.

    Args:
        source: a path, the result of :func:`read_checkpoint`, or a state dictionary.
        overrides: arguments of :class:`SinGANDiscriminator` that replace inferred ones.

    Example:
        >>> load_singan_discriminator(SinGANDiscriminator(2, norm=False, width=8).state_dict()).report.settings["norm"]
        False
    """
    return _load(read_source(source), SinGANDiscriminator, _singan_discriminator, overrides)


def load_pggan(source: Source, *, ema: bool = True, **overrides: Any) -> PGGANGenerator:
    """Load the PGGAN generator in a file, in eval mode and with a :class:`LoadReport` as its ``report``.

    Args:
        source: a path, the result of :func:`read_checkpoint`, or a state dictionary; see :func:`load_generator`.
        ema: as in :func:`load_generator`.
        overrides: arguments of :class:`PGGANGenerator` that replace inferred ones. No tensor tells ``encode``.

    Raises:
        UnsafeFileError, CheckpointError: as in :func:`load_singan`.

    Example:
        >>> load_pggan(PGGANGenerator(8, z_dim=16, max_channels=16).state_dict()).report.settings["size"]
        8
    """
    return _load(read_source(source), PGGANGenerator, _pggan_generator, overrides, ema)


def load_pggan_discriminator(source: Source, **overrides: Any) -> PGGANDiscriminator:
    """Load the PGGAN discriminator in a file; see :func:`load_pggan`.

    Args:
        source: a path, the result of :func:`read_checkpoint`, or a state dictionary.
        overrides: arguments of :class:`PGGANDiscriminator` that replace inferred ones.

    Example:
        >>> load_pggan_discriminator(PGGANDiscriminator(8, max_channels=16).state_dict()).size
        8
    """
    return _load(read_source(source), PGGANDiscriminator, _pggan_discriminator, overrides)


def load_dcgan(source: Source, *, ema: bool = True, **overrides: Any) -> DCGANGenerator:
    """Load the DCGAN generator in a file, in eval mode and with a :class:`LoadReport` as its ``report``.

    Args:
        source: a path, the result of :func:`read_checkpoint`, or a state dictionary; see :func:`load_generator`.
        ema: as in :func:`load_generator`.
        overrides: arguments of :class:`DCGANGenerator` that replace inferred ones. No tensor tells ``encode``, nor
            ``no_pad`` where interpolation replaces the transposed convolutions.

    Raises:
        UnsafeFileError, CheckpointError: as in :func:`load_singan`.

    Example:
        >>> load_dcgan(DCGANGenerator(8, z_dim=16, base_channels=16).state_dict()).report.settings["base_channels"]
        16
    """
    return _load(read_source(source), DCGANGenerator, _dcgan_generator, overrides, ema)


def load_dcgan_discriminator(source: Source, **overrides: Any) -> DCGANDiscriminator:
    """Load the DCGAN discriminator in a file; see :func:`load_dcgan`.

    Args:
        source: a path, the result of :func:`read_checkpoint`, or a state dictionary.
        overrides: arguments of :class:`DCGANDiscriminator` that replace inferred ones.

    Example:
        >>> load_dcgan_discriminator(DCGANDiscriminator(8, base_channels=8).state_dict()).size
        8
    """
    return _load(read_source(source), DCGANDiscriminator, _dcgan_discriminator, overrides)


Infer = Callable[[Tensors, LoadReport, Mapping[str, Any]], dict[str, Any]]
_PLACEHOLDER = "head_position_encode._float_tensor"


def _load(data: Any, network: type, infer: Infer, overrides: Mapping[str, Any], ema: bool = False) -> Any:
    """Find the network of a class in ``data``, build it and load every tensor."""
    check_overrides(overrides, network)
    checks.flag(ema, "ema")
    kind = network.__name__.replace("Generator", " generator").replace("Discriminator", " discriminator")
    found = find(data, kind, ema)
    report = LoadReport("mmgeneration", kind, left=dict(found.left), notes=list(found.notes))
    report.notes += [] if found.module is None else [only_tensors(found.module)]
    report.notes.append("weights trained with mmgeneration make BGR images")
    state = plain_state({name: value for name, value in found.state.items() if name != _PLACEHOLDER})
    if _PLACEHOLDER in found.state:
        report.left[_PLACEHOLDER] = "remembers a device and a dtype, its value was never set"
    inferred = infer(Tensors(state), report, overrides)
    for name in ("layout", "div_half_dim"):
        if inferred.get("encode", overrides.get("encode")) == "spe" and name not in overrides:
            report.assumed[name] = f"{inspect.signature(network).parameters[name].default!r}; no tensor tells"
    return build(network, state, inferred, overrides, report)


# Settings, told by the shapes of tensors


def _singan_generator(tensors: Tensors, report: LoadReport, given: Mapping[str, Any]) -> dict[str, Any]:
    settings = _singan(tensors)
    channels = tensors.shape("blocks.0.tail.conv.weight", 4)[0]
    first = tensors.shape("blocks.0.head.conv.weight", 4)[1]
    encode = given.get("encode")
    if encode is None and first != channels:
        encode = "csg" if first == 2 else "spe"
        report.assumed["encode"] = f"{encode!r}: stage 0 reads {first} channels; no tensor tells"
    expected = {None: first == channels, "csg": first == 2, "spe": first % 4 == 0}
    if not expected.get(encode, True):
        number = {None: channels, "csg": 2}.get(encode, "a multiple of 4")
        raise CheckpointError(
            f"blocks.0.head.conv.weight: expected {number} input channels with encode={encode!r}, got {first}"
        )
    return (
        settings | dict(channels=channels, encode=encode) | (dict(encoding_channels=first) if encode == "spe" else {})
    )


def _singan_discriminator(tensors: Tensors, report: LoadReport, given: Mapping[str, Any]) -> dict[str, Any]:
    outputs = tensors.shape("blocks.0.tail.conv.weight", 4)[0]
    if outputs != 1:
        raise CheckpointError(f"blocks.0.tail.conv.weight: expected 1 output channel, got {outputs}, as in a generator")
    channels = tensors.shape("blocks.0.head.conv.weight", 4)[1]
    return _singan(tensors) | dict(channels=channels, norm="blocks.0.head.bn.weight" in tensors.state)


def _singan(tensors: Tensors) -> dict[str, Any]:
    name = "blocks.{i}.tail.conv.weight"
    stages = tensors.count(name)
    widths = [tensors.shape(name.format(i=i), 4)[1] for i in range(stages)]
    return dict(stages=stages, width=widths[0], max_width=max(widths[0], 128) if stages < 5 else max(widths))


def _pggan_generator(tensors: Tensors, report: LoadReport, given: Mapping[str, Any]) -> dict[str, Any]:
    rows, z_dim = tensors.shape("noise2feat.linear.weight_orig", 2)
    channels = tensors.shape("noise2feat.bias", 4)[1]
    report.assumed["encode"] = "None; no tensor tells"
    return dict(z_dim=z_dim, no_pad=rows == channels * (FIRST + 2) ** 2) | _pggan(tensors, "torgb_layers", 1)


def _pggan_discriminator(tensors: Tensors, report: LoadReport, given: Mapping[str, Any]) -> dict[str, Any]:
    channels = tensors.shape("fromrgb_layers.0.conv.weight_orig", 4)[1]
    decision = tensors.shape("decision.linear0.weight_orig", 2)[0]
    return dict(channels=channels) | _pggan(tensors, "fromrgb_layers", 0, {FIRST // 2: decision})


def _pggan(tensors: Tensors, layers: str, axis: int, before: Mapping[int, int] | None = None) -> dict[str, Any]:
    """Infer the sides and widths from one layer a side; ``before``: widths at smaller sides."""
    name = layers + ".{i}.conv.weight_orig"
    widths = dict(before or {})
    widths |= {FIRST * 2**i: tensors.shape(name.format(i=i), 4)[axis] for i in range(tensors.count(name))}
    most = max(widths.values(), default=1)
    base = max((r * c // 2 for r, c in widths.items()), default=1)
    if len(set(widths.values())) == 1:
        base = max(base, 8192)  # every width is the greatest, and the default is as good as any
    return dict(size=max(widths, default=FIRST), base_channels=base, max_channels=most)


def _dcgan_generator(tensors: Tensors, report: LoadReport, given: Mapping[str, Any]) -> dict[str, Any]:
    z_dim, width = tensors.shape("noise2feat.conv.weight", 4)[:2]
    report.assumed["encode"] = "None; no tensor tells"
    deconv2conv = tensors.shape("output_layer.conv.weight", 4)[2] == 3
    if deconv2conv:
        report.assumed["no_pad"] = "True; no tensor tells"
    return dict(
        size=2 * FIRST * 2 ** tensors.count("upsampling.{i}.conv.weight"),
        z_dim=z_dim,
        base_channels=width,
        channels=tensors.shape("output_layer.conv.bias", 1)[0],
        deconv2conv=deconv2conv,
        no_pad=deconv2conv,
    )


def _dcgan_discriminator(tensors: Tensors, report: LoadReport, given: Mapping[str, Any]) -> dict[str, Any]:
    width, channels = tensors.shape("downsamples.0.conv.weight", 4)[:2]
    outputs = tensors.shape("output_layer.conv.weight", 4)[0]
    size = FIRST * 2 ** tensors.count("downsamples.{i}.conv.weight")
    return dict(size=size, out_channels=outputs, base_channels=width, channels=channels)


def _noises(data: Any, required: bool) -> tuple[list[torch.Tensor] | None, Sequence[float] | None]:
    """Return the noises in ``data`` and their weights, if it holds any."""
    if required and not isinstance(data, Mapping) and not (isinstance(data, Sequence) and not isinstance(data, str)):
        data = read_source(data)
    weights = None
    if isinstance(data, Mapping):
        if "fixed_noises" not in data:
            if required:
                raise CheckpointError("noises: expected the entries fixed_noises and noise_weights")
            return None, None
        data, weights = data["fixed_noises"], data.get("noise_weights")
    elif not required:
        return None, None
    if not isinstance(data, Sequence) or isinstance(data, str):
        raise CheckpointError(f"noises: expected a list of arrays, got {type(data).__name__}")
    found = []
    for t, value in enumerate(data):
        value = value.tensor() if isinstance(value, Array) else value
        check_weight(f"noises[{t}]", value)
        found.append(value)
    if weights is not None and not (isinstance(weights, Sequence) and all(_is_number(w) for w in weights)):
        raise CheckpointError("noise_weights: expected a list of numbers")
    return found, weights


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
