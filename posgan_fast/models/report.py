"""The report on weights that were loaded, and the errors of files that cannot be."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


class CheckpointError(ValueError):
    """The file or state dictionary cannot be read, or does not hold the network that was asked for.

    Example:
        >>> from posgan_fast.models import load_generator
        >>> try:
        ...     load_generator({"generator": {}})
        ... except CheckpointError as error:
        ...     print(error)
        no generator among generator; pass the inner state dictionary
    """


class UnsafeFileError(CheckpointError):
    """The file asks for a function or class that weights do not need; nothing in the file was run.

    Example:
        >>> import os, pickle, tempfile
        >>> from posgan_fast.models import read_checkpoint
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = os.path.join(folder, "weights.pkl")
        ...     with open(path, "wb") as file:
        ...         pickle.dump(os.system, file)
        ...     try:
        ...         read_checkpoint(path)
        ...     except UnsafeFileError:
        ...         print("refused")
        refused
    """


@dataclass
class LoadReport:
    """Tells how every tensor of a file came into a model.

    ``str(report)`` summarises; ``report.table()`` also lists the tensors that were only renamed or reshaped.

    Example:
        >>> from posgan_fast.models import Generator, load_generator
        >>> weights = Generator(8, w_dim=16, channel_max=8, mapping_layers=1).state_dict()
        >>> weights["mapping.fc0.bias"] = weights["mapping.fc0.bias"].reshape(1, 16)
        >>> load_generator(weights).report.reshaped
        {'mapping.fc0.bias': '[1, 16] -> [16]'}
    """

    family: str
    network: str
    settings: dict[str, Any] = field(default_factory=dict)  # constructor arguments
    assumed: dict[str, str] = field(default_factory=dict)  # argument that no tensor tells: its value, or why
    renamed: dict[str, str] = field(default_factory=dict)  # name in the file: names in the model, joined by ", "
    reshaped: dict[str, str] = field(default_factory=dict)  # name in the model: "[1, 3] -> [3]"
    changed: dict[str, str] = field(default_factory=dict)  # name in the model: change of the values
    filled: dict[str, str] = field(default_factory=dict)  # name in the model: source of values that the file lacks
    left: dict[str, str] = field(default_factory=dict)  # name in the file: reason why the tensor is not used
    notes: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.settings.items())
        lines = [f"{self.family} {self.network}: {arguments}"]
        lines.append(f"  {len(self.renamed)} tensors renamed, {len(self.reshaped)} reshaped")
        for title in ("assumed", "changed", "filled", "left"):
            lines += _grouped(title, getattr(self, title))
        return "\n".join(lines + [f"  note: {note}" for note in self.notes])

    def table(self) -> str:
        """Return the summary and a line for every renamed and every reshaped tensor."""
        lines = [str(self)]
        lines += [f"  renamed {source} -> {name}" for source, name in self.renamed.items()]
        return "\n".join(lines + [f"  reshaped {name}: {shapes}" for name, shapes in self.reshaped.items()])


def _grouped(title: str, entries: dict[str, str]) -> list[str]:
    """Return one line for each reason, with the names that share it."""
    by_reason: dict[str, list[str]] = {}
    for name, reason in entries.items():
        by_reason.setdefault(reason, []).append(name)
    lines = []
    for reason, names in by_reason.items():
        shown = ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
        lines.append(f"  {title}: {shown}: {reason}")
    return lines
