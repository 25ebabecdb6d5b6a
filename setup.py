"""Builds the native library when torch and a compiler are at hand, and otherwise installs the pure Python one.

Nothing here may stop an installation: what could not be built, why, and what mends it goes to ``lib/build.json``,
where ``posgan-fast doctor`` and :func:`posgan_fast.explain` read it. The sources are ``csrc/*.cpp`` (one shared library
for the CPU, its kernels compiled once per instruction set) and ``csrc/*.cu`` (one for CUDA). Both use LibTorch's stable
ABI: built against one torch, they load into every torch from 2.10 on.

Environment: ``POSGAN_FAST_NATIVE=0`` builds nothing, ``=1`` makes a failed CPU build an error; ``POSGAN_FAST_CUDA=0|1``
likewise for CUDA (unset: built where torch is a CUDA build and nvcc is found); ``POSGAN_FAST_CUDA_ARCHS`` lists
architectures, such as "80;90;100" (unset: these, as far as nvcc offers them).
"""

from __future__ import annotations

import ast
import hashlib
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import setuptools

# Without build isolation pip does not see to the version that pyproject.toml asks for.
if int(setuptools.__version__.split(".")[0]) < 77:
    raise SystemExit(f"posgan_fast: setuptools {setuptools.__version__} is too old: pip install -U 'setuptools>=77'")

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel, get_platform
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent.resolve()
OBJECTS = ROOT / "build" / "native"
COMMON = ["-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Wno-unused-parameter"]
MATH = ["-ffp-contract=fast", "-fno-math-errno", "-fno-trapping-math"]  # none of them changes NaN or infinity
STABLE_ABI = ["-DTORCH_TARGET_VERSION=0x020a000000000000"]  # torch 2.10
ISA_FLAGS = {
    "baseline": [],
    "avx2": ["-mavx2", "-mfma", "-mf16c"],
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mf16c", "-mprefer-vector-width=512"],
}
CUDA_ARCHS = ("80", "90", "100")
# Installed wheels carry this text to other machines: it names no folder of this one.
REINSTALL = "pip install --no-build-isolation --force-reinstall --no-deps .   (in a checkout of posgan_fast)"


class Unavailable(Exception):
    """A library that cannot be built here, with the command that changes that."""

    def __init__(self, reason: str, remedy: str):
        super().__init__(reason)
        self.reason, self.remedy = reason, remedy


class Job(NamedTuple):
    """A compilation; ``command`` lacks the output."""

    command: list[str]
    output: Path


class BuildNative(build_py):
    """build_py, then the native libraries into the package it laid out, or into the source tree if editable."""

    def run(self) -> None:
        super().run()
        target = ROOT / "posgan_fast" if self.editable_mode else Path(self.build_lib) / "posgan_fast"
        lib = target / "lib"
        shutil.rmtree(lib, ignore_errors=True)  # a library of an earlier build must not outlive a failed one
        lib.mkdir(parents=True)
        with ThreadPoolExecutor() as pool:
            builds = {
                "cpu": pool.submit(attempt, "POSGAN_FAST_NATIVE", build_cpu, lib),
                "cuda": pool.submit(attempt, "POSGAN_FAST_CUDA", build_cuda, lib),
            }
            record = {library: build.result() for library, build in builds.items()}
        (lib / "build.json").write_text(json.dumps(record, indent=2) + "\n")

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        lib = Path(self.build_lib) / "posgan_fast" / "lib"
        return super().get_outputs(include_bytecode) + [str(p) for p in lib.glob("*")]


class Wheel(bdist_wheel):
    """A wheel with a native library fits one platform, every Python and, by the stable ABI, every torch from 2.10."""

    def get_tag(self) -> tuple[str, str, str]:
        lib = Path(self.get_finalized_command("build_py").build_lib) / "posgan_fast" / "lib"
        native = any(lib.glob("*.so"))
        platform_tag = get_platform(self.bdist_dir).replace("-", "_").replace(".", "_") if native else "any"
        return "py3", "none", platform_tag


def attempt(variable: str, build, lib: Path) -> dict:
    """Run one build and return its record. Only an explicit request turns a failure into an error."""
    wish = os.environ.get(variable, "")
    try:
        if wish == "0":
            raise Unavailable(f"not built: {variable}=0 was set", f"unset {variable} && {REINSTALL}")
        return {"built": True, **build(lib, wish == "1")}
    except Unavailable as error:
        if wish == "1":
            raise SystemExit(f"{variable}=1 was set, but {error.reason}; {error.remedy}") from None
        print(f"posgan_fast: {error.reason}", file=sys.stderr)
        return {"built": False, "reason": error.reason, "remedy": error.remedy}


