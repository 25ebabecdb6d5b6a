"""Counts what decides the speed of a call on a GPU: the bytes that its kernels read and write, and how many there are.

:class:`Counter` is a dispatch mode: it sees every operator that runs in its block, on tensors of the device "meta",
which have no memory. The rules:

- A kernel reads each distinct tensor argument once and writes each result once, whatever its cache does. An expanded
  dimension holds one element.
- An argument that an operator writes over counts as read too where the operator needs its old values.
- Each operator is one kernel. Views and allocations are none; ``_PARTS`` has the operators that are several.
- Tensors of other devices cost nothing: on a GPU they are scalars of the host.
- A convolution on a GPU takes all its tensors in one memory format, channels_last if one of its operands has it. Torch
  copies an operand of another format ahead of it; such a "convolution contiguous" is a kernel too. Workspaces of the
  vendor's do not count.

An op of posgan_fast runs its kernel function under the mode, so that the count has the native ops and the casts and
copies around them. Kernels that no operator launches report themselves by :func:`record`.
"""

from __future__ import annotations

import math
from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._prims_common import suggest_memory_format
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from posgan_fast.ops.common.op import KERNELS

OURS, NATIVE = "posgan_fast", "posgan_fast_native"


@dataclass(frozen=True)
class Kernel:
    """One launch: the bytes that it reads and writes, and the operations of a convolution or matrix product, which it
    makes in ``dtype``."""

    name: str
    read: int
    written: int
    flops: int = 0
    dtype: str = ""

    @property
    def moved(self) -> int:
        return self.read + self.written


@dataclass
class Traffic:
    """The kernels of a call, in order."""

    kernels: list[Kernel] = field(default_factory=list)

    @property
    def read(self) -> int:
        return sum(kernel.read for kernel in self.kernels)

    @property
    def written(self) -> int:
        return sum(kernel.written for kernel in self.kernels)

    @property
    def moved(self) -> int:
        return self.read + self.written

    @property
    def launches(self) -> int:
        return len(self.kernels)

    @property
    def flops(self) -> int:
        return sum(kernel.flops for kernel in self.kernels)

    def by_name(self) -> list[tuple[str, int, int, int]]:
        """Return name, launches, bytes read and bytes written of each operator, the one that moves most first."""
        launches, read, written = Tally[str](), Tally[str](), Tally[str]()
        for kernel in self.kernels:
            launches[kernel.name] += 1
            read[kernel.name] += kernel.read
            written[kernel.name] += kernel.written
        order = sorted(launches, key=lambda name: (-read[name] - written[name], -launches[name], name))
        return [(name, launches[name], read[name], written[name]) for name in order]


class Counter(TorchDispatchMode):
    """Collects the traffic of a block: ``with Counter() as counted: call()``, then ``counted.traffic``."""

    def __init__(self) -> None:
        super().__init__()
        self.traffic = Traffic()

    def __enter__(self) -> Counter:
        _counters.append(self)
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        _counters.pop()
        super().__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == OURS:
            with self:
                return KERNELS[func._opname](*args, **kwargs)
        if func.namespace == NATIVE:
            result = None
        else:
            with self:  # below autograd, operators made of others arrive whole
                result = func.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
            result = _as_on_cuda(func, args, func(*args, **kwargs))
        self.traffic.kernels += _kernels(func, args, kwargs, result)
        return result


def record(name: str, reads: Iterable[Any], writes: Iterable[Any], flops: int = 0) -> None:
    """Count a kernel that no operator launches, if a counter looks on. What is no tensor is left out."""
    if _counters:
        _counters[-1].traffic.kernels += _launch(name, reads, writes, flops)


def nbytes(t: torch.Tensor) -> int:
    """Return the bytes of the distinct elements of a tensor; 0 on devices that are not the GPU."""
    if t.device.type != "meta" or t.numel() == 0:
        return 0
    sizes = (size for size, stride in zip(t.shape, t.stride(), strict=True) if stride != 0)
    return math.prod(sizes) * t.element_size()


