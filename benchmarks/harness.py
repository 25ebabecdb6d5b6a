"""Measures several implementations of one call fairly, and records the machine.

Rounds are interleaved: each takes one sample (a number of calls) of every contender, in rotating order, so that drift
hits all alike. ``copy`` (into warm memory) and ``clone`` (into fresh memory) of the bytes that the call must move are
contenders like the others, measured in the same run under the same allocator.

On CUDA every call of a sample has buffers of its own, together more than twice the L2 cache, so that no call finds its
input there. The calls are captured in a graph, and events time its replay, which has no gaps between launches.
"""

from __future__ import annotations

import contextlib
import datetime
import gc
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import ceil
from pathlib import Path
from typing import Any

import torch

from . import ROOT

TUNED = {
    "MALLOC_MMAP_THRESHOLD_": "4294967296",
    "MALLOC_TRIM_THRESHOLD_": "8589934592",
    "MALLOC_TOP_PAD_": "268435456",
}
COPY, CLONE = "copy", "clone"
MOST_BUFFERS = 2048  # tiny calls on CUDA would need more, but launches dominate them


@dataclass(frozen=True)
class Effort:
    """The effort for a case, which ends after ``rounds``, or after ``seconds`` if ``least`` rounds are done."""

    rounds: int
    least: int
    seconds: float
    sample: float  # seconds of one sample on the CPU


FULL = Effort(rounds=25, least=5, seconds=10.0, sample=0.02)
QUICK = Effort(rounds=3, least=3, seconds=0.5, sample=0.002)


@dataclass(frozen=True)
class Timing:
    """Seconds per call: median and quartiles over the rounds, and the way in which they were measured."""

    median: float
    low: float
    high: float
    rounds: int
    calls: int  # per sample
    clock: str  # "host", "graph" or "events"
    eager: float | None = None  # CUDA: seconds per call when launched one by one
    peak_bytes: int | None = None  # CUDA: allocated by a call at most, its result included

    @classmethod
    def of(cls, samples: Sequence[float], sampler: Sampler) -> Timing:
        low, _, high = statistics.quantiles(samples, n=4) if len(samples) > 1 else (samples[0],) * 3
        middle = statistics.median(samples)
        return cls(middle, low, high, len(samples), sampler.calls, sampler.clock, sampler.eager, sampler.peak_bytes)


@dataclass
class Measurement:
    """The timings of all contenders of one call. ``traffic`` is the bytes that a perfect implementation reads and
    writes."""

    op: str
    case: str
    shape: tuple[int, ...]
    resolution: int
    dtype: str
    layout: str
    traffic: int
    ours: str  # the contender whose backend is the automatic choice
    cold: bool  # CUDA: no call found its buffers in the L2 cache
    timings: dict[str, Timing] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)  # relative L2 against the reference backend
    refused: dict[str, str] = field(default_factory=dict)  # contender: the reason why it was not timed

    def bandwidth(self, name: str) -> float:
        """The traffic of ``name`` in bytes per second."""
        return self.traffic / self.timings[name].median

    def ratio(self, name: str) -> float:
        """The time of ``name`` over ours: above 1, ours is faster."""
        return self.timings[name].median / self.timings[self.ours].median

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


Call = Callable[[torch.Tensor], Any]


