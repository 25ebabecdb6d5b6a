"""What was made of a file of weights, and what goes wrong with one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


class CheckpointError(ValueError):
    """The file or state dictionary cannot be read, or does not hold the network that was asked for."""


class UnsafeFileError(CheckpointError):
    """The file asks for a function or class that weights have no need of. Nothing of it was run."""


@dataclass
class LoadReport:
    """The way of every tensor from a file into a model.

    ``str(report)`` is the summary, ``report.table()`` adds the tensors that only took another name or shape.
    """

    family: str
    network: str
    settings: dict[str, Any] = field(default_factory=dict)  # constructor arguments
    assumed: dict[str, str] = field(default_factory=dict)  # argument: why, where the tensors do not tell
    renamed: dict[str, str] = field(default_factory=dict)  # name there: names here, joined by ", "
    reshaped: dict[str, str] = field(default_factory=dict)  # name here: "[1, 3] -> [3]"
    changed: dict[str, str] = field(default_factory=dict)  # name here: what was done to the values
    filled: dict[str, str] = field(default_factory=dict)  # name here: where the values come from instead
    left: dict[str, str] = field(default_factory=dict)  # name there: why it is not used
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.settings.items())
        lines = [f"{self.family} {self.network}: {arguments}"]
        lines.append(f"  {len(self.renamed)} tensors renamed, {len(self.reshaped)} reshaped")
        for title in ("assumed", "changed", "filled", "left"):
            lines += _grouped(title, getattr(self, title))
        return "\n".join(lines + [f"  note: {note}" for note in self.notes])

    def table(self) -> str:
        """The summary, then a line for every renamed and every reshaped tensor."""
        lines = [str(self)]
        lines += [f"  renamed {there} -> {here}" for there, here in self.renamed.items()]
        return "\n".join(lines + [f"  reshaped {here}: {shapes}" for here, shapes in self.reshaped.items()])


def _grouped(title: str, entries: dict[str, str]) -> list[str]:
    """One line per reason, with the names that share it."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in entries.items():
        by_reason.setdefault(reason, []).append(name)
    lines = []
    for reason, names in by_reason.items():
        shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        lines.append(f"  {title}: {shown}: {reason}")
    return lines
