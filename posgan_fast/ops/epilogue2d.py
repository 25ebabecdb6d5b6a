r"""epilogue2d: what happens to the output of a convolution, in one pass: resample, scale, add noise and bias, activate.

With the optional parts left out where they are not given::

    z = upfirdn2d(x, f, up, down, padding, flip_filter, filter_gain)
    y = clamp(gain * act(z * scale[n, c] + noise + b[c]), -clamp, +clamp)

Shapes: ``x`` [N, C, H, W]; ``f`` as in :mod:`posgan_fast.ops.upfirdn2d`; ``scale`` [N, C] (the demodulation
coefficients); ``noise`` [N, 1, H', W'] or [1, 1, H', W'], its strength included; ``b`` [C]; result [N, C, H', W'] in
the dtype and memory format of ``x``. Activations, ``alpha``, ``gain`` and ``clamp``: :mod:`posgan_fast.ops.bias_act`.
Dtypes: float16 and bfloat16 compute in float32 (CUDA and Triton round the resampled image in between); ``scale`` is
float32 beside them (float64 beside float64). Under autocast the op runs in the dtype of ``x``.
Derivatives: as bias_act, in ``x``, ``scale``, ``noise`` and ``b``; none in ``f``.

Source: the synthesis layer of StyleGAN2 (NVlabs stylegan2-ada), whose steps from the FIR on this is.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .. import backend as _backend
from . import bias_act, upfirdn2d
from .common import activations, checks, layout
from .common.op import Op

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
        f, up, down, padding, flip_filter, filter_gain: of :func:`upfirdn2d`; without ``f`` there is no resampling and
            the others must be left alone.
        scale: [N, C], float32 or the dtype of ``x``.
        noise: [N, 1, H', W'] or [1, 1, H', W'], any floating dtype.
        b: [C], any floating dtype.
        act, alpha, gain, clamp: of :func:`bias_act`.
        backend: "reference", "cpu", "triton" or "cuda"; None lets :mod:`posgan_fast.backend` choose.

    Returns:
        [N, C, H', W'].

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape, size or device.
        BackendError: the chosen backend cannot run this call.
        NotImplementedError: in backward, a third derivative of a smooth activation.
    """
    arguments = check(x, f, scale, noise, b, up, down, padding, flip_filter, filter_gain, act, alpha, gain, clamp)
    return OP(*arguments, _backend.resolve(NAME, IMPLS, x, backend))


_LIBRARY = torch.library.Library("posgan_fast", "FRAGMENT")
_LIBRARY.define(
    "epilogue2d(Tensor x, Tensor? f, Tensor? scale, Tensor? noise, Tensor? b, int[2] up, int[2] down,"
    " SymInt[4] padding, bool flip_filter, float filter_gain, str act, float alpha, float gain, float clamp,"
    " str backend) -> Tensor"
)
_LIBRARY.define(
    "epilogue2d_(Tensor(a!) x, Tensor? scale, Tensor? noise, Tensor? b, str act, float alpha, float gain, float clamp,"
    " str backend) -> ()"
)


def check(x, f, scale, noise, b, up, down, padding, flip_filter, filter_gain, act, alpha, gain, clamp):
    """Validate a call and return the arguments of the op up to the backend."""
    checks.tensor(x, "x", ndim=4)
    checks.flag(flip_filter, "flip_filter")
    filter_gain = checks.real(filter_gain, "filter_gain")
    if f is None:
        up, down = checks.resampling(up, down)
        pad = checks.padding(padding)
        if (up, down, pad) != ((1, 1), (1, 1), (0, 0, 0, 0)):
            raise ValueError(f"f: expected a filter to resample with, got None with {up=}, {down=}, padding={pad}")
        if flip_filter or filter_gain != 1:
            raise ValueError(f"f: expected a filter, got None with {flip_filter=}, {filter_gain=}")
        out_size = x.shape[2:]
    else:
        up, down, pad = upfirdn2d.check(x, f, up, down, padding, flip_filter, filter_gain)
        f = upfirdn2d.taps_of(f, x)
        out_size = upfirdn2d.out_size(x, f, up, down, pad)
    acc = checks.arithmetic(x.dtype)
    n, c = x.shape[:2]
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
        b = b.to(x.dtype)
    b, _, alpha, gain, clamp = bias_act.check(x, b, 1, act, alpha, gain, clamp)
    return x, f, scale, noise, b, up, down, pad, flip_filter, filter_gain, act, alpha, gain, clamp


