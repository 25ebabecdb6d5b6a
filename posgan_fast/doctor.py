"""``posgan-fast doctor`` and ``posgan-fast verify``: what this installation can do, and whether it is right."""

from __future__ import annotations

import os
import platform

import torch

from . import _native, functional
from .backend import BACKENDS


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
    print(f"CUDA: {_cuda()}")
    print(f"triton: {_triton()}")
    remedies = {}
    for library in (_native.CPU, _native.CUDA):
        status = _native.load(library)
        print(f"native library for {library}: {_library(library, status)}")
        if not status.loaded and status.remedy and (library == _native.CPU or torch.cuda.is_available()):
            remedies[f"the {library} library is missing ({status.reason})"] = status.remedy
    for device in ["cpu"] + ["cuda"] * torch.cuda.is_available():
        print(f"\non {device} tensors")
        for name in functional.OPS:
            print(_indent(str(functional.explain(name, *_example(name, device)))))
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
            answer = functional.explain(name, *_example(name, device))
            for backend, reason in answer.rows:
                if reason.startswith("cannot run"):
                    print(f"{device:5} {name:13} {backend:10} {reason}")
                    continue
                for dtype, bound in bounds.items():
                    error = _error(name, device, backend, dtype)
                    failures += not error <= bound  # a NaN is a failure
                    verdict = "equal" if error <= bound else "DIFFERS"
                    print(f"{device:5} {name:13} {backend:10} {str(dtype)[6:]:9} relative L2 {error:.1e}  {verdict}")
    print(f"verify: {'all equal' if not failures else f'{failures} mismatches'}")
    return 1 if failures else 0


def _error(name: str, device: str, backend: str, dtype: torch.dtype) -> float:
    function = functional.OPS[name][0]
    x, second = _example(name, device, seed=0)
    x, second = x.to(dtype), second.to(dtype) if name.startswith("bias_act") else second
    extra = {"act": "lrelu", "clamp": 1.0} if name.startswith("bias_act") else {}
    actual = function(x.clone(), second, backend=backend, **extra).double()
    expected = function(x.double(), second.double(), backend="reference", **extra)
    return ((actual - expected).norm() / expected.norm()).item()


def _example(name: str, device: str, seed: int | None = None) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed or 0)
    x = torch.randn(2, 8, 16, 16, generator=generator).to(device)
    second = torch.ones(8) / 4 if name.startswith("bias_act") else torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    return x, second.to(device)


def _cuda() -> str:
    if not torch.cuda.is_available():
        return "not available" if torch.version.cuda else "not available: this torch is a build without CUDA"
    return f"{torch.version.cuda}, {torch.cuda.get_device_name()}"


def _triton() -> str:
    if not _native.has_triton():
        return "not installed"
    import triton

    return triton.__version__


def _library(library: str, status: _native.Status) -> str:
    if not status.loaded:
        return f"missing: {status.reason}"
    record = _native.build_record().get(library, {})
    used = f", uses {_native.instruction_set()}" if library == _native.CPU else ""
    return f"loaded{used}, built against torch {record.get('torch', '?')} with {record.get('compiler', '?')}"


def _indent(text: str) -> str:
    return "\n".join("  " + line for line in text.splitlines())
