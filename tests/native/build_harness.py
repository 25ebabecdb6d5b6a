"""Builds the host harness of the CUDA kernels: python tests/native/build_harness.py plain|asan|tsan prints
where the module is.

A build is kept under build/cuda_host, in a folder named by everything it was made from.
"""

from __future__ import annotations

import functools
import hashlib
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

NATIVE = Path(__file__).resolve().parent
ROOT = NATIVE.parents[1]
# No optimisation: the kernels' arithmetic needs none at these sizes, and it doubles the time to compile.
FLAGS = ["-std=c++20", "-O0", "-Wall", "-Wextra", "-Werror", "-Wno-unknown-pragmas", "-fPIC", "-shared", "-pthread"]
VARIANTS: dict[str, tuple[list[str], list[str], dict[str, str]]] = {  # flags, libraries to preload, environment
    "plain": ([], [], {}),
    "asan": (
        ["-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"],
        ["libasan.so", "libubsan.so", "libstdc++.so"],  # libstdc++: for the interceptor of __cxa_throw
        {"ASAN_OPTIONS": "detect_leaks=0"},  # Python's own
    ),
    "tsan": (["-g1", "-fsanitize=thread"], ["libtsan.so"], {"TSAN_OPTIONS": "halt_on_error=1:exitcode=66"}),
}


def compiler() -> str | None:
    return shutil.which(os.environ.get("CXX", "g++"))


@functools.cache
def build(variant: str) -> Path:
    """The folder that holds the built module `harness`."""
    import pybind11

    cxx = compiler()
    assert cxx is not None, "no C++ compiler"
    includes = [NATIVE, ROOT / "csrc", pybind11.get_include(), sysconfig.get_path("include")]
    command = [cxx, *FLAGS, *VARIANTS[variant][0], *(f"-I{path}" for path in includes)]
    digest = hashlib.sha256("\0".join(command).encode())
    for folder, pattern in ((NATIVE, "*.cpp"), (NATIVE, "*.h"), (ROOT / "csrc", "*.h"), (ROOT / "csrc", "*.cuh")):
        for source in sorted(folder.glob(pattern)):
            digest.update(source.read_bytes())
    folder = ROOT / "build" / "cuda_host" / f"{variant}-{digest.hexdigest()[:16]}"
    module = folder / f"harness{sysconfig.get_config_var('EXT_SUFFIX')}"
    if not module.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f"{os.getpid()}.so"
        subprocess.run([*command, str(NATIVE / "harness.cpp"), "-o", str(partial)], check=True)
        partial.replace(module)
    return folder


def environment(variant: str) -> dict[str, str]:
    """What a process that imports the module needs."""
    _, libraries, variables = VARIANTS[variant]
    if libraries:
        find = [compiler() or "g++", "-print-file-name="]
        paths = [subprocess.check_output([find[0], find[1] + name], text=True).strip() for name in libraries]
        variables = {**variables, "LD_PRELOAD": " ".join(paths)}
    return {**os.environ, **variables}


if __name__ == "__main__":
    print(build(sys.argv[1]))
