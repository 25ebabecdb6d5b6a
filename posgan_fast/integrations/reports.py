"""The report of the hooks, and its entries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple


class Patched(NamedTuple):
    """An attribute that was replaced, and the op that serves it now."""

    module: str
    attribute: str
    family: str
    replacement: str


class LeftAlone(NamedTuple):
    """A module that was not patched although its name is that of a target, and the reason."""

    module: str
    reason: str


class PluginRequest(NamedTuple):
    """A request to compile a plugin: it was ``answered`` with a module of ours, or passed on to ``asked_through``."""

    name: str
    asked_through: str
    answered: bool


@dataclass
class Report:
    """A record of what the hooks have done; as a context manager, it calls :func:`unpatch` at the end of the block.

    Attributes:
        patched: the functions that were replaced.
        left_alone: the modules that were not patched although their names are those of a target.
        plugins: the requests to compile a plugin.
        standins: the missing modules that were replaced by stand-ins and, under ``posgan-fast run``, the other breaks
            of the platform that the program met.

    Example:
        >>> print(Report(left_alone=[LeftAlone("op.upfirdn2d", "no function upfirdn2d")]))
        left alone:
          op.upfirdn2d  no function upfirdn2d
    """

    patched: list[Patched] = field(default_factory=list)
    left_alone: list[LeftAlone] = field(default_factory=list)
    plugins: list[PluginRequest] = field(default_factory=list)
    standins: list[str] = field(default_factory=list)
    _unpatch: Callable[[], None] | None = field(default=None, repr=False, compare=False)

    def __enter__(self) -> Report:
        return self

    def __exit__(self, *_: object) -> None:
        if self._unpatch is not None:
            self._unpatch()

    def __str__(self) -> str:
        tables = (
            ("patched", [(p.family, f"{p.module}.{p.attribute}", f"-> {p.replacement}") for p in self.patched]),
            ("plugin requests", [("answered" if p.answered else "passed on", *p[:2]) for p in self.plugins]),
            ("left alone", [tuple(entry) for entry in self.left_alone]),
            ("stand-ins", [(name,) for name in self.standins]),
        )
        lines = [line for title, rows in tables if rows for line in (f"{title}:", *_columns(rows))]
        return "\n".join(lines) or "nothing patched"

    def paragraph(self) -> str:
        """Summarise the report in one paragraph.

        Example:
            >>> Report(patched=[Patched("op.upfirdn2d", "upfirdn2d", "rosinality", "upfirdn2d")]).paragraph()
            'patched op.upfirdn2d (upfirdn2d)'
        """
        by_module: dict[str, list[str]] = {}
        for entry in self.patched:
            by_module.setdefault(entry.module, []).append(entry.attribute)
        sentences = {
            "patched": [f"{module} ({', '.join(names)})" for module, names in by_module.items()],
            "answered the request for plugin": [p.name for p in self.plugins if p.answered],
            "passed on the request for plugin": [p.name for p in self.plugins if not p.answered],
            "left alone": [f"{module} ({reason})" for module, reason in self.left_alone],
            "stood in for": self.standins,
        }
        said = [f"{verb} {', '.join(objects)}" for verb, objects in sentences.items() if objects]
        return "; ".join(said) or "nothing to patch was imported"

    def add(self, entry: Patched | LeftAlone | PluginRequest) -> None:
        """Add an entry to its list, unless it is there already."""
        kinds: dict[type, list[Any]] = {Patched: self.patched, LeftAlone: self.left_alone, PluginRequest: self.plugins}
        entries = kinds[type(entry)]
        if entry not in entries:
            entries.append(entry)


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
