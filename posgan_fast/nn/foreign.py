"""Layers of other projects: recognising them, and converting them to the layers of this library.

A layer is recognised by its attributes and by the exact set of its tensors' names; nothing is imported. The families
differ as follows:

    rosinality       weight [1, O, I, k, k], multiplied by ``scale`` ahead of the demodulation; filters include the gain
                     of upsampling; noise is drawn unless the call brings some
    mmgeneration     like rosinality, but a hook scales ``weight_orig``; clamps in half precision only
    NVlabs           names and values are those of this library
    Hammer, PadInv   scales are attributes; noise is constant [1, 1, H, W] unless the call asks for another

Scales that the layers here do not have are multiplied into the parameters.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import torch

from ..ops.bias_act import ACTIVATIONS
from ..ops.common import checks

L = TypeVar("L", bound="Convertible")


class Convertible(torch.nn.Module):
    """A layer that other projects have as well."""

    _foreign: tuple[Pattern, ...] = ()

    @classmethod
    def from_foreign(cls: type[L], module: torch.nn.Module) -> L:
        """Convert a layer of another project to this class.

        Attributes and names of tensors identify layers of rosinality's stylegan2-pytorch, NVlabs' stylegan2-ada and
        stylegan3 (its networks of StyleGAN2), mmgeneration, Hammer and PadInv. Parameters are copied; dtype, device,
        ``requires_grad`` and ``training`` stay. Where a call brings no noise, the new layer draws it or uses the
        stored noise as ``module`` does.

        Args:
            module: one layer; convert a network layer by layer.

        Raises:
            TypeError: ``module`` is no such layer, or has hooks, which would be lost.
            ValueError: ``module`` has a setting that this class does not have.
        """
        arguments, state = recognise(module, cls._foreign, cls.__name__)
        with torch.device("meta"):
            layer = cls(**arguments)
        missing = [name for name in _tensors(layer) if name not in state]
        if missing:
            raise TypeError(f"module: expected tensors for {', '.join(missing)}, got none in {type(module).__name__}")
        for name, value in state.items():
            owner, _, attribute = name.rpartition(".")
            _assign(layer.get_submodule(owner), attribute, value)
        return layer.train(module.training)


class Converted(NamedTuple):
    """Constructor arguments, parameters and buffers of a layer of this library."""

    arguments: dict[str, Any]
    state: dict[str, torch.Tensor]


@dataclass(frozen=True)
class Pattern:
    """The tensors and attributes that identify a foreign layer, and a function that reads it.

    ``read`` returns None for a layer that matches but computes something else.
    """

    name: str
    tensors: str  # "name" or "name:dimensions", followed by "?" if the tensor may be missing
    attributes: str
    read: Callable[[Any], Any]

    def matches(self, module: torch.nn.Module) -> bool:
        found = _tensors(module)
        for entry in self.tensors.split():
            name, _, dimensions = entry.rstrip("?").partition(":")
            value = found.pop(name, None)
            if (entry[-1] != "?") if value is None else (dimensions not in ("", str(value.ndim))):
                return False
        return not found and all(_has(module, path) for path in self.attributes.split())


def recognise(module: Any, patterns: tuple[Pattern, ...], wanted: str) -> Any:
    """Read ``module`` with the first pattern that matches."""
    if not isinstance(module, torch.nn.Module):
        raise TypeError(f"module: expected a torch.nn.Module, got {type(module).__name__}")
    for pattern in patterns:
        try:
            result = pattern.read(module) if pattern.matches(module) else None
        except AttributeError as error:
            raise TypeError(f"module: expected {pattern.name}, got one with a part missing: {error}") from error
        if result is not None:
            _check_hooks(module)
            return result
    names = ", ".join(_tensors(module)) or "no tensors"
    raise TypeError(
        f"module: expected for {wanted} one of {'; '.join(pattern.name for pattern in patterns)}, as these projects"
        f" build it, got {type(module).__name__} with {names}"
    )


def _tensors(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {**dict(module.named_parameters()), **dict(module.named_buffers())}


def _has(module: Any, path: str) -> bool:
    for name in path.split("."):
        if not hasattr(module, name):
            return False
        module = getattr(module, name)
    return True


def _check_hooks(module: torch.nn.Module) -> None:
    for part in module.modules():
        hooks = [*part._forward_hooks.values(), *part._backward_hooks.values(), *part._backward_pre_hooks.values()]
        hooks += [hook for hook in part._forward_pre_hooks.values() if not _equalises(hook)]
        if hooks:
            raise TypeError(f"module: expected a layer without hooks, got one with hooks on {type(part).__name__}")


def _assign(owner: torch.nn.Module, name: str, value: torch.Tensor) -> None:
    expected = getattr(owner, name)
    if value.shape != expected.shape and name != "resample_filter":
        raise TypeError(f"module: expected {tuple(expected.shape)} for {name}, got shape {tuple(value.shape)}")
    checks.tensor(value, name)
    if name in owner._parameters:
        value = torch.nn.Parameter(value.detach(), value.requires_grad)
    setattr(owner, name, value)


def copied(source: torch.Tensor, times: float = 1.0, shape: tuple[int, ...] | None = None) -> torch.Tensor:
    """Copy a tensor, multiplied by ``times`` unless that is 1 up to rounding."""
    value = source.detach().clone()
    if not math.isclose(times, 1, rel_tol=1e-6):
        value *= times
    return (value if shape is None else value.reshape(shape)).requires_grad_(source.requires_grad)


def expect(module: Any, name: str, expected: Any, got: Any) -> None:
    """Refuse a setting that the layer here does not have."""
    same = math.isclose(got, expected, rel_tol=1e-6) if isinstance(expected, float) else got == expected
    if not same:
        raise ValueError(f"module: expected {name} {expected!r} of {type(module).__name__}, got {got!r}")


def _equalises(hook: Any) -> bool:
    """Tell whether ``hook`` is mmgeneration's, which computes ``weight`` from ``weight_orig`` ahead of each call."""
    return all(hasattr(hook, name) for name in ("name", "gain", "mode", "lr_mul"))


