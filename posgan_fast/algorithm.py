"""Chooses the algorithm of 3x3 convolutions."""

from __future__ import annotations

ALGORITHMS = ("auto", "direct", "winograd")

_algorithm = "auto"


def set_algorithm(name: str) -> str:
    """Choose the algorithm of the 3x3 convolutions that follow, in all threads; return the choice before.

    Winograd's algorithm needs a quarter of the products of a direct convolution. Its rounding error is larger, but
    stays below 2e-6 (relative L2 against float64) where "auto" takes it. It is there for float32 on the CPU, and for
    style layers in bfloat16 in inference, which it computes in float32. Whether it serves a call depends on one sample,
    and a sample's result on neither the batch nor the number of threads. :func:`posgan_fast.explain` tells which
    algorithm a call runs, and why.

    Args:
        name: "auto" takes the faster one; "direct" never takes Winograd's; "winograd" takes it wherever it can compute
            the call, and the direct one elsewhere.

    Raises:
        TypeError, ValueError: ``name`` is none of these.

    Example:
        >>> before = set_algorithm("direct")
        >>> set_algorithm(before)
        'direct'
    """
    global _algorithm
    if not isinstance(name, str):
        raise TypeError(f"name: expected one of {ALGORITHMS}, got {type(name).__name__}")
    if name not in ALGORITHMS:
        raise ValueError(f"name: expected one of {ALGORITHMS}, got {name!r}")
    before, _algorithm = _algorithm, name
    return before


def algorithm() -> str:
    """Return the choice that is in force."""
    return _algorithm
