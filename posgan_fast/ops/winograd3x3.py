"""Convolution with a 3x3 kernel by Winograd's algorithm, on the CPU, computed in float32.

    clamp(gain * prelu(scale * conv(pad(in_scale * x + in_shift), weight) + shift + noise, slope))

F(4x4, 3x3) computes 16 results with 36 products in place of 144. With a stride of 2, or transposed, the outer taps are
F(4, 2) and the middle one is a product for each pixel: 81 in place of 144. Every factor is applied while a tile is read
or written. The relative error of the result is 1.1e-6 with 128 channels and more, where the vendor's direct convolution
has 2e-7 (relative L2 against float64). A number that is not finite spoils all results of each tile that reads it, 4 x 4
or 8 x 8, where a direct convolution spoils 3 x 3. Results depend neither on the number of threads nor on other samples.

Source: "Fast Algorithms for Convolutional Neural Networks" (CVPR 2016).
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from .. import algorithm, backend
from . import epilogue2d
from .bias_act import passes
from .common import autocast, layout, weight_cache
from .common.op import is_plain
from .common.records import Activation

DTYPES = (torch.float32, torch.bfloat16)  # of the images
_LEAST_CHANNELS = 16  # below, tiles are read and written with empty lanes
_LEAST_TILES = 4  # below, reading the weight takes longer than the products
_LEAST_PRODUCTS = 2**15  # tiles * channels * filters; below, the call itself takes longer than its products
_FEW_TILES = (64, 16, 16)  # of each form; up to here, every thread reads all tiles and transforms its own filters
_PANEL = 32  # filters; csrc/winograd3x3.h
_SLOPES = {"linear": 1.0, "relu": 0.0, "lrelu": 0.2}  # of the activations that the kernel has; lrelu brings its own


class Form(enum.IntEnum):
    """The convolutions that the kernel computes, in the order of csrc/winograd3x3.h."""

    PLAIN = 0
    DOWN = 1  # every second row and column
    UP = 2  # transposed, of stride 2, without padding


class Weight(NamedTuple):
    """A weight [O, I, 3, 3] for :func:`run`: as it is, or transformed."""

    source: torch.Tensor
    flip: bool  # reverse the kernels of the source
    transformed: torch.Tensor | None
    squares: torch.Tensor | None  # sums of squares [I, O] of the kernels


def reason_against(
    x: torch.Tensor,
    weight: torch.Tensor,
    form: Form,
    size: Sequence[int],
    dtypes: Sequence[torch.dtype] = (torch.float32,),
) -> str | None:
    """Return why a direct convolution serves a call, or None if Winograd's does.

    Args:
        x, weight, form: the operands, ``weight`` [O, I, kh, kw] of any strides.
        size: height and width of the result.
        dtypes: those that the caller serves, of :data:`DTYPES`.
    """
    choice = algorithm.algorithm()
    if choice == "direct":
        return "set_algorithm asks for it"
    o, i, *kernel = weight.shape
    if kernel != [3, 3]:
        return f"the kernel is {kernel[0]} x {kernel[1]}, not 3 x 3"
    if x.dtype not in dtypes:
        return f"x is {_name(x.dtype)}, not {' or '.join(_name(dtype) for dtype in dtypes)}"
    if (unavailable := backend.cpu_can_run(x)) is not None:
        return str(unavailable)
    if x.numel() == 0 or min(size) < 1:
        return "there is nothing to compute"
    if choice == "winograd":
        return None
    if x.dtype == torch.bfloat16 and _processor_has("amx_bf16"):
        return "the processor multiplies bfloat16 by AMX"
    if x.dtype == torch.bfloat16 and form != Form.PLAIN and _processor_has("avx512_bf16"):  # saves half of the products
        return "the processor multiplies bfloat16 by AVX512_BF16"
    if min(i, o) < _LEAST_CHANNELS:
        return f"fewer than {_LEAST_CHANNELS} channels or filters"
    step, tiles = _step(form), (size[0] // _step(form)) * (size[1] // _step(form))  # of a sample: others do not count
    if tiles < _LEAST_TILES:
        return f"fewer than {_LEAST_TILES} tiles of {step} x {step} results"
    if tiles * i * o < _LEAST_PRODUCTS:
        return f"{tiles} tiles of {step} x {step} results are few for {i} channels and {o} filters"
    return None


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@functools.cache
def _processor_has(capability: str) -> bool:
    """Tell whether the processor has "amx_bf16" or "avx512_bf16", by which the vendor multiplies bfloat16."""
    if hasattr(torch.cpu, "get_capabilities"):  # torch 2.10 has none
        return bool(torch.cpu.get_capabilities().get(capability))
    supported = dict(amx_bf16="_is_amx_tile_supported", avx512_bf16="_is_avx512_bf16_supported")
    return getattr(torch.cpu, supported[capability])()


def tiles_of(x: torch.Tensor, form: Form, size: Sequence[int]) -> int:
    """Return the number of whole tiles of a result of a size, at least one for each sample."""
    return x.shape[0] * max((size[0] // _step(form)) * (size[1] // _step(form)), 1)


def _step(form: Form) -> int:
    """Return the results of a tile along an axis."""
    return 8 if form == Form.UP else 4


def serves(x: torch.Tensor, weight: torch.Tensor, form: Form, padding: int) -> bool:
    """Tell whether :func:`run` serves a convolution of a module: a call of plain tensors that asks for no derivative,
    on the CPU, for which Winograd's algorithm is the faster one."""
    if torch.is_grad_enabled() or not is_plain(x, weight) or autocast.is_enabled(x):
        return False
    return backend.uses_cpu_kernels(x) and reason_against(x, weight, form, out_size(x, form, padding)) is None


