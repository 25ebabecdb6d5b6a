"""Loading the weights of every family into this library's StyleGAN2 networks."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..ops.common import checks
from ..ops.common.activations import ACTIVATIONS
from .containers import Found, find, is_run
from .conversion import State, positive
from .convert import convert_discriminator, convert_generator
from .exact import check_overrides
from .families import MAX_LOG2
from .files import read_checkpoint
from .opcodes import Unread
from .pickles import PickledModule
from .precision import Precision
from .report import CheckpointError, LoadReport
from .stylegan2 import Discriminator, Generator

Source = str | os.PathLike | Mapping[str, Any] | Sequence[Any]


def load_generator(source: Source, family: str | None = None, *, ema: bool = True, **overrides: Any) -> Generator:
    """Load the generator in a file, in eval mode and with a :class:`LoadReport` as its ``report``.

    Demodulation adds ``eps`` to sums over unscaled weights, as NVlabs and Hammer do. The other families scale the
    weights first; in float32 the difference shows only for styles near zero.

    Args:
        source: a path, the result of :func:`read_checkpoint`, or a state dictionary. The network may lie inside
            dictionaries, lists and tuples, and its names may have prefixes, such as those of wrappers.
        family: "nvlabs", "rosinality", "mmgeneration", "hammer" (PadInv too) or "genforce"; None: inferred from the
            names.
        ema: True takes the averaged generator, or the one in training if there is no other, which the report notes;
            False takes the one in training.
        overrides: arguments of ``Generator`` that replace inferred ones and those that NVlabs' pickles store.
            ``report.assumed`` lists the arguments that no tensor tells. A state dictionary of this library whose head
            is "spe" needs ``head="spe"``, since that head has no tensors. A pickle of NVlabs' training stores
            ``num_fp16_res`` too, usually 4, and the network runs so off the CPU; ``num_fp16_res=0`` loads it for
            float32 everywhere.

    Raises:
        UnsafeFileError: the file asks for code.
        CheckpointError: the file is damaged, does not hold such a network, or its tensors contradict an argument.
        TypeError: an override is no argument of ``Generator``.

    Example:
        >>> weights = Generator(8, w_dim=16, channel_max=8, mapping_layers=1).state_dict()  # or the path of a file
        >>> generator = load_generator(weights)
        >>> generator.report.family, generator.report.settings["size"]
        ('nvlabs', 8)
    """
    checks.flag(ema, "ema")
    check_overrides(overrides, Generator)
    found = find(read_source(source), "generator", ema)
    facts, notes = _facts(found.module, "generator", overrides)
    known = facts | overrides
    arguments: dict[str, Any] = {name: overrides.get(name) for name in ("head", "head_size", "no_pad")}
    arguments["lr_multiplier"] = known.get("lr_multiplier", 0.01)
    arguments["mapping_activation"] = known.get("mapping_activation") or known.get("activation", "lrelu")
    state, report = convert_generator(found.state, family, **arguments)
    report.notes += notes
    return _build(state, report, found, facts, overrides)


def load_discriminator(source: Source, family: str | None = None, **overrides: Any) -> Discriminator:
    """Load the discriminator in a file; see :func:`load_generator`.

    Args:
        source: a path, the result of :func:`read_checkpoint`, or a state dictionary.
        family: as in :func:`load_generator`.
        overrides: arguments of ``Discriminator`` that replace inferred ones.

    Example:
        >>> weights = Discriminator(8, channel_max=8).state_dict()  # or the path of a file
        >>> load_discriminator(weights).report.assumed["mbstd_group_size"]
        '4; a state dictionary does not tell'
    """
    check_overrides(overrides, Discriminator)
    found = find(read_source(source), "discriminator", ema=False)
    facts, notes = _facts(found.module, "discriminator", overrides)
    arguments = {name: overrides.get(name) for name in ("head_size", "adaptive_pool")}
    state, report = convert_discriminator(found.state, family, **arguments)
    report.notes += notes
    return _build(state, report, found, facts, overrides)


def read_source(source: Source) -> Any:
    """Return the objects in a file, or ``source`` itself if it is no path."""
    if not isinstance(source, (Mapping, Unread, list, tuple, str, os.PathLike)):
        raise TypeError(f"source: expected a path or a state dictionary, got {type(source).__name__}")
    data = read_checkpoint(source) if isinstance(source, (str, os.PathLike)) else source
    if is_run(data):
        holder = (
            "load_trained_encoder(path, generator) has its encoder"
            if data["recipe"] == "padinv"
            else "load_sampler(path).generator has its generator"
        )
        raise CheckpointError(
            f"a checkpoint of posgan-fast train; posgan_fast.recipes.{holder}, "
            "and posgan_fast.recipes.load(path)['models'] all states"
        )
    return data


def _build(
    state: State, report: LoadReport, found: Found, facts: Mapping[str, Any], overrides: Mapping[str, Any]
) -> Any:
    """Build the model from the settings, and load every tensor into it."""
    report.left |= found.left
    report.notes += found.notes
    for name, value in _untold(report).items() if found.module is None else ():
        report.assumed.setdefault(name, f"{value}; a state dictionary does not tell")
    inferred = {name: value for name, value in report.settings.items() if name not in report.assumed}
    report.settings |= {**facts, **overrides}
    report.assumed = {name: why for name, why in report.assumed.items() if name not in overrides}
    network = Generator if report.network == "generator" else Discriminator
    try:
        return _fill(network(**report.settings), state, report)
    except RuntimeError as error:
        against = [
            f"{name}: expected {inferred[name]!r}, which the tensors tell, got {value!r}"
            for name, value in overrides.items()
            if name in inferred and inferred[name] != value
        ]
        why = "; ".join(against) or f"the {report.network} does not fit into {network.__name__}: {error}"
        raise CheckpointError(why) from None


def _untold(report: LoadReport) -> dict[str, str]:
    """List the arguments that no tensor tells, with their defaults in words."""
    settings, own = report.settings, report.family == "nvlabs"  # this library's state has NVlabs' names
    values = {"conv_clamp": "None", "num_fp16_res": "0", "activation": '"lrelu"'}
    if report.network == "generator" or settings["c_dim"]:
        values |= {"mapping_activation": "that of the convolutions", "lr_multiplier": "0.01"}
    if report.network == "discriminator":
        return values | {"mbstd_group_size": "4"}
    if own and not settings.get("no_pad"):
        values["up_after_conv"] = "None"
    if settings["head"] != "constant":
        values["layout"] = '"mmgen"'
    if settings["head"] == "spe":
        values["div_half_dim"] = "False"
    return values


def _fill(model: Any, state: State, report: LoadReport) -> Any:
    """Load ``state``; filters may differ, because families keep them in different layers."""
    own = model.state_dict()
    for name in [name for name in state if name.endswith("resample_filter") and name not in own]:
        report.left[name] = "the layer does not resample, and keeps no filter here"
        del state[name]
    for name in [name for name in own if name.endswith("resample_filter") and name not in state]:
        report.filled[name] = "the model's own filter"
        state[name] = own[name]
    model.load_state_dict(state, strict=True)
    model.report = report
    return model.eval()


def _facts(
    module: PickledModule | None, network: str, overrides: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Read the arguments that a pickled module stores beside its tensors; return them and notes."""
    if module is None:
        return {}, []
    generator = network == "generator"
    facts: dict[str, Any] = {}
    conv = "synthesis.b4.conv1" if generator else "b4.conv"
    for argument, path, name, check in (
        ("conv_clamp", conv, "conv_clamp", checks.bound),
        ("mbstd_group_size", "b4.mbstd", "group_size", _group_size),
        ("activation", conv, "activation", _activation),
        ("mapping_activation", "mapping.fc0", "activation", _activation),
        ("lr_multiplier", "mapping.fc0", "bias_gain", positive),
    ):
        layer, place = module.submodule(path), f"{path}.{name}"
        if layer is None or (name not in layer.attributes and name not in ("conv_clamp", "group_size")):
            continue
        try:
            facts[argument] = check(layer.attributes.get(name), place)
        except (TypeError, ValueError, OverflowError) as error:
            raise CheckpointError(str(error) if place in str(error) else f"{place}: {error}") from None
    half, notes = _half_precision(module, generator)
    return facts | half, [] if "num_fp16_res" in overrides else notes


