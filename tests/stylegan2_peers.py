"""StyleGAN2 modules of other projects, imported from a checkout and forgotten again."""

from __future__ import annotations

import contextlib
import importlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch.nn import functional as F

from posgan_fast.integrations import standins


@contextlib.contextmanager
def checkout(path: Path, extra: dict[str, ModuleType] | None = None) -> Iterator[None]:
    """Imports from ``path``; ``extra`` modules stand in for what is not installed."""
    cpp_extension = importlib.import_module("torch.utils.cpp_extension")
    before, load, writes = dict(sys.modules), cpp_extension.load, sys.dont_write_bytecode
    sys.path.insert(0, str(path))
    missing = {name: make() for name, make in _STANDINS.items() if importlib.util.find_spec(name) is None}
    sys.modules |= missing | (extra or {})
    cpp_extension.load = lambda *_, **__: None  # nothing is compiled: all runs on the CPU
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.path.remove(str(path))
        cpp_extension.load, sys.dont_write_bytecode = load, writes
        for name, module in list(sys.modules.items()):
            ours = str(getattr(module, "__file__", None)).startswith(str(path)) or name in {**missing, **(extra or {})}
            if name not in before and ours:
                del sys.modules[name]


class Family(NamedTuple):
    """The generator of a family: its making, its image, and its style layer ``n``, 0 at 4 pixels, odd: enlarging."""

    generator: Callable[[Path, int], torch.nn.Module]  # of a checkout and the side
    image: Callable[[Any, torch.Tensor], torch.Tensor]
    layer: Callable[[Any, int, torch.Tensor, torch.Tensor], torch.Tensor]
    extra: Callable[[Path], dict[str, ModuleType]] = lambda path: {}


def nvlabs(path: Path) -> ModuleType:
    """The networks of stylegan3 or stylegan2-ada-pytorch."""
    stylegan3 = (path / "training" / "networks_stylegan2.py").is_file()
    return importlib.import_module("training.networks_stylegan2" if stylegan3 else "training.networks")


def conv(synthesis: torch.nn.Module, n: int) -> torch.nn.Module:
    """Layer ``n`` under NVlabs' names, which are ours."""
    return synthesis.get_submodule(f"b{4 * 2 ** ((n + 1) // 2)}.conv{1 - n % 2}")


def _layer_of_lists(generator: Any, n: int) -> torch.nn.Module:
    return generator.convs[n - 1] if n else generator.conv1


def _stylegan2_generator(path: Path, size: int) -> torch.nn.Module:
    return importlib.import_module("models.stylegan2_generator").StyleGAN2Generator(resolution=size)


FAMILIES = {  # in the published width, with constant noise and without truncation
    "nvlabs": Family(
        lambda path, size: nvlabs(path).Generator(512, 0, 512, size, 3),
        lambda g, z: g(z, None, noise_mode="const", force_fp32=True),
        lambda g, n, x, w: conv(g.synthesis, n)(x, w, noise_mode="const"),
    ),
    "rosinality": Family(
        lambda path, size: importlib.import_module("model").Generator(size, 512, 8),
        lambda g, z: g([z], randomize_noise=False)[0],
        lambda g, n, x, w: _layer_of_lists(g, n)(x, w, noise=getattr(g.noises, f"noise_{n}")),
    ),
    "mmgeneration": Family(
        lambda path, size: mmgeneration()[1].StyleGANv2Generator(size, 512),
        lambda g, z: g(z, randomize_noise=False),
        lambda g, n, x, w: _layer_of_lists(g, n)(x, w, noise=getattr(g, f"injected_noise_{n}")),
        lambda path: mmcv(path),
    ),
    "hammer": Family(
        _stylegan2_generator,
        lambda g, z: g(z, impl="ref")["image"],
        lambda g, n, x, w: g.synthesis.get_submodule(f"layer{n}")(x, w, impl="ref")[0],
        lambda path: package("models", path),
    ),
    "genforce": Family(
        _stylegan2_generator,
        lambda g, z: g(z)["image"],
        lambda g, n, x, w: g.synthesis.get_submodule(f"layer{n}")(x, w)[0],
        lambda path: package("models", path),
    ),
}

_STANDINS = {"pkg_resources": standins.pkg_resources, "distutils.util": standins.distutils_util}
_STANDINS |= {name: lambda name=name: module(name) for name in ("requests", "cv2")}
_STANDINS |= {"easydict": lambda: module("easydict", EasyDict=SimpleNamespace)}


def package(name: str, path: Path) -> dict[str, ModuleType]:
    """A package whose ``__init__`` is not run, as it would bring every network with it."""
    return {name: module(name, __path__=[str(path / name)])}


def scrambled(module: torch.nn.Module) -> torch.nn.Module:
    """Biases, noise strengths and averages that are not zero, so that each of them shows."""
    rand = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for name, value in [*module.named_parameters(), *module.named_buffers()]:
            small = value.ndim <= 1 or name.endswith(("to_rgb1.bias", "bias"))
            if small and "filter" not in name and "kernel" not in name:
                value += torch.randn(value.shape, generator=rand) * 0.3
    return module.eval().requires_grad_(False)


def module(name: str, **contents: Any) -> ModuleType:
    made = ModuleType(name)
    made.__dict__.update(contents)
    return made


