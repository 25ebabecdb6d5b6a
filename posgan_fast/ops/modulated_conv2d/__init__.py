r"""modulated_conv2d: the style layer of StyleGAN2 in one call: modulate, pad, convolve, resample, demodulate, activate.

Per sample n, with ``s`` the styles and ``d`` the demodulation coefficients::

    d[n, o] = rsqrt(sum_{i, k} (weight[o, i, k] * s[n, i])^2 + eps)          (1 without demodulation)
    z = conv(pad(x * s[n, i]), weight), resampled by up or down with the filter
    y = clamp(gain * act(z * d[n, o] + noise_strength * noise + bias[o]), -clamp, +clamp)

``pad`` is zero padding, or with ``pad_map`` the instance-aware padding of PadInv: the ring of a per-sample map, raw, in
the space after modulation. One weight serves the whole batch; the factors s and d act on activations.

With ``up`` the convolution is transposed, its output [2 * H + 1, 2 * W + 1] for a 3x3 kernel, and the filter follows,
gain ``up^2``; a map then surrounds that output instead, holds one value for each output channel, and is demodulated but
not convolved. With ``down`` the filter precedes a convolution of that stride. Paddings are those of the NVlabs code:
``padding`` counts pixels of the upsampled image, the filter's own are added.

Shapes: ``x`` [N, I, H, W], ``weight`` [O, I, kh, kw], ``styles`` [N, I]; result [N, O, H', W'] in the dtype and memory
format of ``x``, H' = (H * up + 2 * padding - kh) // down + 1 for the filters of StyleGAN2, of an even number of taps.
If a derivative is asked for, the memory format is that of torch's convolution. Under autocast the layer runs in
autocast's dtype, unless ``x`` is float64.
Dtypes: the convolution runs in the dtype of ``x``, by Winograd's algorithm in float32; the factors are computed in
float32 (float64). To keep float16 activations in range the layer scales the weight per filter, and the styles and the
map per sample; the coefficients undo it. The result is that of float32, at least while features stay below 6e4 / sqrt(I
* kh * kw). Gradients have no such care: between the stages they are rounded to float16 as features are, those of a
second derivative too, so a loss has to be scaled (``torch.amp.GradScaler``). The backend "reference" computes in
float32 inside, forward and backward.
Errors: those of a direct convolution; by Winograd's algorithm (:func:`posgan_fast.set_algorithm`) relative L2 up to
2e-6 against float64, and a number that is not finite spoils whole tiles of 4 x 4 or 8 x 8 results.
Derivatives: as epilogue2d, in ``x``, ``weight``, ``styles``, ``pad_map``, ``noise``, ``noise_strength`` and ``bias``.

Source: NVlabs stylegan2-ada (``modulated_conv2d``, ``conv2d_resample``); EzioBy/padinv for the map.
"""

from __future__ import annotations

from typing import Any

import torch

from ... import backend as _backend
from .. import bias_act, upfirdn2d
from ..common import autocast, checks, layout, ring
from ..common.op import (
    Op,
    differentiates_forward,
    is_recorded,
    is_transformed,
    is_watched,
    restore,
    save,
    transforms_active,
)
from . import conv2d_resample, cpu, cuda, triton, winograd
from .call import Call, empty_output
from .stages import run_stages

NAME = "modulated_conv2d"


def modulated_conv2d(
    x: torch.Tensor,
    weight: torch.Tensor,
    styles: torch.Tensor,
    *,
    up: int = 1,
    down: int = 1,
    padding: int = 0,
    pad_map: torch.Tensor | None = None,
    resample_filter: torch.Tensor | None = None,
    demodulate: bool = True,
    flip_weight: bool = True,
    noise: torch.Tensor | None = None,
    noise_strength: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    act: str = "linear",
    alpha: float | None = None,
    gain: float | None = None,
    clamp: float | None = None,
    eps: float = 1e-8,
    backend: str | None = None,
) -> torch.Tensor:
    r"""Run the style layer of StyleGAN2; the module's docstring has the formula.

    Args:
        x: input [N, I, H, W], NCHW or channels_last (kept).
        weight: [O, I, kh, kw], any floating dtype, not per sample.
        styles: [N, I], any floating dtype.
        up, down: factors of resampling; at most one differs from 1.
        padding: on every side, in pixels of the upsampled image, >= 0.
        pad_map: replaces the zeros of ``padding=1``. Without resampling a map [N, I, h, w], h >= H + 2 and w >= W + 2,
            whose centre crop gives the ring, or a ring [N, I, 2 * (H + W) + 4]. With ``up`` the same around the output
            of the transposed convolution, with O channels. Never written.
        resample_filter: filter for ``up`` and ``down`` from :func:`setup_filter`; None: the identity.
        demodulate: normalise by the expected magnitude of the output.
        flip_weight: True correlates as torch does, False convolves.
        noise: [H', W'], [1, 1, H', W'] or [N, 1, H', W'], any floating dtype.
        noise_strength: tensor of one element, any floating dtype, that multiplies the noise; None: 1.
        bias, act, alpha, gain, clamp: as in :func:`bias_act`.
        eps: added under the root of the coefficients.
        backend: "reference", "cpu", "triton" or "cuda"; None lets :mod:`posgan_fast.backend` choose.

    Returns:
        [N, O, H', W'].

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape, factor, size or device.
        BackendError: the chosen backend cannot run this call.

    Example:
        >>> x, weight, styles = torch.randn(2, 8, 16, 16), torch.randn(4, 8, 3, 3), torch.ones(2, 8)
        >>> modulated_conv2d(x, weight, styles, padding=1, bias=torch.zeros(4), act="lrelu").shape
        torch.Size([2, 4, 16, 16])
    """
    call = Call(
        x, weight, styles, up, down, padding, pad_map, resample_filter, demodulate, flip_weight, eps, noise,
        noise_strength, bias, act, alpha, gain, clamp, backend,  # type: ignore[arg-type]
    )  # fmt: skip
    return autocast.run(check(call), _run)


