"""Inversion: the codes that make a StyleGAN2 generator draw a given picture, by an encoder or by optimisation.

Source: "High-fidelity GAN Inversion with Padding Space" (ECCV 2022) for the encoder. The paper optimises no codes; here
Adam or L-BFGS does, in the latents and in any of the padding maps, with the schedule of the learning rate of
StyleGAN2's projector.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import torch
from torch.nn import functional as F
from tqdm import tqdm

from ..models import Generator, PadInvEncoder
from ..ops.common import checks
from .codes import Codes, average_codes, codes_of, joined, native_map, stylegan2

OPTIMIZERS = ("adam", "lbfgs")
LAYERS = (0, 1, 3, 5, 7)  # PadInv's p_0, p_1, p_3, p_5, p_7
LEARNING_RATES = {"adam": 0.05, "lbfgs": 1.0}
RAMP_UP, RAMP_DOWN = 0.05, 0.25  # shares of the steps

Perceptual = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def fitted(images: torch.Tensor, side: int) -> torch.Tensor:
    """Average images [N, C, H, W] down to ``side`` pixels; smaller ones stay as they are."""
    return images if max(images.shape[2:]) <= side else F.adaptive_avg_pool2d(images, side)


def errors(images: torch.Tensor, targets: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Return the mean squared error of each image, [N], at the smaller side of the two.

    Args:
        images, targets: [N, C, H, W] from -1 to 1.
        mask: [H, W] or [N, 1, H, W], True where an edit was meant to change something: these pixels do not count, as
            in PadInv's Table 3. It has the size of the smaller images.

    Raises:
        ValueError: images of other numbers or channels, or a mask of another size or that leaves no pixel.
    """
    if images.shape[:2] != targets.shape[:2]:
        raise ValueError(f"targets: expected {list(images.shape[:2])} images and channels, got {tuple(targets.shape)}")
    side = min(max(images.shape[2:]), max(targets.shape[2:]))
    difference = (fitted(images, side) - fitted(targets, side)).square()
    if mask is None:
        return difference.mean((1, 2, 3))
    if not isinstance(mask, torch.Tensor):
        raise TypeError(f"mask: expected a tensor, got {type(mask).__name__}")
    n, _, h, w = difference.shape
    if mask.shape not in ((h, w), (1, 1, h, w), (n, 1, h, w)) or mask.dtype != torch.bool:
        raise ValueError(f"mask: expected bool, {h} x {w} pixels, got {mask.dtype}, shape {tuple(mask.shape)}")
    counted = (~mask).expand(difference.shape[0], 1, *difference.shape[2:]).to(difference.dtype)
    pixels = counted.sum((1, 2, 3))
    if not bool(pixels.all()):
        raise ValueError("mask: expected pixels outside it, got none")
    return (difference.mean(1, keepdim=True) * counted).sum((1, 2, 3)) / pixels


@torch.no_grad()
def encode(encoder: PadInvEncoder, generator: Generator, images: torch.Tensor, names: Sequence[str] = ()) -> Codes:
    """Return the codes that an encoder gives images [N, 3, size, size], RGB from -1 to 1.

    Raises:
        TypeError, ValueError: images of another size, or an encoder whose codes do not fit the generator.

    Example:
        >>> generator = Generator(16, z_dim=16, w_dim=16, channel_max=16, mapping_layers=1).eval()
        >>> encoder = PadInvEncoder.for_generator(generator, 32).eval()
        >>> codes = encode(encoder, generator, torch.zeros(1, 3, 32, 32))
        >>> [None if p is None else tuple(p.shape) for p in codes.pad_maps]
        [(1, 16, 4, 4), (1, 16, 20), None, (1, 16, 36), None, None]
    """
    if not isinstance(encoder, PadInvEncoder):
        raise TypeError(f"encoder: expected a PadInvEncoder, got {type(encoder).__name__}")
    if encoder.num_ws < generator.num_ws or encoder.w_dim != generator.w_dim:
        raise ValueError(
            f"encoder: expected at least {generator.num_ws} latents of size {generator.w_dim},"
            f" got {encoder.num_ws} of {encoder.w_dim}"
        )
    training = encoder.training
    encoder.eval()  # batch statistics would mix the pictures
    try:
        ws, pad_maps = encoder(images, num_ws=generator.num_ws)
    finally:
        encoder.train(training)
    return codes_of(generator, ws, pad_maps, names)


