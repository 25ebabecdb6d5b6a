"""`pip install .` with torch, without torch, and without a compiler: always succeeds, and says what it lacks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = ["csrc", "kernels", "posgan_fast", "setup.py", "pyproject.toml", "README.md", "LICENSE"]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in SOURCES:
        source = ROOT / name
        ignore = shutil.ignore_patterns("__pycache__", "lib")
        (shutil.copytree(source, tmp_path / name, ignore=ignore) if source.is_dir() else shutil.copy(source, tmp_path))
    return tmp_path


def test_with_torch_the_native_library_is_built(checkout):
    wheel = _wheel(checkout, "--no-build-isolation")
    assert wheel.name.startswith("posgan_fast-") and "py3-none-linux" in wheel.name
    record, doctor = _install(wheel, checkout)
    assert record["cpu"]["built"]
    assert "native library for cpu: loaded" in doctor and "nothing to mend" in doctor


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


def test_a_required_build_that_fails_stops_the_installation(checkout):
    for source in (checkout / "csrc").glob("*.cpp"):
        source.write_text("#error broken\n")
    assert _wheel(checkout, "--no-build-isolation").name.endswith("py3-none-any.whl")
    result = _pip_wheel(checkout, "--no-build-isolation", POSGAN_FAST_NATIVE="1")
    assert result.returncode != 0 and "POSGAN_FAST_NATIVE=1 was set, but" in result.stdout + result.stderr


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
