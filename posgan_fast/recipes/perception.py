"""Frozen networks that losses look through: LPIPS, which judges as people do, and ArcFace, which knows faces.

Both read weights that others published, and nothing is downloaded. In training they run in float32, whatever the
precision of the rest.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch.nn import functional as F

from ..models import CheckpointError, LoadReport, read_checkpoint
from ..models.exact import Tensors, differences, listed, plain_state
from ..models.iresnet import Bottleneck
from ..models.padinv import BLOCKS

CHANNELS = (64, 192, 384, 256, 256)  # of AlexNet's convolutions
LEAST_SIDE = 31  # of LPIPS's images: the second pooling then sees 3 x 3 features
ALEXNET = "alexnet-owt-7be5be79.pth"  # torchvision's name of the file
_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
_FACE, _ROWS, _COLUMNS, _CROPPED = 256, slice(35, 223), slice(32, 220), 112

_Source = str | os.PathLike
_Module = TypeVar("_Module", bound=torch.nn.Module)


class LPIPS(torch.nn.Module):
    """LPIPS v0.1 of AlexNet: how different two images look.

    ``d(x, y) = sum over layers l of mean over pixels of sum over channels c of w_lc * (f_lc(x) - f_lc(y))^2``, where
    ``f_l`` is the result of AlexNet's l-th ReLU, of which each pixel is divided by its norm over the channels.

    State, in the names of torchvision's AlexNet and of the package lpips: ``features.{0,3,6,8,10}.weight`` and
    ``bias``; ``lin{0..4}.model.1.weight`` [1, C, 1, 1], the w.

    Source: "The Unreasonable Effectiveness of Deep Features as a Perceptual Metric" (CVPR 2018).

    Example:
        >>> x = torch.rand(2, 3, 64, 64) * 2 - 1
        >>> LPIPS()(x, x).tolist()
        [0.0, 0.0]
    """

    shift: torch.Tensor
    scale: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        c = CHANNELS
        self.features = torch.nn.Sequential(
            torch.nn.Conv2d(3, c[0], 11, 4, padding=2), torch.nn.ReLU(inplace=True), torch.nn.MaxPool2d(3, 2),
            torch.nn.Conv2d(c[0], c[1], 5, padding=2), torch.nn.ReLU(inplace=True), torch.nn.MaxPool2d(3, 2),
            torch.nn.Conv2d(c[1], c[2], 3, padding=1), torch.nn.ReLU(inplace=True),
            torch.nn.Conv2d(c[2], c[3], 3, padding=1), torch.nn.ReLU(inplace=True),
            torch.nn.Conv2d(c[3], c[4], 3, padding=1), torch.nn.ReLU(inplace=True),
        )  # fmt: skip
        for k, count in enumerate(c):
            one = torch.nn.Conv2d(count, 1, 1, bias=False)
            torch.nn.init.constant_(one.weight, 1 / count)
            self.add_module(f"lin{k}", torch.nn.ModuleDict({"model": torch.nn.Sequential(torch.nn.Identity(), one)}))
        self.register_buffer("shift", torch.tensor(_SHIFT).reshape(1, 3, 1, 1), persistent=False)
        self.register_buffer("scale", torch.tensor(_SCALE).reshape(1, 3, 1, 1), persistent=False)

    def weights(self) -> list[torch.Tensor]:
        """Return w of each layer, [1, C, 1, 1]."""
        return [self.get_parameter(f"lin{k}.model.1.weight") for k in range(len(CHANNELS))]

    def maps(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Return sqrt(w_l) * f_l of each layer, [N, C, H, W], for images [N, 3, H, W], RGB from -1 to 1.

        Raises:
            ValueError: images of less than 31 pixels.
        """
        if min(images.shape[2:]) < LEAST_SIDE:
            raise ValueError(f"images: expected at least {LEAST_SIDE} pixels a side, got shape {tuple(images.shape)}")
        found = []
        with torch.autocast(images.device.type, enabled=False):  # float16 has no 1e-10
            x = (images.to(self.shift.dtype) - self.shift) / self.scale
            for layer in self.features:
                x = layer(x)
                if isinstance(layer, torch.nn.ReLU):
                    length = torch.linalg.vector_norm(x, dim=1, keepdim=True)
                    found.append(x / (length + 1e-10))
        return [one * weight.sqrt() for one, weight in zip(found, self.weights(), strict=True)]

    def forward(self, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the distance of each image to its target, [N]."""
        pairs = zip(self.maps(images), self.maps(targets), strict=True)
        return torch.stack([(a - b).square().sum(1).mean((1, 2)) for a, b in pairs]).sum(0)

    def norm(self, images: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Return the l2 norm of the difference of all maps, [N]: sums over layers, channels and pixels, then a root."""
        pairs = zip(self.maps(images), self.maps(targets), strict=True)
        return torch.linalg.vector_norm(torch.cat([(a - b).flatten(1) for a, b in pairs], dim=1), dim=1)


class ArcFace(torch.nn.Module):
    """IR-SE-50 of ArcFace: describe the face in an image by a unit vector, alike for images of one person.

    The image is resized to 256 pixels if it has others, cropped to rows 35 to 222 and columns 32 to 219, and averaged
    down to 112.

    Args:
        width: channels of the first convolution.
        features: size of the vector.

    State, in the names of the published files: ``input_layer``, ``body.{0..23}`` and ``output_layer.{0,3,4}``.

    Source: "ArcFace: Additive Angular Margin Loss for Deep Face Recognition" (CVPR 2019); the crop is pSp's.

    Example:
        >>> network = ArcFace(width=8, features=16).eval()
        >>> network(torch.rand(2, 3, 64, 64) * 2 - 1).shape
        torch.Size([2, 16])
    """

    def __init__(self, width: int = 64, features: int = 512) -> None:
        super().__init__()
        stem = torch.nn.Conv2d(3, width, 3, padding=1, bias=False)
        self.input_layer = torch.nn.Sequential(stem, torch.nn.BatchNorm2d(width), torch.nn.PReLU(width))
        self.body = torch.nn.Sequential()
        for stage, count in enumerate(BLOCKS[50]):
            inner, outer = width * 2 ** max(stage - 1, 0), width * 2**stage
            self.body.extend(Bottleneck(outer if k else inner, outer, 1 if k else 2) for k in range(count))
        self.output_layer = torch.nn.Sequential(
            torch.nn.BatchNorm2d(8 * width),
            torch.nn.Dropout(),
            torch.nn.Flatten(),
            torch.nn.Linear(8 * width * (_CROPPED // 16) ** 2, features),
            torch.nn.BatchNorm1d(features),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map images [N, 3, side, side], RGB from -1 to 1, to unit vectors [N, features]."""
        with torch.autocast(images.device.type, enabled=False):
            x = images.to(self.get_parameter("input_layer.0.weight").dtype)
            if x.shape[2:] != (_FACE, _FACE):
                x = F.interpolate(x, (_FACE, _FACE), mode="bilinear", align_corners=False)
            x = F.adaptive_avg_pool2d(x[:, :, _ROWS, _COLUMNS], _CROPPED)
            return F.normalize(self.output_layer(self.body(self.input_layer(x))))


def load_lpips(*sources: _Source, name: str = "perceptual") -> LPIPS:
    """Load LPIPS from files, frozen and in evaluation mode.

    Torchvision publishes AlexNet's convolutions, and the package lpips holds the weights of its layers. One file with
    the tensors of both comes from::

        torch.save(torch.load("alexnet-owt-7be5be79.pth") | torch.load("lpips/weights/v0.1/alex.pth"), "lpips.pt")

    Args:
        sources: paths of files that hold the tensors of :class:`LPIPS` together, whatever else they hold.
        name: what errors call the argument.

    Raises:
        FileNotFoundError: there is no such file.
        UnsafeFileError, CheckpointError: a file is damaged or asks for code, a tensor is missing or has another shape,
            or a layer's weight is negative.

    Example:
        >>> load_lpips("lpips.pt")(images, targets)  # doctest: +SKIP
    """
    data: dict[Any, Any] = {}
    for source in sources:
        data |= _read(source, name)
    network = _filled(LPIPS(), data, sources, name)
    negative = [k for k, weight in enumerate(network.weights()) if bool((weight < 0).any())]
    if negative:
        raise CheckpointError(f"{name}: lin{negative[0]}.model.1.weight: expected numbers >= 0, got negative ones")
    return network


def load_arcface(source: _Source, name: str = "identity") -> ArcFace:
    """Load the IR-SE-50 in a file, frozen and in evaluation mode.

    Args:
        source: path of a file, such as the published model_ir_se50.pth.
        name: what errors call the argument.

    Raises:
        FileNotFoundError, UnsafeFileError, CheckpointError: as :func:`load_lpips`.

    Example:
        >>> load_arcface("model_ir_se50.pth")(images).shape  # doctest: +SKIP
        torch.Size([8, 512])
    """
    data = _read(source, name)
    last = f"body.{sum(BLOCKS[50]) - 1}.res_layer.1.weight"
    try:
        known = Tensors(plain_state({key: data[key] for key in (last, "output_layer.3.weight") if key in data}))
        channels, features = known.shape(last, 4)[0], known.shape("output_layer.3.weight", 2)[0]
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {source}: expected ArcFace's IR-SE-50: {error}") from None
    return _filled(ArcFace(max(1, channels // 8), features), data, [source], name)


def installed_lpips() -> tuple[list[Path], str]:
    """Return the files of LPIPS that other packages have left on this machine, or none and what is missing."""
    try:
        found = importlib.util.find_spec("lpips")
    except (ImportError, ValueError):
        found = None
    if found is None or found.origin is None:
        return [], "the package lpips is not installed"
    paths = [
        Path(torch.hub.get_dir(), "checkpoints", ALEXNET),
        Path(found.origin).parent / "weights" / "v0.1" / "alex.pth",
    ]
    missing = [str(path) for path in paths if not path.is_file()]
    return ([], f"{missing[0]} is missing") if missing else (paths, "")


def _read(source: _Source, name: str) -> Mapping[Any, Any]:
    if not Path(source).is_file():
        raise FileNotFoundError(f"{name}: no such file: {source}")
    try:
        data = read_checkpoint(source)
    except CheckpointError as error:
        raise type(error)(f"{name}: {error}") from None
    if not isinstance(data, Mapping):
        raise CheckpointError(f"{name}: {source}: expected a state dictionary, got {type(data).__name__}")
    return data


def _filled(network: _Module, data: Mapping[Any, Any], sources: Any, name: str) -> _Module:
    """Load the tensors of the network's own names, and freeze it."""
    own = network.state_dict()
    kind = type(network).__name__
    try:
        state = plain_state({key: data[key] for key in own if key in data})
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}") from None
    if wrong := differences(own, state, LoadReport("", kind)):
        paths = ", ".join(map(str, sources))
        raise CheckpointError(f"{name}: {paths}: does not fit into {kind}: {listed(wrong)}")
    network.load_state_dict(state)
    return network.eval().requires_grad_(False)
