"""``posgan-fast doctor`` and ``posgan-fast verify``: report what this installation can do, and check its results."""

from __future__ import annotations

import math
import os
import platform
from typing import Any

import torch

from . import _native, functional
from .backend import BACKENDS, Choice
from .ops.common import onednn

# Largest error of verify, in relative L2. Sums are in float64 or float32, results are rounded to the dtype.
_BOUNDS = {torch.float64: 1e-14, torch.float32: 1e-6, torch.bfloat16: 6e-3, torch.float16: 1e-3}
_Call = tuple[tuple[Any, ...], dict[str, Any]]  # positional and keyword arguments


def main() -> int:
    """Print the installation and, for every op, the backend that serves it here and why the others do not.

    Returns:
        The exit status: 1 if an environment variable names a backend or an instruction set that does not exist.

    Example:
        >>> main()  # doctest: +ELLIPSIS
        posgan_fast ...
        0
    """
    import posgan_fast

    print(f"posgan_fast {posgan_fast.__version__}, Python {platform.python_version()}, torch {torch.__version__}")
    print(f"processor: {platform.machine()}, {torch.get_num_threads()} threads")
    if not _environment_is_valid():
        return 1
    print(f"CUDA: {_cuda()}")
    print(f"triton: {_triton()}")
    remedies = _print_libraries()
    for device in _devices():
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
    """Compare the results of every backend that can run with the definition in float64, and print the errors.

    Returns:
        The exit status: 1 on a mismatch.

    Example:
        >>> verify()  # doctest: +ELLIPSIS
        cpu   upfirdn2d ...
        verify: all equal
        0
    """
    failures = 0
    for device in _devices():
        for name in functional.OPS:
            for backend, reason in _explain(name, device).rows:
                if reason.startswith("cannot run"):
                    print(f"{device:5} {name:21} {backend:10} {reason}")
                else:
                    failures += _print_errors(name, device, backend)
    print(f"verify: {'all equal' if not failures else f'{failures} mismatches'}")
    return 1 if failures else 0


def _devices() -> list[str]:
    return ["cpu"] + ["cuda"] * torch.cuda.is_available()


def _environment_is_valid() -> bool:
    """Check the environment variables of this library, and print how to mend them."""
    if forced := os.environ.get("POSGAN_FAST_BACKEND"):
        print(f"POSGAN_FAST_BACKEND={forced} is set; to let every op choose: unset POSGAN_FAST_BACKEND")
        if forced not in BACKENDS:
            print(f"which is no backend; there are {', '.join(sorted(BACKENDS))}")
            return False
    if table := os.environ.get("POSGAN_FAST_CUDA_TABLE"):
        print(f"POSGAN_FAST_CUDA_TABLE={table} is set, which the CUDA library reads at its first launch")
    try:
        _native.instruction_set()
    except ValueError as error:
        print(f"{error}; to let the processor decide: unset POSGAN_FAST_ISA")
        return False
    return True


def _print_libraries() -> dict[str, str]:
    """Print the state of the native libraries; return the problems that can be mended, each with its remedy."""
    remedies = {}
    for library in (_native.CPU, _native.CUDA):
        status = _native.load(library)
        print(f"native library for {library}: {_library(library, status)}")
        if not status.loaded and status.remedy and (library == _native.CPU or torch.cuda.is_available()):
            remedies[f"the {library} library is missing ({status.reason})"] = status.remedy
    prepacks = onednn.usable(torch.float32, transposed=False)
    layout = "oneDNN" if prepacks else "torch, whose operators for oneDNN's refuse"
    print(f"prepacked weights: in the layout of {layout}")
    return remedies


def _explain(name: str, device: str) -> Choice:
    positional, keywords = _calls(name, device)[0]
    return functional.explain(name, *positional, **keywords)


