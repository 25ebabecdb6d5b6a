r"""prologue2d: what happens to the input of a convolution, in one pass: encode, scale, add, pad.

With the optional parts left out where they are not given::

    z = x + E  or  concatenate(x, E)             E: a positional encoding, never held as a grid
    z = z * styles[n, c] + residual
    y = z inside; outside: 0, z reflected, or the border of a per-sample map

Shapes: ``x`` [N, C, H, W], ``styles`` [N, C'], ``residual`` [N, C', H, W] with C' the channels after the encoding;
result [N, C', H + top + bottom, W + left + right] in the dtype and memory format of ``x``. The border is read from a
map [N, C', h, w] with h >= H + 2 and w >= W + 2 (the ring of its centre crop) or a compact ring
[N, C', 2 * (H + W) + 4]: top row (W + 2), bottom row (W + 2), left column (H), right column (H). It is taken as it is,
after scaling.
Dtypes: float16 and bfloat16 compute in float32 and round once; ``styles`` may be float32 beside them.
Under autocast the op runs in the dtype of ``x``.
Derivatives: any order in ``x``, ``styles``, ``residual`` and the border; that of a map is zero off its ring.

Source: PadInv ("High-fidelity GAN Inversion with Padding Space", ECCV 2022) for the border, which its code writes into
the caller's tensor and this does not; SPE and CSG: :mod:`posgan_fast.ops.common.encodings`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from .. import backend as _backend
from .common import checks, encodings, layout
from .common.op import Op

NAME = "prologue2d"
MODES = ("zeros", "reflect", "instance")
JOINS = ("add", "concat")


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
        styles: factors [N, C'] or [1, C'] in the dtype of ``x`` or in float32.
        residual: [N, C', H, W], added after scaling.
        padding: on each side: int, [x, y] or [left, right, top, bottom], >= 0; 1 in the mode "instance".
        mode: "zeros", "reflect" or "instance".
        pad_map: the map or the compact ring of the mode "instance".
        encode: "spe", "csg" or None.
        join: "add" the encoding (C' = C) or "concat" it behind x.
        channels: of a concatenated "spe"; None: C. What is added has those of x, "csg" two.
        layout, div_half_dim, base_size: as in :func:`sinusoidal_encoding2d` and :func:`cartesian_grid2d`.
        backend: "reference", "cpu", "triton" or "cuda"; None lets :mod:`posgan_fast.backend` choose.

    Returns:
        [N, C', H + top + bottom, W + left + right].

    Raises:
        TypeError: an argument of the wrong type or dtype.
        ValueError: a wrong shape, size, mode or device.
        BackendError: the chosen backend cannot run this call.
    """
    _check_input(x)
    n, c, h, w = x.shape
    columns = rows = None
    if (total := _encoded_channels(c, encode, join, channels, base_size)) is not None:
        columns, rows = encodings.tables(encode, h, w, total, layout, div_half_dim, base_size, x.dtype, x.device)
    concat = columns is not None and join == "concat"
    c += 0 if columns is None or join == "add" else 2 * columns.shape[0]
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
        check_border(pad_map, x, c, h, w)
        border = pad_map.to(x.dtype)
    name = _backend.resolve(NAME, IMPLS, x, backend)
    if styles is None and residual is None and columns is None and not any(pad):
        return x
    first = encodings.height_first(layout)
    return OP(x, residual, styles, border, columns, rows, pad, mode, concat, first, name)


def grid(
    halves: tuple[torch.Tensor, torch.Tensor], layout: str, dtype: torch.dtype, op: str, backend: str | None
) -> torch.Tensor:
    """The encoding that two tables stand for, [1, 2 * d, H, W]: concatenated to an input without channels."""
    columns, rows = halves
    x = columns.new_empty((1, 0, rows.shape[1], columns.shape[1]), dtype=dtype)
    name = _backend.resolve(op, IMPLS, x, backend)
    first = encodings.height_first(layout)
    return OP(x, None, None, None, columns, rows, (0, 0, 0, 0), "zeros", True, first, name)


