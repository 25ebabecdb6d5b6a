"""The result of an experiment: a figure, numbers as JSON and one sentence."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from ..recipes.checkpoint import replacing


def write(folder: Path, name: str, figure: Figure, numbers: dict[str, Any], sentence: str) -> None:
    """Write ``name.png`` and ``name.json`` into ``folder``, and print the sentence.

    Args:
        folder: place of the two files.
        name: name of the experiment.
        figure: the picture.
        numbers: what was measured, and the settings.
        sentence: what came out, also where it disagrees with the paper.
    """
    with replacing(folder / f"{name}.png") as file:
        figure.savefig(file, dpi=100, bbox_inches="tight", metadata={"Software": None})
    machine = {"torch": torch.__version__, "python": platform.python_version(), "machine": platform.machine()}
    content = {"experiment": name, "outcome": sentence, **numbers, "made with": machine}
    with replacing(folder / f"{name}.json", "w") as file:
        json.dump(content, file, indent=1)
        file.write("\n")
    print(sentence)
