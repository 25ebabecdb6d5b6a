"""Loading encoders: PadInv's and pSp's, whole, or the backbone alone, which ArcFace has too."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from .containers import find
from .conversion import State, family_of
from .exact import Tensors, build, check_overrides, differences, listed, plain_state
from .loading import Source, read_source
from .padinv import BLOCKS, TOP, PadInvEncoder
from .report import CheckpointError, LoadReport
from .stored_settings import only_tensors
from .stylegan2 import Generator

_BODY = re.compile(r"^body\.(\d{1,3})\.")
_HEADS = {  # pSp's names, and PadInv's
    "styles.": "latent_heads.",
    "latlayer2.": "fpn.lateral_layers.0.",
    "latlayer1.": "fpn.lateral_layers.1.",
}


def load_encoder(
    source: Source, *, latent_average: torch.Tensor | Generator | None = None, **overrides: Any
) -> PadInvEncoder:
    """Load the encoder in a file, in eval mode and with a :class:`LoadReport` as its ``report``.

    Args:
        source: a path, the result of :func:`read_checkpoint`, or a state dictionary: PadInv's, pSp's or this library's.
        latent_average: what is added to the latents, [w_dim] or [num_ws, w_dim], or the generator whose average latent
            it is. None takes that of the file; an encoder's own tensors do not hold it, but the files of PadInv and
            pSp have it beside them. Zeros serve an encoder that was trained without an average.
        overrides: arguments of :class:`PadInvEncoder` that replace inferred ones. No tensor tells ``pad_constant``,
            nor ``pad_layers`` without heads.

    Raises:
        UnsafeFileError: the file asks for code.
        CheckpointError: the file is damaged, does not hold an encoder or an average latent, or its tensors contradict
            an argument.
        TypeError, ValueError: an override is no argument of :class:`PadInvEncoder`, or an average of another shape.

    Example:
        >>> encoder = PadInvEncoder(32, num_ws=4, levels=(1, 1, 2), width=8, w_dim=16, pad_layers=2)
        >>> load_encoder(encoder.state_dict()).report.settings["num_ws"]  # or the path of a file
        4
    """
    check_overrides(overrides, PadInvEncoder)
    found = find(read_source(source), "encoder", ema=False)
    family = family_of(found.state, "encoder")
    if family is None:
        raise CheckpointError("state: expected an encoder of PadInv or pSp, got other names")
    report = LoadReport(family, "encoder", left=dict(found.left), notes=list(found.notes))
    report.notes += [] if found.module is None else [only_tensors(found.module)]
    state = _renamed(plain_state(found.state), report)
    tensors = Tensors(state)
    inferred = _settings(tensors, report, overrides)
    if latent_average is not None:
        state.pop("latent_average", None)
    elif "latent_average" not in state:
        raise CheckpointError(
            "latent_average: expected the generator, or a tensor (zeros for an encoder trained without one); "
            "the file has none"
        )
    count, w_dim = inferred["num_ws"], inferred["w_dim"]
    average = state.get("latent_average", torch.zeros(w_dim))
    if average.shape not in ((w_dim,), (1, w_dim), (count, w_dim)):
        raise CheckpointError(
            f"latent_average: expected shape [{w_dim}], [1, {w_dim}] or [{count}, {w_dim}], got {list(average.shape)}"
        )
    state["latent_average"] = average.expand(count, w_dim)
    encoder = build(PadInvEncoder, state, inferred, overrides, report)
    if latent_average is not None:
        encoder.set_latent_average(latent_average)
        report.filled["latent_average"] = "the given one"
    return encoder


def load_backbone(encoder: PadInvEncoder, source: Source) -> LoadReport:
    """Load the first convolution and the stages of an encoder from a file; leave the rest as it is.

    Training usually starts from a network that recognises faces, such as the IR-SE-50 of ArcFace.

    Args:
        encoder: the encoder to load into.
        source: a path, the result of :func:`read_checkpoint`, or a state dictionary: ArcFace's, pSp's or PadInv's.

    Returns:
        The report on the tensors of the file.

    Raises:
        UnsafeFileError, CheckpointError: as :func:`load_encoder`; the depth or the width is another.

    Example:
        >>> one, other = (PadInvEncoder(32, num_ws=1, width=8, padding=None) for _ in range(2))
        >>> load_backbone(one, other.state_dict()).family
        'padinv'
    """
    if not isinstance(encoder, PadInvEncoder):
        raise TypeError(f"encoder: expected a PadInvEncoder, got {type(encoder).__name__}")
    if encoder.latent_average.is_meta:
        raise ValueError("encoder: expected one with values, got one on the device meta")
    found = find(read_source(source), "backbone", ema=False)
    report = LoadReport(family_of(found.state, "backbone") or "", "backbone", dict(found.left), notes=list(found.notes))
    if not report.family:
        raise CheckpointError("state: expected a backbone of ArcFace, pSp or PadInv, got other names")
    parts = ("input_layer.", "backbone_stages.")
    inside = {name: value for name, value in found.state.items() if str(name).startswith((*parts, "body."))}
    report.left |= {str(name): "not part of the backbone" for name in found.state if name not in inside}
    state = _renamed(plain_state(inside), report)
    own = {name: value for name, value in encoder.state_dict().items() if name.startswith(parts)}
    wrong = differences(own, state, report)
    if wrong:
        raise CheckpointError(f"state: does not fit into the backbone: {listed(wrong)}")
    encoder.load_state_dict(state, strict=False)
    return report


def _renamed(state: State, report: LoadReport) -> State:
    """Return the state under PadInv's names."""
    if report.family != "psp":
        return state
    count = Tensors(state).count("body.{i}.res_layer.1.weight")
    stages = next((blocks for blocks in BLOCKS.values() if sum(blocks) == count), None)
    if stages is None:
        raise CheckpointError(f"state: expected {[sum(blocks) for blocks in BLOCKS.values()]} blocks, got {count}")
    places = [f"{stage}.{block}" for stage, blocks in enumerate(stages) for block in range(blocks)]
    found: State = {}
    for source, value in state.items():
        name = _BODY.sub(lambda m: f"backbone_stages.{places[int(m[1])]}." if int(m[1]) < count else m[0], source)
        for theirs, ours in _HEADS.items():
            name = name.replace(theirs, ours, 1) if name.startswith(theirs) else name
        if name in found:
            raise CheckpointError(f"{source}: another tensor has its place, {name}")
        if name != source:
            report.renamed[source] = name
        found[name] = value
    return found


