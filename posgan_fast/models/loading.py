"""Weights of StyleGAN2 networks, from the files of every family into this library's models.

Files of torch are read with ``weights_only=True``, network pickles of NVlabs by ``pickles.py``: opening a file runs
nothing that is in it.
"""

from __future__ import annotations

import argparse
import inspect
import os
import pickle
import threading
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch

from ..ops import _check
from .convert import State, convert_discriminator, convert_generator, family_of
from .families import MAX_LOG2
from .pickles import (
    LEGACY,
    Dtype,
    PickledModule,
    first_line,
    number,
    read_pickle,
    refuse_buffers,
    unsafe_torch_file,
)
from .report import CheckpointError, LoadReport, UnsafeFileError
from .stylegan2 import Discriminator, Generator

Source = str | os.PathLike | Mapping[str, Any]


def load_generator(source: Source, family: str | None = None, *, ema: bool = True, **overrides: Any) -> Generator:
    """The generator in a file, in eval mode, with a ``LoadReport`` as its ``report``.

    The ``eps`` of demodulation joins sums over unscaled weights, as in NVlabs' and Hammer's code. The other families
    scale them first, which float32 shows beside styles near zero only.

    Args:
        source: a file, what ``read_checkpoint`` made of it, or a state dictionary.
        family: "nvlabs", "rosinality", "mmgeneration", "hammer" (PadInv too) or "genforce"; None: told by the names.
        ema: take the averaged generator where the file has one (the report notes where it has none); False: the
            generator in training.
        overrides: arguments of ``Generator`` in place of the inferred ones, for what tensors do not tell:
            ``report.assumed`` lists that. ``head="spe"`` has no tensors, and must be given for a state dictionary of
            this library's own.

    Raises:
        UnsafeFileError: the file asks for code.
        CheckpointError: it is damaged, does not hold such a network, or its tensors contradict an argument.
        TypeError: an override that is no argument of ``Generator``.
    """
    _check.flag(ema, "ema")
    _check_overrides(overrides, Generator)
    found = _find(_read(source), "generator", ema)
    state, report = convert_generator(found.state, family, head=overrides.get("head"))
    return _built(state, report, found, overrides)


def load_discriminator(source: Source, family: str | None = None, **overrides: Any) -> Discriminator:
    """The discriminator in a file; see ``load_generator``."""
    _check_overrides(overrides, Discriminator)
    found = _find(_read(source), "discriminator", ema=False)
    state, report = convert_discriminator(found.state, family)
    return _built(state, report, found, overrides)


def read_checkpoint(path: str | os.PathLike) -> Any:
    """What a file holds, tensors on the CPU, without running anything that is in it.

    Raises:
        UnsafeFileError, CheckpointError: as in ``load_generator``.
    """
    path = Path(path)
    with path.open("rb") as file:
        start = file.read(len(LEGACY))
        file.seek(0)
        torch_file = start.startswith(b"PK\x03\x04") or start == LEGACY
        if not torch_file and not start.startswith(pickle.PROTO):
            raise CheckpointError(f"{path}: neither a file of torch nor a pickle, starts with {start[:8]!r}")
        try:
            return _read_torch(path, file) if torch_file else read_pickle(file)
        except CheckpointError as error:
            raise type(error)(f"{path}: {error}{_remedy(error, file)}") from None


def _check_overrides(overrides: Mapping[str, Any], network: type) -> None:
    accepted = ", ".join(inspect.signature(network).parameters)
    for name in overrides:
        if name not in accepted.split(", "):
            raise TypeError(f"{name}: expected an argument of {network.__name__}, one of {accepted}")


_ALLOWED: list[Any] = [
    argparse.Namespace,  # the command line in rosinality's files
    (Dtype, "numpy.dtype"),  # numbers that mmgeneration keeps in its meta
    (number, "numpy.core.multiarray.scalar"),
    (number, "numpy._core.multiarray.scalar"),
]
_LOADING = threading.Lock()  # torch's list of what is safe belongs to the process
_AVERAGED = ("G_ema", "g_ema", "generator_ema", "generator_smooth")
_WRAPPERS = ("module.", "_orig_mod.")  # of DataParallel and of torch.compile
_NETWORKS = {"generator": ("G", "g", "generator"), "discriminator": ("D", "d", "discriminator")}


