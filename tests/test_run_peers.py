"""The families' own scripts, unmodified, from pictures to a snapshot that loads again (--peer; minutes each)."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from foreign import FIXTURES, ROOT

from posgan_fast.models import load_discriminator, load_generator

PACKAGES = {"nvlabs": ("click", "requests", "psutil", "scipy"), "rosinality": ("lmdb", "tqdm", "torchvision")}


@pytest.fixture
def checkout(peers, request):
    """The family's folder, where everything that its scripts import is installed."""
    family = request.param
    folder = peers[family]
    missing = [name for name in (*PACKAGES[family], "PIL", "skimage") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"{family}'s scripts import {', '.join(missing)}, which is not installed")
    return folder


@pytest.fixture
def pictures(tmp_path):
    from PIL import Image
    from skimage import data

    folder = tmp_path / "pictures" / "all"
    folder.mkdir(parents=True)
    for name in ("astronaut", "coffee", "chelsea", "rocket"):
        picture = getattr(data, name)()
        side = min(picture.shape[:2])
        for index, corner in enumerate((picture[:side, :side], picture[-side:, -side:])):
            Image.fromarray(corner[..., :3]).resize((64, 64)).save(folder / f"{name}{index}.png")
    return folder


def start(script: Path, *arguments: object, cwd: Path, processes: int = 1) -> subprocess.Popen[str]:
    # torchvision's binary rarely loads beside another build of torch, and its Python code needs one declaration of it.
    path = [*([str(FIXTURES / "declared")] if importlib.util.find_spec("torchvision") else []), str(ROOT)]
    path += [entry for entry in os.environ.get("PYTHONPATH", "").split(os.pathsep) if entry]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"}
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"] if processes > 1 else []
    command = [sys.executable, *torchrun, "-m", "posgan_fast", "run", "--device", "cpu", script, *arguments]
    return subprocess.Popen(
        list(map(str, command)), cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def completed(script: Path, *arguments: object, cwd: Path, processes: int = 1) -> str:
    running = start(script, *arguments, cwd=cwd, processes=processes)
    output, _ = running.communicate(timeout=1200)
    assert running.returncode == 0, output
    return output


def assert_snapshot(file: Path) -> None:
    generator = load_generator(file)
    with torch.no_grad():
        assert generator(torch.randn(2, generator.z_dim)).shape == (2, 3, 32, 32)
        assert load_discriminator(file)(torch.zeros(4, 3, 32, 32)).isfinite().all()


@pytest.mark.parametrize("checkout", ["nvlabs"], indirect=True)
@pytest.mark.parametrize("gpus", [1, 2])
def test_stylegan3(checkout, pictures, tmp_path, gpus):
    if not (checkout / "gen_images.py").exists():
        pytest.skip("the checkout is not stylegan3")
    completed(
        checkout / "dataset_tool.py", "--source", pictures, "--dest", "data.zip", "--resolution", "32x32", cwd=tmp_path
    )
    options = "--cfg=stylegan2 --batch=64 --gamma=1 --kimg=1 --tick=1 --snap=1 --metrics=none --cbase=256 --cmax=16"
    arguments = [*options.split(), "--outdir=runs", "--data=data.zip", f"--gpus={gpus}", "--workers=1", "--map-depth=2"]
    output = completed(checkout / "train.py", *arguments, "--aug=noaug" if gpus == 1 else "--aug=ada", cwd=tmp_path)
    assert "tick 1 " in output and "torch_utils.ops.upfirdn2d (upfirdn2d)" in output
    (snapshot,) = tmp_path.glob("runs/*/network-snapshot-000001.pkl")
    completed(checkout / "gen_images.py", "--outdir=out", "--seeds=0-1", f"--network={snapshot}", cwd=tmp_path)
    assert len(list(tmp_path.glob("out/*.png"))) == 2
    assert_snapshot(snapshot)


@pytest.mark.parametrize("checkout", ["nvlabs"], indirect=True)
def test_stylegan2_ada(checkout, pictures, tmp_path):
    """Its networks have 512 channels whatever their size: training is stopped once the first snapshot is there."""
    if not (checkout / "style_mixing.py").exists():
        pytest.skip("the checkout is not stylegan2-ada-pytorch")
    completed(
        checkout / "dataset_tool.py",
        "--source",
        pictures,
        "--dest",
        "data.zip",
        "--width=32",
        "--height=32",
        cwd=tmp_path,
    )
    options = "--cfg=auto --kimg=1 --snap=1 --metrics=none --aug=ada --workers=1 --gpus=1 --batch=4 --fp32=1"
    training = start(checkout / "train.py", *options.split(), "--outdir=runs", "--data=data.zip", cwd=tmp_path)
    deadline = time.monotonic() + 1800
    while training.poll() is None and time.monotonic() < deadline:
        if any(file.read_text() for file in tmp_path.glob("runs/*/stats.jsonl")):  # written after the snapshot
            break
        time.sleep(1)
    training.terminate()
    output, _ = training.communicate(timeout=60)
    snapshots = list(tmp_path.glob("runs/*/network-snapshot-000000.pkl"))
    assert len(snapshots) == 1, output
    snapshot = snapshots[0]
    completed(checkout / "generate.py", "--outdir=out", "--seeds=0-1", f"--network={snapshot}", cwd=tmp_path)
    assert len(list(tmp_path.glob("out/*.png"))) == 2
    assert_snapshot(snapshot)


@pytest.mark.parametrize("checkout", ["rosinality"], indirect=True)
@pytest.mark.parametrize("processes", [1, 2])
def test_rosinality(checkout, pictures, tmp_path, processes):
    for folder in ("sample", "checkpoint"):
        (tmp_path / folder).mkdir()
    completed(checkout / "prepare_data.py", "--out=data", "--n_worker=2", "--size=32", pictures.parent, cwd=tmp_path)
    options = ["--size=32", "--iter=2", "--batch=2", "--n_sample=4", "--channel_multiplier=1"]
    output = completed(checkout / "train.py", "data", *options, cwd=tmp_path, processes=processes)
    assert "op.upfirdn2d (upfirdn2d)" in output and "torchvision.utils.save_image(range=)" in output
    snapshot = tmp_path / "checkpoint" / "000000.pt"
    (tmp_path / "sample" / "000000.png").unlink()
    options = [f"--ckpt={snapshot}", "--size=32", "--pics=2", "--channel_multiplier=1"]
    completed(checkout / "generate.py", *options, cwd=tmp_path)
    assert len(list(tmp_path.glob("sample/*.png"))) == 2
    completed(
        checkout / "train.py", "data", "--size=32", "--iter=1", "--batch=2", "--channel_multiplier=1", cwd=tmp_path
    )
    assert_snapshot(snapshot)
