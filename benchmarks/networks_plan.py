"""Plans the rows of ``python -m benchmarks.networks`` on a GPU, the most important ones first, and their time."""

from __future__ import annotations

import argparse
import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from math import inf

from . import network_calls
from .network_calls import PRECISIONS

WHAT = ("layer", "generator", "training", "launches", "backward", "discriminator", "padding", "compiled")
HALF, FULL = PRECISIONS[:2], PRECISIONS[2:]
# The rows that do not heed an option.
FIXED = {"size": ("layer", "training", "backward"), "batch": ("training", "backward")}
MODES = ("default", "max-autotune")
STEPS = ("iteration", "generator step", "discriminator step")
# Seconds that a row takes at least, warm-up included; a compilation is stopped at its limit.
LEAST = {"layer": 1.0, "compiled": 20.0}
LIMITS = {"default": 90.0, "max-autotune": 180.0}


@dataclass(frozen=True)
class Case:
    """A row of the plan.

    Args:
        what: one of ``WHAT``.
        kind: the kind of layer, the network of a backward pass, the step of training, or the mode of a compilation.
        size: pixels of the images, or of a layer's result.
        batch: N.
        precision: one of ``network_calls.PRECISIONS``.
        peer: the project whose generator is compiled.
    """

    what: str
    kind: str
    size: int
    batch: int
    precision: str
    peer: str = ""

    @property
    def name(self) -> str:
        words = [self.kind] if self.kind else []
        if self.what == "layer":
            words = [network_calls.Layer(self.kind, self.size).name]
        elif self.what == "compiled":
            words = [f"{self.peer} {self.size}", self.kind]
        else:
            words.append(str(self.size))
        return ", ".join([*words, f"N={self.batch}", self.precision])

    @property
    def least(self) -> float:
        """The seconds below which the row is not begun."""
        return LEAST.get(self.what, 3.0)


@dataclass(frozen=True)
class Scale:
    """The sizes of a run, in ascending order."""

    sizes: tuple[int, ...] = (256, 1024)
    batches: tuple[int, ...] = (1, 32)
    layers: tuple[int, ...] = (4, 8, 16, 32, 64, 128, 256, 512, 1024)
    first: tuple[int, ...] = (256, 512)  # the layers that matter most
    training: tuple[int, int] = (256, 8)  # pixels and N


FULL_SCALE = Scale()
DRY_SCALE = Scale((8,), (1, 2), (8,), (8,), (8, 2))


class Budget:
    """The seconds of a run, which begin when the budget is made.

    Args:
        seconds: None: no bound.
        clock: returns the time in seconds.
    """

    def __init__(self, seconds: float | None, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock, self._begin = clock, clock()
        self._seconds = inf if seconds is None else seconds

    @property
    def spent(self) -> float:
        return self._clock() - self._begin

    @property
    def left(self) -> float:
        return self._seconds - self.spent

    def allows(self, case: Case) -> bool:
        """Tell whether a row can begin."""
        return self.left >= case.least


def scale_of(args: argparse.Namespace) -> Scale:
    """Return the sizes of a run on a GPU or of its dry run, with those that the options name in their place."""
    scale = DRY_SCALE if args.dry_run else FULL_SCALE
    named = {"sizes": args.size, "batches": args.batch}
    return dataclasses.replace(scale, **{k: tuple(sorted(v)) for k, v in named.items() if v})


def planned(args: argparse.Namespace, peers: Iterable[str] = ()) -> list[Case]:
    """Return the rows that the options ask for, in the order in which they are measured.

    "float32" asks for float32 without TF32 and with it; a CPU has no TF32, so a dry run leaves it out where it can.
    Layers have a size of their own, so ``--size`` leaves them.
    """
    dtypes = args.dtype or list(PRECISIONS)
    wanted = {*dtypes, "tf32"} if "float32" in dtypes else set(dtypes)
    cases = list(dict.fromkeys(_rows(scale_of(args), list(peers))))
    cases = [case for case in cases if case.what in (args.what or WHAT) and case.precision in wanted]
    return [case for case in cases if case.what == "compiled" or not (args.dry_run and case.precision == "tf32")]


def _rows(scale: Scale, peers: list[str]) -> Iterator[Case]:
    """Yield the rows by priority; some appear twice."""
    small, large, one, many = scale.sizes[0], scale.sizes[-1], scale.batches[0], scale.batches[-1]
    yield from _layers(("plain", "up"), scale.first, one, HALF)
    for size, batch in ((large, one), (small, many)):
        yield from (Case("generator", "", size, batch, p) for p in HALF)
    yield from (Case("training", STEPS[0], *scale.training, p) for p in HALF)
    yield from (Case("generator", "", large, one, p) for p in FULL)
    yield from (Case("generator", "", small, n, p) for n in (many, one) for p in PRECISIONS)
    # A profiler can slow launches for the rest of a process, so it counts them behind the first eager rows.
    yield from (Case("launches", "", *at, p) for p in ("float16", "tf32") for at in ((large, one), (small, many)))
    yield from _layers(("plain", "up", "torgb"), scale.layers[::-1], one, HALF[:1])
    for p in (*HALF[:1], *FULL):
        yield from (Case("training", step, *scale.training, p) for step in STEPS)
        yield from (Case("backward", network, *scale.training, p) for network in ("generator", "discriminator"))
        yield Case("discriminator", "", small, many, p)
    yield from (Case("generator", "", large, many, p) for p in PRECISIONS)
    yield from _compiled(scale, peers)
    yield from _layers(("plain", "up", "torgb"), scale.layers[::-1], many, HALF[:1])
    yield from _rest(scale)


def _rest(scale: Scale) -> Iterator[Case]:
    """Yield all other combinations."""
    for p in PRECISIONS:
        yield from (Case("generator", "", size, n, p) for size in scale.sizes for n in scale.batches)
        yield from (Case("discriminator", "", scale.sizes[0], n, p) for n in scale.batches)
        yield from (Case("training", step, *scale.training, p) for step in STEPS)
        yield from (Case("backward", network, *scale.training, p) for network in ("generator", "discriminator"))
        yield Case("padding", "", scale.sizes[0], scale.batches[0], p)
    for n in scale.batches:
        yield from _layers(("plain", "up", "torgb"), scale.layers[::-1], n, PRECISIONS)


def _layers(kinds: Iterable[str], sizes: Iterable[int], batch: int, precisions: Iterable[str]) -> Iterator[Case]:
    for precision in precisions:
        for size in sizes:
            yield from (Case("layer", kind, size, batch, precision) for kind in kinds if kind != "up" or size > 4)


def _compiled(scale: Scale, peers: list[str]) -> Iterator[Case]:
    """Yield the compilations, of each generator in the precision in which its project runs it."""
    for mode in MODES:
        for size, batch in ((scale.sizes[-1], scale.batches[0]), (scale.sizes[0], scale.batches[-1])):
            for peer in peers:
                yield Case("compiled", mode, size, batch, "float16" if peer == "nvlabs" else "tf32", peer)
