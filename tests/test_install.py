"""The source distribution holds everything and installs with torch, without torch, and without a compiler: always
successfully, and it says what it lacks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import setuptools
import torch
from setup_script import ROOT, load

SOURCES = ["csrc", "kernels", "posgan_fast", "setup.py", "pyproject.toml", "README.md", "LICENSE"]
# What no checkout tracks, and what building leaves behind.
UNTRACKED = (
    ".git", ".venv", "build", "dist", "out", "lib", "__pycache__", "*.egg-info", ".coverage*", ".hypothesis",
    ".*_cache", ".benchmarks",
)  # fmt: skip


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in SOURCES:
        source = ROOT / name
        ignore = shutil.ignore_patterns("__pycache__", "lib")
        (shutil.copytree(source, tmp_path / name, ignore=ignore) if source.is_dir() else shutil.copy(source, tmp_path))
    return tmp_path


def test_the_source_distribution_is_a_whole_checkout_and_builds_the_native_library(tmp_path):
    """Packed by a Python that has setuptools alone, installed into a new environment that has torch."""
    checkout = tmp_path / "checkout"
    shutil.copytree(ROOT, checkout, ignore=shutil.ignore_patterns(*UNTRACKED))
    files = {str(path.relative_to(checkout)) for path in checkout.rglob("*") if path.is_file()}
    assert {"csrc/library.cpp", "csrc/upfirdn2d.cu", "csrc/library.hpp", "kernels/bias_act.py", "Makefile"} <= files
    for rubbish in ("posgan_fast/lib/libposgan_fast_cpu.so", "tests/__pycache__/cases.pyc", "build/native/library.o"):
        (checkout / rubbish).parent.mkdir(parents=True, exist_ok=True)
        (checkout / rubbish).touch()

    packages = [Path(module.__file__).parents[1] for module in (torch, setuptools)]
    bare = environment(tmp_path / "bare")
    for part in (*packages[1].glob("setuptools*"), packages[1] / "_distutils_hack"):
        (site_of(bare) / part.name).symlink_to(part)
    pack = "from setuptools import build_meta; build_meta.build_sdist('../packed')"
    run(bare / "bin" / "python", "-c", pack, cwd=checkout)
    (archive,) = (tmp_path / "packed").iterdir()
    with tarfile.open(archive) as tar:
        packed = {name.partition("/")[2] for name in (m.name for m in tar if m.isfile())}
    made = {"PKG-INFO", "setup.cfg", *(name for name in packed if ".egg-info/" in name)}
    assert packed - made == files

    new = environment(tmp_path / "new")
    (site_of(new) / "others.pth").write_text("".join(f"{folder}\n" for folder in packages))
    pip = [sys.executable, "-m", "pip", "--python", new / "bin" / "python", "install", "--no-deps"]
    run(*pip, "--no-build-isolation", archive, cwd=tmp_path, CXX=hasty_compiler(tmp_path))
    (tag,) = site_of(new).glob("posgan_fast-*.dist-info/WHEEL")
    assert "Tag: py3-none-linux" in tag.read_text()
    record = json.loads((site_of(new) / "posgan_fast" / "lib" / "build.json").read_text())
    assert record["cpu"]["built"]
    command = new / "bin" / "posgan-fast"
    doctor = run(command, "doctor", cwd=tmp_path)
    assert "native library for cpu: loaded" in doctor and "nothing to mend" in doctor
    verified = run(command, "verify", cwd=tmp_path)
    assert verified.endswith("verify: all equal\n") and "bias_act              cpu        float32" in verified
    for path in (site_of(new) / "posgan_fast" / "lib").iterdir():
        assert str(tmp_path).encode() not in path.read_bytes(), path.name


def test_without_torch_the_library_is_pure_python(checkout):
    wheel = _wheel(checkout)  # isolated: pip's build environment holds setuptools only
    assert wheel.name.endswith("py3-none-any.whl")
    record, doctor = _install(wheel, checkout)
    assert not record["cpu"]["built"] and "saw no torch" in record["cpu"]["reason"]
    assert (
        "to mend: the cpu library is missing" in doctor
        and "pip install -U torch 'setuptools>=77' && pip install" in doctor
    )


def test_without_a_compiler_the_library_is_pure_python(checkout):
    tools = checkout / "tools"
    tools.mkdir()
    (tools / "python3").symlink_to(sys.executable)
    wheel = _wheel(checkout, "--no-build-isolation", PATH=str(tools), CXX="")
    assert wheel.name.endswith("py3-none-any.whl")
    record, doctor = _install(wheel, checkout)
    assert "no C++ compiler" in record["cpu"]["reason"]
    assert "install g++" in doctor


def test_a_build_that_fails_stops_the_installation_only_if_required(checkout, monkeypatch):
    for source in (checkout / "csrc").glob("*.cpp"):
        source.write_text("#error broken\n")
    setup = load()
    monkeypatch.setattr(setup, "ROOT", checkout)
    monkeypatch.setattr(setup, "OBJECTS", checkout / "objects")
    monkeypatch.delenv("POSGAN_FAST_NATIVE", raising=False)
    record = setup.attempt("POSGAN_FAST_NATIVE", setup.build_cpu, checkout)
    assert not record["built"] and "failed: csrc/" in record["reason"] and "#error broken" in record["reason"]
    result = _pip_wheel(checkout, "--no-build-isolation", POSGAN_FAST_NATIVE="1")
    assert result.returncode != 0 and "POSGAN_FAST_NATIVE=1 was set, but" in result.stdout + result.stderr


def test_sources_without_kernels_are_a_failed_build(tmp_path, monkeypatch):
    setup = load()
    monkeypatch.setattr(setup, "ROOT", tmp_path)
    monkeypatch.setattr(setup, "find_torch", lambda: pytest.fail("which is not asked for"))
    for variable, build, kind in (
        ("POSGAN_FAST_NATIVE", setup.build_cpu, "cpp"),
        ("POSGAN_FAST_CUDA", setup.build_cuda, "cu"),
    ):
        monkeypatch.delenv(variable, raising=False)
        record = setup.attempt(variable, build, tmp_path)
        assert not record["built"] and f"csrc/*.{kind} is missing" in record["reason"]
        assert record["remedy"].startswith("get a whole checkout or source distribution, then pip install")
        monkeypatch.setenv(variable, "1")
        with pytest.raises(SystemExit, match=f"{variable}=1 was set, but not built: .*is missing"):
            setup.attempt(variable, build, tmp_path)


ALL = ["75", "80", "86", "89", "90", "100", "120"]


@pytest.mark.parametrize(
    "wish, offered, archs, ptx",
    [
        ("", ALL, ["80", "90", "100"], ["100"]),
        ("", ["70", "75", "80", "86", "89", "90"], ["80", "90"], ["90"]),  # CUDA 12.4
        ("", ["90", "100", "110"], ["90", "100"], ["100"]),  # one that dropped the oldest
        ("", [], ["80", "90", "100"], ["100"]),  # nvcc did not tell
        ("100;80;90", ALL, ["80", "90", "100"], ["100"]),
        ("9.0 sm_86, compute_80;80;", ALL, ["80", "86", "90"], ["90"]),
        ("90a", ALL, ["90a"], []),
        ("90a;90;80", ALL, ["80", "90", "90a"], ["90"]),
        ("100f;90", ALL, ["90", "100f"], ["90"]),
    ],
)
def test_architectures_that_are_compiled_for(wish, offered, archs, ptx):
    assert load().choose_archs(wish, offered) == (archs, ptx)


@pytest.mark.parametrize(
    "wish, offered, reason",
    [
        ("90;100", ["80", "90"], "POSGAN_FAST_CUDA_ARCHS: this nvcc has no 100, only 80, 90"),
        ("100a", ["80", "90"], "this nvcc has no 100a"),
        ("90b", ALL, "POSGAN_FAST_CUDA_ARCHS: expected architectures such as 80;90;100, got '90b'"),
        ("native", ALL, "got 'native'"),
        ("", ["60", "70", "75"], "nvcc offers none of 80, 90, 100, only 60, 70, 75"),
    ],
)
def test_architectures_that_cannot_be_compiled_for(wish, offered, reason):
    setup = load()
    with pytest.raises(setup.Unavailable) as caught:
        setup.choose_archs(wish, offered)
    assert caught.value.reason.startswith("not built: ") and reason in caught.value.reason
    assert "pip install" in caught.value.remedy


def test_the_cuda_build_records_what_it_needs(tmp_path, monkeypatch):
    """With an nvcc that only notes how it is called."""
    nvcc = tmp_path / "nvcc"
    nvcc.write_text(
        f"""#!{sys.executable}