def _print_errors(name: str, device: str, backend: str) -> int:
    """Print the error of an op in every dtype; return the number of mismatches."""
    failures = 0
    for dtype, bound in _BOUNDS.items():
        error = _error(name, device, backend, dtype)
        equal = error <= bound  # False for a NaN
        failures += not equal
        verdict = "equal" if equal else "DIFFERS"
        print(f"{device:5} {name:21} {backend:10} {str(dtype)[6:]:9} relative L2 {error:.1e}  {verdict}")
    return failures


def _error(name: str, device: str, backend: str, dtype: torch.dtype) -> float:
    """Return the largest error among the op's calls; NaN if any error is NaN."""
    errors = [_error_of(name, call, backend, dtype) for call in _calls(name, device)]
    return math.nan if any(map(math.isnan, errors)) else max(errors)


def _error_of(name: str, call: _Call, backend: str, dtype: torch.dtype) -> float:
    function = functional.OPS[name][0]
    positional, keywords = call

    def run(dtype: torch.dtype, backend: str) -> torch.Tensor:
        keyword = {k: v.to(dtype) if isinstance(v, torch.Tensor) else v for k, v in keywords.items()}
        if "dtype" in keyword:
            return function(*positional, **keyword | {"dtype": dtype}, backend=backend).double()
        x, *rest = (t.to(dtype, copy=True) for t in positional)
        return function(x, *rest, **keyword, backend=backend).double()

    expected = run(torch.float64, "reference")
    return ((run(dtype, backend) - expected).norm() / expected.norm()).item()


class _Values:
    """Draws tensors whose values every dtype represents exactly, so that one result is right for all of them."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._generator = torch.Generator().manual_seed(0)

    def __call__(self, *shape: int) -> torch.Tensor:
        return torch.randint(-8, 9, shape, generator=self._generator).to(self._device).float() / 8


def _calls(name: str, device: str) -> list[_Call]:
    """Make the arguments of the calls that are compared."""
    if name == "sinusoidal_encoding2d":
        return [((9, 12, 16), dict(device=device, dtype=torch.float32))]
    if name == "cartesian_grid2d":
        return [((9, 12), dict(device=device, dtype=torch.float32))]
    values = _Values(device)
    x = values(2, 8, 16, 16)
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], device=device) / 8
    if name == "prologue2d":
        return [((x, values(2, 8)), dict(padding=2, mode="reflect"))]
    if name == "instance_pad2d":
        return [((x, values(2, 8, 20, 20)), {})]
    if name == "conv2d":
        large = values(1, 16, 32, 32)  # for Winograd's algorithm
        activation = dict(padding=1, act="lrelu", clamp=1.0)
        return [((large, values(16, 16, 3, 3), values(16)), activation), ((x, values(4, 8, 3, 3)), dict(stride=2))]
    if name == "modulated_conv2d":
        return _calls_of_the_style_layer(values, x, taps)
    if name == "epilogue2d":
        return [((x, taps), dict(padding=2, noise=values(2, 1, 17, 17), b=values(8), act="lrelu", clamp=1.0))]
    if name.startswith("bias_act"):
        return [((x, values(8)), dict(act="lrelu", clamp=1.0))]
    return [((x, taps), {})]


def _calls_of_the_style_layer(values: _Values, x: torch.Tensor, taps: torch.Tensor) -> list[_Call]:
    """Make calls with one sample, with a batch, with a padding map, and of toRGB."""
    epilogue = dict(bias=values(4), act="lrelu", clamp=1.0)
    resample = dict(up=2, padding=1, resample_filter=taps)
    weight, to_rgb, pad_map = values(4, 8, 3, 3), values(2, 8, 1, 1), values(2, 8, 18, 18)
    return [
        ((x[:1], weight, values(1, 8)), resample | epilogue),
        ((x, weight, values(2, 8)), resample | epilogue),
        ((x, weight, values(2, 8)), dict(padding=1, pad_map=pad_map, noise=values(16, 16)) | epilogue),
        ((x, to_rgb, values(2, 8)), dict(demodulate=False, bias=values(2))),
    ]


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
