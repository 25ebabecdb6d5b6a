"""``posgan-fast demo``: a published StyleGAN2 package, unmodified, on both backends; and a SinGAN, trained on the spot.

The package is stylegan2-torch 1.3.0, a descendant of rosinality's code. By itself it compiles CUDA code when imported
and cannot run on a CPU. Under the hooks its generator makes images of 256 pixels from a fixed seed; its generator and
discriminator train at 32 pixels, with R1 and path-length regularisation, on the photographs of faces that scikit-image
contains. The reference backend and the best one run every generation and every training step from the same weights and
random numbers, and their results must be equal.

Each training step starts both backends from the same state because training amplifies rounding from step to step: only
then can the bound be tight. Training runs in float64, since the slope of a leaky ReLU jumps at zero: in float32 one
sign flipped by rounding changes the penalties visibly.

Then a small SinGAN with a sinusoidal positional encoding learns one photograph in about a minute, and makes new ones of
its size and of 1.5 times its width.
"""

from __future__ import annotations

import importlib
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

import posgan_fast

from . import functional
from .backend import use_backend

# Largest difference allowed, relative to the size of the result: ops and images in float32, training in float64.
BOUNDS = {"op": 1e-6, "image": 1e-5, "training": 1e-10}


def main(out: Path = Path("out"), quick: bool = False) -> int:
    """Run the demo, print a table of all comparisons, and write demo.png, demo.json and singan.png.

    Args:
        out: folder for the three files.
        quick: True takes 64 pixels and one step of each training, to see that it runs.

    Returns:
        The exit status: 1 on a mismatch or without a backend to compare, 2 if a package is missing.

    Example:
        >>> main(quick=True)  # doctest: +SKIP
        0
    """
    try:
        for name in ("numpy", "PIL", "skimage", "tqdm"):
            importlib.import_module(name)
    except ImportError as error:
        return _missing(f"{error.name} is missing")
    with posgan_fast.patch() as report:
        try:
            import stylegan2_torch
        except ImportError as error:
            return _missing(str(error))
        choice = functional.explain("upfirdn2d", torch.empty(1, 1, 8, 8), None)
        print(f"stylegan2-torch {stylegan2_torch.__version__}, unmodified; {report.paragraph()}\n")
        if choice.backend in (None, "reference"):
            print(choice)
            print("verdict: nothing to compare, since no backend but the reference runs here", file=sys.stderr)
            return 1
        started = time.perf_counter()
        resolution, repeats, steps = (64, 1, 1) if quick else (256, 5, 4)
        comparisons, images = _generate(stylegan2_torch, choice.backend, resolution, repeats)
        comparisons += _train(stylegan2_torch, choice.backend, steps)
    _print_table(comparisons, choice.backend)
    run = {"backend": choice.backend, "patched": report.paragraph(), "seconds": time.perf_counter() - started}
    status = _conclude(comparisons, images, run, out)
    _singan(out / "singan.png", iterations=1 if quick else 70)
    return status


def _missing(problem: str) -> int:
    print(f"posgan-fast demo: {problem}; pip install 'posgan_fast[demo]'", file=sys.stderr)
    return 2


class Comparison(NamedTuple):
    """A result of both backends, their difference and their times; ``equal`` if ``relative_l2`` is within ``bound``."""

    name: str
    max_abs: float
    relative_l2: float
    bound: float
    reference_ms: float
    ours_ms: float
    speedup: float
    equal: bool


def _generate(
    package: Any, fast: str, resolution: int, repeats: int
) -> tuple[list[Comparison], tuple[torch.Tensor, torch.Tensor]]:
    """Compare the images of a generator, and each of its op calls; return the images of both backends too."""
    torch.manual_seed(0)
    generator = package.Generator(resolution).eval()
    z = torch.randn(2, generator.latent_dim)

    def image() -> torch.Tensor:
        torch.manual_seed(1)  # the noise that the layers draw
        return generator([z])

    def on(backend: str) -> torch.Tensor:
        with use_backend(backend):
            return image()

    title = f"generator {resolution}"
    with torch.no_grad():
        with use_backend(fast), _Recorder() as recorder:
            image()
        reference, ours, times = _interleave(lambda: on("reference"), lambda: on(fast), repeats, title)
        images = _comparison(f"{title} pixels, 2 images", ours, reference, times, BOUNDS["image"])
        ops = [_replay(call, fast, repeats) for call in _progress(recorder.calls.values(), "ops")]
    return [*ops, images], (reference, ours)


class _Call(NamedTuple):
    """The arguments of an op's call, of ``x`` only the shape."""

    op: str
    shape: tuple[int, ...]
    second: torch.Tensor | None  # the filter or the bias
    arguments: list[Any]  # all others but the backend


