"""Settings that a pickled module stores beside its tensors: arguments of its constructor, which no tensor tells."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch

from ..ops.common import checks, encodings
from ..ops.common.activations import ACTIVATIONS
from .conversion import positive
from .families import MAX_LOG2
from .pickles import PickledModule, SavedModule
from .precision import HALF_DTYPES, Precision
from .report import CheckpointError
from .stylegan2_synthesis import HEADS

Row = tuple[str, str, str, Callable[[Any, str], Any]]  # argument, path of a layer, its attribute, check of the value


def stored_settings(
    module: PickledModule | None, network: str, overrides: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str]]:
    """Read the arguments that a pickled module stores; return them and notes.

    Args:
        module: the "generator" or "discriminator" of a file, or None.
        network: which of the two.
        overrides: arguments of the user.

    Raises:
        CheckpointError: a value is none that the argument can have.
    """
    if module is None:
        return {}, []
    generator = network == "generator"
    conv = "synthesis.b4.conv1" if generator else "b4.conv"
    layer = module.submodule(conv)
    if layer is not None and layer.class_name.startswith(_OWN):
        return _own_settings(module, generator, conv), []
    if isinstance(module, SavedModule):
        return {}, [only_tensors(module)]
    facts = _values(
        module,
        ("conv_clamp", conv, "conv_clamp", checks.bound),
        ("mbstd_group_size", "b4.mbstd", "group_size", _group_size),
        ("activation", conv, "activation", _activation),
        ("mapping_activation", "mapping.fc0", "activation", _activation),
        ("lr_multiplier", "mapping.fc0", "bias_gain", positive),
        optional=("conv_clamp", "group_size"),
    )
    half, notes = _half_precision(module, generator)
    return facts | half, [] if "num_fp16_res" in overrides else notes


def silent_about_settings(module: PickledModule | None) -> str | None:
    """Say why arguments that no tensor tells are assumed; None for NVlabs' pickles, which tell what they need."""
    if module is None:
        return "a state dictionary does not tell"
    return f"not read from a whole {module.class_name:.80}" if isinstance(module, SavedModule) else None


def only_tensors(module: PickledModule) -> str:
    """Note that arguments of a whole module are left unread."""
    return f"the file holds a whole {module.class_name:.80}, of which only the tensors are read, no settings"


_OWN = "posgan_fast."  # package of this library's classes


def _own_settings(module: PickledModule, generator: bool, conv: str) -> dict[str, Any]:
    """Read the settings of a network of this library. Tensors tell the others, also of untrusted files."""
    rows: tuple[Row, ...] = (
        ("num_fp16_res", "", "num_fp16_res", _count),
        ("half_dtype", "", "half_dtype", _half_dtype),
        ("conv_clamp", conv, "clamp", checks.bound),
        ("activation", conv, "act", _activation),
        ("mapping_activation", "mapping.fc0", "act", _activation),
        ("lr_multiplier", "mapping.fc0", "lr_multiplier", positive),
    )
    if generator:
        facts = _values(
            module,
            *rows,
            ("head", "synthesis.b4", "head", _head),
            ("up_after_conv", "synthesis.b8.conv0", "up_after_conv", _flag_or_none),
        )
        block = module.submodule("synthesis.b4")
        if facts.get("head", "constant") == "constant" or block is None:
            return facts
        return facts | _encoding(block.attributes.get("encoding"), "synthesis.b4.encoding")
    facts = _values(
        module,
        *rows,
        ("adaptive_pool", "", "adaptive_pool", checks.flag),
        ("mbstd_group_size", "b4.mbstd", "group_size", _group_size),
    )
    sizes = _values(module, ("size", "", "size", _positive_count), ("img_size", "", "img_size", checks.size))
    if len(sizes) < 2:
        return facts
    height, width = (max(side * 4 // sizes["size"], 1) for side in sizes["img_size"])
    return facts | {"head_size": _checked((height, width), "img_size", checks.size)}


def _encoding(stored: Any, place: str) -> dict[str, Any]:
    """Read the arguments of a head that is an encoding."""
    if not isinstance(stored, dict):
        raise CheckpointError(f"{place}: expected a dictionary, got {type(stored).__name__}")
    facts: dict[str, Any] = {"interp_head": stored["base_size"] is not None} if "base_size" in stored else {}
    for name, check in (("layout", _layout), ("div_half_dim", checks.flag)):
        if name in stored:
            facts[name] = _checked(stored[name], f"{place}.{name}", check)
    return facts


def _values(module: PickledModule, *rows: Row, optional: Iterable[str] = ()) -> dict[str, Any]:
    """Read attributes of layers; one of the ``optional`` names is None where the layer lacks it."""
    facts = {}
    for argument, path, name, check in rows:
        layer = module.submodule(path)
        if layer is not None and (name in layer.attributes or name in optional):
            facts[argument] = _checked(layer.attributes.get(name), f"{path}.{name}".strip("."), check)
    return facts


def _checked(value: Any, place: str, check: Callable[[Any, str], Any]) -> Any:
    try:
        return check(value, place)
    except (TypeError, ValueError, OverflowError) as error:
        message = str(error) if place in str(error) else f"{place}: {error}"
        raise CheckpointError(message if len(message) <= _LONGEST else message[:_LONGEST] + " ...") from None


_LONGEST = 400  # characters of an error, which repeats values of a file


def _half_precision(module: PickledModule, generator: bool) -> tuple[dict[str, int], list[str]]:
    """Read ``num_fp16_res``, which the blocks decide: training scripts may have changed them after the constructor."""
    inner = module.submodule("synthesis") if generator else module
    number = _stored_number(module, inner) if inner is not None else None
    blocks = {2**i: None if inner is None else inner.submodule(f"b{2**i}") for i in range(2, MAX_LOG2 + 1)}
    flags = {r: block.attributes.get("use_fp16") for r, block in blocks.items() if block is not None}
    half = [r for r, flag in flags.items() if flag is True]
    if all(flag is None for flag in flags.values()):  # no block tells
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
                    return _count(values["num_fp16_res"], "num_fp16_res")
                except (TypeError, ValueError) as error:
                    raise CheckpointError(str(error)) from None
    return None


def _group_size(value: Any, place: str) -> int | None:
    return None if value is None else _positive_count(value, place)


def _activation(value: Any, place: str) -> str:
    return checks.choice(value, place, tuple(ACTIVATIONS))


def _head(value: Any, place: str) -> str:
    return checks.choice(value, place, HEADS)


def _layout(value: Any, place: str) -> str:
    return checks.choice(value, place, encodings.LAYOUTS)


def _count(value: Any, place: str) -> int:
    return checks.integer(value, place, minimum=0, maximum=checks.MAX_SIZE)  # Python does not print any int


def _positive_count(value: Any, place: str) -> int:
    return checks.integer(value, place, minimum=1, maximum=checks.MAX_SIZE)


def _flag_or_none(value: Any, place: str) -> bool | None:
    return None if value is None else checks.flag(value, place)


def _half_dtype(value: Any, place: str) -> torch.dtype:
    if not isinstance(value, torch.dtype) or value not in HALF_DTYPES.values():
        got = value if isinstance(value, torch.dtype) else type(value).__name__
        raise ValueError(f"{place}: expected one of {tuple(HALF_DTYPES.values())}, got {got}")
    return value
