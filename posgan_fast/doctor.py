"""``posgan-fast doctor`` and ``posgan-fast verify``: what this installation can do, and whether it is right."""

from __future__ import annotations

import math
import os
import platform

import torch

from . import _native, functional
from .backend import BACKENDS, Choice
from .ops.modulated_conv2d import onednn

_Example = tuple[tuple, dict]


def main() -> int:
    """Print the installation, and for every op which backend serves it here and why the others do not."""
    import posgan_fast

    print(f"posgan_fast {posgan_fast.__version__}, Python {platform.python_version()}, torch {torch.__version__}")
    print(f"processor: {platform.machine()}, {torch.get_num_threads()} threads")
    if forced := os.environ.get("POSGAN_FAST_BACKEND"):
        print(f"POSGAN_FAST_BACKEND={forced} is set; to let every op choose: unset POSGAN_FAST_BACKEND")
        if forced not in BACKENDS:
            print(f"which is no backend; there are {', '.join(sorted(BACKENDS))}")
            return 1
    try:
        _native.instruction_set()
    except ValueError as error:
        print(f"{error}; to let the processor decide: unset POSGAN_FAST_ISA")
        return 1
    print(f"CUDA: {_cuda()}")
    print(f"triton: {_triton()}")
    remedies = {}
    for library in (_native.CPU, _native.CUDA):
        status = _native.load(library)
        print(f"native library for {library}: {_library(library, status)}")
        if not status.loaded and status.remedy and (library == _native.CPU or torch.cuda.is_available()):
            remedies[f"the {library} library is missing ({status.reason})"] = status.remedy
    packing = (
        "oneDNN" if onednn.usable(torch.float32, transposed=False) else "torch, whose operators for oneDNN's refuse"
    )
    print(f"prepacked weights: in the layout of {packing}")
    for device in ["cpu"] + ["cuda"] * torch.cuda.is_available():
        print(f"\non {device} tensors")
        for name in functional.OPS:
            print(_indent(str(_explain(name, device))))
    print()
    for problem, remedy in remedies.items():
        print(f"to mend: {problem}:\n    {remedy}")
    if not remedies:
        print("nothing to mend")
    return 0


def verify() -> int:
    """Compare the results of every backend that can run with the definition in float64; exit status 1 on a mismatch."""
    bounds = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 6e-3, torch.float16: 1e-3}
    failures = 0
    for device in ["cpu"] + ["cuda"] * torch.cuda.is_available():
        for name in functional.OPS:
            answer = _explain(name, device)
            for backend, reason in answer.rows:
                if reason.startswith("cannot run"):
                    print(f"{device:5} {name:21} {backend:10} {reason}")
                    continue
                for dtype, bound in bounds.items():
                    error = _error(name, device, backend, dtype)
                    failures += not error <= bound  # a NaN is a failure
                    verdict = "equal" if error <= bound else "DIFFERS"
                    print(f"{device:5} {name:21} {backend:10} {str(dtype)[6:]:9} relative L2 {error:.1e}  {verdict}")
    print(f"verify: {'all equal' if not failures else f'{failures} mismatches'}")
    return 1 if failures else 0


def _explain(name: str, device: str) -> Choice:
    positional, keywords = _examples(name, device)[0]
    return functional.explain(name, *positional, **keywords)


def _error(name: str, device: str, backend: str, dtype: torch.dtype) -> float:
    """Of the worst example; not a number if any is."""
    errors = [_error_of(name, example, backend, dtype) for example in _examples(name, device)]
    return math.nan if any(map(math.isnan, errors)) else max(errors)


def _error_of(name: str, example: _Example, backend: str, dtype: torch.dtype) -> float:
    function = functional.OPS[name][0]
    positional, keywords = example

    def run(dtype: torch.dtype, backend: str) -> torch.Tensor:
        keyword = {k: v.to(dtype) if isinstance(v, torch.Tensor) else v for k, v in keywords.items()}
        if "dtype" in keyword:
            return function(*positional, **keyword | {"dtype": dtype}, backend=backend).double()
        x, *rest = (t.to(dtype, copy=True) for t in positional)
        return function(x, *rest, **keyword, backend=backend).double()

    expected = run(torch.float64, "reference")
    return ((run(dtype, backend) - expected).norm() / expected.norm()).item()


def _examples(name: str, device: str) -> list[_Example]:
    """Arguments of calls whose values are exact in every dtype, so that all of them have one result."""
    generator = torch.Generator().manual_seed(0)

    def values(*shape: int) -> torch.Tensor:
        return torch.randint(-8, 9, shape, generator=generator).to(device).float() / 8

    x = values(2, 8, 16, 16)
    if name == "sinusoidal_encoding2d":
        return [((9, 12, 16), dict(device=device, dtype=torch.float32))]
    if name == "cartesian_grid2d":
        return [((9, 12), dict(device=device, dtype=torch.float32))]
    if name == "prologue2d":
        return [((x, values(2, 8)), dict(padding=2, mode="reflect"))]
    if name == "instance_pad2d":
        return [((x, values(2, 8, 20, 20)), {})]
    if name == "modulated_conv2d":
        finish = dict(bias=values(4), act="lrelu", clamp=1.0)
        filtered = dict(up=2, padding=1, resample_filter=torch.tensor([1.0, 3.0, 3.0, 1.0], device=device) / 8)
        kernel, pixel, pad_map = values(4, 8, 3, 3), values(2, 8, 1, 1), values(2, 8, 18, 18)
        return [
            ((x[:1], kernel, values(1, 8)), filtered | finish),
            ((x, kernel, values(2, 8)), filtered | finish),
            ((x, kernel, values(2, 8)), dict(padding=1, pad_map=pad_map, noise=values(16, 16)) | finish),
            ((x, pixel, values(2, 8)), dict(demodulate=False, bias=values(2))),
        ]
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], device=device) / 8
    if name == "epilogue2d":
        return [((x, taps), dict(padding=2, noise=values(2, 1, 17, 17), b=values(8), act="lrelu", clamp=1.0))]
    if name.startswith("bias_act"):
        return [((x, values(8)), dict(act="lrelu", clamp=1.0))]
    return [((x, taps), {})]


def _cuda() -> str:
    if not torch.cuda.is_available():
        return "not available" if torch.version.cuda else "not available: this torch is a build without CUDA"
    return f"{torch.version.cuda}, {torch.cuda.get_device_name()}"


def _triton() -> str:
    if not _native.has_triton():
        return "not installed"
    try:
        import triton
    except Exception as error:
        return f"does not import: {error}"
    return triton.__version__


def _library(library: str, status: _native.Status) -> str:
    if not status.loaded:
        return f"missing: {status.reason}"
    record = _native.build_record().get(library, {})
    used = f", instruction set {_native.instruction_set()}" if library == _native.CPU else ""
    return f"loaded{used}, built against torch {record.get('torch', '?')} with {record.get('compiler', '?')}"


def _indent(text: str) -> str:
    return "\n".join("  " + line for line in text.splitlines())