def instance_pad2d(x: torch.Tensor, pad_map: torch.Tensor, *, backend: str | None = None) -> torch.Tensor:
    """Pad ``x`` [N, C, H, W] by one pixel taken from ``pad_map``: a map [N, C, h, w], h >= H + 2 and w >= W + 2, whose
    centre crop gives its ring, or a compact ring [N, C, 2 * (H + W) + 4]. ``pad_map`` is never written.

    Raises:
        TypeError, ValueError, BackendError: as :func:`prologue2d`.
    """
    return prologue2d(x, padding=1, mode="instance", pad_map=pad_map, backend=backend)


def ring_from_map(pad_map: torch.Tensor, height: int | None = None, width: int | None = None) -> torch.Tensor:
    """The ring around the ``height`` x ``width`` centre of a map [N, C, h, w] as [N, C, 2 * (height + width) + 4].

    Order: top row, bottom row (both with corners), left column, right column. The offset of the centre is rounded
    down. None: h - 2 and w - 2, the outermost ring. Differentiable to any order.

    Raises:
        TypeError: not a tensor, or a size that is no int.
        ValueError: the map does not hold such a ring.
    """
    checks.tensor(pad_map, "pad_map", ndim=4)
    h = pad_map.shape[2] - 2 if height is None else checks.integer(height, "height", minimum=1)
    w = pad_map.shape[3] - 2 if width is None else checks.integer(width, "width", minimum=1)
    if not (1 <= h <= pad_map.shape[2] - 2 and 1 <= w <= pad_map.shape[3] - 2):
        least = f"{max(h, 1) + 2} x {max(w, 1) + 2}"
        raise ValueError(f"pad_map: expected at least {least} pixels, got shape {tuple(pad_map.shape)}")
    y, x = _offsets(pad_map.shape, h, w)
    crop = pad_map.narrow(2, y, h + 2).narrow(3, x, w + 2)  # [N, C, H + 2, W + 2]
    return torch.cat([crop[:, :, 0], crop[:, :, -1], crop[:, :, 1:-1, 0], crop[:, :, 1:-1, -1]], dim=2)


