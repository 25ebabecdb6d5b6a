r"""epilogue2d: finishes the output of a convolution in one pass: resamples, scales, adds noise and bias, activates.

Parts that are not given are left out::

    z = upfirdn2d(x, f, up, down, padding, flip_filter, filter_gain)
    y = clamp(gain * act(z * scale[n, c] + noise + b[c]), -clamp, +clamp)

Shapes: ``x`` [N, C, H, W]; ``f`` as in :mod:`posgan_fast.ops.upfirdn2d`; ``scale`` [N, C] (the demodulation
coefficients); ``noise`` [N, 1, H', W'] or [1, 1, H', W'], its strength included; ``b`` [C]; result [N, C, H', W'] in
the dtype and memory format of ``x``. Activations, ``alpha``, ``gain`` and ``clamp``: :mod:`posgan_fast.ops.bias_act`.
Dtypes: float16 and bfloat16 compute in float32 (Triton, and CUDA where no kernel of its own does both, round the
resampled image in between), float64 in itself. The other tensors are of any of the four: ``scale`` and ``noise`` are
converted to the dtype of this arithmetic, ``b`` to that of ``x``. Under autocast the op runs in the dtype of ``x``.
Derivatives: as bias_act, in ``x``, ``scale``, ``noise`` and ``b``; none in ``f``.

Source: the synthesis layer of StyleGAN2 (NVlabs stylegan2-ada); the op is that layer from its FIR filter on.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from ... import backend as _backend
from .. import bias_act, upfirdn2d
from ..bias_act import passes
from ..common import activations, checks, layout
from ..common.op import Op, changed, define_inplace, restore, save
from ..common.records import Activation, Resample
from .backward import Factors, gradients

NAME = "epilogue2d"


def epilogue2d(
    x: torch.Tensor,
    f: torch.Tensor | None = None,
    scale: torch.Tensor | None = None,
    noise: torch.Tensor | None = None,
    b: torch.Tensor | None = None,
    *,
    up: int | Sequence[int] = 1,
    down: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    flip_filter: bool = False,
    filter_gain: float = 1.0,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    r"""Resample, scale, add noise and bias, activate, scale, clamp; the module's docstring has the formula.

    Args:
        x: input [N, C, H, W], NCHW or channels_last (kept).
        f, up, down, padding, flip_filter, filter_gain: as in :func:`upfirdn2d`. Without ``f`` the op does not resample
            and accepts only the defaults of the others.
        scale: [N, C], any floating dtype.
        noise: [N, 1, H', W'] or [1, 1, H', W'], any floating dtype.
        b: [C], any floating dtype.
        act, alpha, gain, clamp: as in :func:`bias_act`.
        backend: "reference", "cpu", "triton" or "cuda"; None lets :mod:`posgan_fast.backend` choose.

    Returns:
        [N, C, H', W'].

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape, size or device.
        BackendError: the chosen backend cannot run this call.
        NotImplementedError: in backward, a third derivative of a smooth activation.

    Example:
        >>> x, noise = torch.zeros(2, 8, 16, 16), torch.randn(2, 1, 16, 16)
        >>> epilogue2d(x, scale=torch.rand(2, 8), noise=noise, b=torch.zeros(8), act="lrelu").shape
        torch.Size([2, 8, 16, 16])
    """
    resampling, activation = (up, down, padding, flip_filter, filter_gain), (act, alpha, gain, clamp)
    return OP(check(x, f, scale, noise, b, resampling, activation, backend))


class Call(NamedTuple):
    """The arguments of the op, checked; ``scale``, ``noise`` and ``b`` in the arithmetic type."""

    x: torch.Tensor
    f: torch.Tensor | None
    scale: torch.Tensor | None
    noise: torch.Tensor | None
    b: torch.Tensor | None
    up: Sequence[int]
    down: Sequence[int]
    padding: Sequence[int]
    flip_filter: bool
    filter_gain: float
    act: str
    alpha: float
    gain: float
    clamp: float
    backend: str

    @property
    def activation(self) -> Activation:
        return Activation(self.act, self.alpha, self.gain, self.clamp)

    @property
    def resample(self) -> Resample:
        return Resample(self.up, self.down, self.padding, self.flip_filter, self.filter_gain)


class InPlaceCall(NamedTuple):
    """The arguments of the op that writes over ``x`` and resamples nothing."""

    x: torch.Tensor
    scale: torch.Tensor | None
    noise: torch.Tensor | None
    b: torch.Tensor | None
    act: str
    alpha: float
    gain: float
    clamp: float
    backend: str

    @property
    def activation(self) -> Activation:
        return Activation(self.act, self.alpha, self.gain, self.clamp)


def run(
    x: torch.Tensor,
    f: torch.Tensor | None,
    scale: torch.Tensor | None,
    noise: torch.Tensor | None,
    b: torch.Tensor | None,
    resample: Resample,
    activation: Activation,
    backend: str,
) -> torch.Tensor:
    """Run the op on checked arguments."""
    return OP(Call(x, f, scale, noise, b, *resample, *activation, backend))


def write_over(
    x: torch.Tensor,
    scale: torch.Tensor | None,
    noise: torch.Tensor | None,
    b: torch.Tensor | None,
    activation: Activation,
    backend: str,
) -> torch.Tensor:
    """Run the op on checked arguments, without resampling, and return ``x``, which holds the result. No derivatives."""
    _WRITE_OVER(InPlaceCall(x, scale, noise, b, *activation, backend))
    return x


def write_scaled(
    x: torch.Tensor,
    f: torch.Tensor,
    scale: torch.Tensor | None,
    noise: torch.Tensor | None,
    b: torch.Tensor | None,
    resample: Resample,
    activation: Activation,
    post_scale: torch.Tensor,
    y: torch.Tensor,
) -> None:
    """Write the op's result for checked arguments, times ``post_scale`` [N, C], to ``y``. CUDA only, no derivatives."""
    _write(Call(x, f, scale, noise, b, *resample, *activation, "cuda"), y, post_scale)


