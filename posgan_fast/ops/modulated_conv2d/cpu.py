"""Inference of the style layer on the CPU, in channels_last: one pass over the weight prepares it for oneDNN, and the
epilogue writes over the convolution's result."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from .. import prologue2d
from ..bias_act import passes
from ..common import checks, layout, onednn, weight_cache
from ..common.activations import ACTIVATIONS
from . import coefs, conv2d_resample, winograd
from .call import Call, with_scaled_noise
from .stages import has_few_filters, infer_stages, run_stages


class Form(NamedTuple):
    """The arrangement in which a convolution reads a weight."""

    dtype: torch.dtype
    up: bool
    polyphase: bool  # even and odd rows of the result each by a plain convolution, instead of a transposed one
    flip: bool  # reverse the stored kernel


def infer(call: Call) -> torch.Tensor:
    """Compute a call that asks for no derivative."""
    if call.x.dtype == torch.float16:  # needs care with its range, and no CPU is fast in it
        return run_stages(call, inplace=True)
    call = with_scaled_noise(call)
    x, acc = call.x.contiguous(memory_format=torch.channels_last), checks.arithmetic(call.x.dtype)
    call = call._replace(
        x=x,
        styles=call.styles.to(acc),
        noise=layout.contiguous_as(acc, call.noise),
        bias=layout.contiguous_as(x.dtype, call.bias),
    )
    if winograd.reason_against(call) is None:
        return winograd.infer(call)
    fold = x.shape[0] == 1 and (call.pad_map is None or call.up > 1)  # put the only sample's styles into the weight
    if not fold and has_few_filters(call):
        return run_stages(call, inplace=True)
    form = _form_of(call)
    dcoefs, w, odd_rows, styles = _arguments(call, form, fold)
    if odd_rows is None:
        return infer_stages(call, w, styles, dcoefs, "cpu")
    z = prologue2d.prologue2d(x, styles, backend="cpu")
    even, odd = onednn.conv2d(z, w, padding=(1, 1)), onednn.conv2d(z, odd_rows, padding=(0, 1))
    return _filter_polyphase(even, odd, dcoefs, call)


def _form_of(call: Call) -> Form:
    up, kernel = call.up, call.weight.shape[2:]
    unpadded = call.padding == 1 and call.pad_map is None
    polyphase = up == 2 and kernel == (3, 3) and call.x.dtype == torch.bfloat16 and unpadded
    return Form(call.x.dtype, up > 1, polyphase, call.flip_weight if up > 1 else not call.flip_weight)


def _arguments(call: Call, form: Form, fold: bool) -> tuple[Any, ...]:
    """Return the coefficients, the weight, the weight of odd rows (polyphase) and the styles that are to scale x."""
    x, weight, styles, kept = call.x, call.weight, call.styles, None
    if x.shape[0] and (not fold or weight.numel() > x.numel()):  # folding is cheaper than scaling x
        kept = weight_cache.packed(weight, form, lambda: _packed(call, form))
    if kept is None:
        return *_prepared(weight.to(styles.dtype), styles, call, form, fold), None if fold else styles
    squares, w, odd_rows = kept
    dcoefs = coefs.from_squares(squares, styles, call.eps) if call.demodulate else None
    return dcoefs, w, odd_rows, styles


def _packed(call: Call, form: Form) -> tuple[torch.Tensor | None, ...]:
    """Prepare a weight for the cache: return the squares [I, O] of its kernels, and the weights in oneDNN's layout."""
    weight, shape = call.weight.detach().to(call.styles.dtype), call.x.shape
    unmodulated = call._replace(demodulate=False, eps=0.0)
    _, w, odd_rows = _prepared(weight, weight.new_ones((1, weight.shape[1])), unmodulated, form, False)
    squares = coefs.squares(weight).contiguous()
    if odd_rows is not None:
        return squares, onednn.blocked(w, shape, 1, (1, 1), False), onednn.blocked(odd_rows, shape, 1, (0, 1), False)
    transposed = form.up and w.shape[2:] != (1, 1)
    stride, padding = (call.up, (0, 0)) if transposed else (call.down, (call.padding, call.padding))
    return squares, onednn.blocked(w, shape, stride, padding, transposed), None


def _prepared(
    weight: torch.Tensor, styles: torch.Tensor, call: Call, form: Form, fold: bool
) -> tuple[torch.Tensor | None, torch.Tensor, torch.Tensor | None]:
    """Prepare a weight in one pass: return the demodulation coefficients [N, O], the weight in the strides that torch's
    convolution of channels_last tensors reads fastest, and the weight of odd rows (polyphase)."""
    o, i, kh, kw = weight.shape

    def empty(n, c, kh, kw):
        return weight.new_empty((n, kh, kw, c), dtype=form.dtype).permute(0, 3, 1, 2)

    dcoefs = weight.new_empty((styles.shape[0], o)) if call.demodulate else None
    transposed, odd_rows = form.up and not form.polyphase and (kh, kw) != (1, 1), None
    if form.polyphase:
        w, odd_rows = empty(2 * o, i, 2, 2), empty(2 * o, i, 1, 2)
    else:
        w = empty(i, o, kh, kw) if transposed else empty(o, i, kh, kw)
    torch.ops.posgan_fast_native.modulated_weight(
        weight.contiguous(), styles.contiguous(), dcoefs, w, odd_rows, call.eps, fold, transposed, form.flip
    )
    return dcoefs, w, odd_rows


def _filter_polyphase(even: torch.Tensor, odd: torch.Tensor, dcoefs: torch.Tensor | None, call: Call) -> torch.Tensor:
    """Run the epilogue on an upsampled image whose even and odd rows lie apart."""
    pad, _ = conv2d_resample.up_padding(call.weight, call.up, call.padding, call.f)
    n, _, h, w = call.x.shape
    y = call.x.new_empty((n, h * call.up, w * call.up, call.weight.shape[0])).permute(0, 3, 1, 2)
    act, alpha, gain, clamp = passes.rounded(call, call.x.dtype)
    torch.ops.posgan_fast_native.epilogue2d(
        even, odd, call.f, dcoefs, call.noise, call.bias, None, y, 1, 1, 1, 1, pad[0], pad[2], False, call.up**2,
        ACTIVATIONS[act].index, alpha, gain, clamp,
    )  # fmt: skip
    return y
