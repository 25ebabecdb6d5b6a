"""Draws the calls of fuzz_ops.py: each argument is the text of a Python expression."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

LAYOUTS = ("dense", "dense", "channels_last", "gaps", "transposed", "offset", "expanded", "overlapping")
DTYPES = ("float32", "float32", "float32", "float64", "float16", "bfloat16")
ACTS = ("linear", "relu", "lrelu", "tanh", "sigmoid", "elu", "selu", "softplus", "swish")
ODD = (
    "None", "True", "False", "0", "-1", "1", "2", "2.0", "0.5", "-3.5", "nan", "inf", "-inf", "1e-30", "1e30", "'2'",
    "''", "b'x'", "[]", "[1]", "[1, 2]", "[2, 1]", "(1, 1)", "[1, 2, 3]", "[1, 0, 2, 1]", "[1, None]", "[2.0, 1]",
    "[-1, -1]", "{}", "object()", "np.int64(2)", "np.int32(1)", "np.uint8(2)", "np.float32(1.5)", "np.bool_(True)",
    "np.array([2, 1])", "torch.tensor(2)", "torch.tensor(1.5)", "torch.float32", "1j", "2**24 - 1", "2**24",
    "2**30 - 1", "2**30", "-2**30", "2**31 - 1", "2**31", "-2**31", "2**32", "2**32 + 1", "2**62", "2**63 - 1",
    "2**63", "-2**63", "2**64 + 1", "[2**24 - 1, 1]", "[2**32, 1]", "[1, 2**31]", "[2**63, 2**63]", "10**400",
    "[2**30 - 1, -2**30 + 1]", "[-2**30 + 1, 2**30 - 1, 0, 0]", "[2**31, -2**31, 0, 0]", "'cpu'", "'reference'",
    "'cuda'", "'triton'", "'relu'", "'instance'", "'paper'", "'csg'", "'concat'",
)  # fmt: skip
ODD_TENSORS = (
    "T((), seed=1)", "T((1,), seed=1)", "T((0,), seed=1)", "T((3,), seed=1)", "T((2, 3), seed=1)",
    "T((1, 1, 1), seed=1)", "T((1, 1, 1, 1), seed=1)", "T((2, 0, 3, 3), seed=1)", "T((2, 3, 0, 3), seed=1)",
    "T((0, 3, 3, 3), seed=1)", "T((1, 2, 2, 2, 2), seed=1)", "T((2, 3, 4, 5), seed=1).int()",
    "T((2, 3, 4, 5), seed=1).bool()", "T((2, 3, 4, 5), seed=1).to(torch.complex64)",
    "T((2, 3, 4, 5), seed=1).to_sparse()", "T((2, 3, 4, 5), seed=1).to('meta')", "T((4,), seed=1).to('meta')",
    "T((4,), seed=1).requires_grad_()", "T((4,), 'float64', seed=1)", "T((4,), 'float16', seed=1)",
    "torch.full((4,), nan)", "torch.full((2, 3, 4, 4), inf)", "torch.zeros(2, 3, 4, 4)", "[[1.0]]", "np.ones(4)",
)  # fmt: skip


@dataclass(frozen=True)
class Call:
    """A call of ``op``; ``arguments`` are expressions. ``absolute``: with a gradient of one sign."""

    op: str
    arguments: dict[str, str]
    gradients: bool = True
    absolute: bool = False

    def __str__(self) -> str:
        return f"{self.op}({', '.join(f'{name}={text}' for name, text in self.arguments.items())})"


def T(shape: Sequence[int], dtype: str = "float32", layout: str = "dense", *, seed: int) -> torch.Tensor:
    """Random normal numbers in a layout."""
    shape, generator = tuple(shape), torch.Generator().manual_seed(seed)

    def normal(*size: int) -> torch.Tensor:
        return torch.randn(size, generator=generator, dtype=torch.float64).to(getattr(torch, dtype))

    if not shape or layout == "dense":
        return normal(*shape)
    if layout == "gaps":
        return normal(*shape[:-1], 2 * shape[-1])[..., ::2]
    if layout == "transposed":
        return normal(*shape[::-1]).permute(*range(len(shape) - 1, -1, -1))
    if layout == "expanded":
        return normal(1, *shape[1:]).expand(shape) if seed % 2 else normal(*shape[:-1], 1).expand(shape)
    if layout == "overlapping":
        return normal(sum(shape)).as_strided(shape, [1] * len(shape))
    x = normal(*shape)
    if layout == "offset":
        return torch.cat([x.new_zeros(1), x.flatten()])[1:].view(shape)
    return x.contiguous(memory_format=torch.channels_last) if len(shape) == 4 else x


def draw(seed: str, op: str | None = None) -> Call:
    """One call; about half of them have an argument or two replaced by something odd."""
    r = random.Random(seed)
    op = op or r.choice(tuple(DRAWS))
    arguments = DRAWS[op](r)
    for _ in range(r.choice((0, 0, 0, 1, 1, 2))):
        name = r.choice(tuple(arguments) + ("backend",) * (op in _FORCED and r.random() < 0.2))
        arguments[name] = r.choice(
            ODD_TENSORS if arguments.get(name, "").startswith("T(") and r.random() < 0.6 else ODD
        )
    return Call(op, arguments, gradients=op not in _CONSTANT and r.random() < 0.7)


def extent(call: Call, arguments: dict[str, Any]) -> tuple[int, int]:
    """Elements that the definition goes through, and those of the result, as far as the arguments say."""
    try:
        return _extent(call.op, arguments)
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError, RuntimeError):
        return 0, 0  # refused before anything is computed


def _extent(op, arguments):
    if op in ("sinusoidal_encoding2d", "cartesian_grid2d"):
        c, (h, w) = int(arguments.get("channels", 2)), (int(arguments[k]) for k in ("height", "width"))
        base = arguments.get("base_size")
        tables = c * (h + w + (sum(map(int, base)) if base is not None else 0))
        return max(c * h * w, tables), max(c * h * w, tables)
    if op in ("map_from_ring", "ring_from_map", "setup_filter"):
        return 0, 0
    x = arguments["x"]
    n, c, h, w = x.shape
    base = arguments.get("base_size")
    tables = c * sum(map(int, base)) if base is not None else 0
    extra = int(arguments.get("channels") or 0)
    up, down = (_both(arguments.get(k, 2 if op == k + "sample2d" else 1)) for k in ("up", "down"))
    pad = arguments.get("padding", 0)
    pad = [int(pad)] * 4 if not isinstance(pad, Sequence) else [int(p) for p in pad]
    pad = [pad[0], pad[0], pad[1], pad[1]] if len(pad) == 2 else pad
    if op in ("conv2d", "modulated_conv2d"):
        c = max(c, arguments["weight"].shape[0])
    u = [max(s * f + sum(p) + 8, 0) for s, f, p in ((w, up[0], pad[:2]), (h, up[1], pad[2:]))]
    grown = [s * f + sum(max(q, 0) for q in p) for s, f, p in ((w, up[0], pad[:2]), (h, up[1], pad[2:]))]
    y = [s // d + 1 for s, d in zip(u, down, strict=True)]
    planes = max(n, 1) * (c + max(extra, 0))
    reach = [max(g, d) for g, d in zip(grown, down, strict=True)]  # backward inserts zeros where forward skips
    work = reach[0] * reach[1] * planes
    result = max(y[0] * y[1] * planes, tables)
    return max(work, result), work if op in ("conv2d", "modulated_conv2d") else result


def _both(value):
    return (int(value[0]), int(value[1])) if isinstance(value, Sequence) else (int(value), int(value))


def _tensor(r, shape, dtype):
    return f"T({tuple(shape)}, {dtype!r}, {r.choice(LAYOUTS)!r}, seed={r.randrange(1000)})"


def _maybe(r, arguments, **more):
    """Some of the optional arguments."""
    return arguments | {name: text for name, text in more.items() if r.random() < 0.4}


def _image(r, smallest=1):
    n, c = r.choice((1, 1, 2, 3, 0)), r.choice((1, 2, 3, 4, 8, 17))
    return n, c, r.randint(smallest, 9), r.choice((r.randint(smallest, 9), 19))


def _padding(r, low=-1):
    p = [r.randint(low, 3) for _ in range(4)]
    return r.choice((repr(p[0]), repr(p[:2]), repr(tuple(p))))


def _factor(r):
    return r.choice(("1", "2", "3", "[1, 2]", "(2, 1)", "[4, 3]"))


def _filter(r):
    shape = r.choice(((4,), (4, 4), (1,), (3,), (3, 2), (1, 5), (12,), (2, 2)))
    return r.choice(("None", _tensor(r, shape, r.choice(DTYPES)), _tensor(r, shape, "float32")))


def _flag(r):
    return r.choice(("True", "False"))


def _scalar(r):
    return r.choice(("1", "1.0", "2", "0.5", "-1.5", "0", "np.float32(2)", "4"))


def _activation(r):
    clamp = r.choice(("0", "0.5", "1", "256", "None"))
    return dict(
        act=repr(r.choice(ACTS)), alpha=r.choice(("None", "0.2", "0", "-0.3", "1")), gain=_scalar(r), clamp=clamp
    )


def _upfirdn2d(r):
    call = dict(x=_tensor(r, _image(r), r.choice(DTYPES)), f=_filter(r))
    return _maybe(r, call, up=_factor(r), down=_factor(r), padding=_padding(r), flip_filter=_flag(r), gain=_scalar(r))


def _resampling(factor):
    def drawn(r):
        call = _upfirdn2d(r)
        return {k: v for k, v in call.items() if k not in {"up", "down"} - {factor}}

    return drawn


def _bias_act(r):
    dtype, shape = r.choice(DTYPES), [r.choice((1, 2, 3, 5, 8, 0, 33)) for _ in range(r.choice((0, 1, 2, 3, 4, 4, 5)))]
    call = dict(x=_tensor(r, shape, dtype))
    if shape and r.random() < 0.7:
        dim = r.randrange(-len(shape), len(shape))
        call |= dict(b=_tensor(r, (shape[dim],), dtype), dim=str(dim))
    return _maybe(r, call, **_activation(r))


def _epilogue2d(r):
    (n, c, h, w), dtype = _image(r), r.choice(DTYPES)
    call = dict(x=_tensor(r, (n, c, h, w), dtype))
    if r.random() < 0.5:
        call |= _maybe(r, dict(f=_filter(r)), up=_factor(r), down=_factor(r), padding=_padding(r), flip_filter=_flag(r))
    more = dict(scale=_tensor(r, (n, c), r.choice(("float32", dtype))), b=_tensor(r, (c,), r.choice(DTYPES)))
    if "f" not in call:
        more["noise"] = _tensor(r, (r.choice((1, n)), 1, h, w), r.choice(DTYPES))
    return _maybe(r, call, **more, **_activation(r))


def _border(r, n, c, h, w, dtype):
    shape = (n, c, 2 * (h + w) + 4) if r.random() < 0.5 else (n, c, h + r.randint(2, 5), w + r.randint(2, 5))
    return _tensor(r, shape, dtype)


def _prologue2d(r):
    (n, c, h, w), dtype = _image(r), r.choice(DTYPES)
    call, total = dict(x=_tensor(r, (n, c, h, w), dtype)), c
    if r.random() < 0.5:
        kind, join = r.choice(("spe", "csg")), r.choice(("add", "concat"))
        channels = r.choice((4, 8, 12))
        call |= dict(encode=repr(kind), join=repr(join))
        if (kind, join) == ("spe", "concat"):
            call["channels"] = str(channels)
        total = c if join == "add" else c + (channels if kind == "spe" else 2)
        more = dict(layout=r.choice(("'paper'", "'mmgen'")), div_half_dim=_flag(r), base_size=repr([h + 1, w + 2]))
        call = _maybe(r, call, **more)
    mode = r.choice(("zeros", "zeros", "reflect", "instance"))
    call |= dict(mode=repr(mode))
    if mode == "instance":
        call |= dict(padding="1", pad_map=_border(r, n, total, h, w, r.choice((dtype, "float32"))))
    else:
        call = _maybe(r, call, padding=_padding(r, 0))
    styles = _tensor(r, (r.choice((1, n)), total), r.choice((dtype, "float32")))
    return _maybe(r, call, styles=styles, residual=_tensor(r, (n, total, h, w), r.choice((dtype, "float32"))))


def _instance_pad2d(r):
    shape, dtype = _image(r), r.choice(DTYPES)
    return dict(x=_tensor(r, shape, dtype), pad_map=_border(r, *shape, r.choice((dtype, "float32"))))


def _ring_from_map(r):
    n, c, h, w = _image(r, 3)
    sizes = dict(height=str(r.randint(1, h)), width=str(r.randint(1, w)))
    return _maybe(r, dict(pad_map=_tensor(r, (n, c, h, w), r.choice(DTYPES))), **sizes)


def _map_from_ring(r):
    n, c, h, w = _image(r)
    return dict(ring=_tensor(r, (n, c, 2 * (h + w) + 4), r.choice(DTYPES)), height=str(h), width=str(w))


def _modulated_conv2d(r):
    (n, c, h, w), o, dtype = _image(r), r.choice((1, 2, 5, 8)), r.choice(DTYPES)
    kernel, padding, factor = (
        r.choice(((1, 1), (3, 3), (3, 3), (2, 3), (5, 1))),
        r.randint(0, 2),
        r.choice((1, 1, 2, 3)),
    )
    side = r.choice(("up", "down"))
    types = (dtype, "float32")
    call = dict(x=_tensor(r, (n, c, h, w), dtype), weight=_tensor(r, (o, c, *kernel), r.choice(types)))
    call |= dict(styles=_tensor(r, (n, c), r.choice(types)), padding=str(padding))
    if factor == 1 and padding == 1 and r.random() < 0.5:
        call["pad_map"] = _border(r, n, c, h, w, r.choice(types))
    if factor > 1:
        call |= {side: str(factor), "resample_filter": _filter(r)}
    if kernel == (3, 3) and padding == 1 and factor == 1:
        shape = r.choice(((h, w), (1, 1, h, w), (n, 1, h, w)))
        call = _maybe(r, call, noise=_tensor(r, shape, r.choice(DTYPES)))
    more = dict(bias=_tensor(r, (o,), r.choice(types)), demodulate=_flag(r), flip_weight=_flag(r), eps="1e-6")
    return _maybe(r, call, **more, **_activation(r))


def _conv2d(r):
    (n, c, h, w), o, dtype = _image(r), r.choice((1, 2, 5, 8, 20)), r.choice(DTYPES)
    kernel, types = r.choice(((1, 1), (3, 3), (3, 3), (3, 3), (2, 3), (5, 1))), (dtype, "float32")
    call = dict(x=_tensor(r, (n, c, h, w), dtype), weight=_tensor(r, (o, c, *kernel), r.choice(types)))
    scale = r.choice((_scalar(r), _tensor(r, (o,), r.choice(types))))
    more = dict(bias=_tensor(r, (o,), r.choice(types)), scale=scale, stride=r.choice(("1", "2", "2", "3")))
    more |= dict(padding=str(r.randint(0, 2)), padding_mode=repr(r.choice(("zeros", "reflect"))))
    return _maybe(r, call, **more, **_activation(r))


def _grid(r):
    call = dict(height=str(r.randint(1, 9)), width=str(r.randint(1, 9)))
    more = dict(layout=r.choice(("'paper'", "'mmgen'")), dtype=f"torch.{r.choice(DTYPES)}", base_size="[4, 5]")
    return _maybe(r, call, device="'cpu'", **more)


def _sinusoidal_encoding2d(r):
    return _maybe(r, _grid(r) | dict(channels=r.choice(("4", "8", "12", "64"))), div_half_dim=_flag(r))


def _setup_filter(r):
    f = r.choice(("[1, 3, 3, 1]", "(1,)", "2.5", "[[1, 2], [3, 4]]", "None", "np.ones(9)", _filter(r)))
    more = dict(device="'cpu'", normalize=_flag(r), flip_filter=_flag(r), gain=_scalar(r), separable=_flag(r))
    return _maybe(r, dict(f=f), **more)


DRAWS = {
    "upfirdn2d": _upfirdn2d,
    "filter2d": _resampling(None),
    "upsample2d": _resampling("up"),
    "downsample2d": _resampling("down"),
    "bias_act": _bias_act,
    "bias_act_": _bias_act,
    "epilogue2d": _epilogue2d,
    "prologue2d": _prologue2d,
    "instance_pad2d": _instance_pad2d,
    "ring_from_map": _ring_from_map,
    "map_from_ring": _map_from_ring,
    "conv2d": _conv2d,
    "modulated_conv2d": _modulated_conv2d,
    "sinusoidal_encoding2d": _sinusoidal_encoding2d,
    "cartesian_grid2d": _grid,
    "setup_filter": _setup_filter,
}
_CONSTANT = ("sinusoidal_encoding2d", "cartesian_grid2d", "setup_filter")
_FORCED = set(DRAWS) - {"setup_filter", "ring_from_map", "map_from_ring"}
