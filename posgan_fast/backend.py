"""Chooses the implementation that runs an op, and says why.

Every op lists its implementations in order of preference, one :class:`Impl` each. A choice is made, in this order, by
the ``backend=`` argument, by :func:`use_backend`, by the environment variable ``POSGAN_FAST_BACKEND``, and last by the
first implementation that can run. An explicit choice that cannot run raises its reason; there is no silent fallback.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch

from . import _native

BACKENDS = ("cuda", "cpu", "triton", "reference")
AUTO = "auto"


@dataclass(frozen=True)
class Unsupported:
    """The reason why an implementation cannot serve a call, with a remedy if the machine, not the call, is at fault."""

    reason: str
    remedy: str | None = None

    def __str__(self) -> str:
        return f"{self.reason} (remedy: {self.remedy})" if self.remedy else self.reason


@dataclass(frozen=True)
class Impl:
    """One implementation: ``can_run(x)`` returns None or the reason against, ``run`` takes the op's record and, but for
    an op made of others, the tensor to write the result to."""

    backend: str
    can_run: Callable[[torch.Tensor], Unsupported | None]
    run: Callable[..., Any]


class BackendError(RuntimeError):
    """An explicitly chosen backend cannot run this call."""


@dataclass(frozen=True)
class Choice:
    """The answer of :func:`posgan_fast.explain`: the backend of a call, and the reason for or against each; for an op
    that convolves also the algorithm, on the CPU with the reason against Winograd's."""

    op: str
    backend: str | None
    rows: tuple[tuple[str, str], ...]
    algorithm: str | None = None

    def __str__(self) -> str:
        width = max(len(name) for name, _ in self.rows)
        lines = [f"{self.op}: {self.backend or 'no backend'}"]
        lines += [f"  {'->' if name == self.backend else '  '} {name:<{width}}  {why}" for name, why in self.rows]
        lines += [f"  algorithm: {self.algorithm}"] if self.algorithm else []
        return "\n".join(lines)


@dataclass(frozen=True)
class Choices:
    """The answer of :func:`posgan_fast.explain` for a module: each choice with the number of calls that make it, and
    notes on what the module does otherwise than its arguments say."""

    counts: tuple[tuple[Choice, int], ...]
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        lines = [f"{count} x {choice}" for choice, count in self.counts] or ["no op of posgan_fast is called"]
        return "\n".join(lines + [f"note: {note}" for note in self.notes])


class Asked(NamedTuple):
    """The answer of explain in the making: the choices of calls, and notes."""

    choices: list[Choice]
    notes: list[str]


def use_backend(name: str | None) -> contextlib.AbstractContextManager[None]:
    """Run every op in the block ``with use_backend(name):`` on that backend.

    ``name`` is "reference", "cpu", "triton" or "cuda"; None chooses freely. Nothing changes before the block
    is entered. A backward pass runs on the backend of its forward, whatever is set when it is called.

    Raises:
        TypeError, ValueError: ``name`` is no backend.
    """
    return _forcing(None if name is None else check_name(name, "name"))


def resolve(
    op: str,
    impls: Sequence[Impl],
    x: torch.Tensor,
    backend: str | None,
    algorithm: Callable[[str], str | None] | None = None,
) -> str:
    """Return the backend that serves this call; the module's docstring has the order of choice.

    ``algorithm`` tells by which algorithm a backend serves the call, for explain; None: it has one only.

    While torch compiles a graph, a free choice stays :data:`AUTO` and is made when the compiled code runs. An op made
    of others hands it on to them.
    """
    if torch.compiler.is_compiling():
        return AUTO if backend in (None, AUTO) else check_name(backend, "backend")
    if (asked := _asked.get()) is not None:
        found = choice(op, impls, x, backend)
        if algorithm is not None and found.backend is not None:
            found = replace(found, algorithm=algorithm(found.backend))
        asked.choices.append(found)
    return _choose(op, impls, x, backend)


def winograd_unless(reason: str | None) -> str:
    """Name the algorithm of a convolution on the CPU, for explain."""
    return f"direct, because {reason}" if reason else "winograd"


@contextlib.contextmanager
def choices_asked_for() -> Iterator[Asked]:
    """Collect the choices of the calls in the block, and the notes of modules."""
    asked = Asked([], [])
    token = _asked.set(asked)
    try:
        yield asked
    finally:
        _asked.reset(token)


def note(text: str) -> None:
    """Add a note, once, to the answer of explain, if it is asked for."""
    if not torch.compiler.is_compiling() and (asked := _asked.get()) is not None and text not in asked.notes:
        asked.notes.append(text)


