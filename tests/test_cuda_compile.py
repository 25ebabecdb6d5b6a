"""nvcc compiles csrc/*.cu, warnings as errors; registers, spills and shared memory of each kernel are read from ptxas
and checked; the library links against a torch without CUDA and registers its ops.

Without --slow, one architecture is compiled. No source asks for its architecture, as a test makes sure, so the others
add their registers and spills only; --slow compiles all, which takes five times as long. A compilation is kept under
build/cuda_compile by a digest of the files that it read. resources.txt there lists the kernels for people.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from setup_script import ROOT, load
from torch.utils.cpp_extension import include_paths

sys.path.append(str(Path(__file__).parent / "native"))
from build_harness import digest_of

NVCC = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
ARCHS = ("80", "86", "89", "90", "100")
LINKED_ARCH = "90"  # compiled with its host half and linked; the others stop at machine code
SOURCES = sorted((ROOT / "csrc").glob("*.cu"))
PREFIXES = load().without_paths({"includes": include_paths()})
FLAGS = [
    *("-std=c++17", "-O3", "-Werror", "all-warnings", "-Xptxas", "-v,-warn-spills", "-Xcompiler"),
    ",".join(["-fPIC,-fvisibility=hidden,-Wall,-Wextra,-Wno-unused-parameter", *PREFIXES]),
    "-DTORCH_TARGET_VERSION=0x020a000000000000",
    *(f"-I{path}" for path in include_paths()),
]
BUILD = ROOT / "build" / "cuda_compile"
STATIC_SHARED_LIMIT = 48 * 1024
REGISTER_LIMIT = 128  # two blocks of 256 threads to a multiprocessor

pytestmark = pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")


@dataclass(frozen=True)
class Kernel:
    name: str
    arch: str
    registers: int
    spilled: int
    stack: int
    shared: int


@dataclass(frozen=True)
class Compilation:
    source: Path
    arch: str
    nvcc_version: str

    def output(self) -> Path:
        """Compile unless the same was compiled before, and return the object or cubin; ptxas's words are beside it."""
        options, suffix = (["-c"], ".o") if self.arch == LINKED_ARCH else (["-cubin"], ".cubin")
        command = [str(NVCC), f"-arch=sm_{self.arch}", *FLAGS, *options]
        digest = digest_of((command, self.nvcc_version, torch.__version__), self.source)
        output = BUILD / f"{self.source.stem}.{self.arch}.{digest}{suffix}"
        if not output.with_suffix(".log").exists():
            command += ["-o", str(output), str(self.source)]
            result = subprocess.run(command, capture_output=True, text=True)
            assert result.returncode == 0, f"{' '.join(command)}\n{result.stdout}{result.stderr}"
            output.with_suffix(".log").write_text(result.stdout + result.stderr)
        return output


def compile_all(archs: tuple[str, ...]) -> list[Path]:
    BUILD.mkdir(parents=True, exist_ok=True)
    version = subprocess.check_output([str(NVCC), "--version"], text=True)
    jobs = [Compilation(source, arch, version) for arch in archs for source in SOURCES]
    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(Compilation.output, jobs))


@pytest.fixture(scope="module", params=[(LINKED_ARCH,), pytest.param(ARCHS, marks=pytest.mark.slow)], ids="-".join)
def archs(request: pytest.FixtureRequest) -> tuple[str, ...]:
    return request.param


@pytest.fixture(scope="module")
def kernels(archs: tuple[str, ...]) -> list[Kernel]:
    logs = [output.with_suffix(".log") for output in compile_all(archs)]
    found = [kernel for log in logs for kernel in read_ptxas(log.read_text())]
    demangled = subprocess.run(["c++filt"], input="\n".join(k.name for k in found), capture_output=True, text=True)
    noise = r"^void |posgan_fast::|\(posgan_fast::Act\)|(?<=>)\(.*"
    names = [re.sub(noise, "", name) for name in demangled.stdout.splitlines()]
    lines = [
        f"sm_{k.arch:<4}{k.registers:>4} registers{k.spilled:>4} spilled{k.stack:>4} stack{k.shared:>6} shared  {name}"
        for k, name in zip(found, names, strict=True)
    ]
    (BUILD / "resources.txt").write_text("\n".join(lines) + "\n")
    return found


