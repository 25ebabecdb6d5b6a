"""Training: what a run leaves, that it resumes bit for bit, that processes agree, and what it refuses."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from small_trainings import SMALL, assert_equal, log, run, settings

from posgan_fast.models import CheckpointError, load_generator
from posgan_fast.recipes import (
    MSPIE,
    PGGAN,
    MSPIESettings,
    SinGAN,
    SinGANSettings,
    checkpoint,
    draws,
    images,
    load_sampler,
    losses,
    train,
)
from posgan_fast.recipes.singan import pyramid

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.mark.parametrize("name", SMALL)
def test_a_run_that_resumes_ends_as_one_that_never_stopped(name, data, tmp_path):
    """Weights, averages, optimisers, log: bit for bit, interrupted inside a stage and at its end."""
    whole = run(name, data, tmp_path / "whole")
    for part in (4, 5, 7):
        run(name, data, tmp_path / "parts", resume=part > 4, iterations=part)
    parts = run(name, data, tmp_path / "parts", resume=True)
    assert_equal(checkpoint.load(whole), checkpoint.load(parts))
    assert log(tmp_path / "whole") == log(tmp_path / "parts")
    assert [line["iteration"] for line in log(tmp_path / "parts")] == list(range(1, 11))
    assert all(np.isfinite(value) for line in log(tmp_path / "whole") for value in line.values())
    picture = Image.open(tmp_path / "whole" / "samples" / "0000010.png")
    assert picture.mode == "RGB" and min(picture.size) > 4
    assert json.loads((tmp_path / "whole" / "settings.json").read_text())["iterations"] == 10


@pytest.mark.parametrize("name", SMALL)
def test_weights_move_and_the_seed_counts(name, data, tmp_path):
    first, second, other = (
        checkpoint.load(run(name, data, tmp_path / str(k), iterations=n, seed=seed))["models"]["generator"]
        for k, (n, seed) in enumerate([(1, 0), (3, 0), (1, 1)])
    )
    weights = [key for key in first if key.endswith(("weight", "weight_orig")) and not re.match(r"blocks\.[1-9]", key)]
    moved = [key for key in weights if not torch.equal(first[key], second[key])]
    assert len(moved) >= 3
    assert not torch.equal(first[weights[0]], other[weights[0]])


def test_the_first_losses_are_those_of_the_formulas(data, tmp_path):
    """MS-PIE's first iteration by hand: R1 of weight 80, logistic losses."""
    device = torch.device("cpu")
    recipe = MSPIE(settings("mspie", data, tmp_path, scales=(0,)), device)
    pictures = images.to_float(next(recipe.batches(0)))
    drawn = draws.Draws(0, 0, 4, device, torch.float32)
    real = recipe.prepare(0, pictures, drawn)
    with torch.no_grad():
        fake = recipe.fakes(drawn, "discriminator")
    x = real.clone().requires_grad_()
    scores = recipe.D(x)
    (grad,) = torch.autograd.grad(scores.sum(), x)
    main = torch.nn.functional.softplus(recipe.D(fake)).mean() + torch.nn.functional.softplus(-scores).mean()
    expected = main + 80 * grad.square().sum((1, 2, 3)).mean()
    loss, numbers = recipe.discriminator_loss(0, fake, real, drawn)
    torch.testing.assert_close(loss, expected)
    assert "r1" in numbers and "r1" not in recipe.discriminator_loss(1, fake, real, drawn)[1]


def test_penalties_are_what_they_say():
    weight = torch.randn(3, 1, 1)
    real, fake, alpha = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4), torch.rand(2)

    def linear(x):
        return (x * weight).sum((1, 2, 3))

    pixel = losses.gradient_penalty(linear, real, fake, alpha, per_pixel=True)
    torch.testing.assert_close(pixel, (weight.norm() - 1) ** 2)
    image = losses.gradient_penalty(linear, real, fake, alpha, per_pixel=False)
    torch.testing.assert_close(image, (4 * weight.norm() - 1) ** 2)
    x = real.clone().requires_grad_()
    torch.testing.assert_close(losses.r1(linear(x), x), 16 * weight.norm() ** 2)
    ws = torch.randn(2, 5, 7, requires_grad=True)
    picture = ws.sum((1, 2))[:, None, None, None].expand(2, 1, 2, 2)
    noise = torch.randn(2, 1, 2, 2)
    lengths = losses.path_lengths(picture, ws, noise)
    torch.testing.assert_close(lengths, 7**0.5 * noise.sum((1, 2, 3)).abs() / 2)


