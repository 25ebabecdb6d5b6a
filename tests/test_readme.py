"""README.md and docs/ are true: their Python runs, their commands and links lead somewhere, their lists are whole."""

from __future__ import annotations

import dataclasses
import inspect
import pickle
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch

from posgan_fast import cli, integrations, models, nn
from posgan_fast import functional as PF
from posgan_fast.models import Generator, SinGANGenerator
from posgan_fast.ops import modulated_conv2d
from posgan_fast.recipes import SinGAN, SinGANSettings, train

pytestmark = pytest.mark.usefixtures("one_thread")

ROOT = Path(__file__).parents[1]
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in ROOT.glob("docs/*.md")}
PAGES |= {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "CHANGELOG.md")}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PYTHON = {page: [body for kind, body in FENCE.findall(text) if kind == "python"] for page, text in PAGES.items()}
COMMANDS = [
    line.partition("  #")[0].strip()
    for page, text in PAGES.items()
    for kind, body in FENCE.findall(text)
    for line in body.splitlines()
    if not kind and line and not line.startswith("#")
]


@pytest.mark.parametrize("page", [page for page, blocks in PYTHON.items() if blocks])
def test_python_runs(page, tmp_path, monkeypatch):
    """The blocks of a page run one after the other, as a reader would paste them, beside the files that they load."""
    monkeypatch.chdir(tmp_path)
    torch.save(Generator(16, channel_max=8).state_dict(), "ffhq.pkl")
    torch.save(SinGANGenerator(2, width=8).state_dict(), "balloons.pth")
    noises = [np.zeros((1, 3, side, side), np.float32) for side in (12, 16)]
    Path("balloons.pkl").write_bytes(pickle.dumps(dict(fixed_noises=noises, noise_weights=[1, 0.1], curr_stage=1)))
    if page == "README.md":
        pictures = SinGANSettings(
            data=ROOT / "docs" / "singan.png", out="runs/photo", width=4, min_size=12, max_size=40
        )
        train(SinGAN, dataclasses.replace(pictures, iterations=1), quiet=True)
    if page == "docs/export.md":  # each layer takes the exporters a second
        monkeypatch.setattr(models, "Generator", lambda *_, **__: Generator(8, channel_max=8, mapping_layers=1))
    names: dict[str, object] = {}
    for block in PYTHON[page]:
        exec(compile(block, page, "exec"), names)


def test_the_ten_lines_are_ten_and_do_what_they_say(capsys):
    names: dict[str, object] = {}
    first = PYTHON["README.md"][0]
    exec(first, names)
    assert len([line for line in first.splitlines() if line]) <= 10
    assert names["y"].shape == (1, 64, 256, 256) and names["g"].shape == names["x"].shape
    assert "upsample2d: " in capsys.readouterr().out


def test_commands_exist():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert len(COMMANDS) > 10
    for command in COMMANDS:
        words = [word for word in shlex.split(command) if "=" not in word or word.startswith("-")]
        program, first = words[0], words[1]
        if program == "make":
            assert re.search(rf"^{first}:", makefile, re.MULTILINE), command
        elif program == "posgan-fast":
            assert first in cli.COMMANDS, command
        elif program == "python":
            assert_module_takes(words[2:], command)
        else:
            assert program == "torchrun" and "posgan_fast" in words, command


def assert_module_takes(words: list[str], command: str) -> None:
    """``python -m MODULE OPTIONS``: there is the module, and its package defines each of the options."""
    parts = words[0].split(".")
    module = ROOT.joinpath(*parts)
    assert module.with_suffix(".py").exists() or (module / "__main__.py").exists(), command
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / parts[0]).glob("*.py"))
    options = [word for word in words if word.startswith("--")]
    assert [option for option in options if f'"{option}"' not in source] == [], command


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    text = PAGES[page]
    anchors = {re.sub(r"[^\w-]", "", title.lower().replace(" ", "-")) for title in re.findall(r"^#+ (.*)$", text, re.M)}
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        target, _, anchor = link.partition("#")
        assert not target or ((ROOT / page).parent / target).exists(), link
        assert target or anchor in anchors, link


@pytest.mark.parametrize("page", PAGES)
def test_paths_exist(page):
    """Paths in backquotes, unless they stand for several or are made by a command."""
    quoted = re.findall(r"`((?:csrc|kernels|posgan_fast|tests|benchmarks|docs)/[\w./-]*)`", PAGES[page])
    assert [path for path in quoted if not (ROOT / path).exists()] == []


def test_the_picture_needs_nothing_from_elsewhere():
    picture = (ROOT / re.search(r"!\[[^]]*\]\(([^)]+\.svg)\)", PAGES["README.md"])[1]).read_text(encoding="utf-8")
    assert set(re.findall(r"https?://[^\"\s]+", picture)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"<(script|image|foreignObject|style)|url\(|@import", picture)


def test_lists_are_complete():
    text = PAGES["README.md"]
    modules = [name for name in nn.__all__ if isinstance(getattr(nn, name), type)]
    assert [name for name in (*PF.OPS, *modules, *integrations.FAMILIES) if not re.search(rf"\b{name}\b", text)] == []


def test_the_launch_tables_are_named_for_users_of_a_wheel():
    """README has the kernels and the numbers that POSGAN_FAST_CUDA_TABLE takes."""
    header = (ROOT / "csrc" / "launch_overrides.h").read_text(encoding="utf-8")
    kernels = re.findall(r'"(\w+)"', re.search(r"kLaunchKernelNames\[\] = \{(.*?)\}", header)[1])
    numbers = re.search(r"^//   fir4, fir4_channels_last +(\w+(?:, \w+)*) ", header, re.MULTILINE)[1].replace(" ", "")
    (paragraph,) = (part for part in PAGES["README.md"].split("\n\n") if "POSGAN_FAST_CUDA_TABLE" in part)
    assert len(kernels) == 5 and all(f"`{kernel}`" in paragraph for kernel in kernels) and f"`{numbers}`" in paragraph


def test_the_style_layer_names_every_tensor_that_has_a_derivative():
    given = inspect.signature(PF.modulated_conv2d).parameters
    tensors = [name for name, value in given.items() if "Tensor" in str(value.annotation) and name != "resample_filter"]
    derivatives = re.search(r"^Derivatives:.*?\n\n", modulated_conv2d.__doc__, re.MULTILINE | re.DOTALL)[0]
    (row,) = (line for line in PAGES["README.md"].splitlines() if line.startswith("| `modulated_conv2d("))
    assert "noise_strength" in tensors and all(f"``{name}``" in derivatives for name in tensors)
    assert all(re.search(rf"\b{name}\b", row) for name in tensors)
