"""Comparing the working tree with a revision: what is judged slower, which trees are found, and what is left behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest
import torch

from benchmarks import ROOT, base, compare, network_calls, subjects, trees
from benchmarks import __main__ as command

SUBJECT = subjects.Subject("bias_act", "toRGB 16", "float32", "nchw", 1)
SETUP = "from setuptools import setup\nsetup(name='posgan_fast', version='0', packages=['posgan_fast'])\n"
OPS = "import time\ndef setup_filter(taps, **options): return taps\ndef bias_act(x, b, **rest):\n    return x + 1\n"
NEWER = "def upfirdn2d(x, f, **rest):\n    return x\n"


def _samples(base, here, again):
    return {compare.BASE: base, compare.HERE: here, compare.AGAIN: again}


def test_ratios_are_taken_within_rounds():
    """A machine that slows down by ten between rounds shows the same ratio."""
    row = compare.judge(SUBJECT, "host", _samples([1.0, 10.0, 1.0], [1.1, 11.0, 1.2], [1.0, 10.2, 0.9]))
    assert row.ratio == pytest.approx(1.1) and (row.base, row.here) == (1.0, 1.2)
    assert row.low == pytest.approx(1.1) and row.high == pytest.approx(1.15)
    assert row.noise == pytest.approx(0.06) and row.offset == pytest.approx(0) and row.rounds == 3


@pytest.mark.parametrize(
    "again, here, slower",
    [
        ([1.0, 1.01, 0.99, 1.0], [1.05] * 4, True),
        ([1.0, 1.01, 0.99, 1.0], [1.005] * 4, False),  # within the spread of its own rounds
        ([1.0, 1.2, 0.8, 1.2], [1.05] * 4, False),
        ([1.0] * 4, [1.0, 1.0, 1.3, 1.3], False),  # in half of the rounds
        ([1.1] * 4, [1.05] * 4, False),  # the processes of the base differ by more
        ([1.0] * 4, [0.5] * 4, False),
    ],
)
def test_a_case_is_slower_when_it_exceeds_the_noise(again, here, slower):
    row = compare.judge(SUBJECT, "host", _samples([1.0] * 4, here, again))
    assert compare.exceeds(row, compare.limit([row])) is slower


def test_the_noise_of_the_other_cases_counts():
    offsets = [0.0] * 18 + [0.08, 0.5]
    rows = [compare.judge(SUBJECT, "host", _samples([1.0] * 3, [1.05] * 3, [1 + o] * 3)) for o in offsets]
    floor = compare.limit([*rows, compare.Comparison(SUBJECT, status=compare.NEW)])
    assert floor == pytest.approx(0.08)  # all but one of twenty
    assert not compare.exceeds(rows[0], floor) and compare.exceeds(rows[0], 0.01)


def test_only_what_is_slower_again_is_marked():
    def row(ratio):
        return compare.judge(SUBJECT, "host", _samples([1.0] * 3, [ratio] * 3, [1.0] * 3))

    once, twice = row(1.5), row(1.5)
    compare.confirm(once, row(1.0), 0.1)
    compare.confirm(twice, row(1.4), 0.1)
    new = compare.Comparison(SUBJECT, status=compare.NEW, note="TypeError: no argument 'gain'")
    text = compare.text([once, twice, new], "v1 (abc)", "working tree (def, with changes)")
    assert [once.status, twice.status] == ["", compare.SLOWER]
    assert text.startswith("base: v1 (abc)\nhere: working tree (def, with changes)\n")
    assert text.count("  bias_act toRGB 16, float32, nchw, host: 1.500, then 1.400") == 1
    assert "bias_act   host      2  1.500" in text
    assert text.endswith(
        "New: the base cannot run it\n  bias_act toRGB 16, float32, nchw: TypeError: no argument 'gain'"
    )
    assert "beyond noise, twice (the base against itself: 0.0 % in 19 of 20 cases)\n  none" in compare.text(
        [once], "", ""
    )


class _Worker:
    """Answers as a process does; an exception among its answers is raised."""

    def __init__(self, values=(1.0, 2.0), clocks=("graph", "launches"), sample=1.0):
        self.answers = {"prepare": {"values": values, "clocks": clocks}, "sample": sample}

    def ask(self, request, **more):
        answer = self.answers[request]
        if isinstance(answer, Exception):
            raise answer
        return answer


def _measured(**workers):
    measure = base._Measure(None, None, torch.device("cpu"), None, base.QUICK)
    processes = {compare.BASE: _Worker(), compare.HERE: _Worker(), compare.AGAIN: _Worker()}
    return measure._compare(SUBJECT, {**processes, **workers}), measure.disagreements


def test_each_clock_that_both_trees_have_is_compared():
    rows, disagreements = _measured(here=_Worker(sample=2.0))
    assert [(row.clock, row.ratio, row.status) for row in rows] == [("graph", 2.0, ""), ("launches", 2.0, "")]
    assert disagreements == []
    rows, _ = _measured(base=_Worker(clocks=("events", "launches")))
    assert [row.clock for row in rows] == ["launches"]


@pytest.mark.parametrize("values", [(1.0, 2.001), (1.0, float("nan")), (1.0,)])
def test_trees_that_compute_something_else_disagree(values):
    _, disagreements = _measured(here=_Worker(values))
    assert len(disagreements) == 1 and disagreements[0].startswith("bias_act toRGB 16, float32, nchw: relative L2")


@pytest.mark.parametrize("name, status", [(compare.HERE, "fails"), (compare.BASE, "new"), (compare.AGAIN, "new")])
def test_a_tree_that_fails_is_named_by_its_case(name, status):
    error = base._Failed(name, "RuntimeError: no memory")
    (row,), _ = _measured(**{name: _Worker(sample=error)})
    assert (row.status, row.note, row.timed) == (status, "RuntimeError: no memory", False)


@pytest.fixture
def repository(tmp_path, monkeypatch):
    """A repository with a pure Python posgan_fast in place of the working tree; its first commit has no upfirdn2d."""
    root = tmp_path / "repository"
    (root / "posgan_fast").mkdir(parents=True)
    for name in ("GIT_AUTHOR", "GIT_COMMITTER"):
        monkeypatch.setenv(f"{name}_NAME", "someone")
        monkeypatch.setenv(f"{name}_EMAIL", "someone@example.org")
    monkeypatch.setattr(trees, "ROOT", root)
    monkeypatch.setattr(trees, "BUILDS", tmp_path / "builds")
    (root / "setup.py").write_text(SETUP)
    (root / "posgan_fast" / "__init__.py").touch()
    _git(root, "init", "--quiet")
    for text in (OPS, OPS + NEWER):
        (root / "posgan_fast" / "functional.py").write_text(text)
        _git(root, "add", "-A")
        _git(root, "commit", "--quiet", "-m", "change")
    return root


def _git(root: Path, *words: str) -> str:
    return subprocess.run(["git", "-C", str(root), *words], check=True, capture_output=True, text=True).stdout


def _ends(pid: int) -> bool:
    """Whether a process ends within seconds; a container may keep its entry as a zombie."""
    for _ in range(100):
        try:
            if "zombie" in Path(f"/proc/{pid}/status").read_text():
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


def test_a_slower_tree_is_told_and_what_the_base_lacks_is_new(repository, tmp_path, capsys):
    slow = (OPS + NEWER).replace("return x + 1", "time.sleep(0.01); return x + 1")
    (repository / "posgan_fast" / "functional.py").write_text(slow)
    argv = ["--base", "HEAD~1", "--quick", "--op", "bias_act", "upfirdn2d", "--case", "toRGB 16", "skip up2 16"]
    assert command.main([*argv, "--device", "cpu", "--out", str(tmp_path / "out"), "--name", "run"]) == 0
    printed = capsys.readouterr().out
    content = json.loads((tmp_path / "out" / "run.json").read_text())
    first = _git(repository, "rev-parse", "HEAD~1").strip()
    assert content["base"] == {"name": "HEAD~1", "commit": first, "dirty": False, "library": ""}
    assert content["here"]["dirty"] is True and "with changes)" in printed
    slower, new = content["rows"]
    assert slower["status"] == "slower" and slower["ratio"] > 2 and slower["second_ratio"] > 2
    assert new["status"] == "new" and new["note"].startswith("AttributeError") and "upfirdn2d" in new["note"]
    assert (tmp_path / "out" / "run.txt").read_text() == printed
    assert len(_git(repository, "worktree", "list").splitlines()) == 1
    assert [path.name for path in (tmp_path / "builds").iterdir()] == [f"{first}-python-torch-{torch.__version__}"]


def test_the_base_of_a_revision_is_built_once(repository, monkeypatch):
    built = trees.base_tree("HEAD~1", "cpu", native=False)
    assert (built.folder / "posgan_fast" / "functional.py").read_text() == OPS
    monkeypatch.setattr(trees, "_build", lambda *args: pytest.fail("built again"))
    commit = _git(repository, "rev-parse", "HEAD~1").strip()
    assert trees.base_tree(commit, "cpu", native=False).folder == built.folder


def test_a_checkout_is_a_base_and_nothing_is_written_into_it(repository, monkeypatch):
    before = sorted(repository.rglob("*"))
    monkeypatch.setattr(trees, "ROOT", repository.parent)
    first = trees.base_tree(str(repository), "cpu", native=False)
    assert first.commit == _git(repository, "rev-parse", "HEAD").strip() and first.dirty is False
    assert sorted(p for p in repository.rglob("*") if ".git" not in p.parts) == [
        p for p in before if ".git" not in p.parts
    ]
    (repository / "posgan_fast" / "functional.py").write_text(OPS)
    changed = trees.base_tree(str(repository), "cpu", native=False)
    assert changed.folder != first.folder and changed.dirty is True
    assert (changed.folder / "posgan_fast" / "functional.py").read_text() == OPS


def test_a_tree_that_cannot_be_compared_is_told(repository, tmp_path, monkeypatch, capsys):
    argv = ["--quick", "--device", "cpu", "--out", str(tmp_path / "out"), "--base"]
    for wanted in ("no-such-revision", "--help", str(tmp_path)):
        assert command.main([*argv[:-1], f"--base={wanted}"]) == 2
        assert "--base: expected a git revision, or the path of a checkout" in capsys.readouterr().err
    with pytest.raises(trees.TreeError, match=r"base HEAD has no native library for cpu.*its setup.py builds none"):
        trees.base_tree("HEAD", "cpu", native=True)
    (repository / "setup.py").write_text("raise SystemExit('no compiler')")
    assert command.main([*argv, "HEAD"]) == 2
    assert "--base: the working tree does not build: no compiler" in capsys.readouterr().err
    monkeypatch.setattr(trees, "ROOT", repository / "posgan_fast")  # inside a repository, but none itself
    with pytest.raises(trees.TreeError, match="got 'HEAD'; revisions are known in a git checkout only"):
        trees.base_tree("HEAD", "cpu", native=False)
    assert list((tmp_path / "builds").iterdir()) == []


@pytest.mark.parametrize("signum, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interruption_leaves_nothing_behind(repository, tmp_path, capsys, signum, code):
    """Neither a worktree nor a folder nor a process of the build."""
    started = tmp_path / "started"
    (repository / "setup.py").write_text(
        "import os, pathlib, subprocess, sys\n"
        "sleeper = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"pathlib.Path({str(started)!r}).write_text(f'{{sleeper.pid}} {{os.getcwd()}}')\n"
        "sleeper.wait()\n"
    )
    _git(repository, "commit", "--quiet", "-am", "slow")
    (repository / "setup.py").write_text(SETUP)

    def interrupt():
        while not started.exists() or not started.read_text():
            time.sleep(0.01)
        os.kill(os.getpid(), signum)

    thread = threading.Thread(target=interrupt)
    thread.start()
    try:
        found = command.main(["--base", "HEAD", "--quick", "--device", "cpu", "--out", str(tmp_path / "out")])
    except SystemExit as error:
        found = error.code
    thread.join()
    assert found == code
    pid, source = started.read_text().split()
    assert repository not in Path(source).parents and not Path(source).exists()
    assert len(_git(repository, "worktree", "list").splitlines()) == 1
    assert list((tmp_path / "builds").iterdir()) == []
    assert _ends(int(pid))


@pytest.mark.parametrize(
    "argv", [["--json"], ["--op", "layer"], ["--base", "HEAD", "--both"], ["--base", "x", "--peer", "y"]]
)
def test_options_that_do_not_fit_together(argv, capsys):
    with pytest.raises(SystemExit):
        command.main(argv)
    assert "with --base" in capsys.readouterr().err


def test_a_plan_has_every_call_once():
    plan = subjects.plan(
        ["layer", *subjects.NETWORKS], [], ["float32", "bfloat16"], ["nchw", "channels_last"], 1, quick=True
    )
    names = [str(subject) for subject in plan]
    assert len(set(names)) == 4 * 4 + 2 + 2 + 2 + 1
    assert "layer 512 to 512 at 16 up, bfloat16, channels_last" in names and "generator 64, bfloat16" in names
    full = subjects.plan(subjects.NETWORKS, ["256"], ["float32"], ["nchw"], 1, quick=False)
    assert {subject.op for subject in full} == {"layer", "generator", "prepacked", "padding", "discriminator"}


@pytest.mark.parametrize("op", subjects.NETWORKS)
def test_networks_are_prepared_and_run(op, monkeypatch):
    monkeypatch.setattr(subjects, "SIZE", 16)
    monkeypatch.setattr(network_calls, "LAYER_SIZES", (16,))
    monkeypatch.setattr(network_calls, "TRAINING_SIZE", 8)
    monkeypatch.setattr(
        network_calls, "training_step", lambda g, d, z, real: d(real) + g.synthesis(g.mapping(z)).mean()
    )
    for subject in subjects.plan([op], [], ["float32"], ["channels_last"], 1, quick=False):
        call, x, traffic = subjects.prepare(subject, torch.device("cpu"))
        with torch.no_grad():
            assert call(x).isfinite().all() and bool(traffic) == (op == "layer")


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git checkout")
def test_the_working_tree_against_its_own_commit(tmp_path, monkeypatch, capsys):
    """From the command to the table, in pure Python, which needs no compiler."""
    monkeypatch.setenv("POSGAN_FAST_NATIVE", "0")
    monkeypatch.setattr(trees, "BUILDS", tmp_path / "builds")
    argv = ["--base", "HEAD", "--quick", "--op", "bias_act", "--case", "toRGB 16", "--json", "--device", "cpu"]
    assert command.main([*argv, "--out", str(tmp_path)]) == 0
    content = json.loads(capsys.readouterr().out)
    (row,) = content["rows"]
    assert row["subject"] == {"op": "bias_act", "case": "toRGB 16", "dtype": "float32", "layout": "nchw", "batch": 1}
    assert row["rounds"] >= 5 and row["low"] <= row["ratio"] <= row["high"] and row["noise"] >= 0
    assert content["disagreements"] == [] and content["base"]["library"] == ""