def _settings(tensors: Tensors, report: LoadReport, given: Mapping[str, Any]) -> dict[str, Any]:
    """Infer the arguments of the encoder from the shapes of its tensors."""
    blocks = tuple(tensors.count(f"backbone_stages.{stage}.{{i}}.res_layer.1.weight") for stage in range(4))
    depth = next((depth for depth, known in BLOCKS.items() if known == blocks), None)
    if depth is None:
        raise CheckpointError(f"state: expected stages of {list(BLOCKS.values())} blocks, got {blocks}")
    if "backbone_stages.0.0.res_layer.5.fc1.weight" not in tensors.state:
        raise CheckpointError("state: expected blocks with squeeze and excitation (IR-SE), got some without")
    w_dim = tensors.shape("latent_heads.0.linear.weight", 2)[0]
    num_ws = tensors.count("latent_heads.{i}.linear.weight")
    convs = [tensors.count(f"latent_heads.{head}.convs.{{i}}.weight", step=2) for head in range(num_ws)]
    # A first level without heads leaves no tensor, so that a given size may explain fewer levels as well.
    candidates = [k for k in (min(convs) - 1, min(convs) - 2) if given.get("size") == TOP * 2**k]
    least = candidates[0] if candidates else min(convs)
    size, levels = TOP * 2**least, tuple(convs.count(least + level) for level in range(3))
    if "size" not in given and 0 in levels:
        report.assumed["size"] = f"{size}; the tensors tell only how the levels differ"
    settings = dict(
        size=size,
        num_ws=num_ws,
        levels=levels,
        w_dim=w_dim,
        depth=depth,
        width=tensors.shape("input_layer.0.weight", 4)[0],
    )
    return settings | _padding(tensors, report)


def _padding(tensors: Tensors, report: LoadReport) -> dict[str, Any]:
    extractor_depth = tensors.count("padding_extractor.{i}.res_layer.1.weight")
    heads = tensors.count("padding_modulation_heads.{i}.weight")
    if not extractor_depth and not heads and "padding_projection.weight" not in tensors.state:
        return dict(padding=None)
    report.assumed["pad_constant"] = "True; no tensor tells"
    if heads:
        channels = [tensors.shape(f"padding_modulation_heads.{k}.weight", 4)[0] for k in range(heads)]
        return dict(padding="heads", pad_layers=heads, pad_channels=channels, extractor_depth=extractor_depth)
    report.assumed["pad_layers"] = "4; no tensor tells"
    if extractor_depth:
        return dict(padding="shared", extractor_depth=extractor_depth)
    return dict(padding="projection")
