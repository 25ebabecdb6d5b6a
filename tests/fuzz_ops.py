"""Random calls of every public op: valid, borderline and wrong ones, drawn from a seed.

    python tests/fuzz_ops.py --calls 100000 --seed 1 [--op upfirdn2d]

A call raises a documented error, whose message begins with the argument's name, or it agrees between the backends "cpu"
and "reference" in its result and its gradients, which have the shapes and dtypes of their inputs, and leaves its inputs
as they were. A child process runs the calls, so that one that ends the process is known. A call that fails prints as a
line of Python: paste it behind ``from fuzz_ops import *``.

Two results agree where they differ by at most ROUNDINGS times the maximum error of tests/tolerances.py, relative to the
largest magnitude of the result or, where terms cancel, of the same call with the absolute values of its tensors. At a
kink (relu, a clamp) rounding decides the slope: gradients there fail only where other random values fail too.
"""

from __future__ import annotations

import argparse
import faulthandler
import inspect
import multiprocessing
import re
import resource
import signal
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from fuzz_calls import DRAWS, Call, T, draw, extent
from tolerances import TOLERANCES

import posgan_fast
from posgan_fast import functional as PF
from posgan_fast.functional import *  # noqa: F403  (for the lines that are printed)

ROUNDINGS = 8
SECONDS = 60  # of one call, after which its process ends
MANY, ENDLESS = 2**20, 2**42  # elements: more than are worth computing here, more than any memory holds
_ROWS = {
    "bias_act": "bias_act",
    "bias_act_": "bias_act",
    "conv2d": "conv2d",
    "epilogue2d": "epilogue2d",
    "modulated_conv2d": "modulated_conv2d",
}
_ROWS |= {name: "upfirdn2d" for name in ("upfirdn2d", "filter2d", "upsample2d", "downsample2d")}
_WITHOUT_BACKEND = ("setup_filter", "ring_from_map", "map_from_ring")
_DOCUMENTED = (TypeError, ValueError, posgan_fast.BackendError)
_MEMORY = re.compile("alloc|memory|overflow", re.IGNORECASE)
_NAMES = {"T": T, "torch": torch, "np": np, "nan": float("nan"), "inf": float("inf")}


class Mismatch(AssertionError):
    """A call that does not keep the contract."""


@dataclass
class Summary:
    """How the calls ended, and a line for each that broke the contract."""

    calls: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def count(self, kind: str, failure: str | None) -> None:
        self.calls += 1
        self.kinds[kind] += 1
        if failure is not None:
            self.failures.append(failure)

    def __str__(self) -> str:
        kinds = "".join(f"  {kind:<20} {count:>9,}\n" for kind, count in self.kinds.most_common())
        return f"{self.calls:,} calls\n{kinds}{len(self.failures):,} broke the contract"


def outcome(call: Call, functions: dict[str, Callable[..., Any]]) -> tuple[str, str | None]:
    """How ``call`` ended, and what is wrong with it, as a line, if something is."""
    try:
        return checked(call, functions[call.op]), None
    except Mismatch as error:
        return "mismatch", f"{call}  # {error}"


def checked(call: Call, function: Callable[..., Any]) -> str:
    """Run ``call`` on both backends; returns "ok" or the kind of its error.

    Raises:
        Mismatch: it breaks the contract.
    """
    work, result = extent(call, {name: eval(text, dict(_NAMES)) for name, text in call.arguments.items()})
    if MANY < result < ENDLESS:
        return "too large"
    if call.op in _WITHOUT_BACKEND or "backend" in call.arguments:
        return _run(call, function, {})[0]
    kind, *found = _run(call, function, {"backend": "cpu"})
    if work > MANY:  # the reference holds all that the kernels skip
        return kind
    other, *expected = _run(call, function, {"backend": "reference"})
    if (kind, other) == ("BackendError", "ok") and "'meta'" in str(call):  # the reference runs on any device
        return kind
    if kind != other:
        raise Mismatch(f"cpu: {kind}, reference: {other}")
    if kind != "ok":
        return kind
    names, ours, theirs = ["result", *found[2]], [found[0], *found[1]], [expected[0], *expected[1]]
    for i, (name, a, b) in enumerate(zip(names, ours, theirs, strict=True)):
        if not _close(a, b, call, function, i):
            if i and _has_kink(call) and all(_agrees_elsewhere(call, function, s) for s in (1000, 2000)):
                continue
            raise Mismatch(f"{name}: {_difference(a, b)}")
    return kind