def _read_torch(path: Path, file: BinaryIO) -> Any:
    try:
        if zipfile.is_zipfile(file):
            archive = zipfile.ZipFile(file)
            entries = archive.infolist()
            if sum(entry.file_size for entry in entries) > path.stat().st_size:
                raise CheckpointError("announces more bytes than the file has")
            if (damaged := archive.testzip()) is not None:
                raise CheckpointError(f"damaged: {damaged} has another checksum")
            if any(entry.filename.endswith("/constants.pkl") for entry in entries):
                raise CheckpointError("a module of TorchScript, expected weights: save module.state_dict() instead")
        refuse_buffers(file)
        file.seek(0)
        with _LOADING, torch.serialization.safe_globals(_not_yet_allowed()):
            return torch.load(file, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        raise unsafe_torch_file(error) from None
    except Exception as error:  # torch raises what its parser stumbled over
        raise CheckpointError(f"damaged or no file of weights: {first_line(error)}") from None


def _remedy(error: CheckpointError, file: BinaryIO) -> str:
    """A pickled module has its stores near the start; a state dictionary has none."""
    file.seek(0)
    start = file.read(1 << 20) if isinstance(error, UnsafeFileError) else b""
    module = all(store in start for store in (b"_parameters", b"_buffers", b"_modules"))
    return "; the file holds a whole module: save module.state_dict() instead" if module else ""


def _not_yet_allowed() -> list[Any]:
    """On leaving, torch forgets what it was lent: nothing that the program allows itself."""
    known = torch.serialization.get_safe_globals()
    return [entry for entry in _ALLOWED if entry not in known]


def _read(source: Source) -> Any:
    if isinstance(source, (Mapping, PickledModule)):
        return source
    if isinstance(source, (str, os.PathLike)):
        return read_checkpoint(source)
    raise TypeError(f"source: expected a path or a state dictionary, got {type(source).__name__}")


@dataclass
class _Found:
    """One network of a file, and what the file holds besides."""

    state: Mapping[str, Any]
    module: PickledModule | None = None
    left: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def _find(data: Any, network: str, ema: bool, depth: int = 0) -> _Found:
    """The network in nested dictionaries: under its name, under a prefix, or the whole."""
    if depth > 3:
        raise CheckpointError(f"no {network} within three levels of dictionaries")
    if isinstance(data, PickledModule):
        return _Found(data.state_dict(), data)
    if not isinstance(data, Mapping):
        raise CheckpointError(f"the file holds a {type(data).__name__}, expected networks or module.state_dict()")
    if family_of(data, network):
        return _Found(data)
    for wrapper in _WRAPPERS:
        if data and all(str(name).startswith(wrapper) for name in data):
            found = _find({name[len(wrapper) :]: data[name] for name in data}, network, ema, depth + 1)
            found.notes.append(f"every name is under {wrapper!r}")
            return found
    for level in ("models", "state_dict"):
        if isinstance(data.get(level), Mapping):
            found = _find(data[level], network, ema, depth + 1)
            found.left |= {str(name): f"beside {level!r}" for name in data if name != level}
            return found
    names = (_AVERAGED if ema and network == "generator" else ()) + _NETWORKS[network]
    for name in names:
        prefixed = {key[len(name) + 1 :]: data[key] for key in data if str(key).startswith(f"{name}.")}
        inside = prefixed or data.get(name)
        if not isinstance(inside, (PickledModule, Mapping)) or inside == {}:
            continue
        found = _Found(inside.state_dict(), inside) if isinstance(inside, PickledModule) else _Found(dict(inside))
        rest = {str(key).split(".")[0] if prefixed else str(key) for key in data} - {name}
        found.left |= {key: _why_left(key) for key in sorted(rest)}
        beside = data.get("latent_avg") if network == "generator" else None
        if isinstance(beside, torch.Tensor) and family_of(found.state, network) == "rosinality":
            found.state = {**found.state, "latent_avg": beside}
            del found.left["latent_avg"]
        if ema and network == "generator" and name not in _AVERAGED:
            found.notes.append("no averaged generator in the file, this is the one in training")
        return found
    if any(not isinstance(value, torch.Tensor) for value in data.values()):
        raise CheckpointError(f"no {network} among {', '.join(f'{name!s:.80}' for name in list(data)[:8])}")
    return _Found(data)


def _why_left(name: str) -> str:
    networks = (*_AVERAGED, *_NETWORKS["generator"], *_NETWORKS["discriminator"])
    return "another network" if name in networks else "not part of the network"


def _built(state: State, report: LoadReport, found: _Found, overrides: Mapping[str, Any]) -> Any:
    """The model, made from the settings and filled strictly."""
    report.left |= found.left
    report.notes += found.notes
    for name, value in _untold(report).items() if found.module is None else ():
        report.assumed.setdefault(name, f"{value}; a state dictionary does not tell")
    told = {name: value for name, value in report.settings.items() if name not in report.assumed}
    if found.module is not None:
        report.settings |= _constructor_facts(found.module, report)
    report.settings |= overrides
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
    """What no tensor tells: arguments and their defaults, in words."""
    settings, own = report.settings, report.family == "nvlabs"  # these names are this library's too
    values = {"conv_clamp": "None"}
    if report.network == "discriminator":
        values["mbstd_group_size"] = "4"
        pooled = {"adaptive_pool": "True"} if settings["adaptive_pool"] else {}  # or a head_size of (2, 2)
        return values | ({"head_size": "(4, 4)"} | pooled if own else {})
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


def _constructor_facts(module: PickledModule, report: LoadReport) -> dict[str, Any]:
    """What a pickled module knows beyond its tensors."""
    generator = report.network == "generator"
    facts: dict[str, Any] = {}
    for name, path in (("conv_clamp", "synthesis.b4.conv1" if generator else "b4.conv"), ("group_size", "b4.mbstd")):
        layer = module.submodule(path)
        if layer is not None:
            value, place = layer.attributes.get(name), f"{path}.{name}"
            try:
                if name == "conv_clamp":
                    facts[name] = _check.bound(value, place)
                else:
                    facts["mbstd_group_size"] = None if value is None else _check.integer(value, place, minimum=1)
            except (TypeError, ValueError, OverflowError) as error:
                raise CheckpointError(str(error) if place in str(error) else f"{place}: {error}") from None
    for path in ("mapping.fc0", "synthesis.b4.conv1", "b4.conv"):
        layer = module.submodule(path)
        usual = {"activation": "lrelu"} | ({"bias_gain": 0.01} if path == "mapping.fc0" else {})
        attributes = layer.attributes if layer is not None else {}
        for name, expected in usual.items():
            if type(value := attributes.get(name, expected)) is not type(expected) or value != expected:
                raise CheckpointError(f"{path}.{name}: expected {expected}, got another {type(value).__name__}")
    blocks = {2**i: module.submodule(f"{'synthesis.' if generator else ''}b{2**i}") for i in range(2, MAX_LOG2 + 1)}
    half = [str(r) for r, block in blocks.items() if block is not None and block.attributes.get("use_fp16") is True]
    if half:
        report.notes.append(f"blocks of side {', '.join(half)} run in half precision there, in float32 here")
    return facts
