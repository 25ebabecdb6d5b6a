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

    norms = Registry("")
    bricks = module("mmcv.cnn.bricks", NORM_LAYERS=norms, PLUGIN_LAYERS=Registry(""), **convolutions(norms))
    fused = {"FusedBiasLeakyReLU": FusedBiasLeakyReLU, "fused_bias_leakyrelu": fused_bias_leakyrelu}
    made = [
        module(
            "mmcv",
            is_list_of=lambda *_: True,
            is_seq_of=lambda seq, kind: all(isinstance(s, kind) for s in seq),
            print_log=lambda *_: None,
        ),
        module("mmcv.utils", Registry=Registry, build_from_cfg=build_from_cfg, print_log=lambda *_: None),
        module("mmcv.utils.parrots_wrapper", _BatchNorm=torch.nn.BatchNorm2d),
        module("mmcv.cnn", ConvModule=bricks.ConvModule, normal_init=normal_init, constant_init=constant_init),
        bricks,
        module("mmcv.cnn.bricks.activation", build_activation_layer=bricks.build_activation_layer),
        module("mmcv.cnn.bricks.upsample", build_upsample_layer=bricks.build_upsample_layer),
        module("mmcv.cnn.utils", normal_init=normal_init),
        module("mmcv.ops"),
        module("mmcv.ops.fused_bias_leakyrelu", **fused),
        module("mmcv.ops.upfirdn2d", upfirdn2d=upfirdn2d),
        module("mmcv.runner", load_checkpoint=None, load_state_dict=None),
        module("mmcv.runner.dist_utils", get_dist_info=lambda: (0, 1)),
        module("mmcv.runner.checkpoint", _load_checkpoint_with_prefix=None),
        module("mmgen.core"),
        module("mmgen.core.runners"),
        module("mmgen.core.runners.fp16_utils", auto_fp16=lambda **_: lambda function: function),
        module("mmgen.models.common", AllGatherLayer=None),
        module("mmgen.utils", get_root_logger=lambda: None),
        module("mmgen.models.architectures.stylegan.ada"),
        module("mmgen.models.architectures.stylegan.ada.augment", AugmentPipe=None),
        module("mmgen.models.architectures.stylegan.ada.misc", constant=None),
        module("mmgen.models.architectures.stylegan.modules.styleganv3_modules"),
    ]
    architectures = [f".models.architectures.{name}" for name in ("pggan", "singan", "dcgan")]
    for name in ("", ".models", ".models.architectures", *architectures, ".ops"):
        made.append(module(f"mmgen{name}", __path__=[str(path.joinpath("mmgen", *name.split(".")[1:]))]))
    for name in ("", ".modules"):
        folder = path / "mmgen/models/architectures/stylegan" / name[1:]
        made.append(module(f"mmgen.models.architectures.stylegan{name}", __path__=[str(folder)]))
    return {one.__name__: one for one in made}


