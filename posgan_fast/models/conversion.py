"""Converting one state dictionary from its family's names to NVlabs', with an account of every tensor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch

from ..ops.common import checks
from .families import FAMILIES, MAX_LOG2, expand
from .refill import fill_filters, fill_noise, filter_of, single_average
from .report import CheckpointError, LoadReport

State = dict[str, torch.Tensor]


class ExpectedTensors(Protocol):
    """The tensors that a network has, by NVlabs' names."""

    @property
    def rebuilt(self) -> tuple[str, ...]:
        """Endings of names whose tensors can be made again, so that a file may lack them."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of the tensor ``name``, unless it is a filter."""

    def wants(self, name: str) -> bool:
        """Tell whether the network has a tensor of this name."""


def family_of(state: Mapping[str, Any], network: str) -> str | None:
    """Return the family that uses the names in ``state``, or None."""
    return next((family for family, name in SIGNATURES[network] if name in state), None)


_MAX_LAYERS = 64
_BLOCK = ("conv0.weight", "conv0.bias", "conv1.weight", "conv1.bias")
SIGNATURES: dict[str, tuple[tuple[str, str], ...]] = {  # the first name that a state holds decides
    "generator": (
        ("nvlabs", "synthesis.b4.conv1.weight"),
        ("rosinality", "conv1.conv.weight"),
        ("mmgeneration", "conv1.conv.weight_orig"),
        ("genforce", "truncation.w_avg"),
        ("genforce", "synthesis.upsample.kernel"),
        ("genforce", "synthesis.layer1.filter.kernel"),
        ("hammer", "synthesis.layer0.weight"),
    ),
    "discriminator": (
        ("nvlabs", "b4.conv.weight"),
        ("rosinality", "final_conv.0.weight"),
        ("mmgeneration", "final_conv.0.conv.weight_orig"),
        ("hammer", "output.weight"),
        ("genforce", "input0.weight"),
    ),
    "SinGAN generator": (("mmgeneration", "blocks.0.head.conv.weight"),),
    "SinGAN discriminator": (("mmgeneration", "blocks.0.head.conv.weight"),),
    "PGGAN generator": (("mmgeneration", "noise2feat.linear.weight_orig"),),
    "PGGAN discriminator": (("mmgeneration", "decision.linear0.weight_orig"),),
    "DCGAN generator": (("mmgeneration", "noise2feat.conv.weight"),),
    "DCGAN discriminator": (("mmgeneration", "downsamples.0.conv.weight"),),
    "encoder": (("padinv", "fpn.lateral_layers.0.weight"), ("psp", "latlayer1.weight")),
    "backbone": (("padinv", "backbone_stages.0.0.res_layer.1.weight"), ("psp", "body.0.res_layer.1.weight")),
}


