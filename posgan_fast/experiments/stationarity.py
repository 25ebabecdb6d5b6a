"""Stationarity: does a convolutional generator know where it is, if its input is the same noise everywhere?

Equations 1 to 5 of "Positional Encoding as Spatial Inductive Bias in GANs" (CVPR 2021): without padding, expectation
and autocorrelation of the features do not depend on the position; zero padding makes them depend on it. Random
generators (five 3x3 convolutions with leaky ReLU, as a stage of SinGAN without normalisation) turn independent noise
into features with four paddings: zeros, reflection, a ring of noise that is drawn anew for each sample ("instance"),
and none.

The test is exact and needs no eye. For each draw of the noise, d is the mean of a channel over the pixels at the border
minus its mean over the pixels of the centre. Draws are independent, so Hotelling's T^2 tests that the expectation of d
is zero in all channels at once. The same for the product of each pixel and its right neighbour, which estimates the
autocorrelation.

Figure 3 of the paper: a StyleGAN2 whose constant input has one value everywhere shows frozen borders with padding and
none without. Weights are random here, so the measure is the spread of a channel over the positions, relative to its
size.
"""

from __future__ import annotations

import argparse
import math
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from scipy import stats
from torch.nn import functional as F

from ..models import Generator
from ..ops.common import checks
from .report import write

PADDINGS = ("zeros", "reflect", "instance", "none")
LAYERS, WIDTH, SIDE, BORDER = 5, 8, 24, 3
CHUNK = 50


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--draws", type=int, default=4000, metavar="N", help="draws of the noise (default: 4000)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="seed of weights and noise (default: 0)")


def run(options: argparse.Namespace) -> int:
    if options.draws < 4 * WIDTH:
        raise ValueError(f"--draws: expected at least {4 * WIDTH}, got {options.draws}")
    checks.integer(options.seed, "--seed", minimum=0, maximum=2**63 - 1)
    found = {padding: measure(padding, options.draws, options.seed) for padding in PADDINGS}
    constant = {
        name: constant_input(no_pad, options.seed) for name, no_pad in (("padded", False), ("no padding", True))
    }
    figure = _figure(found, constant)
    numbers = {
        "settings": {"draws": options.draws, "seed": options.seed, "side": SIDE, "layers": LAYERS, "width": WIDTH},
        "p": {padding: {key: one[key] for key in ("p_mean", "p_correlation")} for padding, one in found.items()},
        "constant input, spread over positions": {name: one["spread"] for name, one in constant.items()},
    }
    write(options.out, "stationarity", figure, numbers, _sentence(found, constant))
    return 0


def measure(padding: str, draws: int, seed: int) -> dict[str, Any]:
    """Test one padding, and average its features by position.

    Returns:
        ``p_mean`` and ``p_correlation``, the p-values of the tests; ``mean`` [SIDE, SIDE] and ``correlation``
        [SIDE, SIDE - 1], averages over draws and channels of |E(y)| and of the product of neighbours.
    """
    random = torch.Generator().manual_seed(seed)
    weights = [
        torch.randn(WIDTH, WIDTH if k else 3, 3, 3, generator=random) / math.sqrt(9 * (WIDTH if k else 3))
        for k in range(LAYERS)
    ]
    differences: dict[str, list[np.ndarray]] = {"mean": [], "correlation": []}
    sums: dict[str, Any] = {"mean": 0.0, "correlation": 0.0}
    for begin in range(0, draws, CHUNK):
        y = features(weights, padding, min(CHUNK, draws - begin), random)  # [n, WIDTH, SIDE, SIDE]
        products = y[..., 1:] * y[..., :-1]
        for name, values in (("mean", y), ("correlation", products)):
            differences[name].append(border_minus_centre(values).numpy())
            sums[name] = sums[name] + values.sum(0)
    found: dict[str, Any] = {name: (total / draws) for name, total in sums.items()}
    found["mean"], found["correlation"] = found["mean"].abs().mean(0).numpy(), found["correlation"].mean(0).numpy()
    return found | {f"p_{name}": hotelling(np.concatenate(values)) for name, values in differences.items()}


def features(weights: list[torch.Tensor], padding: str, n: int, random: torch.Generator) -> torch.Tensor:
    """Turn independent noise into features [n, WIDTH, SIDE, SIDE]."""
    more = 2 * len(weights) if padding == "none" else 0
    x = torch.randn(n, 3, SIDE + more, SIDE + more, generator=random)
    for weight in weights:
        x = F.leaky_relu(F.conv2d(_padded(x, padding, random), weight), 0.2)
    return x