@torch.library.register_fake("posgan_fast::epilogue2d", lib=_LIBRARY)
def _fake(x, f, scale, noise, b, up, down, padding, flip_filter, filter_gain, act, alpha, gain, clamp, backend):
    return upfirdn2d.empty_output(x, f, up, down, padding)


@torch.library.register_fake("posgan_fast::epilogue2d_", lib=_LIBRARY)
def _fake_(x, scale, noise, b, act, alpha, gain, clamp, backend):
    return None


def reference(x, f, scale, noise, b, up, down, padding, flip_filter, filter_gain, act, alpha, gain, clamp):
    """The definition in plain torch, in the arithmetic type of ``x``."""
    z = x.to(checks.arithmetic(x.dtype))
    if f is not None:
        z = upfirdn2d.reference(z, f, up, down, padding, flip_filter, filter_gain)
    return _finished(z, scale, noise, b, act, alpha, gain, clamp)


def _decomposition(
    x, f, scale, noise, b, up, down, padding, flip_filter, filter_gain, act, alpha, gain, clamp, backend
):  # fmt: skip
    z = x.to(checks.arithmetic(x.dtype))
    if f is not None:
        z = upfirdn2d.decomposition(z, f, up, down, padding, flip_filter, filter_gain)
    return layout.in_format_of(_finished(z, scale, noise, b, act, alpha, gain, clamp).to(x.dtype), x)


def _finished(z, scale, noise, b, act, alpha, gain, clamp):
    z = z if scale is None else z * scale[:, :, None, None]
    z = z if noise is None else z + noise
    b = None if b is None else b.to(z.dtype)
    return bias_act.reference(z, b, None, None, 1, 0, act, alpha, gain, clamp)


def _setup_context(ctx, inputs, output):
    x, f, scale, noise, b, *ctx.resample, act, alpha, gain, clamp, backend = inputs
    ctx.activation = (1, act, alpha, gain, clamp, backend)
    ctx.noise_shape = None if noise is None else noise.shape
    ctx.in_shape, ctx.out_shape = x.shape, output.shape
    ctx.kind = activations.derivative_reads(act, alpha, clamp)
    # What the derivative of the activation is read off, besides what the scale's own gradient needs.
    kept = [x if scale is not None or ctx.kind == "input" else None, f, scale]
    kept += [output] if ctx.kind == "output" else [noise, b] if ctx.kind == "input" else []
    ctx.save_for_backward(*kept)


def _backward(ctx, dy):
    x, f, scale, *rest = ctx.saved_tensors
    ref = b = None
    if ctx.kind == "output":
        (ref,) = rest
    elif ctx.kind == "input":
        noise, b = rest
        linear = ("linear", 0.0, 1.0, -1.0, ctx.activation[-1])
        ref = OP(x, f, scale, noise, None, *ctx.resample, *linear)
    g = bias_act.gradient(dy, ref, b, ctx.activation)  # of z * scale + noise + b, [N, C, H', W']
    wanted = ctx.needs_input_grad
    d_b = g.sum((0, 2, 3)) if wanted[4] else None
    d_noise = d_scale = dx = None
    if wanted[3]:
        d_noise = g.sum(1, keepdim=True, dtype=checks.arithmetic(g.dtype))
        d_noise = d_noise.sum(0, keepdim=True) if ctx.noise_shape[0] == 1 else d_noise
    if wanted[0] or wanted[2]:
        v = g if f is None else _transposed(ctx, g, f)  # [N, C, H, W]
        if wanted[2]:
            d_scale = (v.to(scale.dtype) * x.to(scale.dtype)).sum((2, 3))
        dx = v if scale is None else (v * scale[:, :, None, None]).to(g.dtype)
    return dx, None, d_scale, d_noise, d_b, *[None] * 10


def _transposed(ctx, g, f):
    up, down, padding, flip_filter, filter_gain = ctx.resample
    pad = upfirdn2d.transposed_padding(f, up, down, padding, ctx.in_shape[2:], ctx.out_shape[2:])
    return upfirdn2d.OP(g, f, down, up, pad, not flip_filter, filter_gain, ctx.activation[-1])


