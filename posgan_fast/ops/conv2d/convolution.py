"""The convolution inside of layers: the vendor's, or Winograd's where it is faster, with derivatives of every order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch.nn import grad as gradients

from ... import backend as _backend
from ...algorithm import algorithm
from .. import winograd3x3
from ..common import autocast, layout, onednn
from ..common.op import Op, is_plain, is_recorded, restore, save
from ..winograd3x3 import Form
from . import derivatives
from .derivatives import Geometry

_LEAST_REORDERED = 64  # channels and filters of a plain convolution outside of channels_last
_LEAST_RECORDED = (64, 256, 256)  # of each form, where a derivative may follow


class Call(NamedTuple):
    """The arguments of the op, in the order of its schema. ``weight`` is [O, I, kh, kw], transposed [I, O, kh, kw]."""

    x: torch.Tensor
    weight: torch.Tensor
    stride: int
    padding: Sequence[int]
    transposed: bool

    @property
    def geometry(self) -> Geometry:
        return Geometry(self.stride, self.padding, self.transposed)


def convolve(
    x: torch.Tensor,
    weight: torch.Tensor,
    *,
    stride: int = 1,
    padding: int | Sequence[int] = 0,
    transposed: bool = False,
    backend: str | None = None,
) -> torch.Tensor:
    """Convolve as torch.nn.functional.conv2d or conv_transpose2d does, with ``weight`` in torch's or oneDNN's layout.

    Winograd's algorithm steps in for plain calls on the CPU, unless ``backend`` or use_backend asks for another.
    """
    if weight.is_mkldnn:
        conv = onednn.conv_transpose2d if transposed else onednn.conv2d
        return conv(x, weight, stride=stride, padding=_pair(padding))
    call = Call(x, weight, stride, _pair(padding), transposed)
    if not is_plain(x, weight) or autocast.is_enabled(x):
        return _direct(call)
    asked = backend == "cpu" or (backend in (None, _backend.AUTO) and _backend.uses_cpu_kernels(x))
    if asked and reason_against(call) is None:
        return OP(call)
    # oneDNN takes no longer for torch's own derivatives.
    differentiates = is_recorded(call) and x.device.type != "cpu"
    return derivatives.convolve(x, weight, call.geometry) if differentiates else _direct(call)


def reason_against(call: Call) -> str | None:
    """Return why a direct convolution serves a call, or None if Winograd's does."""
    form = _form(call)
    if form is None and call.stride > 2:
        return f"the stride is {call.stride}"
    if form is None:
        return f"no form of it has {'transposed ' if call.transposed else ''}padding {tuple(call.padding)}"
    weight = call.weight.transpose(0, 1) if call.transposed else call.weight
    reason = winograd3x3.reason_against(call.x, weight, form, out_size(call))
    return _too_narrow(call, form) if reason is None and algorithm() == "auto" else reason


def _too_narrow(call: Call, form: Form) -> str | None:
    """Return why a call with few channels is not worth a change of the memory format or the gradient's kernel."""
    dense, recorded = call.x.is_contiguous(memory_format=torch.channels_last), is_recorded(call)
    if not dense and form != Form.PLAIN:
        return "x is not in channels_last, and the stride is 2"
    least = _LEAST_RECORDED[form] if recorded else 0 if dense else _LEAST_REORDERED
    if min(call.weight.shape[:2]) >= least:
        return None
    return f"fewer than {least} channels or filters {'with a derivative' if recorded else 'outside of channels_last'}"