def out_size(x: torch.Tensor, form: Form, padding: int) -> tuple[int, int]:
    """Return the height and width of the result."""
    h, w = x.shape[2:]
    if form == Form.UP:
        return 2 * h + 1, 2 * w + 1
    stride = 2 if form == Form.DOWN else 1
    return (h + 2 * padding - 3) // stride + 1, (w + 2 * padding - 3) // stride + 1


def prepare(
    weight: torch.Tensor,
    form: Form = Form.PLAIN,
    flip: bool = False,
    *,
    tiles: int | None = None,
) -> Weight:
    """Transform a weight [O, I, 3, 3], its kernels reversed if ``flip``, and keep the result if ``nn.prepack`` says so.

    For a call of few ``tiles`` the weight stays as it is: to transform it piece by piece takes no longer than to read
    what is four times as long.
    """
    if tiles is not None and tiles <= _FEW_TILES[form]:
        return Weight(weight.detach().to(torch.float32), flip, None, None)
    kept = weight_cache.packed(weight, ("winograd3x3", form, flip), lambda: _prepared(weight, form, flip))
    return _prepared(weight, form, flip) if kept is None else kept


def run(
    x: torch.Tensor,
    weight: Weight,
    form: Form = Form.PLAIN,
    *,
    padding: int = 1,
    mode: int = 0,
    pad_map: torch.Tensor | None = None,
    in_scale: torch.Tensor | None = None,
    in_shift: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    shift: torch.Tensor | None = None,
    slope: torch.Tensor | None = None,
    noise: torch.Tensor | None = None,
    eps: float = -1.0,
    alpha: float = 1.0,
    gain: float = 1.0,
    clamp: float = -1.0,
) -> torch.Tensor:
    """Convolve ``x`` [N, I, H, W] to [N, O, H', W'] in channels_last.

    Args:
        x: float32 or bfloat16.
        weight, form: from :func:`prepare`, which takes the same form.
        padding: pixels around ``x``; 1 around a map and with ``Form.UP``, whose result is [2 * H + 1, 2 * W + 1].
        mode: 0 for zeros, 1 for reflection, 2 for a map; ``Form.UP`` takes zeros only.
        pad_map: map or ring of the padding, in the space after scaling.
        in_scale, in_shift: [I] or [N, I].
        scale, shift, slope: [O] or [N, O].
        noise: [N or 1, 1, H', W'].
        eps: >= 0 demodulates: ``scale`` is then rsqrt(sum of (weight * in_scale)^2 + eps).
        alpha: the slope for all filters where there is no ``slope``.
        gain, clamp: of the activation; a negative clamp means none.
    """
    x = x.contiguous(memory_format=torch.channels_last)
    h, w = out_size(x, form, padding)
    y = x.new_empty((x.shape[0], h, w, weight.source.shape[0])).permute(0, 3, 1, 2)
    factors = [layout.contiguous_as(torch.float32, t) for t in (in_scale, in_shift, scale, shift, slope, noise)]
    torch.ops.posgan_fast_native.winograd3x3(
        x,
        weight.transformed,
        weight.squares,
        weight.source if weight.transformed is None else None,
        weight.flip,
        eps,
        form,
        mode,
        padding,
        None if pad_map is None else pad_map.to(torch.float32),
        *factors,
        alpha,
        gain,
        clamp,
        y,
    )
    return y


def activated(
    x: torch.Tensor,
    weight: Weight,
    form: Form,
    activation: Activation,
    *,
    scale: torch.Tensor | None = None,
    shift: torch.Tensor | None = None,
    noise: torch.Tensor | None = None,
    **arguments: Any,
) -> torch.Tensor:
    """Return ``clamp(gain * act(scale * conv(x) + shift + noise))`` for any activation; arguments as :func:`run`."""
    act, alpha, gain, clamp = passes.rounded(activation, x.dtype)
    if act not in _SLOPES:
        y = run(x, weight, form, **arguments)
        if scale is not None:
            scale = scale.expand(x.shape[0], -1)
        return epilogue2d.write_over(y, scale, noise, shift, activation, "cpu")
    arguments |= dict(scale=scale, shift=shift, noise=noise, gain=gain, clamp=clamp)
    return run(x, weight, form, alpha=alpha if act == "lrelu" else _SLOPES[act], **arguments)


def weight_gradient(x: torch.Tensor, dy: torch.Tensor, form: Form, padding: int) -> torch.Tensor:
    """Return the gradient [O, I, 3, 3] of a weight from the input of :func:`run` and the gradient of its result."""
    x, dy = (t.contiguous(memory_format=torch.channels_last) for t in (x, dy))
    dw = x.new_empty((dy.shape[1], x.shape[1], 3, 3))
    torch.ops.posgan_fast_native.winograd3x3_gradient(x, dy, form, padding, dw)
    return dw


def _prepared(weight: torch.Tensor, form: Form, flip: bool) -> Weight:
    source = weight.detach().to(torch.float32)
    o, i = source.shape[:2]
    transformed, squares = source.new_empty(36 * -(-o // _PANEL) * i * _PANEL), source.new_empty((i, o))
    torch.ops.posgan_fast_native.winograd3x3_weight(source, form, flip, transformed, squares)
    return Weight(source, flip, transformed, squares)
