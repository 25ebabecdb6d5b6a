"""Loading the weights of every family into this library's StyleGAN2 networks."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from ..ops.common import checks
from .containers import Found, find, is_run
from .conversion import State
from .convert import convert_discriminator, convert_generator
from .exact import check_overrides
from .files import read_checkpoint
from .opcodes import Unread
from .report import CheckpointError, LoadReport
from .stored_settings import silent_about_settings, stored_settings
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
        overrides: arguments of ``Generator`` that replace inferred ones and those that whole modules store.
            ``report.assumed`` lists the arguments that no tensor tells. A state dictionary of this library whose head
            is "spe" needs ``head="spe"``, since that head has no tensors. A whole network of this library in a file of
            ``torch.save`` stores all arguments. A pickle of NVlabs' training stores ``num_fp16_res`` too, usually 4,
            and the network runs so off the CPU; ``num_fp16_res=0`` loads it for float32 everywhere.

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
    facts, notes = stored_settings(found.module, "generator", overrides)
    known = facts | overrides
    arguments: dict[str, Any] = {name: known.get(name) for name in ("head", "head_size", "no_pad")}
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
    facts, notes = stored_settings(found.module, "discriminator", overrides)
    known = facts | overrides
    arguments = {name: known.get(name) for name in ("head_size", "adaptive_pool")}
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
    silent = silent_about_settings(found.module)
    for name, value in _untold(report).items() if silent else ():
        report.assumed.setdefault(name, f"{value}; {silent}")
    inferred = {name: value for name, value in report.settings.items() if name not in report.assumed}
    told = {**facts, **overrides}
    report.settings |= told
    report.assumed = {name: why for name, why in report.assumed.items() if name not in told}
    network = Generator if report.network == "generator" else Discriminator
    try:
        model = _fill(network(**report.settings), state, report)
    except (TypeError, ValueError) as error:
        if overrides:
            raise
        raise CheckpointError(str(error)) from None  # settings in the file do not go together
    except RuntimeError as error:
        against = [
            f"{name}: expected {inferred[name]!r}, which the tensors tell, got {value!r}"
            for name, value in overrides.items()
            if name in inferred and inferred[name] != value
        ]
        why = "; ".join(against) or f"the {report.network} does not fit into {network.__name__}: {error}"
        raise CheckpointError(why) from None
    if silent and model.num_fp16_res and "half_dtype" not in report.settings:
        report.assumed["half_dtype"] = f"{model.half_dtype}; {silent}"
    return model


def _untold(report: LoadReport) -> dict[str, str]:
    """List the arguments that no tensor tells, with their defaults in words."""
    settings, own = report.settings, report.family == "nvlabs"  # this library's state has NVlabs' names
    values = {"conv_clamp": "None", "num_fp16_res": "0", "activation": '"lrelu"'}
    if report.network == "generator" or settings["c_dim"]:
        values |= {"mapping_activation": "that of the convolutions", "lr_multiplier": "0.01"}
    if report.network == "discriminator":
        return values | ({"mbstd_group_size": "4"} if settings["mbstd_num_channels"] else {})
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
