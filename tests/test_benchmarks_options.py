"""The commands of the benchmarks refuse wrong options in one line, before any work."""

from __future__ import annotations

import argparse

import pytest

from benchmarks import __main__ as command
from benchmarks import convolutions, harness, inversion, networks, options, systems


@pytest.mark.parametrize("main", [command.main, networks.main, convolutions.main, inversion.main, systems.main])
def test_numbers_and_outputs_are_checked_before_any_work(main, tmp_path, capsys):
    blocked = tmp_path / "file"
    blocked.touch()
    cases = {
        "--out": [str(blocked), str(blocked / "in"), "/proc/here"], "--name": ["a/b"],
        "--batch": ["0", "-1", "x", "1.5"], "--rounds": ["1"], "--size": ["0", "4", "24", "-8"],
        "--budget": ["0", "nan", "inf"], "--threads": ["0"],
    }  # fmt: skip
    checked = 0
    for option, values in cases.items():
        for value in values:
            with pytest.raises(SystemExit) as stopped:
                main([option, value])
            said = capsys.readouterr().err
            assert stopped.value.code == 2
            if "unrecognized" not in said:
                assert f"{option}: expected" in said and repr(value) in said, said
                checked += 1
    assert checked >= 5 and list(tmp_path.iterdir()) == [blocked]


@pytest.mark.parametrize("main", [command.main, networks.main, convolutions.main, inversion.main, systems.main])
def test_options_are_spelt_out(main, capsys):
    """A command that runs itself again, by --both, would not know a shorter spelling."""
    with pytest.raises(SystemExit):
        main(["--bo"])
    assert "unrecognized arguments: --bo" in capsys.readouterr().err


def test_output_goes_to_folders_that_are_made_and_files_whose_folder_exists(tmp_path):
    assert options.output_folder(str(tmp_path / "a" / "b")) == tmp_path / "a" / "b"
    assert options.output_file(str(tmp_path / "a.json")) == tmp_path / "a.json"
    for wrong, why in ((tmp_path, "expected a file"), (tmp_path / "a" / "b", "No such file or directory")):
        with pytest.raises(argparse.ArgumentTypeError, match=why):
            options.output_file(str(wrong))
    (tmp_path / "link").symlink_to(tmp_path / "absent" / "a.json")
    with pytest.raises(argparse.ArgumentTypeError, match="No such file or directory"):
        options.output_file(str(tmp_path / "link"))
    (tmp_path / "link").unlink()
    assert not list(tmp_path.iterdir())
    (tmp_path / "folder.json").mkdir()
    with pytest.raises(OSError):
        harness.write_json(tmp_path / "folder.json", {})
    assert [path.name for path in tmp_path.iterdir()] == ["folder.json"]


@pytest.mark.parametrize(
    "argv",
    [
        ["--compile"], ["--what", "layer", "--size", "64"], ["--what", "layer", "training", "--size", "64"],
        ["--what", "training", "memory", "--batch", "8"], ["--batch", "6"],
        ["--what", "discriminator", "--batch", "4", "6"], ["--peer", "a", "--peer", "b"], ["--peer", "foo=/x"],
        ["--dry-run", "--seconds", "0"], ["--dry-run", "--what", "backward", "--size", "8"],
    ],
)  # fmt: skip
def test_options_of_networks_that_do_not_fit_are_told(argv, capsys):
    with pytest.raises(SystemExit) as stopped:
        networks.main(argv)
    option = [word for word in argv if word.startswith("--")][-1]
    assert stopped.value.code == 2 and f"{option}: " in capsys.readouterr().err


def test_what_is_asked_for_twice_is_measured_once():
    assert networks._parser().parse_args(["--size", "16", "8", "16"]).size == [16, 8]
    with pytest.raises(SystemExit):
        command.main(["--base", "HEAD", "--op", "discriminator", "--batch", "6"])