def build_cpu(lib: Path, forced: bool) -> dict:
    kernels = find_sources("*.cpp")
    torch = find_torch()
    cxx = find_compiler()
    isas = ISA_FLAGS if platform.machine().lower() in ("x86_64", "amd64") else {"baseline": []}
    includes = [f"-I{p}" for p in torch["includes"]]
    jobs = []
    for source in kernels:
        variants = {isa: [*MATH, *flags] for isa, flags in isas.items()}
        if source.stem.endswith("library"):  # around the kernels: torch's headers, once
            variants = {"": STABLE_ABI + includes}
        for isa, flags in variants.items():
            output = OBJECTS / f"{source.stem}{'_' + isa if isa else ''}.o"
            define = [f"-DPF_ISA={isa}"] if isa else []
            jobs.append(Job([cxx, *COMMON, *without_paths(torch), *flags, *define, "-c", str(source)], output))
    compiler = version_of(cxx)
    compile_all(jobs, compiler, torch)
    target = lib / "libposgan_fast_cpu.so"
    outputs = [str(job.output) for job in jobs]
    run([cxx, "-shared", "-o", str(target), *outputs, f"-L{torch['lib']}", "-ltorch_cpu", "-Wl,--no-undefined"])
    return {
        "compiler": compiler,
        "torch": torch["version"],
        "schemas": schemas_digest(),
        "instruction_sets": list(isas),
    }


def build_cuda(lib: Path, forced: bool) -> dict:
    sources = find_sources("*.cu")
    torch = find_torch()
    if not torch["cuda"] and not forced:
        raise Unavailable(
            "not built: this torch is a build without CUDA", f"install a CUDA build of torch, then {REINSTALL}"
        )
    nvcc = shutil.which("nvcc") or shutil.which("/usr/local/cuda/bin/nvcc")
    if nvcc is None:
        raise Unavailable("not built: no nvcc on the PATH", f"install the CUDA toolkit, then {REINSTALL}")
    compiler = version_of(nvcc)
    archs, ptx = choose_archs(os.environ.get("POSGAN_FAST_CUDA_ARCHS", ""), offered_archs(nvcc))
    codes = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in archs]
    codes += [f"-gencode=arch=compute_{a},code=compute_{a}" for a in ptx]
    includes = [f"-I{p}" for p in torch["includes"]]
    host = ",".join(["-fPIC", "-fvisibility=hidden", *without_paths(torch)])
    flags = ["-std=c++17", "-O3", "-Xcompiler", host, "--threads", "2", "-DUSE_CUDA"]
    jobs = [
        Job([nvcc, *flags, *codes, *STABLE_ABI, *includes, "-c", str(source)], OBJECTS / f"{source.stem}_cuda.o")
        for source in sources
    ]
    compile_all(jobs, compiler, torch)
    target = lib / "libposgan_fast_cuda.so"
    outputs = [str(job.output) for job in jobs]
    # No device link: these sources need none, and it would keep the folders of this machine.
    link = [nvcc, "-nodlink", "-shared", "-o", str(target), *outputs, f"-L{torch['lib']}", "-ltorch_cpu"]
    run([*link, "-cudart", "static", "-ldl"])
    release = re.search(r"release (\d+\.\d+)", subprocess.check_output([nvcc, "--version"], text=True))
    return {
        "compiler": compiler,
        "torch": torch["version"],
        "schemas": schemas_digest(),
        "runtime": release[1] if release else "",
        "architectures": archs,
        "ptx": ptx,
    }


def choose_archs(wish: str, offered: list[str]) -> tuple[list[str], list[str]]:
    """The architectures to compile for, in order, and the one whose PTX starts on later devices.

    Only plain architectures have such a PTX: that of 90a runs on 9.0, that of 100f within its family."""
    archs = [re.sub(r"^(sm_|compute_)", "", word).replace(".", "") for word in re.split(r"[;,\s]+", wish) if word]
    wrong = [arch for arch in archs if not re.fullmatch(r"\d{2,3}[af]?", arch)]
    if wrong:
        raise Unavailable(
            f"not built: POSGAN_FAST_CUDA_ARCHS: expected architectures such as 80;90;100, got {wish!r}",
            f"POSGAN_FAST_CUDA_ARCHS='80;90' {REINSTALL}",
        )
    missing = [arch for arch in archs or CUDA_ARCHS if offered and arch.rstrip("af") not in offered]
    if not archs:
        archs = [arch for arch in CUDA_ARCHS if arch not in missing]
    elif missing:
        raise Unavailable(
            f"not built: POSGAN_FAST_CUDA_ARCHS: this nvcc has no {', '.join(missing)}, only {', '.join(offered)}",
            f"POSGAN_FAST_CUDA_ARCHS='{offered[-1]}' {REINSTALL}, or install another CUDA toolkit",
        )
    if not archs:
        raise Unavailable(
            f"not built: nvcc offers none of {', '.join(CUDA_ARCHS)}, only {', '.join(offered)}",
            f"install a CUDA toolkit that does, then {REINSTALL}",
        )
    archs = sorted(set(archs), key=lambda arch: (int(arch.rstrip("af")), arch))
    return archs, [arch for arch in archs if arch.isdigit()][-1:]


