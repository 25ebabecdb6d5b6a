"""State dictionaries of every family, turned into NVlabs' names, shapes and conventions.

Nothing is dropped in silence: a tensor of the input is used, or known to hold nothing and listed as left, or an
error names it; a tensor of the output comes from the input, or from a rule that the report names, or an error names
what is missing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..ops import _check
from .families import FAMILIES, MAX_LOG2, expand
from .report import CheckpointError, LoadReport
from .stylegan2 import HEADS
from .stylegan2_mapping import SAMPLES, mean_latent

State = dict[str, torch.Tensor]


def convert_generator(
    state: Mapping[str, Any], family: str | None = None, *, head: str | None = None
) -> tuple[State, LoadReport]:
    """The generator ``state`` of a family under NVlabs' names. The input is left as it is; tensors may be shared.

    Args:
        family: one of ``FAMILIES``, or None to tell from the names.
        head: "constant", "csg" or "spe"; "spe" has no tensors, so that it must be given where only those are there.

    Raises:
        CheckpointError: for names that are missing or unknown, and for shapes that contradict each other.
        ValueError: another head.
    """
    if head is not None:
        _check.choice(head, "head", HEADS)
    work = _Conversion("generator", state, family)
    settings = work.report.settings
    channels = work.channels(lambda r: f"synthesis.b{r}.conv1.bias")
    affine = work.get("synthesis.b4.conv1.affine.weight", 2)  # [in, w]
    head = _head(work, affine.shape[0], head)
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
        **_multiplier(channels),
        "mapping_layers": work.mapping_layers,
        "architecture": "resnet" if resnet else "skip" if skip else "orig",
        "head": head,
        "img_channels": image_channels,
    }
    height, width, border = _sides(work, head)

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

    work.run(shape, wanted)
    if "mapping.w_avg" not in work.out:
        work.out["mapping.w_avg"] = mean_latent(work.out, work.mapping_layers, settings["z_dim"])
        work.report.filled["mapping.w_avg"] = f"the file has none; mean over {SAMPLES} latents of seed 0"
    return work.out, work.report


def convert_discriminator(state: Mapping[str, Any], family: str | None = None) -> tuple[State, LoadReport]:
    """The discriminator ``state`` of a family under NVlabs' names; see ``convert_generator``."""
    work = _Conversion("discriminator", state, family)
    channels = work.channels(lambda r: f"b{r}.conv0.bias" if r > 4 else "b4.conv.bias")
    conditional, resnet = work.holds("mapping.embed."), work.holds(".skip.")
    skip = work.holds(".fromrgb.", but=f"b{work.side}.")
    mbstd = work.get("b4.conv.weight", 4).shape[1] - channels[4]
    mapped = work.get("mapping.embed.bias").numel() if conditional else 1
    features = work.get("b4.fc.weight", 2).shape[1]
    image_channels = work.get(f"b{work.side}.fromrgb.weight", 4).shape[1]
    if mbstd < 0 or features not in (16 * channels[4], 4 * channels[4]):
        raise CheckpointError(
            f"{work.names['b4.fc.weight']}: expected {16 * channels[4]} inputs, or {4 * channels[4]} after pooling "
            f"to 2x2, got {features}"
        )
    settings = work.report.settings
    settings |= {
        "size": work.side,
        "c_dim": work.get("mapping.embed.weight", 2).shape[-1] if conditional else 0,
        **_multiplier(channels),
        "architecture": "resnet" if resnet else "skip" if skip else "orig",
        "mbstd_num_channels": mbstd,
        "adaptive_pool": features == 4 * channels[4],
        "img_channels": image_channels,
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
    return next((family for family, name in _SIGNATURES[network] if name in state), None)


_MAX_LAYERS = 64
_BLOCK = ("conv0.weight", "conv0.bias", "conv1.weight", "conv1.bias")
_SIGNATURES = {  # the first name that is there decides
    "generator": (
        ("nvlabs", "synthesis.b4.conv1.weight"),
        ("rosinality", "conv1.conv.weight"),
        ("mmgeneration", "conv1.conv.weight_orig"),
        ("genforce", "truncation.w_avg"),
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


class _Conversion:
    """One network on its way: the tensors there, their names here, and what came of them."""

    def __init__(self, network: str, state: Mapping[str, Any], family: str | None) -> None:
        for name, value in state.items():
            _check_weight(name, value)
        known = family or family_of(state, network)
        if known is None and network == "generator" and any(key.startswith("synthesis.input.") for key in state):
            raise CheckpointError("state: an alias-free generator of StyleGAN3, expected a StyleGAN2 generator")
        if known is None:
            some = _some(list(state)) or "nothing"
            raise CheckpointError(f"state: no StyleGAN2 {network} of {', '.join(FAMILIES)}; it holds {some}")
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

    def run(self, shape: Callable[[str], tuple[int, ...] | None], wanted: Callable[[str], bool]) -> None:
        missing, used = [], set()
        for here in self.every:
            if not wanted(here):
                continue
            there = self.names.get(here, here)
            if here in self.names and there in self.state:
                used.add(there)
                self._take(here, there, shape)
            elif not here.endswith("resample_filter") and (here != "mapping.w_avg" or self.report.family in _NO_W_AVG):
                missing.append(there)
        if missing:
            raise CheckpointError(f"state: {len(missing)} tensors are missing: {_some(missing)}")
        self._fill_filters(wanted)
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

    def _take(self, here: str, there: str, shape: Callable[[str], tuple[int, ...] | None]) -> None:
        value = self.state[there].detach()
        before = tuple(value.shape)
        if here.endswith("resample_filter"):
            value = self._filter(there, here, value)
        else:
            expected = shape(here) or ()
            if [n for n in before if n != 1] != [n for n in expected if n != 1]:
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

    def _filter(self, there: str, here: str, value: torch.Tensor) -> torch.Tensor:  # [kh, kw], [1, 1, kh, kw], [k]
        value = value[0, 0] if value.ndim == 4 and value.shape[:2] == (1, 1) else value
        expected = self.family.generator_filter_sum if self.network == "generator" else 1.0
        total = float(value.sum())
        if value.ndim not in (1, 2) or not abs(total - expected) <= 1e-3 * expected:
            raise CheckpointError(f"{there}: expected a filter of sum {expected:g}, got {list(value.shape)}, {total:g}")
        if self.family.mirrored_filters:
            value = value.flip(tuple(range(value.ndim)))
        if expected != 1:
            self.report.changed[here] = f"divided by {expected:g}: the gain is in the call here"
            value = value / expected
        return value

    def _fill_filters(self, wanted: Callable[[str], bool]) -> None:
        """NVlabs keeps the filter in every layer, used or not; the families only where they resample."""
        found = [value for name, value in self.out.items() if name.endswith("resample_filter")]
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
        default = found[0] if found else torch.outer(taps, taps) / 64
        why = "the filter of the other layers" if found else "the usual filter [1, 3, 3, 1]"
        for here in self.every:
            if here.endswith("resample_filter") and here not in self.out and wanted(here):
                self.out[here] = default.clone()
                self.report.filled[here] = why


_NO_W_AVG = ("nvlabs", "hammer", "genforce")  # families whose networks hold it, so that it cannot be missing


_ENCODED = ("nvlabs", "mmgeneration")  # families with generators that have an encoding in place of the constant


def _check_weight(name: Any, value: Any) -> None:
    """Weights are plain numbers in memory; of other tensors torch gives no shape, no storage or no values."""
    if not isinstance(name, str) or not isinstance(value, torch.Tensor):
        raise CheckpointError(f"state: expected names and tensors, got {name!r:.80}: {type(value).__name__}")
    if value.dtype not in _check.FLOATS:
        raise CheckpointError(f"{name:.80}: expected floating point of 16 to 64 bits, got {value.dtype}")
    strided = value.layout == torch.strided and not value.is_nested
    if not strided or value.untyped_storage().device.type == "meta":
        kind = "nested" if value.is_nested else value.layout
        raise CheckpointError(f"{name:.80}: expected a strided tensor with values, got {kind} on {value.device}")
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        raise CheckpointError(f"{name:.80}: expected a tensor inside its storage, got one larger than it")


def _head(work: _Conversion, channels: int, given: str | None) -> str:
    const = work.names["synthesis.b4.const"]
    told = "constant" if const in work.state else "csg" if channels == 2 else "spe"
    if given not in (None, told):
        there = "with" if const in work.state else "without"
        raise CheckpointError(f"head: expected {told!r} of tensors {there} {const}, got {given!r}")
    if given is None and told != "constant" and work.report.family not in _ENCODED:
        return "constant"  # which is missing then
    if given is None and told == "spe" and "head_pos_enc._float_tensor" not in work.state:
        raise CheckpointError(f'state: {const} is missing; if the head is an encoding without tensors, give head="spe"')
    return told


def _multiplier(channels: Mapping[int, int]) -> dict[str, Any]:
    """The constructor arguments behind ``min(16384 * multiplier // side, maximum)``."""
    side, maximum = max(channels), max(channels.values())
    base = channels[side] * side
    if channels[side] == maximum:
        base = max(base, 32768)
    if any(min(base // r, maximum) != count for r, count in channels.items()):
        raise CheckpointError(f"state: channels by side {dict(channels)} do not follow min(base // side, maximum)")
    multiplier = base / 16384
    return {"channel_multiplier": int(multiplier) if multiplier.is_integer() else multiplier, "channel_max": maximum}


def _sides(work: _Conversion, head: str) -> tuple[int, int, int]:
    """Height and width of the first block, and the pixels that a generator without padding adds.

    What MS-PIE's shapes tell goes to the settings; what they leave open is what its published generators are.
    """
    settings, assumed = work.report.settings, work.report.assumed
    height, width = work.get("synthesis.b4.conv1.noise_const", 2).shape[-2:]
    border = work.get("synthesis.b8.conv0.noise_const", 2).shape[-1] - 2 * width
    if border not in (0, 2):
        raise CheckpointError(f"{work.names['synthesis.b8.conv0.noise_const']}: {border} pixels more than twice b4's")
    if (height, width) != (4, 4):
        settings["head_size"] = (height, width)
    if border:
        settings["no_pad"] = True
    elif work.report.family == "mmgeneration" and not work.has("synthesis.b8.conv0.resample_filter"):
        settings["up_after_conv"] = True
        assumed["up_after_conv"] = "as in every published configuration with padding; shapes do not tell"
    if head != "constant":
        settings["interp_head"] = False
        assumed["interp_head"] = "shapes do not tell; True in configurations e and j of MS-PIE"
    return height, width, border


def _some(names: list[str]) -> str:
    return ", ".join(f"{name:.80}" for name in names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
