"""The patch engine: recognises modules, replaces functions in them, and restores them.

The engine recognises a module by the end of its name and by its functions: it must have those that a :class:`Target`
lists, with exactly the parameter names listed. Modules that are imported already are patched in place, and so are the
names that other modules imported from them. Later imports pass through one finder in ``sys.meta_path``, which lets the
other finders find the module and patches it right after its own code has run. :class:`Changes` records every change and
restores an attribute only if our object is still there.
"""

from __future__ import annotations

import functools
import inspect
import sys
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.abc import Loader
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, NamedTuple

from .changes import Changes
from .reports import LeftAlone, Patched, Report

MORE = "*"  # at the end of a tuple of parameter names: the function may have further parameters


class Replacement(NamedTuple):
    """A function to put into a module, and the op that serves it, as the report names it.

    A ``quiet`` replacement adds itself to the report when it serves its first call; the engine reports all others when
    it patches the module.
    """

    function: Callable[..., Any]
    label: str
    quiet: bool = False


@dataclass(frozen=True)
class Target:
    """One kind of foreign module.

    Attributes:
        family: the key of ``FAMILIES`` that lists this target.
        module: the end of the module's dotted name.
        functions: the functions that the module must have, each with its parameter names; "Class.method" is one too.
        build: makes the replacements of a module, by the names of its functions.
        attributes: other names that the module must have, dotted likewise.
    """

    family: str
    module: str
    functions: Mapping[str, tuple[str, ...]]
    build: Callable[[ModuleType, Report], Mapping[str, Replacement]]
    attributes: tuple[str, ...] = ()

    def mismatch(self, module: ModuleType) -> str | None:
        """Return why ``module`` does not match; None if it does."""
        for name, expected in self.functions.items():
            try:
                parameters = tuple(inspect.signature(_lookup(module, name)).parameters)
            except AttributeError:
                return f"no function {name}"
            except Exception as error:  # lazy modules raise whatever they like, builtins have no signature
                return f"{name} cannot be inspected: {error}"
            if expected not in (parameters, (*parameters[: len(expected) - 1], MORE)):
                return f"{name}({', '.join(parameters)}) is not {self.family}'s ({', '.join(expected)})"
        for name in self.attributes:
            try:
                _lookup(module, name)
            except AttributeError:
                return f"no attribute {name}"
        return None


class Engine:
    """Patches the modules of some families from :meth:`patch` to :meth:`unpatch`, where it restores them.

    Args:
        families: the targets of each family.
        standins: factories of modules that may be missing, by the names of these modules.
    """

    def __init__(
        self, families: Mapping[str, Sequence[Target]], standins: Mapping[str, Callable[[], ModuleType]]
    ) -> None:
        self.report = Report()
        self._families, self._standins = families, standins
        self._active: list[str] = []
        self._depth = 0
        self._changes = Changes()
        self._replaced: dict[int, tuple[Any, Any]] = {}  # id of ours -> (ours, theirs)
        self._finder = _Finder(self)
        self._lock = threading.RLock()

    def patch(self, families: Iterable[str]) -> Report:
        """Patch the modules of these families, those imported already and those to come; calls nest."""
        with self._lock:
            if self._depth == 0:
                self.report = Report(_unpatch=self.unpatch)
                sys.meta_path.insert(0, self._finder)
            self._depth += 1
            fresh = [family for family in families if family not in self._active]
            if fresh:
                self._active += fresh
                modules = list(sys.modules.items())
                pairs = [pair for name, module in modules for pair in self._patch_module(name, module)]
                self._rebind(pairs, sys.modules)
            return self.report

    def unpatch(self) -> None:
        """Undo one :meth:`patch`; the last one restores everything."""
        with self._lock:
            if self._depth == 0:
                return
            self._depth -= 1
            if self._depth == 0:
                self._restore()

    def targets(self, name: str) -> list[Target]:
        """The targets of the families in force that a module of this name can match."""
        root, last = name.partition(".")[0], name.rpartition(".")[2]
        return [
            target
            for family in self._active
            for target in self._families[family]
            if target.module.rpartition(".")[2] == last
            and (name == target.module or (name.endswith(target.module) and root not in ("posgan_fast", "torch")))
        ]

    def executed(self, name: str, module: ModuleType, imported_before: set[str]) -> None:
        """Patch a module that was just executed, and the names that other modules took from it meanwhile."""
        with self._lock:
            since = {n: m for n, m in list(sys.modules.items()) if n not in imported_before}
            self._rebind(list(self._patch_module(name, module)), {**since, name: module})

    def has_standin(self, name: str) -> bool:
        """Return whether this engine, being in force, can make a module of this name."""
        return self._depth > 0 and name in self._standins

    def stand_in(self, name: str) -> ModuleType:
        """Make a module that is missing; the last :meth:`unpatch` removes it from ``sys.modules``."""
        module = self._standins[name]()

        def remove() -> None:
            if sys.modules.get(name) is module:
                del sys.modules[name]

        self._changes.on_undo(remove)
        self.report.standins.append(name)
        return module

    def _patch_module(self, name: str, module: Any) -> Iterator[tuple[Any, Any]]:
        """Patch a module if it matches a target, and yield (theirs, ours) for each function replaced."""
        reasons = []
        for target in self.targets(name) if isinstance(module, ModuleType) else ():
            reason = target.mismatch(module)
            if reason is None:
                yield from self._replace_functions(target, name, module)
                return
            reasons.append(reason)
        if reasons:
            self.report.add(LeftAlone(name, "; ".join(dict.fromkeys(reasons))))

    def _replace_functions(self, target: Target, name: str, module: ModuleType) -> Iterator[tuple[Any, Any]]:
        for path, (ours, label, quiet) in target.build(module, self.report).items():
            theirs = _lookup(module, path)
            if id(theirs) in self._replaced:  # ours already: a package re-exports what was put into its module
                continue
            ours = _imitate(theirs, ours)
            prefix, _, attribute = path.rpartition(".")
            holder = _lookup(module, prefix) if prefix else module
            static = isinstance(vars(holder)[attribute], staticmethod)
            self._changes.put(holder, attribute, staticmethod(ours) if static else ours)
            self._replaced[id(ours)] = (ours, theirs)
            if not quiet:
                self.report.add(Patched(name, path, target.family, label))
            yield theirs, ours

    def _rebind(self, pairs: Iterable[tuple[Any, Any]], modules: Mapping[str, Any]) -> None:
        """Replace theirs by ours where other modules imported the function by name: ``from op import upfirdn2d``."""
        table = {id(theirs): (theirs, ours) for theirs, ours in pairs}
        for module, name, ours in _bindings(table, modules) if table else ():
            self._changes.put(module, name, ours)

    def _restore(self) -> None:
        if self._finder in sys.meta_path:
            sys.meta_path.remove(self._finder)
        self._changes.undo()
        # Modules imported while the hooks were in place may have taken one of our functions by name.
        for module, name, theirs in list(_bindings(self._replaced, sys.modules)):
            setattr(module, name, theirs)
        self._active, self._replaced = [], {}


