"""The command ``posgan-fast``: which command runs, what it prints, with which status it ends."""

from __future__ import annotations

import re
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import posgan_fast
from posgan_fast import cli, demo, doctor, models, run
from posgan_fast.cli import sample

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def calls(monkeypatch):
    """Notes in place of what the commands do, each with a status of its own."""
    noted = []

    def note(command: str, status: int):
        return lambda *arguments: noted.append((command, *arguments)) or status

    monkeypatch.setattr(run, "launch", note("run", 3))
    monkeypatch.setattr(doctor, "main", note("doctor", 4))
    monkeypatch.setattr(doctor, "verify", note("verify", 5))
    monkeypatch.setattr(demo, "main", note("demo", 6))
    return noted


@pytest.mark.parametrize(
    "argv, call, status",
    [
        (["run", "--quiet", __file__, "--help", "-m"], ("run", run.Program(__file__, ("--help", "-m"), quiet=True)), 3),
        (
            ["run", "--backend=reference", "-m", "package.train", "--quiet", "x"],
            ("run", run.Program("package.train", ("--quiet", "x"), is_module=True, backend="reference")),
            3,
        ),
        (
            ["run", "--device", "cpu", "--tune-allocator", __file__],
            ("run", run.Program(__file__, device="cpu", tune_allocator=True)),
            3,
        ),
        (["doctor"], ("doctor",), 4),
        (["verify"], ("verify",), 5),
        (["demo", "--quick"], ("demo", Path("out"), True), 6),
        (["demo", "--out", "x"], ("demo", Path("x"), False), 6),
    ],
)
def test_a_command_gets_its_arguments_and_gives_its_status(argv, call, status, calls, capsys):
    given = tuple(argv)
    assert cli.main(given) == status and calls == [call]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("argv", [[], ["-h"], ["--help"]])
def test_help_names_every_command(argv, calls, capsys):
    assert cli.main(argv) == 0 and not calls
    out, err = capsys.readouterr()
    assert out.startswith("usage: posgan-fast [-h] [--version] COMMAND ...\n") and not err
    assert all(re.search(rf"^    {command}\s", out, re.MULTILINE) for command in cli.COMMANDS)


@pytest.mark.parametrize("words", [[command] for command in cli.COMMANDS] + [["train", s] for s in ("mspie", "singan")])
def test_each_command_has_help(words, calls, capsys):
    assert cli.main([*words, "--help"]) == 0 and not calls
    out, err = capsys.readouterr()
    assert out.startswith(f"usage: posgan-fast {' '.join(words)} ") and not err
    if "mspie" in words:
        assert "iterations between checkpoints (default: 10000)" in " ".join(out.split())


def test_the_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr() == (f"{posgan_fast.__version__}\n", "")


@pytest.mark.parametrize(
    "argv, message",
    [
        (["docter", "--fix"], "invalid choice: 'docter'"),
        (["doctor", "cuda"], "unrecognized arguments: cuda"),
        (["demo", "--fast"], "unrecognized arguments: --fast"),
        (["run"], "posgan-fast run: error: expected SCRIPT.py or -m MODULE"),
        (["run", "--fast", "x.py"], "unrecognized arguments: --fast"),
        (["run", "--backend"], "argument --backend: expected one argument"),
        (["run", "--backend", "tpu", "x.py"], "argument --backend: --backend: expected one of"),
        (["run", "--device", "cuda", "x.py"], "argument --device: --device: expected"),
        (["run", "-m"], "posgan-fast run: error: -m: expected a module"),
        (["run", "--quiet=yes", "x.py"], "argument --quiet: ignored explicit argument 'yes'"),
        (["run", "no_such_script.py"], "SCRIPT.py: expected a file to run, got 'no_such_script.py'"),
        (["train"], "the following arguments are required: SYSTEM"),
        (["train", "vae"], "invalid choice: 'vae'"),
        (["train", "mspie", "--data", "x"], "the following arguments are required: --out"),
        (
            ["train", "mspie", "--data", "x", "--out", "y", "--batch", "two"],
            "argument --batch: invalid int value: 'two'",
        ),
        (["train", "mspie", "--data", "x", "--out", "y", "--config", "l"], "argument --config: invalid choice: 'l'"),
        (["sample", "x.pt"], "the following arguments are required: --out"),
        (["sample", "x.pt", "--out", "y", "--size", "9xx9"], "argument --size: expected a number or two with an x"),
        (["sample", "x.pt", "--out", "y", "--size", "9", "--scale", "2"], "not allowed with argument --size"),
    ],
)
def test_wrong_command_lines(argv, message, calls, capsys):
    assert cli.main(argv) == 2 and not calls
    out, err = capsys.readouterr()
    assert message in err and err.startswith("usage: posgan-fast") and not out