class _Recorder(torch.utils._python_dispatch.TorchDispatchMode):
    """Records the calls of this library's ops, one for each op, shape and set of arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[Any, _Call] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "posgan_fast":
            x, second, *arguments = args
            name = func._schema.name.split("::")[1]
            key = (name, tuple(x.shape), str(arguments))
            self.calls.setdefault(key, _Call(name, tuple(x.shape), second, arguments[:-1]))
        return func(*args, **(kwargs or {}))


def _replay(call: _Call, fast: str, repeats: int) -> Comparison:
    """Compare a recorded call of an op, on random data of the same shape, with the definition in float64."""
    torch.manual_seed(2)
    x = torch.randn(call.shape)
    op = getattr(torch.ops.posgan_fast, call.op)

    def on(backend: str) -> torch.Tensor:
        return op(x, call.second, *call.arguments, backend)

    _, ours, times = _interleave(lambda: on("reference"), lambda: on(fast), repeats)
    second = None if call.second is None else call.second.double()
    expected = op(x.double(), second, *call.arguments, "reference")
    return _comparison(f"{call.op} {'x'.join(map(str, call.shape))}", ours, expected, times, BOUNDS["op"])


def _train(package: Any, fast: str, steps: int) -> list[Comparison]:
    """Compare training steps with both regularisations, each run on both backends from the weights of the fast one."""
    from .experiments import pictures

    torch.manual_seed(3)
    channels = {4: 128, 8: 128, 16: 128, 32: 64}
    faces = pictures.faces(32)[:, :1].double()
    generator = package.Generator(32, channels=channels).double()
    discriminator = package.Discriminator(32, channels=channels).double()
    optimizers = [torch.optim.Adam(m.parameters(), lr=2e-3, betas=(0.0, 0.99)) for m in (generator, discriminator)]
    mean_path_length: Any = 0
    results: dict[str, list[dict[str, torch.Tensor]]] = {"reference": [], fast: []}
    seconds = {"reference": 0.0, fast: 0.0}
    for step in _progress(range(steps), "training 32"):
        for backend, outcomes in results.items():  # the fast one last: its gradients stay for the optimizers
            torch.manual_seed(step)
            started = time.perf_counter()
            with use_backend(backend):
                outcome, mean = _training_step(package, generator, discriminator, faces, mean_path_length)
            seconds[backend] += time.perf_counter() - started
            outcomes.append(outcome)
        mean_path_length = mean
        for optimizer in optimizers:
            optimizer.step()
    times = (seconds["reference"] / steps, seconds[fast] / steps)

    def compared(key: str) -> Comparison:
        ours, expected = (torch.stack([outcome[key] for outcome in results[b]]) for b in (fast, "reference"))
        return _comparison(f"{steps} training steps: {key}", ours, expected, times, BOUNDS["training"])

    return [compared(key) for key in results[fast][0]]


def _training_step(
    package: Any,
    generator: torch.nn.Module,
    discriminator: torch.nn.Module,
    faces: torch.Tensor,
    mean_path_length: Any,
) -> tuple[dict[str, torch.Tensor], Any]:
    """Return the losses, the gradients and the mean path length of one step; the parameters keep the gradients."""
    real = faces[torch.randperm(len(faces))[:8]].requires_grad_()
    image, latents = generator([torch.randn(8, 512, dtype=faces.dtype)], return_latents=True)
    real_score = discriminator(real)
    d_loss = package.d_loss(real_score, discriminator(image.detach()))
    r1 = package.d_reg_loss(real_score, real)
    discriminator.zero_grad()
    (d_loss + 5 * r1).backward()
    d_gradient = _gradient(discriminator)
    g_loss = package.g_loss(discriminator(image))
    penalty, mean_path_length, _ = package.g_reg_loss(image, latents, mean_path_length)
    generator.zero_grad()
    (g_loss + 2 * penalty).backward()
    losses = {"D loss": d_loss, "R1": r1, "G loss": g_loss, "path length": penalty}
    gradients = {"D gradient, R1 included": d_gradient, "G gradient, path length included": _gradient(generator)}
    for parameter, gradient in zip(discriminator.parameters(), _split(d_gradient, discriminator), strict=True):
        parameter.grad = gradient  # the generator's loss has added to it
    return {name: loss.detach() for name, loss in losses.items()} | gradients, mean_path_length


def _gradient(module: torch.nn.Module) -> torch.Tensor:
    """Return the gradients of all parameters as one vector."""
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in module.parameters()])


def _split(flat: torch.Tensor, module: torch.nn.Module) -> list[torch.Tensor]:
    """Split a vector into tensors of the shapes of the module's parameters."""
    shapes = [p.shape for p in module.parameters()]
    return [part.reshape(shape) for part, shape in zip(flat.split([s.numel() for s in shapes]), shapes, strict=True)]


