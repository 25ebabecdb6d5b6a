"""Measures calls of one source tree on request, as a process of ``python -m benchmarks --base``.

Requests and replies are lines of JSON: "start" gives the settings, "prepare" makes a call ready, "sample" times it.
The process imports posgan_fast from the folder that it was started in, and the cases from these benchmarks.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from . import harness, subjects

# Idle OpenMP threads spin for some milliseconds: let them fall asleep before the next process measures.
SETTLE = 0.01  # seconds
RESULT_VALUES = 256  # values of a result that are compared between the trees


class Worker:
    """Answers requests; the call that was prepared last is the one to sample."""

    def start(self, device: str, threads: int | None, effort: dict[str, Any]) -> dict[str, Any]:
        """Take the settings; returns the number of threads.

        Raises:
            ImportError: a part of the package came from another folder, such as an installed one.
        """
        self.device, self.effort = torch.device(device), harness.Effort(**effort)
        if threads:
            torch.set_num_threads(threads)
        strays = [
            name
            for name, module in sys.modules.items()
            if name.partition(".")[0] == "posgan_fast"
            and Path.cwd() not in Path(getattr(module, "__file__", None) or "/").resolve().parents
        ]
        if strays:
            raise ImportError(f"{', '.join(strays)} were imported from elsewhere than {Path.cwd()}")
        return {"threads": torch.get_num_threads()}

    def prepare(self, **subject: Any) -> dict[str, Any]:
        """Make a call ready; returns its clocks and some values of its result."""
        self.clocks: dict[str, Callable[[], float]] = {}
        wanted = subjects.Subject(**subject)
        torch.set_grad_enabled(wanted.op == "training")
        call, x, traffic = subjects.prepare(wanted, self.device)
        result = call(x).detach().double().flatten()
        step = max(1, result.numel() // RESULT_VALUES)
        if self.device.type == "cuda" and traffic:
            gc.collect()  # free the graphs of the previous call
            torch.cuda.empty_cache()
            inputs = [x, *(x.clone() for _ in range(harness.buffers_needed(self.device, traffic) - 1))]
            sampler = harness.CudaSampler(call, inputs)
            self.clocks = {sampler.clock: sampler, "launches": sampler.launched}
        else:
            self.clocks = {"host": harness.HostSampler(call, x, self.effort.sample)}
        return {"clocks": list(self.clocks), "values": result[::step].tolist()}

    def sample(self, clock: str) -> float:
        """Seconds per call."""
        seconds = self.clocks[clock]()
        time.sleep(SETTLE)
        return seconds


def main() -> int:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # send other output to standard error, apart from the replies
    worker = Worker()
    with harness.tf32(False):
        for line in sys.stdin:
            request = json.loads(line)
            try:
                reply = {"result": getattr(worker, request.pop("request"))(**request)}
            except Exception as error:
                reply = {"error": harness.reason(error)}
            print(json.dumps(reply), file=replies, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
