"""Reads the arguments of our networks that ``python -m benchmarks.traffic --set`` gives, and refuses wrong ones."""

from __future__ import annotations

import argparse
import ast
import inspect
from collections.abc import Sequence
from typing import Any

from posgan_fast.models import Discriminator, Generator

from .traffic_calls import NETWORKS
from .traffic_cuda import META

# What the sizes of the inputs decide, which are the same for every contender.
FIXED = ("size", "z_dim", "w_dim", "c_dim", "img_channels")


def read(entries: Sequence[str], networks: Sequence[str], parser: argparse.ArgumentParser) -> dict[str, Any]:
    """Return the arguments of NAME=VALUE options, with which our networks of the call can be made.

    Args:
        entries: the options.
        networks: some of ``NETWORKS``.
        parser: complains of a name that a network does not take, and of a value that its constructor refuses.
    """
    takers = {make for name in networks for make in _makers(NETWORKS[name][0])}
    found: dict[str, Any] = {}
    for entry in entries:
        name, equals, text = entry.partition("=")
        if not equals or not text:
            parser.error(f"--set: expected NAME=VALUE, got {entry!r}")
        if not takers or any(name not in inspect.signature(taker).parameters for taker in takers):
            parser.error(f"--set: expected an argument of all networks of --network, got {entry!r}")
        if name in FIXED:
            parser.error(f"--set: expected no {name}, which the command sets itself, got {entry!r}")
        if name in found:
            parser.error(f"--set: expected {name} once, got {entry!r} beside {found[name]!r}")
        found[name] = _value(text)
    for network in networks if found else ():
        kind, size = NETWORKS[network]
        try:
            with META:
                for make in _makers(kind):
                    make(size, **found)
        except (TypeError, ValueError, OverflowError, RuntimeError) as error:
            parser.error(f"--set: {error}")
    return found


def _makers(kind: str) -> list[Any]:
    return [make for make in (Generator, Discriminator) if kind in (make.__name__.lower(), "training")]


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        return text  # a word
