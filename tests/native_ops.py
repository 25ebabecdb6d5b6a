"""Native ops replaced by faulty ones, for tests which show that a fault is seen."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from posgan_fast import _native


def spoil(
    monkeypatch: pytest.MonkeyPatch, name: str, fault: Callable[[Callable[[], None], torch.Tensor], None]
) -> None:
    """Let ``fault(run, y)`` stand for the native op: ``run()`` is the true kernel, ``y`` the tensor that it writes."""
    assert _native.load(_native.CPU).loaded
    namespace: Any = torch.ops.posgan_fast_native
    kernel = getattr(namespace, name)
    arguments = kernel.default._schema.arguments
    written = [i for i, a in enumerate(arguments) if a.alias_info is not None and a.alias_info.is_write]

    def faulty(*args: Any) -> None:
        y = next(args[i] for i in reversed(written) if args[i] is not None)
        fault(lambda: kernel(*args), y)

    monkeypatch.setattr(namespace, name, faulty)
