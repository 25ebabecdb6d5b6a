r"""conv2d: a convolution with bias and activation, by Winograd's algorithm where it is faster.

    y = clamp(gain * act(scale * conv(pad(x), weight) + bias), -clamp, +clamp)

``conv`` correlates, as torch's convolutions do. On the CPU in float32 a 3x3 kernel with stride 1 or 2 runs by
Winograd's algorithm, which takes a quarter of the products (half of them with stride 2) and applies scale, bias and
activation while it writes; :func:`posgan_fast.set_algorithm` chooses, :func:`posgan_fast.explain` tells. Everything
else is torch's convolution, followed by one pass for bias and activation.

Shapes: ``x`` [N, I, H, W], ``weight`` [O, I, kh, kw]; result [N, O, H', W'] in the dtype of ``x``, with H' = (H + 2 *
padding - kh) // stride + 1. Without a derivative the memory format is that of ``x``, otherwise that of torch's
convolution. Under autocast the op runs in autocast's dtype, unless ``x`` is float64.
Dtypes: float16, bfloat16, float32, float64; the other tensors are cast to that of ``x``.
Errors: those of a direct convolution; by Winograd's algorithm relative L2 up to 2e-6 against float64, and a number that
is not finite spoils whole tiles of 4 x 4 results.
Derivatives: in ``x``, ``weight``, ``scale`` and ``bias``, of the orders that :func:`posgan_fast.functional.bias_act`
has.

Source: torch.nn.functional.conv2d; "Fast Algorithms for Convolutional Neural Networks" (CVPR 2016).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from ... import backend as _backend
from .. import bias_act, epilogue2d, prologue2d, winograd3x3
from ..common import autocast, checks, layout
from ..common.op import is_plain, is_recorded
from ..common.records import Activation
from . import convolution
from .convolution import convolve

NAME = "conv2d"
PADDING_MODES = ("zeros", "reflect")


def conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    *,
    scale: torch.Tensor | float | None = None,
    stride: int = 1,
    padding: int = 0,
    padding_mode: str = "zeros",
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    r"""Convolve, scale, add a bias, activate; the module's docstring has the formula.

    Args:
        x: input [N, I, H, W], NCHW or channels_last.
        weight: [O, I, kh, kw], any floating dtype. :func:`posgan_fast.nn.prepack` keeps what is prepared from it.
        bias: [O], or None.
        scale: factor of the convolution's result, a number or [O]: that of an equalised learning rate, or of a batch
            normalisation that is folded. None: 1.
        stride: rows and columns between the positions of the kernel.
        padding: pixels on every side, >= 0.
        padding_mode: "zeros" or "reflect".
        act, alpha, gain, clamp: as in :func:`bias_act`.
        backend: "reference", "cpu", "triton" or "cuda"; None lets :mod:`posgan_fast.backend` choose.

    Returns:
        [N, O, H', W'].

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape, size, mode or device.
        BackendError: the chosen backend cannot run this call.

    Example:
        >>> x, weight = torch.randn(1, 16, 32, 32), torch.randn(32, 16, 3, 3)
        >>> conv2d(x, weight, torch.zeros(32), padding=1, act="lrelu").shape
        torch.Size([1, 32, 32, 32])
    """
    call = check(x, weight, bias, scale, stride, padding, padding_mode, (act, alpha, gain, clamp), backend)
    return autocast.run(call, _run)


class Call(NamedTuple):
    """The arguments of a call, checked; ``scale`` is a number or a tensor."""

    x: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    scale: Any
    stride: int
    padding: int
    padding_mode: str
    activation: Activation
    backend: str

    @property
    def inner(self) -> convolution.Call:
        """The convolution of the call, without what surrounds it."""
        return convolution.Call(self.x, self.weight, self.stride, (self.padding, self.padding), False)


def check(x, weight, bias, scale, stride, padding, padding_mode, activation, backend) -> Call:
    """Validate the arguments of a user; return the complete call with its backend."""
    checks.tensor(x, "x", ndim=4)
    checks.tensor(weight, "weight", ndim=4)
    checks.same_device(weight, "weight", x)
    o, i, kh, kw = weight.shape
    if i != x.shape[1] or weight.numel() == 0:
        raise ValueError(
            f"weight: expected shape [O, {x.shape[1]}, kh, kw] for x of {x.shape[1]} channels, got"
            f" {tuple(weight.shape)}"
        )
    for name, vector in (("bias", bias), ("scale", scale)):
        if vector is not None and (name == "bias" or isinstance(vector, torch.Tensor)):
            checks.tensor(vector, name, shape=(o,))
            checks.same_device(vector, name, x)
    if not (scale is None or isinstance(scale, torch.Tensor)):
        scale = checks.real(scale, "scale")
    stride = checks.integer(stride, "stride", minimum=1, maximum=checks.MAX_FACTOR)
    padding = checks.integer(padding, "padding", minimum=0, maximum=checks.MAX_PADDING)
    h, w = x.shape[2:]
    if checks.choice(padding_mode, "padding_mode", PADDING_MODES) == "reflect" and padding >= min(h, w):
        raise ValueError(f"padding: expected less than the size {h} x {w} to reflect, got {padding}")
    if h + 2 * padding < kh or w + 2 * padding < kw:
        raise ValueError(f"padding: expected an input of at least the kernel's {kh} x {kw}, got {h} x {w}, {padding=}")
    _, _, activation = bias_act.check(x, None, 1, activation)
    call = Call(x, weight, bias, scale, stride, padding, padding_mode, activation, _backend.AUTO)
    return call._replace(backend=_backend.resolve(NAME, IMPLS, x, backend, lambda name: _algorithm(name, call)))


def _algorithm(backend: str, call: Call) -> str | None:
    """Name the algorithm by which a backend serves a call, for explain."""
    return _backend.winograd_unless(reason_against(call)) if backend == "cpu" else None


def reason_against(call: Call) -> str | None:
    """Return why a direct convolution serves a call, or None if Winograd's does."""
    return convolution.reason_against(call._replace(x=autocast.cast(call.x)).inner)


