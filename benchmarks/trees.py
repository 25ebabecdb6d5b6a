"""The two source trees of a comparison: the working tree, and a git revision or another checkout.

Each is built into a folder under ``build/base`` and imported from there. The folder of a base stays there, named after
its commit (or, for a checkout, a digest of its sources), its native library and torch's version, so that a second run
builds nothing.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from . import ROOT, builds, harness

BUILDS = ROOT / "build" / "base"
PACKAGE = "posgan_fast"
# The sources of a package that setup.py reads, as far as a tree has them.
SOURCES = (PACKAGE, "kernels", "csrc", "setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in")


class TreeError(Exception):
    """The reason why a tree cannot be compared."""


class Tree(NamedTuple):
    """A built tree: ``folder`` holds the package, ``library`` names its native library ("" in pure Python)."""

    name: str
    commit: str | None
    dirty: bool | None
    folder: Path
    library: str

    @property
    def label(self) -> str:
        commit = self.commit[:12] if self.commit else "no known commit"
        return f"{self.name} ({commit}{', with changes' if self.dirty else ''})"

    def as_json(self) -> dict[str, Any]:
        return {"name": self.name, "commit": self.commit, "dirty": self.dirty, "library": self.library}


@contextlib.contextmanager
def working_tree(device: str) -> Iterator[Tree]:
    """Build the working tree for the time of the block; objects whose sources did not change are not compiled again.

    Args:
        device: "cpu" or "cuda", the device whose native library is built, unless the environment forbids it.

    Raises:
        TreeError: the build failed.
    """
    BUILDS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="here-", dir=BUILDS, ignore_cleanup_errors=True) as name:
        _build(ROOT, Path(name), builds.environment(device, None), "the working tree")
        record = _record(Path(name), device)
        if not record.get("built"):
            note(f"{device} library of the working tree: {record.get('reason')}; the base is not given one either")
        library = device if record.get("built") else ""
        yield Tree("working tree", harness.commit(ROOT), harness.is_dirty(ROOT), Path(name), library)


def base_tree(wanted: str, device: str, native: bool) -> Tree:
    """Build a git revision or the checkout at a path, unless an earlier run did.

    Args:
        wanted: the revision, or the path of a folder that holds setup.py and posgan_fast/.
        device: "cpu" or "cuda".
        native: whether to build the native library of the device; False: build a pure Python package.

    Raises:
        TreeError: there is no such revision or checkout, or it has no native library though ``native`` asks for one.
    """
    library = device if native else ""
    path = Path(wanted).expanduser().resolve()
    commit: str | None
    if (path / PACKAGE).is_dir() and (path / "setup.py").is_file():
        commit, dirty = harness.commit(path), harness.is_dirty(path)
        key, sources = f"checkout-{_digest(path)}", _copy(path)
    else:
        key = commit = _resolve(wanted)
        dirty, sources = False, _worktree(commit)
    folder = BUILDS / f"{key}-{library or 'python'}-torch-{torch.__version__}"
    if not (folder / PACKAGE).is_dir():
        with _whole(folder) as target, sources as source:
            _build(source, target, builds.environment(device, "1" if native else "0"), f"base {wanted}")
            record = _record(target, device)
            if native and not record.get("built"):
                raise TreeError(
                    f"base {wanted} has no native library for {device}, the working tree has one:"
                    f" {record.get('reason', 'its setup.py builds none')}; set {builds.VARIABLES[device]}=0 to compare"
                    " both without"
                )
    return Tree(wanted, commit, dirty, folder, library)


def _resolve(revision: str) -> str:
    """The commit of a revision of the repository around the working tree."""
    top = harness.output("git", "-C", str(ROOT), "rev-parse", "--show-toplevel")
    if top is None or Path(top).resolve() != ROOT:
        raise TreeError(
            f"expected the path of a checkout of posgan_fast, got {revision!r}; revisions are known in a git checkout"
            " only, and the working tree is none"
        )
    commit = harness.output("git", "-C", str(ROOT), "rev-parse", "--verify", "--quiet", "--end-of-options",
                            f"{revision}^{{commit}}")  # fmt: skip
    if commit is None:
        raise TreeError(
            f"expected a git revision, or the path of a checkout with setup.py and {PACKAGE}/, got {revision!r}"
        )
    return commit


@contextlib.contextmanager
def _worktree(commit: str) -> Iterator[Path]:
    """Check a commit out beside the repository, and take it away again however the block ends."""
    git = ["git", "-C", str(ROOT), "worktree"]
    with tempfile.TemporaryDirectory(prefix="base-", ignore_cleanup_errors=True) as name:
        source = Path(name) / "tree"
        try:
            done = subprocess.run(
                [*git, "add", "--detach", "--quiet", str(source), commit], capture_output=True, text=True
            )
            if done.returncode != 0:
                raise TreeError(f"git worktree add failed: {_last_line(done.stderr)}")
            yield source
        finally:
            subprocess.run([*git, "remove", "--force", str(source)], capture_output=True)
            shutil.rmtree(source, ignore_errors=True)  # what a compiler wrote after an interruption
            subprocess.run([*git, "prune"], capture_output=True)


@contextlib.contextmanager
def _copy(checkout: Path) -> Iterator[Path]:
    """Copy the sources of a checkout, so that its build writes nothing into it."""
    with tempfile.TemporaryDirectory(prefix="base-", ignore_cleanup_errors=True) as name:
        for path in _sources(checkout):
            target = Path(name) / path.relative_to(checkout)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
        yield Path(name)


@contextlib.contextmanager
def _whole(folder: Path) -> Iterator[Path]:
    """A new folder that takes the place of ``folder`` if the block succeeds."""
    BUILDS.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f"{folder.name}-", dir=BUILDS, ignore_cleanup_errors=True) as name:
        made = Path(name) / "made"
        made.mkdir()
        yield made
        shutil.rmtree(folder, ignore_errors=True)
        made.rename(folder)


def _build(source: Path, folder: Path, environment: dict[str, str], name: str) -> None:
    note(f"building {name} ...")
    process = subprocess.Popen(
        builds.command(folder), cwd=source, env={**os.environ, **environment}, stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        errors = process.communicate()[1]
    except BaseException:  # an interruption, which must end the compilers too
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    if process.returncode != 0:
        raise TreeError(f"{name} does not build: {_last_line(errors)}")


def _record(folder: Path, library: str) -> dict[str, Any]:
    """The record that the build made of a library; empty if it made none."""
    try:
        return json.loads((folder / PACKAGE / "lib" / "build.json").read_text())[library]
    except (OSError, ValueError, KeyError):
        return {}


def _sources(checkout: Path) -> list[Path]:
    """The source files of a checkout, in order; those that a build left there are not among them."""
    roots = [checkout / name for name in SOURCES]
    files = [path for root in roots for path in ([root] if root.is_file() else sorted(root.rglob("*")))]
    built = checkout / PACKAGE / "lib"
    return [p for p in files if p.is_file() and "__pycache__" not in p.parts and built not in p.parents]


def _digest(checkout: Path) -> str:
    digest = hashlib.sha256()
    for path in _sources(checkout):
        digest.update(f"{path.relative_to(checkout)}\n".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def note(line: str) -> None:
    """Tell progress on standard error: standard output is for the results."""
    print(line, file=sys.stderr, flush=True)


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "it said nothing"