def optimise(
    generator: Generator,
    images: torch.Tensor,
    *,
    start: Codes | None = None,
    layers: Sequence[int] | None = None,
    steps: int = 200,
    optimizer: str = "adam",
    learning_rate: float | None = None,
    regularisation: float = 0.0,
    perceptual: Perceptual | None = None,
    perceptual_weight: float = 0.8,
    names: Sequence[str] = (),
    quiet: bool = True,
) -> tuple[Codes, torch.Tensor]:
    """Find codes by minimising, for each picture on its own,

    ``mean((G(w, p) - x)^2) + perceptual_weight * perceptual(G(w, p), x) + regularisation * |w - w_start|``.

    Args:
        generator: a StyleGAN2; its parameters do not change.
        images: pictures x [N, C, H, W] from -1 to 1. Larger and smaller images are compared at the smaller side, to
            which the others are averaged.
        start: codes to begin with; None: those of the average image.
        layers: entries of the padding maps that change: 0 is the constant, 1, 3, 5, 7, 9 are the convolutions without
            upsampling at 4, 8, 16, 32, 64 pixels, 2, 4, ... those with; none: the latents alone. None takes those of
            0, 1, 3, 5, 7 that the generator has.
        steps: iterations; one of L-BFGS evaluates the generator several times.
        optimizer: "adam", all pictures at once with the learning rate ramped up and down, or "lbfgs" with a line
            search, picture by picture.
        learning_rate: of all codes; None: 0.05 for Adam, 1 for L-BFGS.
        regularisation: weight of the distance to the latents at the start.
        perceptual: maps images and targets to a distance for each, [N].
        perceptual_weight: its weight.
        names: names of the pictures.
        quiet: True shows no progress.

    Returns:
        The codes, and the mean squared error of each picture at the start and after each step, [steps + 1, N].

    Raises:
        TypeError, ValueError: a wrong argument.

    Example:
        >>> generator = Generator(8, z_dim=16, w_dim=16, channel_max=8, mapping_layers=1).eval()
        >>> codes, history = optimise(generator, torch.zeros(2, 3, 8, 8), layers=(0, 1), steps=3)
        >>> history.shape
        torch.Size([4, 2])
    """
    if stylegan2(generator).img_size[0] != generator.img_size[1]:
        raise ValueError(f"generator: expected one of square images, got {generator.img_size}")
    checks.choice(optimizer, "optimizer", OPTIMIZERS)
    steps = checks.integer(steps, "steps", minimum=0)
    rate = LEARNING_RATES[optimizer] if learning_rate is None else checks.real(learning_rate, "learning_rate")
    if rate <= 0:
        raise ValueError(f"learning_rate: expected a number above 0, got {learning_rate}")
    checks.tensor(images, "images", ndim=4)
    if images.shape[1] != generator.img_channels or min(images.shape) < 1 or images.shape[2] != images.shape[3]:
        raise ValueError(
            f"images: expected squares [N, {generator.img_channels}, H, H], got shape {tuple(images.shape)}"
        )
    n = images.shape[0]
    if start is None:
        average = average_codes(generator)
        start = codes_of(generator, average.ws.expand(n, -1, -1), names=names)
    if len(start) != n:
        raise ValueError(f"start: expected codes of {n} pictures, got {len(start)}")
    if start.ws.shape[1:] != (generator.num_ws, generator.w_dim):
        raise ValueError(f"start: expected codes of this generator, got latents {list(start.ws.shape)}")
    names = tuple(names) or start.names
    if optimizer == "lbfgs" and n > 1:
        parts = [
            optimise(
                generator, images[k : k + 1], start=one, layers=layers, steps=steps, optimizer=optimizer,
                learning_rate=rate, regularisation=regularisation, perceptual=perceptual,
                perceptual_weight=perceptual_weight, names=names[k : k + 1], quiet=quiet,
            )
            for k, one in enumerate(start)
        ]  # fmt: skip
        found = joined([part for part, _ in parts], generator)
        return replace(found, names=names), torch.cat([history for _, history in parts], 1)

    bar = tqdm(total=steps, disable=quiet, desc="inversion", dynamic_ncols=True)
    with torch.inference_mode(False), torch.enable_grad(), _frozen(generator), bar:
        search = _Search(generator, images.clone(), start, layers, regularisation, perceptual, perceptual_weight)
        run = _adam if optimizer == "adam" else _lbfgs
        history = run(search, steps, rate, bar)
    return Codes(search.ws, tuple(search.maps), names).detach(), history


