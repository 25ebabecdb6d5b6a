"""Checkpoints of the recipes: replaced as a whole, and refused where they do not fit."""

from __future__ import annotations

import pytest
import torch
from small_trainings import run

from posgan_fast.models import CheckpointError
from posgan_fast.recipes import checkpoint

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_checkpoint_is_replaced_as_a_whole(data, tmp_path, monkeypatch):
    path = run("dcgan", data, tmp_path / "out", iterations=1)
    before = path.read_bytes()

    def full(content, file):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left on device"):
        run("dcgan", data, tmp_path / "out", iterations=2, resume=True)
    assert path.read_bytes() == before and not list((tmp_path / "out").glob(".*"))


def test_damaged_and_foreign_checkpoints(data, tmp_path):
    path = run("dcgan", data, tmp_path / "out", iterations=1)
    whole = path.read_bytes()
    cases = {
        "damaged, or no checkpoint": whole[: len(whole) // 2],
        "damaged, or no checkpoint: ": b"",
        "no checkpoint of posgan-fast train": _saved(tmp_path, {"state_dict": {}}),
        "expected schema 1, got 7": _saved(tmp_path, checkpoint.load(path) | {"schema": 7}),
        "expected a checkpoint of dcgan, got one of pggan": _saved(
            tmp_path, checkpoint.load(path) | {"recipe": "pggan"}
        ),
        "damaged: scaler, processes missing": _saved(tmp_path, _cut(checkpoint.load(path), "scaler", "processes")),
        "expected 4 processes, got 1": _saved(tmp_path, checkpoint.load(path) | {"processes": 4}),
        "expected the data that the run began with": _saved(tmp_path, checkpoint.load(path) | {"data": "0"}),
        "generator_ema does not fit": _saved(tmp_path, _without(checkpoint.load(path), "generator_ema")),
    }
    for message, content in cases.items():
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=message):
            run("dcgan", data, tmp_path / "out", iterations=2, resume=True)
        assert path.read_bytes() == content


def _saved(folder, content):
    torch.save(content, folder / "x.pt")
    return (folder / "x.pt").read_bytes()


def _cut(content, *names):
    return {name: value for name, value in content.items() if name not in names}


def _without(content, name):
    del content["models"][name]
    return content
