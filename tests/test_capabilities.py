"""The table of what works, docs/capabilities.md: every cell is decided by running it.

``python tests/test_capabilities.py`` writes the file anew, all of it. The test compares what it can decide quickly,
and with ``--slow`` the rest: the columns of ONNX Runtime and AOTInductor.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import test_export
import test_transforms
import torch
import torch.distributed as dist
from capability_cases import NETWORKS, OPS
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

pytestmark = pytest.mark.usefixtures("one_thread")

DOCUMENT = Path(__file__).parents[1] / "docs" / "capabilities.md"
ROWS = [*OPS, *NETWORKS]


class _Op(torch.nn.Module):
    """An op as a module, in float32."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.function = OPS[name].function

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        return self.function(*inputs)


def _subject(name: str) -> tuple[torch.nn.Module, tuple[torch.Tensor, ...]]:
    if name in OPS:
        return _Op(name), tuple(t.float() for t in OPS[name].inputs)
    return NETWORKS[name].module(), NETWORKS[name].inputs(1)


def _curve(name: str) -> test_transforms.Curve:
    """All inputs move; of a network in float64."""
    if name in OPS:
        case = OPS[name]
    else:
        case = test_transforms.Case(NETWORKS[name].module().double(), NETWORKS[name].inputs(1, torch.float64))
    return test_transforms.Curve(case, list(range(len(case.inputs))))


def _export(name: str) -> None:
    if name in NETWORKS:
        return test_export.check_export(NETWORKS[name])
    module, inputs = _subject(name)
    program = torch.export.export(module, inputs)
    assert test_export.kernels(program.graph)
    decomposed = program.run_decompositions()
    assert not test_export.kernels(decomposed.graph)
    for either in (program, decomposed):
        test_export.close(either.module()(*inputs), module(*inputs), 1e-5)


def _onnx(name: str) -> None:
    if name in NETWORKS:
        with tempfile.TemporaryDirectory() as folder:
            return test_export.check_onnx(NETWORKS[name], Path(folder) / "model.onnx", dynamo=True)
    module, inputs = _subject(name)
    program = torch.onnx.export(module, inputs, dynamo=True, verbose=False)
    test_export.close(program(*inputs)[0], module(*inputs), 1e-4)


def _aot_inductor(name: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt2"
        if name in NETWORKS:
            return test_export.check_aot_inductor(NETWORKS[name], path, decomposed=False)
        module, inputs = _subject(name)
        package = torch._inductor.aoti_compile_and_package(torch.export.export(module, inputs), package_path=str(path))
        test_export.close(torch._inductor.aoti_load_package(package)(*inputs), module(*inputs), 1e-5)


def _gradients(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], of: Callable | None = None) -> list:
    inputs = tuple(t.clone().requires_grad_() for t in inputs)
    module.zero_grad()
    y = (module if of is None else of)(*inputs)
    y.float().square().sum().backward()
    found = [t.grad for t in (*inputs, *module.parameters()) if t.grad is not None]
    return [y.detach(), *(g.full_tensor() if hasattr(g, "full_tensor") else g for g in found)]


def _agree(actual: list, expected: list, tolerance: float = 1e-4) -> None:
    for a, b in zip(actual, expected, strict=True):
        scale = max(float(b.abs().max()), 1.0)
        test_export.close(a.float() / scale, b.float() / scale, tolerance)


def _compile(name: str) -> None:
    torch.compiler.reset()
    module, inputs = _subject(name)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    _agree(_gradients(module, inputs, compiled), _gradients(module, inputs))


