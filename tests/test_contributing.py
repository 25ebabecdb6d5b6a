"""CONTRIBUTING.md is true: its paths exist, and its lists have every file that an op, a dtype or a family has today."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
from tolerances import TOLERANCES

from posgan_fast import backend, integrations
from posgan_fast import functional as PF
from posgan_fast.models.conversion import SIGNATURES
from posgan_fast.models.families import FAMILIES as CHECKPOINTS
from posgan_fast.ops.common import checks

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
SECTIONS = {part.partition("\n")[0]: part for part in re.split(r"^##+ ", TEXT, flags=re.MULTILINE)[1:]}
ENCODINGS = {"cartesian_grid2d", "sinusoidal_encoding2d"}  # calls of prologue2d, without kernels of their own
OPS = sorted({function.__module__.split(".")[2] for function, _ in PF.OPS.values()} - ENCODINGS)
# The kernel of conv2d is winograd3x3, or torch's own.
ABSENT = {f"csrc/conv2d{end}" for end in (".h", ".cpp", "_library.cpp", "_*", ".cuh", ".cu")}
ABSENT |= {"kernels/conv2d.py", "kernels/conv2d*.py", "tests/triton_interpreter_conv2d.py"}
WORDS = {"op": OPS, "backend": list(backend.BACKENDS), "family": list(integrations.FAMILIES)}
SUFFIXES = (".py", ".h", ".hpp", ".cpp", ".cu", ".cuh")


def paths(title: str) -> list[str]:
    """The paths that a section names, spelled out for every op, backend and family of their placeholders."""
    named = re.findall(r"`([\w<>./*-]+)`", SECTIONS[title])
    return [path for name in named if "/" in name or name.endswith((".py", ".md", ".toml")) for path in _spelled(name)]


def _spelled(path: str) -> list[str]:
    for name, words in WORDS.items():
        if f"<{name}>" in path:
            return [path.replace(f"<{name}>", word) for word in words]
    return [path]


def exists(path: str) -> bool:
    """Whether there is such a file, or a package in place of the module."""
    return any(ROOT.glob(path)) or (path.endswith(".py") and (ROOT / path[:-3] / "__init__.py").exists())


def sources() -> dict[str, str]:
    """Text by path: sources, and what tests share; a single test needs no line in a list."""
    folders = ("csrc", "kernels", "posgan_fast", "benchmarks", "tests/native", "tests/contract")
    found = [path for folder in folders for path in (ROOT / folder).rglob("*")]
    found += [path for path in (ROOT / "tests").glob("*.py") if not path.name.startswith(("test_", "triton_"))]
    kept = [path for path in found if path.suffix in SUFFIXES]
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in kept}


def unnamed(files: list[str], title: str) -> list[str]:
    """Those of ``files`` that the section does not name, by itself or by the module that a package replaces."""
    named = paths(title)
    return [f for f in files if not any(fnmatch(f, p) or f.startswith(p.removesuffix(".py") + "/") for p in named)]


def listed(title: str, label: str) -> list[str]:
    """The words in the sentence of a section that begins with ``label``."""
    return re.findall(r"`(\w+)`", re.search(rf"^{label}(.*?)\.$", SECTIONS[title], re.MULTILINE | re.DOTALL)[1])


@pytest.mark.parametrize("title", SECTIONS)
def test_every_path_exists(title):
    assert [path for path in paths(title) if not exists(path) and path not in ABSENT] == []


def test_the_exceptions_are_exceptions():
    assert not any(exists(path) for path in ABSENT)
    for name in ENCODINGS:
        assert PF.OPS[name][1] is PF.OPS["prologue2d"][1]
        assert name in SECTIONS["Add an op"] and not exists(f"kernels/{name}.py")


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)#]+)\)", TEXT)
    assert links and [link for link in links if not (ROOT / link).exists()] == []


def test_make_has_the_targets():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^make ([\w-]+)", TEXT, re.MULTILINE))
    assert targets and [name for name in targets if not re.search(rf"^{name}:", makefile, re.MULTILINE)] == []


def test_an_op_has_no_other_file_of_its_name():
    names = re.compile(rf"(test_)?({'|'.join(OPS)})(_\w+)?")
    tests = [path.relative_to(ROOT).as_posix() for path in (ROOT / "tests").glob("test_*.py")]
    files = [file for file in (*sources(), *tests) if names.fullmatch(Path(file).stem)]
    assert len(files) > 5 * len(OPS)
    assert unnamed(files, "Add an op") == []


def test_no_other_file_has_a_line_for_each_op():
    def has_lines(text: str) -> bool:
        names = (*OPS, "modulated_weight")
        return sum(re.search(rf"(?<![a-z])(?<!modulated_){op}", text) is not None for op in names) >= 5

    files = [file for file, text in sources().items() if has_lines(text)]
    assert {"csrc/cpu_kernels.h", "tests/tolerances.py", "posgan_fast/functional.py"} <= set(files)
    assert unnamed(files, "Add an op") == []


def test_backends():
    assert listed("Add a backend", "The backends, in order of preference:") == list(backend.BACKENDS)
    assert all(callable(getattr(backend, f"{name}_can_run")) for name in backend.BACKENDS)
    for _, impls in PF.OPS.values():
        assert [impl.backend for impl in impls] == list(backend.BACKENDS)


def test_dtypes():
    dtypes = [getattr(torch, name) for name in listed("Add a dtype", "The dtypes:")]
    assert dtypes == list(checks.FLOATS)
    algorithm = ("winograd3x3", torch.float32)  # of two ops
    assert set(TOLERANCES) == {(op, dtype) for op in OPS for dtype in dtypes} | {algorithm}


def test_no_other_file_has_a_line_for_each_dtype():
    half = (r"torch\.float16\b|\"float16\"|\bHalf\b", r"torch\.bfloat16\b|\"bfloat16\"|\bBFloat16\b")
    files = [file for file, text in sources().items() if all(re.search(pattern, text) for pattern in half)]
    assert {"csrc/scalar.h", "posgan_fast/ops/common/checks.py"} <= set(files)
    assert unnamed(files, "Add a dtype") == []


def test_families():
    assert listed("Add a family of checkpoints", "The families:") == list(CHECKPOINTS)
    for network in ("generator", "discriminator"):  # of StyleGAN2; other networks have one published form
        assert {family for family, _ in SIGNATURES[network]} == set(CHECKPOINTS)
    assert listed("Add a family of foreign code", "The families:") == list(integrations.FAMILIES)


def test_no_other_file_has_a_line_for_each_family():
    def has_lines(text: str) -> bool:
        return sum(f'"{family}"' in text or f"``{family}``" in text for family in CHECKPOINTS) >= 4

    files = [file for file, text in sources().items() if has_lines(text)]
    assert {"posgan_fast/models/families.py", "posgan_fast/models/conversion.py"} <= set(files)
    assert unnamed(files, "Add a family of checkpoints") == []
