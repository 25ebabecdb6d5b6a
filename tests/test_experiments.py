"""The experiments: their statistics against other definitions, and their commands in small."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import stats

from posgan_fast import cli
from posgan_fast.experiments import EXPERIMENTS, stationarity

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


def test_every_experiment_has_a_command_and_its_results_in_docs(capsys):
    from test_readme import ROOT

    for name in EXPERIMENTS:
        assert cli.main(["experiment", name, "--help"]) == 0
        content = json.loads((ROOT / "docs" / "experiments" / f"{name}.json").read_text())
        assert content["experiment"] == name and content["outcome"]
        assert (ROOT / "docs" / "experiments" / f"{name}.png").exists()
    capsys.readouterr()
