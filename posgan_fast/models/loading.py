"""Weights of StyleGAN2 networks, from the files of every family into this library's models."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from typing import Any

from ..ops.common import checks
from ..ops.common.activations import ACTIVATIONS
from .containers import Found, find
from .conversion import State, positive
from .convert import convert_discriminator, convert_generator
from .families import MAX_LOG2
from .files import read_checkpoint
from .opcodes import Unread
from .pickles import PickledModule
from .report import CheckpointError, LoadReport
from .stylegan2 import Discriminator, Generator

Source = str | os.PathLike | Mapping[str, Any] | Sequence[Any]


def load_generator(source: Source, family: str | None = None, *, ema: bool = True, **overrides: Any) -> Generator:
    """The generator in a file, in eval mode, with a ``LoadReport`` as its ``report``.

    The ``eps`` of demodulation joins sums over unscaled weights, as in NVlabs' and Hammer's code. The other families
    scale them first, which float32 shows beside styles near zero only.

    Args:
        source: a file, what ``read_checkpoint`` made of it, or a state dictionary; networks may lie in dictionaries,
            lists and tuples, and their names under prefixes and those of wrappers.
        family: "nvlabs", "rosinality", "mmgeneration", "hammer" (PadInv too) or "genforce"; None: told by the names.
        ema: take the averaged generator where the file has one (the report notes where it has none); False: the
            generator in training.
        overrides: arguments of ``Generator`` in place of the inferred ones, for what tensors do not tell:
            ``report.assumed`` lists that. What is given decides. ``head="spe"`` has no tensors, and must be given for a
            state dictionary of this library's own.

    Raises:
        UnsafeFileError: the file asks for code.
        CheckpointError: it is damaged, does not hold such a network, or its tensors contradict an argument.
        TypeError: an override that is no argument of ``Generator``.
    """
    checks.flag(ema, "ema")
    _check_overrides(overrides, Generator)
    found = find(_read(source), "generator", ema)
    facts, notes = _facts(found.module, "generator")
    known = facts | overrides
    told: dict[str, Any] = {name: overrides.get(name) for name in ("head", "head_size", "no_pad")}
    told["lr_multiplier"] = known.get("lr_multiplier", 0.01)
    told["mapping_activation"] = known.get("mapping_activation") or known.get("activation", "lrelu")
    state, report = convert_generator(found.state, family, **told)
    report.notes += notes
    return _built(state, report, found, facts, overrides)


def load_discriminator(source: Source, family: str | None = None, **overrides: Any) -> Discriminator:
    """The discriminator in a file; see ``load_generator``."""
    _check_overrides(overrides, Discriminator)
    found = find(_read(source), "discriminator", ema=False)
    facts, notes = _facts(found.module, "discriminator")
    told = {name: overrides.get(name) for name in ("head_size", "adaptive_pool")}
    state, report = convert_discriminator(found.state, family, **told)
    report.notes += notes
    return _built(state, report, found, facts, overrides)


def _check_overrides(overrides: Mapping[str, Any], network: type) -> None:
    accepted = ", ".join(inspect.signature(network).parameters)
    for name in overrides:
        if name not in accepted.split(", "):
            raise TypeError(f"{name}: expected an argument of {network.__name__}, one of {accepted}")


def _read(source: Source) -> Any:
    if isinstance(source, (Mapping, Unread, list, tuple)):
        return source
    if isinstance(source, (str, os.PathLike)):
        return read_checkpoint(source)
    raise TypeError(f"source: expected a path or a state dictionary, got {type(source).__name__}")


def _built(
    state: State, report: LoadReport, found: Found, facts: Mapping[str, Any], overrides: Mapping[str, Any]
) -> Any:
    """The model, made from the settings and filled strictly."""
    report.left |= found.left
    report.notes += found.notes
    for name, value in _untold(report).items() if found.module is None else ():
        report.assumed.setdefault(name, f"{value}; a state dictionary does not tell")
    told = {name: value for name, value in report.settings.items() if name not in report.assumed}
    report.settings |= {**facts, **overrides}
    report.assumed = {name: why for name, why in report.assumed.items() if name not in overrides}
    network = Generator if report.network == "generator" else Discriminator
    try:
        return _filled(network(**report.settings), state, report)
    except RuntimeError as error:
        against = [
            f"{name}: expected {told[name]!r}, which the tensors tell, got {value!r}"
            for name, value in overrides.items()
            if name in told and told[name] != value
        ]
        why = "; ".join(against) or f"the {report.network} does not fit into {network.__name__}: {error}"
        raise CheckpointError(why) from None


def _untold(report: LoadReport) -> dict[str, str]:
    """Name what no tensor tells: arguments and their defaults, in words."""
    settings, own = report.settings, report.family == "nvlabs"  # these names are this library's too
    values = {"conv_clamp": "None", "activation": '"lrelu"'}
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


def _filled(model: Any, state: State, report: LoadReport) -> Any:
    """The model with the tensors of ``state``; filters belong to the layers that resample, there or here."""
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


def _facts(module: PickledModule | None, network: str) -> tuple[dict[str, Any], list[str]]:
    """The arguments that a pickled module knows beyond its tensors, and notes on the rest."""
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
    blocks = {2**i: module.submodule(f"{'synthesis.' if generator else ''}b{2**i}") for i in range(2, MAX_LOG2 + 1)}
    half = [str(r) for r, block in blocks.items() if block is not None and block.attributes.get("use_fp16") is True]
    notes = [f"blocks of side {', '.join(half)} run in half precision there, in float32 here"] if half else []
    return facts, notes


def _group_size(value: Any, place: str) -> int | None:
    return None if value is None else checks.integer(value, place, minimum=1)


def _activation(value: Any, place: str) -> str:
    return checks.choice(value, place, tuple(ACTIVATIONS))
