"""Registers ops with torch, and brings each call to its kernels or to whatever stands in for them.

- Plain calls, compiled and exported graphs run ``torch.ops.posgan_fast.<op>``, a kernel with its own derivative.
- ``torch.func.grad``, ``vjp``, ``jacrev``, ``vmap`` and batched gradients run the same kernel inside an
  ``autograd.Function`` that has a batching rule: torch's transforms do not see derivatives that a library registers.
- Forward-mode derivatives, TorchScript's tracer, and ``torch.compile`` around torch.func run the op's decomposition:
  its definition in plain torch.
- ``ExportedProgram.run_decompositions()`` and ``torch.onnx.export`` put that decomposition into the graph.

Torch knows flat arguments only. Inside, a call is one record: a NamedTuple whose fields are the schema's arguments, in
order. Backward functions return gradients by the name of the field.
"""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._C import DispatchKey
from torch.autograd import forward_ad

_LIBRARY = torch.library.Library("posgan_fast", "FRAGMENT")
_PLAIN = (torch.Tensor, torch.nn.Parameter)
# By name, what a registered op runs on the arguments of its schema: a dispatch mode that wants to see the native ops
# inside, as benchmarks/traffic_counter.py does, calls it in place of the op.
KERNELS: dict[str, Callable[..., Any]] = {}