def check(call: Call) -> Call:
    """Validate the arguments of a user that the stages do not check; return the complete call with its backend."""
    x, weight, styles, pad_map, f, noise = call.x, call.weight, call.styles, call.pad_map, call.f, call.noise
    checks.tensor(x, "x", ndim=4)
    checks.tensor(weight, "weight", ndim=4)
    checks.same_device(weight, "weight", x)
    n, c = x.shape[:2]
    if weight.shape[1] != c or weight.numel() == 0:
        raise ValueError(f"weight: expected shape [O, {c}, kh, kw] for x of {c} channels, got {tuple(weight.shape)}")
    checks.tensor(styles, "styles", shape=(n, c))
    checks.same_device(styles, "styles", x)
    up, down = checks.factors(call.up, call.down)
    padding = checks.integer(call.padding, "padding", minimum=0, maximum=checks.MAX_PADDING)
    checks.flag(call.demodulate, "demodulate")
    checks.flag(call.flip_weight, "flip_weight")
    if pad_map is not None:
        _check_use_of_map(up, down, padding, weight)
    upfirdn2d.check_filter(f, "resample_filter", x)
    f = None if up * down == 1 else upfirdn2d.taps_of(f, x)
    size = conv2d_resample.out_size(x, weight, up, down, padding, f)
    _check_size(size, up, down, padding, x, weight)
    if pad_map is not None:
        surrounded = conv2d_resample.surrounded_size(x.shape[2:], weight, up, padding, f)
        ring.check(pad_map, x, c if up == 1 else weight.shape[0], *surrounded)
    noise = None if noise is None else _checked_noise(noise, x, size)
    strength = None if call.noise_strength is None else _checked_strength(call.noise_strength, noise, x)
    if call.bias is not None:
        checks.tensor(call.bias, "bias", shape=(weight.shape[0],))
        checks.same_device(call.bias, "bias", x)
    _, _, activation = bias_act.check(x, None, 1, call.activation)
    eps = checks.real(call.eps, "eps", minimum=0)
    complete = Call(
        x, weight, styles, up, down, padding, pad_map, f, call.demodulate, call.flip_weight, eps, noise,
        strength, call.bias,
        *activation, _backend.AUTO,
    )  # fmt: skip
    cast = complete._replace(x=autocast.cast(x))
    backend = _backend.resolve(NAME, IMPLS, x, call.backend, lambda name: _algorithm(name, cast))
    return complete._replace(backend=backend)


def _algorithm(backend: str, call: Call) -> str | None:
    """Name the algorithm by which a backend serves a call, for explain."""
    if backend == "cpu":
        return _backend.winograd_unless(winograd.reason_against(call))
    return cuda.algorithm(call) if backend == "cuda" and not is_recorded(call) else None


def _check_use_of_map(up: int, down: int, padding: int, weight: torch.Tensor) -> None:
    kh, kw = weight.shape[2:]
    if padding != 1 or down > 1 or (up > 1 and 1 in (kh, kw)):
        raise ValueError(
            "pad_map: expected None unless padding is 1, down is 1 and, with up, the kernel is larger than a pixel,"
            f" got {padding=}, {down=}, {up=}, kernel {kh} x {kw}"
        )


