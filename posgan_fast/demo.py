"""``posgan-fast demo``: a published StyleGAN2 package, unmodified, generates and trains on both backends.

The package is stylegan2-torch 1.3.0 (rosinality lineage). By itself it compiles CUDA code when imported and has no CPU
path. Under the hooks its 256-pixel generator runs from a fixed seed, and its generator and discriminator train at
32 pixels with R1 and path-length regularisation on the face photographs inside scikit-image. Every generation and every
training step runs on the reference backend and on the best one, from the same weights and random numbers: training
amplifies rounding from step to step, so only runs from one state can be held to a tight bound. It trains in float64,
since the slope of a leaky ReLU jumps at zero: in float32 a rounding error that flips one sign shows in the penalties.
Results must be equal.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

import posgan_fast

from . import functional
from .backend import use_backend

# Largest difference allowed, relative to the size of the result: ops and images in float32, training in float64.
BOUNDS = {"op": 1e-6, "image": 1e-5, "training": 1e-10}


def main(argv: Sequence[str]) -> int:
    """Run the demo; exit status 1 on any mismatch, 2 where its packages are missing."""
    parser = argparse.ArgumentParser(prog="posgan-fast demo", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for demo.png and demo.json")
    parser.add_argument("--quick", action="store_true", help="64 pixels and one training step, to see that it runs")
    options = parser.parse_args(argv)
    try:
        import numpy  # noqa: F401
        import PIL  # noqa: F401
        import skimage  # noqa: F401
        import tqdm  # noqa: F401
    except ImportError as error:
        print(f"posgan-fast demo: {error.name} is missing; pip install 'posgan_fast[demo]'", file=sys.stderr)
        return 2
    with posgan_fast.patch() as report:
        try:
            import stylegan2_torch
        except ImportError as error:
            print(f"posgan-fast demo: {error}; pip install 'posgan_fast[demo]'", file=sys.stderr)
            return 2
        resolution, repeats, steps = (64, 1, 1) if options.quick else (256, 5, 4)
        fast = functional.explain("upfirdn2d", torch.empty(1, 1, 8, 8), None).backend
        print(f"stylegan2-torch {stylegan2_torch.__version__}, unmodified; {report.paragraph()}\n")
        if fast == "reference":
            print(functional.explain("upfirdn2d", torch.empty(1, 1, 8, 8), None))
            print("verdict: nothing to compare, since no backend but the reference runs here", file=sys.stderr)
            return 1
        started = time.perf_counter()
        rows, images = _generate(stylegan2_torch, fast, resolution, repeats)
        trained = _train(stylegan2_torch, fast, steps)
    rows += trained
    _print_table(rows, fast)
    wrong = [row["name"] for row in rows if not row["equal"]]
    verdict = f"MISMATCH in {', '.join(wrong)}" if wrong else f"all {len(rows)} comparisons equal"
    total = next(row for row in rows if row["name"].startswith("generator"))
    verdict += f"; the generator runs {total['speedup']:.2f}x as fast as on the reference backend"
    options.out.mkdir(parents=True, exist_ok=True)
    _write_picture(options.out / "demo.png", images)
    record = {"verdict": verdict, "equal": not wrong, "backend": fast, "rows": rows, "patched": report.paragraph()}
    record |= {"seconds": time.perf_counter() - started, "torch": torch.__version__, "threads": torch.get_num_threads()}
    record |= {"processor": platform.processor() or platform.machine(), "posgan_fast": posgan_fast.__version__}
    (options.out / "demo.json").write_text(json.dumps(record, indent=2) + "\n")
    print(f"\nwritten: {options.out / 'demo.png'}, {options.out / 'demo.json'}\nverdict: {verdict}")
    return 1 if wrong else 0


def _generate(package, fast, resolution, repeats):
    """Images of one generator on both backends, and each of its op calls replayed."""
    torch.manual_seed(0)
    generator = package.Generator(resolution).eval()
    z = torch.randn(2, generator.latent_dim)

    def image() -> torch.Tensor:
        torch.manual_seed(1)  # the noise that the layers draw
        return generator([z])

    with torch.no_grad():
        with use_backend(fast), _Recorder() as recorder:
            image()
        reference, ours, times = _compare(f"generator {resolution}", image, fast, repeats)
        end_to_end = _row(f"generator {resolution} pixels, 2 images", ours, reference, times, BOUNDS["image"])
        rows = [_replay(call, fast, repeats) for call in _progress(recorder.calls.values(), "ops")]
    return [*rows, end_to_end], (reference, ours)


def _replay(call, fast, repeats):
    """One recorded op call on random data of the same shape, both backends against float64."""
    name, shape, tensors, arguments = call
    torch.manual_seed(2)
    x = torch.randn(shape)
    op = getattr(torch.ops.posgan_fast, name)
    _, ours, times = _interleave([lambda b=b: op(x, *tensors, *arguments, b) for b in ("reference", fast)], repeats)
    expected = op(x.double(), *[t.double() if t is not None else None for t in tensors], *arguments, "reference")
    label = f"{name} {'x'.join(map(str, shape))}"
    return _row(label, ours, expected, times, BOUNDS["op"])


def _train(package, fast, steps):
    """Training steps with both regularisations, each on both backends from one state; weights follow the fast one."""
    torch.manual_seed(3)
    channels = {4: 128, 8: 128, 16: 128, 32: 64}
    faces = _faces().double()
    generator = package.Generator(32, channels=channels).double()
    discriminator = package.Discriminator(32, channels=channels).double()
    optimizers = [torch.optim.Adam(m.parameters(), lr=2e-3, betas=(0.0, 0.99)) for m in (generator, discriminator)]
    mean_path_length: Any = 0
    results: dict[str, list[dict[str, torch.Tensor]]] = {"reference": [], fast: []}
    seconds = {"reference": 0.0, fast: 0.0}
    for step in _progress(range(steps), "training 32"):
        for backend, record in results.items():
            torch.manual_seed(step)
            started = time.perf_counter()
            with use_backend(backend):
                outcome, mean = _training_step(package, generator, discriminator, faces, mean_path_length)
            seconds[backend] += time.perf_counter() - started
            record.append(outcome)
        mean_path_length = mean
        for optimizer in optimizers:
            optimizer.step()
    rows = []
    for key in results[fast][0]:
        ours, expected = (torch.stack([r[key] for r in results[b]]) for b in (fast, "reference"))
        times = [seconds["reference"] / steps, seconds[fast] / steps]
        rows.append(_row(f"{steps} training steps: {key}", ours, expected, times, BOUNDS["training"]))
    return rows


def _training_step(package, generator, discriminator, faces, mean_path_length):
    """Losses and gradients of one step; the gradients stay in the parameters."""
    real = faces[torch.randperm(len(faces))[:8]].requires_grad_()
    image, latents = generator([torch.randn(8, 512, dtype=faces.dtype)], return_latents=True)
    real_score = discriminator(real)
    d_loss = package.d_loss(real_score, discriminator(image.detach()))
    r1 = package.d_reg_loss(real_score, real)
    discriminator.zero_grad()
    (d_loss + 5 * r1).backward()
    d_gradient = _take_gradient(discriminator)
    g_loss = package.g_loss(discriminator(image))
    penalty, mean_path_length, _ = package.g_reg_loss(image, latents, mean_path_length)
    generator.zero_grad()
    (g_loss + 2 * penalty).backward()
    losses = {"D loss": d_loss, "R1": r1, "G loss": g_loss, "path length": penalty}
    gradients = {"D gradient, R1 included": d_gradient, "G gradient, path length included": _take_gradient(generator)}
    for parameter, gradient in zip(discriminator.parameters(), _split(d_gradient, discriminator), strict=True):
        parameter.grad = gradient  # the generator's loss has added its own
    return {k: v.detach() for k, v in losses.items()} | gradients, mean_path_length


def _take_gradient(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for p in module.parameters()])


def _split(flat: torch.Tensor, module: torch.nn.Module) -> list[torch.Tensor]:
    shapes = [p.shape for p in module.parameters()]
    return [part.reshape(shape) for part, shape in zip(flat.split([s.numel() for s in shapes]), shapes, strict=True)]


def _faces() -> torch.Tensor:
    """The 100 faces of scikit-image's extract of Labelled Faces in the Wild, [100, 1, 32, 32] in [-1, 1]."""
    from skimage.data import lfw_subset

    faces = torch.from_numpy(lfw_subset()[:100]).float()[:, None]  # [100, 1, 25, 25] in [0, 1]
    return torch.nn.functional.interpolate(faces, size=(32, 32), mode="bilinear", align_corners=True) * 2 - 1


