"""``posgan-fast demo``: its verdict, files and exit status, on the published package made narrow."""

from __future__ import annotations

import functools
import importlib.util
import json
import sys

import pytest
import torch
from native_ops import spoil
from PIL import Image

import posgan_fast
from posgan_fast import demo

pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.skipif(
        not (importlib.util.find_spec("stylegan2_torch") and importlib.util.find_spec("torch_conv_gradfix")),
        reason="stylegan2-torch is not installed (pip install posgan_fast[demo])",
    ),
]
CHANNELS = {4: 16, 8: 16, 16: 16, 32: 8, 64: 8}
OPS = {"bias_act", "upfirdn2d"}


@pytest.fixture
def narrow(package, monkeypatch):
    """Networks of a few channels in place of the published widths."""
    with posgan_fast.patch():
        import stylegan2_torch
    for name in ("Generator", "Discriminator"):
        build = getattr(stylegan2_torch, name)
        narrowed = functools.wraps(build)(lambda size, build=build, channels=None: build(size, channels=CHANNELS))
        monkeypatch.setattr(stylegan2_torch, name, narrowed)


def run(folder, capsys, status: int) -> tuple[str, str, dict]:
    assert demo.main(folder, quick=True) == status
    out, err = capsys.readouterr()
    return out, err, json.loads((folder / "demo.json").read_text())


def test_everything_is_compared_and_written(narrow, tmp_path, capsys):
    out, _, record = run(tmp_path / "a" / "b", capsys, 0)
    assert record["equal"] and record["backend"] == "cpu" and record["posgan_fast"] == posgan_fast.__version__
    rows = {row["name"]: row for row in record["rows"]}
    assert {name.split()[0] for name in rows} == {*OPS, "generator", "1"}
    trained = {name.partition(": ")[2] for name in rows} - {""}
    gradients = {"D gradient, R1 included", "G gradient, path length included"}
    assert trained == gradients | {"D loss", "R1", "G loss", "path length"}
    for name, row in rows.items():
        kind = "op" if name.split()[0] in OPS else "training" if "training" in name else "image"
        assert row["bound"] == demo.BOUNDS[kind] and 0 <= row["relative_l2"] <= row["bound"] and row["speedup"] > 0
        assert f"\n{name} " in out
    speedup = rows["generator 64 pixels, 2 images"]["speedup"]
    said = f"all {len(rows)} comparisons equal; the generator runs {speedup:.2f}x as fast as on the reference backend"
    picture = tmp_path / "a" / "b" / "singan.png"
    assert record["verdict"] == said and f"verdict: {said}\n" in out and out.endswith(f"written: {picture}\n")
    assert "stylegan2_torch.op.upfirdn2d (upfirdn2d)" in record["patched"] and record["patched"] in out
    assert Image.open(tmp_path / "a" / "b" / "demo.png").size == (2 * 64, 3 * 64)
    assert Image.open(picture).size == (3 * (3 * 80 + 8), 3 * (2 * 53 + 4))


def test_a_wrong_result_is_a_mismatch(narrow, tmp_path, monkeypatch, capsys):
    def wrong(run, y):
        run()
        if y.shape[-1] == 64:
            y.mul_(1 + 1e-4)

    spoil(monkeypatch, "bias_act", wrong)
    monkeypatch.setattr(demo, "_train", lambda *args: [])
    monkeypatch.setattr(demo, "_singan", lambda *args, **keywords: None)
    out, _, record = run(tmp_path, capsys, 1)
    differing = [row["name"] for row in record["rows"] if not row["equal"]]
    assert differing == ["bias_act 2x8x64x64", "generator 64 pixels, 2 images"] and not record["equal"]
    assert record["verdict"].startswith(f"MISMATCH in {', '.join(differing)}; the generator runs ")
    assert out.count("  DIFFERS\n") == 2 and out.endswith(f"verdict: {record['verdict']}\n")


def test_without_a_fast_backend_there_is_nothing_to_compare(package, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("POSGAN_FAST_BACKEND", "reference")
    assert demo.main(tmp_path / "out") == 1
    out, err = capsys.readouterr()
    assert "reference" in out and err.startswith("verdict: nothing to compare, since no backend but the reference")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["numpy", "PIL", "skimage", "tqdm", "stylegan2_torch"])
def test_a_missing_package_is_named_with_its_remedy(name, package, monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, name, None)
    assert demo.main(tmp_path / "out") == 2
    out, err = capsys.readouterr()
    assert err.startswith("posgan-fast demo: ") and name in err and not out
    assert err.endswith("; pip install 'posgan_fast[demo]'\n") and err.count("\n") == 1


def test_the_picture_shows_both_results_and_their_difference(tmp_path):
    reference = torch.zeros(2, 3, 4, 4)
    ours = reference.clone()
    ours[1, 0, 2, 3] = 1e-4
    demo._write_picture(tmp_path / "x.png", (reference, ours))
    pixels = Image.open(tmp_path / "x.png")
    assert pixels.size == (8, 12) and pixels.getpixel((7, 10)) == 255
    assert [pixels.getpixel(at) for at in ((0, 0), (7, 6), (6, 10), (7, 11))] == [128] * 4