def _check_size(size: Any, up: int, down: int, padding: int, x: torch.Tensor, weight: torch.Tensor) -> None:
    if min(size) < 1:
        raise ValueError(
            f"padding: expected an input of at least the size of the kernel, got {x.shape[2]} x {x.shape[3]} with"
            f" {up=}, {down=}, {padding=} and a kernel {weight.shape[2]} x {weight.shape[3]}"
        )
    if max(size) > checks.MAX_PADDING:
        raise ValueError(
            f"padding: expected a result of at most {checks.MAX_PADDING} pixels a side, got {size[0]} x {size[1]}"
        )


def _checked_noise(noise: Any, x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Validate the noise; return it as [1 or N, 1, H', W']."""
    n = x.shape[0]
    checks.tensor(noise, "noise")
    checks.same_device(noise, "noise", x)
    # Look at the rank first: comparing a symbolic batch with a height would make an exported graph fix the batch.
    shapes = (size,) if noise.ndim == 2 else ((n, 1, *size), (1, 1, *size))
    if tuple(noise.shape) not in shapes:
        raise ValueError(f"noise: expected shape {size}, {(1, 1, *size)} or {(n, 1, *size)}, got {tuple(noise.shape)}")
    return noise.reshape(-1, 1, *size)


def _checked_strength(strength: Any, noise: torch.Tensor | None, x: torch.Tensor) -> torch.Tensor:
    if noise is None:
        raise ValueError("noise_strength: expected None without noise, got a value")
    if not isinstance(strength, torch.Tensor):
        raise TypeError(f"noise_strength: expected a tensor of one element, got {type(strength).__name__}")
    checks.tensor(strength, "noise_strength")
    checks.same_device(strength, "noise_strength", x)
    if strength.numel() != 1:
        raise ValueError(f"noise_strength: expected a tensor of one element, got shape {tuple(strength.shape)}")
    return strength.reshape(())


def _run(call: Call) -> torch.Tensor:
    """Run the op, which may overwrite its intermediate results, or the stages if the caller can ask for a derivative or
    watches the operators."""
    if _needs_stages(call):
        return _backend.unlisted(lambda: run_stages(call))
    return OP(call)


def _needs_stages(call: Call) -> bool:
    if is_recorded(call):
        return True
    if torch.compiler.is_compiling():  # the compiler's own dispatch modes do not count as watching
        return transforms_active() or differentiates_forward(*call)
    return is_transformed(*call) or is_watched()


def _setup_context(ctx, call, result):
    save(ctx, call, *_tensors(call))


def _tensors(call: Call) -> list[str]:
    return [field for field, value in call._asdict().items() if isinstance(value, torch.Tensor)]


def _backward(ctx, dy, wanted):
    """Backward of the fused op in exported graphs: rerun the differentiable stages and differentiate them."""
    call, _ = restore(ctx)
    given = _tensors(call)
    higher = torch.is_grad_enabled()
    with torch.enable_grad(), autocast.disabled(dy):
        # Views cut the graph between arguments: the gradient of one must not flow through another computed from it.
        call = call._replace(**{field: getattr(call, field).view_as(getattr(call, field)) for field in given})
        y = run_stages(call._replace(backend=_backend.resolve_auto(NAME, IMPLS, call.x, call.backend)))
        fields = [field for field in given if field in wanted]
        found = torch.autograd.grad(y, [getattr(call, field) for field in fields], dy, create_graph=higher)
    return dict(zip(fields, found, strict=True))


IMPLS = (
    _backend.Impl("cuda", _backend.cuda_can_run, cuda.infer),
    _backend.Impl("cpu", _backend.cpu_can_run, cpu.infer),
    _backend.Impl("triton", _backend.triton_can_run, triton.infer),
    _backend.Impl("reference", _backend.reference_can_run, run_stages),
)


def _kernel(call):
    with autocast.disabled(call.x):  # may be on in an exported graph
        if call.backend == _backend.AUTO:
            call = call._replace(backend=_backend.resolve_auto(NAME, IMPLS, call.x, call.backend))
        y = _backend.implementation(NAME, IMPLS, call.x, call.backend)(call)
    return layout.as_empty(y, call.x)


def _decomposition(call):
    with autocast.disabled(call.x):
        return layout.in_format_of(run_stages(call._replace(backend="reference")), call.x)


OP = Op(
    "modulated_conv2d(Tensor x, Tensor weight, Tensor styles, int up, int down, int padding, Tensor? pad_map,"
    " Tensor? f, bool demodulate, bool flip_weight, float eps, Tensor? noise, Tensor? noise_strength, Tensor? bias,"
    " str act, float alpha, float gain, float clamp, str backend) -> Tensor",
    Call,
    fake=empty_output,
    kernel=_kernel,
    decomposition=_decomposition,
    setup_context=_setup_context,
    backward=_backward,
)