class Op:
    """A registered op with one result, callable with its record under every transform of torch.

    Args:
        schema: the op's name, arguments and result, as :meth:`torch.library.Library.define` reads them.
        record: NamedTuple with the arguments of the schema as fields.
        fake: returns an empty result for a call, with its sizes, dtype and strides.
        kernel: computes a call, on any device.
        decomposition: computes a call in plain torch, writes over nothing, and strides its result as the kernel does.
        setup_context: ``setup_context(ctx, call, result)`` keeps what the derivative needs; see :func:`save`.
        backward: ``backward(ctx, gradient, wanted)`` returns {field: gradient} for the wanted names of fields.
        samples: the fields [N or 1, ...] that have one entry for each sample, the first of them [N, ...]. Calls that
            differ in these alone are merged into one call with a larger N.
    """

    def __init__(
        self,
        schema: str,
        record: Any,
        *,
        fake: Callable[[Any], torch.Tensor],
        kernel: Callable[[Any], torch.Tensor],
        decomposition: Callable[[Any], torch.Tensor],
        setup_context: Callable[[Any, Any, torch.Tensor], None],
        backward: Callable[[Any, torch.Tensor, set[str]], dict[str, torch.Tensor | None]],
        samples: tuple[str, ...] = (),
    ) -> None:
        fields = record._fields
        name = _define(schema, record, fake, kernel)
        self._record, self._decomposition = record, decomposition
        self._samples = _positions(record, samples)
        self._registered = op = getattr(torch.ops.posgan_fast, name).default

        def setup(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:
            setup_context(ctx, record._make(inputs), output)

        def derive(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
            return tuple(map(backward(ctx, gradient, wanted_of(ctx, record)).get, fields))

        torch.library.register_autograd(f"posgan_fast::{name}", derive, setup_context=setup, lib=_LIBRARY)
        methods = dict(forward=op, setup_context=setup, backward=derive, vmap=self._vmap)
        self._function: Any = type(name, (torch.autograd.Function,), {k: staticmethod(m) for k, m in methods.items()})

        @op.py_impl(DispatchKey.CompositeImplicitAutograd)
        def decompose(*args: Any) -> Any:
            """Decompose for torch.export, which lends the op Python kernels; keep the op for torch.compile."""
            if DispatchKey.CPU in op.py_kernels:
                return decomposition(record(*args))
            _keep_in_inductor(op)
            return NotImplemented

    def __call__(self, call: Any) -> torch.Tensor:
        if torch.jit.is_tracing() or (forward_ad._current_level >= 0 and differentiates_forward(*call)):
            return self._decomposition(call)
        if not torch._C._are_functorch_transforms_active():
            if not _asks_for_nothing(call):
                return self._registered(*call)
            with torch._C._AutoDispatchBelowAutograd():  # torch does the same, after costly bookkeeping
                return self._registered(*call)
        if torch.compiler.is_compiling() or _functionalizes():  # Dynamo needs a second graph for such a function
            return self._decomposition(call)
        return self._function.apply(*call)

    def _vmap(self, info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[torch.Tensor, int]:
        """Serve the batch with one call, or entry by entry if an argument differs that all samples share."""
        size, call = info.batch_size, list(args)
        mapped = [i for i, t in enumerate(args) if isinstance(t, torch.Tensor) and in_dims[i] is not None]
        for i in mapped:
            call[i] = args[i].movedim(in_dims[i], 0)
        if set(mapped) <= set(self._samples):
            for i in self._samples:
                if call[i] is not None and i not in mapped:
                    call[i] = call[i].expand(size, *call[i].shape)
            return self._merged(size, call), 0
        entries = [[t[b] if i in mapped else t for i, t in enumerate(call)] for b in range(size)]
        return torch.stack([self(self._record(*entry)) for entry in entries]), 0

    def _merged(self, size: int, call: list[Any]) -> torch.Tensor:
        """Make one call of arguments whose samples have the batch in front; return its results [size, ...]."""
        n = call[self._samples[0]].shape[1]
        for i in self._samples:
            if call[i] is not None:
                call[i] = call[i].expand(size, n, *call[i].shape[2:]).flatten(0, 1)
        return self(self._record(*call)).unflatten(0, (size, n))


def define_inplace(schema: str, record: Any, kernel: Callable[[Any], None]) -> Callable[[Any], None]:
    """Register an op that writes over an argument and has neither result nor derivative; return a function that takes
    its record."""
    name = _define(schema, record, lambda call: None, kernel)
    op = getattr(torch.ops.posgan_fast, name).default
    return lambda call: op(*call)


def define_final(
    schema: str, record: Any, *, fake: Callable[[Any], Any], kernel: Callable[[Any], Any]
) -> Callable[[Any], Any]:
    """Register an op that has no derivative, with any number of results; return a function that takes its record."""
    name = _define(schema, record, fake, kernel)
    op = getattr(torch.ops.posgan_fast, name).default
    return lambda call: op(*call)


def _define(schema: str, record: Any, fake: Callable[[Any], Any], kernel: Callable[[Any], Any]) -> str:
    """Define the schema with its fake and its kernel; return the op's name."""
    name = schema.partition("(")[0]
    _LIBRARY.define(schema)
    torch.library.register_fake(f"posgan_fast::{name}", lambda *args: fake(record(*args)), lib=_LIBRARY)

    def run(*args: Any) -> Any:
        """Run the kernel, but raise where a graph that holds the op would lose the tangent of a dual tensor."""
        if forward_ad._current_level >= 0 and _may_be_dual(args):
            raise NotImplementedError(
                f"{name}: no forward-mode derivative in a compiled or exported graph; call the function that was"
                " compiled, or decompose the program: run_decompositions()"
            )
        return kernel(record._make(args))

    _LIBRARY.impl(name, run, "CompositeExplicitAutograd")
    KERNELS[name] = run
    return name


def _keep_in_inductor(op: Any) -> None:
    """Remove ``op`` from Inductor's table of decompositions. Torch puts every op that has one into the table, and
    Inductor refuses to compile a graph that still holds an op of the table."""
    module = sys.modules.get("torch._inductor.decomposition")
    selected = getattr(module, "select_decomp_table", dict)  # neither name is public
    for table in (getattr(module, "decompositions", {}), selected()):
        table.pop(op, None)


def wanted_of(ctx: Any, record: Any) -> set[str]:
    """Return the fields of a call whose gradients autograd asks for."""
    return set(itertools.compress(record._fields, ctx.needs_input_grad))  # torch may add an entry at the end


def is_awaited(ctx: Any, position: int) -> bool:
    """Tell whether the backward pass under way needs the gradient of a tensor argument of an autograd.Function.

    ``ctx.needs_input_grad`` tells only whether the argument requires one: under ``autograd.grad(y, x)`` it is true also
    for a weight whose gradient nobody will get.
    """
    node = ctx.next_functions[position][0]
    if node is None:
        return False
    try:
        return torch._C._will_engine_execute_node(node)
    except RuntimeError:  # torch cannot tell for a leaf that autograd.grad was asked for
        return True


def changed(call: Any, **fields: Any) -> Any:
    """Return a call with other values in these fields: the call itself if it holds them already."""
    for field, value in fields.items():
        if getattr(call, field) is not value:
            return call._replace(**fields)
    return call


def save(ctx: Any, call: Any, *fields: str, result: torch.Tensor | None = None) -> None:
    """Keep a call for its backward: the named tensors, all arguments that are no tensors, and ``result`` if given."""
    record: Any = type(call)  # a class of NamedTuple
    values = list(call)
    kept = _positions(record, fields)
    ctx.save_for_backward(*[values[i] for i in kept], result)
    for i in _tensors_of(record):
        values[i] = None
    ctx.record, ctx.values, ctx.kept = record, values, kept


def restore(ctx: Any) -> tuple[Any, torch.Tensor | None]:
    """Return the call that :func:`save` kept, with None for the other tensors, and the result."""
    *tensors, result = ctx.saved_tensors
    values = ctx.values.copy()
    for i, tensor in zip(ctx.kept, tensors, strict=True):
        values[i] = tensor
    return ctx.record._make(values), result


@functools.cache
def _positions(record: Any, fields: tuple[str, ...]) -> tuple[int, ...]:
    return tuple(map(record._fields.index, fields))


@functools.cache
def _tensors_of(record: Any) -> tuple[int, ...]:
    """Return the positions of the fields that hold a tensor or None."""
    return tuple(i for i, kind in enumerate(record.__annotations__.values()) if "Tensor" in str(kind))


def _asks_for_nothing(call: Sequence[Any]) -> bool:
    """Tell whether a call of plain tensors wants no derivative, and no mode or compiler looks on."""
    if is_recorded(call) or torch.compiler.is_compiling() or is_watched() or torch._C._len_torch_function_stack():
        return False
    for value in call:  # noqa: SIM110  # a generator would cost every call of an op microseconds
        if isinstance(value, torch.Tensor) and type(value) not in _PLAIN:
            return False
    return True


def _may_be_dual(args: Sequence[Any]) -> bool:
    try:
        return differentiates_forward(*args)
    except RuntimeError:  # torch refuses to look at tangents inside a compiled graph
        return True


def is_recorded(args: Sequence[Any]) -> bool:
    """Tell whether autograd records a call with these arguments."""
    if torch.is_grad_enabled():
        for value in args:
            if isinstance(value, torch.Tensor) and value.requires_grad:
                return True
    return False


def transforms_active() -> bool:
    """Tell whether a transform of torch.func is under way."""
    return torch._C._are_functorch_transforms_active()


def is_batched(*tensors: torch.Tensor | None) -> bool:
    """Tell whether a transform is under way, or one of these tensors is a batch by ``is_grads_batched=True``, which
    :func:`transforms_active` does not tell inside of a backward function."""
    legacy = torch._C._functorch.is_legacy_batchedtensor
    return transforms_active() or any(t is not None and legacy(t) for t in tensors)


def differentiates_forward(*args: Any) -> bool:
    """Tell whether the caller asks for a forward-mode derivative with respect to one of these arguments."""
    if forward_ad._current_level < 0:
        return False
    tensors = (t for t in args if isinstance(t, torch.Tensor))
    return transforms_active() or any(forward_ad.unpack_dual(t).tangent is not None for t in tensors)


def _functionalizes() -> bool:
    """Tell whether torch.func.functionalize, which cannot run an autograd.Function, is among the transforms."""
    transforms = torch._C._functorch.get_interpreter_stack() or ()
    return any(transform.key() == torch._C._functorch.TransformType.Functionalize for transform in transforms)


def is_transformed(*args: Any) -> bool:
    """Tell whether a decomposition, not the kernels, may have to serve a call with these arguments."""
    if torch.compiler.is_exporting():
        return True
    return torch.jit.is_tracing() or transforms_active() or differentiates_forward(*args)


def is_watched() -> bool:
    """Tell whether a dispatch mode, such as FlopCounterMode, looks at the operators that run."""
    return torch._C._len_torch_dispatch_stack() > 0


def static(sizes: Sequence[Any]) -> list[Any]:
    """Return sizes as a list, of plain numbers also under TorchScript's tracer, which hands out tensors."""
    return [int(size) for size in sizes] if torch.jit.is_tracing() else list(sizes)


def is_plain(*tensors: torch.Tensor) -> bool:
    """Tell whether torch neither compiles, transforms nor watches a call with these tensors; it may record it."""
    return (
        all(type(t) in _PLAIN for t in tensors)
        and not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()
        and forward_ad._current_level < 0
        and not transforms_active()
        and not is_watched()
    )
