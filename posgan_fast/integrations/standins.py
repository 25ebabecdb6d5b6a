"""Modules that foreign code imports and a current Python no longer has, reduced to what that code uses.

They answer an import only while the hooks are in place and only where no real module can be found.
"""

from __future__ import annotations

import importlib.metadata
from types import ModuleType


def pkg_resources() -> ModuleType:
    """setuptools removed it in version 82; the gradfix modules of NVlabs take parse_version from it."""
    import packaging.version

    module = ModuleType("pkg_resources", "Stand-in of posgan_fast: parse_version, get_distribution, packaging.")
    module.__dict__.update(
        parse_version=packaging.version.parse,
        packaging=packaging,
        get_distribution=importlib.metadata.distribution,
        DistributionNotFound=importlib.metadata.PackageNotFoundError,
        declare_namespace=_declare_namespace,
    )
    return module


def distutils() -> ModuleType:
    """Python 3.12 removed it, setuptools brings it back where it is installed."""
    return ModuleType("distutils", "Stand-in of posgan_fast: util.strtobool.")


def distutils_util() -> ModuleType:
    module = ModuleType("distutils.util", "Stand-in of posgan_fast: strtobool.")
    module.__dict__["strtobool"] = _strtobool
    return module


STANDINS = {"pkg_resources": pkg_resources, "distutils": distutils, "distutils.util": distutils_util}


def _declare_namespace(name: str) -> None:
    """Callers catch ImportError here and fall back to pkgutil."""
    raise ImportError(f"{name}: pkg_resources is a stand-in without declare_namespace")


def _strtobool(value: str) -> int:
    if value.lower() in ("y", "yes", "t", "true", "on", "1"):
        return 1
    if value.lower() in ("n", "no", "f", "false", "off", "0"):
        return 0
    raise ValueError(f"value: expected a word for true or false, got {value!r}")