def _padded(x: torch.Tensor, padding: str, random: torch.Generator) -> torch.Tensor:
    if padding == "none":
        return x
    if padding != "instance":
        return F.pad(x, (1,) * 4, mode="reflect" if padding == "reflect" else "constant")
    # The ring has the mean and the deviation that the channel has inside, but no relation to the pixels beside it.
    mean, std = x.mean((2, 3), keepdim=True), x.std((2, 3), keepdim=True)
    ring = torch.randn(*x.shape[:2], x.shape[2] + 2, x.shape[3] + 2, generator=random) * std + mean
    ring[:, :, 1:-1, 1:-1] = x
    return ring


def border_minus_centre(values: torch.Tensor) -> torch.Tensor:  # [n, C, h, w] => [n, C]
    """Mean over the outermost BORDER pixels minus the mean over the others."""
    inside = values[:, :, BORDER:-BORDER, BORDER:-BORDER]
    whole, part = values[0, 0].numel(), inside[0, 0].numel()
    centre = inside.mean((2, 3))
    return (values.mean((2, 3)) * whole - centre * part) / (whole - part) - centre


def hotelling(samples: np.ndarray) -> float:  # [n, C]
    """Return the p-value of the hypothesis that the expectation of ``samples`` is zero (Hotelling's T^2)."""
    n, c = samples.shape
    mean = samples.mean(0, dtype=np.float64)
    covariance = np.cov(samples, rowvar=False, dtype=np.float64)
    t2 = n * mean @ np.linalg.solve(covariance, mean)
    return float(stats.f.sf(t2 * (n - c) / (c * (n - 1)), c, n - c))


@torch.no_grad()
def constant_input(no_pad: bool, seed: int) -> dict[str, Any]:
    """Run a StyleGAN2 whose constant has one value everywhere; return an image and the spread of its features."""
    torch.manual_seed(seed)
    generator = Generator(64, channel_max=64, mapping_layers=2, up_after_conv=None if no_pad else True, no_pad=no_pad)
    generator.synthesis.b4.const.copy_(torch.randn(64, 1, 1).expand_as(generator.synthesis.b4.const))
    caught: list[torch.Tensor] = []
    generator.synthesis.get_submodule("b64.conv1").register_forward_hook(lambda module, inputs, y: caught.append(y))
    generator.eval()
    image = generator.synthesis(generator.mapping(torch.randn(4, 512)), noise_mode="none")
    y = caught[0]
    return {"image": image, "spread": float((y.std((2, 3)) / y.square().mean((2, 3)).sqrt()).mean())}


def _figure(found: dict[str, Any], constant: dict[str, Any]) -> Figure:
    figure = Figure(figsize=(12, 8.5))
    axes = figure.subplots(3, 4)
    for column, padding in enumerate(PADDINGS):
        one = found[padding]
        for row, (key, title) in enumerate((("mean", "|E(y)|"), ("correlation", "R(y, right neighbour)"))):
            shown = axes[row, column].imshow(one[key])
            figure.colorbar(shown, ax=axes[row, column], fraction=0.046)
            axes[row, column].set_title(f"{padding}: {title}\np = {one[f'p_{key}']:.2g}", fontsize=10)
    for column, name in enumerate(("padded", "padded", "no padding", "no padding")):
        image = constant[name]["image"][column % 2]
        low, high = image.amin(), image.amax()
        picture = ((image - low) / (high - low).clamp_min(1e-6)).permute(1, 2, 0).numpy()
        axes[2, column].imshow(picture)
        axes[2, column].set_title(f"constant input, {name}\nspread {constant[name]['spread']:.2g}", fontsize=10)
    _bare(axes.flat)
    figure.suptitle("Features of random generators from independent noise, by position; StyleGAN2 from one constant")
    return figure


def _bare(axes: Any) -> None:
    for axis in axes:
        axis.set_xticks([]), axis.set_yticks([])


def _sentence(found: dict[str, Any], constant: dict[str, Any]) -> str:
    parts = [
        f"{padding} p = {one['p_mean']:.2g} (mean) and {one['p_correlation']:.2g} (autocorrelation)"
        for padding, one in found.items()
    ]
    stationary = min(found["none"]["p_mean"], found["none"]["p_correlation"]) > 0.01
    verdict = "as in the paper" if stationary and found["zeros"]["p_mean"] < 0.01 else "unlike the paper"
    spreads = ", ".join(f"{one['spread']:.2g} ({name})" for name, one in constant.items())
    return (
        f"Border against centre, {verdict}: {'; '.join(parts)}. From a constant input, features vary over the image by "
        f"{spreads} of their size."
    )