class _Recorder(torch.utils._python_dispatch.TorchDispatchMode):
    """Every distinct call of this library's ops while it is entered, by op, shape and scalar arguments."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: dict[Any, Any] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace == "posgan_fast":
            x, second, *arguments = args
            key = (func._schema.name, tuple(x.shape), str(arguments))
            name = func._schema.name.split("::")[1]
            self.calls.setdefault(key, (name, tuple(x.shape), [second], arguments[:-1]))
        return func(*args, **(kwargs or {}))


def _compare(title: str, function: Callable[[], torch.Tensor], fast: str, repeats: int):
    def on(backend: str) -> torch.Tensor:
        with use_backend(backend):
            return function()

    return _interleave([lambda: on("reference"), lambda: on(fast)], repeats, title)


def _interleave(functions, repeats, title=None):
    """The first results of two functions, and the medians of their interleaved times."""
    results = [function() for function in functions]
    times: list[list[float]] = [[], []]
    for _ in _progress(range(repeats), title) if title else range(repeats):
        for function, record in zip(functions, times, strict=True):
            started = time.perf_counter()
            function()
            record.append(time.perf_counter() - started)
    return *results, [statistics.median(t) for t in times]


def _row(name, actual, expected, times, bound):
    actual, expected = actual.detach().double(), expected.detach().double()
    difference = actual - expected
    relative = (difference.norm() / expected.norm().clamp(min=1e-300)).item()
    row = {"name": name, "max_abs": difference.abs().max().item(), "relative_l2": relative, "bound": bound}
    row |= {"reference_ms": 1e3 * times[0], "ours_ms": 1e3 * times[1], "speedup": times[0] / times[1]}
    return row | {"equal": bool(relative <= bound)}


def _print_table(rows, fast):
    width = max(len(row["name"]) for row in rows)
    print(f"\n{'':{width}}  max abs   rel. L2   reference {fast:>9}  speed-up")
    for row in rows:
        print(
            f"{row['name']:{width}}  {row['max_abs']:.1e}   {row['relative_l2']:.1e} {row['reference_ms']:8.2f} ms"
            f" {row['ours_ms']:6.2f} ms {row['speedup']:8.2f}x{'' if row['equal'] else '  DIFFERS'}"
        )


def _write_picture(path, images):
    """Samples of the reference and of the fast backend, and their difference at ten thousand times the contrast."""
    from PIL import Image

    reference, ours = images
    strips = [reference, ours, (ours - reference) * 1e4]
    picture = torch.cat([torch.cat(list(s[:, 0].clamp(-1, 1)), dim=1) for s in strips], dim=0)  # [3 * H, N * W]
    Image.fromarray(((picture + 1) * 127.5).round().byte().numpy()).save(path)


def _progress(items, title):
    from tqdm import tqdm

    return tqdm(list(items), desc=f"{title:24}", file=sys.stdout, ncols=90)
