"""The patch engine: recognises modules, replaces functions in them, and puts everything back.

A module is recognised by the end of its name and by content: the functions a :class:`Target` lists, with exactly the
parameter names it lists. Modules still to come are reached through one finder in ``sys.meta_path`` that lets the other
finders find and changes only what follows the module's own code; modules already imported are patched where they are,
together with the names others imported from them. Every change is recorded as (holder, name, earlier, later) and is
undone only where the later object still stands.
"""

from __future__ import annotations

import functools
import inspect
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NamedTuple

MORE = "*"  # last in a tuple of parameter names: others may follow


class Replacement(NamedTuple):
    """A function to put in, and what the report calls it; a quiet one enters the report itself, once it acts."""

    function: Callable[..., Any]
    label: str
    quiet: bool = False


@dataclass(frozen=True)
class Target:
    """One kind of foreign module.

    ``module``: how its dotted name ends. ``functions``: the parameter names of each function it must have; a dot leads
    into a class. ``attributes``: other names it must have, dotted likewise. ``build(module, report)``: the functions to
    put in.
    """

    family: str
    module: str
    functions: Mapping[str, tuple[str, ...]]
    build: Callable[[ModuleType, Report], Mapping[str, Replacement]]
    attributes: tuple[str, ...] = ()

    def mismatch(self, module: ModuleType) -> str | None:
        """Why ``module`` is not of this kind."""
        for name, expected in self.functions.items():
            try:
                parameters = tuple(inspect.signature(_lookup(module, name)).parameters)
            except AttributeError:
                return f"no function {name}"
            except Exception as error:  # a lazy module, a builtin: whatever it is, it is not ours to judge
                return f"{name} cannot be inspected: {error}"
            if expected not in (parameters, (*parameters[: len(expected) - 1], MORE)):
                return f"{name}({', '.join(parameters)}) is not {self.family}'s ({', '.join(expected)})"
        for name in self.attributes:
            try:
                _lookup(module, name)
            except AttributeError:
                return f"no attribute {name}"
        return None


class Patched(NamedTuple):
    module: str
    attribute: str
    family: str
    replacement: str


class LeftAlone(NamedTuple):
    module: str
    reason: str


class PluginRequest(NamedTuple):
    name: str
    asked_through: str
    answered: bool


@dataclass
class Report:
    """What was patched, what was left alone and why, which requests to compile a plugin were answered."""

    patched: list[Patched] = field(default_factory=list)
    left_alone: list[LeftAlone] = field(default_factory=list)
    plugins: list[PluginRequest] = field(default_factory=list)
    standins: list[str] = field(default_factory=list)
    _leave: Callable[[], None] | None = field(default=None, repr=False, compare=False)

    def __enter__(self) -> Report:
        return self

    def __exit__(self, *_: object) -> None:
        if self._leave is not None:
            self._leave()

    def __str__(self) -> str:
        tables = (
            ("patched", [(p.family, f"{p.module}.{p.attribute}", f"-> {p.replacement}") for p in self.patched]),
            ("plugin requests", [("answered" if p.answered else "passed on", *p[:2]) for p in self.plugins]),
            ("left alone", [tuple(entry) for entry in self.left_alone]),
            ("stand-ins", [(name,) for name in self.standins]),
        )
        lines = [line for title, rows in tables if rows for line in (f"{title}:", *_columns(rows))]
        return "\n".join(lines) or "nothing patched"

    def paragraph(self) -> str:
        """The report in one paragraph."""
        by_module: dict[str, list[str]] = {}
        for entry in self.patched:
            by_module.setdefault(entry.module, []).append(entry.attribute)
        sentences = {
            "patched": [f"{module} ({', '.join(names)})" for module, names in by_module.items()],
            "answered the request for plugin": [p.name for p in self.plugins if p.answered],
            "passed on the request for plugin": [p.name for p in self.plugins if not p.answered],
            "left alone": [f"{module} ({reason})" for module, reason in self.left_alone],
            "stood in for": self.standins,
        }
        said = [f"{verb} {', '.join(objects)}" for verb, objects in sentences.items() if objects]
        return "; ".join(said) or "nothing to patch was imported"

    def add(self, entry: Patched | LeftAlone | PluginRequest) -> None:
        kinds: dict[type, list[Any]] = {Patched: self.patched, LeftAlone: self.left_alone, PluginRequest: self.plugins}
        entries = kinds[type(entry)]
        if entry not in entries:
            entries.append(entry)