class _Search:
    """The codes that change, and their loss."""

    def __init__(self, generator, images, start, layers, regularisation, perceptual, perceptual_weight) -> None:
        self.generator, self.images = generator, images
        self.perceptual = perceptual
        self.perceptual_weight = checks.real(perceptual_weight, "perceptual_weight", minimum=0)
        self.regularisation = checks.real(regularisation, "regularisation", minimum=0)
        self.start = start.ws.detach().clone()
        self.ws = self.start.clone().requires_grad_()
        sizes = generator.synthesis.pad_map_sizes()
        known = [k for k, size in enumerate(sizes) if size is not None]
        if generator.synthesis.b4.head != "constant":
            known.remove(0)
        if layers is not None and (not isinstance(layers, Sequence) or isinstance(layers, str)):
            raise TypeError(f"layers: expected a sequence of ints or None, got {type(layers).__name__}")
        self.maps = [None if p is None else p.detach().clone() for p in start.pad_maps]
        self.leaves = [self.ws]
        for k in [k for k in LAYERS if k in known] if layers is None else layers:
            if checks.integer(k, "layers") not in known:
                raise ValueError(f"layers: expected entries of {known}, got {k}")
            p = self.maps[k]
            self.maps[k] = (native_map(generator, k, self.ws) if p is None else p).detach().clone().requires_grad_()
        self.leaves += [p for p in self.maps if p is not None and p.requires_grad]

    def losses(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the loss and the mean squared error of each picture."""
        # In float32, or as autocast says: gradients of a mean over pixels are too small for float16.
        made = self.generator.synthesis(self.ws, pad_maps=self.maps, noise_mode="const", force_fp32=True)
        side = min(made.shape[2], self.images.shape[2])
        made, target = fitted(made, side), fitted(self.images, side)
        error = (made - target).square().mean((1, 2, 3))
        loss = error
        if self.perceptual is not None:
            distance = self.perceptual(made, target)
            if distance.shape != error.shape:
                raise ValueError(f"perceptual: expected a distance of shape {list(error.shape)}, got {distance.shape}")
            loss = loss + self.perceptual_weight * distance
        if self.regularisation:
            # The root of 0 has no gradient, and the search begins there.
            moved = ((self.ws - self.start).square().sum((1, 2)) + 1e-12).sqrt()
            loss = loss + self.regularisation * moved
        return loss, error.detach()


def _adam(search: _Search, steps: int, rate: float, bar: tqdm) -> torch.Tensor:
    optimizer = torch.optim.Adam(search.leaves, lr=rate, betas=(0.9, 0.999))
    history = []
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * _ramp(step / steps)
        optimizer.zero_grad(set_to_none=True)
        loss, error = search.losses()
        loss.sum().backward()
        optimizer.step()
        history.append(error)
        _show(bar, error)
    with torch.no_grad():
        history.append(search.losses()[1])
    return torch.stack(history)


def _lbfgs(search: _Search, steps: int, rate: float, bar: tqdm) -> torch.Tensor:
    # By default one iteration has one evaluation, which leaves the line search none.
    optimizer = torch.optim.LBFGS(
        search.leaves, lr=rate, max_iter=1, max_eval=25, history_size=20, line_search_fn="strong_wolfe"
    )

    def closure() -> torch.Tensor:
        optimizer.zero_grad(set_to_none=True)
        loss = search.losses()[0].sum()
        loss.backward()
        return loss

    history = []
    for _ in range(steps):
        with torch.no_grad():
            history.append(search.losses()[1])
        optimizer.step(closure)
        _show(bar, history[-1])
    with torch.no_grad():
        history.append(search.losses()[1])
    return torch.stack(history)


def _show(bar: tqdm, error: torch.Tensor) -> None:
    """Advance the bar, which reads the error from the device only where it is seen."""
    bar.update()
    if not bar.disable:
        bar.set_postfix(mse=f"{float(error.mean()):.4g}", refresh=False)


def _ramp(t: float) -> float:
    """Return the share of the learning rate at a time from 0 to 1: up linearly, down by a cosine."""
    down = min(1.0, (1 - t) / RAMP_DOWN)
    return (0.5 - 0.5 * math.cos(down * math.pi)) * min(1.0, t / RAMP_UP + 0.1)


@contextlib.contextmanager
def _frozen(generator: Generator) -> Iterator[None]:
    """Let the generator need no gradients and be in evaluation mode for the time of the block."""
    training, wanted = generator.training, [p for p in generator.parameters() if p.requires_grad]
    generator.requires_grad_(False).eval()
    try:
        yield
    finally:
        for p in wanted:
            p.requires_grad_(True)
        generator.train(training)
