"""Finding one network in the objects of a file, under the names, prefixes and wrappers of training scripts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import torch

from .conversion import SIGNATURES, check_weight, family_of
from .opcodes import Unread
from .pickles import WRAPPERS, PickledModule, SavedModule
from .report import CheckpointError


@dataclass
class Found:
    """One network of a file, and notes on the rest of the file."""

    state: Mapping[str, Any]
    module: PickledModule | None = None  # a whole module, which also stores settings
    left: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def find(data: Any, network: str, ema: bool) -> Found:
    """Find one network in nested containers; with ``ema`` prefer an averaged generator.

    The names of its tensors identify a network. Among several networks, labels such as "g_ema" or "netG" decide.

    Args:
        data: objects of a file.
        network: "generator" or "discriminator", ahead of which another kind than StyleGAN2 has a word of its own, such
            as "SinGAN generator"; "encoder" of PadInv or pSp, or its "backbone".
        ema: as above.

    Raises:
        CheckpointError: there is none, or more than one could be meant.
    """
    places = _Search(network).run(data)
    side = side_of(network)
    networks = [place for place in places if place.known]
    if not networks:  # take one by its label, or the only one: the converter then says what is wrong with it
        networks = [place for place in places if place.labels and _LABELS[side].fullmatch(place.labels[-1])]
        networks = networks or [place for place in places if not place.labels and place.alone]
    averaged = [place for place in networks if place.averaged]
    training = [place for place in networks if not place.averaged]
    wanted = averaged if averaged and (ema or (side != "generator" and not training)) else training
    if not wanted:
        hint = "; the averaged one takes ema=True" if averaged and side == "generator" else ""
        raise CheckpointError(f"no {network} among {_listed(data)}{hint}; {_INNER}")
    if len(wanted) > 1:
        wanted = [place for place in wanted if place.is_named(side)] or wanted
    if len(wanted) > 1:
        paths = ", ".join(place.path for place in wanted[:8])
        raise CheckpointError(f"{len(wanted)} networks that could be the {network}: {paths}; {_INNER}")
    (place,) = wanted
    found = Found(place.state, place.module, place.left(), place.notes)
    if place.averaged and side != "generator":
        found.notes.append(f"the only {side} in the file is an averaged one")
    if side == "generator":
        if ema and not averaged:
            found.notes += _no_average(place, [other.path for other in training if other is not place])
        if family_of(found.state, network) == "rosinality":
            _take_average(found, place)
    if side == "encoder":
        _take_latent_average(found, place)
    return found


def holds(data: Any, network: str) -> bool:
    """Tell whether :func:`find` knows one network or more in ``data`` by the names of its tensors."""
    try:
        return any(place.known for place in _Search(network).run(data))
    except CheckpointError:
        return False


def is_run(data: Any) -> TypeGuard[Mapping[str, Any]]:
    """Tell whether ``data`` is a checkpoint of ``posgan-fast train``, whose settings tell what no tensor does."""
    return (
        isinstance(data, Mapping) and isinstance(data.get("recipe"), str) and isinstance(data.get("settings"), Mapping)
    )


def side_of(network: str) -> str:
    """Return "generator" or "discriminator" for a network of any kind."""
    return network.rpartition(" ")[2]


_INNER = "pass the inner state dictionary"
_WORD = re.compile(r"(?:EMA|SWA)(?=[a-z])|[A-Z]+(?![a-z])|[A-Z]?[a-z]+")  # splits "emaG" and "G-ema2" in two
_AVERAGED = re.compile(
    r"smooth(ed)?|running|shadow|averaged?|averages|averaging|avg|swa|gs|polyak|moving|mean|slow"
    r"|(g|net|netg|gen|generator|model)?ema(g|net|netg|gen|generator|model)?"
)
_KIND = r"(net_?)?({})(_?(ema|smooth|running|avg|state_dict))?"
_LABELS = {  # labels that say which network lies under them
    "generator": re.compile(_KIND.format("g|gs|gen|generator|decoder"), re.IGNORECASE),
    "discriminator": re.compile(_KIND.format("d|dis|disc|discriminator"), re.IGNORECASE),
    "encoder": re.compile(_KIND.format("e|enc|encoder"), re.IGNORECASE),
    "backbone": re.compile(_KIND.format("backbone|arcface|facenet"), re.IGNORECASE),
}
_STORES = {"_parameters", "_buffers", "_modules"}
_LEVELS = 8
_MOST = 64  # limit of the modules in a file, and of the prefixes in a dictionary


@dataclass
class _Container:
    """A container around a state, and the name of the entry that leads to the state."""

    items: Sequence[tuple[str, Any]]
    name: str
    above: _Container | None


@dataclass
class _Place:
    """A state dictionary in the file, its labels from the outside in, and its surroundings."""

    labels: tuple[str, ...]
    state: Mapping[str, Any]
    known: bool  # the names of the tensors are those of a family
    alone: bool  # the dictionary holds nothing else
    module: PickledModule | None
    notes: list[str]
    others: Mapping[str, Any]  # other entries of the same dictionary
    above: _Container | None

    @property
    def path(self) -> str:
        return ".".join(label[:80] for label in self.labels) or "the whole file"

    @property
    def averaged(self) -> bool:
        return any(_is_average(label) for label in self.labels)

    def is_named(self, network: str) -> bool:
        return any(_LABELS[network].fullmatch(label) for label in self.labels)

    def around(self) -> Iterator[tuple[str, Any]]:
        """Yield the other names and values of every container around the state, the inner ones first."""
        yield from self.others.items()
        container = self.above
        while container is not None:
            for name, value in container.items:
                if name != container.name:
                    yield name, value
            container = container.above

    def left(self) -> dict[str, str]:
        left = {}
        for name, _ in self.around():
            first = name.split(".")[0]
            network = any(pattern.fullmatch(first) for pattern in _LABELS.values())
            left[first] = "another network" if network else "not part of the network"
        return left


class _Search:
    """Walks containers, each once: a file may name one many times, or put it into itself."""

    def __init__(self, network: str) -> None:
        self.network = network
        self.seen: set[int] = set()
        self.places: list[_Place] = []
        self.modules = 0

    def run(self, data: Any) -> list[_Place]:
        if not isinstance(data, (Mapping, Unread, list, tuple)):
            raise CheckpointError(f"the file holds a {type(data).__name__}, expected networks or module.state_dict()")
        level: list[tuple[Any, tuple[str, ...], _Container | None]] = [(data, (), None)]
        for _ in range(_LEVELS):
            level = [below for item in level for below in self._visit(*item)]
        if level and not self.places:
            raise CheckpointError(f"no {self.network} within {_LEVELS} levels of containers; {_INNER}")
        return self.places

    def _visit(self, data: Any, labels: tuple[str, ...], above: _Container | None) -> list[Any]:
        """Collect the states in a container, and return the containers in it."""
        if id(data) in self.seen:
            return []
        self.seen.add(id(data))
        module = None
        if isinstance(data, Unread):
            if not _STORES & data.attributes.keys():
                return []
            self.modules += 1
            if self.modules > _MOST:
                raise CheckpointError(f"more than {_MOST} modules; {_INNER}")
            module = data if isinstance(data, PickledModule) else SavedModule(data.class_name, data.attributes)
            data = module.state_dict()
        if isinstance(data, Mapping):
            self._states(data, labels, above, module)
            items = [(str(name), value) for name, value in data.items() if isinstance(name, (str, int))]
        else:
            items = [(f"[{index}]", value) for index, value in enumerate(data)]
        return [
            (value, (*labels, name), _Container(items, name, above))
            for name, value in items
            if isinstance(value, (Mapping, Unread, list, tuple)) and value
        ]

    def _states(
        self, data: Mapping[Any, Any], labels: tuple[str, ...], above: _Container | None, module: PickledModule | None
    ) -> None:
        if not any(isinstance(value, torch.Tensor) for value in data.values()):
            return
        data, notes = _unwrapped(data)
        names = [name for name in data if isinstance(name, str)]
        ends = [end for _, end in SIGNATURES[self.network]]
        prefixes = {name[: -len(end)] for name in names for end in ends if name.endswith(end)}
        prefixes = {prefix for prefix in prefixes if prefix[-1:] in ("", ".")}
        if len(prefixes) > _MOST:
            raise CheckpointError(f"more than {_MOST} networks in one dictionary; {_INNER}")
        for prefix in sorted(prefixes) or [""]:
            if prefix:
                inside = {name for name in names if name.startswith(prefix)}
            else:
                inside = {name for name, value in data.items() if isinstance(value, torch.Tensor) or "." in str(name)}
            inside = {name for name in inside if not isinstance(data[name], (bool, int, float))}  # counters
            state = {name[len(prefix) :] if prefix else name: data[name] for name in data if name in inside}
            self.places.append(
                _Place(
                    (*labels, *prefix.split(".")[:-1]),
                    state,
                    known=bool(prefixes) and _is_network(state, self.network),
                    alone=len(state) == len(data) and all(isinstance(v, torch.Tensor) for v in data.values()),
                    module=None if module is None else module.submodule(prefix.rstrip(".")),
                    notes=list(notes),
                    others={str(name): value for name, value in data.items() if name not in inside},
                    above=above,
                )
            )


def _is_network(state: Mapping[str, Any], network: str) -> bool:
    """Require a second name of the family, because other networks may have a layer of the first name."""
    family = family_of(state, network)
    return family is not None and _BESIDE[network][family] in state


_BESIDE: dict[str, dict[str, str]] = {
    "generator": {
        "nvlabs": "synthesis.b4.conv1.affine.weight",
        "rosinality": "conv1.conv.modulation.weight",
        "mmgeneration": "conv1.conv.style_modulation.linear.weight_orig",
        "hammer": "synthesis.layer0.style.weight",
        "genforce": "synthesis.layer0.style.weight",
    },
    "discriminator": {
        "nvlabs": "b4.fc.weight",
        "rosinality": "final_linear.0.weight",
        "mmgeneration": "final_linear.0.linear.weight_orig",
        "hammer": "layer0.weight",
        "genforce": "layer0.weight",
    },
    "SinGAN generator": {"mmgeneration": "blocks.0.tail.conv.weight"},
    "SinGAN discriminator": {"mmgeneration": "blocks.0.tail.conv.weight"},
    "PGGAN generator": {"mmgeneration": "torgb_layers.0.conv.weight_orig"},
    "PGGAN discriminator": {"mmgeneration": "fromrgb_layers.0.conv.weight_orig"},
    "DCGAN generator": {"mmgeneration": "output_layer.conv.weight"},
    "DCGAN discriminator": {"mmgeneration": "output_layer.conv.weight"},
    "encoder": {"padinv": "latent_heads.0.linear.weight", "psp": "styles.0.linear.weight"},
    "backbone": {"padinv": "input_layer.0.weight", "psp": "input_layer.0.weight"},
}


def _is_average(label: str) -> bool:
    return any(_AVERAGED.fullmatch(word.lower()) for word in _WORD.findall(label[:200]))


def _no_average(place: _Place, others: list[str]) -> list[str]:
    """Note that the generator is not averaged, and whether an average lies beside it in a form that is not read."""
    unread = set()
    for name, value in place.around():
        first = name.split(".")[0]
        single = first == name and isinstance(value, torch.Tensor)  # latent_avg, for example
        if (
            _is_average(first)
            and not single
            and not _LABELS["discriminator"].fullmatch(first)
            and _holds_weights(value)
        ):
            unread.add(first)
    if unread:
        some = ", ".join(f"{name:.80}" for name in sorted(unread)[:8])
        return [f"{some}: looks like an average in a form that is not read; this is the generator in training"]
    if others:
        return [f"no generator is named as an average, this is {place.path}; not taken: {', '.join(others[:8])}"]
    return ["no averaged generator in the file, this is the one in training"] if place.is_named("generator") else []


def _holds_weights(data: Any) -> bool:
    """Tell whether ``data`` is or contains a tensor other than a counter."""
    seen, level = set(), [data]
    for _ in range(_LEVELS):
        below: list[Any] = []
        for value in level:
            if isinstance(value, torch.Tensor):
                if value.dtype.is_floating_point and (value.is_nested or value.numel() > 1):
                    return True
            elif isinstance(value, (Mapping, Unread, list, tuple)) and id(value) not in seen:
                seen.add(id(value))
                value = value.attributes if isinstance(value, Unread) else value
                below += value.values() if isinstance(value, Mapping) else value
        level = below
    return False


def _unwrapped(data: Mapping[Any, Any]) -> tuple[Mapping[Any, Any], list[str]]:
    """Drop the names of wrappers from the paths of all entries; return the entries and notes."""
    found: set[str] = set()
    names: dict[Any, Any] = {}
    for name, value in data.items():
        bare = name
        if isinstance(name, str) and isinstance(value, torch.Tensor):
            parts = name.split(".")
            found |= WRAPPERS.intersection(parts[:-1])
            bare = ".".join([part for part in parts[:-1] if part not in WRAPPERS] + parts[-1:])
        if bare in names:
            raise CheckpointError(f"{name:.80}: there twice, with and without {', '.join(sorted(found))}; {_INNER}")
        names[bare] = value
    if not found:
        return data, []
    return names, [f"names are under {' and '.join(repr(f'{wrapper}.') for wrapper in sorted(found))}"]


def _listed(data: Any) -> str:
    kind = data.class_name if isinstance(data, Unread) else f"{len(data)} entries of a {type(data).__name__}"
    names = [f"{name!s:.80}" for name in data] if isinstance(data, Mapping) else [kind]
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") or "nothing"


def _take_average(found: Found, place: _Place) -> None:
    """Add the average of w, which rosinality stores beside the network, and pSp once for each layer."""
    beside = [value for name, value in place.around() if name == "latent_avg" and isinstance(value, torch.Tensor)]
    if not beside or "latent_avg" in found.state:
        return
    check_weight("latent_avg", beside[0])
    average = beside[0].detach()
    found.left.pop("latent_avg", None)
    rows = average.reshape(-1, average.shape[-1]) if average.ndim > 1 and average.numel() else average[None]
    if bool((rows == rows[:1]).all()):
        found.state = {**found.state, "latent_avg": rows[0]}
    else:
        found.left["latent_avg"] = "another average for each layer, where truncation has one for all"


def _take_latent_average(found: Found, place: _Place) -> None:
    """Add the average of w that an encoder's codes start from: pSp's, or that of the generator in PadInv's file."""
    if "latent_average" in found.state:
        return
    around: dict[str, Any] = {}
    for name, value in place.around():
        if name == "generator" and isinstance(value, Mapping):
            around |= {f"{name}.{inner}": one for inner, one in value.items()}
        around.setdefault(name, value)
    for name in ("latent_avg", "generator.w_avg", "generator.module.w_avg"):
        average = around.get(name)
        if isinstance(average, torch.Tensor) and average.dtype.is_floating_point:
            check_weight(name, average)
            found.state = {**found.state, "latent_average": average.detach()}
            found.notes.append(f"latent_average: {name} of the file")
            return
