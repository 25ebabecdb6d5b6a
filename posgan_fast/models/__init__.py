"""Networks, and the readers of their weights."""

from __future__ import annotations

from .report import CheckpointError, UnsafeFileError

__all__ = ["CheckpointError", "UnsafeFileError"]
