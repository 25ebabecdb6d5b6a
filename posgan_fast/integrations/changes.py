"""Changes to attributes that can be undone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class Changes:
    """A list of changes, and the way back: :meth:`undo` takes them back last first."""

    def __init__(self) -> None:
        self._undo: list[Callable[[], None]] = []

    def put(self, holder: Any, name: str, value: Any) -> None:
        """Set an attribute. While ``value`` stands, :meth:`undo` restores the earlier one.

        An attribute that ``holder`` itself did not have is deleted.
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

    def then(self, undo: Callable[[], None]) -> None:
        """Record how to take back a change that is no attribute."""
        self._undo.append(undo)

    def undo(self) -> None:
        while self._undo:
            self._undo.pop()()