class Engine:
    """Patches for some families at a time; ``standins`` makes modules that may be missing (name -> factory)."""

    def __init__(
        self, families: Mapping[str, Sequence[Target]], standins: Mapping[str, Callable[[], ModuleType]]
    ) -> None:
        self.report = Report()
        self._families, self._standins = families, standins
        self._active: list[str] = []
        self._depth = 0
        self._changes: list[_Change] = []
        self._replaced: dict[int, tuple[Any, Any]] = {}  # id of ours -> (ours, theirs)
        self._standing_in: dict[str, ModuleType] = {}
        self._finder = _Finder(self)
        self._lock = threading.RLock()

    def patch(self, families: Iterable[str]) -> Report:
        with self._lock:
            if self._depth == 0:
                self.report = Report(_leave=self.unpatch)
                sys.meta_path.insert(0, self._finder)
            self._depth += 1
            fresh = [family for family in families if family not in self._active]
            if fresh:
                self._active += fresh
                modules = list(sys.modules.items())
                self._rebind([pair for name, module in modules for pair in self._take(name, module)], sys.modules)
            return self.report

    def unpatch(self) -> None:
        with self._lock:
            if self._depth == 0:
                return
            self._depth -= 1
            if self._depth == 0:
                self._restore()

    def targets(self, name: str) -> list[Target]:
        """The kinds a module of this name could be of."""
        root, last = name.partition(".")[0], name.rpartition(".")[2]
        return [
            target
            for family in self._active
            for target in self._families[family]
            if target.module.rpartition(".")[2] == last
            and (name == target.module or (name.endswith(target.module) and root not in ("posgan_fast", "torch")))
        ]

    def executed(self, name: str, module: ModuleType, imported_before: set[str]) -> None:
        """A module's own code has just run."""
        with self._lock:
            since = {n: m for n, m in list(sys.modules.items()) if n not in imported_before}
            self._rebind(list(self._take(name, module)), {**since, name: module})

    def has_standin(self, name: str) -> bool:
        return self._depth > 0 and name in self._standins

    def stand_in(self, name: str) -> ModuleType:
        module = self._standing_in[name] = self._standins[name]()
        self.report.standins.append(name)
        return module

    def _take(self, name: str, module: Any) -> Iterator[tuple[Any, Any]]:
        """Patch one module if it is of a known kind; yields (theirs, ours)."""
        reasons = []
        for target in self.targets(name) if isinstance(module, ModuleType) else ():
            reason = target.mismatch(module)
            if reason is None:
                yield from self._apply(target, name, module)
                return
            reasons.append(reason)
        if reasons:
            self.report.add(LeftAlone(name, "; ".join(dict.fromkeys(reasons))))

    def _apply(self, target: Target, name: str, module: ModuleType) -> Iterator[tuple[Any, Any]]:
        for path, (ours, label, quiet) in target.build(module, self.report).items():
            theirs = _lookup(module, path)
            if id(theirs) in self._replaced:  # a package that re-exports what its own module was given
                continue
            ours = _adopt(theirs, ours)
            prefix, _, attribute = path.rpartition(".")
            holder = _lookup(module, prefix) if prefix else module
            earlier = vars(holder)[attribute]
            self._change(holder, attribute, earlier, staticmethod(ours) if isinstance(earlier, staticmethod) else ours)
            self._replaced[id(ours)] = (ours, theirs)
            if not quiet:
                self.report.add(Patched(name, path, target.family, label))
            yield theirs, ours

    def _rebind(self, pairs: Iterable[tuple[Any, Any]], modules: Mapping[str, Any]) -> None:
        """Follow names that other modules imported: ``from op import upfirdn2d``."""
        table = {id(theirs): (theirs, ours) for theirs, ours in pairs}
        for module, name, ours in _bindings(table, modules) if table else ():
            self._change(module, name, vars(module)[name], ours)

    def _change(self, holder: Any, name: str, earlier: Any, later: Any) -> None:
        self._changes.append(_Change(holder, name, earlier, later))
        setattr(holder, name, later)

    def _restore(self) -> None:
        if self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)
        for holder, name, earlier, later in reversed(self._changes):
            if vars(holder).get(name) is later:
                setattr(holder, name, earlier)
        # What is still bound to ours was imported by name while the hooks were in place.
        for module, name, theirs in list(_bindings(self._replaced, sys.modules)):
            setattr(module, name, theirs)
        for name, standin in self._standing_in.items():
            if sys.modules.get(name) is standin:
                del sys.modules[name]
        self._active, self._changes, self._replaced, self._standing_in = [], [], {}, {}


