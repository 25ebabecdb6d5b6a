"""Modules that foreign code imports and a current Python or torchvision no longer has, reduced to what that code uses.

They answer an import only while the hooks are in place and only where no real module can be found.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from types import ModuleType

import torch


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


def torchvision_models_utils() -> ModuleType:
    """torchvision 0.11 removed it; genforce downloads its Inception network through it."""
    module = ModuleType("torchvision.models.utils", "Stand-in of posgan_fast: load_state_dict_from_url.")
    module.__dict__["load_state_dict_from_url"] = torch.hub.load_state_dict_from_url
    return module


def torchvision_functional_tensor() -> ModuleType:
    """torchvision 0.17 removed it; basicsr takes rgb_to_grayscale from it."""
    functional = importlib.import_module("torchvision.transforms.functional")
    module = ModuleType("torchvision.transforms.functional_tensor", "Stand-in of posgan_fast: functional, as it is.")
    module.__dict__.update({name: value for name, value in vars(functional).items() if not name.startswith("_")})
    return module


STANDINS = {
    "pkg_resources": pkg_resources,
    "distutils": distutils,
    "distutils.util": distutils_util,
    "torchvision.models.utils": torchvision_models_utils,
    "torchvision.transforms.functional_tensor": torchvision_functional_tensor,
}


def _declare_namespace(name: str) -> None:
    """Callers catch ImportError here and fall back to pkgutil."""
    raise ImportError(f"{name}: pkg_resources is a stand-in without declare_namespace")


def _strtobool(value: str) -> int:
    if value.lower() in ("y", "yes", "t", "true", "on", "1"):
        return 1
    if value.lower() in ("n", "no", "f", "false", "off", "0"):
        return 0
    raise ValueError(f"value: expected a word for true or false, got {value!r}")