def convolutions(norms: dict[str, type]) -> dict[str, Any]:
    """mmcv's ConvModule and the functions that build its parts; ``norms``: registered normalisations."""
    acts = {"ReLU": torch.nn.ReLU, "LeakyReLU": torch.nn.LeakyReLU, "Tanh": torch.nn.Tanh}
    paddings = {"zero": torch.nn.ZeroPad2d, "reflect": torch.nn.ReflectionPad2d}

    def build_activation_layer(cfg):
        arguments = dict(cfg)
        return acts[arguments.pop("type")](**arguments)

    def build_norm_layer(cfg, channels):
        batch = cfg["type"] == "BN"
        return ("bn", torch.nn.BatchNorm2d(channels)) if batch else ("pn", norms[cfg["type"]](channels))

    def build_upsample_layer(cfg):
        arguments = dict(cfg)
        return torch.nn.Upsample(mode=arguments.pop("type"), **arguments)

    class ConvModule(torch.nn.Module):
        def __init__(
            self, in_channels, out_channels, kernel_size, stride=1, padding=0, bias="auto", conv_cfg=None,
            norm_cfg=None, act_cfg=acts, padding_mode="zeros", order=("conv", "norm", "act"),
        ):  # fmt: skip
            super().__init__()
            transposed = (conv_cfg or {}).get("type") in ("deconv", "ConvTranspose2d")
            self.pad = None if padding_mode == "zeros" else paddings[padding_mode](padding)
            make = torch.nn.ConvTranspose2d if transposed else torch.nn.Conv2d
            bias = norm_cfg is None if bias == "auto" else bias
            self.conv = make(in_channels, out_channels, kernel_size, stride, 0 if self.pad else padding, bias=bias)
            self.norm_name, norm = build_norm_layer(norm_cfg, out_channels) if norm_cfg else (None, None)
            if norm is not None:
                self.add_module(self.norm_name, norm)
            self.activate = (
                build_activation_layer({"type": "ReLU"} if act_cfg is acts else act_cfg) if act_cfg else None
            )
            self.order = order

        def forward(self, x):
            parts = {"norm": getattr(self, self.norm_name or "activate"), "act": self.activate}
            for part in self.order:
                if part == "conv":
                    x = self.conv(x if self.pad is None else self.pad(x))
                elif (part == "act" or self.norm_name) and parts[part] is not None:
                    x = parts[part](x)
            return x

    return dict(
        ConvModule=ConvModule,
        build_activation_layer=build_activation_layer,
        build_norm_layer=build_norm_layer,
        build_upsample_layer=build_upsample_layer,
    )


def normal_init(module: torch.nn.Module, mean: float = 0, std: float = 1) -> None:
    torch.nn.init.normal_(getattr(module, "weight_orig", module.weight), mean, std)


def constant_init(module: torch.nn.Module, value: float) -> None:
    torch.nn.init.constant_(module.weight, value)


_SPE = dict(type="SPE", embedding_dim=4, padding_idx=0, init_size=512, div_half_dim=False, center_shift=200)
SINGANS = {  # class and arguments there; arguments here; rows that noise has more; its channels in stage 0 and after
    "original": ("SinGANMultiScaleGenerator", {}, {}, 0, (1, 3)),
    "csg": (
        "SinGANMSGeneratorPE",
        dict(padding=1, pad_at_head=False, first_stage_in_channels=2, positional_encoding=dict(type="CSG")),
        dict(encode="csg"), 0, (2, 1),
    ),
    "spe": (
        "SinGANMSGeneratorPE",
        dict(padding=1, pad_at_head=False, first_stage_in_channels=8, positional_encoding=_SPE),
        dict(encode="spe"), 0, (8, 1),
    ),
    "spe, one channel of noise": (
        "SinGANMSGeneratorPE",
        dict(padding=1, pad_at_head=False, first_stage_in_channels=8, positional_encoding=_SPE),
        dict(), 0, (1, 1),
    ),
    "spe at the head": (
        "SinGANMSGeneratorPE",
        dict(first_stage_in_channels=8, positional_encoding=_SPE),
        dict(encode="spe", pad_at="head"), 0, (8, 1),
    ),
    "interp": ("SinGANMSGeneratorPE", dict(interp_pad=True, noise_with_pad=True), dict(padding="interp"), 10, (1, 1)),
    "reflect": ("SinGANMSGeneratorPE", dict(padding_mode="reflect"), dict(padding="reflect"), 0, (1, 1)),
    "reflect in each": (
        "SinGANMSGeneratorPE",
        dict(padding=1, pad_at_head=False, padding_mode="reflect"),
        dict(padding="reflect", pad_at="conv"), 0, (1, 1),
    ),
}  # fmt: skip


def mmgeneration_network(name: str) -> type:
    """A network of SinGAN, PGGAN or DCGAN by its class name, inside ``checkout(path, mmcv(path))``."""
    mmgeneration()
    architectures = "mmgen.models.architectures"
    common = importlib.import_module(f"{architectures}.common")
    sys.modules[architectures].__dict__.update(vars(common))
    folder = next(folder for folder in ("singan", "pggan", "dcgan") if name.lower().startswith(folder))
    if folder == "singan":
        importlib.import_module(f"{architectures}.singan.modules")
    file = "positional_encoding" if name.endswith("PE") else "generator_discriminator"
    return getattr(importlib.import_module(f"{architectures}.{folder}.{file}"), name)


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