class Conversion:
    """Rename, reshape and rescale the tensors of one network, and report what became of each.

    Throughout, ``source`` is a name in the file and ``name`` the same tensor's name in NVlabs' code.
    """

    def __init__(self, network: str, state: Mapping[str, Any], family: str | None) -> None:
        for source, value in state.items():
            if not _is_counter(value):
                check_weight(source, value)
        family = _known_family(network, state, family)
        self.network, self.state, self.family = network, state, FAMILIES[family]
        self.report = LoadReport(family, network)
        self.out: State = {}
        table: Mapping[str, str] = getattr(self.family, network)
        self.mapping_layers = self._mapping_layers(table)
        log2 = self._log2(table)
        self.side = 2**log2
        self.sources = expand(table, network, log2, self.mapping_layers)
        self.names = expand(getattr(FAMILIES["nvlabs"], network), network, log2, self.mapping_layers)
        used = set(self.sources.values())
        for source, value in state.items():
            if source in used:
                check_weight(source, value)
            elif _is_counter(value) or (value.numel() == 1 and source.rpartition(".")[2] in _COUNTERS):
                self.report.left[source] = "a counter or setting beside the weights"
        self.state = {source: value for source, value in state.items() if source not in self.report.left}

    def _mapping_layers(self, table: Mapping[str, str]) -> int:
        names = [table[name] for name in ("mapping.fc{j}.weight", "mapping.fc{j}.bias") if name in table]
        layers = range(_MAX_LAYERS)
        return max((j + 1 for j in layers for name in names if name.format(j=j, next_j=j + 1) in self.state), default=1)

    def _log2(self, table: Mapping[str, str]) -> int:
        """Find the largest size whose first block, last block and, in a discriminator, dense layer are all there."""
        prefix = "synthesis." if self.network == "generator" else ""
        for log2 in range(MAX_LOG2, 2, -1):
            sources = expand(table, self.network, log2, 0)
            blocks = [[sources[f"{prefix}b{r}.{part}"] for part in _BLOCK] for r in (8, 2**log2)]
            fc = self.state.get(sources["b4.fc.weight"]) if self.network == "discriminator" else None
            dense = self.network == "generator" or (fc is not None and fc.ndim <= 2)  # not a convolution of this name
            if dense and all(any(source in self.state for source in block) for block in blocks):
                return log2
        raise CheckpointError(f"state: the blocks of a {self.report.family} {self.network} are not all there")

    def has(self, name: str) -> bool:
        return self.sources.get(name) in self.state

    def has_any(self, part: str, outside: str = " ") -> bool:
        """Tell whether the state holds a tensor whose name contains ``part`` and not ``outside``."""
        return any(
            part in name and outside not in name and source in self.state for name, source in self.sources.items()
        )

    def get(self, name: str, ndim: int = 1) -> torch.Tensor:
        """Return a tensor of ``ndim`` dimensions or more: some families add sides of 1."""
        source = self.sources.get(name, name)
        if source not in self.state:
            raise CheckpointError(f"state: {source} is missing ({name} in NVlabs' names)")
        value = self.state[source]
        if value.ndim < ndim or 0 in value.shape:
            raise CheckpointError(
                f"{source}: expected {ndim} dimensions or more, none empty ({name}), got shape {list(value.shape)}"
            )
        return value

    def channels(self, bias: Callable[[int], str]) -> dict[int, int]:
        """Channels at each side, read off the biases that ``bias`` names."""
        sides = [2**i for i in range(2, self.side.bit_length())]
        return {r: self.get(bias(r)).numel() for r in sides}

    def label_sizes(self) -> tuple[int, int]:
        """Sizes of the label and of its embedding; 0 in a network without labels."""
        if not self.has_any("mapping.embed."):
            return 0, 0
        embedded = self.get("mapping.embed.bias").numel()
        return self.get("mapping.embed.weight", 2).shape[-1], embedded

    def run(self, tensors: ExpectedTensors) -> None:
        """Take every tensor that the network has from the state, and make those again that can be."""
        missing, used = [], set()
        for name in self.names:
            if not tensors.wants(name):
                continue
            source = self.sources.get(name, name)
            if name in self.sources and source in self.state:
                used.add(source)
                self._take(name, source, tensors)
            elif not name.endswith((*tensors.rebuilt, "resample_filter")) and (
                name != "mapping.w_avg" or self.report.family in _KEEP_W_AVG
            ):
                missing.append(source)
        if missing:
            raise CheckpointError(f"state: {len(missing)} tensors are missing: {_some(missing)}")
        fill_filters(self, tensors)
        fill_noise(self, tensors)
        left = [source for source in self.state if source not in used]
        unknown = [source for source in left if source not in self.family.placeholders]
        if unknown:
            raise CheckpointError(
                f"state: {len(unknown)} tensors are no part of a {self.report.family} {self.network} of side "
                f"{self.side}: {_some(unknown)}"
            )
        self.report.left |= {source: self.family.placeholders[source] for source in left}
        if self.family.note:
            self.report.notes.append(self.family.note)

    def _take(self, name: str, source: str, tensors: ExpectedTensors) -> None:
        value = self.state[source].detach()
        before = tuple(value.shape)
        if name.endswith("resample_filter"):
            value = filter_of(self, source, name, value)
        else:
            expected = tensors.shape(name)
            if name == "mapping.w_avg":
                value = single_average(value)
            if [n for n in value.shape if n != 1] != [n for n in expected if n != 1]:
                if not name.endswith(tensors.rebuilt):
                    raise CheckpointError(f"{source}: expected shape {list(expected)} ({name}), got {list(before)}")
                reason = f"of shape {list(before)}, expected {list(expected)} ({name}): made again"
                self.report.left[source] = reason
                return
            value = self._adapted(name, value.reshape(expected))
        if name != source:
            known = self.report.renamed.get(source)
            self.report.renamed[source] = f"{known}, {name}" if known else name
        if tuple(value.shape) != before:
            self.report.reshaped[name] = f"{list(before)} -> {list(value.shape)}"
        self.out[name] = value

    def _adapted(self, name: str, value: torch.Tensor) -> torch.Tensor:
        """Apply to the values what the family's code applies at run time."""
        if self.network != "generator":
            return value
        if name.endswith("affine.bias") and self.family.affine_plus:
            self.report.changed[name] = f"plus {self.family.affine_plus:g}, which is added at run time there"
            return value + self.family.affine_plus
        if name.endswith("conv0.weight") and self.family.flipped_up:
            self.report.changed[name] = "mirrored on both axes, which is done at run time there"
            return value.flip(2, 3)
        return value