class _Finder:
    """Asks the other finders for a module, and wraps the loader of one that may have to be patched.

    If they find none, and the engine has a stand-in, the stand-in is loaded.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._asking = threading.local()  # the names, as attributes, for which this thread is in find_spec already

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> ModuleSpec | None:
        wanted, standin = bool(self._engine.targets(name)), self._engine.has_standin(name)
        if not (wanted or standin) or name in vars(self._asking):
            return None
        setattr(self._asking, name, True)  # another finder of this kind may ask this one in turn
        try:
            spec = self._ask_others(name, path, target)
        finally:
            delattr(self._asking, name)
        if spec is None:
            return ModuleSpec(name, _StandInLoader(self._engine), is_package="." not in name) if standin else None
        if wanted and hasattr(spec.loader, "exec_module"):
            spec.loader = _Loader(spec.loader, self._engine)
        return spec

    def _ask_others(self, name: str, path: Any, target: ModuleType | None) -> ModuleSpec | None:
        for finder in list(sys.meta_path):
            find = None if finder is self else getattr(finder, "find_spec", None)
            spec = find(name, path, target) if find else None
            if spec is not None:
                return spec
        return None


class _Loader(Loader):
    """Executes a module with its own loader, then has the engine patch it; the module itself sees its own loader."""

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
    """Loads a module that the engine makes."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return self._engine.stand_in(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


def _lookup(module: Any, path: str) -> Any:
    """The attribute at the end of a dotted path."""
    return functools.reduce(getattr, path.split("."), module)


def _imitate(theirs: Callable[..., Any], ours: Callable[..., Any]) -> Callable[..., Any]:
    """Give ``ours`` the name and documentation of ``theirs``, and its default values if the parameters are the same."""
    try:
        parameters = inspect.signature(theirs).parameters
    except ValueError:  # a builtin without a signature
        return functools.update_wrapper(ours, theirs)
    if tuple(inspect.signature(ours).parameters) == tuple(parameters):
        defaults = tuple(p.default for p in parameters.values() if p.default is not p.empty)
        ours.__defaults__ = defaults or None  # type: ignore[attr-defined]
    return functools.update_wrapper(ours, theirs)


def _bindings(table: Mapping[int, tuple[Any, Any]], modules: Mapping[str, Any]) -> Iterator[tuple[Any, str, Any]]:
    """Find the globals of ``modules`` that are the first object of a pair; yield module, name and the second object.

    ``table`` has the pairs by the id of their first object.
    """
    for module in list(modules.values()):
        namespace = getattr(module, "__dict__", None)
        if not isinstance(module, ModuleType) or not isinstance(namespace, dict):
            continue
        for name, value in list(namespace.items()):
            pair = table.get(id(value))
            if pair is not None and pair[0] is value:
                yield module, name, pair[1]