def out_size(call: Call) -> tuple[int, int]:
    """Return the height and width of the result."""
    sizes = zip(call.x.shape[2:], call.weight.shape[2:], call.padding, strict=True)
    if call.transposed:
        h, w = ((size - 1) * call.stride + kernel - 2 * pad for size, kernel, pad in sizes)
    else:
        h, w = ((size + 2 * pad - kernel) // call.stride + 1 for size, kernel, pad in sizes)
    return h, w


def _form(call: Call) -> Form | None:
    """Return the form of Winograd's algorithm, or None where there is none."""
    if call.transposed:
        return Form.UP if call.stride == 2 and not any(call.padding) else None
    if call.stride > 2 or call.padding[0] != call.padding[1]:
        return None
    return Form.DOWN if call.stride == 2 else Form.PLAIN


def _pair(padding: int | Sequence[int]) -> Sequence[int]:
    return (padding, padding) if isinstance(padding, int) else padding


def _direct(call: Call) -> torch.Tensor:
    return derivatives.direct(call.x, call.weight, call.geometry)


def _kernel(call: Call) -> torch.Tensor:
    form = _form(call)
    if form is None or reason_against(call) is not None:  # the choice may have changed after the graph was made
        y = _direct(call)
    else:
        weight = call.weight.transpose(0, 1) if call.transposed else call.weight
        padding = 1 if call.transposed else call.padding[0]
        tiles = winograd3x3.tiles_of(call.x, form, out_size(call))
        y = winograd3x3.run(call.x, winograd3x3.prepare(weight, form, tiles=tiles), form, padding=padding)
    return layout.as_empty(y, call.x)


def _empty(call: Call) -> torch.Tensor:
    filters = call.weight.shape[1 if call.transposed else 0]
    return layout.empty(call.x, (call.x.shape[0], filters, *out_size(call)))


def _backward(ctx, dy, wanted):
    call, _ = restore(ctx)
    found = {}
    if "x" in wanted:
        found["x"] = _input_gradient(call, dy)
    if "weight" in wanted:
        found["weight"] = _weight_gradient(call, dy)
    return found


def _input_gradient(call: Call, dy: torch.Tensor) -> torch.Tensor:
    """Convolve with the weight the other way round."""
    if call.transposed:
        return convolve(dy, call.weight, stride=call.stride, padding=call.padding)
    if call.stride == 1 and call.weight.shape[2:] == (3, 3) and max(call.padding) <= 2:
        flipped = call.weight.transpose(0, 1).flip((2, 3))
        return convolve(dy, flipped, padding=[2 - pad for pad in call.padding])
    size = [call.x.shape[0], call.weight.shape[1], *call.x.shape[2:]]
    whole = [(s - 1) * call.stride + k - 2 * p for s, k, p in zip(dy.shape[2:], (3, 3), call.padding, strict=True)]
    if list(size[2:]) == whole:
        return convolve(dy, call.weight, stride=call.stride, padding=call.padding, transposed=True)
    return gradients.conv2d_input(size, call.weight, dy, call.stride, tuple(call.padding))


def _weight_gradient(call: Call, dy: torch.Tensor) -> torch.Tensor:
    gradient = GradientCall(call.x, dy, call.stride, call.padding, call.transposed, *call.weight.shape[2:])
    if not is_plain(call.x, dy) or autocast.is_enabled(dy) or reason_against(call) is not None:
        return _direct_gradient(gradient)
    return GRADIENT(gradient)


class GradientCall(NamedTuple):
    """The arguments of the op that computes the gradient of a weight."""

    x: torch.Tensor
    dy: torch.Tensor
    stride: int
    padding: Sequence[int]
    transposed: bool
    kernel_height: int
    kernel_width: int

    @property
    def convolution(self) -> Call:
        """The convolution by the weight, whose values do not matter."""
        sides = (self.x.shape[1], self.dy.shape[1]) if self.transposed else (self.dy.shape[1], self.x.shape[1])
        weight = self.x.new_empty((*sides, self.kernel_height, self.kernel_width), device="meta")
        return Call(self.x, weight, self.stride, self.padding, self.transposed)


def _direct_gradient(call: GradientCall) -> torch.Tensor:
    x, y = (call.dy, call.x) if call.transposed else (call.x, call.dy)
    shape = call.convolution.weight.shape
    return gradients.conv2d_weight(x, shape, y, call.stride, tuple(call.padding))


def _compute_gradient(call: GradientCall) -> torch.Tensor:
    form = _form(call.convolution)
    if form is None or reason_against(call.convolution) is not None or call.dy.dtype != call.x.dtype:
        return _direct_gradient(call).contiguous()
    dw = winograd3x3.weight_gradient(call.x, call.dy, form, 1 if call.transposed else call.padding[0])
    return dw.transpose(0, 1).contiguous() if call.transposed else dw


def _gradient_backward(ctx, g, wanted):
    call, _ = restore(ctx)
    convolution = Call(call.x, g, call.stride, call.padding, call.transposed)
    found = {}
    if "x" in wanted:
        found["x"] = _input_gradient(convolution, call.dy)
    if "dy" in wanted:
        found["dy"] = convolve(call.x, g, stride=call.stride, padding=call.padding, transposed=call.transposed)
    return found


OP = Op(
    "winograd3x3(Tensor x, Tensor weight, int stride, SymInt[2] padding, bool transposed) -> Tensor",
    Call,
    fake=_empty,
    kernel=_kernel,
    decomposition=lambda call: layout.in_format_of(_direct(call), call.x),
    setup_context=lambda ctx, call, result: save(ctx, call, "x", "weight"),
    backward=_backward,
    samples=("x",),
)

GRADIENT = Op(
    "winograd3x3_gradient(Tensor x, Tensor dy, int stride, SymInt[2] padding, bool transposed, int kernel_height,"
    " int kernel_width) -> Tensor",
    GradientCall,
    fake=lambda call: call.x.new_empty(call.convolution.weight.shape),
    kernel=_compute_gradient,
    decomposition=lambda call: _direct_gradient(call).contiguous(),
    setup_context=lambda ctx, call, result: save(ctx, call, "x", "dy"),
    backward=_gradient_backward,
)
