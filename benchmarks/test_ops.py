"""The pytest-benchmark suite, ``pytest benchmarks``: one group per case, one row per contender, float32.

pytest-benchmark measures the contenders of a group one after the other. ``python -m benchmarks`` interleaves them, and
adds bandwidths, dtypes, layouts and the cold cache of a GPU: quote its numbers.
"""

from __future__ import annotations

import cases
import pytest
import torch

from . import peers, registry

RESOLUTIONS = (0, 64, 256)
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    option = metafunc.config.getoption
    loaded = peers.load(peers.parse(option("--peer")), DEVICE)
    parameters = []
    for op, found in cases.CASES.items():
        for case in (c for c in found if option("--all-cases") or c.resolution in RESOLUTIONS):
            anything = torch.ones(4, device=DEVICE)  # the list of contenders does not depend on the values
            for contender in registry.contenders(case, anything, anything, loaded, compiled=False):
                parameters.append(pytest.param(case, contender.name, loaded, id=f"{op}-{case.name}-{contender.name}"))
    metafunc.parametrize("case, name, loaded", parameters)


@pytest.mark.benchmark(max_time=0.3, min_rounds=3, warmup=True, warmup_iterations=2)
def test_op(benchmark, case, name, loaded):
    x, extra = case.tensors(torch.float32, torch.contiguous_format)
    x, extra = x.to(DEVICE), None if extra is None else extra.to(DEVICE)
    found = {c.name: c for c in registry.contenders(case, x, extra, loaded, compiled=False)}
    call = found[name].make()
    benchmark.group = f"{case.op} {case.name}"
    traffic = cases.elements_moved(case) * x.element_size()
    with torch.inference_mode():
        y = benchmark(_synchronised(call), x)
    benchmark.extra_info.update(traffic=traffic, gigabytes_per_second=traffic / benchmark.stats.stats.median / 1e9)
    assert tuple(y.shape) == case.out_shape


def _synchronised(call):
    if DEVICE.type != "cuda":
        return call

    def run(x):
        y = call(x)
        torch.cuda.synchronize()
        return y

    return run