def _run_cpu(x, f, scale, noise, b, up, down, padding, flip_filter, filter_gain, act, alpha, gain, clamp, y):
    index = bias_act.ACTIVATIONS[act].index
    torch.ops.posgan_fast_native.epilogue2d(
        x, None, f, scale, noise, b, y, up[0], up[1], down[0], down[1], padding[0], padding[2], flip_filter,
        filter_gain, index, alpha, gain, clamp,
    )  # fmt: skip


def _run_cuda(x, f, scale, noise, b, up, down, padding, flip_filter, filter_gain, act, alpha, gain, clamp, y):
    """The two kernels that there are, the second in place."""
    if f is not None:
        torch.ops.posgan_fast_native.upfirdn2d(
            x, f, y, up[0], up[1], down[0], down[1], padding[0], padding[2], flip_filter, filter_gain
        )
        if scale is noise is b is None and (act, gain) == ("linear", 1) and clamp < 0:
            return
    x = _dense(x, y) if f is None else y
    _run_cpu(x, None, scale, noise, b, (1, 1), (1, 1), (0, 0, 0, 0), False, 1.0, act, alpha, gain, clamp, y)


def _run_triton(x, f, scale, noise, b, up, down, padding, flip_filter, filter_gain, act, alpha, gain, clamp, y):
    from ..kernels import epilogue2d as kernel
    from ..kernels.records import Activation, Resample

    x = x if f is not None else _dense(x, y)
    resample, activation = Resample(up, down, padding, flip_filter, filter_gain), Activation(act, alpha, gain, clamp)
    kernel.epilogue2d(x, f, scale, noise, b, y, resample, activation)


def _dense(x, y):
    """``x`` if it has the strides of ``y``, else ``y`` with the values of ``x``, to be written over."""
    return x if x.stride() == y.stride() else y.copy_(x)


def _run_reference(x, f, scale, noise, b, up, down, padding, flip_filter, filter_gain, act, alpha, gain, clamp, y):
    y.copy_(reference(x, f, scale, noise, b, up, down, padding, flip_filter, filter_gain, act, alpha, gain, clamp))


IMPLS = (
    _backend.Impl("cuda", _backend.cuda_can_run, _run_cuda),
    _backend.Impl("cpu", _backend.cpu_can_run, _run_cpu),
    _backend.Impl("triton", _backend.triton_can_run, _run_triton),
    _backend.Impl("reference", _backend.reference_can_run, _run_reference),
)


def _dispatch(x, f, scale, noise, b, up, down, padding, flip, filter_gain, act, alpha, gain, clamp, backend):
    y = upfirdn2d.empty_output(x, f, up, down, padding)
    _launch(x, f, scale, noise, b, up, down, padding, flip, filter_gain, act, alpha, gain, clamp, y, backend)
    return y


def _dispatch_(x, scale, noise, b, act, alpha, gain, clamp, backend):
    dense = any(x.is_contiguous(memory_format=m) for m in (torch.contiguous_format, torch.channels_last))
    y = x if dense else layout.empty(x, x.shape)
    _launch(x, None, scale, noise, b, (1, 1), (1, 1), (0, 0, 0, 0), False, 1.0, act, alpha, gain, clamp, y, backend)
    if not dense:
        x.copy_(y)


_LIBRARY.impl("epilogue2d_", _dispatch_, "CompositeExplicitAutograd")
OP = Op(_LIBRARY, NAME, _dispatch, _decomposition, _setup_context, _backward, samples=(0, 2, 3))


def _launch(x, f, scale, noise, b, up, down, padding, flip, filter_gain, act, alpha, gain, clamp, y, backend):
    if y.numel() == 0:
        return
    acc = checks.arithmetic(x.dtype)  # an exported graph under autocast brings other dtypes than the public function
    dtypes = ((scale, acc), (noise, acc), (b, x.dtype))
    scale, noise, b = (None if t is None else t.to(dtype).contiguous() for t, dtype in dtypes)
    clamp = bias_act.round_to(clamp, x.dtype)
    run = _backend.implementation(NAME, IMPLS, x, backend)
    run(layout.readable(x), f, scale, noise, b, up, down, padding, flip, filter_gain, act, alpha, gain, clamp, y)
