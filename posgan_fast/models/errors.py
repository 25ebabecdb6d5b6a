"""What goes wrong with a file of weights."""

from __future__ import annotations


class CheckpointError(ValueError):
    """The file or state dictionary cannot be read, or does not hold the network that was asked for."""


class UnsafeFileError(CheckpointError):
    """The file asks for a function or class that weights have no need of. Nothing of it was run."""