def map_from_ring(ring: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """The map [N, C, height + 2, width + 2] whose ring is ``ring`` [N, C, 2 * (height + width) + 4], zero inside.

    Raises:
        TypeError: not a tensor, or a size that is no int.
        ValueError: a ring of another length.
    """
    checks.tensor(ring, "ring", ndim=3)
    h, w = checks.integer(height, "height", minimum=1), checks.integer(width, "width", minimum=1)
    if ring.shape[2] != 2 * (h + w) + 4:
        raise ValueError(f"ring: expected {2 * (h + w) + 4} values around {h} x {w}, got shape {tuple(ring.shape)}")
    top, bottom, left, right = ring.split([w + 2, w + 2, h, h], dim=2)
    middle = torch.cat([left[..., None], ring.new_zeros(*ring.shape[:2], h, w), right[..., None]], dim=3)
    return torch.cat([top[:, :, None], middle, bottom[:, :, None]], dim=2)


def _offsets(shape, h, w):
    """Where in a map [N, C, h', w'] the ring around h x w pixels begins."""
    return (shape[2] - h - 2) // 2, (shape[3] - w - 2) // 2


_LIBRARY = torch.library.Library("posgan_fast", "FRAGMENT")
_LIBRARY.define(
    "prologue2d(Tensor x, Tensor? residual, Tensor? styles, Tensor? border, Tensor? columns, Tensor? rows,"
    " SymInt[4] padding, str mode, bool concat, bool height_first, str backend) -> Tensor"
)


def check_border(border: Any, x: torch.Tensor, c: int, h: int, w: int) -> None:
    """Validate a map or ring around ``h`` x ``w`` pixels of ``c`` channels."""
    checks.tensor(border, "pad_map")
    checks.same_device(border, "pad_map", x)
    ring = 2 * (h + w) + 4
    if border.ndim not in (3, 4) or border.shape[:2] != (x.shape[0], c):
        raise ValueError(
            f"pad_map: expected a map [{x.shape[0]}, {c}, h, w] or a ring [{x.shape[0]}, {c}, {ring}],"
            f" got shape {tuple(border.shape)}"
        )
    if border.ndim == 3 and border.shape[2] != ring:
        raise ValueError(f"pad_map: expected a ring of {ring} values around {h} x {w}, got shape {tuple(border.shape)}")
    if border.ndim == 4 and (border.shape[2] < h + 2 or border.shape[3] < w + 2):
        raise ValueError(f"pad_map: expected at least {h + 2} x {w + 2} pixels, got shape {tuple(border.shape)}")


def _encoded_channels(c, encode, join, channels, base_size):
    """Channels of the encoding to join to an input of ``c``; None: there is no encoding."""
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
    return total


def _check_input(x: Any) -> None:
    checks.tensor(x, "x", ndim=4)
    if x.shape[2] == 0 or x.shape[3] == 0:
        raise ValueError(f"x: expected at least one row and column, got shape {tuple(x.shape)}")


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
    """Factors [N, C'] in the arithmetic type."""
    if styles is None:
        return None
    checks.tensor(styles, "styles", ndim=2)
    checks.same_device(styles, "styles", x)
    if styles.shape[1] != c or styles.shape[0] not in (1, x.shape[0]):
        raise ValueError(f"styles: expected shape ({x.shape[0]}, {c}) or (1, {c}), got {tuple(styles.shape)}")
    return styles.to(checks.arithmetic(x.dtype)).expand(x.shape[0], c)


@torch.library.register_fake("posgan_fast::prologue2d", lib=_LIBRARY)
def _fake(x, residual, styles, border, columns, rows, padding, mode, concat, height_first, backend):
    return _empty_output(x, columns, padding, concat)


def reference(x, residual, styles, border, columns, rows, padding, mode, concat, height_first):
    """The definition in plain torch, in the arithmetic type of ``x``."""
    z = _encoded(x.to(checks.arithmetic(x.dtype)), columns, rows, concat, height_first)
    if styles is not None:
        z = z * styles[:, :, None, None]
    if residual is not None:
        z = z + residual
    if mode != "instance":
        return F.pad(z, list(padding), "constant" if mode == "zeros" else "reflect")
    h, w = x.shape[2:]
    ring = border if border.ndim == 3 else ring_from_map(border, h, w)
    return F.pad(z, (1, 1, 1, 1)) + map_from_ring(ring, h, w)


def _encoded(x, columns, rows, concat, height_first):
    """x with its encoding added or behind it; the encoding takes no gradient."""
    if columns is None:
        return x
    h, w = x.shape[2:]
    halves = [columns[:, None, :].expand(-1, h, -1), rows[:, :, None].expand(-1, -1, w)]  # [E, H, W]
    grid = torch.cat(halves[::-1] if height_first else halves)[None].to(x.dtype)
    return torch.cat([x, grid.expand(x.shape[0], -1, -1, -1)], dim=1) if concat else x + grid


def _setup_context(ctx, inputs, output):
    x, _, styles, border, columns, rows, ctx.padding, ctx.mode, ctx.concat, ctx.height_first, _ = inputs
    ctx.x_shape, ctx.border_shape = x.shape, None if border is None else border.shape
    ctx.save_for_backward(x if ctx.needs_input_grad[2] else None, styles, columns, rows)


def _backward(ctx, dy):
    x, styles, columns, rows = ctx.saved_tensors
    c, h, w = ctx.x_shape[1:]
    wanted = ctx.needs_input_grad
    acc = checks.arithmetic(dy.dtype)
    d_border = d_styles = dx = None
    if wanted[3]:
        d_border = _border_gradient(dy, ctx.border_shape, h, w)
    left, _, top, _ = ctx.padding
    g = dy.narrow(2, top, h).narrow(3, left, w)  # [N, C', H, W]; a full slice is an alias, which vmap does not know
    if ctx.mode == "reflect" and any(ctx.padding):  # up to nine values to a sum
        g = torch.ops.aten.reflection_pad2d_backward(dy.to(acc), g.to(acc), list(ctx.padding))
    if wanted[2]:
        z = _encoded(x.to(acc), columns, rows, ctx.concat, ctx.height_first)
        d_styles = (g.to(acc) * z).sum((2, 3))
    if wanted[0]:
        dx = g.narrow(1, 0, c)
        dx = (dx if styles is None else dx * styles[:, :c, None, None]).to(dy.dtype)
    return dx, g.to(dy.dtype) if wanted[1] else None, d_styles, d_border, *[None] * 7


def _border_gradient(dy, shape, h, w):
    ring = ring_from_map(dy, h, w)
    if len(shape) == 3:
        return ring
    y, x = _offsets(shape, h, w)
    return F.pad(map_from_ring(ring, h, w), (x, shape[3] - w - 2 - x, y, shape[2] - h - 2 - y))


def _run_native(x, residual, styles, border, columns, rows, y, left, top, mode, concat, height_first):
    torch.ops.posgan_fast_native.prologue2d(
        x, residual, styles, border, columns, rows, y, left, top, MODES.index(mode), concat, height_first
    )


def _run_triton(x, residual, styles, border, columns, rows, y, left, top, mode, concat, height_first):
    from ..kernels import prologue2d as kernel
    from ..kernels.records import Encoding

    encoding = None if columns is None else Encoding(columns, rows, concat, height_first)
    kernel.prologue2d(x, residual, styles, border, y, left, top, mode, encoding)


def _run_reference(x, residual, styles, border, columns, rows, y, left, top, mode, concat, height_first):
    right, bottom = y.shape[3] - x.shape[3] - left, y.shape[2] - x.shape[2] - top
    pad = (left, right, top, bottom)
    y.copy_(reference(x, residual, styles, border, columns, rows, pad, mode, concat, height_first))


IMPLS = (
    _backend.Impl("cuda", _backend.cuda_can_run, _run_native),
    _backend.Impl("cpu", _backend.cpu_can_run, _run_native),
    _backend.Impl("triton", _backend.triton_can_run, _run_triton),
    _backend.Impl("reference", _backend.reference_can_run, _run_reference),
)


def _dispatch(x, residual, styles, border, columns, rows, padding, mode, concat, height_first, backend):
    y = _empty_output(x, columns, padding, concat)
    if y.numel():
        run = _backend.implementation(NAME, IMPLS, x, backend)
        # An exported graph under autocast brings other dtypes than the public function.
        residual = None if residual is None else layout.readable(residual.to(x.dtype), x)
        styles = None if styles is None else styles.to(checks.arithmetic(x.dtype)).contiguous()
        border = None if border is None else border.to(x.dtype)
        columns, rows = (None if t is None else _table(t, x) for t in (columns, rows))
        x, (left, _, top, _) = layout.readable(x), padding
        run(x, residual, styles, border, columns, rows, y, left, top, mode, concat, height_first)
    return y


def _decomposition(x, residual, styles, border, columns, rows, padding, mode, concat, height_first, backend):
    y = reference(x, residual, styles, border, columns, rows, padding, mode, concat, height_first)
    return layout.in_format_of(y.to(x.dtype), x)


OP = Op(_LIBRARY, NAME, _dispatch, _decomposition, _setup_context, _backward, samples=(0, 1, 2, 3))


def _table(table, x):
    """A table of the encoding, dense along the innermost dimension of ``x``."""
    channels_last = layout.memory_format(x) == torch.channels_last
    return table.t().contiguous().t() if channels_last else table.contiguous()


def _empty_output(x, columns, padding, concat):
    c = x.shape[1] + (2 * columns.shape[0] if concat else 0)
    return layout.empty(x, (x.shape[0], c, x.shape[2] + padding[2] + padding[3], x.shape[3] + padding[0] + padding[1]))
