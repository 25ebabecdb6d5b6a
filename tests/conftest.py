"""Options and fixtures of the whole suite."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from foreign import FIXTURES
from PIL import Image

import posgan_fast


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--peer",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="checkout of a peer project to run against: nvlabs=PATH (stylegan3 or stylegan2-ada), rosinality=PATH, "
        "mmgeneration=PATH, padinv=PATH, hammer=PATH (or that of padinv) or genforce=PATH",
    )
    parser.addoption("--part", default="1/1", metavar="I/N", help="only the I-th of N parts, to run side by side")
    parser.addoption("--slow", action="store_true", help="also run what compiles C++ for longer than the rest together")


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
    config.addinivalue_line("markers", "large: needs most of a device's memory, so none runs beside another")
    part_of(config)
    # Results in float32 are held to float64: no product on a GPU may round its factors.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    # Fresh memory is filled with NaN, which the results then show where a kernel left an element unwritten.
    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    part, parts = part_of(config)
    turns = [1 if item.get_closest_marker("large") else i % parts + 1 for i, item in enumerate(items)]
    items[:] = [item for item, turn in zip(items, turns, strict=True) if turn == part]
    for item in items:
        if item.get_closest_marker("slow") and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="compiles C++ for long (--slow)"))
        if not torch.cuda.is_available() and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
    if hasattr(config, "workerinput"):  # a long file that starts last would leave the other processes idle
        items.sort(key=lambda item: _LONGEST.index(item.path.stem) if item.path.stem in _LONGEST else len(_LONGEST))


def part_of(config: pytest.Config) -> tuple[int, int]:
    part, _, parts = config.getoption("--part").partition("/")
    if not (part.isdigit() and parts.isdigit() and 1 <= int(part) <= int(parts)):
        raise pytest.UsageError(f"--part: expected I/N with 1 <= I <= N, got {config.getoption('--part')!r}")
    return int(part), int(parts)


@pytest.fixture
def peers(request: pytest.FixtureRequest) -> _Peers:
    """Checkouts given on the command line; asking for one that was not given skips with that reason."""
    return _Peers(request.config.stash[_PEERS])


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """For many small calls, where threads cost more than they save."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder of seven pictures of 24 x 30 pixels; SinGAN takes the first."""
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    for k in range(7):
        rows = np.linspace(0, 255, 24)[:, None, None] * np.ones((24, 30, 3))
        Image.fromarray((rows * 0.7 + random.uniform(0, 70, (24, 30, 3))).astype(np.uint8)).save(folder / f"{k}.png")
    return folder


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


@pytest.fixture
def package(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Puts a fixture folder on the path; afterwards the hooks are gone and so are the modules it brought."""
    before, finders = dict(sys.modules), list(sys.meta_path)
    cpp_extension = importlib.import_module("torch.utils.cpp_extension")
    load = cpp_extension.load
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield lambda folder: monkeypatch.syspath_prepend(str(FIXTURES / folder))
    while posgan_fast.integrations._ENGINE._depth:
        posgan_fast.unpatch()
    for name, module in list(sys.modules.items()):
        if (
            name not in before
            and isinstance(module, ModuleType)
            and str(vars(module).get("__file__")).startswith(str(FIXTURES))
        ):
            del sys.modules[name]
    sys.modules.pop("torch_conv_gradfix.namespace", None)
    assert sys.meta_path == finders and cpp_extension.load is load


@pytest.fixture
def nv(package):
    """The modules of NVlabs, patched."""
    package("nv")
    with posgan_fast.patch():
        yield lambda name: importlib.import_module(f"torch_utils.{name}")


class _Peers(dict):
    def __missing__(self, name: str) -> Path:
        pytest.skip(f"no checkout given (--peer {name}=PATH)")


_PEER_NAMES = ("nvlabs", "rosinality", "mmgeneration", "padinv", "hammer", "genforce")
_LONGEST = (
    "test_triton", "test_cuda_host", "test_triton_compile", "test_install", "test_modulated_conv2d", "test_epilogue2d",
    "test_prologue2d", "test_upfirdn2d", "test_bias_act", "test_export", "test_capabilities", "test_integrations",
    "test_cuda_compile", "test_gpu_gate", "test_benchmarks_base", "test_benchmarks", "test_models",
)  # fmt: skip
_PEERS = pytest.StashKey[dict]()