def test_mspie_draws_scales_as_asked(data, tmp_path):
    recipe = MSPIE(settings("mspie", data, tmp_path, probabilities="paper"), torch.device("cpu"))
    counts = [[recipe.scale_of(k) for k in range(400)].count(scale) / 400 for scale in (0, 2, 4)]
    assert abs(counts[0] - 0.5) < 0.08 and abs(counts[1] - 0.25) < 0.08
    uniform = MSPIE(settings("mspie", data, tmp_path), torch.device("cpu"))
    assert abs([uniform.scale_of(k) for k in range(400)].count(0) / 400 - 1 / 3) < 0.08


def test_mspie_takes_batch_and_iterations_of_its_configuration():
    assert (MSPIESettings().batch, MSPIESettings().iterations) == (3, 1_100_002)
    large = MSPIESettings(config="f-1024", batch=0)
    assert (large.batch, large.iterations, MSPIESettings(config="f-1024", batch=5).batch) == (2, 1_500_002, 5)


def test_pggan_grows(data, tmp_path):
    recipe = PGGAN(settings("pggan", data, tmp_path), torch.device("cpu"))
    stages = [recipe.growth(k) for k in range(12)]
    assert stages[:3] == [(4, 1.0)] * 3 and stages[3:5] == [(8, 0.0), (8, 0.5)] and stages[5:7] == [(8, 1.0)] * 2
    assert stages[7:] == [(16, 0.0), (16, 0.5), (16, 1.0), (16, 1.0), (16, 1.0)]


def test_singan_pyramid_has_the_published_number_of_stages():
    """The sizes of the balloons picture, 186 x 248 with min 25 and max 250: nine stages, factors near 0.75."""
    reals = pyramid(torch.rand(1, 3, 186, 248), 25, 250)
    sizes = [tuple(real.shape[2:]) for real in reals]
    assert len(sizes) == 9 and sizes[0] == (25, 33) and sizes[-1] == (186, 248)
    assert all(0.7 < a[0] / b[0] < 0.85 for a, b in itertools.pairwise(sizes))
    assert max(pyramid(torch.rand(1, 3, 400, 600), 25, 120)[-1].shape[2:]) == 120
    with pytest.raises(ValueError, match="^data: expected a picture of at least 25 pixels a side, got 20 x 30"):
        pyramid(torch.rand(1, 3, 20, 30), 25, 250)
    with pytest.raises(ValueError, match="^max_size: expected at least 264 for a picture of 38 x 400 and min_size=25"):
        pyramid(torch.rand(1, 3, 38, 400), 25, 250)
    assert pyramid(torch.rand(1, 3, 38, 400), 25, 264)[0].shape[2:] == (25, 264)


def test_singan_stages_follow_each_other(data, tmp_path):
    """Noise has a tenth of the error of the stage before; the checkpoint is a pair of weights and noises."""
    path = run("singan", data, tmp_path / "out", iterations=0)
    content = checkpoint.load(path)
    stages = content["stage"] + 1
    assert content["iteration"] == 5 * stages and len(content["noise_weights"]) == stages == len(
        content["fixed_noises"]
    )
    assert content["noise_weights"][0] == 1 and all(0 < w < 0.2 for w in content["noise_weights"][1:])
    loaded = load_sampler(path).generator
    assert loaded.encode == "spe" and loaded.reconstruct().shape[2:] == (24, 30)
    assert torch.equal(loaded.noises[0], content["fixed_noises"][0])


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", SMALL)
def test_autocast(name, precision, data, tmp_path):
    run(name, data, tmp_path / "out", iterations=2, precision=precision)
    assert all(np.isfinite(value) for line in log(tmp_path / "out") for value in line.values())
    weights = checkpoint.load(tmp_path / "out" / "checkpoint.pt")["models"]["generator"]
    assert all(value.dtype == torch.float32 for value in weights.values() if value.is_floating_point())


def test_a_trained_generator_loads_from_the_checkpoint(data, tmp_path):
    path = run("mspie", data, tmp_path / "out", iterations=1, config="f")
    sampler = load_sampler(path)
    assert sampler.generator(torch.randn(1, 512), scale=1).shape == (1, 3, 10, 10)
    theirs = MSPIE(settings("mspie", data, tmp_path, config="f"), torch.device("cpu")).G_ema
    theirs.load_state_dict(checkpoint.load(str(path))["models"]["generator_ema"])
    z = torch.randn(2, 512)
    with torch.no_grad():
        assert torch.equal(sampler.generator(z, noise_mode="none"), theirs(z, noise_mode="none"))
    with pytest.raises(CheckpointError, match=r"recipes\.load_sampler\(path\)\.generator has its generator"):
        load_generator(path, head="spe")  # which would assume that it upsamples by a transposed convolution
    with pytest.raises(
        TypeError, match="^head: expected none for .*, a checkpoint of posgan-fast train, which has its"
    ):
        load_sampler(path, head="spe")


_TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
_COMMAND = ["-m", "posgan_fast", "train", "mspie", "--size", "8", "--channel-max", "8", "--log-every", "1", "--quiet"]