def _run(call: Call, function: Callable[..., Any], extra: dict[str, Any], change: Callable[..., Any] | None = None):
    """The kind of the end, result, gradients and their names; ``change`` is applied to every tensor first."""
    arguments = {name: eval(text, dict(_NAMES)) for name, text in call.arguments.items()}
    if change is not None:
        arguments = {k: change(v) if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
    tensors = {k: v for k, v in arguments.items() if _is_plain(v)}
    before = {k: v.detach().clone() for k, v in tensors.items() if not (call.op == "bias_act_" and k == "x")}
    leaves = {k: v.requires_grad_() for k, v in tensors.items() if call.gradients and k not in ("f", "resample_filter")}
    if call.op == "bias_act_" and "x" in leaves:
        arguments["x"] = leaves["x"].clone()
    try:
        y = function(**arguments, **extra)
    except Exception as error:
        return _documented(error, function), None, [], []
    gradients = _gradients(y, leaves, call)
    for name, value in before.items():
        if not torch.equal(tensors[name].detach().nan_to_num(), value.nan_to_num()):
            raise Mismatch(f"{name}: was written to")
    return "ok", y.detach(), gradients, [f"gradient of {name}" for name in leaves]


def _gradients(y: torch.Tensor, leaves: dict[str, torch.Tensor], call: Call) -> list[torch.Tensor]:
    if not leaves or not y.requires_grad:
        if any(name in leaves for name in ("x", "pad_map", "ring")):
            raise Mismatch("result: requires no gradient")
        leaves.clear()
        return []
    g = torch.randn(y.shape, generator=torch.Generator().manual_seed(7), dtype=torch.float64).to(y.dtype)
    try:
        found = torch.autograd.grad(y, list(leaves.values()), g.abs() if call.absolute else g, allow_unused=True)
    except Exception as error:
        raise Mismatch(f"in backward, {type(error).__name__}: {str(error)[:200]}") from error
    for (name, leaf), gradient in zip(leaves.items(), found, strict=True):
        if gradient is None:
            raise Mismatch(f"gradient of {name}: there is none")
        if gradient.shape != leaf.shape or gradient.dtype != leaf.dtype:
            raise Mismatch(f"gradient of {name}: {gradient.dtype} {tuple(gradient.shape)}, of a {tuple(leaf.shape)}")
    return list(found)


def _documented(error: Exception, function: Callable[..., Any]) -> str:
    text, kind = str(error), type(error)
    if kind in (RuntimeError, MemoryError) and (kind is MemoryError or _MEMORY.search(text)):
        return "out of memory"
    if kind not in _DOCUMENTED:
        raise Mismatch(f"{kind.__name__}: {text[:200]}")
    name = re.match(r"(\w+)(\[\d\])?: expected ", text)
    if kind is not posgan_fast.BackendError and (name is None or name[1] not in inspect.signature(function).parameters):
        raise Mismatch(f"{kind.__name__} names no argument: {text[:200]}")
    return kind.__name__


def _is_plain(value: Any) -> bool:
    strided = isinstance(value, torch.Tensor) and value.layout == torch.strided and value.device.type == "cpu"
    return strided and value.is_floating_point()


def _close(a: torch.Tensor, b: torch.Tensor, call: Call, function: Callable[..., Any], index: int) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    a, b, dtype = a.double(), b.double(), _coarsest(call, a.dtype)
    finite = a.isfinite() & b.isfinite()
    tolerance = ROUNDINGS * TOLERANCES[_ROWS.get(call.op, "prologue2d"), dtype][1]
    largest = torch.finfo(dtype).max
    # Beyond the range the order of the factors decides between the largest numbers, infinity and NaN.
    extreme = ~finite & ((~a.isfinite() | (a.abs() > largest / 1e3)) & (~b.isfinite() | (b.abs() > largest / 1e3)))
    if not (finite | extreme).all():
        return _overflows(call, function)
    a, b = a[finite], b[finite]
    if a.numel() == 0:
        return True
    error, scale = (a - b).abs().max(), b.abs().max()
    if error <= tolerance * scale + torch.finfo(dtype).tiny:
        return True
    large = _unbounded(call)
    kind, y, gradients, _ = _run(large, function, {"backend": "reference"}, _absolute)
    if kind != "ok":
        return False
    bound = [y, *gradients][index].abs().double().nan_to_num().max()
    if call.op == "modulated_conv2d" and index > 0:  # demodulation cancels what its operand is scaled by
        bound = bound + y.abs().nan_to_num().sum() * _inverse(call)
    return bool(error <= tolerance * bound)


def _overflows(call: Call, function: Callable[..., Any]) -> bool:
    """Whether a number between the argument and the result leaves the dtype's range: in float64 all are far larger."""
    kind, y, gradients, _ = _run(_unbounded(call), function, {"backend": "reference"}, _absolute)
    dtype = _coarsest(call, torch.float64)
    values = torch.cat([t.double().abs().flatten() for t in (y, *gradients)]) if kind == "ok" else torch.zeros(0)
    return bool((~values.isfinite() | (values > torch.finfo(dtype).max / 1e3)).any())


def _unbounded(call: Call) -> Call:
    return replace(call, absolute=True, arguments={k: v for k, v in call.arguments.items() if k != "clamp"})


def _absolute(value: torch.Tensor) -> torch.Tensor:
    return value.detach().double().abs() if _is_plain(value) else value


def _inverse(call: Call) -> float:
    """One over the smallest number among weight and styles."""
    tensors = [eval(call.arguments[name], dict(_NAMES)).abs().double() for name in ("weight", "styles")]
    return 1 / min(t[t > 0].min().item() for t in tensors)


def _coarsest(call: Call, dtype: torch.dtype) -> torch.dtype:
    """The coarsest dtype on the way: gradients of float32 factors of half-precision images come from rounded ones."""
    tensors = [eval(text, dict(_NAMES)) for text in call.arguments.values() if text.startswith("T(")]
    return max([dtype, *(t.dtype for t in tensors if _is_plain(t))], key=lambda d: torch.finfo(d).eps)


def _has_kink(call: Call) -> bool:
    return "clamp" in call.arguments or call.arguments.get("act") in ("'relu'", "'lrelu'", "'elu'", "'selu'")


def _agrees_elsewhere(call: Call, function: Callable[..., Any], shift: int) -> bool:
    other = replace(call, arguments={k: re.sub(r"seed=", f"seed={shift} + ", v) for k, v in call.arguments.items()})
    cpu, reference = (_run(other, function, {"backend": backend}) for backend in ("cpu", "reference"))
    return all(_close(a, b, other, function, i + 1) for i, (a, b) in enumerate(zip(cpu[2], reference[2], strict=True)))


def _difference(a: torch.Tensor, b: torch.Tensor) -> str:
    if a.shape != b.shape or a.dtype != b.dtype:
        return f"cpu {a.dtype} {tuple(a.shape)}, reference {b.dtype} {tuple(b.shape)}"
    a, b = a.double(), b.double()
    return f"differs by {(a - b).abs().max():.3g} of {b.abs().max():.3g}"


def calls(count: int, seed: int, op: str | None = None, first: int = 0) -> Iterator[Call]:
    return (draw(f"{seed}/{i}", op) for i in range(first, count))


def survey(
    count: int,
    seed: int,
    op: str | None = None,
    functions: dict[str, Callable[..., Any]] | None = None,
    progress: Callable[[], Any] = lambda: None,
) -> Summary:
    """Run ``count`` calls in a child process, and in another where a call ended the one before."""
    summary, context = Summary(), multiprocessing.get_context("fork")
    while summary.calls < count:
        receiver, sender = context.Pipe(duplex=False)
        arguments = (sender, count, seed, op, summary.calls, functions or FUNCTIONS)
        child = context.Process(target=_child, args=arguments)
        child.start()
        sender.close()
        with receiver:
            while summary.calls < count:
                try:
                    ended = receiver.recv()
                except EOFError:
                    child.join()
                    line = next(calls(count, seed, op, summary.calls))
                    ended = "death", f"{line}  # the process ended: {_cause(child.exitcode)}"
                summary.count(*ended)
                progress()
                if ended[0] == "death":
                    break
        child.join()
    return summary


def _child(sender, count, seed, op, first, functions):
    torch.set_num_threads(1)
    faulthandler.disable()
    warnings.simplefilter("ignore")
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (size + 2**31, size + 2**31))
    for call in calls(count, seed, op, first):
        signal.alarm(SECONDS)
        sender.send(outcome(call, functions))


def _cause(exitcode: int | None) -> str:
    return signal.Signals(-exitcode).name if exitcode is not None and exitcode < 0 else f"exit code {exitcode}"


FUNCTIONS: dict[str, Callable[..., Any]] = {name: getattr(PF, name) for name in DRAWS}


def main() -> int:
    from tqdm import tqdm

    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--op", choices=sorted(DRAWS))
    options = parser.parse_args()
    with tqdm(total=options.calls, unit="call", mininterval=5) as bar:
        summary = survey(options.calls, options.seed, options.op, progress=bar.update)
    print(*summary.failures[:50], summary, sep="\n")
    return 1 if summary.failures else 0


if __name__ == "__main__":
    sys.exit(main())