def check(x, f, scale, noise, b, resampling, activation, backend) -> Call:
    """Validate the arguments of a user; return the complete call, factors in the arithmetic type, with its backend.

    ``resampling`` and ``activation`` are tuples in the order of their records.
    """
    checks.tensor(x, "x", ndim=4)
    (n, c), acc = x.shape[:2], checks.arithmetic(x.dtype)
    if f is None:
        resample, out_size = _check_absent(*resampling), x.shape[2:]
    else:
        resample = upfirdn2d.check(x, f, resampling, gain="filter_gain")
        f = upfirdn2d.taps_of(f, x)
        out_size = upfirdn2d.out_size(x, f, resample)
    if scale is not None:
        checks.tensor(scale, "scale", shape=(n, c))
        checks.same_device(scale, "scale", x)
        scale = scale.to(acc)
    if noise is not None:
        checks.tensor(noise, "noise", ndim=4)
        checks.same_device(noise, "noise", x)
        if tuple(noise.shape) not in ((n, 1, *out_size), (1, 1, *out_size)):
            raise ValueError(
                f"noise: expected shape {(n, 1, *out_size)} or {(1, 1, *out_size)}, got {tuple(noise.shape)}"
            )
        noise = noise.to(acc)
    if b is not None:
        checks.tensor(b, "b", shape=(c,))
        checks.same_device(b, "b", x)
        b = b.to(acc)
    _, _, settled = bias_act.check(x, None, 1, activation)
    return Call(x, f, scale, noise, b, *resample, *settled, _backend.resolve(NAME, IMPLS, x, backend))


def _check_absent(up, down, padding, flip_filter, filter_gain) -> Resample:
    """Raise if any argument asks for a resampling, which needs a filter."""
    checks.flag(flip_filter, "flip_filter")
    filter_gain = checks.real(filter_gain, "filter_gain")
    up, down = checks.resampling(up, down)
    padding = checks.padding(padding)
    if (up, down, padding) != ((1, 1), (1, 1), (0, 0, 0, 0)):
        raise ValueError(f"f: expected a filter to resample with, got None with {up=}, {down=}, {padding=}")
    if flip_filter or filter_gain != 1:
        raise ValueError(f"f: expected a filter, got None with {flip_filter=}, {filter_gain=}")
    return Resample()


def reference(call: Call) -> torch.Tensor:
    """The definition in plain torch, in the arithmetic type of ``x``."""
    return _define(upfirdn2d.reference, call)


def decomposition(call: Call) -> torch.Tensor:
    """The definition in few operators, in the dtype and memory format of ``x``."""
    return layout.in_format_of(_define(upfirdn2d.decomposition, call).to(call.x.dtype), call.x)


def _define(upfirdn, call):
    z = call.x.to(checks.arithmetic(call.x.dtype))
    z = z if call.f is None else upfirdn(z, call.f, call.resample)
    z = z if call.scale is None else z * call.scale[:, :, None, None]
    z = z if call.noise is None else z + call.noise
    b = None if call.b is None else call.b.to(z.dtype)
    return passes.reference(passes.Pass(z, b, 1, call.activation))


def _setup_context(ctx, call, result):
    ctx.in_size, ctx.out_size = call.x.shape[2:], result.shape[2:]
    ctx.shared_noise = call.noise is not None and call.noise.shape[0] == 1
    ctx.reads = activations.derivative_reads(call.act, call.alpha, call.clamp)
    if ctx.reads == "input":
        save(ctx, call, "x", "f", "scale", "noise", "b")
        return
    kept: tuple[str, ...] = ("f",)
    if call.scale is not None:  # its gradient reads x, and then so does the slope, unless x was resampled
        kept = ("x", "f", "scale", "noise", "b") if call.f is None else ("x", "f", "scale")
    save(ctx, call, *kept, result=result if ctx.reads == "output" else None)