def offered_archs(nvcc: str) -> list[str]:
    """The architectures that nvcc compiles for, in order; empty where it does not tell."""
    listed = subprocess.run([nvcc, "--list-gpu-arch"], capture_output=True, text=True).stdout
    return sorted(set(re.findall(r"compute_(\d+)\b", listed)), key=int)


def find_sources(pattern: str) -> list[Path]:
    found = sorted((ROOT / "csrc").glob(pattern))
    if not found:
        raise Unavailable(
            f"not built: these sources of posgan_fast are not complete, csrc/{pattern} is missing",
            f"get a whole checkout or source distribution, then {REINSTALL}",
        )
    return found


def find_torch() -> dict:
    """Find torch's headers and libraries without importing it here."""
    probe = (
        "import json, torch, torch.utils.cpp_extension as e, os;"
        "print(json.dumps({'version': torch.__version__, 'cuda': torch.version.cuda, 'includes': e.include_paths(),"
        "'lib': os.path.join(os.path.dirname(torch.__file__), 'lib')}))"
    )
    result = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True)
    if result.returncode != 0:
        reason = "not built: the build saw no torch (pip's build isolation hides an installed one)"
        if "No module named 'torch'" not in result.stderr:
            reason = f"not built: torch does not import: {result.stderr.strip().splitlines()[-1]}"
        raise Unavailable(reason, f"pip install -U torch 'setuptools>=77' && {REINSTALL}")
    found = json.loads(result.stdout.splitlines()[-1])
    if tuple(int(v) for v in found["version"].split("+")[0].split(".")[:2]) < (2, 10):
        raise Unavailable(
            f"not built: torch {found['version']} is older than 2.10", f"pip install 'torch>=2.10' && {REINSTALL}"
        )
    return found


def find_compiler() -> str:
    for name in (os.environ.get("CXX"), "g++", "clang++", "c++"):
        if name and shutil.which(name):
            return name
    raise Unavailable(
        "not built: no C++ compiler (g++ or clang++) on the PATH",
        f"install g++ (Debian: apt-get install g++), then {REINSTALL}",
    )


def without_paths(torch: dict) -> list[str]:
    """Flags that keep the folders of this machine out of the messages that torch's checks compile in."""
    paths = [str(path) for path in (*torch["includes"], ROOT)]
    return [f"-ffile-prefix-map={path}/=" for path in paths if "," not in path]  # at which nvcc splits options


def schemas_digest() -> str:
    """A digest of the schemas that ``_native.py`` defines: a library built for others would misread its arguments."""
    tree = ast.parse((ROOT / "posgan_fast" / "_native.py").read_text())
    (value,) = (
        node.value for node in tree.body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "_SCHEMAS"
    )
    return hashlib.sha256(repr(ast.literal_eval(value)).encode()).hexdigest()


def compile_all(jobs: list[Job], compiler: str, torch: dict) -> None:
    """Run the jobs whose object is missing, or was made from other sources or by another command."""
    OBJECTS.mkdir(parents=True, exist_ok=True)
    sources = hashlib.sha256(repr((compiler, torch["version"])).encode())
    for path in sorted((ROOT / "csrc").iterdir()):
        sources.update(path.read_bytes())

    def compile_one(job: Job) -> None:
        key, made_by = repr((job.command, sources.hexdigest())), job.output.with_suffix(".key")
        if job.output.exists() and made_by.exists() and made_by.read_text() == key:
            return
        made_by.unlink(missing_ok=True)
        run([*job.command, "-o", str(job.output)])
        made_by.write_text(key)

    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        list(pool.map(compile_one, jobs))


def run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode != 0:
        print(" ".join(command), result.stdout, result.stderr, sep="\n", file=sys.stderr)
        first = next((line for line in result.stderr.splitlines() if "error" in line), "see the build log")
        raise Unavailable(
            f"not built: {Path(command[0]).name} failed: {first.replace(f'{ROOT}/', '')}",
            f"see the whole log, with -v: {REINSTALL}",
        )


def version_of(compiler: str) -> str:
    lines = subprocess.run([compiler, "--version"], capture_output=True, text=True).stdout.strip().splitlines()
    return lines[-1] if "nvcc" in compiler else lines[0]


setup(cmdclass={"build_py": BuildNative, "bdist_wheel": Wheel})
