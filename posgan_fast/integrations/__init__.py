"""Foreign GAN code on these ops, without touching it: one table per family, one reversible patch engine.

Families: ``nvlabs`` (stylegan2-ada, stylegan3 and forks: ``torch_utils.ops.*``, ``torch_utils.custom_ops``; PadInv's
``third_party.stylegan*_official_ops``), ``rosinality`` (stylegan2-pytorch and forks, pSp, basicsr: ``op.*``,
``non_leaking``; the PyPI packages stylegan2-torch and torch-conv-gradfix) and ``mmcv`` (``mmcv.ops.*`` of 1.x and 2.x).
"""

from __future__ import annotations

from collections.abc import Iterable

from . import mmcv, nvlabs, rosinality, standins, torch_internals
from .engine import Engine, Report

__all__ = ["FAMILIES", "Report", "patch", "report", "unpatch"]

FAMILIES = {
    family: (*table.TARGETS, *torch_internals.TARGETS)
    for family, table in (("nvlabs", nvlabs), ("rosinality", rosinality), ("mmcv", mmcv))
}


def patch(families: Iterable[str] | None = None) -> Report:
    """Put this library's ops into foreign modules: those imported already, and others as they are imported.

    Nothing is imported for the purpose. A module is taken only if it has the functions of its family with the same
    parameter names; the report says which were and why others were not. Calls nest: each :func:`patch` needs its
    :func:`unpatch`, and the last one restores everything. Also a context manager: ``with posgan_fast.patch():``.

    Args:
        families: some of "nvlabs", "rosinality" and "mmcv"; None: all. A nested call adds its families to those in
            force.

    Returns:
        The live report, which goes on filling while the hooks are in place.

    Raises:
        ValueError: an unknown family.
    """
    names = tuple(FAMILIES) if families is None else (families,) if isinstance(families, str) else tuple(families)
    unknown = [name for name in names if name not in FAMILIES]
    if unknown:
        raise ValueError(f"families: expected some of {sorted(FAMILIES)}, got {unknown}")
    return _ENGINE.patch(names)


def unpatch() -> None:
    """Undo one :func:`patch`; the last one puts every earlier object back and removes the hooks."""
    _ENGINE.unpatch()


def report() -> Report:
    """What the hooks in force have done, or did when they were last in force."""
    return _ENGINE.report


_ENGINE = Engine(FAMILIES, standins.STANDINS)
