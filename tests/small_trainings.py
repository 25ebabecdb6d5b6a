"""Small trainings for the tests of the recipes."""

from __future__ import annotations

import json
from pathlib import Path

import torch

from posgan_fast.recipes import (
    DCGAN,
    MSPIE,
    PGGAN,
    SinGAN,
    train,
)

SMALL = {  # each recipe in seconds
    "mspie": (MSPIE, dict(size=8, channel_max=8, batch=4)),
    "singan": (SinGAN, dict(min_size=16, max_size=30, iterations_per_stage=5, width=4, config="spe")),
    "pggan": (PGGAN, dict(size=16, max_channels=8, batch=4, images_first=12, images=16, transition=8)),
    "dcgan": (DCGAN, dict(size=16, base_channels=16, batch=4, config="no-pad-spe")),
}


def settings(name, folder, out, **more):
    recipe, small = SMALL[name]
    source = str(folder / "0.png" if name == "singan" else folder)
    return recipe.settings_type(out=str(out), **{"data": source, "iterations": 10, "log_every": 1, **small, **more})


def run(name, folder, out, resume=False, **more):
    return train(SMALL[name][0], settings(name, folder, out, **more), resume=resume, quiet=True)


def log(out: Path) -> list[dict]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def assert_equal(a, b, path="checkpoint"):
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), path
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), path
        for key in a:
            if key not in ("settings",):
                assert_equal(a[key], b[key], f"{path}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), path
        for k, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{path}[{k}]")
    else:
        assert a == b, path
