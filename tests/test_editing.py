"""SeFa: the directions of the weights, edited images, and the command that draws them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from posgan_fast import cli
from posgan_fast.models import Generator, SinGANGenerator
from posgan_fast.recipes import editing

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def generator():
    torch.manual_seed(0)
    return Generator(16, z_dim=8, w_dim=8, channel_max=8, mapping_layers=1).eval()


def test_directions_are_the_singular_vectors_of_the_style_layers(generator):
    """numpy's factorisation of the five affine weights by their names."""
    state = generator.state_dict()
    names = ["b4.conv1", "b8.conv0", "b8.conv1", "b16.conv0", "b16.conv1"]
    weights = np.concatenate([state[f"synthesis.{name}.affine.weight"].double().numpy() for name in names])
    directions, values = editing.sefa(generator)
    theirs, found = np.linalg.eigh(weights.T @ weights)
    np.testing.assert_allclose(values.double().square(), theirs[::-1], rtol=1e-5)
    np.testing.assert_allclose(np.abs((directions.double().numpy() * found[:, ::-1]).sum(0)), 1, rtol=1e-5)
    largest = directions.gather(0, directions.abs().argmax(0, keepdim=True))
    assert bool((largest > 0).all())


def test_edits_move_the_latents_of_the_chosen_layers(generator):
    ws = torch.randn(2, generator.num_ws, 8)
    direction = editing.sefa(generator)[0][:, 1]
    images = editing.edited(generator, ws, direction, [-2.0, 0.0, 3.0], layers=[1, 2], noise_mode="none")
    moved = ws.clone()
    moved[:, 1:3] += 3 * direction
    torch.testing.assert_close(images[2], generator.synthesis(moved, noise_mode="none"))
    torch.testing.assert_close(images[1], generator.synthesis(ws, noise_mode="none"))
    assert not torch.equal(images[0], images[1])
    with pytest.raises(ValueError, match="^layers: expected an int <= 5, got 6"):
        editing.edited(generator, ws, direction, [1.0], layers=[6])
    with pytest.raises(TypeError, match="^generator: expected a StyleGAN2 generator, got SinGANGenerator"):
        editing.sefa(SinGANGenerator(1))


def test_the_command_draws_a_labelled_strip_for_each_direction(generator, tmp_path, capsys):
    torch.save(generator.state_dict(), tmp_path / "x.pt")
    argv = ["edit", "sefa", str(tmp_path / "x.pt"), "--out", str(tmp_path / "out"), "--n", "2", "--steps", "5"]
    assert cli.main([*argv, "--directions", "0", "3", "--scale", "1x2"]) == 0
    first = Image.open(tmp_path / "out" / "direction-000.png")
    assert first.size == (5 * (24 + 2) - 2, 2 * (20 + 2) - 2 + 28) and first.mode == "RGB"
    second = Image.open(tmp_path / "out" / "direction-003.png")
    column = (2 * 26, 28, 3 * 26 - 2, first.height)  # degree 0: the same images in both strips
    assert np.array_equal(np.array(first.crop(column)), np.array(second.crop(column)))
    assert not np.array_equal(np.array(first), np.array(second))
    assert bool((np.array(first.crop((0, 0, first.width, 28))) < 128).any())
    capsys.readouterr()
    assert cli.main([*argv, "--directions", "2", "3"]) == 1
    assert "direction-003.png exists; choose another folder, or --overwrite" in capsys.readouterr().err
    assert cli.main([*argv, "--directions", "2", "3", "--overwrite"]) == 0
    argv.append("--overwrite")
    for more, message in (
        (["--directions", "8"], "--directions: expected 0 to 7, got 8"),
        (["--steps", "1"], "--n, --steps: expected at least 1 and 2, got 2 and 1"),
        (["--scale", "0.5"], "--scale: expected whole numbers for StyleGAN2, got 0.5"),
        (["--layers", "9"], "layers: expected an int <= 5, got 9"),
    ):
        assert cli.main([*argv, *more]) == 1
        assert message in capsys.readouterr().err
    torch.save(SinGANGenerator(1, width=4).state_dict(), tmp_path / "x.pt")
    assert cli.main(argv) == 1
    assert "expected a StyleGAN2 generator, got a SinGAN" in capsys.readouterr().err