def measure(into: Measurement, calls: Mapping[str, Call], x: torch.Tensor, effort: Effort) -> None:
    """Time every call on copies of ``x``, and copy and clone beside them, and add the timings.

    A contender that raises is left out, and its reason recorded; an error of ours is raised.
    """
    samplers: dict[str, Sampler] = {}
    cuda = x.device.type == "cuda"
    if cuda:  # free the graphs of the previous call
        gc.collect()
        torch.cuda.empty_cache()
    buffers = buffers_needed(x.device, into.traffic)
    into.cold = cuda and buffers < MOST_BUFFERS
    inputs = [x] + [x.clone() for _ in range(buffers - 1)]
    half = [torch.ones(max(into.traffic // 2, 1), dtype=torch.uint8, device=x.device) for _ in range(2 * buffers)]
    if cuda:  # constant bytes can be copied faster than data
        for buffer in half:
            buffer.random_()
    copies = {COPY: _copier(half[:buffers], half[buffers:]), CLONE: torch.clone}
    for name, call in {**calls, **copies}.items():
        try:
            given = half[:buffers] if name in copies else inputs
            samplers[name] = CudaSampler(call, given) if cuda else HostSampler(call, given[0], effort.sample)
        except Exception as error:
            if name == into.ours or name in copies:
                raise
            into.refused[name] = reason(error)
    samples = interleave(samplers, effort)
    for name, sampler in samplers.items():
        into.timings[name] = Timing.of(samples[name], sampler)


def interleave(samplers: Mapping[str, Callable[[], float]], effort: Effort) -> dict[str, list[float]]:
    """Take rounds of one sample of each contender; every round starts with the next contender."""
    names = list(samplers)
    samples: dict[str, list[float]] = {name: [] for name in names}
    begin = time.perf_counter()
    for r in range(effort.rounds):
        if r >= effort.least and time.perf_counter() - begin > effort.seconds:
            break
        turn = r % len(names)
        for name in names[turn:] + names[:turn]:
            samples[name].append(samplers[name]())
    return samples


def buffers_needed(device: torch.device, traffic: int) -> int:
    """The number of buffers that exceed twice the L2 cache together; 1 on the CPU, whose users find warm caches too."""
    if device.type != "cuda":
        return 1
    return min(MOST_BUFFERS, ceil(2 * torch.cuda.get_device_properties(device).L2_cache_size / max(traffic, 1)))


def bandwidths(device: torch.device, effort: Effort) -> dict[str, float]:
    """Measure copy and clone of a tensor far larger than the caches, in bytes read and written per second."""
    size = (2**30 if device.type == "cuda" else 2**27) if effort is FULL else 2**24
    x = torch.ones(size, dtype=torch.uint8, device=device)
    result = Measurement("", "", (size,), 0, "", "", 2 * size, COPY, False)
    measure(result, {}, x, effort)
    return {name: result.bandwidth(name) for name in (COPY, CLONE)}


def provenance(device: torch.device) -> dict[str, Any]:
    """Describe the machine and the software, as far as a reader needs them to judge or repeat the numbers."""
    info: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "commit": commit(ROOT),
        "dirty": is_dirty(ROOT),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "os": platform.platform(),
        "cpu": _cpu(),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg() if hasattr(os, "getloadavg") else None,
        "allocator": allocator(),
        "environment": {k: v for k, v in sorted(os.environ.items()) if k.startswith(_RELEVANT)},
        "transparent_hugepage": _read("/sys/kernel/mm/transparent_hugepage/enabled"),
        "device": device.type,
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        info["gpu"] = {
            "name": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "memory": properties.total_memory,
            "l2": properties.L2_cache_size,
            "cuda": torch.version.cuda,
            "driver": output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
            "nvcc": (output("nvcc", "--version") or "").rpartition("\n")[2] or None,
        }
    return info


@contextlib.contextmanager
def tf32(allowed: bool) -> Iterator[None]:
    """Allow or forbid that matrix products and convolutions on a GPU round float32 to TF32, in a block."""
    settings: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [setting.allow_tf32 for setting in settings]
    try:
        for setting in settings:
            setting.allow_tf32 = allowed
        yield
    finally:
        for setting, value in zip(settings, before, strict=True):
            setting.allow_tf32 = value


def allocator(environment: Mapping[str, str] = os.environ) -> str:
    """The settings with which glibc's allocator started in this process: "tuned", "as started" or "other"."""
    found = {k: v for k, v in environment.items() if k.startswith("MALLOC_") or k == "GLIBC_TUNABLES"}
    return "as started" if not found else "tuned" if found == TUNED else "other"


def environment_for(setting: str) -> dict[str, str]:
    """The environment for a child process whose allocator is "tuned" or "as started"."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k != "GLIBC_TUNABLES"}
    return {**kept, **(TUNED if setting == "tuned" else {})}


def reason(error: Exception) -> str:
    """Summarise an error: its type, and the first line of its message that has the word error, else the first line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    line = next((line for line in lines if "error" in line.lower()), lines[0] if lines else "")
    return f"{type(error).__name__}: {line[:300]}"


def commit(checkout: Path) -> str | None:
    """The commit of a checkout; POSGAN_FAST_COMMIT names that of a working tree without its git history."""
    named = os.environ.get("POSGAN_FAST_COMMIT") if checkout == ROOT else None
    return output("git", "-C", str(checkout), "rev-parse", "HEAD") or named


def is_dirty(checkout: Path) -> bool | None:
    """Whether a checkout has changes that are not committed; None where git does not tell."""
    status = output("git", "-C", str(checkout), "status", "--porcelain")
    return None if status is None else bool(status)


def output(*command: str) -> str | None:
    """The output of a command; None if it fails, is missing or takes longer than 20 seconds."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def write_json(path: Path, content: Any) -> None:
    """Write JSON into a file as a whole, and make its folder where there is none.

    A process that ends meanwhile leaves the file as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    try:
        part.write_text(json.dumps(content, indent=1) + "\n")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)  # an error left it


_RELEVANT = (
    "MALLOC_", "GLIBC_", "LD_PRELOAD", "OMP_", "KMP_", "MKL_", "THP_", "PYTORCH_", "POSGAN_FAST_", "TRITON_", "CUDA_",
)  # fmt: skip
_FLAGS = (
    "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16", "avx512_fp16",
    "amx_tile", "amx_bf16",
)  # fmt: skip


class HostSampler:
    """Times a call on the CPU; a sample is as many calls as fill the requested time."""

    clock = "host"
    eager = peak_bytes = None

    def __init__(self, call: Call, x: torch.Tensor, seconds: float):
        self.call, self.x, self.calls = call, x, 1
        call(x)
        once = min(self(), self())
        self.calls = max(1, min(10_000, int(seconds / max(once, 1e-7))))

    def __call__(self) -> float:
        call, x = self.call, self.x
        begin = time.perf_counter()
        for _ in range(self.calls):
            call(x)  # free the result at once, as a network does, so that the time includes the allocator
        return (time.perf_counter() - begin) / self.calls


class CudaSampler:
    """Times a call on CUDA; a sample is a call on each input. A result lives until the next call on its input."""

    def __init__(self, call: Call, inputs: list[torch.Tensor]):
        self.call, self.inputs, self.calls = call, inputs, len(inputs)
        self.results: list[Any] = [None] * len(inputs)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.refused = ""  # the reason why there is no graph
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                call(inputs[0])
            torch.cuda.synchronize()
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            call(inputs[0])
            torch.cuda.synchronize()
            self.peak_bytes = torch.cuda.max_memory_allocated() - before
        torch.cuda.current_stream().wait_stream(side)
        self.clock, self.eager = "events", min(self(), self())
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                self._run()
            self.graph, self.clock = graph, "graph"
            self()
        except RuntimeError as error:  # a contender that synchronises cannot be captured
            self.refused = reason(error)
            torch.cuda.synchronize()

    def __call__(self) -> float:
        return self._timed(self._run if self.graph is None else self.graph.replay)

    def launched(self) -> float:
        """Seconds per call when Python launches every call, without a graph."""
        return self._timed(self._run)

    def _timed(self, run: Callable[[], None]) -> float:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1000 / self.calls

    def _run(self) -> None:
        for i, x in enumerate(self.inputs):
            self.results[i] = self.call(x)


Sampler = HostSampler | CudaSampler


def _copier(sources: list[torch.Tensor], targets: list[torch.Tensor]) -> Call:
    target_of = {source.data_ptr(): target for source, target in zip(sources, targets, strict=True)}
    return lambda source: target_of[source.data_ptr()].copy_(source)


def _cpu() -> dict[str, Any]:
    text = _read("/proc/cpuinfo") or ""
    pairs = (line.partition(":") for line in text.splitlines())
    fields = {key.strip(): value.strip() for key, _, value in pairs}
    found = fields.get("flags", "").split()
    return {
        "model": fields.get("model name", platform.processor()),
        "cores": os.cpu_count(),
        "flags": [flag for flag in _FLAGS if flag in found],
        "torch": torch.backends.cpu.get_cpu_capability(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None
