"""Options and fixtures of the whole suite."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--peer",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="checkout of a peer project to run against: nvlabs=PATH (stylegan3 or stylegan2-ada), rosinality=PATH, "
        "mmgeneration=PATH, padinv=PATH, hammer=PATH (or that of padinv) or genforce=PATH",
    )


def pytest_configure(config: pytest.Config) -> None:
    peers = {}
    for entry in config.getoption("--peer"):
        name, _, path = entry.partition("=")
        if name not in _PEER_NAMES or not Path(path).is_dir():
            raise pytest.UsageError(f"--peer: expected NAME=DIRECTORY of {', '.join(_PEER_NAMES)}, got {entry!r}")
        peers[name] = Path(path).resolve()
    if "padinv" in peers:
        peers.setdefault("hammer", peers["padinv"])  # which contains Hammer's networks
    config.stash[_PEERS] = peers


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture
def peers(request: pytest.FixtureRequest) -> _Peers:
    """Checkouts given on the command line; asking for one that was not given skips with that reason."""
    return _Peers(request.config.stash[_PEERS])


@pytest.fixture
def missing_modules(tmp_path) -> tuple[Path, Path]:
    """Folders to put on the path: what the plain run lacks, and what both lack (a download client nobody calls)."""
    plain, both = tmp_path / "plain", tmp_path / "both"
    plain.mkdir()
    both.mkdir()
    if importlib.util.find_spec("pkg_resources") is None:
        (plain / "pkg_resources.py").write_text("from packaging.version import parse as parse_version\n")
    if importlib.util.find_spec("distutils") is None:
        (plain / "distutils").mkdir()
        (plain / "distutils" / "util.py").write_text("strtobool = None\n")
    if importlib.util.find_spec("requests") is None:
        (both / "requests.py").write_text("")
    return plain, both


class _Peers(dict):
    def __missing__(self, name: str) -> Path:
        pytest.skip(f"no checkout given (--peer {name}=PATH)")


_PEER_NAMES = ("nvlabs", "rosinality", "mmgeneration", "padinv", "hammer", "genforce")
_PEERS = pytest.StashKey[dict]()
