"""Networks, and the readers of their weights."""

from __future__ import annotations

from .errors import CheckpointError, UnsafeFileError

__all__ = ["CheckpointError", "UnsafeFileError"]
