"""Builds the host harness of the CUDA kernels: python tests/native/build_harness.py asan|tsan prints where the module
is.

A build is kept under build/cuda_host, in a folder whose name is a digest of everything that it was made from.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

NATIVE = Path(__file__).resolve().parent
ROOT = NATIVE.parents[1]
# Without optimisation the harness compiles in half the time, and the tests run about as fast.
FLAGS = ["-std=c++20", "-O0", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-fPIC", "-shared", "-pthread"]
VARIANTS: dict[str, tuple[list[str], list[str], dict[str, str]]] = {  # flags, libraries to preload, environment
    "asan": (
        ["-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
        ["libasan.so", "libubsan.so", "libstdc++.so"],  # libstdc++: for the interceptor of __cxa_throw
        {"ASAN_OPTIONS": "detect_leaks=0"},  # Python's own
    ),
    "tsan": (
        ["-g1", "-fsanitize=thread"],
        ["libtsan.so"],
        {"TSAN_OPTIONS": "halt_on_error=1:exitcode=66:die_after_fork=0"},
    ),
}


def compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "g++"))


def digest_of(made_by: object, *sources: Path) -> str:
    """Digest how a build is made, its sources and the files of csrc/ and tests/native/ that these include."""
    digest, files = hashlib.sha256(repr(made_by).encode()), list(sources)
    for file in files:
        content = file.read_bytes()
        digest.update(content)
        for name in re.findall(r'^ *#include "(.+)"', content.decode(), re.MULTILINE):
            included = [folder / name for folder in (ROOT / "csrc", NATIVE)]
            files += [path for path in included if path.exists() and path not in files]
    return digest.hexdigest()[:16]


@functools.cache
def build(variant: str) -> Path:
    """Build the module `harness` unless it exists, and return its folder."""
    import pybind11

    cxx = compiler()
    assert cxx is not None, "no C++ compiler"
    includes = [NATIVE, ROOT / "csrc", pybind11.get_include(), sysconfig.get_path("include")]
    command = [cxx, *FLAGS, *VARIANTS[variant][0], *(f"-I{path}" for path in includes)]
    source = NATIVE / "harness.cpp"
    folder = ROOT / "build" / "cuda_host" / f"{variant}-{digest_of(command, source)}"
    module = folder / f"harness{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not module.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f"{os.getpid()}.so"
        subprocess.run([*command, str(source), "-o", str(partial)], check=True)
        partial.replace(module)
    return folder


def environment(variant: str) -> dict[str, str]:
    """The environment of a process that imports the module."""
    _, libraries, variables = VARIANTS[variant]
    find = [compiler() or "g++", *(f"-print-file-name={name}" for name in libraries)]
    paths = [subprocess.check_output([find[0], name], text=True).strip() for name in find[1:]]
    # numpy's threads would only be more for the sanitizer to watch, and forked processes could start none of their own.
    return {**os.environ, **variables, "LD_PRELOAD": " ".join(paths), "OPENBLAS_NUM_THREADS": "1"}


if __name__ == "__main__":
    print(build(sys.argv[1]))
