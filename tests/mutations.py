"""Shows that the tests notice faults: puts each fault of mutations.toml into a copy of the tree and runs its tests.

    python tests/mutations.py [--only PATTERN] [--jobs N]

It needs an editable installation with the native library. The tests of a fault have to pass without it. The exit status
is 1 if a fault is not caught, and 2 if an entry fits the sources no longer or its tests fail by themselves.
"""

from __future__ import annotations

import argparse
import os
import queue
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import setup_script

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
SECONDS = 240  # for the tests of one fault
PASSED, FAILED = 0, 1  # exit statuses of pytest
BUILT = ("build/native", "posgan_fast/lib")


@dataclass(frozen=True)
class Mutation:
    """A single fault: ``old`` in ``file`` becomes ``new``, which ``tests``, arguments of pytest, notice."""

    name: str
    file: str
    old: str
    new: str
    tests: str
    rebuild: tuple[str, ...] = ()  # files of csrc/, without the ending, whose code the fault changes

    @property
    def defects(self) -> list[str]:
        """The reasons that keep the entry from putting one fault into today's sources and running its tests."""
        path, named = ROOT / self.file, [word for word in shlex.split(self.tests) if word.endswith(".py")]
        count = path.read_text(encoding="utf-8").count(self.old) if path.is_file() else 0
        found = [f"old occurs {count} times in {self.file}, expected once"] if count != 1 else []
        found += ["old and new are the same"] if self.old == self.new else []
        found += ["tests names no file"] if not named else []
        needed = [*named, *(f"csrc/{name}.cpp" for name in self.rebuild)]
        return found + [f"there is no {name}" for name in needed if not (ROOT / name).is_file()]


class Tree:
    """A copy of the tree, in which one fault at a time is tried."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
        for name in subprocess.check_output(listed, cwd=ROOT, text=True).splitlines():
            if (ROOT / name).is_file():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name)
        for name in BUILT:
            shutil.copytree(ROOT / name, folder / name)
        (folder / "posgan_fast" / "kernels").symlink_to(folder / "kernels")
        self.environment = os.environ | {"PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-c", "import posgan_fast.kernels; print(*posgan_fast.kernels.__path__)"]
        found = subprocess.check_output(command, cwd=folder, env=self.environment, text=True).strip()
        if found != str(folder / "posgan_fast" / "kernels"):
            raise SystemExit(f"the copy is not the package that its tests import: {found}")

    def run(self, tests: str, isa: str | None = None) -> tuple[int, str]:
        """Run tests; return pytest's exit status, and the first test that failed or pytest's last line."""
        environment = dict(self.environment)
        if "triton_interpreter" in tests:
            environment["TRITON_INTERPRET"] = "1"
        if isa is not None:
            environment["POSGAN_FAST_ISA"] = isa
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *shlex.split(tests)]
        try:
            run = subprocess.run(
                command, cwd=self.folder, env=environment, capture_output=True, text=True, timeout=SECONDS
            )
        except subprocess.TimeoutExpired:
            return -1, f"more than {SECONDS} s"
        failed = re.search(r"^FAILED (\S+)", run.stdout, re.MULTILINE)
        return run.returncode, failed[1] if failed else (run.stdout.strip() or run.stderr.strip()).splitlines()[-1]

    def try_out(self, mutation: Mutation) -> tuple[int, str]:
        """Run the tests of a fault with it; restore the tree afterwards."""
        path = self.folder / mutation.file
        original = path.read_text()
        path.write_text(original.replace(mutation.old, mutation.new))
        try:
            if mutation.rebuild:
                self._rebuild(mutation.rebuild)
            return self.run(mutation.tests, isa="baseline" if mutation.rebuild else None)
        finally:
            path.write_text(original)
            if mutation.rebuild:
                for name in BUILT:
                    shutil.copytree(ROOT / name, self.folder / name, dirs_exist_ok=True)

    def _rebuild(self, names: tuple[str, ...]) -> None:
        """Compile files of csrc/ again, for the baseline instruction set alone, and link the library."""
        setup, objects = setup_script.load(), self.folder / "build" / "native"
        torch, compiler = setup.find_torch(), setup.find_compiler()
        common = [compiler, *setup.COMMON, "-O1", "-c"]
        for name in names:
            if name.endswith("library"):
                flags, output = [*setup.STABLE_ABI, *(f"-I{path}" for path in torch["includes"])], f"{name}.o"
            else:
                flags, output = [*setup.MATH, "-DPF_ISA=baseline"], f"{name}_baseline.o"
            source = self.folder / "csrc" / f"{name}.cpp"
            subprocess.run([*common, *flags, str(source), "-o", str(objects / output)], check=True)
        inputs = [str(path) for path in objects.glob("*.o") if not path.stem.endswith("_cuda")]
        library = self.folder / "posgan_fast" / "lib" / "libposgan_fast_cpu.so"
        subprocess.run(
            [compiler, "-shared", "-o", str(library), *inputs, f"-L{torch['lib']}", "-ltorch_cpu"], check=True
        )


def read() -> list[Mutation]:
    """Return the entries of mutations.toml."""
    entries = tomllib.loads((ROOT / "tests" / "mutations.toml").read_text(encoding="utf-8"))["mutation"]
    return [Mutation(**entry | {"rebuild": tuple(entry.get("rebuild", ()))}) for entry in entries]


def main() -> int:
    parser = argparse.ArgumentParser(description="Shows that the tests notice faults.")
    parser.add_argument("--only", default="", metavar="PATTERN", help="regular expression in the name or the file")
    parser.add_argument("--jobs", type=int, default=2, metavar="N", help="faults that are tried side by side")
    options = parser.parse_args()
    mutations = read()
    stale = [m for m in mutations if m.defects]
    for m in stale:
        print(f"stale       {m.name}: {'; '.join(m.defects)}")
    if stale or len({m.name for m in mutations}) < len(mutations):
        print("an entry is stale, or two have one name")
        return 2
    mutations = [m for m in mutations if re.search(options.only, f"{m.name} {m.file}")]
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="mutations-") as folder, ThreadPoolExecutor(options.jobs) as pool:
        trees: queue.SimpleQueue[Tree] = queue.SimpleQueue()
        for index in range(options.jobs):
            trees.put(Tree(Path(folder) / str(index)))

        def in_a_tree(work):
            tree = trees.get()
            try:
                return work(tree)
            finally:
                trees.put(tree)

        selections = list(dict.fromkeys(m.tests for m in mutations))
        broken = 0
        for tests, (status, line) in zip(
            selections, pool.map(lambda tests: in_a_tree(lambda tree: tree.run(tests)), selections), strict=True
        ):
            if status != PASSED:
                broken += 1
                print(f"fails by itself  {tests}: {line}", flush=True)
        if broken:
            return 2
        print(f"{len(selections)} selections pass without a fault, {time.monotonic() - begun:.0f} s", flush=True)
        missed = 0
        results = pool.map(lambda m: in_a_tree(lambda tree: tree.try_out(m)), mutations)
        for m, (status, line) in zip(mutations, results, strict=True):
            missed += status != FAILED
            verdict = {PASSED: "NOT CAUGHT", FAILED: "caught"}.get(status, "BROKEN")
            print(f"{verdict:11} {m.name}: {line}", flush=True)
    print(f"{len(mutations)} faults, {missed} not caught, {time.monotonic() - begun:.0f} s")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
