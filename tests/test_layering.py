"""Imports point down: cli, experiments, recipes, integrations, models, nn, functional, ops, and below these."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
# The rooms that a module may import from, besides itself and outside packages.
ALLOWED = {
    "_native": set(),
    "_allocator": set(),
    "algorithm": set(),
    "backend": {"_native"},
    "kernels": set(),
    "ops": {"algorithm", "backend", "_native", "kernels"},
    "functional": {"ops", "backend"},
    "nn": {"functional", "ops", "backend"},
    "models": {"nn", "functional", "ops", "backend"},
    "graphed": {"models", "ops"},
    "integrations": {"models", "nn", "functional", "ops", "backend"},
    "experiments": {"recipes", "models", "nn", "functional", "ops"},
    "recipes": {"models", "nn", "functional", "ops"},
    "run": {"integrations", "backend", "_allocator"},
    "cli": {"experiments", "recipes", "integrations", "models", "backend", "run", "demo", "doctor"},
    "demo": {"experiments", "integrations", "functional", "backend", "_native"},
    "doctor": {"functional", "ops", "backend", "_native"},
    "__main__": {"cli"},
    "__init__": {"algorithm", "functional", "graphed", "backend", "integrations", "_allocator"},
}


def test_imports_point_down():
    files = [(p, p.relative_to(ROOT / "posgan_fast").parts) for p in (ROOT / "posgan_fast").rglob("*.py")]
    files += [(p, ("kernels", p.name)) for p in (ROOT / "kernels").rglob("*.py")]
    assert len(files) > 10
    for path, parts in files:
        room = parts[0].removesuffix(".py")
        for target in _internal_imports(path, ("posgan_fast", *parts[:-1])):
            if target != room and target:
                assert target in ALLOWED[room], f"{path.relative_to(ROOT)} imports {target}"


def test_kernels_import_torch_and_triton_only():
    allowed = {"__future__", "torch", "triton", "typing", "dataclasses", "functools", "math", "collections"}
    for path in (ROOT / "kernels").glob("*.py"):
        names = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                names |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                names.add(node.module.split(".")[0])
        assert names <= allowed, path


def test_native_code_knows_no_python():
    for path in (ROOT / "csrc").iterdir():
        text = path.read_text()
        assert "Python.h" not in text and "pybind" not in text, path
        if path.suffix in (".h", ".cuh"):
            assert "torch/" not in text, path


def test_submodules_are_imported_when_they_are_asked_for():
    """README writes ``posgan_fast.nn`` after ``import posgan_fast`` alone, which imports the ops only."""
    program = """if True:
        import sys
        import posgan_fast
        later = ("models", "nn", "recipes")
        assert not {f"posgan_fast.{name}" for name in later} & sys.modules.keys()
        assert set(later) <= set(dir(posgan_fast)) and "posgan_fast.nn" not in sys.modules
        posgan_fast.nn.StyleConv, posgan_fast.models.Generator, posgan_fast.recipes.codes
        try:
            posgan_fast.layers
        except AttributeError as error:
            assert "module 'posgan_fast' has no attribute 'layers'" in str(error)
        else:
            raise AssertionError
    """
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)


def _internal_imports(path: Path, package: tuple[str, ...]) -> set[str]:
    """First component below posgan_fast of everything the file imports from it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            if node.level:
                base = package[: len(package) - node.level + 1]
                full = base + tuple((node.module or "").split(".") if node.module else ())
            else:
                full = tuple((node.module or "").split("."))
            if full[:1] == ("posgan_fast",):
                found |= {full[1]} if len(full) > 1 else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("posgan_fast.")}
    return found
