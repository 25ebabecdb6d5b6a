"""The experiments: their statistics against other definitions, and their commands in small."""

from __future__ import annotations

import json

import numpy as np
import ot
import pytest
import torch
from PIL import Image
from scipy import ndimage, stats

from posgan_fast import cli
from posgan_fast.experiments import EXPERIMENTS, pictures, singan, sliced_wasserstein, stationarity, swd
from posgan_fast.recipes.draws import generator

pytestmark = pytest.mark.usefixtures("one_thread")


def test_hotelling_is_the_t_test_in_one_dimension_and_holds_its_level():
    random = np.random.default_rng(0)
    one = random.normal(0.1, 1, (200, 1))
    doubled = np.concatenate([one, random.normal(0, 1, (200, 1))], 1)
    assert stationarity.hotelling(doubled) > 0
    t = stats.ttest_1samp(one[:, 0], 0).pvalue
    f = stats.f.sf(stats.ttest_1samp(one[:, 0], 0).statistic ** 2, 1, 199)
    assert t == pytest.approx(f)
    rejected = np.mean([stationarity.hotelling(random.normal(0, 1, (60, 4))) < 0.05 for _ in range(1000)])
    assert 0.03 < rejected < 0.07
    assert stationarity.hotelling(random.normal(0, 1, (200, 4)) + 0.5) < 1e-6


def test_border_minus_centre():
    values = torch.zeros(2, 3, 24, 24)
    values[:, 1] = 5
    values[:, 2, 3:-3, 3:-3] = 1
    torch.testing.assert_close(stationarity.border_minus_centre(values), torch.tensor([[0.0, 0, -1]] * 2))


@pytest.mark.parametrize("padding", stationarity.PADDINGS)
def test_only_without_padding_the_position_is_lost(padding):
    found = stationarity.measure(padding, 400, seed=3)
    stationary = found["p_mean"] > 0.01 and found["p_correlation"] > 0.01
    assert stationary == (padding == "none")
    assert found["mean"].shape == (24, 24) and found["correlation"].shape == (24, 23)


