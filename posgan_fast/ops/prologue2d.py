r"""prologue2d: prepares the input of a convolution in one pass: encodes, scales, adds and pads.

Parts that are not given are left out::

    z = x + E  or  concatenate(x, E)             E: a positional encoding, never held as a grid
    z = z * styles[n, c] + residual
    y = z inside; outside: 0, z reflected, or the border of a per-sample map

Shapes: ``x`` [N, C, H, W], ``styles`` [N, C'], ``residual`` [N, C', H, W] with C' the channels after the encoding;
result [N, C', H + top + bottom, W + left + right] in the dtype and memory format of ``x``. The border is read from a
map [N, C', h, w] with h >= H + 2 and w >= W + 2 (the ring of its centre crop) or a compact ring
[N, C', 2 * (H + W) + 4]: top row (W + 2), bottom row (W + 2), left column (H), right column (H). The styles do not
scale it.
Dtypes: float16 and bfloat16 compute in float32 and round once, float64 computes in itself. The other tensors are of any
of the four: ``styles`` are converted to the dtype of this arithmetic, ``residual`` and the border to that of ``x``.
Under autocast the op runs in the dtype of ``x``.
Derivatives: any order in ``x``, ``styles``, ``residual`` and the border. The gradient of a map is zero off its ring.

Source: PadInv ("High-fidelity GAN Inversion with Padding Space", ECCV 2022) for the border; its code writes the border
into the caller's tensor, this op does not. :mod:`posgan_fast.ops.common.encodings` has the source of SPE and CSG.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from .. import backend as _backend
from .common import checks, encodings, layout, ring
from .common.op import Op, changed, restore, save, wanted_of
from .common.records import Activation, Encoding
from .epilogue2d.backward import Factors, gradients

NAME = "prologue2d"
MODES = ("zeros", "reflect", "instance")
JOINS = ("add", "concat")
_OWN_NAMES = {"x": "x", "scale": "styles"}  # of the gradients that epilogue2d shares


def prologue2d(
    x: torch.Tensor,
    styles: torch.Tensor | None = None,
    *,
    residual: torch.Tensor | None = None,
    padding: int | Sequence[int] = 0,
    mode: str = "zeros",
    pad_map: torch.Tensor | None = None,
    encode: str | None = None,
    join: str = "add",
    channels: int | None = None,
    layout: str = "mmgen",
    div_half_dim: bool = False,
    base_size: Sequence[int] | None = None,
    backend: str | None = None,
) -> torch.Tensor:
    r"""Encode, scale, add and pad the input of a convolution; the module's docstring has the formula.

    Args:
        x: input [N, C, H, W], NCHW or channels_last (kept).
        styles: factors [N, C'] or [1, C'], any floating dtype.
        residual: [N, C', H, W], any floating dtype, added after scaling.
        padding: on each side: int, [x, y] or [left, right, top, bottom], >= 0; 1 in the mode "instance".
        mode: "zeros", "reflect" or "instance".
        pad_map: the map or the compact ring of the mode "instance", any floating dtype.
        encode: "spe", "csg" or None.
        join: "add" the encoding (C' = C) or "concat" it behind x.
        channels: the channels of a concatenated "spe"; None: C. An added encoding has C channels, "csg" has two.
        layout, div_half_dim, base_size: as in :func:`sinusoidal_encoding2d` and :func:`cartesian_grid2d`.
        backend: "reference", "cpu", "triton" or "cuda"; None lets :mod:`posgan_fast.backend` choose.

    Returns:
        [N, C', H + top + bottom, W + left + right].

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape, size, mode or device.
        BackendError: the chosen backend cannot run this call.

    Example:
        >>> x, styles = torch.zeros(2, 8, 4, 4), torch.ones(2, 10)
        >>> prologue2d(x, styles, encode="csg", join="concat", padding=1).shape
        torch.Size([2, 10, 6, 6])
    """
    encoding = _encoding(x, encode, join, channels, layout, div_half_dim, base_size)
    call = check(x, residual, styles, padding, mode, pad_map, encoding, backend)
    if styles is None and residual is None and encoding is None and not any(call.padding):
        return x
    return OP(call)


def grid(encoding: Encoding, dtype: torch.dtype, op: str, backend: str | None) -> torch.Tensor:
    """Return an encoding as a tensor [1, 2 * d, H, W]: the op concatenates it to an input without channels."""
    columns, rows = encoding.columns, encoding.rows
    x = columns.new_empty((1, 0, rows.shape[1], columns.shape[1]), dtype=dtype)
    name = _backend.resolve(op, IMPLS, x, backend)
    return OP(Call(x, columns=columns, rows=rows, concat=True, height_first=encoding.height_first, backend=name))


def instance_pad2d(x: torch.Tensor, pad_map: torch.Tensor, *, backend: str | None = None) -> torch.Tensor:
    """Pad ``x`` [N, C, H, W] by one pixel taken from ``pad_map``: a map [N, C, h, w], h >= H + 2 and w >= W + 2, whose
    centre crop gives its ring, or a compact ring [N, C, 2 * (H + W) + 4]. ``pad_map`` is never written.

    Raises:
        TypeError, ValueError, BackendError: as :func:`prologue2d`.

    Example:
        >>> instance_pad2d(torch.zeros(1, 1, 1, 2), torch.ones(1, 1, 4, 5))[0, 0]
        tensor([[1., 1., 1., 1.],
                [1., 0., 0., 1.],
                [1., 1., 1., 1.]])
    """
    return prologue2d(x, padding=1, mode="instance", pad_map=pad_map, backend=backend)


class Call(NamedTuple):
    """The arguments of the op, checked; ``styles`` in the arithmetic type, ``residual`` and ``border`` in that of x."""

    x: torch.Tensor
    residual: torch.Tensor | None = None
    styles: torch.Tensor | None = None
    border: torch.Tensor | None = None
    columns: torch.Tensor | None = None
    rows: torch.Tensor | None = None
    padding: Sequence[int] = (0, 0, 0, 0)
    mode: str = "zeros"
    concat: bool = False
    height_first: bool = False
    backend: str = _backend.AUTO

    @property
    def encoding(self) -> Encoding | None:
        if self.columns is None or self.rows is None:
            return None
        return Encoding(self.columns, self.rows, self.concat, self.height_first)


def check(x, residual, styles, padding, mode, pad_map, encoding: Encoding | None, backend) -> Call:
    """Validate the arguments of a user, except for the encoding; return the complete call with its backend."""
    n, c, h, w = x.shape
    if encoding is not None and encoding.concat:
        c += 2 * encoding.columns.shape[0]
    pad = _check_padding(padding, checks.choice(mode, "mode", MODES), h, w)
    if pad_map is None and mode == "instance":
        raise ValueError('pad_map: expected a map or ring in the mode "instance", got None')
    if pad_map is not None and mode != "instance":
        raise ValueError(f'pad_map: expected None unless the mode is "instance", got one in the mode {mode!r}')
    styles = _check_styles(styles, x, c)
    if residual is not None:
        checks.tensor(residual, "residual", shape=(n, c, h, w))
        checks.same_device(residual, "residual", x)
        residual = residual.to(x.dtype)
    border = None
    if pad_map is not None:
        ring.check(pad_map, x, c, h, w)
        border = pad_map.to(x.dtype)
    columns, rows, concat, height_first = (None, None, False, False) if encoding is None else encoding
    name = _backend.resolve(NAME, IMPLS, x, backend)
    return Call(x, residual, styles, border, columns, rows, pad, mode, concat, height_first, name)


def _encoding(x, encode, join, channels, layout, div_half_dim, base_size) -> Encoding | None:
    """Validate ``x`` and the arguments of an encoding; return the encoding, or None if the user asks for none."""
    checks.tensor(x, "x", ndim=4)
    _, c, h, w = x.shape
    if h == 0 or w == 0:
        raise ValueError(f"x: expected at least one row and column, got shape {tuple(x.shape)}")
    checks.choice(join, "join", JOINS)
    if encode is None:
        if channels is not None or base_size is not None:
            raise ValueError(f"encode: expected one of {encodings.KINDS} with channels or a base_size, got None")
        return None
    spe = checks.choice(encode, "encode", encodings.KINDS) == "spe"
    total = c if spe else 2
    if channels is not None and (channels := checks.integer(channels, "channels", minimum=1)) != total:
        if not spe or join == "add":
            raise ValueError(f"channels: expected None or {total} to {join} {encode!r}, got {channels}")
        total = channels
    if join == "add" and (c % 4 if spe else c != 2):
        wanted = "a multiple of 4 channels" if spe else "2 channels"
        raise ValueError(f"x: expected {wanted} to add the encoding {encode!r} to, got {c}")
    tables = encodings.tables(encode, h, w, total, layout, div_half_dim, base_size, x.dtype, x.device)
    return tables._replace(concat=join == "concat")


def _check_padding(padding: Any, mode: str, h: int, w: int) -> tuple[int, int, int, int]:
    pad = checks.padding(padding)
    if min(pad) < 0:
        raise ValueError(f"padding: expected no negative number, got {pad}")
    if mode == "instance" and pad != (1, 1, 1, 1):
        raise ValueError(f'padding: expected 1 in the mode "instance", got {pad}')
    if mode == "reflect" and (max(pad[:2]) >= w or max(pad[2:]) >= h):
        raise ValueError(f"padding: expected less than the size {h} x {w} to reflect, got {pad}")
    return pad


def _check_styles(styles: Any, x: torch.Tensor, c: int) -> torch.Tensor | None:
    """Validate the styles; return them as [N, C'] in the arithmetic type."""
    if styles is None:
        return None
    checks.tensor(styles, "styles", ndim=2)
    checks.same_device(styles, "styles", x)
    if styles.shape[1] != c or styles.shape[0] not in (1, x.shape[0]):
        raise ValueError(f"styles: expected shape ({x.shape[0]}, {c}) or (1, {c}), got {tuple(styles.shape)}")
    return styles.to(checks.arithmetic(x.dtype)).expand(x.shape[0], c)


def reference(call: Call) -> torch.Tensor:
    """The definition in plain torch, in the arithmetic type of ``x``."""
    z = _encoded(call.x.to(checks.arithmetic(call.x.dtype)), call.encoding)
    if call.styles is not None:
        z = z * call.styles[:, :, None, None]
    if call.residual is not None:
        z = z + call.residual
    if call.border is None:
        return F.pad(z, list(call.padding), "constant" if call.mode == "zeros" else "reflect")
    h, w = call.x.shape[2:]
    border = call.border if call.border.ndim == 3 else ring.ring_from_map(call.border, h, w)
    return F.pad(z, (1, 1, 1, 1)) + ring.map_from_ring(border, h, w)


def _encoded(x, encoding):
    """Add the encoding to ``x``, or concatenate it behind. Encodings take no gradient."""
    if encoding is None:
        return x
    h, w = x.shape[2:]
    columns, rows, concat, height_first = encoding
    halves = [columns[:, None, :].expand(-1, h, -1), rows[:, :, None].expand(-1, -1, w)]  # [d, H, W]
    grid = torch.cat(halves[::-1] if height_first else halves)[None].to(x.dtype)
    return torch.cat([x, grid.expand(x.shape[0], -1, -1, -1)], dim=1) if concat else x + grid


def _setup_context(ctx, call, result):
    ctx.in_shape, ctx.border_shape = call.x.shape, None if call.border is None else call.border.shape
    kept = ("x",) if "styles" in wanted_of(ctx, call) else ()
    save(ctx, call, *kept, "styles", "columns", "rows")


def _backward(ctx, dy, wanted):
    call, _ = restore(ctx)
    c, h, w = ctx.in_shape[1:]
    found = {}
    if "border" in wanted:
        found["border"] = _border_gradient(dy, ctx.border_shape, h, w)
    left, _, top, _ = call.padding
    g = dy.narrow(2, top, h).narrow(3, left, w)  # [N, C', H, W]; a full slice is an alias, which vmap does not know
    if call.mode == "reflect" and any(call.padding):  # up to nine values to a sum
        acc = checks.arithmetic(dy.dtype)
        g = torch.ops.aten.reflection_pad2d_backward(dy.to(acc), g.to(acc), list(call.padding))
    if "residual" in wanted:
        found["residual"] = g.to(dy.dtype)
    if call.styles is None:
        found["x"] = g
    elif wanted & {"x", "styles"}:
        found |= _scaled_gradients(call, g, wanted)
    if "x" in found:
        found["x"] = found["x"].narrow(1, 0, c).to(dy.dtype)
    return found


def _scaled_gradients(call, g, wanted):
    """Return the gradients of the encoded input and of the styles that scale it."""
    z = None if call.x is None else call.x.to(g.dtype)
    if z is not None and call.columns is not None:  # encoded again, and not rounded
        g, z = (t.to(checks.arithmetic(g.dtype)) for t in (g, z))
        encoding = dict(columns=call.columns, rows=call.rows, concat=call.concat, height_first=call.height_first)
        z = OP(Call(z, **encoding, backend=call.backend))
    names = {name for name, own in _OWN_NAMES.items() if own in wanted}
    found = gradients(g, None, z, Factors(call.styles), Activation(), names, call.backend)
    return {_OWN_NAMES[name]: gradient for name, gradient in found.items()}


def _border_gradient(dy, shape, h, w):
    border = ring.ring_from_map(dy, h, w)
    if len(shape) == 3:
        return border
    y, x = ring.offsets(shape, h, w)
    return F.pad(ring.map_from_ring(border, h, w), (x, shape[3] - w - 2 - x, y, shape[2] - h - 2 - y))


def _run_native(call, y):
    left, _, top, _ = call.padding
    torch.ops.posgan_fast_native.prologue2d(
        call.x, call.residual, call.styles, call.border, call.columns, call.rows, y, left, top,
        MODES.index(call.mode), call.concat, call.height_first,
    )  # fmt: skip


def _run_triton(call, y):
    from ..kernels import prologue2d as kernel

    left, _, top, _ = call.padding
    kernel.prologue2d(call.x, call.residual, call.styles, call.border, y, left, top, call.mode, call.encoding)


def _run_reference(call, y):
    y.copy_(reference(call))


IMPLS = (
    _backend.Impl("cuda", _backend.cuda_can_run, _run_native),
    _backend.Impl("cpu", _backend.cpu_can_run, _run_native),
    _backend.Impl("triton", _backend.triton_can_run, _run_triton),
    _backend.Impl("reference", _backend.reference_can_run, _run_reference),
)


def _empty(call):
    n, c, h, w = call.x.shape
    left, right, top, bottom = call.padding
    c += 2 * call.columns.shape[0] if call.concat else 0
    return layout.empty(call.x, (n, c, h + top + bottom, w + left + right))


def _kernel(call):
    y = _empty(call)
    if y.numel():
        _backend.implementation(NAME, IMPLS, call.x, call.backend)(_prepared(call), y)
    return y


def _prepared(call: Call) -> Call:
    """Bring the tensors into the dtypes and strides that kernels read; exported graphs under autocast hold others."""
    x, residual, border = call.x, call.residual, call.border
    return changed(
        call,
        x=layout.readable(x),
        residual=None if residual is None else layout.readable(residual.to(x.dtype), x),
        styles=layout.contiguous_as(checks.arithmetic(x.dtype), call.styles),
        border=None if border is None else border.to(x.dtype),
        columns=None if call.columns is None else _table(call.columns, x),
        rows=None if call.rows is None else _table(call.rows, x),
    )


def _table(table, x):
    """Make a table of an encoding dense along the dimension that is innermost in ``x``."""
    channels_last = layout.memory_format(x) == torch.channels_last
    return table.t().contiguous().t() if channels_last else table.contiguous()


OP = Op(
    "prologue2d(Tensor x, Tensor? residual, Tensor? styles, Tensor? border, Tensor? columns, Tensor? rows,"
    " SymInt[4] padding, str mode, bool concat, bool height_first, str backend) -> Tensor",
    Call,
    fake=_empty,
    kernel=_kernel,
    decomposition=lambda call: layout.in_format_of(reference(call).to(call.x.dtype), call.x),
    setup_context=_setup_context,
    backward=_backward,
    samples=("x", "residual", "styles", "border"),
)
