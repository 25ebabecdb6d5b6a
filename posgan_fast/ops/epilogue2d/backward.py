r"""The gradients of an image that was scaled, shifted and activated, in one pass over memory.

For ``y = clamp(gain * act(x * scale[n, c] + noise + b[c]), -clamp, +clamp)``::

    g       = dy * gain * act'(x * scale + noise + b), zero where the clamp holds
    dx      = g * scale
    d_scale = sum over pixels of g * x                    [N, C]
    d_noise = sum over channels of g                      [N, 1, H, W]
    d_b     = sum over samples and pixels of g            [C]

Images are in the dtype of ``dy``, factors, the bias and sums in the arithmetic type. Sums are added up in an order that
depends on sizes alone. Slopes are read from ``x`` or, by relu and lrelu, from ``y``: where the gradient of the scale is
wanted, ``x`` is there anyway, and ``y`` need not be read.

The op itself has no derivative: where one may follow, :func:`gradients` composes the same gradients of differentiable
ops. One of them is registered here, the sum over pixels of a product of images.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

from ... import backend as _backend
from .. import bias_act
from ..bias_act import passes
from ..common import activations, checks, layout
from ..common.activations import ACTIVATIONS
from ..common.op import Op, define_final, differentiates_forward, is_recorded, restore, save, transforms_active
from ..common.records import Activation, Resample

NAME = "epilogue2d_backward"
GRADIENTS = ("x", "scale", "noise", "b")
_MOST_VALUES = 2**16  # of a tile
_LEAST_PIXELS, _MOST_PIXELS = 16, 2**12  # of a tile
_LEAST_ROW = 256  # pixels of a tile in NCHW, where they lie side by side
_WANTED_TILES = 256  # enough to give every multiprocessor of a GPU one


class Factors(NamedTuple):
    """The factors with which the forward computed the image; None where there was none."""

    scale: torch.Tensor | None = None
    noise: torch.Tensor | None = None
    b: torch.Tensor | None = None


def gradients(
    dy: torch.Tensor,
    y: torch.Tensor | None,
    x: torch.Tensor | None,
    factors: Factors,
    activation: Activation,
    wanted: set[str],
    backend: str,
    *,
    shared_noise: bool = False,
) -> dict[str, torch.Tensor]:
    """Return the gradients among :data:`GRADIENTS` that are wanted; the module's docstring has their formulas.

    ``y`` serves relu and lrelu in place of ``x``, ``noise`` and ``b``. ``x`` is needed for the scale.
    ``shared_noise`` says that all samples had the same noise, whose gradient is then [1, 1, H, W].
    """
    asked = [name in wanted for name in GRADIENTS]
    scale, noise, b = factors
    call = Call(dy, y, x, scale, noise, b, *activation, shared_noise, asked, backend)
    if is_recorded(call[:6]) or transforms_active() or differentiates_forward(*call) or _has_fast_passes(dy, backend):
        return _composed(call)
    found = zip(GRADIENTS, asked, _run(call), strict=True)
    return {name: gradient for name, is_asked, gradient in found if is_asked}


def _has_fast_passes(dy: torch.Tensor, backend: str) -> bool:
    """Tell whether separate passes are the faster ones: on the CPU, where no values have to be converted and caches
    hold what the passes share."""
    return backend == "cpu" and dy.dtype in (torch.float32, torch.float64)


class Call(NamedTuple):
    """The arguments of the op. ``wanted`` says which of :data:`GRADIENTS` to compute; the others come back empty."""

    dy: torch.Tensor
    y: torch.Tensor | None
    x: torch.Tensor | None
    scale: torch.Tensor | None
    noise: torch.Tensor | None
    b: torch.Tensor | None
    act: str
    alpha: float
    gain: float
    clamp: float
    shared_noise: bool
    wanted: Sequence[bool]
    backend: str

    @property
    def activation(self) -> Activation:
        return Activation(self.act, self.alpha, self.gain, self.clamp)

    @property
    def leader(self) -> torch.Tensor:
        """The image whose memory format the others take."""
        return next(t for t in (self.y, self.x, self.dy) if t is not None)

    @property
    def reads(self) -> str | None:
        """The image that the fused pass reads slopes from: "input", "output" or None."""
        reads = activations.derivative_reads(self.act, self.alpha, self.clamp)
        return "input" if reads == "output" and self.wanted[1] else reads


class Sums(NamedTuple):
    """The sums of a pass: ``channels`` [1 or 2, N, tiles, C] of g and of g * x, ``pixels`` [tiles, N, H * W] of g."""

    channels: torch.Tensor | None
    pixels: torch.Tensor | None


def reference(call: Any, dx: torch.Tensor | None) -> Sums:
    """The definition in plain torch, in the arithmetic type of ``dy``."""
    acc = checks.arithmetic(call.dy.dtype)
    g, x = call.dy.to(acc), call.dy if call.x is None else call.x.to(acc)  # dy: nobody reads x
    if call.reads is None:
        g = g * call.gain
    else:
        ref = call.y.to(acc) if call.reads == "output" else _activated(call, x)
        if call.reads == "input" and activations.reads_output(call.act, call.alpha):
            ref = call.gain * activations.value(call.act, ref, call.alpha)
        g = passes.reference(passes.Pass(g, None, 1, call.activation, ref, grad=1))
    if dx is not None:
        dx.copy_(g if call.scale is None else g * call.scale[:, :, None, None])
    sums = [g.sum((2, 3))] + ([(g * x).sum((2, 3))] if call.wanted[1] else [])
    return Sums(torch.stack(sums)[:, :, None], g.sum(1).flatten(1)[None])


def _activated(call, x):
    """Return what the activation read."""
    z = x if call.scale is None else x * call.scale[:, :, None, None]
    z = z if call.noise is None else z + call.noise
    return z if call.b is None else z + call.b.to(z.dtype)[:, None, None]


def _composed(call: Call) -> dict[str, torch.Tensor]:
    """Compute the gradients by ops that have derivatives themselves."""
    scale, found = call.scale, {}
    ref = call.y
    if activations.derivative_reads(call.act, call.alpha, call.clamp) == "input":
        assert call.x is not None
        ref = call.x  # GRAD adds the bias
        if scale is not None or call.noise is not None:
            ref = scaled(ref, scale, call.backend, call.noise)
    g = bias_act.gradient(call.dy, ref, call.b, 1, call.activation, call.backend)
    wanted = dict(zip(GRADIENTS, call.wanted, strict=True))
    if wanted["b"]:
        found["b"] = g.sum((0, 2, 3), dtype=checks.arithmetic(g.dtype))
    if wanted["noise"]:
        d_noise = g.sum(1, keepdim=True, dtype=checks.arithmetic(g.dtype))
        found["noise"] = d_noise.sum(0, keepdim=True) if call.shared_noise else d_noise
    if wanted["scale"]:
        assert call.x is not None
        product = ProductCall(g, call.x, call.backend)
        found["scale"] = _define_product(product) if _has_fast_passes(g, call.backend) else PRODUCT(product)
    if wanted["x"]:
        found["x"] = g if scale is None else scaled(g, scale, call.backend)
    return found


def scaled(
    x: torch.Tensor, scale: torch.Tensor | None, backend: str, noise: torch.Tensor | None = None
) -> torch.Tensor:
    """Multiply ``x`` [N, C, H, W] by ``scale`` [N, C] and add ``noise``."""
    from . import run  # the op whose gradients these are

    if noise is None and scale is not None and _has_fast_passes(x, backend):
        return x * scale[:, :, None, None]
    return run(x, None, scale, noise, None, Resample(), Activation(), backend)


def _run_native(call: Call, dx: torch.Tensor | None) -> Sums:
    dy = call.dy
    (n, c), pixels, acc = dy.shape[:2], dy.shape[2] * dy.shape[3], checks.arithmetic(dy.dtype)
    tile = _tile(n, c, pixels, _LEAST_ROW if dy.is_contiguous() else _LEAST_PIXELS)
    _, scale, noise, b = call.wanted
    channels = dy.new_empty((2 if scale else 1, n, -(-pixels // tile), c), dtype=acc) if scale or b else None
    sums = Sums(channels, dy.new_empty((1, n, pixels), dtype=acc) if noise else None)
    torch.ops.posgan_fast_native.epilogue2d_backward(
        dy, call.y, call.x, call.scale, call.noise, call.b, dx, *sums, tile, ACTIVATIONS[call.act].index, call.alpha,
        call.gain, call.clamp,
    )  # fmt: skip
    return sums


@functools.lru_cache(4096)
def _tile(n: int, c: int, pixels: int, least: int) -> int:
    """Return the pixels of a tile, a power of two. A larger one has fewer partial sums, a smaller one more threads."""
    tile = max(1 << (min(_MOST_VALUES // c, _MOST_PIXELS).bit_length() - 1), least) if c < _MOST_VALUES else least
    while tile > least and n * -(-pixels // tile) < _WANTED_TILES:
        tile //= 2
    return tile


def _run_triton(call: Call, dx: torch.Tensor | None) -> Sums:
    from ...kernels import epilogue2d_backward as kernel

    _, scale, noise, b = call.wanted
    return Sums(
        *kernel.epilogue2d_backward(
            call.dy, call.y, call.x, call.scale, call.noise, call.b, dx, scale, scale or b, noise, call.activation
        )
    )


IMPLS = (
    _backend.Impl("cuda", _backend.cuda_can_run, _run_native),
    _backend.Impl("cpu", _backend.cpu_can_run, _run_native),
    _backend.Impl("triton", _backend.triton_can_run, _run_triton),
    _backend.Impl("reference", _backend.reference_can_run, reference),
)
Gradients = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def _kernel(call: Call) -> Gradients:
    dx, d_scale, d_noise, d_b = _empty(call)
    if call.dy.numel() == 0:
        return dx, d_scale.zero_(), d_noise.zero_(), d_b.zero_()
    wants_x, wants_scale, wants_noise, wants_b = call.wanted
    run = _backend.implementation(NAME, IMPLS, call.dy, call.backend)
    channels, pixels = run(_prepared(call), dx if wants_x else None)
    if channels is not None:
        channels = channels.sum(2) if channels.shape[2] > 1 else channels[:, :, 0]
        d_scale = channels[1] if wants_scale else d_scale
        d_b = channels[0].sum(0) if wants_b else d_b
    if wants_noise:
        pixels = pixels.sum(0) if pixels.shape[0] > 1 else pixels[0]
        pixels = pixels.sum(0) if call.shared_noise else pixels
        d_noise = pixels.reshape(d_noise.shape)
    return dx, d_scale, d_noise, d_b


def _prepared(call: Call) -> Call:
    """Bring the tensors into the dtypes and strides that kernels read, and drop those that nobody reads."""
    dtype, acc = call.dy.dtype, checks.arithmetic(call.dy.dtype)
    reads, wanted, wanted_format = call.reads, call.wanted, layout.memory_format(call.leader)

    def image(t: torch.Tensor | None, is_read: bool = True) -> Any:
        return t.to(dtype).contiguous(memory_format=wanted_format) if is_read and t is not None else None

    return call._replace(
        dy=image(call.dy),
        y=image(call.y, reads == "output"),
        x=image(call.x, reads == "input" or wanted[1]),
        scale=layout.contiguous_as(acc, call.scale) if reads == "input" or wanted[0] else None,
        noise=layout.contiguous_as(acc, call.noise) if reads == "input" else None,
        b=layout.contiguous_as(dtype, call.b) if reads == "input" else None,
        clamp=passes.round_clamp(call.clamp, dtype),
    )


def _empty(call: Call) -> Gradients:
    """Return empty results; those that are not wanted have no elements."""
    (n, c, h, w), acc = call.dy.shape, checks.arithmetic(call.dy.dtype)
    wants_x, wants_scale, wants_noise, wants_b = call.wanted
    return (
        layout.empty(call.leader, (n, c, h, w), call.dy.dtype) if wants_x else call.dy.new_empty(0),
        call.dy.new_empty((n, c) if wants_scale else 0, dtype=acc),
        call.dy.new_empty((1 if call.shared_noise else n, 1, h, w) if wants_noise else 0, dtype=acc),
        call.dy.new_empty(c if wants_b else 0, dtype=acc),
    )


class ProductCall(NamedTuple):
    """The arguments of the op that sums up ``g * x`` over the pixels."""

    g: torch.Tensor
    x: torch.Tensor
    backend: str


def _multiply(call: ProductCall) -> torch.Tensor:
    wanted = (False, True, False, False)
    return _kernel(Call(call.g, None, call.x, None, None, None, *Activation(), False, wanted, call.backend))[1]


def _define_product(call: ProductCall) -> torch.Tensor:
    acc = checks.arithmetic(call.g.dtype)
    return (call.g.to(acc) * call.x.to(acc)).sum((2, 3))


def _product_backward(ctx: Any, h: torch.Tensor, wanted: set[str]) -> dict[str, torch.Tensor | None]:
    call, _ = restore(ctx)
    others = dict(g=call.x, x=call.g)
    return {name: scaled(others[name], h, call.backend) for name in wanted & set(others)}


_run = define_final(
    "epilogue2d_backward(Tensor dy, Tensor? y, Tensor? x, Tensor? scale, Tensor? noise, Tensor? b, str act,"
    " float alpha, float gain, float clamp, bool shared_noise, bool[4] wanted, str backend)"
    " -> (Tensor, Tensor, Tensor, Tensor)",
    Call,
    fake=_empty,
    kernel=_kernel,
)
PRODUCT = Op(
    "epilogue2d_product(Tensor g, Tensor x, str backend) -> Tensor",
    ProductCall,
    fake=lambda call: call.g.new_empty(call.g.shape[:2], dtype=checks.arithmetic(call.g.dtype)),
    kernel=_multiply,
    decomposition=_define_product,
    setup_context=lambda ctx, call, result: save(ctx, call, "g", "x"),
    backward=_product_backward,
    samples=("g", "x"),
)
