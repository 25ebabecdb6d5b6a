"""Foreign GAN code on this library's ops, unmodified: one table per family, and one reversible patch engine.

Families: ``nvlabs`` (stylegan2-ada, stylegan3 and forks: ``torch_utils.ops.*``, ``torch_utils.custom_ops``; PadInv's
``third_party.stylegan*_official_ops``), ``rosinality`` (stylegan2-pytorch and forks, pSp, basicsr: ``op.*``,
``non_leaking``; the PyPI packages stylegan2-torch and torch-conv-gradfix) and ``mmcv`` (``mmcv.ops.*`` of 1.x and 2.x).
"""

from __future__ import annotations

from collections.abc import Iterable

from . import mmcv, nvlabs, rosinality, standins, torch_internals
from .engine import Engine
from .reports import Report

__all__ = ["FAMILIES", "Report", "patch", "report", "unpatch"]

FAMILIES = {
    family: (*table.TARGETS, *torch_internals.TARGETS)
    for family, table in (("nvlabs", nvlabs), ("rosinality", rosinality), ("mmcv", mmcv))
}


def patch(families: Iterable[str] | None = None) -> Report:
    """Put this library's ops into foreign modules: those imported already, and others as they are imported.

    The call itself imports nothing. It patches a module only if the module has the functions of its family with the
    same parameter names; the report lists the modules patched, and the others with the reason. Calls nest: each
    :func:`patch` needs its :func:`unpatch`, and the last one restores everything. The report is also a context manager
    that does this: ``with posgan_fast.patch():``.

    Args:
        families: some of "nvlabs", "rosinality" and "mmcv"; None: all. A nested call adds its families to those in
            force.

    Returns:
        The live report, to which the hooks add entries while they are in place.

    Raises:
        ValueError: an unknown family.

    Example:
        >>> import posgan_fast
        >>> with posgan_fast.patch("mmcv") as report:
        ...     pass  # import and run code that uses mmcv.ops here
        >>> report.patched  # no such module was imported
        []
    """
    names = tuple(FAMILIES) if families is None else (families,) if isinstance(families, str) else tuple(families)
    unknown = [name for name in names if name not in FAMILIES]
    if unknown:
        raise ValueError(f"families: expected some of {sorted(FAMILIES)}, got {unknown}")
    return _ENGINE.patch(names)


def unpatch() -> None:
    """Undo one :func:`patch`; the last one puts every earlier object back and removes the hooks.

    Example:
        >>> import posgan_fast
        >>> report = posgan_fast.patch("mmcv")
        >>> posgan_fast.unpatch()
    """
    _ENGINE.unpatch()


def report() -> Report:
    """Return the report of the hooks in force, or of those that were in force last.

    Example:
        >>> import posgan_fast
        >>> from posgan_fast import integrations
        >>> with posgan_fast.patch("mmcv") as live:
        ...     integrations.report() is live
        True
    """
    return _ENGINE.report


_ENGINE = Engine(FAMILIES, standins.STANDINS)