_KEEP_W_AVG = ("nvlabs", "hammer", "genforce")  # families whose networks hold w_avg, so that it cannot be missing


def _known_family(network: str, state: Mapping[str, Any], family: str | None) -> str:
    """Return ``family``, or the one that the names tell."""
    known = family or family_of(state, network)
    if known is None and network == "generator" and any(key.startswith("synthesis.input.") for key in state):
        raise CheckpointError("state: an alias-free generator of StyleGAN3, expected a StyleGAN2 generator")
    if known is None:
        some = _some(list(state)) or "nothing"
        raise CheckpointError(
            f"state: no StyleGAN2 {network} of {', '.join(FAMILIES)}; it holds {some}; pass the inner state dictionary"
        )
    if family is None and known == "hammer" and network == "generator" and not _is_hammers(state):
        raise CheckpointError("family: hammer and genforce have these names both, with other values; give one")
    if known not in FAMILIES:
        raise CheckpointError(f"family: expected one of {', '.join(FAMILIES)}, got {known!r}")
    return known


def check_weight(name: Any, value: Any) -> None:
    """Refuse tensors other than plain numbers in memory: torch gives those no shape, no storage or no values."""
    if not isinstance(name, str) or not isinstance(value, torch.Tensor):
        raise CheckpointError(f"state: expected names and tensors, got {name!r:.80}: {type(value).__name__}")
    if value.dtype not in checks.FLOATS:
        raise CheckpointError(f"{name:.80}: expected floating point of 16 to 64 bits, got {value.dtype}")
    strided = value.layout == torch.strided and not value.is_nested
    if not strided or value.untyped_storage().device.type == "meta":
        kind = "nested" if value.is_nested else value.layout
        raise CheckpointError(f"{name:.80}: expected a strided tensor with values, got {kind} on {value.device}")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise CheckpointError(f"{name:.80}: expected a tensor inside its storage, got one larger than it")


_COUNTERS = ("decay", "num_updates", "n_averaged", "step", "initted", "updates", "ema_decay", "num_batches")


def positive(value: Any, name: str) -> float:
    """Return a number > 0 as a float."""
    number = checks.real(value, name)
    if not number > 0:
        raise ValueError(f"{name}: expected a number > 0, got {value}")
    return number


def _is_counter(value: Any) -> bool:
    """Tell whether ``value`` is a single integer, such as the step of an average; no weight is one."""
    return isinstance(value, torch.Tensor) and value.dtype in _INTEGERS and value.numel() == 1


_INTEGERS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def _is_hammers(state: Mapping[str, Any]) -> bool:
    """Recognise Hammer by names that genforce lacks. Under the shared names genforce stores other values: mirrored
    kernels, and biases of styles without the 1 that it adds at run time."""
    return any(name in state for name in ("w_avg", "synthesis.filter", "synthesis.layer1.filter", _RESIDUAL)) or any(
        name.startswith("mapping.embedding.") for name in state
    )


_RESIDUAL = "synthesis.residual1.weight"


def _some(names: list[str]) -> str:
    return ", ".join(f"{name:.80}" for name in names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
