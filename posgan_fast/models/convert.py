"""State dictionaries of every family, turned into NVlabs' names, shapes and conventions.

Nothing is dropped in silence: a tensor of the input is used, or known to hold nothing and listed as left, or an
error names it; a tensor of the output comes from the input, or from a rule that the report names, or an error names
what is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..ops.common import checks
from ..ops.common.activations import ACTIVATIONS
from .families import FAMILIES, MAX_LOG2, expand
from .refill import fill_filters, fill_noise, filter_of, one_average
from .report import CheckpointError, LoadReport
from .structure import head_of, last_features, multiplier, sides
from .stylegan2 import HEADS
from .stylegan2_mapping import SAMPLES, mean_latent

State = dict[str, torch.Tensor]


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
    """The generator ``state`` of a family under NVlabs' names. The input is left as it is; tensors may be shared.

    Buffers that can be made again may be missing or of another shape: noise, filters, the average of w.

    Args:
        family: one of ``FAMILIES``, or None to tell from the names.
        head: "constant", "csg" or "spe"; "spe" has no tensors, so that it must be given where only those are there.
        head_size, no_pad: as of ``Generator``, None: told by the tensors, or assumed.
        lr_multiplier, mapping_activation: of the mapping, whose average is computed where the file has none.

    Raises:
        CheckpointError: for names that are missing or unknown, and for shapes that contradict each other or
            an argument.
        TypeError, ValueError: an argument that ``Generator`` would not take.
    """
    if head is not None:
        checks.choice(head, "head", HEADS)
    if head_size is not None:
        head_size = checks.size(head_size, "head_size")
    if no_pad is not None:
        checks.flag(no_pad, "no_pad")
    positive(lr_multiplier, "lr_multiplier")
    checks.choice(mapping_activation, "mapping_activation", tuple(ACTIVATIONS))
    work = Conversion("generator", state, family)
    settings = work.report.settings
    channels = work.channels(lambda r: f"synthesis.b{r}.conv1.bias")
    affine = work.get("synthesis.b4.conv1.affine.weight", 2)  # [in, w]
    head = head_of(work, affine.shape[0], head)
    conditional, resnet = work.holds("mapping.embed."), work.holds(".skip.")
    skip = not resnet and work.holds(".torgb.", but=f".b{work.side}.")
    first = work.get("mapping.fc0.weight", 2)  # [hidden, z + embedded]
    embedded = work.get("mapping.embed.bias").numel() if conditional else 0
    w_dim = affine.shape[-1]
    image_channels = work.get(f"synthesis.b{work.side}.torgb.bias").numel()
    settings |= {
        "size": work.side,
        "z_dim": first.shape[-1] - embedded,
        "w_dim": w_dim,
        "c_dim": work.get("mapping.embed.weight", 2).shape[-1] if conditional else 0,
        **multiplier(channels),
        "mapping_layers": work.mapping_layers,
        "architecture": "resnet" if resnet else "skip" if skip else "orig",
        "head": head,
        "img_channels": image_channels,
    }
    height, width, border = sides(work, head, head_size, no_pad)

    def shape(name: str) -> tuple[int, ...] | None:
        module, _, part = name.rpartition(".")
        if module.startswith("mapping"):
            if name == "mapping.embed.weight":
                return (embedded, settings["c_dim"])
            into = first.shape[-1] if module == "mapping.fc0" else w_dim
            return (embedded if module == "mapping.embed" else w_dim,) if part != "weight" else (w_dim, into)
        r = int(name.split(".")[1][1:])
        kind = name.split(".")[2]
        into = channels[r // 2] if kind in ("conv0", "skip") else affine.shape[0] if "b4.conv1" in name else channels[r]
        if name == "synthesis.b4.const":
            return (channels[4], height + border, width + border)
        if ".affine." in name:
            return (into, w_dim) if part == "weight" else (into,)
        if part == "noise_const":
            extra = border if kind == "conv0" else 0
            return (height * r // 4 + extra, width * r // 4 + extra)
        out = image_channels if kind == "torgb" else channels[r]
        k = 3 if kind in ("conv0", "conv1") else 1
        return {"weight": (out, into, k, k), "bias": (out,), "noise_strength": ()}[part]

    def wanted(name: str) -> bool:
        if name.startswith("mapping.embed"):
            return conditional
        if ".skip." in name:
            return resnet
        if ".torgb." in name:
            return skip or name.startswith(f"synthesis.b{work.side}.")
        return name != "synthesis.b4.const" or head == "constant"

    work.run(shape, wanted, again=("noise_const", *(() if conditional else ("w_avg",))))
    if "mapping.w_avg" not in work.out:
        work.out["mapping.w_avg"] = mean_latent(
            work.out, work.mapping_layers, settings["z_dim"], lr_multiplier, mapping_activation
        )
        work.report.filled["mapping.w_avg"] = f"the file has none; mean over {SAMPLES} latents of seed 0"
    return work.out, work.report


def convert_discriminator(
    state: Mapping[str, Any],
    family: str | None = None,
    *,
    head_size: tuple[int, int] | None = None,
    adaptive_pool: bool | None = None,
) -> tuple[State, LoadReport]:
    """The discriminator ``state`` of a family under NVlabs' names; see ``convert_generator``."""
    if head_size is not None:
        head_size = checks.size(head_size, "head_size")
    if adaptive_pool is not None:
        checks.flag(adaptive_pool, "adaptive_pool")
    work = Conversion("discriminator", state, family)
    channels = work.channels(lambda r: f"b{r}.conv0.bias" if r > 4 else "b4.conv.bias")
    conditional, resnet = work.holds("mapping.embed."), work.holds(".skip.")
    skip = work.holds(".fromrgb.", but=f"b{work.side}.")
    mbstd = work.get("b4.conv.weight", 4).shape[1] - channels[4]
    mapped = work.get("mapping.embed.bias").numel() if conditional else 1
    features = work.get("b4.fc.weight", 2).shape[1]
    image_channels = work.get(f"b{work.side}.fromrgb.weight", 4).shape[1]
    if mbstd < 0:
        raise CheckpointError(f"{work.names['b4.conv.weight']}: expected {channels[4]} input channels or more")
    settings = work.report.settings
    settings |= {
        "size": work.side,
        "c_dim": work.get("mapping.embed.weight", 2).shape[-1] if conditional else 0,
        **multiplier(channels),
        "architecture": "resnet" if resnet else "skip" if skip else "orig",
        "mbstd_num_channels": mbstd,
        "img_channels": image_channels,
        **last_features(work, features, channels[4], head_size, adaptive_pool),
    } | ({"mapping_layers": work.mapping_layers} if conditional else {})

    def shape(name: str) -> tuple[int, ...] | None:
        module, _, part = name.rpartition(".")
        if module.startswith("mapping"):
            into = settings["c_dim"] if module == "mapping.embed" else mapped
            return (mapped, into) if part == "weight" else (mapped,)
        block, _, kind = module.partition(".")
        r = int(block[1:])
        into = {"fromrgb": image_channels, "conv": channels[r] + mbstd, "fc": features}.get(kind, channels[r])
        out = channels[r // 2] if kind in ("conv1", "skip") else mapped if kind == "out" else channels[r]
        k = {"fc": (), "out": (), "fromrgb": (1, 1), "skip": (1, 1)}.get(kind, (3, 3))
        return (out, into, *k) if part == "weight" else (out,)

    def wanted(name: str) -> bool:
        if name.startswith("mapping."):
            return conditional
        if ".skip." in name:
            return resnet
        return ".fromrgb." not in name or skip or name.startswith(f"b{work.side}.")

    work.run(shape, wanted)
    return work.out, work.report


def family_of(state: Mapping[str, Any], network: str) -> str | None:
    """The family whose names these are, or None."""
    return next((family for family, name in SIGNATURES[network] if name in state), None)


_MAX_LAYERS = 64
_BLOCK = ("conv0.weight", "conv0.bias", "conv1.weight", "conv1.bias")
SIGNATURES = {  # the first name that is there decides
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
}


class Conversion:
    """One network on its way: the tensors there, their names here, and what came of them."""

    def __init__(self, network: str, state: Mapping[str, Any], family: str | None) -> None:
        for name, value in state.items():
            if not _is_counter(value):
                check_weight(name, value)
        known = family or family_of(state, network)
        if known is None and network == "generator" and any(key.startswith("synthesis.input.") for key in state):
            raise CheckpointError("state: an alias-free generator of StyleGAN3, expected a StyleGAN2 generator")
        if known is None:
            some = _some(list(state)) or "nothing"
            raise CheckpointError(
                f"state: no StyleGAN2 {network} of {', '.join(FAMILIES)}; it holds {some}; "
                "pass the inner state dictionary"
            )
        if family is None and known == "hammer" and network == "generator" and not _is_hammers(state):
            raise CheckpointError("family: hammer and genforce have these names both, with other values; give one")
        if known not in FAMILIES:
            raise CheckpointError(f"family: expected one of {', '.join(FAMILIES)}, got {known!r}")
        self.network, self.state, self.family = network, state, FAMILIES[known]
        self.report = LoadReport(known, network)
        self.out: State = {}
        table: Mapping[str, str] = getattr(self.family, network)
        self.mapping_layers = self._mapping_layers(table)
        log2 = self._log2(table)
        self.side = 2**log2
        self.names = expand(table, network, log2, self.mapping_layers)
        self.every = expand(getattr(FAMILIES["nvlabs"], network), network, log2, self.mapping_layers)
        used = set(self.names.values())
        for name, value in state.items():
            if name in used:
                check_weight(name, value)
            elif _is_counter(value) or (value.numel() == 1 and name.rpartition(".")[2] in _COUNTERS):
                self.report.left[name] = "a counter or setting beside the weights"
        self.state = {name: value for name, value in state.items() if name not in self.report.left}

    def _mapping_layers(self, table: Mapping[str, str]) -> int:
        names = [table[name] for name in ("mapping.fc{j}.weight", "mapping.fc{j}.bias") if name in table]
        layers = range(_MAX_LAYERS)
        return max((j + 1 for j in layers for name in names if name.format(j=j, next_j=j + 1) in self.state), default=1)

    def _log2(self, table: Mapping[str, str]) -> int:
        """The largest network of which there are the first and the last block, and the layer behind them."""
        prefix = "synthesis." if self.network == "generator" else ""
        for log2 in range(MAX_LOG2, 2, -1):
            names = expand(table, self.network, log2, 0)
            blocks = [[names[f"{prefix}b{r}.{part}"] for part in _BLOCK] for r in (8, 2**log2)]
            fc = self.state.get(names["b4.fc.weight"]) if self.network == "discriminator" else None
            dense = self.network == "generator" or (fc is not None and fc.ndim <= 2)  # 4: a convolution of this name
            if dense and all(any(name in self.state for name in block) for block in blocks):
                return log2
        raise CheckpointError(f"state: the blocks of a {self.report.family} {self.network} are not all there")

    def has(self, name: str) -> bool:
        return self.names.get(name) in self.state

    def holds(self, part: str, but: str = " ") -> bool:
        return any(part in here and but not in here and there in self.state for here, there in self.names.items())

    def get(self, name: str, ndim: int = 1) -> torch.Tensor:
        """Some families have sides of 1 around the ``ndim`` dimensions."""
        there = self.names.get(name, name)
        if there not in self.state:
            raise CheckpointError(f"state: {there} is missing ({name} in NVlabs' names)")
        value = self.state[there]
        if value.ndim < ndim or 0 in value.shape:
            raise CheckpointError(
                f"{there}: expected {ndim} dimensions or more, none empty ({name}), got shape {list(value.shape)}"
            )
        return value

    def channels(self, bias: Callable[[int], str]) -> dict[int, int]:
        """Channels by side, told by the biases."""
        sides = [2**i for i in range(2, self.side.bit_length())]
        return {r: self.get(bias(r)).numel() for r in sides}

    def run(
        self,
        shape: Callable[[str], tuple[int, ...] | None],
        wanted: Callable[[str], bool],
        again: tuple[str, ...] = (),
    ) -> None:
        """Takes every tensor that is ``wanted``, of its ``shape``; buffers named as in ``again`` can be made again."""
        missing, used = [], set()
        for here in self.every:
            if not wanted(here):
                continue
            there = self.names.get(here, here)
            if here in self.names and there in self.state:
                used.add(there)
                self._take(here, there, shape, here.endswith(again) if again else False)
            elif not here.endswith((*again, "resample_filter")) and (
                here != "mapping.w_avg" or self.report.family in _NO_W_AVG
            ):
                missing.append(there)
        if missing:
            raise CheckpointError(f"state: {len(missing)} tensors are missing: {_some(missing)}")
        fill_filters(self, wanted)
        fill_noise(self, shape, wanted)
        left = [name for name in self.state if name not in used]
        unknown = [name for name in left if name not in self.family.placeholders]
        if unknown:
            raise CheckpointError(
                f"state: {len(unknown)} tensors are no part of a {self.report.family} {self.network} of side "
                f"{self.side}: {_some(unknown)}"
            )
        self.report.left |= {name: self.family.placeholders[name] for name in left}
        if self.family.note:
            self.report.notes.append(self.family.note)

    def _take(self, here: str, there: str, shape: Callable[[str], tuple[int, ...] | None], again: bool) -> None:
        value = self.state[there].detach()
        before = tuple(value.shape)
        if here.endswith("resample_filter"):
            value = filter_of(self, there, here, value)
        else:
            expected = shape(here) or ()
            if here == "mapping.w_avg":
                value = one_average(value)
            if again and [n for n in value.shape if n != 1] != [n for n in expected if n != 1]:
                self.report.left[there] = f"of shape {list(before)}, expected {list(expected)} ({here}): made again"
                return
            if [n for n in value.shape if n != 1] != [n for n in expected if n != 1]:
                raise CheckpointError(f"{there}: expected shape {list(expected)} ({here}), got {list(before)}")
            value = value.reshape(expected)
            value = self._values(here, value)
        if here != there:
            known = self.report.renamed.get(there)
            self.report.renamed[there] = f"{known}, {here}" if known else here
        if tuple(value.shape) != before:
            self.report.reshaped[here] = f"{list(before)} -> {list(value.shape)}"
        self.out[here] = value

    def _values(self, here: str, value: torch.Tensor) -> torch.Tensor:
        if self.network != "generator":
            return value
        if here.endswith("affine.bias") and self.family.affine_plus:
            self.report.changed[here] = f"plus {self.family.affine_plus:g}, which is added at run time there"
            return value + self.family.affine_plus
        if here.endswith("conv0.weight") and self.family.flipped_up:
            self.report.changed[here] = "mirrored on both axes, which is done at run time there"
            return value.flip(2, 3)
        return value


_NO_W_AVG = ("nvlabs", "hammer", "genforce")  # families whose networks hold it, so that it cannot be missing


def check_weight(name: Any, value: Any) -> None:
    """Weights are plain numbers in memory; of other tensors torch gives no shape, no storage or no values."""
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
    """A number > 0."""
    if not checks.real(value, name) > 0:
        raise ValueError(f"{name}: expected a number > 0, got {value}")
    return value


def _is_counter(value: Any) -> bool:
    """Counters of averages and the like: no network here has a weight of integers."""
    return isinstance(value, torch.Tensor) and value.dtype in _INTEGERS and value.numel() == 1


_INTEGERS = (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64)


def _is_hammers(state: Mapping[str, Any]) -> bool:
    """Genforce has the same names but for these, other signs of kernels and another bias of styles."""
    return any(name in state for name in ("w_avg", "synthesis.filter", "synthesis.layer1.filter", _RESIDUAL)) or any(
        name.startswith("mapping.embedding.") for name in state
    )


_RESIDUAL = "synthesis.residual1.weight"


def _some(names: list[str]) -> str:
    return ", ".join(f"{name:.80}" for name in names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