def test_two_processes_train_as_one_with_the_doubled_batch(data, tmp_path):
    """Losses of 20 iterations, on which only rounding differs: gradients are summed in another order.

    Adam divides by the root of the squared gradient, so a relative error of 1e-7 in a small gradient is one of 1e-7 in
    its step; twenty steps and a leaky ReLU at its kink leave 1e-3.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    common = [*_COMMAND, "--data", str(data), "--iterations", "20"]
    two = [*_TORCHRUN, "2", *common, "--batch", "4", "--out", str(tmp_path / "two")]
    subprocess.run(two, check=True, env=environment, capture_output=True, timeout=200)
    run("mspie", data, tmp_path / "one", batch=8, iterations=20)
    for ours, theirs in zip(log(tmp_path / "two"), log(tmp_path / "one"), strict=True):
        assert ours.keys() == theirs.keys()
        for name, value in ours.items():
            assert value == pytest.approx(theirs[name], rel=1e-3, abs=1e-5), (name, ours, theirs)


def test_a_run_of_two_processes_that_is_killed_resumes(data, tmp_path):
    """SIGKILL to both at iteration 10 or later, after the checkpoint of iteration 10 at the earliest."""

    def start(out: str, iterations: int, *more: str) -> list[subprocess.Popen]:
        """Start what torchrun starts, which would leave its processes behind when it is killed."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        common["OMP_NUM_THREADS"] = "1"  # the number of threads decides the order of sums
        arguments = ["--data", str(data), "--batch", "2", "--out", str(tmp_path / out), "--iterations", str(iterations)]
        command = [sys.executable, *_COMMAND, *arguments, "--save-every", "10", *more]
        return [subprocess.Popen(command, env=os.environ | common | {"RANK": rank}) for rank in "01"]

    def finish(processes: list[subprocess.Popen]) -> None:
        assert [process.wait(120) for process in processes] == [0, 0]

    processes = start("killed", 100_000)
    path = tmp_path / "killed" / "checkpoint.pt"
    deadline = time.monotonic() + 120
    while not path.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    for process in processes:
        process.kill()
        process.wait()
    reached = checkpoint.load(path)["iteration"]
    assert reached >= 10 and reached % 10 == 0
    finish(start("killed", reached + 3, "--resume"))
    finish(start("whole", reached + 3))
    assert_equal(checkpoint.load(path), checkpoint.load(tmp_path / "whole" / "checkpoint.pt"))
    assert log(tmp_path / "killed") == log(tmp_path / "whole")
    assert not list((tmp_path / "killed").glob(".*.part"))