def unlisted(run: Callable[[], torch.Tensor]) -> torch.Tensor:
    """Return ``run()``, without listing its calls for explain: the parts of an op make no choice of their own."""
    if torch.compiler.is_compiling() or _asked.get() is None:
        return run()
    token = _asked.set(None)
    try:
        return run()
    finally:
        _asked.reset(token)


def resolve_auto(op: str, impls: Sequence[Impl], x: torch.Tensor, backend: str) -> str:
    """Return the backend in the arguments of an op, or choose now if a compiled or exported graph left :data:`AUTO`."""
    return _choose(op, impls, x, None) if backend == AUTO else backend


def implementation(op: str, impls: Sequence[Impl], x: torch.Tensor, backend: str) -> Callable[..., Any]:
    """Return the function behind a backend's name. Check that it can run: not all calls passed :func:`resolve`."""
    name = resolve_auto(op, impls, x, backend)
    for impl in impls:
        if impl.backend == name:
            unsupported = impl.can_run(x)
            if unsupported is None:
                return impl.run
            raise BackendError(f"{op}: backend {name!r} cannot run: {unsupported}")
    raise ValueError(f"backend: expected one of {sorted(BACKENDS)}, got {name!r}")


def choice(op: str, impls: Sequence[Impl], x: torch.Tensor, backend: str | None) -> Choice:
    """List every implementation with its reason, without running or warning."""
    wanted, source = _wanted(backend)
    rows, chosen = [], None
    for impl in impls:
        unsupported = impl.can_run(x)
        if unsupported is not None:
            rows.append((impl.backend, f"cannot run: {unsupported}"))
        elif chosen is None and wanted in (None, impl.backend):
            chosen = impl.backend
            rows.append((impl.backend, f"chosen by {source}" if wanted else "chosen: first that can run"))
        elif wanted is not None:
            rows.append((impl.backend, f"can run, but {source} asks for {wanted!r}"))
        else:
            rows.append((impl.backend, f"can run, but {chosen!r} comes first"))
    return Choice(op, chosen, tuple(rows))


def check_name(name: Any, argument: str) -> str:
    if not isinstance(name, str):
        raise TypeError(f"{argument}: expected one of {sorted(BACKENDS)} or None, got {type(name).__name__}")
    if name not in BACKENDS:
        raise ValueError(f"{argument}: expected one of {sorted(BACKENDS)} or None, got {name!r}")
    return name


def reference_can_run(x: torch.Tensor) -> Unsupported | None:
    return None


def uses_cpu_kernels(x: torch.Tensor) -> bool:
    """Tell whether the choice for ``x`` is free or "cpu", and the CPU library can run."""
    return _wanted(None)[0] in (None, "cpu") and cpu_can_run(x) is None


def cpu_can_run(x: torch.Tensor) -> Unsupported | None:
    return _elsewhere(x.device, "cpu") or _unavailable(_native.CPU)


def cuda_can_run(x: torch.Tensor) -> Unsupported | None:
    return (
        _elsewhere(x.device, "cuda")
        or _unavailable(_native.CUDA)
        or _driver_too_old()
        or _not_built_for(x.device.index)
    )


def triton_can_run(x: torch.Tensor) -> Unsupported | None:
    interpreting = os.environ.get("TRITON_INTERPRET") == "1"
    if x.device.type != "cuda" and not interpreting:
        return Unsupported(f"x is on {x.device.type}, not on cuda, and TRITON_INTERPRET=1 is not set")
    if not _native.has_triton():
        return Unsupported("triton is not installed", "pip install triton")
    if x.device.type == "cuda" and not interpreting and torch.cuda.get_device_capability(x.device) < (7, 0):
        return Unsupported("triton needs compute capability 7.0")
    return None


_forced: contextvars.ContextVar[str | None] = contextvars.ContextVar("posgan_fast_backend", default=None)
_asked: contextvars.ContextVar[Asked | None] = contextvars.ContextVar("posgan_fast_asked", default=None)
_warned: set[tuple[str, str]] = set()


@contextlib.contextmanager
def _forcing(name: str | None) -> Iterator[None]:
    token = _forced.set(name)
    try:
        yield
    finally:
        _forced.reset(token)