import pathlib, sys
if sys.argv[1] == "--version":
    print("Cuda compilation tools, release 12.4, V12.4.131\\nBuild cuda_12.4")
elif sys.argv[1] == "--list-gpu-arch":
    print("compute_80\\ncompute_86\\ncompute_90")
else:
    pathlib.Path(sys.argv[sys.argv.index("-o") + 1]).touch()
    with open({str(tmp_path / "calls")!r}, "a") as file:
        print(*sys.argv[1:], file=file)
"""
    )
    nvcc.chmod(0o755)
    setup = load()
    monkeypatch.setattr(setup, "OBJECTS", tmp_path / "objects")
    found = {
        "version": "2.11.0",
        "cuda": "12.4",
        "includes": ["/somewhere/torch/include"],
        "lib": "/somewhere/torch/lib",
    }
    monkeypatch.setattr(setup, "find_torch", lambda: found)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setenv("POSGAN_FAST_CUDA", "1")
    monkeypatch.delenv("POSGAN_FAST_CUDA_ARCHS", raising=False)
    record = setup.attempt("POSGAN_FAST_CUDA", setup.build_cuda, tmp_path)
    assert record["built"] and record["runtime"] == "12.4" and record["schemas"] == setup.schemas_digest()
    assert record["architectures"] == ["80", "90"] and record["ptx"] == ["90"]
    calls = (tmp_path / "calls").read_text().splitlines()
    assert len(calls) == 1 + len(list((ROOT / "csrc").glob("*.cu"))) and calls[-1].startswith("-nodlink -shared")
    for call in calls[:-1]:
        assert f",-ffile-prefix-map=/somewhere/torch/include/=,-ffile-prefix-map={ROOT}/= " in call
        assert "code=sm_90 -gencode=arch=compute_90,code=compute_90 " in call
    setup.attempt("POSGAN_FAST_CUDA", setup.build_cuda, tmp_path)
    again = (tmp_path / "calls").read_text().splitlines()[len(calls) :]
    assert again == calls[-1:]  # nothing changed: linked anew only
    monkeypatch.setenv("POSGAN_FAST_CUDA_ARCHS", "90")
    setup.attempt("POSGAN_FAST_CUDA", setup.build_cuda, tmp_path)
    assert len((tmp_path / "calls").read_text().splitlines()) == 2 * len(calls) + 1


def test_remedies_and_reasons_name_no_folder(monkeypatch):
    setup = load()
    assert str(ROOT) not in setup.REINSTALL
    broken = [sys.executable, "-c", f"import sys; sys.exit({str(ROOT / 'csrc' / 'a.cpp')!r} + ':1: error: broken')"]
    with pytest.raises(setup.Unavailable) as caught:
        setup.run(broken)
    assert caught.value.reason.endswith("failed: csrc/a.cpp:1: error: broken")


def environment(folder: Path) -> Path:
    venv.create(folder, symlinks=True, with_pip=False)
    return folder


def hasty_compiler(folder: Path) -> Path:
    """A compiler that does not optimise, in a quarter of the time: the library under test elsewhere is optimised."""
    compiler = load().find_compiler()
    script = folder / "hasty"
    script.write_text(f"""#!{sys.executable}