def test_ctrl_c_saves_and_says_how_to_go_on(data, tmp_path):
    arguments = [sys.executable, *_COMMAND[:-1], "--data", str(data), "--batch", "4", "--out", str(tmp_path / "out")]
    process = subprocess.Popen([*arguments, "--iterations", "100000"], stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    deadline = time.monotonic() + 120
    lines = tmp_path / "out" / "metrics.jsonl"
    while not (lines.exists() and lines.read_text().count("\n") > 2) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 130 and b"--resume continues it" in out
    done = checkpoint.load(tmp_path / "out" / "checkpoint.pt")["iteration"]
    assert done >= 3 and log(tmp_path / "out")[-1]["iteration"] == done


def test_a_run_that_diverges_keeps_its_last_checkpoint(data, tmp_path):
    path = run("dcgan", data, tmp_path / "out", iterations=2)
    content = checkpoint.load(path)
    content["models"]["generator"]["output_layer.conv.bias"] += float("nan")
    torch.save(content, path)
    before = path.read_bytes()
    with pytest.raises(
        ValueError, match=r"^loss_[DG]: (nan|inf) at iteration \d+; .*checkpoint.pt holds the last save"
    ):
        run("dcgan", data, tmp_path / "out", iterations=9, resume=True)
    assert path.read_bytes() == before
    assert "NaN" not in (tmp_path / "out" / "metrics.jsonl").read_text()


# Refusals

BAD = [
    ("mspie", dict(data=""), ValueError, "^data: expected a folder, a zip archive or a picture"),
    ("mspie", dict(out=""), ValueError, "^out: expected a folder for the results"),
    ("mspie", dict(config="l"), ValueError, "^config: expected one of"),
    ("dcgan", dict(batch=0), ValueError, "^batch: expected an int >= 1, got 0"),
    ("mspie", dict(batch=-1), ValueError, "^batch: expected an int >= 0, got -1"),
    ("mspie", dict(iterations=2.5), TypeError, "^iterations: expected an int, got float"),
    ("mspie", dict(seed=-1), ValueError, "^seed: expected an int >= 0, got -1"),
    ("mspie", dict(precision="int8"), ValueError, "^precision: expected one of"),
    ("mspie", dict(device="cuda"), ValueError, "^device: expected one that torch can use here, got 'cuda'"),
    ("mspie", dict(device="tpu"), ValueError, "^device: expected auto, cpu, cuda or cuda:N, got 'tpu'"),
    ("mspie", dict(scales=()), ValueError, "^scales: expected one int or more"),
    ("mspie", dict(scales=(0, -2)), ValueError, "^scales: expected an int >= 0, got -2"),
    ("mspie", dict(scales=(0, 2), probabilities="paper"), ValueError, "^probabilities: the paper has three, for 2"),
    ("mspie", dict(compile="yes"), TypeError, "^compile: expected a bool, got str"),
    ("singan", dict(compile=True), ValueError, "^compile: expected False; the penalty differentiates twice"),
    ("singan", dict(max_size=5), ValueError, "^max_size: expected an int >= 12, got 5"),
    ("singan", dict(config="spe2"), ValueError, "^config: expected one of"),
    ("singan", dict(learning_rate="fast"), TypeError, "^learning_rate: expected a number, got str"),
    ("dcgan", dict(size=12), ValueError, "^size: expected a power of two >= 8, got 12"),
    ("dcgan", dict(learning_rate=-1.0), ValueError, "^learning_rate: expected a number >= 0, got -1"),
    ("dcgan", dict(average=2.0), ValueError, "^average: expected a number above 0 and up to 1, got 2.0"),
    ("dcgan", dict(seed=2**64), ValueError, "^seed: expected an int <= "),
    ("pggan", dict(batch=6), ValueError, "^batch: expected up to 4 or a multiple of it, got 6"),
    ("dcgan", dict(base_channels=3), ValueError, "^base_channels: expected a multiple of"),
    ("pggan", dict(images=0), ValueError, "^images: expected an int >= 1, got 0"),
    ("pggan", dict(layout="tf"), ValueError, "^layout: expected one of"),
    ("pggan", dict(data="/no/such/folder"), FileNotFoundError, "^data: no such file or folder: /no/such/folder"),
]  # fmt: skip


@pytest.mark.parametrize("name, arguments, error, message", BAD)
def test_refusals(name, arguments, error, message, data, tmp_path):
    if arguments.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("torch can use a GPU here")
    with pytest.raises(error, match=message):
        run(name, data, **{"out": tmp_path / "out", "iterations": 1, **arguments})
    assert not (tmp_path / "out" / "checkpoint.pt").exists()


def test_settings_take_paths_and_belong_to_their_recipe(data, tmp_path):
    kinds = MSPIESettings(data=data, out=tmp_path / "out"), MSPIESettings(data=str(data), out=str(tmp_path / "out"))
    assert kinds[0] == kinds[1] and kinds[0].size == 256
    with pytest.raises(TypeError, match="^settings: expected SinGANSettings, got MSPIESettings"):
        train(SinGAN, kinds[0])


def test_refusals_of_data_and_folders(data, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "x.png").write_text("text")
    with pytest.raises(ValueError, match=r"^data: expected pictures \(.*\) in .*empty, got none; unreadable: x.png"):
        run("dcgan", tmp_path / "empty", tmp_path / "out")
    with pytest.raises(ValueError, match="^data: expected one picture, got 7 in"):
        train(SinGAN, SinGANSettings(data=str(data), out=str(tmp_path / "out")), quiet=True)
    with pytest.raises(FileNotFoundError, match="checkpoint.pt: no such checkpoint"):
        run("dcgan", data, tmp_path / "out", resume=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "metrics.jsonl").write_text("mine")
    with pytest.raises(ValueError, match="^out: .*mine holds a file metrics.jsonl, which is not overwritten"):
        run("dcgan", data, tmp_path / "mine")
    with pytest.raises(ValueError, match="^out: expected a folder outside the data, got"):
        run("dcgan", data, data / "inside")
    run("dcgan", data, tmp_path / "out", iterations=1)
    (tmp_path / "out" / "metrics.jsonl").open("ab").write(b'\xff\n{"iteration": Infinity}\n')
    run("dcgan", data, tmp_path / "out", iterations=2, resume=True)
    assert [line["iteration"] for line in log(tmp_path / "out")] == [1, 2]
    with pytest.raises(ValueError, match="^iterations: expected at least the 2 that are done, got 1"):
        run("dcgan", data, tmp_path / "out", iterations=1, resume=True)
    with pytest.raises(ValueError, match="^out: .* holds the checkpoint of a run; resume it, or choose another folder"):
        run("dcgan", data, tmp_path / "out", iterations=2)
    with pytest.raises(ValueError, match="^base_channels: expected 16, as in .*checkpoint.pt, got 32"):
        run("dcgan", data, tmp_path / "out", iterations=2, base_channels=32, resume=True)