def _half_precision(module: PickledModule, generator: bool) -> tuple[dict[str, int], list[str]]:
    """Read ``num_fp16_res``, which the blocks decide: training scripts may have changed them after the constructor."""
    inner = module.submodule("synthesis") if generator else module
    number = _stored_number(module, inner) if inner is not None else None
    blocks = {2**i: None if inner is None else inner.submodule(f"b{2**i}") for i in range(2, MAX_LOG2 + 1)}
    flags = {r: block.attributes.get("use_fp16") for r, block in blocks.items() if block is not None}
    half = [r for r, flag in flags.items() if flag is True]
    if set(flags.values()) == {None}:  # no block tells
        return ({} if number is None else {"num_fp16_res": number}), []
    if half != sorted(flags)[len(flags) - len(half) :] or 4 in half:
        sides = ", ".join(map(str, half))
        return {}, [f"blocks of side {sides} run in half precision there, in float32 here: they are not the highest"]
    stored = [r for r in flags if Precision(number or 0, torch.float16).of_block(r, max(flags)) == torch.float16]
    if number is None or stored != half:
        number = len(half)
    sides = ", ".join(map(str, half))
    note = f"blocks of side {sides} run in float16 off the CPU, as there, and with num_fp16_res=0 in float32"
    return {"num_fp16_res": number}, [note] if half else []


def _stored_number(module: PickledModule, inner: PickledModule) -> int | None:
    """Return ``num_fp16_res`` as a constructor stored it, or None."""
    for owner in dict.fromkeys((inner, module)):
        given = owner.attributes.get("_init_kwargs")
        given = given if isinstance(given, dict) else {}
        synthesis = given.get("synthesis_kwargs")
        for values in (owner.attributes, given, synthesis if isinstance(synthesis, dict) else {}):
            if "num_fp16_res" in values:
                try:
                    return checks.integer(values["num_fp16_res"], "num_fp16_res", minimum=0)
                except (TypeError, ValueError) as error:
                    raise CheckpointError(str(error)) from None
    return None


def _group_size(value: Any, place: str) -> int | None:
    return None if value is None else checks.integer(value, place, minimum=1)


def _activation(value: Any, place: str) -> str:
    return checks.choice(value, place, tuple(ACTIVATIONS))
