"""Reversible changes to modules, classes and registries."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Changes:
    """A list of changes that :meth:`undo` reverts, the last one first.

    Example:
        >>> import math
        >>> changes = Changes()
        >>> changes.put(math, "pi", 3)
        >>> changes.undo()
        >>> math.pi
        3.141592653589793
    """

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def put(self, holder: Any, name: str, value: Any) -> None:
        """Set an attribute of a module or class.

        :meth:`undo` restores the earlier value, or deletes an attribute that ``holder`` itself did not have. An
        attribute that somebody else has replaced since stays as it is.
        """
        own = vars(holder)
        had, earlier = name in own, own.get(name)

        def undo() -> None:
            if vars(holder).get(name) is not value:
                return
            if had:
                setattr(holder, name, earlier)
            else:
                delattr(holder, name)

        setattr(holder, name, value)
        self._undo.append(undo)

    def on_undo(self, revert: Callable[[], None]) -> None:
        """Record how to revert a change that is no attribute, such as an entry in a registry."""
        self._undo.append(revert)

    def undo(self) -> None:
        """Revert all changes recorded so far, the last one first."""
        while self._undo:
            self._undo.pop()()