def _autocast(name: str) -> None:
    module, inputs = _subject(name)
    expected = _gradients(module, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        actual = _gradients(module, inputs)
    for a, b in zip(actual, expected, strict=True):
        assert (a.float() - b.float()).norm() <= 0.1 * b.float().norm()


def _trace(name: str) -> None:
    module, inputs = _subject(name)
    test_export.check_trace(module, inputs, tuple(-t for t in inputs))


def _distributed(name: str, wrap: Callable) -> None:
    if name in OPS:
        raise NotApplicable
    expected = _gradients(*_subject(name))
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        module, inputs = _subject(name)
        _agree(_gradients(module, inputs, wrap(module)), expected)
    finally:
        dist.destroy_process_group()


def _ddp(name: str) -> None:
    _distributed(name, torch.nn.parallel.DistributedDataParallel)


def _fsdp(name: str) -> None:
    def sharded(module: torch.nn.Module) -> torch.nn.Module:
        scalars = {p for p in module.parameters() if p.ndim == 0}  # which fully_shard refuses
        return fully_shard(module, mesh=init_device_mesh("cpu", (1,)), ignored_params=scalars)

    _distributed(name, sharded)


class NotApplicable(Exception):
    """An op has no parameters to distribute."""


COLUMNS: dict[str, Callable[[str], None]] = {
    "torch.func": lambda name: test_transforms.check_reverse(_curve(name)),
    "forward mode": lambda name: test_transforms.check_forward(_curve(name)),
    "batched gradients": lambda name: test_transforms.check_batched(_curve(name)),
    "torch.export": _export,
    "ONNX Runtime": _onnx,
    "AOTInductor": _aot_inductor,
    "torch.compile": _compile,
    "autocast": _autocast,
    "jit.trace": _trace,
    "DDP": _ddp,
    "FSDP2": _fsdp,
}
SLOW = ("ONNX Runtime", "AOTInductor")


def cell(row: str, column: str) -> str:
    """What running it shows: "yes", "no" (the reason is printed) or, where there is nothing to run, a dash."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            COLUMNS[column](row)
        except NotApplicable:
            return "-"
        except Exception as error:
            print(f"{row}, {column}: {type(error).__name__}: {str(error)[:300]}")
            return "no"
    return "yes"


def document() -> str:
    head = f"| | {' | '.join(COLUMNS)} |\n|{'---|' * (len(COLUMNS) + 1)}\n"
    rows = [f"| {row} | {' | '.join(cell(row, column) for column in COLUMNS)} |\n" for row in ROWS]
    return _INTRODUCTION + head + "".join(rows)


def committed() -> dict[tuple[str, str], str]:
    """The cells of the file, by row and column."""
    lines = [line for line in DOCUMENT.read_text(encoding="utf-8").splitlines() if line.startswith("|")]
    head, _, *rows = [[part.strip() for part in line.strip("|").split("|")] for line in lines]
    return {(row[0], column): value for row in rows for column, value in zip(head[1:], row[1:], strict=True)}


@pytest.mark.parametrize("column", [pytest.param(c, marks=[pytest.mark.slow] if c in SLOW else []) for c in COLUMNS])
def test_the_committed_column_is_what_runs(column):
    kept = committed()
    assert {row: cell(row, column) for row in ROWS} == {row: kept.get((row, column)) for row in ROWS}


def test_the_committed_table_has_every_row_and_column():
    assert list(committed()) == [(row, column) for row in ROWS for column in COLUMNS]
    assert DOCUMENT.read_text(encoding="utf-8").startswith(_INTRODUCTION)


def test_everything_works_that_applies():
    """A cell may not be turned into "no" by writing the file anew."""
    for (row, column), value in committed().items():
        assert value == ("-" if row in OPS and column in ("DDP", "FSDP2") else "yes"), (row, column)


_INTRODUCTION = """# What works with what

`python tests/test_capabilities.py` wrote this table: each cell is decided by running it, on the CPU, and
`tests/test_capabilities.py` fails when a cell is not true any more. The columns "ONNX Runtime" and "AOTInductor" are
checked with `pytest --slow`.

- torch.func: `vjp`, `grad`, `jacrev`, and `vmap` of these and under them, in float64 to 1e-12; forward mode: `jvp`,
  `jacfwd`, `hessian`, dual tensors; batched gradients: `is_grads_batched=True` and `jacobian(vectorize=True)`.
- torch.export: the graph keeps the kernels, and `run_decompositions()` leaves none. A saved program with kernels needs
  `import posgan_fast` before `torch.export.load`, a decomposed one does not.
- ONNX Runtime: `torch.onnx.export(dynamo=True)`; networks with batches of several sizes.
- AOTInductor: of the program as exported, with the kernels. torch.compile: `fullgraph=True`, with gradients.
- autocast: bfloat16, values and gradients within 10 % of float32. DDP, FSDP2: gradients as of the plain module; with
  FSDP2 the scalar parameters stay whole, as `help(posgan_fast.models.Generator)` shows.
- `bias_act_` under `vmap`: torch writes over no tensor that lacks the mapped dimension; map `x` too, or use `bias_act`.

"""

if __name__ == "__main__":
    torch.set_num_threads(1)
    DOCUMENT.write_text(document(), encoding="utf-8")