def read_ptxas(text: str) -> Iterator[Kernel]:
    entry = r"Compiling entry function '(\w+)' for 'sm_(\d+)a?'"
    for block in re.split(f"(?={entry})", text):
        if head := re.match(entry, block):
            stack, stores, loads = (
                int(v) for v in re.findall(r"(\d+) bytes (?:stack frame|spill stores|spill loads)", block)[:3]
            )
            shared = re.search(r"(\d+) bytes smem", block)
            registers = re.search(r"Used (\d+) registers", block)
            assert registers is not None, block
            yield Kernel(head[1], head[2], int(registers[1]), stores + loads, stack, int(shared[1]) if shared else 0)


def test_every_kernel_is_there_for_every_architecture(archs: tuple[str, ...], kernels: list[Kernel]) -> None:
    names = {arch: {k.name for k in kernels if k.arch == arch} for arch in archs}
    assert len(names[LINKED_ARCH]) > 100
    for arch in archs:
        assert names[arch] == names[LINKED_ARCH], arch
    assert all("posgan_fast" in name for name in names[LINKED_ARCH])  # by which the GPU gate's sanitizers choose them


def test_the_sources_are_the_same_for_every_architecture() -> None:
    for source in (ROOT / "csrc").iterdir():
        assert "__CUDA_ARCH" not in source.read_text(), f"{source.name}: compile every architecture in every run"


def test_no_kernel_spills_or_outgrows_the_device(kernels: list[Kernel]) -> None:
    for kernel in kernels:
        assert kernel.spilled == 0, kernel
        assert kernel.registers <= REGISTER_LIMIT, kernel
        assert kernel.shared <= STATIC_SHARED_LIMIT, kernel


def test_the_library_links_and_registers_without_a_cuda_build_of_torch(tmp_path: Path) -> None:
    library = tmp_path / "libposgan_fast_cuda.so"
    objects = [str(output) for output in compile_all((LINKED_ARCH,))]
    torch_lib = f"-L{Path(torch.__file__).parent / 'lib'}"
    link = [str(NVCC), "-nodlink", "-shared", "-cudart", "static", "-o", str(library), *objects, torch_lib]
    subprocess.run([*link, "-ltorch_cpu", "-ldl", "-Xlinker", "--no-undefined"], check=True)
    symbols = subprocess.check_output(["nm", "-D", "--undefined-only", str(library)], text=True)
    needed = {line.split()[-1].split("@")[0] for line in symbols.splitlines()}
    assert not [name for name in needed if name.startswith(("cu", "__cuda"))], "the CUDA runtime is linked statically"
    assert not [name for name in needed if "2at" in name or "3c10" in name or "5torch" in name], "the stable ABI is C"

    text = library.read_bytes()
    assert b"csrc/bias_act.cu" in text  # the place of a failed check, as the source tree names it
    for place in (ROOT, Path(torch.__file__).parents[1], Path.home()):
        assert str(place).encode() not in text, place

    check = (
        "import sys, torch; from posgan_fast import _native;"
        "_native._define_schemas(); torch.ops.load_library(sys.argv[1]);"
        "assert not _native._missing_ops('cuda');"
        "from pathlib import Path; path = Path(sys.argv[1]); _native.LIB_DIR = path.parent;"
        "_native.load = lambda library: _native.Status(True);"
        "kernels = {row.kernel for row in _native.cuda_table()};"
        "assert kernels == {'fir4', 'fir4_channels_last', 'tiled', 'direct', 'elementwise'}, kernels;"
        "_native.reread_cuda_table()"
    )
    subprocess.run([sys.executable, "-c", check, str(library)], check=True, cwd=ROOT)