def equalised(module: Any) -> float:
    """Return the factor by which mmgeneration's hook multiplies ``weight_orig``."""
    hooks = [hook for hook in module._forward_pre_hooks.values() if _equalises(hook)]
    if len(hooks) != 1:
        raise TypeError(f"module: expected one hook that scales weight_orig, got {len(hooks)}")
    (hook,) = hooks
    o, i, *kernel = module.weight_orig.shape[-4:] if module.weight_orig.ndim > 2 else module.weight_orig.shape
    fan = (i if hook.mode == "fan_in" else o) * math.prod(kernel)
    return hook.gain * hook.lr_mul / math.sqrt(fan)


class _Linear(NamedTuple):
    weight: torch.Tensor
    bias: torch.Tensor | None
    weight_scale: float
    bias_scale: float
    act: str


def _mmgeneration_linear(module: Any) -> _Linear:
    if module.with_activation:
        expect(module, "act_type", "fused_bias", module.act_type)
        keywords = module.activate.keywords if isinstance(module.activate, functools.partial) else {}
        check_lrelu(module, keywords.get("negative_slope", 0.2), keywords.get("scale", 2**0.5))
    act = "lrelu" if module.with_activation else "linear"
    return _Linear(module.linear.weight_orig, module.bias, equalised(module.linear), module.lr_mul, act)


_LINEARS = (
    Pattern(
        "rosinality's EqualLinear", "weight:2 bias?", "scale lr_mul activation",
        lambda m: _Linear(m.weight, m.bias, m.scale, m.lr_mul, "lrelu" if m.activation else "linear"),
    ),
    Pattern(
        "NVlabs' FullyConnectedLayer", "weight:2 bias?", "weight_gain bias_gain activation",
        lambda m: _Linear(m.weight, m.bias, m.weight_gain, m.bias_gain, m.activation),
    ),
    Pattern("mmgeneration's EqualLinearActModule", "linear.weight_orig:2 bias?", "lr_mul with_activation act_type",
           _mmgeneration_linear),
    Pattern(
        "Hammer's DenseLayer", "weight:2 bias?", "wscale lr_mul activation_type",
        lambda m: _Linear(m.weight, m.bias, m.wscale, m.lr_mul, m.activation_type),
    ),
)  # fmt: skip


def _equal_linear(linear: _Linear) -> Converted:
    o, i = linear.weight.shape
    arguments = dict(in_features=i, out_features=o, bias=linear.bias is not None, act=linear.act)
    state = {"weight": copied(linear.weight, linear.weight_scale / linear.bias_scale * math.sqrt(i))}
    if linear.bias is not None:
        state["bias"] = copied(linear.bias)
    return Converted({**arguments, "lr_multiplier": float(linear.bias_scale)}, state)


def affine(module: torch.nn.Module, plus: float = 0.0) -> dict[str, torch.Tensor]:
    """Convert the layer that computes the styles, and add ``plus`` to its bias."""
    linear = recognise(module, _LINEARS, "the affine layer of styles")
    expect(module, "activation", "linear", linear.act)
    if linear.bias is None:
        raise ValueError(f"module: expected a bias in {type(module).__name__}, got None")
    bias = copied(linear.bias, linear.bias_scale)
    if plus:
        bias = (bias.detach() + plus).requires_grad_(bias.requires_grad)
    weight = copied(linear.weight, linear.weight_scale * math.sqrt(linear.weight.shape[1]))
    return {"affine.weight": weight, "affine.bias": bias}


def check_lrelu(module: Any, slope: float, scale: float) -> None:
    expect(module, "negative_slope", 0.2, float(slope))
    expect(module, "scale", 2**0.5, float(scale))