def _choose(op: str, impls: Sequence[Impl], x: torch.Tensor, backend: str | None) -> str:
    wanted, source = _wanted(backend)
    if wanted is not None:
        impl = next(i for i in impls if i.backend == wanted)
        unsupported = impl.can_run(x)
        if unsupported is not None:
            raise BackendError(f"{op}: backend {wanted!r} (from {source}) cannot run: {unsupported}")
        return wanted
    for impl in impls:
        unsupported = impl.can_run(x)
        if unsupported is None:
            return impl.backend
        if unsupported.remedy is not None:
            _warn_once(op, impl.backend, unsupported)
    raise BackendError(f"{op}: no backend can run on {x.device.type} tensors of {x.dtype}")


def _wanted(argument: str | None) -> tuple[str | None, str]:
    if argument is not None:
        return check_name(argument, "backend"), "the backend argument"
    if (forced := _forced.get()) is not None:
        return forced, "use_backend()"
    if name := os.environ.get("POSGAN_FAST_BACKEND"):
        return check_name(name, "POSGAN_FAST_BACKEND"), "POSGAN_FAST_BACKEND"
    return None, ""


@functools.cache
def _elsewhere(found: torch.device, wanted: str) -> Unsupported | None:
    return None if found.type == wanted else Unsupported(f"x is on {found.type}, not on {wanted}")


def _unavailable(library: str) -> Unsupported | None:
    status = _native.load(library)
    return None if status.loaded else Unsupported(status.reason, status.remedy)


@functools.cache
def _driver_too_old() -> Unsupported | None:
    """Refuse a driver older than the major version of the CUDA runtime that is linked into the library.

    torch's runtime may be of another version: a torch built for CUDA 12 runs on drivers that are too old for CUDA 13.
    """
    runtime, driver = _native.cuda_runtime(), _native.cuda_driver()
    if runtime is None or driver is None or driver[0] >= runtime[0]:
        return None
    return Unsupported(
        f"the cuda library is built with CUDA {_version(runtime)}, the driver serves CUDA {_version(driver)} at most",
        f"{_driver_for(runtime)}, or with a CUDA {driver[0]} toolkit: {_native.rebuild()}",
    )


@functools.cache
def _not_built_for(device: int) -> Unsupported | None:
    """Refuse a device that the library has no code for. Machine code runs on later devices of its own generation, PTX
    on all later devices."""
    record = _native.build_record().get(_native.CUDA, {})
    built = _architectures(record.get("architectures"))
    if not built:
        return None
    ptx = _architectures(record.get("ptx", [record["architectures"][-1]]))
    major, minor = torch.cuda.get_device_capability(device)
    sm = 10 * major + minor
    if any(_serves(arch, sm) for arch in built):
        return None
    if not any(_serves(arch, sm, ptx=True) for arch in ptx):
        return Unsupported(
            f"the cuda library is built for {', '.join('sm_' + arch for arch in built)}, the device is sm_{sm}",
            f"POSGAN_FAST_CUDA_ARCHS={sm} {_native.rebuild()}",
        )
    runtime, driver = _native.cuda_runtime(), _native.cuda_driver()
    if runtime is None or driver is None or driver >= runtime:
        return None
    return Unsupported(
        f"the cuda library serves this device, sm_{sm}, by PTX of CUDA {_version(runtime)} alone, and the driver takes "
        f"that of CUDA {_version(driver)} at most",
        f"POSGAN_FAST_CUDA_ARCHS={sm} {_native.rebuild()}",
    )


def _architectures(recorded: Any) -> list[str]:
    """Return the recorded architectures in order, without entries that name none."""
    listed = recorded if isinstance(recorded, list) else ()
    known = {str(arch) for arch in listed if re.fullmatch(r"\d{2,3}[af]?", str(arch))}
    return sorted(known, key=lambda arch: (int(arch.rstrip("af")), arch))


def _serves(arch: str, sm: int, ptx: bool = False) -> bool:
    """Tell whether code for an architecture runs on a device: code for 90a only on 9.0, code for 100f only on 10.x."""
    built = int(arch.rstrip("af"))
    if arch.endswith("a"):
        return sm == built
    return sm >= built and (sm // 10 == built // 10 or (ptx and arch.isdigit()))


def _driver_for(runtime: tuple[int, int]) -> str:
    first = {11: "R450", 12: "R525", 13: "R580"}.get(runtime[0])
    return f"install an NVIDIA driver {first} or later" if first else "install a later NVIDIA driver"


def _version(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def _warn_once(op: str, backend: str, unsupported: Unsupported) -> None:
    if (op, backend) not in _warned:
        _warned.add((op, backend))
        warnings.warn(f"posgan_fast.{op}: the {backend} backend is skipped: {unsupported}", stacklevel=4)
