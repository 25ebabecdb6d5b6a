"""Loading networks whose own names and shapes of state a file has: settings from the shapes, then every tensor."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

import torch

from .conversion import State, check_weight
from .report import CheckpointError, LoadReport

_COUNTER = "num_batches_tracked"


def check_overrides(overrides: Mapping[str, Any], network: type) -> None:
    """Require that every override is an argument of the network."""
    accepted = list(inspect.signature(network).parameters)
    for name in overrides:
        if name not in accepted:
            raise TypeError(f"{name}: expected an argument of {network.__name__}, one of {', '.join(accepted)}")


def plain_state(state: Mapping[Any, Any]) -> State:
    """Return the tensors of a state, or refuse those that are no weights and count no batches."""
    found = {}
    for name, value in state.items():
        counts = isinstance(value, torch.Tensor) and value.dtype in (torch.int32, torch.int64) and not value.is_meta
        if not isinstance(name, str) or not name.endswith(_COUNTER) or not counts:
            check_weight(name, value)
        found[name] = value.detach()
    return found


class Tensors:
    """The tensors of a file, which settings are read from."""

    def __init__(self, state: State) -> None:
        self.state = state

    def shape(self, name: str, ndim: int) -> tuple[int, ...]:
        value = self.state.get(name)
        if value is None:
            raise CheckpointError(f"state: {name} is missing")
        if value.ndim != ndim or 0 in value.shape:
            raise CheckpointError(f"{name}: expected {ndim} dimensions, none empty, got shape {list(value.shape)}")
        return tuple(value.shape)

    def count(self, name: str, step: int = 1) -> int:
        """Count the numbers i = 0, step, 2 * step, ... for which there is a tensor ``name.format(i=i)``, to the first
        that has none."""
        return next(i for i in range(len(self.state) + 1) if name.format(i=step * i) not in self.state)


def build(
    network: type, state: State, inferred: dict[str, Any], overrides: Mapping[str, Any], report: LoadReport
) -> Any:
    """Build the network from its settings and load every tensor; return it in eval mode, with its report.

    Raises:
        CheckpointError: the settings or the tensors contradict each other.
    """
    report.settings = inferred | dict(overrides)
    report.assumed = {name: why for name, why in report.assumed.items() if name not in overrides}
    try:
        with torch.device("meta"):  # sizes that do not fit together may ask for more memory than there is
            sizes = network(**report.settings).state_dict()
    except ValueError as error:
        raise CheckpointError(f"state: the tensors tell {_told(inferred)}: {error}") from None
    _compare(network, sizes, state, inferred, overrides, report)
    model = network(**report.settings)
    model.load_state_dict(state, strict=True)
    model.report = report
    return model.eval()


def differences(own: Mapping[str, torch.Tensor], state: State, report: LoadReport) -> list[str]:
    """List what keeps ``state`` from replacing ``own``; counters of batches that the state lacks become zero."""
    for name in [name for name in own if name.endswith(_COUNTER) and name not in state]:
        report.filled[name] = "zero; the file does not count batches"
        state[name] = torch.zeros((), dtype=torch.int64)
    wrong = [f"{name} is missing" for name in own if name not in state]
    wrong += [f"{name} is no part of it" for name in state if name not in own]
    return wrong + [
        f"{name}: expected shape {list(value.shape)}, got {list(state[name].shape)}"
        for name, value in own.items()
        if name in state and state[name].shape != value.shape
    ]


def listed(wrong: list[str]) -> str:
    """Join the first of many differences."""
    return "; ".join(wrong[:4]) + (f" and {len(wrong) - 4} more" if len(wrong) > 4 else "")


def _compare(
    network: type,
    own: Mapping[str, torch.Tensor],
    state: State,
    inferred: dict[str, Any],
    overrides: Mapping[str, Any],
    report: LoadReport,
) -> None:
    """Require that names and shapes of ``state`` are those of the network."""
    wrong = differences(own, state, report)
    if wrong:
        against = [
            f"{name}: expected {inferred[name]!r}, which the tensors tell, got {value!r}"
            for name, value in overrides.items()
            if name in inferred and inferred[name] != value
        ]
        some = "; ".join(against) or listed(wrong)
        raise CheckpointError(f"state: does not fit into {network.__name__}({_told(inferred)}): {some}")


def _told(settings: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in settings.items())
