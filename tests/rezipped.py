"""Files of torch with something else written in their pickle."""

from __future__ import annotations

import io
import zipfile
from typing import Any

import torch


def rezipped(value: Any, old: bytes, new: bytes) -> io.BytesIO:
    """Save ``value`` with torch and replace ``old``, which the pickle must hold, by ``new``."""
    saved, changed = io.BytesIO(), io.BytesIO()
    torch.save(value, saved)
    with zipfile.ZipFile(saved) as before, zipfile.ZipFile(changed, "w", zipfile.ZIP_STORED) as after:
        for name in before.namelist():
            data = before.read(name)
            assert old in data or not name.endswith("data.pkl")
            after.writestr(name, data.replace(old, new))
    changed.seek(0)
    return changed