def _backward(ctx, dy, wanted):
    call, y = restore(ctx)
    x, f, factors, act = call.x, call.f, Factors(call.scale, call.noise, call.b), call.activation
    known = dict(backend=call.backend, shared_noise=ctx.shared_noise)
    if f is None:
        return gradients(dy, y, x, factors, act, wanted, **known)
    if ctx.reads == "input":  # resample again: the activation read the result
        x = upfirdn2d.run(x, f, call.resample, call.backend)
        found = gradients(dy, y, x, factors, act, wanted, **known)
    else:  # g meets the transposed filter before it meets the scale, so that x need not be resampled again
        passed_on = wanted - {"scale"} | ({"x"} if "scale" in wanted else set())
        found = gradients(dy, y, None, factors._replace(scale=None), act, passed_on, **known)
    if "x" not in found:
        return found
    transposed = upfirdn2d.transposed(call.resample, f, ctx.in_size, ctx.out_size)
    found["x"] = v = upfirdn2d.run(found["x"], f, transposed, call.backend)
    if ctx.reads != "input" and call.scale is not None:
        found |= gradients(v, None, x, Factors(call.scale), Activation(), wanted & {"x", "scale"}, call.backend)
    return found


def _run_cpu(call, y, post_scale=None):
    (upx, upy), (downx, downy), pad, flip, filter_gain = call.resample
    act, alpha, gain, clamp = call.activation
    torch.ops.posgan_fast_native.epilogue2d(
        call.x, None, call.f, call.scale, call.noise, call.b, post_scale, y, upx, upy, downx, downy, pad[0], pad[2],
        flip, filter_gain, bias_act.ACTIVATIONS[act].index, alpha, gain, clamp,
    )  # fmt: skip


def _run_cuda(call: Call, y: torch.Tensor, post_scale: torch.Tensor | None = None) -> None:
    """Run the native op, which without a filter takes ``x`` with the strides of ``y`` only."""
    _run_cpu(call if call.f is not None else call._replace(x=_dense(call.x, y)), y, post_scale)


def _run_triton(call, y):
    from ...kernels import epilogue2d as kernel

    x = call.x if call.f is not None else _dense(call.x, y)
    kernel.epilogue2d(x, call.f, call.scale, call.noise, call.b, y, call.resample, call.activation)


def _dense(x, y):
    """Return ``x`` if it has the strides of ``y``, else ``y`` with the values of ``x``, to be written over."""
    return x if x.stride() == y.stride() else y.copy_(x)


def _run_reference(call, y):
    y.copy_(reference(call))


IMPLS = (
    _backend.Impl("cuda", _backend.cuda_can_run, _run_cuda),
    _backend.Impl("cpu", _backend.cpu_can_run, _run_cpu),
    _backend.Impl("triton", _backend.triton_can_run, _run_triton),
    _backend.Impl("reference", _backend.reference_can_run, _run_reference),
)


def _empty(call):
    return upfirdn2d.empty_output(call.x, call.f, call.resample)


def _kernel(call):
    y = _empty(call)
    _write(call, y)
    return y


def _write(call: Call, y: torch.Tensor, post_scale: torch.Tensor | None = None) -> None:
    """Write the result to ``y``. Exported graphs under autocast hold factors of other dtypes than the op expects."""
    if y.numel() == 0:
        return
    x, acc = call.x, checks.arithmetic(call.x.dtype)
    scale, noise = layout.contiguous_as(acc, call.scale), layout.contiguous_as(acc, call.noise)
    b, clamp = layout.contiguous_as(x.dtype, call.b), passes.round_clamp(call.clamp, x.dtype)
    call = changed(call, x=layout.readable(x), scale=scale, noise=noise, b=b, clamp=clamp)
    run = _backend.implementation(NAME, IMPLS, x, call.backend)
    run(call, y) if post_scale is None else _run_cuda(call, y, post_scale)


def _write_over(call: InPlaceCall) -> None:
    x = call.x
    dense = any(x.is_contiguous(memory_format=m) for m in (torch.contiguous_format, torch.channels_last))
    y = x if dense else layout.empty(x, x.shape)
    _write(Call(x, None, call.scale, call.noise, call.b, *Resample(), *call.activation, call.backend), y)
    if not dense:
        x.copy_(y)


OP = Op(
    "epilogue2d(Tensor x, Tensor? f, Tensor? scale, Tensor? noise, Tensor? b, int[2] up, int[2] down,"
    " SymInt[4] padding, bool flip_filter, float filter_gain, str act, float alpha, float gain, float clamp,"
    " str backend) -> Tensor",
    Call,
    fake=_empty,
    kernel=_kernel,
    decomposition=decomposition,
    setup_context=_setup_context,
    backward=_backward,
    samples=("x", "scale", "noise"),
)
_WRITE_OVER = define_inplace(
    "epilogue2d_(Tensor(a!) x, Tensor? scale, Tensor? noise, Tensor? b, str act, float alpha, float gain, float clamp,"
    " str backend) -> ()",
    InPlaceCall,
    _write_over,
)