def _interleave(
    reference: Callable[[], torch.Tensor], ours: Callable[[], torch.Tensor], repeats: int, title: str | None = None
) -> tuple[torch.Tensor, torch.Tensor, tuple[float, float]]:
    """Return the results of both functions and the medians of their times, taken in turn."""
    results = reference(), ours()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in _progress(range(repeats), title) if title else range(repeats):
        for function, taken in zip((reference, ours), times, strict=True):
            started = time.perf_counter()
            function()
            taken.append(time.perf_counter() - started)
    return *results, (statistics.median(times[0]), statistics.median(times[1]))


def _comparison(
    name: str, actual: torch.Tensor, expected: torch.Tensor, times: tuple[float, float], bound: float
) -> Comparison:
    """Compare two results; ``times`` are the seconds of the reference and ours."""
    actual, expected = actual.detach().double(), expected.detach().double()
    difference = actual - expected
    relative = (difference.norm() / expected.norm().clamp(min=1e-300)).item()
    reference, ours = times
    return Comparison(
        name=name,
        max_abs=difference.abs().max().item(),
        relative_l2=relative,
        bound=bound,
        reference_ms=1e3 * reference,
        ours_ms=1e3 * ours,
        speedup=reference / ours,
        equal=bool(relative <= bound),
    )


def _print_table(comparisons: Sequence[Comparison], fast: str) -> None:
    width = max(len(row.name) for row in comparisons)
    print(f"\n{'':{width}}  max abs   rel. L2   reference {fast:>9}  speed-up")
    for row in comparisons:
        print(
            f"{row.name:{width}}  {row.max_abs:.1e}   {row.relative_l2:.1e} {row.reference_ms:8.2f} ms"
            f" {row.ours_ms:6.2f} ms {row.speedup:8.2f}x{'' if row.equal else '  DIFFERS'}"
        )


def _conclude(
    comparisons: Sequence[Comparison], images: tuple[torch.Tensor, torch.Tensor], run: dict[str, Any], folder: Path
) -> int:
    """Write demo.png and demo.json, print the verdict, and return the exit status."""
    wrong = [row.name for row in comparisons if not row.equal]
    verdict = f"MISMATCH in {', '.join(wrong)}" if wrong else f"all {len(comparisons)} comparisons equal"
    generator = next(row for row in comparisons if row.name.startswith("generator"))
    verdict += f"; the generator runs {generator.speedup:.2f}x as fast as on the reference backend"
    record = {"verdict": verdict, "equal": not wrong, "rows": [row._asdict() for row in comparisons]} | run
    record |= {"torch": torch.__version__, "threads": torch.get_num_threads()}
    record |= {"processor": platform.processor() or platform.machine(), "posgan_fast": posgan_fast.__version__}
    folder.mkdir(parents=True, exist_ok=True)
    _write_picture(folder / "demo.png", images)
    (folder / "demo.json").write_text(json.dumps(record, indent=2) + "\n")
    print(f"\nwritten: {folder / 'demo.png'}, {folder / 'demo.json'}\nverdict: {verdict}")
    return 1 if wrong else 0


def _write_picture(path: Path, images: tuple[torch.Tensor, torch.Tensor]) -> None:
    """Draw the images of the reference, those of the fast backend, and their difference, 10000 times amplified."""
    from PIL import Image

    reference, ours = images
    strips = [reference, ours, (ours - reference) * 1e4]
    picture = torch.cat([torch.cat(list(s[:, 0].clamp(-1, 1)), dim=1) for s in strips], dim=0)  # [3 * H, N * W]
    Image.fromarray(((picture + 1) * 127.5).round().byte().numpy()).save(path)


def _singan(path: Path, iterations: int) -> None:
    """Train a SinGAN on a photograph; draw it beside two images of its size, and above two that are wider."""
    from PIL import Image

    from .experiments import pictures

    photograph = pictures.photograph("rocket")
    print("\nSinGAN with SPE, on one photograph")
    settings = dict(config="spe", width=16, max_size=80, iterations_per_stage=iterations)
    sampler = pictures.trained_on_photograph(photograph, **settings)
    narrow = [pictures.shown(image) for image in sampler.images(2, seed=0)]
    wide = [pictures.shown(image) for image in sampler.images(2, scale=(1, 1.5), seed=1)]
    h, w = narrow[0].shape[:2]
    sheet = Image.new("RGB", (3 * w + 8, 2 * h + 4), "white")
    for column, image in enumerate([Image.fromarray(photograph).resize((w, h)), *map(Image.fromarray, narrow)]):
        sheet.paste(image, (column * (w + 4), 0))
    for column, image in enumerate(map(Image.fromarray, wide)):
        sheet.paste(image, (column * (image.width + 8), h + 4))
    sheet.resize((3 * sheet.width, 3 * sheet.height), Image.Resampling.BICUBIC).save(path)
    print(f"written: {path}")


_Item = TypeVar("_Item")


def _progress(items: Iterable[_Item], title: str) -> Iterable[_Item]:
    from tqdm import tqdm

    return tqdm(list(items), desc=f"{title:24}", file=sys.stdout, ncols=90)