def check_gain(module: Any, act: str) -> None:
    if act in ACTIVATIONS:  # the layer's constructor refuses others
        expect(module, "act_gain", ACTIVATIONS[act].gain, float(module.act_gain))


def _bias_act(module: Any) -> Converted:
    bias = module.bias
    arguments = dict(act="lrelu", alpha=float(module.negative_slope), gain=float(module.scale), bias=bias is not None)
    if bias is None:
        return Converted({**arguments, "channels": None}, {})
    return Converted({**arguments, "channels": bias.numel()}, {"bias": copied(bias, shape=(bias.numel(),))})


def _resampled(module: Any, up: bool) -> Converted | None:
    """Read the filter of an image that is upsampled or downsampled; None if its padding serves something else."""
    kernel, factor, total = module.kernel, int(module.factor), float(module.kernel.sum())
    around = _around(kernel, factor if up else 1, 1 if up else factor)
    if tuple(module.pad) != around or total == 0:
        return None
    gain = total / factor**2 if up else total
    return Converted(dict(factor=factor, gain=gain), {"resample_filter": copied(kernel / total)})


def _around(kernel: torch.Tensor, up: int, down: int) -> tuple[int, int]:
    """Padding of a filter that keeps, upsamples or downsamples the image."""
    taps = kernel.shape[-1]
    return (taps + up - down) // 2, (taps - up * down) // 2


def _blur(module: Any) -> Converted | None:
    kernel, total = module.kernel, float(module.kernel.sum())
    if hasattr(module, "factor") or len(module.pad) != 2 or total == 0:
        return None
    before, after = module.pad
    (fh, fw), (x0, x1) = kernel.shape, (int(before), int(after))
    padding = (x0 - fw // 2, x1 - (fw - 1) // 2, x0 - fh // 2, x1 - (fh - 1) // 2)
    return Converted(dict(padding=padding, gain=total), {"resample_filter": copied(kernel / total)})


def padding_of(blur: Any, kernel: int, up: int, down: int) -> int:
    """Padding of the convolution alone, where the blur pads for both the convolution and the filter."""
    before, after = _around(blur.kernel, up, down)
    if up > 1:
        before, after = before - kernel + 1, after - kernel + up
    padding = int(blur.pad[0]) - before
    if padding < 0 or tuple(blur.pad) != (before + padding, after + padding):
        raise ValueError(
            f"module: expected the filter's padding to be ({before}, {after}) and as much on both sides beyond it, got"
            f" {tuple(blur.pad)}"
        )
    return padding


UPSAMPLE = Pattern("Upsample of rosinality or mmgeneration", "kernel:2", "factor pad", lambda m: _resampled(m, True))
DOWNSAMPLE = Pattern(
    "Downsample of rosinality or mmgeneration", "kernel:2", "factor pad", lambda m: _resampled(m, False)
)
BLUR = Pattern("Blur of rosinality or mmgeneration", "kernel:2", "pad", _blur)
FUSED = Pattern("FusedLeakyReLU of rosinality or mmgeneration", "bias?", "bias negative_slope scale", _bias_act)


def unless_filtered(state: dict[str, torch.Tensor]) -> dict[str, None]:
    """Return the argument for a layer without a filter, if ``state`` has none."""
    return {} if "resample_filter" in state else {"resample_filter": None}


def half_clamp(module: Any) -> float | None:
    """Return the bound of mmgeneration's layers, which clamp in half precision only."""
    return module.conv_clamp if getattr(module, "fp16_enabled", False) else None


def _minibatch_std(group: str, channels: str) -> Callable[[Any], Converted]:
    def read(module: Any) -> Converted:
        expect(module, "eps", 1e-8, float(getattr(module, "eps", 1e-8)))
        expect(module, "sync_std", False, getattr(module, "sync_std", False))
        return Converted(dict(group_size=getattr(module, group), num_channels=getattr(module, channels)), {})

    return read


def _as_layer(pattern: Pattern) -> Pattern:
    return Pattern(
        pattern.name, pattern.tensors, pattern.attributes, lambda module: _equal_linear(pattern.read(module))
    )


EQUAL_LINEAR = tuple(map(_as_layer, _LINEARS))
UPSAMPLE2D, DOWNSAMPLE2D, BLUR2D, BIAS_ACT = (UPSAMPLE,), (DOWNSAMPLE,), (BLUR,), (FUSED,)
MINIBATCH_STD = (
    Pattern("NVlabs' MinibatchStdLayer", "", "group_size num_channels", _minibatch_std("group_size", "num_channels")),
    Pattern(
        "mmgeneration's ModMBStddevLayer", "", "group_size channel_groups eps sync_std",
        _minibatch_std("group_size", "channel_groups"),
    ),
    Pattern("Hammer's MiniBatchSTDLayer", "", "groups new_channels eps", _minibatch_std("groups", "new_channels")),
)  # fmt: skip
