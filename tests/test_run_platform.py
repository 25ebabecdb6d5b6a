"""Breaks of newer torch, torchvision, numpy, Pillow and scikit-image under ``posgan-fast run``."""

from __future__ import annotations

import argparse
import importlib.util
import io
import os
import pickle
import sys

import pytest
import torch
from foreign import FIXTURES, ROOT, SCRIPTS, hooked
from rezipped import rezipped

import posgan_fast
from posgan_fast.integrations import platform, standins
from posgan_fast.integrations.changes import Changes


@pytest.fixture
def stood_in():
    changes = Changes()
    with posgan_fast.patch():
        platform.stand_in(changes)
        yield
        changes.undo()


@pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("numpy", "PIL")), reason="needs numpy and Pillow"
)
def test_an_older_script_runs(tmp_path):
    done = hooked(SCRIPTS / "older.py", tmp_path / "saved.pt", path=(FIXTURES / "newer",))
    assert done.stdout.splitlines() == [
        "out [0.0, 1.0] 0.5 float32",
        "('x', 8, (-1, 1)) ('x', 8, (0, 1))",
        "torch.hub grey",
        "True [2, 6] 2 float64",
    ], done.stderr
    for name in (
        "Sampler.__init__",
        "Adam(betas",
        "save_image(range=)",
        "torchvision.models.utils",
        "functional_tensor",
    ):
        assert name in done.stderr.splitlines()[-1]


def failing(code):
    with pytest.raises((TypeError, ValueError, AttributeError, pickle.UnpicklingError)):
        code()


def sampler():
    class Endless(torch.utils.data.Sampler):
        def __init__(self, dataset):
            super().__init__(dataset)

    return Endless([1])


def adam():
    betas = {group["betas"] for group in torch.optim.Adam([torch.ones(1)], betas=(0, 0.99)).param_groups}
    assert betas == {(0.0, 0.99)}


def reloaded(value):
    file = io.BytesIO()
    torch.save({"args": value}, file)
    file.seek(0)
    return torch.load(file)["args"]


def namespace():
    assert reloaded(argparse.Namespace(size=32)) == argparse.Namespace(size=32)


def removed_names():
    numpy = pytest.importorskip("numpy")
    assert (numpy.int, numpy.cumproduct) == (int, numpy.cumprod)


CALLS = {function.__name__: function for function in (sampler, adam, namespace, removed_names)}


@pytest.mark.parametrize("call", CALLS)
def test_breaks_are_stood_in_for_and_given_back(call):
    failing(CALLS[call])
    changes = Changes()
    with posgan_fast.patch():
        platform.stand_in(changes)
        CALLS[call]()
        changes.undo()
    failing(CALLS[call])


def test_compare_ssim(stood_in):
    image = pytest.importorskip("skimage").data.astronaut()[:32, :32]
    from skimage.measure import compare_ssim

    assert compare_ssim(image, image, data_range=255.0, multichannel=True) == pytest.approx(1)


def test_arguments_that_were_right_stay(stood_in):
    weight = torch.ones(1)
    for optimizer in (torch.optim.Adam([weight], 0.1, (0.5, 0.9)), torch.optim.AdamW([weight], betas=(0.5, 0.9))):
        assert optimizer.defaults["betas"] == (0.5, 0.9)
    with pytest.raises(ValueError, match="Invalid beta parameter"):
        torch.optim.Adam([weight], betas=(0, 1.5))


class Evil:
    def __reduce__(self):
        return os.mkdir, ("evil",)


@pytest.mark.parametrize("value", [Evil(), argparse.Namespace(x=Evil()), print, torch.nn.Linear(1, 1)])
def test_a_load_still_runs_nothing(stood_in, value, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(pickle.UnpicklingError, match="Weights only load failed"):
        reloaded(value)
    assert not list(tmp_path.iterdir())


def test_inert_values_load(stood_in):
    numpy = pytest.importorskip("numpy")
    values = [numpy.arange(3), numpy.ones((2, 2), "f2"), numpy.array(["a"])]
    for value in values:
        again = reloaded(value)
        assert again.dtype == value.dtype and again.tolist() == value.tolist()
    for value in (numpy.int64(3), numpy.bool_(True), numpy.float16(0.5), numpy.dtype("i2"), numpy.complex64(1j)):
        assert reloaded(value) == value
    module = numpy.float64(0).__reduce__()[0].__module__
    for package in ("numpy.core", "numpy._core"):  # as numpy 1 and numpy 2 write it
        file = rezipped({"args": numpy.float64(0.25)}, module.encode(), f"{package}.multiarray".encode())
        assert torch.load(file)["args"] == 0.25


def test_easydict_is_read_as_a_dictionary(stood_in):
    class EasyDict(dict):
        def __setattr__(self, name, value):
            super().__setattr__(name, value)
            self[name] = value

    module = type(sys)("easydict")
    EasyDict.__module__, EasyDict.__qualname__, module.EasyDict = "easydict", "EasyDict", EasyDict
    value = EasyDict()
    value.lr = 0.002
    sys.modules["easydict"] = module
    try:
        again = reloaded(value)
    finally:
        del sys.modules["easydict"]
    assert dict(again) == {"lr": 0.002} and again.lr == 0.002


def test_the_table_is_the_documents():
    assert platform.table() in (ROOT / "docs" / "running-scripts.md").read_text()
    missing = {row.module for row in platform.BREAKS if row.apply is None}
    assert missing == set(standins.STANDINS)


# The report of a program that died


def test_a_program_that_failed_has_the_last_word():
    done = hooked(SCRIPTS / "show.py", "--fail")
    assert done.returncode and "nothing to patch" not in done.stderr
    assert done.stderr.splitlines()[-1] == "LookupError: from the program"


def test_what_was_patched_is_said_below_the_traceback(tmp_path):
    script = tmp_path / "dies.py"
    script.write_text("import op\nraise LookupError('from the program')\n")
    lines = hooked(script, path=(FIXTURES / "ros",)).stderr.splitlines()
    assert lines[-2] == "LookupError: from the program" and lines[-1].startswith("posgan-fast: patched")
    assert sum(line.startswith("posgan-fast") for line in lines) == 1
