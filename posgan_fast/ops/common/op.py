"""How a call of a registered op reaches its kernels, and what runs in their place where torch transforms the call.

- Plain calls, compiled and exported graphs run ``torch.ops.posgan_fast.<op>``, a kernel with the op's own derivative.
- ``torch.func.grad``, ``vjp``, ``jacrev``, ``vmap`` and batched gradients run it inside an ``autograd.Function``
  that has a batching rule, since torch's transforms do not see derivatives that a library registers.
- Forward-mode derivatives, TorchScript's tracer, and ``torch.compile`` around torch.func run the op's decomposition:
  its definition in plain torch.
- ``ExportedProgram.run_decompositions()`` and ``torch.onnx.export`` put that decomposition into the graph.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch._C import DispatchKey
from torch.autograd import forward_ad


def register(
    library: torch.library.Library,
    name: str,
    kernel: Callable[..., torch.Tensor],
    decomposition: Callable[..., torch.Tensor],
    setup_context: Callable[..., None],
    backward: Callable[..., Any],
) -> Any:
    """Give ``name``, which ``library`` defines, its kernel, its derivative and its decomposition; returns the op.

    Args:
        kernel: takes the op's arguments, on any device.
        decomposition: takes the same; plain torch, writes over nothing, and strides its result as the kernel does.
        setup_context, backward: as for :func:`torch.library.register_autograd`.
    """
    library.impl(name, refusing_tangents(name, kernel), "CompositeExplicitAutograd")
    torch.library.register_autograd(f"posgan_fast::{name}", backward, setup_context=setup_context, lib=library)
    op = getattr(torch.ops.posgan_fast, name).default

    @op.py_impl(DispatchKey.CompositeImplicitAutograd)
    def decompose(*args: Any) -> Any:
        """Serve torch.export, which lends the op kernels while it works; torch.compile and the like keep the op."""
        if DispatchKey.CPU in op.py_kernels:
            return decomposition(*args)
        _keep_in_inductor(op)
        return NotImplemented

    return op


def _keep_in_inductor(op: Any) -> None:
    """Take ``op`` off Inductor's own list of decompositions, which torch fills with every op that has one: Inductor
    refuses to compile a graph that still holds an op of that list."""
    module = sys.modules.get("torch._inductor.decomposition")
    selected = getattr(module, "select_decomp_table", dict)  # neither name is public
    for table in (getattr(module, "decompositions", {}), selected()):
        table.pop(op, None)


def refusing_tangents(name: str, kernel: Callable[..., Any]) -> Callable[..., Any]:
    """``kernel``, but with an error where a graph that holds the op would lose the tangent of a dual tensor."""

    def run(*args: Any) -> Any:
        if forward_ad._current_level >= 0 and _may_be_dual(args):
            raise NotImplementedError(
                f"{name}: no forward-mode derivative in a compiled or exported graph; call the function that was"
                " compiled, or decompose the program: run_decompositions()"
            )
        return kernel(*args)

    return run


def _may_be_dual(args: Sequence[Any]) -> bool:
    try:
        return differentiates_forward(*args)
    except RuntimeError:  # inside a compiled graph torch does not tell
        return True


class Op:
    """A registered op with one result, callable under every transform of torch.

    ``samples`` are the positions of the arguments [N or 1, ...] that have one entry for each sample; the first of them
    is [N, ...]. A batch of calls that differ in these only is one call with a larger N. The rest: :func:`register`.
    """

    def __init__(
        self,
        library: torch.library.Library,
        name: str,
        kernel: Callable[..., torch.Tensor],
        decomposition: Callable[..., torch.Tensor],
        setup_context: Callable[..., None],
        backward: Callable[..., Any],
        samples: tuple[int, ...],
    ) -> None:
        self._registered = register(library, name, kernel, decomposition, setup_context, backward)
        self._decomposition, self._samples = decomposition, samples
        methods = dict(forward=self._registered, setup_context=setup_context, backward=backward, vmap=self._vmap)
        self._function: Any = type(name, (torch.autograd.Function,), {k: staticmethod(m) for k, m in methods.items()})

    def __call__(self, *args: Any) -> torch.Tensor:
        if torch.jit.is_tracing() or (forward_ad._current_level >= 0 and differentiates_forward(*args)):
            return self._decomposition(*args)
        if not torch._C._are_functorch_transforms_active():
            return self._registered(*args)
        if torch.compiler.is_compiling() or _functionalizes():  # Dynamo needs a second graph for such a function
            return self._decomposition(*args)
        return self._function.apply(*args)

    def _vmap(self, info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[torch.Tensor, int]:
        """One call for the batch, or one for each entry where an argument that all samples share differs."""
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
        return torch.stack([self(*entry) for entry in entries]), 0

    def _merged(self, size: int, call: list[Any]) -> torch.Tensor:
        """The results [size, ...] of one call, whose samples have the batch as a dimension in front."""
        n = call[self._samples[0]].shape[1]
        for i in self._samples:
            if call[i] is not None:
                call[i] = call[i].expand(size, n, *call[i].shape[2:]).flatten(0, 1)
        return self(*call).unflatten(0, (size, n))


def transforms_active() -> bool:
    """Whether a transform of torch.func, or a batched gradient, is under way."""
    return torch._C._are_functorch_transforms_active()


def differentiates_forward(*args: Any) -> bool:
    """Whether a forward-mode derivative of a call with these arguments is asked for."""
    if forward_ad._current_level < 0:
        return False
    tensors = (t for t in args if isinstance(t, torch.Tensor))
    return transforms_active() or any(forward_ad.unpack_dual(t).tangent is not None for t in tensors)


def _functionalizes() -> bool:
    """Whether torch.func.functionalize is among the transforms: it has no rule for an autograd.Function."""
    transforms = torch._C._functorch.get_interpreter_stack() or ()
    return any(transform.key() == torch._C._functorch.TransformType.Functionalize for transform in transforms)


def is_transformed(*args: Any) -> bool:
    """Whether something other than the kernels may have to serve a call with these arguments."""
    if torch.compiler.is_exporting():
        return True
    return torch.jit.is_tracing() or transforms_active() or differentiates_forward(*args)


def is_watched() -> bool:
    """Whether a dispatch mode, such as FlopCounterMode, looks at the operators that run."""
    return torch._C._len_torch_dispatch_stack() > 0


def static(sizes: Sequence[Any]) -> list[Any]:
    """Sizes as a trace of TorchScript is to hold them: as numbers, where the tracer hands out tensors."""
    return [int(size) for size in sizes] if torch.jit.is_tracing() else list(sizes)
