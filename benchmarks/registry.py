"""Selects the cases to measure, and lists the contenders of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import cases
import torch

import posgan_fast.functional as PF
from posgan_fast.ops import bias_act as bias_act_room
from posgan_fast.ops import upfirdn2d as upfirdn2d_room

from .peers import Peer

REFERENCE, COMPILED = "reference", "reference, compiled"


@dataclass(frozen=True)
class Contender:
    """One implementation of a case; ``make()`` prepares its call for the timed loop.

    ``kind`` is "ours" (the backend chosen automatically), "backend" (another backend of ours), "in place" (ours, but
    writing over x, which saves memory that the others need) or "other"."""

    name: str
    kind: str
    make: Callable[[], Callable[[torch.Tensor], Any]]


def contenders(
    case: cases.Case, x: torch.Tensor, extra: torch.Tensor | None, peers: Iterable[Peer], compiled: bool
) -> list[Contender]:
    """List our backends, the automatic choice first, the reference and its compiled form, and the peers.

    ``extra`` is the filter or the bias of the case."""
    impls = PF.OPS[case.op][1]
    able = [impl.backend for impl in impls if impl.backend != REFERENCE and impl.can_run(x) is None]
    if not able:
        raise RuntimeError(f"{case.op}: no backend but the reference can run; build the native library first")
    found = [Contender(ours(b), "ours" if b == able[0] else "backend", _ours(case, extra, b)) for b in able]
    if isinstance(case, cases.BiasActCase):
        found.append(Contender(f"{ours(able[0])}, in place", "in place", _ours(case, extra, able[0], "bias_act_")))
    found.append(Contender(REFERENCE, "other", _ours(case, extra, REFERENCE)))
    if compiled:
        found.append(Contender(COMPILED, "other", lambda: _compiled(case, x, extra)))
    for peer in peers:
        call = peer.call(case, extra, x.dtype)
        if call is not None:
            found.append(Contender(peer.name, "other", lambda call=call: call))  # type: ignore[misc]
    return found


def ours(backend: str) -> str:
    return f"posgan_fast {backend}"


def selected(ops: Iterable[str], quick: bool, words: Iterable[str] = ()) -> Iterator[cases.Case]:
    """The cases of some ops: with ``quick`` those of two small resolutions, with ``words`` those whose name has one."""
    words = list(words)
    for op in ops:
        for case in cases.CASES[op]:
            if (not quick or case.resolution in (16, 64)) and (not words or any(word in case.name for word in words)):
                yield case


def _ours(case: cases.Case, extra: torch.Tensor | None, backend: str, op: str = "") -> Callable[[], Callable]:
    function = getattr(PF, op or case.op)
    arguments = case.arguments
    return lambda: lambda x: function(x, extra, **arguments, backend=backend)


def _compiled(case: cases.Case, x: torch.Tensor, extra: torch.Tensor | None) -> Callable[[torch.Tensor], Any]:
    """Compile the plain torch definition with torch.compile, for this shape alone."""
    torch._dynamo.reset()
    if isinstance(case, cases.Upfirdn2dCase):
        resample = upfirdn2d_room.check(x, extra, (case.up, case.down, case.padding, case.flip_filter, case.gain))
        f = upfirdn2d_room.taps_of(extra, x)
        return torch.compile(lambda x: upfirdn2d_room.reference(x, f, resample), fullgraph=True, dynamic=False)
    settled = bias_act_room.check(x, extra, 1, (case.act, case.alpha, case.gain, case.clamp))
    return torch.compile(
        lambda x: bias_act_room.reference(bias_act_room.Pass(x, *settled)), fullgraph=True, dynamic=False
    )