def _run(call: Call) -> torch.Tensor:
    if is_recorded(call):
        return _backend.unlisted(lambda: _run_stages(call))
    infers = call.backend == "cpu" and is_plain(*(t for t in call if isinstance(t, torch.Tensor)))
    y = _backend.unlisted(lambda: _infer(call) if infers else _run_stages(call))
    return layout.in_format_of(y, call.x)


def _run_stages(call: Call) -> torch.Tensor:
    """Compute a call as one differentiable op after the other."""
    y, bias = _convolved(call), _as(call.bias, call)
    if bias is not None or call.activation != Activation():
        y = bias_act.OP(bias_act.Call(y, bias, 1, *call.activation, call.backend))
    return y.to(call.x.dtype)


def _convolved(call: Call) -> torch.Tensor:
    x, backend, padding = call.x, call.backend, call.padding
    if backend == "reference":  # the definition rounds once, at the end
        x = x.to(checks.arithmetic(x.dtype))
    weight, scale = call.weight, call.scale
    if scale is not None:  # in the wider dtype, as the weight is rounded once
        weight = weight * (scale.reshape(-1, 1, 1, 1) if isinstance(scale, torch.Tensor) else scale)
    if call.padding_mode == "reflect" and padding:
        x, padding = prologue2d.prologue2d(x, padding=padding, mode="reflect", backend=backend), 0
    return convolve(x, layout.weight_for(x, weight), stride=call.stride, padding=padding, backend=backend)


def _as(bias: torch.Tensor | None, call: Call) -> torch.Tensor | None:
    wide = call.backend == "reference"
    return None if bias is None else bias.to(checks.arithmetic(call.x.dtype) if wide else call.x.dtype)


def _infer(call: Call) -> torch.Tensor:
    """Compute a call that asks for no derivative on the CPU."""
    x = call.x
    if reason_against(call) is not None:
        y = layout.in_format_of(_convolved(call), x)
        if call.bias is None and call.activation == Activation():
            return y
        return epilogue2d.write_over(y, None, None, _as(call.bias, call), call.activation, "cpu")
    form = winograd3x3.Form.PLAIN if call.stride == 1 else winograd3x3.Form.DOWN
    scale = call.scale
    if isinstance(scale, float):
        scale = x.new_full((call.weight.shape[0],), scale)
    tiles = winograd3x3.tiles_of(x, form, convolution.out_size(call.inner))
    return winograd3x3.activated(
        x,
        winograd3x3.prepare(call.weight, form, tiles=tiles),
        form,
        call.activation,
        padding=call.padding,
        mode=PADDING_MODES.index(call.padding_mode),
        scale=None if scale is None else scale.to(x.dtype),
        shift=_as(call.bias, call),
    )


IMPLS = (
    _backend.Impl("cuda", _backend.cuda_can_run, _run_stages),
    _backend.Impl("cpu", _backend.cpu_can_run, _infer),
    _backend.Impl("triton", _backend.triton_can_run, _run_stages),
    _backend.Impl("reference", _backend.reference_can_run, _run_stages),
)
