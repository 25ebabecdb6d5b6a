"""Pictures that train: folders, archives, conversions, order and grids."""

from __future__ import annotations

import warnings
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from posgan_fast.recipes import images

pytestmark = pytest.mark.usefixtures("one_thread")


def test_pictures_of_every_kind_become_rgb(tmp_path):
    ramp = np.arange(0, 256, 16, dtype=np.uint8).repeat(16).reshape(16, 16)
    colour = np.stack([ramp, ramp.T, 255 - ramp], 2)
    kinds = {
        "rgb.png": Image.fromarray(colour),
        "grey.png": Image.fromarray(ramp),
        "sixteen.png": Image.fromarray(ramp.astype(np.uint16) * 257),
        "cmyk.jpg": Image.fromarray(colour).convert("CMYK"),
        "palette.png": Image.fromarray(colour).convert("P"),
        "transparent.png": Image.fromarray(np.dstack([colour, np.zeros_like(ramp)])),
        "bilevel.png": Image.fromarray(ramp).convert("1"),
        "float.tif": Image.fromarray(ramp.astype(np.float32) / 255),
    }
    for name, picture in kinds.items():
        picture.save(tmp_path / name)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnonsense")
    (tmp_path / "notes.txt").write_text("no picture")
    read = images.Images(tmp_path)
    assert read.names == sorted(kinds)
    found = {name: read[k] for k, name in enumerate(read.names)}
    assert all(picture.shape == (3, 16, 16) and picture.dtype == torch.uint8 for picture in found.values())
    assert np.array_equal(found["rgb.png"].permute(1, 2, 0), colour)
    for name in ("grey.png", "sixteen.png", "float.tif"):
        assert all(np.array_equal(plane, ramp) for plane in found[name].numpy())
    assert bool((found["transparent.png"] == 255).all())
    notes = "\n".join(read.notes)
    assert all(
        word in notes
        for word in ("grey", "16-bit", "CMYK", "palette", "transparent", "black-and-white", "floating-point")
    )
    assert "1 files cannot be read and are left out: broken.png" in notes


def test_folders_archives_and_single_files_hold_the_same_pictures(data, tmp_path):
    with zipfile.ZipFile(tmp_path / "data.zip", "w") as archive:
        for path in sorted(data.iterdir()):
            archive.write(path, f"inner/{path.name}")
    folder, packed = images.Images(data, 8), images.Images(tmp_path / "data.zip", 8)
    assert len(folder) == len(packed) == 7 and len(images.Images(data / "3.png")) == 1
    assert all(torch.equal(folder[k], packed[k]) and folder[k].shape == (3, 8, 8) for k in range(7))
    batches = images.Batches(packed, 3, 0, mirror=True, workers=2).start(0, 40)  # each worker opens the archive
    plain = images.Batches(folder, 3, 0, mirror=True).start(0, 40)
    assert all(torch.equal(a, b) for a, b in zip(batches, plain, strict=True))


def test_damaged_archives(data, tmp_path):
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(data.iterdir()):
            archive.write(path, path.name)
    whole = (tmp_path / "x.zip").read_bytes()
    random = np.random.default_rng(1)
    for _ in range(60):
        broken = bytearray(whole)
        for place in random.integers(0, len(whole), 4):
            broken[place] ^= int(random.integers(1, 256))
        (tmp_path / "x.zip").write_bytes(broken)
        try:
            read = images.Images(tmp_path / "x.zip", 8)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                assert read[0].shape == (3, 8, 8)
        except ValueError as error:
            assert str(error).startswith("data: ")


def test_a_picture_that_breaks_later_gives_way_to_the_next(data, tmp_path):
    for k in range(2):
        (tmp_path / f"{k}.png").write_bytes((data / f"{k}.png").read_bytes())
    read = images.Images(tmp_path)
    content = (tmp_path / "0.png").read_bytes()
    (tmp_path / "0.png").write_bytes(content[:200])
    with pytest.warns(UserWarning, match="0.png: cannot be read .* the next picture takes its place"):
        assert torch.equal(read[0], read[1])
    (tmp_path / "1.png").unlink()
    with pytest.warns(UserWarning), pytest.raises(ValueError, match="^data: no picture in .* can be read"):
        read[0]


def test_every_epoch_shows_each_picture_once(data):
    read = images.Images(data, 8)
    batches = [*images.Batches(read, 7, 3, mirror=False).start(0, 2)]
    originals = {picture.numpy().tobytes() for picture in (read[k] for k in range(7))}
    orders = [[picture.numpy().tobytes() for picture in batch] for batch in batches]
    assert all(set(order) == originals and len(order) == 7 for order in orders) and orders[0] != orders[1]
    later = [*images.Batches(read, 7, 3, mirror=False).start(1, 2)]
    assert torch.equal(later[0], batches[1])


def test_grids_are_rounded_and_clamped():
    sheet = np.array(images.grid(torch.tensor([-2.0, -1, 0, 1, 3]).reshape(5, 1, 1, 1).expand(5, 3, 2, 2), 3))
    assert sheet.shape == (6, 10, 3)
    assert [sheet[0, x, 0] for x in (0, 4, 8)] == [0, 0, 128] and [sheet[4, x, 0] for x in (0, 4, 8)] == [255] * 3