def test_the_module_runs_the_command_line_of_the_process(monkeypatch, calls):
    monkeypatch.setattr(sys, "argv", ["posgan-fast", "run", __file__])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module("posgan_fast", run_name="__main__")
    assert ended.value.code == 3 and calls == [("run", run.Program(__file__))]


def test_a_missing_package_is_named(monkeypatch, capsys):
    for name in [name for name in sys.modules if name.startswith(("posgan_fast.recipes", "posgan_fast.cli."))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(posgan_fast, "recipes", raising=False)
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert cli.main(["train", "mspie"]) == 2
    assert capsys.readouterr().err == "posgan-fast train: PIL is missing; pip install 'posgan_fast[train]'\n"


# train and sample


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "picture.png"
    rows = np.linspace(0, 255, 30)[:, None, None] * np.ones((30, 24, 3))
    Image.fromarray(rows.astype(np.uint8)).save(path)
    return path


@pytest.mark.parametrize("system", ["mspie", "singan", "pggan", "dcgan"])
def test_train_and_sample(system, picture, tmp_path, capsys):
    small = {
        "mspie": ["--size", "8", "--channel-max", "8", "--batch", "2", "--scales", "0", "2"],
        "singan": ["--min-size", "16", "--width", "4", "--iterations-per-stage", "1", "--config", "spe"],
        "pggan": ["--size", "8", "--max-channels", "8", "--batch", "2", "--config", "no-pad-spe"],
        "dcgan": ["--size", "8", "--base-channels", "8", "--batch", "2", "--config", "no-pad"],
    }[system]
    folder = tmp_path / "run"
    argv = ["train", system, "--data", str(picture), "--out", str(folder), "--iterations", "2", *small]
    assert cli.main(argv) == 0
    assert capsys.readouterr().out.endswith(f"{folder / 'checkpoint.pt'}\n")
    resumed = ["train", system, "--out", str(folder), "--resume", "--quiet"]
    assert cli.main([*resumed, "--iterations", "3"]) == 0  # all other settings are those of the run
    assert capsys.readouterr().out == ""
    assert cli.main([*resumed, "--seed", "1"]) == 1
    assert f"seed: expected 0, as in {folder / 'checkpoint.pt'}, got 1" in capsys.readouterr().err
    assert cli.main(argv) == 1
    assert capsys.readouterr().err.startswith(f"posgan-fast train: out: {folder} holds the checkpoint of a run")
    images = tmp_path / "images"
    assert cli.main(["sample", str(folder / "checkpoint.pt"), "--n", "3", "--out", str(images), "--grid"]) == 0
    assert sorted(path.name for path in images.iterdir()) == ["00000.png", "00001.png", "00002.png", "grid.png"]
    assert cli.main(["sample", str(folder / "checkpoint.pt"), "--n", "1", "--out", str(images)]) == 1
    assert "00000.png exists; choose another folder, or --overwrite" in capsys.readouterr().err
    sides = {"mspie": (8, 8), "singan": None, "pggan": (8, 8), "dcgan": (8, 8)}[system]
    one = Image.open(images / "00000.png")
    assert one.mode == "RGB" and sides in (None, one.size)
    assert cli.main(["sample", str(folder / "checkpoint.pt"), "--n", "1", "--out", str(tmp_path / "again")]) == 0
    assert (tmp_path / "again" / "00000.png").read_bytes() == (images / "00000.png").read_bytes()


def sampled(tmp_path, path, *more):
    assert cli.main(["sample", str(path), "--n", "1", "--overwrite", "--out", str(tmp_path / "images"), *more]) == 0
    return np.array(Image.open(tmp_path / "images" / "00000.png"))


def test_sizes_and_scales(tmp_path, capsys):
    G = models.mspie.generator("f", size=16, channel_max=8, z_dim=8, w_dim=8, mapping_layers=1)
    torch.save({"generator_ema": G.state_dict()}, tmp_path / "mspie.pt")
    head = ["--set", "head=spe", "up_after_conv=true"]
    assert sampled(tmp_path, tmp_path / "mspie.pt", "--scale", "2", *head).shape == (24, 24, 3)
    assert sampled(tmp_path, tmp_path / "mspie.pt", "--size", "16x28", *head).shape == (16, 28, 3)
    assert "nvlabs generator" in capsys.readouterr().out
    wide = sampled(tmp_path, tmp_path / "mspie.pt", "--scale", "0x3", *head)
    assert np.array_equal(wide, sampled(tmp_path, tmp_path / "mspie.pt", "--size", "16x28", *head))
    S = models.SinGANGenerator(2, encode="csg", width=4)
    torch.save(S.state_dict(), tmp_path / "singan.pth")
    noises = dict(fixed_noises=[torch.randn(1, 2, 9, 8), torch.zeros(1, 1, 12, 10)], noise_weights=[1, 0.1])
    torch.save(noises, tmp_path / "singan.pkl")
    pair = [tmp_path / "singan.pth", "--noises", str(tmp_path / "singan.pkl")]
    rgb = sampled(tmp_path, *pair, "--scale", "1x1.5", "--channels", "rgb")
    assert rgb.shape == (12, 15, 3)
    assert np.array_equal(sampled(tmp_path, *pair, "--scale", "1x1.5"), rgb[:, :, ::-1])


@pytest.mark.parametrize(
    "more, message",
    [
        (["--size", "12"], "size: expected a height of 16, 20, 24, ... , got 12"),
        (["--scale", "1.5"], "--scale: expected whole numbers for StyleGAN2, got 1.5"),
        (["--scale", "-1"], "scale[0]: expected an int >= 0, got -1"),
        (["--set", "head"], "--set: expected NAME=VALUE, got 'head'"),
        (["--set", "depth=3"], "depth: expected an argument of Generator"),
        (["--noises", "x.pkl"], "noises belong to a SinGAN, which it does not hold"),
        (["--n", "-1"], "n: expected an int >= 0, got -1"),
        (["--seed", "-1"], "seed: expected an int >= 0, got -1"),
        (["--psi", "1e300"], "psi: expected a number from -100 to 100, got 1e+300"),
        (["--scale", "1000000"], "not enough memory"),
        (["--set", "source=5"], "--set: expected NAME=VALUE, got 'source=5'"),
        (["--device", "tpu"], "device: expected auto, cpu, cuda or cuda:N, got 'tpu'"),
    ],
)
def test_sample_refuses(more, message, tmp_path, capsys):
    torch.save(models.Generator(16, channel_max=8, w_dim=8, z_dim=8, mapping_layers=1).state_dict(), tmp_path / "x.pt")
    assert cli.main(["sample", str(tmp_path / "x.pt"), "--out", str(tmp_path / "images"), *more]) == 1
    assert message in capsys.readouterr().err


def test_sample_refuses_files(tmp_path, capsys):
    assert cli.main(["sample", str(tmp_path / "alloc.pt"), "--out", str(tmp_path)]) == 1
    assert "alloc.pt" in capsys.readouterr().err
    (tmp_path / "x.pt").write_bytes(b"nonsense")
    assert cli.main(["sample", str(tmp_path / "x.pt"), "--out", str(tmp_path)]) == 1
    assert "neither a file of torch nor a pickle" in capsys.readouterr().err
    torch.save({"recipe": "dcgan", "settings": {"config": "original"}, "models": {}}, tmp_path / "x.pt")
    assert cli.main(["sample", str(tmp_path / "x.pt"), "--out", str(tmp_path)]) == 1
    assert "damaged checkpoint of posgan-fast train" in capsys.readouterr().err


def test_weights_that_are_not_finite_make_no_pictures(tmp_path, capsys):
    state = models.DCGANGenerator(8, z_dim=4, base_channels=8).state_dict()
    state["output_layer.conv.bias"] += float("nan")
    torch.save(state, tmp_path / "x.pt")
    assert cli.main(["sample", str(tmp_path / "x.pt"), "--out", str(tmp_path / "images")]) == 1
    assert "the generator makes numbers that are not finite" in capsys.readouterr().err
    assert not (tmp_path / "images").exists()


def test_assignments():
    assert [sample.assignment(f"x={text}")[1] for text in ("1", "1.5", "true", "none", "spe")] == [
        1,
        1.5,
        True,
        None,
        "spe",
    ]
