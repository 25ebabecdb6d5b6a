"""Loads a peer project from a checkout, to be run beside ours. Nothing of it is copied or changed.

``nvlabs`` is the layout of stylegan3 and stylegan2-ada-pytorch (``torch_utils/ops``), ``rosinality`` that of
stylegan2-pytorch (``op``). Their packages are imported under names of their own, so that several checkouts and the real
packages can live in one process. Stubs replace what they import but the ops do not need (dnnlib beyond EasyDict,
pkg_resources). On CUDA their extensions are built. If that fails, and on the CPU, their plain torch path runs; on CUDA
the peer's name then says so.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from cases import BiasActCase, Case
from torch.torch_version import TorchVersion

from .harness import commit, reason

NAMES = ("nvlabs", "rosinality")
# Files that tell a checkout: of its ops, and one of those of its networks.
OPS = {"nvlabs": "torch_utils/ops/upfirdn2d.py", "rosinality": "op/upfirdn2d.py"}
NETWORKS = {"nvlabs": ("training/networks_stylegan2.py", "training/networks.py"), "rosinality": ("model.py",)}

Call = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Peer:
    """A project beside ours. ``call(case, extra, dtype)`` returns its implementation of a case whose filter or bias is
    ``extra``, or None if it has none."""

    name: str
    commit: str | None
    note: str  # the reason why its plain torch path runs on CUDA, or empty
    call: Callable[[Case, torch.Tensor | None, torch.dtype], Call | None]


def parse(
    entries: Iterable[str], names: Iterable[str] = NAMES, networks: bool = False, alone: str | None = None
) -> dict[str, Path]:
    """Read NAME=PATH options.

    Args:
        entries: the options.
        names: the projects that the command takes.
        networks: whether it needs their networks, beside their ops.
        alone: the project of a PATH without a name; None: there must be a name.

    Raises:
        ValueError: the name is unknown or comes twice, or the path holds no checkout of that project.
    """
    found: dict[str, Path] = {}
    for entry in entries:
        whole = entry if alone is None or re.match(r"\w+=", entry) else f"{alone}={entry}"
        name, _, text = whole.partition("=")
        if name not in names:
            raise ValueError(f"--peer: expected {' or '.join(f'{n}=PATH' for n in names)}, got {entry!r}")
        if name in found:
            raise ValueError(f"--peer: expected {name} once, got {entry!r} beside {str(found[name])!r}")
        path = Path(text).expanduser().resolve()
        for marks in ((OPS[name],), *((NETWORKS[name],) if networks else ())):
            if not any((path / mark).is_file() for mark in marks):
                raise ValueError(f"--peer: expected a checkout with {' or '.join(marks)}, got {entry!r}")
        found[name] = path
    return found


def load(paths: dict[str, Path], device: torch.device) -> list[Peer]:
    return [{"nvlabs": _nvlabs, "rosinality": _rosinality}[name](path, device) for name, path in paths.items()]


def nvlabs_networks(path: Path, device: torch.device) -> tuple[Any, str]:
    """Import the module of a checkout that defines its StyleGAN2 networks, under its own name.

    Returns:
        The module, and the reason why it runs on its plain torch path on CUDA, or "".

    Raises:
        SystemExit: the checkout is not complete.
    """
    sys.path.insert(0, str(path))
    try:
        with _complete(path), _stubbed(**_pkg_resources()):
            name = "networks_stylegan2" if (path / "training/networks_stylegan2.py").exists() else "networks"
            networks = importlib.import_module(f"training.{name}")
            modules = [importlib.import_module(f"torch_utils.ops.{op}") for op in ("upfirdn2d", "bias_act")]
    finally:
        sys.path.remove(str(path))
    note = _build_nvlabs(*modules) if device.type == "cuda" else ""
    if note:
        for module in modules:  # or each call would try to build it again
            module._init = lambda: False  # type: ignore[attr-defined]
    return networks, note


def _nvlabs(path: Path, device: torch.device) -> Peer:
    with _complete(path), _stubbed(dnnlib=_dnnlib(), **_pkg_resources()):
        root = _package(path / "torch_utils", "nvlabs")
        upfirdn2d = importlib.import_module(f"{root.__name__}.ops.upfirdn2d")
        bias_act = importlib.import_module(f"{root.__name__}.ops.bias_act")
        custom_ops = importlib.import_module(f"{root.__name__}.custom_ops")
    custom_ops.verbosity = "none"  # type: ignore[attr-defined]
    note = "" if device.type != "cuda" else _build_nvlabs(upfirdn2d, bias_act)
    impl = "cuda" if device.type == "cuda" and not note else "ref"

    def call(case: Case, extra: torch.Tensor | None, dtype: torch.dtype) -> Call:
        function = bias_act.bias_act if isinstance(case, BiasActCase) else upfirdn2d.upfirdn2d  # type: ignore[attr-defined]
        arguments = {k: list(v) if isinstance(v, tuple) else v for k, v in case.arguments.items()}
        return lambda x: function(x, extra, **arguments, impl=impl)

    return Peer(_label("nvlabs", note), commit(path), note, call)


def _rosinality(path: Path, device: torch.device) -> Peer:
    note = ""
    if device.type == "cuda":
        try:
            op = _package(path / "op", "rosinality")
        except Exception as error:
            note = reason(error)
    if device.type != "cuda" or note:
        with _complete(path), _extensions_refused():
            op = _package(path / "op", "rosinality_plain")
    resample = importlib.import_module(f"{op.__name__}.upfirdn2d")

    def call(case: Case, extra: torch.Tensor | None, dtype: torch.dtype) -> Call | None:
        if isinstance(case, BiasActCase):
            if case.act != "lrelu" or case.clamp is not None or case.alpha is not None or note:
                return None
            scale = 2**0.5 if case.gain is None else case.gain
            return lambda x: op.fused_leaky_relu(x, extra, 0.2, scale)
        if extra is None or case.flip_filter:
            return None
        taps = extra if extra.ndim == 2 else torch.outer(extra, extra)
        kernel = (taps * case.gain).to(dtype)  # its modules keep the gain in the kernel
        if note:
            return lambda x: resample.upfirdn2d_native(x, kernel, *case.up, *case.down, *case.padding)  # type: ignore[attr-defined]
        return lambda x: resample.upfirdn2d(x, kernel, case.up, case.down, case.padding)  # type: ignore[attr-defined]

    return Peer(_label("rosinality", note), commit(path), note, call)


def _build_nvlabs(*modules: Any) -> str:
    """Compile the extensions side by side; returns the reason if that fails, or ""."""

    def build(module: Any) -> str:
        try:
            return "" if module._init() else "its extension did not build"
        except Exception as error:
            return reason(error)

    with _extensions_registered(), ThreadPoolExecutor() as pool:
        return next((reason for reason in pool.map(build, modules) if reason), "")


@contextlib.contextmanager
def _complete(path: Path) -> Iterator[None]:
    """End the command where a checkout cannot be imported."""
    try:
        yield
    except (ImportError, OSError) as error:
        raise SystemExit(f"--peer: expected a checkout that can be imported, got {path}: {reason(error)}") from None


@contextlib.contextmanager
def _stubbed(**modules: ModuleType) -> Iterator[None]:
    """Put modules into sys.modules for the time of a block."""
    before = {name: sys.modules.get(name) for name in modules}
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


@contextlib.contextmanager
def _extensions_registered() -> Iterator[None]:
    """Register built extensions in sys.modules, as torch no longer does: NVlabs import them by name a second time."""
    import torch.utils.cpp_extension as extension

    load = extension.load

    def registering(name: str, *args: Any, **kwargs: Any) -> Any:
        return sys.modules.setdefault(name, load(name, *args, **kwargs))

    extension.load = registering
    try:
        yield
    finally:
        extension.load = load


@contextlib.contextmanager
def _extensions_refused() -> Iterator[None]:
    """Skip the compilation of CUDA code that importing rosinality starts; its plain torch path needs none."""
    stub = ModuleType("torch.utils.cpp_extension")
    stub.load = lambda name, *args, **kwargs: ModuleType(name)  # type: ignore[attr-defined]
    with _stubbed(**{"torch.utils.cpp_extension": stub}):
        yield


def _package(directory: Path, name: str) -> Any:
    """Import a package as ``_peer_<name>``."""
    name = f"_peer_{name}"
    spec = importlib.util.spec_from_file_location(
        name, directory / "__init__.py", submodule_search_locations=[str(directory)]
    )
    assert spec is not None and spec.loader is not None
    for known in [m for m in sys.modules if m == name or m.startswith(name + ".")]:
        del sys.modules[known]
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _dnnlib() -> ModuleType:
    class EasyDict(dict):
        __getattr__ = dict.__getitem__

    module = ModuleType("dnnlib")
    module.EasyDict = EasyDict  # type: ignore[attr-defined]
    return module


def _pkg_resources() -> dict[str, ModuleType]:
    if importlib.util.find_spec("pkg_resources") is not None:
        return {}
    module = ModuleType("pkg_resources")
    module.parse_version = TorchVersion  # type: ignore[attr-defined]
    return {"pkg_resources": module}


def _label(name: str, note: str) -> str:
    return f"{name}, plain torch" if note else name