import os, sys
os.execvp({compiler!r}, [{compiler!r}, *("-O0" if option == "-O3" else option for option in sys.argv[1:])])
""")
    script.chmod(0o755)
    return script


def site_of(folder: Path) -> Path:
    (found,) = (folder / "lib").glob("python*/site-packages")
    return found


def run(*command: object, cwd: Path, **environment: object) -> str:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "POSGAN_FAST", "PIP"))}
    kept |= {name: str(value) for name, value in environment.items()}
    result = subprocess.run([str(part) for part in command], cwd=cwd, env=kept, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def _pip_wheel(checkout: Path, *options: str, **environment: str) -> subprocess.CompletedProcess:
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "-w", str(checkout / "wheels")]
    return subprocess.run([*pip, *options, str(checkout)], env=os.environ | environment, capture_output=True, text=True)


def _wheel(checkout: Path, *options: str, **environment: str) -> Path:
    result = _pip_wheel(checkout, *options, **environment)
    assert result.returncode == 0, result.stdout + result.stderr
    (wheel,) = (checkout / "wheels").iterdir()
    with zipfile.ZipFile(wheel) as archive:
        top = {name.split("/")[0] for name in archive.namelist()}
    assert {t for t in top if not t.endswith(".dist-info")} == {"posgan_fast"}, "no top-level package but ours"
    return wheel


def _install(wheel: Path, checkout: Path) -> tuple[dict, str]:
    """Unpack where pip would, and ask the doctor there."""
    site = checkout / "site"
    zipfile.ZipFile(wheel).extractall(site)
    record = json.loads((site / "posgan_fast" / "lib" / "build.json").read_text())
    code = (
        f"import sys; sys.path.insert(0, {str(site)!r})\n"
        "import posgan_fast, torch; from posgan_fast import doctor, functional as PF\n"
        f"assert posgan_fast.__file__.startswith({str(site)!r}), posgan_fast.__file__\n"
        "assert PF.upsample2d(torch.ones(1, 1, 4, 4), torch.ones(4) / 4, backend='reference').shape[2] == 8\n"
        "from posgan_fast.kernels import __doc__\n"
        "doctor.main()"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=checkout)
    assert result.returncode == 0, result.stderr
    return record, result.stdout