def mmcv(path: Path) -> dict[str, ModuleType]:
    """The little of mmcv 1.x that mmgeneration's StyleGAN2 uses, on plain torch, and its packages unexecuted."""

    class Registry(dict):
        def __init__(self, _: str) -> None:
            super().__init__()

        def register_module(self, name=None):
            return lambda cls: self.setdefault(name or cls.__name__, cls)

    def build_from_cfg(cfg, registry, default_args=None):
        arguments = dict(cfg)
        return registry[arguments.pop("type")](**arguments)

    class ConvModule(torch.nn.Module):
        def __init__(self, *args, norm_cfg=None, act_cfg=None, **kwargs):
            super().__init__()
            self.conv = torch.nn.Conv2d(*args, **kwargs)

        def forward(self, x):
            return self.conv(x)

    def upfirdn2d(x, kernel, up=1, down=1, pad=(0, 0)):
        n, c, h, w = x.shape
        stuffed = x.new_zeros(n, c, h, up, w, up)
        stuffed[:, :, :, 0, :, 0] = x
        y = F.pad(stuffed.reshape(n * c, 1, h * up, w * up), (*pad, *pad))
        y = F.conv2d(y, kernel.flip(0, 1)[None, None], stride=down)
        return y.reshape(n, c, *y.shape[2:])

    def fused_bias_leakyrelu(x, bias, negative_slope=0.2, scale=2**0.5):
        return F.leaky_relu(x + bias.reshape(1, -1, *[1] * (x.ndim - 2)), negative_slope) * scale

    class FusedBiasLeakyReLU(torch.nn.Module):
        def __init__(self, channels, negative_slope=0.2, scale=2**0.5):
            super().__init__()
            self.bias = torch.nn.Parameter(torch.zeros(channels))
            self.negative_slope, self.scale = negative_slope, scale

    bricks = module("mmcv.cnn.bricks", NORM_LAYERS=Registry(""), PLUGIN_LAYERS=Registry(""), ConvModule=ConvModule)
    bricks.__dict__.update(build_activation_layer=None, build_norm_layer=None, build_upsample_layer=None)
    fused = {"FusedBiasLeakyReLU": FusedBiasLeakyReLU, "fused_bias_leakyrelu": fused_bias_leakyrelu}
    made = [
        module("mmcv", is_seq_of=lambda seq, kind: all(isinstance(s, kind) for s in seq), print_log=lambda *_: None),
        module("mmcv.utils", Registry=Registry, build_from_cfg=build_from_cfg),
        module("mmcv.cnn"),
        bricks,
        module("mmcv.cnn.bricks.activation", build_activation_layer=None),
        module("mmcv.cnn.utils", normal_init=lambda conv: torch.nn.init.normal_(conv.weight_orig)),
        module("mmcv.ops"),
        module("mmcv.ops.fused_bias_leakyrelu", **fused),
        module("mmcv.ops.upfirdn2d", upfirdn2d=upfirdn2d),
        module("mmcv.runner"),
        module("mmcv.runner.dist_utils", get_dist_info=lambda: (0, 1)),
        module("mmcv.runner.checkpoint", _load_checkpoint_with_prefix=None),
        module("mmgen.core"),
        module("mmgen.core.runners"),
        module("mmgen.core.runners.fp16_utils", auto_fp16=lambda **_: lambda function: function),
        module("mmgen.models.common", AllGatherLayer=None),
        module("mmgen.models.architectures.stylegan.ada"),
        module("mmgen.models.architectures.stylegan.ada.augment", AugmentPipe=None),
        module("mmgen.models.architectures.stylegan.ada.misc", constant=None),
        module("mmgen.models.architectures.stylegan.modules.styleganv3_modules"),
    ]
    for name in ("", ".models", ".models.architectures", ".models.architectures.pggan", ".ops"):
        made.append(module(f"mmgen{name}", __path__=[str(path.joinpath("mmgen", *name.split(".")[1:]))]))
    for name in ("", ".modules"):
        folder = path / "mmgen/models/architectures/stylegan" / name[1:]
        made.append(module(f"mmgen.models.architectures.stylegan{name}", __path__=[str(folder)]))
    return {one.__name__: one for one in made}


def mmgeneration() -> tuple[ModuleType, ModuleType]:
    """``mspie`` and ``generator_discriminator_v2``, inside ``checkout(path, mmcv(path))``."""
    architectures = sys.modules["mmgen.models.architectures"]
    sys.modules["mmgen.ops"].__dict__.update(
        conv2d=F.conv2d, conv_transpose2d=F.conv_transpose2d
    )  # its own come with the extensions of StyleGAN3
    pggan = importlib.import_module("mmgen.models.architectures.pggan.modules")
    for package in (architectures, sys.modules["mmgen.models.architectures.pggan"]):
        package.__dict__.update({name: value for name, value in vars(pggan).items() if not name.startswith("_")})
    importlib.import_module("mmgen.models.architectures.positional_encoding")
    stylegan = "mmgen.models.architectures.stylegan"
    return importlib.import_module(f"{stylegan}.mspie"), importlib.import_module(
        f"{stylegan}.generator_discriminator_v2"
    )