def test_stationarity_writes_figure_and_numbers(tmp_path, capsys):
    assert cli.main(["experiment", "stationarity", "--draws", "100", "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out.strip()
    content = json.loads((tmp_path / "stationarity.json").read_text())
    assert content["outcome"] == said and content["settings"]["draws"] == 100
    spread = content["constant input, spread over positions"]
    assert spread["no padding"] < 1e-4 < 0.1 < spread["padded"]
    assert Image.open(tmp_path / "stationarity.png").width > 500
    assert cli.main(["experiment", "stationarity", "--draws", "5", "--out", str(tmp_path)]) == 1
    assert "--draws: expected at least 32, got 5" in capsys.readouterr().err


@pytest.mark.parametrize("size", [(32, 32), (40, 72)])
def test_laplacian_pyramid(size):
    """By scipy, which mirrors the image with its stuffed zeros at its outermost pixels."""
    taps = np.array([1, 4, 6, 4, 1]) / 16
    kernel = np.outer(taps, taps)[None, None]
    images = torch.randn(2, 3, *size, dtype=torch.float64)
    levels = sliced_wasserstein.laplacian_pyramid(images, 2)
    assert [tuple(level.shape[2:]) for level in levels] == [size, tuple(side // 2 for side in size)]
    x = images.numpy()
    half = ndimage.convolve(x, kernel, mode="mirror")[:, :, ::2, ::2]
    stuffed = np.zeros_like(x)
    stuffed[:, :, ::2, ::2] = half
    detail = x - 4 * ndimage.convolve(stuffed, kernel, mode="mirror")
    torch.testing.assert_close(levels[0], torch.from_numpy(detail))
    torch.testing.assert_close(levels[1], torch.from_numpy(half))


def test_descriptors_are_patches_normalised_over_the_set():
    images = torch.randn(3, 2, 16, 20, dtype=torch.float64) * 3 + 5
    found = sliced_wasserstein.descriptors(images, generator(0)).reshape(3, 64, 2, 7, 7)
    torch.testing.assert_close(found.mean((0, 1, 3, 4)), torch.zeros(2, dtype=torch.float64), rtol=0, atol=1e-12)
    torch.testing.assert_close(found.square().mean((0, 1, 3, 4)), torch.ones(2, dtype=torch.float64))
    random = generator(0)
    rows, columns = (torch.randint(side - 6, (3, 64), generator=random) for side in (16, 20))
    assert rows.max() == 9 and columns.max() == 13 and rows.min() == columns.min() == 0
    patch = images[2, :, rows[2, 5] : rows[2, 5] + 7, columns[2, 5] : columns[2, 5] + 7]
    other = images[1, :, rows[1, 9] : rows[1, 9] + 7, columns[1, 9] : columns[1, 9] + 7]
    scale = (patch - other) / (found[2, 5] - found[1, 9])  # one number a channel
    torch.testing.assert_close(scale, scale[:, :1, :1].expand_as(scale))


def test_sliced_distance_of_every_level_by_sorting():
    real, fake = torch.randn(12, 3, 32, 32).double(), torch.randn(12, 3, 32, 32).double().cumsum(3)
    found = sliced_wasserstein.multi_level(real, fake, seed=3)
    pyramids = [sliced_wasserstein.laplacian_pyramid(images, 2) for images in (real, fake)]
    expected = {}
    for level, name in enumerate(("32x32", "16x16")):
        a, b = (
            sliced_wasserstein.descriptors(pyramid[level], generator(3, "patches", level, k)).numpy()
            for k, pyramid in enumerate(pyramids)
        )
        directions = ot.sliced.get_random_projections(a.shape[1], 128, 3)  # [147, 128], of length 1
        np.testing.assert_allclose(np.linalg.norm(directions, axis=0), 1)
        expected[name] = 1000 * np.mean([np.abs(np.sort(a @ d) - np.sort(b @ d)).mean() for d in directions.T])
    expected["mean"] = (expected["32x32"] + expected["16x16"]) / 2
    assert found == pytest.approx(expected)
    more = torch.randn(96, 3, 32, 32)
    alike = sliced_wasserstein.multi_level(more[:48], more[48:])["mean"]
    assert alike < 0.5 * sliced_wasserstein.multi_level(more[:48], more[48:].cumsum(3))["mean"]


def test_sliced_distance_refuses_other_sizes():
    with pytest.raises(ValueError, match=r"^fake: expected images of \[3, 32, 32\], got \[3, 16, 32\]"):
        sliced_wasserstein.multi_level(torch.zeros(2, 3, 32, 32), torch.zeros(2, 3, 16, 32))
    with pytest.raises(ValueError, match=r"^images: expected sides that are multiples of 4 from 28 on, got shape"):
        sliced_wasserstein.multi_level(*[torch.zeros(2, 3, 30, 32)] * 2, levels=3)
    same = sliced_wasserstein.multi_level(torch.zeros(2, 3, 32, 32), torch.zeros(2, 3, 32, 32))
    assert same == {"32x32": 0, "16x16": 0, "mean": 0}


def coloured_photograph() -> torch.Tensor:
    ramp = torch.linspace(-1, 1, 40)[:, None].expand(40, 60).sin()
    return ramp * 0.3 + torch.tensor([-0.6, 0, 0.6])[:, None, None] + torch.randn(1, 3, 40, 60) / 20


def test_measures_of_singan_know_a_photograph_from_its_colour():
    real = coloured_photograph()
    same = singan.measures(real + torch.randn(8, 3, 40, 60) / 20, real)
    assert same["layout"] > 0.95 and same["centre"] < 0.2 and same["spread"] == pytest.approx(1, abs=0.1)
    wide = torch.nn.functional.interpolate(real, (40, 90)) + torch.randn(8, 3, 40, 90) / 20
    assert singan.measures(wide, real)["layout"] > 0.9
    colour = singan.measures(real.mean((2, 3), keepdim=True) + torch.randn(8, 3, 40, 60) / 20, real)
    assert abs(colour["layout"]) < 0.1 and colour["border"] > 0.3
    frozen = real + torch.randn(8, 3, 40, 60)
    frozen[:, :, :8] = 0
    assert singan.measures(frozen, real)["spread"] < 0.8


def test_patches_at_the_border_and_in_the_centre():
    images = torch.zeros(2, 3, 30, 40)
    images[:, :, 0] = 1
    border, centre = singan.patches(images)
    assert border.shape == (2 * (2 * 24 + 2 * 34 - 4), 147) and centre.shape == (2 * 12 * 18, 147)
    assert centre.max() == 0 and border.max() == 1
    numbered = torch.arange(50.0)[:, None, None, None].expand(50, 3, 30, 40)
    for chosen in singan.patches(numbered):
        assert len(chosen) == singan.MOST and set(chosen[:, 0].tolist()) == set(range(50))


def test_pictures():
    assert pictures.photograph("coins").shape == (303, 384, 3) and pictures.photograph("rocket").dtype == np.uint8
    faces = pictures.faces(32)
    assert faces.shape == (200, 3, 32, 32) and -1 <= faces.min() < -0.9 < 0.9 < faces.max() <= 1
    assert torch.equal(faces[100], faces[0].flip(2)) and not torch.equal(faces[0], faces[1])
    resized = pictures.faces(64, 40)
    assert resized.shape == (200, 3, 40, 40) and torch.equal(resized[..., 0, 0], pictures.faces(64)[..., 0, 0])


SMALL = {
    "singan": ["singan", "--iterations-per-stage", "1", "--max-size", "50", "--width", "4", "--images", "2"],
    "swd": ["swd", "--iterations", "2", "--seeds", "2", "--images", "8"],
    "swd-pggan": ["swd", "--system", "pggan", "--iterations", "2", "--seeds", "2", "--images", "8"],
    "mspie": ["mspie", "--iterations", "1", "--channel-max", "8", "--images", "4"],
}


@pytest.mark.parametrize("name", SMALL)
def test_experiments_in_small(name, tmp_path, capsys):
    assert cli.main(["experiment", *SMALL[name], "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out.strip().splitlines()[-1]
    content = json.loads((tmp_path / f"{name}.json").read_text())
    assert content["outcome"] == said and content["settings"]
    assert Image.open(tmp_path / f"{name}.png").width > 500


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["singan", "--images", "1"], "--images: expected at least 2, got 1"),
        (
            ["singan", "--max-size", "20"],
            "max_size: expected at least 38 for a picture of 427 x 640 and min_size=25, got 20",
        ),
        (["swd", "--seeds", "1"], "--seeds: expected at least 2, for a deviation, got 1"),
        (["singan", "--iterations-per-stage", "0"], "iterations_per_stage: expected an int >= 1, got 0"),
        (["swd", "--images", "7"], "--images: expected 8 to 200, got 7"),
        (["swd", "--iterations", "0"], "iterations: expected an int >= 1, got 0"),
        (["mspie", "--images", "3"], "--images: expected 4 to 200, got 3"),
        (["mspie", "--iterations", "0"], "--iterations: expected at least 1, got 0"),
        (["mspie", "--channel-max", "4"], "channel_max: expected at least 8 in the layout 'mmgen'"),
        (["stationarity", "--seed", "-1"], "--seed: expected an int >= 0, got -1"),
        (["mspie", "--channel-max", "0"], "channel_max: expected an int >= 1, got 0"),
    ],
)
def test_arguments_of_experiments(arguments, message, tmp_path, capsys):
    assert cli.main(["experiment", *arguments, "--out", str(tmp_path)]) == 1
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_padinv_writes_two_figures_and_keeps_its_networks(tmp_path, capsys):
    small = ["--iterations", "2", "--encoder-iterations", "1", "--steps", "2", "--channel-max", "16"]
    assert cli.main(["experiment", "padinv", *small, "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out.splitlines()[-2:]
    for name, sentence in zip(("padinv", "padinv-editing"), said, strict=True):
        assert json.loads((tmp_path / f"{name}.json").read_text())["outcome"] == sentence
        assert Image.open(tmp_path / f"{name}.png").width > 300
    kept = {path.name for path in (tmp_path / "padinv").iterdir()}
    assert {"faces", "held-out", "generator", "encoder", "encoder-0", "encoder-0-1-3-5-7"} <= kept
    assert len(list((tmp_path / "padinv" / "held-out").iterdir())) == 20
    assert cli.main(["experiment", "padinv", *small, "--out", str(tmp_path)]) == 1
    assert "with the networks of a run; choose another folder" in capsys.readouterr().err
    assert cli.main(["experiment", "padinv", "--channel-max", "12", "--out", str(tmp_path)]) == 1
    assert "--channel-max: expected a multiple of 8, at least 16, got 12" in capsys.readouterr().err


def test_the_folder_is_made_before_the_experiment_runs(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert cli.main(["experiment", "mspie", "--out", str(tmp_path / "file")]) == 1
    assert (
        f"--out: expected a folder that can be written, got {tmp_path / 'file'}: File exists" in capsys.readouterr().err
    )
    assert cli.main(["experiment", "swd", "--seed", "7"]) == 2  # which is not --seeds
    assert "unrecognized arguments: --seed 7" in capsys.readouterr().err


def test_what_the_sentences_say():
    def singan_with(*layouts):
        return singan._sentence(
            {
                name: {"measures": {"1x": {"layout": value}, "1.5x": {"layout": value}}}
                for name, value in zip(singan.CONFIGS, layouts, strict=True)
            }
        )

    assert "lost with: no padding, SPE alone. Among the published generators this is as" in singan_with(
        0.8, 0.2, 0.8, 0.8, 0.8, 0.1
    )
    assert "lost with: none. Among the published generators this is unlike" in singan_with(*[0.8] * 6)
    assert singan_with(*[0.1] * 6).endswith("Zero padding itself has not learnt the layout, so nothing follows.")
    assert swd._change([1, 2, 3], [3, 4, 4]) == "raises it (+1.7, standard error 0.3)"
    assert swd._change([3, 4, 4], [1, 2, 3]) == "lowers it (-1.7, standard error 0.3)"
    assert swd._change([1, 2, 3], [3, 1, 3]) == "does not change it significantly (+0.3, standard error 0.9)"


def test_every_experiment_has_a_command_and_its_results_in_docs(capsys):
    from test_readme import ROOT

    for name in EXPERIMENTS:
        assert cli.main(["experiment", name, "--help"]) == 0
        content = json.loads((ROOT / "docs" / "experiments" / f"{name}.json").read_text())
        assert content["experiment"] == name and content["outcome"]
        assert (ROOT / "docs" / "experiments" / f"{name}.png").exists()
    capsys.readouterr()