_counters: list[Counter] = []


def _kernels(func: Any, args: Sequence[Any], kwargs: dict[str, Any], result: Any) -> list[Kernel]:
    """Return the kernels that an operator launches."""
    given = list(_named(func, args, kwargs))
    written = [t for argument, t in given if _is_written(argument)]
    results = [t for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
    sources = {_storage(t) for _, t in given}
    fresh = [t for t in results if _storage(t) not in sources]
    if func._opname in _ALLOCATIONS or not (written or fresh):  # the results of a view lie in its arguments
        return []
    if parts := _PARTS.get(func._schema.name):
        return parts(func, args, kwargs, result)
    reads = [t for argument, t in given if not _is_written(argument) or _is_read(func, argument)]
    name = f"native {func._opname}" if func.namespace == NATIVE else func._opname
    return _launch(name, reads, written + fresh, _flops(func, args, kwargs, result))


def _launch(
    name: str, reads: Iterable[Any], writes: Iterable[Any], flops: int = 0, native: bool = False
) -> list[Kernel]:
    """Return one kernel, or none if it has nothing to write."""
    reads, writes = _distinct(reads), _distinct(writes)
    written = sum(map(nbytes, writes))
    if not written:
        return []
    dtype = str(next(iter(reads or writes)).dtype).removeprefix("torch.")
    return [Kernel(name, sum(map(nbytes, reads)), written, flops, dtype)]


def _named(func: Any, args: Sequence[Any], kwargs: dict[str, Any]) -> Iterator[tuple[Any, torch.Tensor]]:
    """Yield every tensor among the arguments of an operator, with the argument of the schema."""
    for i, argument in enumerate(func._schema.arguments):
        value = args[i] if i < len(args) else kwargs.get(argument.name)
        for t in tree_leaves(value):
            if isinstance(t, torch.Tensor):
                yield argument, t


def _is_written(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write


def _is_read(func: Any, argument: Any) -> bool:
    """Tell whether an operator needs the old values of an argument that it writes over."""
    return not (func.namespace == NATIVE or argument.is_out or func._opname in _OVERWRITE)


def _distinct(tensors: Iterable[Any]) -> list[torch.Tensor]:
    """Return the tensors without those that are the same part of the same memory as an earlier one."""
    found: dict[Any, torch.Tensor] = {}
    for t in tensors:
        if isinstance(t, torch.Tensor):
            found.setdefault((_storage(t), t.storage_offset(), t.shape, t.stride()), t)
    return list(found.values())


def _storage(t: torch.Tensor) -> int:
    return t.untyped_storage()._cdata


def _flops(func: Any, args: Sequence[Any], kwargs: dict[str, Any], result: Any) -> int:
    formula = flop_registry.get(func._overloadpacket)
    return 0 if formula is None else formula(*args, **kwargs, out_val=result)


def _as_on_cuda(func: Any, args: Sequence[Any], result: Any) -> Any:
    """Return the results of a convolution in the memory format of the GPU's; that of "meta" is always contiguous."""
    if func._schema.name == "aten::convolution":
        return _in_format(result, _format(*args[:2]))
    if func._schema.name == "aten::convolution_backward":
        (dy, x, w), (dx, dw, db) = args[:3], result
        return _in_format(dx, _format(dy, w)), _in_format(dw, _format(dy, x)), db
    return result


def _format(*operands: torch.Tensor) -> torch.memory_format:
    """Return the memory format in which cuDNN convolves."""
    formats = [suggest_memory_format(t) for t in operands if t.dtype != torch.float64]
    return torch.channels_last if torch.channels_last in formats else torch.contiguous_format


def _in_format(t: torch.Tensor | None, wanted: torch.memory_format) -> torch.Tensor | None:
    return None if t is None else torch.empty_like(t, memory_format=wanted)


def _convolution(func: Any, args: Sequence[Any], kwargs: Any, result: torch.Tensor) -> list[Kernel]:
    x, w, bias = args[:3]
    return _convolved("convolution", (x, w), result, _flops(func, args, {}, result), bias)


def _convolution_backward(func: Any, args: Sequence[Any], kwargs: Any, result: Any) -> list[Kernel]:
    """Each wanted gradient is a kernel of its own."""
    dy, x, w, mask = *args[:3], args[10]
    found = []
    for i, operands in enumerate(((dy, w), (dy, x))):
        if mask[i]:
            flops = _flops(func, (*args[:10], [j == i for j in range(3)]), {}, result)
            found += _convolved(f"convolution_backward {('dx', 'dw')[i]}", operands, result[i], flops)
    return found + (_launch("convolution_backward db", (dy,), result[2:]) if mask[2] else [])


def _convolved(
    name: str, operands: Sequence[torch.Tensor], y: torch.Tensor, flops: int, bias: Any = None
) -> list[Kernel]:
    """Return a convolution and, ahead of it, the copies of operands in another memory format."""
    wanted = _format(*operands)
    found = []
    for t in operands:
        if not t.is_contiguous(memory_format=wanted):
            found += _launch("convolution contiguous", (t,), (_in_format(t, wanted),))
    return found + _launch(name, (*operands, bias), (y,), flops)


def _filled_and_copied(args: Sequence[Any], result: torch.Tensor, part: torch.Tensor) -> list[Kernel]:
    """One kernel fills the result, another copies the first argument into a part of it."""
    return _launch("fill_", (), (result,)) + _launch("copy_", args[:1], (part,))


def _addmm(func: Any, args: Sequence[Any], kwargs: Any, result: torch.Tensor) -> list[Kernel]:
    """The first term is copied to the result ahead of the product, unless cuBLASLt adds it as a bias."""
    term, a, b = args[:3]
    flops = _flops(func, args[:3], {}, result)
    if term.ndim == 1 and kwargs.get("beta", 1) == 1 and min(result.shape) > 1:
        return _launch("addmm", (term, a, b), (result,), flops)
    return _launch("addmm copy", (term,), (result,)) + _launch("addmm", (a, b), (result,), flops)


def _epilogue2d(func: Any, args: Sequence[Any], kwargs: Any, result: Any) -> list[Kernel]:
    """One kernel, or behind a filter that ``csrc/epilogue2d.cu`` does not fuse a second one, which writes over y."""
    x, _, f, scale, noise, b, post_scale, y = args[:8]
    up, down, act, read = args[8:10], args[10:12], args[-4], (scale, noise, b, post_scale)
    factors = up[0] == up[1] and down[0] == down[1] and up[0] * down[0] <= 2
    whole = y.is_contiguous() or y.shape[1] % 4 == 0
    if f is None or (f.shape[0] == f.shape[-1] == 4 and factors and whole and act <= 3 and x.dtype != torch.float64):
        return _launch("native epilogue2d", (x, f, *read), (y,))
    second = _launch("native epilogue2d", (y, *read), (y,))
    return _launch("native upfirdn2d", (x, f), (y,)) + second


_ALLOCATIONS = {
    "_efficientzerotensor", "empty", "empty_like", "empty_permuted", "empty_strided", "new_empty", "new_empty_strided",
}  # fmt: skip
_OVERWRITE = {"copy_", "fill_", "zero_", "normal_", "uniform_", "random_", "bernoulli_", "exponential_"}
_PARTS: dict[str, Callable[[Any, Sequence[Any], dict[str, Any], Any], list[Kernel]]] = {
    "aten::convolution": _convolution,
    "aten::convolution_backward": _convolution_backward,
    "aten::addmm": _addmm,
    f"{NATIVE}::epilogue2d": _epilogue2d,
    # A tensor of the argument's size stands for the part that it is copied into.
    **dict.fromkeys(
        (
            *("aten::constant_pad_nd", "aten::slice_backward", "aten::select_backward"),
            "aten::reflection_pad2d_backward",
        ),
        lambda func, args, kwargs, result: _filled_and_copied(args, result, torch.empty_like(args[0])),
    ),
}
