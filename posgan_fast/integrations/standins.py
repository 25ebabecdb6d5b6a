"""Stand-ins for modules that newer versions of Python, setuptools and torchvision removed.

Each has only what the families' code uses. The hooks, while they are in place, load a stand-in when the real module
cannot be found.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from types import ModuleType

import torch


def pkg_resources() -> ModuleType:
    """Make pkg_resources, which setuptools 82 removed; NVlabs' gradfix modules use its parse_version."""
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
    """Make the package distutils, which Python 3.12 removed; setuptools, if installed, provides a real one."""
    return ModuleType("distutils", "Stand-in of posgan_fast: util.strtobool.")


def distutils_util() -> ModuleType:
    """Make distutils.util with strtobool, which NVlabs' dnnlib uses."""
    module = ModuleType("distutils.util", "Stand-in of posgan_fast: strtobool.")
    module.__dict__["strtobool"] = _strtobool
    return module


def torchvision_models_utils() -> ModuleType:
    """Make torchvision.models.utils, which torchvision 0.11 removed; genforce downloads its Inception network by it."""
    module = ModuleType("torchvision.models.utils", "Stand-in of posgan_fast: load_state_dict_from_url.")
    module.__dict__["load_state_dict_from_url"] = torch.hub.load_state_dict_from_url
    return module


def torchvision_functional_tensor() -> ModuleType:
    """Make a module that torchvision 0.17 removed; basicsr imports rgb_to_grayscale from it."""
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
    """Raise ImportError, which callers catch to use pkgutil instead."""
    raise ImportError(f"{name}: pkg_resources is a stand-in without declare_namespace")


def _strtobool(value: str) -> int:
    if value.lower() in ("y", "yes", "t", "true", "on", "1"):
        return 1
    if value.lower() in ("n", "no", "f", "false", "off", "0"):
        return 0
    raise ValueError(f"value: expected a word for true or false, got {value!r}")
