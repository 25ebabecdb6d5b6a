"""Codes, inversion and editing in padding space."""

from __future__ import annotations

import json
import os
import pickle
import re
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from posgan_fast import functional as PF
from posgan_fast.cli import main
from posgan_fast.models import CheckpointError, Generator, PadInvEncoder
from posgan_fast.recipes import codes, inversion
from posgan_fast.recipes.codes import Codes


@pytest.fixture(scope="module")
def generator():
    return make(0)


def make(seed, size=16, dtype=torch.float32, **arguments):
    """Make a generator whose noise and biases are not zero, so that nothing is right by chance."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        G = Generator(size, z_dim=16, w_dim=16, channel_max=16, mapping_layers=1, **arguments)
        for name, p in G.named_parameters():
            if name.endswith(("noise_strength", "conv0.bias", "conv1.bias", "torgb.bias")):
                torch.nn.init.normal_(p, std=0.2)
        G.mapping.w_avg.normal_()
    return G.eval().requires_grad_(False).to(dtype)


def draw(generator, n=1, seed=0, layers=(0, 1, 3)):
    """Draw codes around the average, with maps at some layers."""
    random = torch.Generator().manual_seed(seed)
    like = next(generator.parameters())
    ws = generator.mapping.w_avg + 0.5 * torch.randn(n, generator.num_ws, 16, generator=random).to(like)
    maps = [
        torch.randn(n, *size, generator=random).to(like) if size is not None and k in layers else None
        for k, size in enumerate(generator.synthesis.pad_map_sizes())
    ]
    return codes.codes_of(generator, ws, maps, [f"{seed}.{k}" for k in range(n)]), maps


# Codes


def test_codes_keep_the_ring_of_a_map_and_the_centre_of_the_first(generator):
    found, maps = draw(generator, 2)
    larger = [None if p is None else torch.nn.functional.pad(p, (3, 2, 2, 3), value=7.0) for p in maps]
    again = codes.codes_of(generator, found.ws, larger)
    assert found.pad_maps[0].shape == (2, 16, 4, 4) and found.pad_maps[3].shape == (2, 16, 36)
    assert torch.equal(again.pad_maps[0], torch.nn.functional.pad(maps[0], (3, 2, 2, 3), value=7.0)[:, :, 2:6, 2:6])
    assert torch.equal(found.pad_maps[1], PF.ring_from_map(maps[1]))
    image = generator.synthesis(found.ws, pad_maps=maps, noise_mode="const")
    assert torch.equal(codes.render(generator, found), image)


def test_more_latents_than_the_generator_has_are_dropped(generator):
    found = codes.codes_of(generator, torch.arange(8.0).reshape(1, 8, 1).expand(1, 8, 16))
    assert found.ws[0, :, 0].tolist() == [0, 1, 2, 3, 4, 5]


def test_a_file_holds_the_documented_tensors_and_gives_the_codes_back_bit_for_bit(generator, tmp_path):
    from safetensors import safe_open

    found, _ = draw(generator, 2)
    path = tmp_path / "sub" / "two.safetensors"
    codes.save_codes(path, found, generator)
    with safe_open(path, "pt") as file:
        assert set(file.keys()) == {"ws", "pad_maps.0", "pad_maps.1", "pad_maps.3"}
        assert file.metadata() == {
            "format": "posgan_fast codes", "schema": "1", "names": '["0.0", "0.1"]',
            "generator": codes.fingerprint(generator),
        }  # fmt: skip
    again = codes.load_codes(path, generator)
    assert again.names == ("0.0", "0.1") and torch.equal(again.ws, found.ws)
    for p, q in zip(again.pad_maps, found.pad_maps, strict=True):
        assert (p is None) == (q is None) and (p is None or torch.equal(p, q))
    assert os.listdir(path.parent) == ["two.safetensors"]


def test_the_fingerprint_follows_what_draws_the_image_and_nothing_else():
    one, same, other, noisy = make(0), make(0), make(1), make(0)
    same.mapping.w_avg.zero_()
    noisy.synthesis.b8.conv0.noise_const[0, 0] += 1e-3
    marks = [codes.fingerprint(G) for G in (one, same, other, noisy)]
    assert marks[0] == marks[1] and len(set(marks)) == 3
    settings = [dict(conv_clamp=1.0), dict(activation="relu"), dict(up_after_conv=True)]
    assert len({codes.fingerprint(make(0, **one)) for one in settings} | {marks[0]}) == 4


class _Trap:
    def __reduce__(self):
        return os.mkdir, ("trapped",)


def _content(G, changes):
    tensors = {"ws": torch.zeros(1, 6, 16)}
    metadata = {
        "format": "posgan_fast codes", "schema": "1", "generator": codes.fingerprint(G), "names": '["a"]',
    }  # fmt: skip
    metadata |= {name: value for name, value in changes.items() if isinstance(value, str)}
    tensors |= {name.replace("_0", ".0"): value for name, value in changes.items() if isinstance(value, torch.Tensor)}
    return tensors, metadata


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(schema="2"), "expected 'posgan_fast codes' of schema '1', got 'posgan_fast codes', '2'"),
        (dict(format="other"), "expected 'posgan_fast codes' of schema '1', got 'other', '1'"),
        (dict(generator="0" * 32), "codes of another generator"),
        (dict(names="[1]"), "damaged: names: expected a list of names"),
        (dict(names="["), "damaged: Expecting value: line 1 column 2 (char 1)"),
        (dict(names='["a", "b"]'), "damaged: names: expected 1, got 2"),
        (dict(ws=torch.zeros(1, 3, 16)), "damaged: ws: expected shape [N, 6 or more, 16], got (1, 3, 16)"),
        (dict(pad_maps_0=torch.ones(1, 8, 4, 4)), "damaged: pad_maps[0]: expected [1, 16, >= 4, >= 4], got (1, 8, 4"),
        (dict(other=torch.zeros(1)), "damaged: 'other'"),
        (dict(ws=torch.full((1, 6, 16), float("nan"))), "damaged: ws: expected finite numbers for one picture or more"),
        (dict(ws=torch.zeros(0, 6, 16)), "damaged: ws: expected finite numbers for one picture or more"),
        (dict(ws=torch.zeros(1, 6, 16, dtype=torch.int64)), "damaged: ws: expected finite numbers for one picture or"),
    ],
)  # fmt: skip
def test_a_wrong_file_of_codes_is_refused(generator, tmp_path, changes, message):
    path = tmp_path / "codes.safetensors"
    tensors, metadata = _content(generator, changes)
    save_file(tensors, path, metadata)
    with pytest.raises(CheckpointError, match=re.escape(f"{path}: {message}")):
        codes.load_codes(path, generator)


def test_damaged_and_malicious_files_are_refused_and_no_code_runs(generator, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    whole = tmp_path / "whole.safetensors"
    codes.save_codes(whole, draw(generator)[0], generator)
    for name, content in {
        "short": whole.read_bytes()[:-9], "pickle": pickle.dumps(_Trap()), "empty": b"", "text": b"<html>",
    }.items():  # fmt: skip
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=f"{name}: damaged, or no file of codes"):
            codes.load_codes(path, generator)
    assert not (tmp_path / "trapped").exists()
    with pytest.raises(FileNotFoundError, match="missing: no such file of codes"):
        codes.load_codes(tmp_path / "missing", generator)


def test_codes_with_numbers_that_are_not_finite_are_not_written(generator, tmp_path):
    found, _ = draw(generator)
    found.ws[0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="ws: expected finite numbers, got others for 0.0"):
        codes.save_codes(tmp_path / "codes", found, generator)
    assert not list(tmp_path.iterdir())


def test_codes_of_other_precisions_are_stored_in_float32_and_read_in_the_generators(tmp_path):
    G = make(0, dtype=torch.float64)
    found, _ = draw(G)
    codes.save_codes(tmp_path / "codes", found, G)
    again = codes.load_codes(tmp_path / "codes", make(0))
    assert again.ws.dtype == torch.float32 and torch.equal(again.ws, found.ws.float())
    assert codes.load_codes(tmp_path / "codes", G).ws.dtype == torch.float64


def test_codes_of_another_size_are_not_written_for_a_generator(generator, tmp_path):
    with pytest.raises(ValueError, match=re.escape("ws: expected shape [N, 8 or more, 16], got (1, 6, 16)")):
        codes.save_codes(tmp_path / "codes", draw(generator)[0], make(0, 32))


# Editing


def test_interpolation_is_linear_and_takes_the_generators_own_where_one_has_no_map(generator):
    a, b = draw(generator, seed=1)[0], draw(generator, seed=2, layers=(1,))[0]
    half = codes.interpolate(generator, a, b, 0.25)
    assert torch.allclose(half.ws, 0.75 * a.ws + 0.25 * b.ws)
    assert torch.allclose(half.pad_maps[0], 0.75 * a.pad_maps[0] + 0.25 * generator.synthesis.b4.const)
    assert torch.allclose(half.pad_maps[1], 0.75 * a.pad_maps[1] + 0.25 * b.pad_maps[1])
    assert torch.allclose(half.pad_maps[3], 0.75 * a.pad_maps[3])
    assert half.pad_maps[2] is None
    padding, latents = (codes.interpolate(generator, a, b, 1, space) for space in ("padding", "latents"))
    assert torch.equal(padding.ws, a.ws) and torch.equal(padding.pad_maps[1], b.pad_maps[1])
    assert torch.equal(latents.ws, b.ws) and torch.equal(latents.pad_maps[1], a.pad_maps[1])


def test_interpolation_from_the_average_begins_with_the_average_image(generator):
    average, b = codes.average_codes(generator), draw(generator, seed=3)[0]
    plain = generator.synthesis(generator.mapping.w_avg.expand(1, 6, -1), noise_mode="const")
    start = codes.interpolate(generator, average, b, 0.0, "padding")
    assert start.pad_maps[3] is not None
    torch.testing.assert_close(codes.render(generator, start), plain)


def test_a_blend_has_the_latents_of_one_and_the_maps_of_the_other(generator):
    a, b = draw(generator, seed=4)[0], draw(generator, seed=5)[0]
    found = codes.blend(a, b)
    assert found.names == ("4.0 in 5.0",)
    assert torch.equal(found.ws, a.ws) and found.pad_maps is b.pad_maps


def test_an_edit_by_a_pair_adds_the_difference_in_one_space(generator):
    before, after = draw(generator, seed=6, layers=(0, 1))[0], draw(generator, seed=7, layers=(1,))[0]
    given = draw(generator, 2, seed=8, layers=(3,))[0]
    found = codes.edit_pair(generator, given, before, after, "padding", 1.5)
    assert torch.equal(found.ws, given.ws)
    constant = generator.synthesis.b4.const
    assert torch.allclose(found.pad_maps[0], constant + 1.5 * (constant - before.pad_maps[0]))
    assert torch.allclose(found.pad_maps[1], 1.5 * (after.pad_maps[1] - before.pad_maps[1]).expand(2, -1, -1))
    assert torch.equal(found.pad_maps[3], given.pad_maps[3])
    found = codes.edit_pair(generator, given, before, after, "latents")
    assert torch.allclose(found.ws, given.ws + after.ws - before.ws) and found.pad_maps is given.pad_maps


def test_the_error_outside_of_a_mask_counts_no_pixel_inside():
    random = np.random.default_rng(0)
    x, y = random.normal(size=(2, 3, 8, 8)), random.normal(size=(2, 3, 8, 8))
    mask = random.random((8, 8)) < 0.3
    wanted = [((x[k] - y[k]) ** 2)[:, ~mask].mean() for k in range(2)]
    x[:, :, mask] += 1e6
    found = inversion.errors(*map(torch.from_numpy, (x, y, mask)))
    np.testing.assert_allclose(found, wanted, rtol=1e-12)
    wrong = [mask[None, None, :7], np.stack([mask] * 3), mask.astype(np.float64)]
    for one in wrong:
        with pytest.raises(ValueError, match="^mask: expected bool, 8 x 8 pixels, got"):
            inversion.errors(*map(torch.from_numpy, (x, y, one)))
    with pytest.raises(ValueError, match="^mask: expected pixels outside it, got none"):
        inversion.errors(*map(torch.from_numpy, (x, y, np.ones((8, 8), bool))))


def test_padding_is_not_edited_where_no_codes_have_any(generator):
    a, b = draw(generator, layers=())[0], draw(generator, seed=1, layers=())[0]
    for call in (
        lambda: codes.interpolate(generator, a, b, 0.5, "padding"),
        lambda: codes.edit_pair(generator, a, a, b, "padding"),
    ):
        with pytest.raises(ValueError, match="^space: expected codes with padding maps, got some with latents alone"):
            call()


def test_pictures_of_two_sizes_are_compared_at_the_smaller():
    x = torch.arange(16.0).reshape(1, 1, 4, 4)
    assert inversion.errors(x, torch.tensor([[[[2.5, 4.5], [10.5, 13.5]]]])).tolist() == [0.25]


# Optimisation


def test_gradients_of_the_search_agree_with_finite_differences():
    G = make(3, 8, torch.float64)
    start, _ = draw(G, 2, layers=(0, 1, 3))
    target = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    search = inversion._Search(G, target, start, (0, 1, 3), 0.3, lambda x, y: (x - y).abs().mean((1, 2, 3)), 0.7)
    search.losses()[0].sum().backward()
    random = torch.Generator().manual_seed(0)
    for leaf in search.leaves:
        step = torch.randn(leaf.shape, generator=random, dtype=torch.float64)
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                leaf += sign * 1e-6 * step
                values.append(search.losses()[0].sum())
                leaf -= sign * 1e-6 * step
        expected = (values[0] - values[1]) / 2e-6
        torch.testing.assert_close((leaf.grad * step).sum(), expected, rtol=1e-5, atol=1e-7)


def test_the_loss_is_the_documented_sum():
    G = make(3, 8, torch.float64)
    start, _ = draw(G, 2)
    target = torch.rand(2, 3, 4, 4, dtype=torch.float64)  # smaller than the image
    search = inversion._Search(G, target, start, (1,), 0.3, lambda x, y: (x - y).square().amax((1, 2, 3)), 0.7)
    with torch.no_grad():
        search.ws += 0.1
    made = codes.render(G, Codes(search.ws.detach(), start.pad_maps, start.names)).unfold(2, 2, 2).unfold(3, 2, 2)
    squares = (made.mean((4, 5)) - target).square()
    distance = 0.1 * (4 * 16) ** 0.5
    expected = squares.mean((1, 2, 3)) + 0.7 * squares.amax((1, 2, 3)) + 0.3 * distance
    torch.testing.assert_close(search.losses()[0].detach(), expected)


@pytest.mark.parametrize("optimizer", inversion.OPTIMIZERS)
def test_padding_space_reaches_a_lower_error_than_the_latents_alone(generator, optimizer):
    target = codes.render(generator, draw(generator, 2, seed=9)[0])
    steps = 40 if optimizer == "adam" else 20
    histories = {}
    for layers in ((), (0, 1, 3)):
        found, history = inversion.optimise(generator, target, layers=layers, steps=steps, optimizer=optimizer)
        assert history.shape == (steps + 1, 2)
        assert [k for k, p in enumerate(found.pad_maps) if p is not None] == list(layers)
        torch.testing.assert_close(inversion.errors(codes.render(generator, found), target), history[-1])
        histories[layers] = history
    torch.testing.assert_close(histories[()][0], histories[0, 1, 3][0])  # they start from the same codes
    assert (histories[0, 1, 3][-1] < 0.8 * histories[()][-1]).all()
    assert (histories[()][-1] < histories[()][0]).all()


@pytest.mark.parametrize("optimizer", inversion.OPTIMIZERS)
def test_each_picture_is_inverted_as_if_it_were_alone(generator, optimizer):
    target = codes.render(generator, draw(generator, 2, seed=10)[0])
    together, _ = inversion.optimise(generator, target, steps=5, layers=(0, 1), optimizer=optimizer)
    alone, _ = inversion.optimise(generator, target[1:], steps=5, layers=(0, 1), optimizer=optimizer)
    torch.testing.assert_close(together.ws[1:], alone.ws, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(together.pad_maps[1][1:], alone.pad_maps[1], rtol=1e-4, atol=1e-4)


def test_the_search_leaves_generator_and_start_as_they_were(generator):
    G = make(0).train().requires_grad_(True)
    G.synthesis.b4.const.requires_grad_(False)
    before = {name: value.clone() for name, value in G.state_dict().items()}
    start, _ = draw(G)
    kept = start.ws.clone(), start.pad_maps[1].clone()
    inversion.optimise(G, torch.zeros(1, 3, 16, 16), start=start, layers=(1,), steps=2)
    assert G.training and not G.synthesis.b4.const.requires_grad and G.synthesis.b8.conv0.weight.requires_grad
    assert all(torch.equal(value, before[name]) for name, value in G.state_dict().items())
    assert all(p.grad is None for p in G.parameters())
    assert torch.equal(start.ws, kept[0]) and torch.equal(start.pad_maps[1], kept[1])


@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_the_search_finds_gradients_where_they_are_switched_off(generator, off):
    with off():
        _, history = inversion.optimise(generator, torch.zeros(1, 3, 16, 16), layers=(1,), steps=4)
    assert history[-1] < history[0]


def test_a_head_that_is_no_constant_is_left_out_by_default():
    found, _ = inversion.optimise(make(0, head="csg"), torch.zeros(1, 3, 16, 16), steps=1)
    assert [k for k, p in enumerate(found.pad_maps) if p is not None] == [1, 3, 5]


def test_a_generator_of_other_than_squares_is_refused():
    with pytest.raises(ValueError, match=re.escape("generator: expected one of square images, got (16, 32)")):
        inversion.optimise(make(0, head_size=(4, 8)), torch.zeros(1, 3, 16, 16), steps=1)


def test_no_step_gives_the_start_back(generator):
    start, _ = draw(generator)
    found, history = inversion.optimise(generator, torch.zeros(1, 3, 16, 16), start=start, steps=0)
    assert torch.equal(found.ws, start.ws) and history.shape == (1, 1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(layers=(2, 6)), "layers: expected entries of [0, 1, 2, 3, 4, 5], got 6"),
        (dict(layers=(True,)), "layers: expected an int, got bool"),
        (dict(steps=-1), "steps: expected an int >= 0, got -1"),
        (dict(optimizer="sgd"), "optimizer: expected one of ('adam', 'lbfgs'), got 'sgd'"),
        (dict(learning_rate=0.0), "learning_rate: expected a number above 0, got 0.0"),
        (dict(regularisation=-1.0), "regularisation: expected a number >= 0, got -1.0"),
        (dict(images=torch.zeros(1, 1, 16, 16)), "images: expected squares [N, 3, H, H], got shape (1, 1, 16, 16)"),
        (dict(images=torch.zeros(1, 3, 16, 8)), "images: expected squares [N, 3, H, H], got shape (1, 3, 16, 8)"),
        (dict(images=torch.zeros(3, 3, 8, 8)), "start: expected codes of 3 pictures, got 1"),
        (dict(layers=1), "layers: expected a sequence of ints or None, got int"),
        (
            dict(perceptual=lambda x, y: (x - y).mean()),
            "perceptual: expected a distance of shape [1], got torch.Size([])",
        ),
        (dict(perceptual_weight=-1.0), "perceptual_weight: expected a number >= 0, got -1.0"),
        (
            dict(start=codes.average_codes(make(0, 32))),
            "start: expected codes of this generator, got latents [1, 8, 16]",
        ),
    ],
)
def test_wrong_arguments_of_the_search(generator, arguments, message):
    images = arguments.pop("images", torch.zeros(1, 3, 16, 16))
    with pytest.raises((TypeError, ValueError), match=re.escape(message)):
        inversion.optimise(generator, images, **{"steps": 1, "start": draw(generator)[0], **arguments})


def test_an_encoder_gives_the_codes_of_its_maps(generator):
    encoder = PadInvEncoder.for_generator(generator, 32).eval()
    images = torch.rand(2, 3, 32, 32) * 2 - 1
    found = inversion.encode(encoder, generator, images, ["a", "b"])
    with torch.no_grad():
        ws, maps = encoder(images, rings=False)
    encoder.train()
    before = encoder.input_layer[1].running_mean.clone()
    assert torch.equal(inversion.encode(encoder, generator, images).ws, ws) and encoder.training
    assert torch.equal(encoder.input_layer[1].running_mean, before)
    assert found.names == ("a", "b") and torch.equal(found.ws, ws)
    expected = generator.synthesis(ws, pad_maps=maps, noise_mode="const")
    torch.testing.assert_close(codes.render(generator, found), expected)


def test_an_encoder_of_another_generator_is_refused(generator):
    encoder = PadInvEncoder(32, num_ws=3, width=2, w_dim=16, pad_layers=2).eval()
    with pytest.raises(ValueError, match="encoder: expected at least 6 latents of size 16, got 3 of 16"):
        inversion.encode(encoder, generator, torch.zeros(1, 3, 32, 32))


# Commands


@pytest.fixture(scope="module")
def files(generator, tmp_path_factory):
    """A folder with a generator, an encoder and pictures, two of which are none."""
    folder = tmp_path_factory.mktemp("inversion")
    torch.save(generator.state_dict(), folder / "generator.pt")
    torch.save(PadInvEncoder.for_generator(generator, 32).state_dict(), folder / "encoder.pt")
    pictures = folder / "pictures"
    (pictures / "sub").mkdir(parents=True)
    for k, name in enumerate(("a.png", "b.jpg", "sub/c.png")):
        values = np.random.default_rng(k).integers(0, 255, (20, 24, 3)).astype(np.uint8)
        Image.fromarray(values).save(pictures / name)
    (pictures / "text.png").write_text("not a picture")
    data = (pictures / "a.png").read_bytes()
    (pictures / "cut.png").write_bytes(data[: len(data) // 2])
    return folder


def invert(files, out, *more, data="pictures"):
    return main(
        ["invert", "--generator", str(files / "generator.pt"), "--data", str(files / data), "--out", str(out), *more]
    )


def test_invert_writes_codes_and_strips_and_goes_on_where_it_stopped(files, generator, tmp_path, capsys):
    out = tmp_path / "out"
    assert invert(files, out, "--encoder", str(files / "encoder.pt"), "--batch", "2") == 0
    said = capsys.readouterr().out
    assert re.search(r"3 inverted, mean MSE [0-9.]+; 2 left out; in ", said), said
    assert "cut.png: cannot be read" in said and "text.png" in said
    names = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert names == [
        "a.png.png", "a.png.safetensors", "b.jpg.png", "b.jpg.safetensors", "inversion.json",
        "sub/c.png.png", "sub/c.png.safetensors",
    ]  # fmt: skip
    found = codes.load_codes(out / "sub" / "c.png.safetensors", generator)
    assert found.names == ("sub/c.png",)
    times = {name: (out / name).stat().st_mtime_ns for name in names}
    (out / "b.jpg.safetensors").write_bytes(b"")  # damaged: made again
    assert invert(files, out, "--encoder", str(files / "encoder.pt"), "--batch", "2") == 0
    assert "1 inverted" in (said := capsys.readouterr().out) and "2 done before" in said
    changed = {name for name in names if (out / name).stat().st_mtime_ns != times[name]}
    assert changed == {"b.jpg.png", "b.jpg.safetensors"}
    assert invert(files, out, "--encoder", str(files / "encoder.pt"), "--steps", "2") == 1
    assert "steps: expected 0, as in" in capsys.readouterr().err
    assert invert(files, out, "--encoder", str(files / "encoder.pt"), data="pictures/a.png") == 1
    assert "data: expected" in capsys.readouterr().err
    assert invert(files, files / "pictures" / "sub", "--encoder", str(files / "encoder.pt")) == 1
    assert "out: expected a folder outside the data" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--encoder", "encoder.pt", "--size", "64"], "size: expected 32, that of the encoder, got 64"),
        (["--steps", "1", "--layers", "9"], "layers: expected entries of [0, 1, 2, 3, 4, 5], got 9"),
        (["--steps", "1", "--learning-rate", "-1"], "learning_rate: expected a number above 0, got -1.0"),
        (["--encoder", "generator.pt"], "state: expected an encoder of PadInv or pSp, got other names"),
        (["--perceptual", "generator.pt", "--steps", "1"], "--perceptual: "),
        (["--generator", "nowhere.pt"], "--generator: expected a file, got"),
    ],
)
def test_invert_refuses_before_it_writes(files, tmp_path, more, message, capsys):
    more = [str(files / word) if word.endswith(".pt") else word for word in more]
    assert invert(files, tmp_path / "out", *more) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_one_picture_that_diverges_is_left_out(files, tmp_path, capsys):
    out = tmp_path / "out"
    assert invert(files, out, "--steps", "3", "--learning-rate", "1e30", "--quiet", data="pictures/a.png") == 1
    assert "a.png: left out: codes or image that are not finite" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["inversion.json"]


def test_two_processes_share_the_pictures(files, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    command += ["-m", "posgan_fast", "invert", "--generator", str(files / "generator.pt"), "--out", str(tmp_path)]
    command += ["--data", str(files / "pictures"), "--encoder", str(files / "encoder.pt")]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True, timeout=200)
    assert len(re.findall(r"3 inverted, mean MSE [0-9.]+; 2 left out", done.stdout)) == 1
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3


def test_invert_optimises_pictures_of_an_archive(files, generator, tmp_path, capsys):
    archive = tmp_path / "pictures.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.write(files / "pictures" / "a.png", "a.png")
        file.write(files / "pictures" / "a.png", "../outside.png")
    out = tmp_path / "out"
    arguments = ["--steps", "3", "--layers", "0", "1", "--optimizer", "lbfgs"]
    assert invert(files, out, *arguments, data=archive) == 0
    assert "../outside.png: left out: a name that leads out of the folder" in capsys.readouterr().out
    found = codes.load_codes(out / "a.png.safetensors", generator)
    assert [k for k, p in enumerate(found.pad_maps) if p is not None] == [0, 1]
    assert not (tmp_path / "outside.png.safetensors").exists()
    with Image.open(out / "a.png.png") as strip:
        assert strip.size[0] >= 2 * 16


def test_invert_without_layers_changes_the_latents_alone(files, generator, tmp_path, capsys):
    assert invert(files, tmp_path, "--steps", "1", "--layers", "--quiet", data="pictures/a.png") == 0
    found = codes.load_codes(tmp_path / "a.png.safetensors", generator)
    assert all(p is None for p in found.pad_maps)
    assert capsys.readouterr().out == ""


@pytest.fixture(scope="module")
def inverted(files, tmp_path_factory):
    out = tmp_path_factory.mktemp("codes")
    assert invert(files, out, "--encoder", str(files / "encoder.pt"), "--quiet") == 0
    return out


def command(files, *arguments):
    return main([*map(str, arguments), "--generator", str(files / "generator.pt")])


def test_interpolate_writes_a_strip(files, inverted, tmp_path, capsys):
    a, b = inverted / "a.png.safetensors", inverted / "b.jpg.safetensors"
    out = tmp_path / "strip.png"
    assert command(files, "interpolate", "average", a, "--out", out, "--space", "padding", "--steps", "3") == 0
    with Image.open(out) as strip:
        assert strip.size == (3 * 130 - 2, 28 + 128)  # enlarged, so that labels have room
    assert command(files, "interpolate", a, b, "--out", out) == 1
    assert "exists; choose another" in capsys.readouterr().err
    assert command(files, "interpolate", a, b, "--out", out, "--steps", "1", "--overwrite") == 1
    assert "--steps: expected at least 2, got 1" in capsys.readouterr().err


def test_blend_writes_a_strip_and_the_codes_of_each_pair(files, generator, inverted, tmp_path):
    a, b, c = (inverted / f"{name}.safetensors" for name in ("a.png", "b.jpg", "sub/c.png"))
    assert command(files, "blend", "--details", a, "--structure", b, c, "--out", tmp_path) == 0
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"blend.png", "a.png-in-b.jpg.safetensors", "a.png-in-sub_c.png.safetensors"}
    found = codes.load_codes(tmp_path / "a.png-in-sub_c.png.safetensors", generator)
    assert torch.equal(found.ws, codes.load_codes(a, generator).ws)
    assert torch.equal(found.pad_maps[3], codes.load_codes(c, generator).pad_maps[3])


def test_edit_pair_writes_codes_a_strip_and_the_change_outside_the_mask(files, generator, inverted, tmp_path, capsys):
    a, b, c = (inverted / f"{name}.safetensors" for name in ("a.png", "b.jpg", "sub/c.png"))
    mask = tmp_path / "mask.png"
    Image.fromarray(np.eye(16, dtype=np.uint8) * 255).save(mask)
    out = tmp_path / "out"
    pair = ["edit-pair", c, "--before", a, "--after", b, "--mask", mask, "--out", out]
    assert command(files, *pair, "--strength", "0", "2") == 0
    changes = json.loads((out / "edit.json").read_text())["mean squared change"]
    assert changes["0"]["sub/c.png"] == 0
    given = codes.load_codes(c, generator)
    edited = codes.edit_pair(
        generator, given, codes.load_codes(a, generator), codes.load_codes(b, generator), "padding", 2
    )
    change = codes.render(generator, edited) - codes.render(generator, given)
    outside = change.square()[0, :, ~torch.eye(16, dtype=torch.bool)].mean()
    assert changes["2"]["sub/c.png"] == pytest.approx(float(outside), rel=1e-5)
    stored = codes.load_codes(out / "sub_c.png+2.safetensors", generator)
    assert torch.equal(stored.pad_maps[1], edited.pad_maps[1]) and torch.equal(stored.ws, given.ws)
    Image.fromarray(np.zeros((8, 8), dtype=np.uint8)).save(mask)
    assert command(files, *pair, "--overwrite") == 1
    assert "expected white pixels, got none brighter than half" in capsys.readouterr().err
    Image.fromarray(np.full((8, 8), 255, dtype=np.uint8)).save(mask)
    assert command(files, *pair, "--overwrite") == 1
    assert "mask: expected bool, 16 x 16 pixels, got torch.bool, shape (8, 8)" in capsys.readouterr().err


def test_commands_refuse_codes_of_another_generator(files, inverted, tmp_path, capsys):
    other = tmp_path / "other.pt"
    torch.save(make(1).state_dict(), other)
    a = str(inverted / "a.png.safetensors")
    strip = str(tmp_path / "strip.png")
    assert main(["interpolate", a, a, "--generator", str(other), "--out", strip]) == 1
    assert "codes of another generator" in capsys.readouterr().err


def test_commands_refuse_a_generator_that_is_no_stylegan2(tmp_path, files, capsys):
    from posgan_fast.models import DCGANGenerator

    other = tmp_path / "dcgan.pt"
    torch.save(DCGANGenerator(8, base_channels=8).state_dict(), other)
    assert main(["invert", "--generator", str(other), "--data", str(files), "--out", str(tmp_path / "out")]) == 1
    assert "--generator: expected a StyleGAN2, got a DCGAN" in capsys.readouterr().err