class _Change(NamedTuple):
    holder: Any
    name: str
    earlier: Any
    later: Any


class _Finder:
    """Finds nothing itself: asks the other finders, and wraps the loader of a module that may be patched."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._asking = threading.local()

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        wanted, standin = bool(self._engine.targets(name)), self._engine.has_standin(name)
        if not (wanted or standin) or name in vars(self._asking):
            return None
        setattr(self._asking, name, True)  # another hook of this sort may ask us in turn
        try:
            spec = _ask(sys.meta_path, self, name, path, target)
        finally:
            delattr(self._asking, name)
        if spec is None:
            return ModuleSpec(name, _StandInLoader(self._engine), is_package="." not in name) if standin else None
        if wanted and hasattr(spec.loader, "exec_module"):
            spec.loader = _Loader(spec.loader, self._engine)
        return spec


class _Loader(Loader):
    """A module's own loader, with the patch after its code; hands the module back to that loader before it runs."""

    def __init__(self, loader: Any, engine: Engine) -> None:
        self._loader, self._engine = loader, engine

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        create = getattr(self._loader, "create_module", None)
        return create(spec) if create else None

    def exec_module(self, module: ModuleType) -> None:
        module.__loader__ = self._loader
        name = module.__name__
        if module.__spec__ is not None:
            module.__spec__.loader, name = self._loader, module.__spec__.name
        before = set(sys.modules)
        self._loader.exec_module(module)
        self._engine.executed(name, module, before)


class _StandInLoader(Loader):
    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self._engine.stand_in(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def _ask(finders: Iterable[Any], asker: _Finder, name: str, path: Any, target: ModuleType | None) -> ModuleSpec | None:
    for finder in list(finders):
        find = None if finder is asker else getattr(finder, "find_spec", None)
        spec = find(name, path, target) if find else None
        if spec is not None:
            return spec
    return None


def _lookup(module: Any, path: str) -> Any:
    return functools.reduce(getattr, path.split("."), module)


def _adopt(theirs: Callable[..., Any], ours: Callable[..., Any]) -> Callable[..., Any]:
    """Give ``ours`` the name, documentation and, parameters being the same, the default values of ``theirs``."""
    try:
        parameters = inspect.signature(theirs).parameters
    except ValueError:  # a builtin says nothing
        return functools.update_wrapper(ours, theirs)
    if tuple(inspect.signature(ours).parameters) == tuple(parameters):
        defaults = tuple(p.default for p in parameters.values() if p.default is not p.empty)
        ours.__defaults__ = defaults or None  # type: ignore[attr-defined]
    return functools.update_wrapper(ours, theirs)


def _bindings(table: Mapping[int, tuple[Any, Any]], modules: Mapping[str, Any]) -> Iterator[tuple[Any, str, Any]]:
    """(module, name, second) wherever a module's global is the first of a pair; ``table`` has the pairs by its id."""
    for module in list(modules.values()):
        namespace = getattr(module, "__dict__", None)
        if not isinstance(module, ModuleType) or not isinstance(namespace, dict):
            continue
        for name, value in list(namespace.items()):
            pair = table.get(id(value))
            if pair is not None and pair[0] is value:
                yield module, name, pair[1]


def _columns(rows: Sequence[tuple[str, ...]]) -> list[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return [
        "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    ]
