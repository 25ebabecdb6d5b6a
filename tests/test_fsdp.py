"""FSDP2 on two processes: the recipe in the docstring of ``Generator``, against one process with the whole batch."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import distributed
from torch.distributed.tensor import DTensor

from posgan_fast.models import Discriminator, Generator

pytestmark = pytest.mark.skipif(not distributed.is_available(), reason="this torch has no torch.distributed")


def _networks() -> tuple[Generator, Discriminator]:
    torch.manual_seed(0)
    generator = Generator(8, z_dim=8, w_dim=8, mapping_layers=2, channel_max=8)
    for name, parameter in generator.named_parameters():
        if name.endswith("noise_strength"):
            torch.nn.init.constant_(parameter, 0.5)
    return generator, Discriminator(8, channel_max=8, mbstd_group_size=1)


def _step(generator, discriminator, z) -> None:
    ws = generator.mapping(z, skip_w_avg_update=True)
    discriminator(generator.synthesis(ws, noise_mode="const")).mean().backward()


def _worker(rank: int, folder: str) -> None:
    from torch.distributed.fsdp import fully_shard

    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    mesh = distributed.init_device_mesh("cpu", (2,))
    generator, discriminator = _networks()
    single = copy.deepcopy((generator, discriminator))
    scalars = [p for p in generator.parameters() if p.ndim == 0]  # in one order: a set has one for each process
    for module in (generator.mapping, generator.synthesis, generator):
        fully_shard(module, mesh=mesh, ignored_params=set(scalars))
    fully_shard(discriminator, mesh=mesh)
    sharded = [p for p in generator.parameters() if p.ndim]
    optimiser = torch.optim.SGD([{"params": sharded}, {"params": scalars}], lr=0.1, foreach=True)

    z = torch.randn(4, 8, generator=torch.Generator().manual_seed(1))
    _step(generator, discriminator, z[2 * rank : 2 * rank + 2])
    for parameter in scalars:
        distributed.all_reduce(parameter.grad.div_(2))
    optimiser.step()

    _step(*single, z)
    torch.optim.SGD(single[0].parameters(), lr=0.1).step()
    state = {k: v.full_tensor() if isinstance(v, DTensor) else v for k, v in generator.state_dict().items()}
    expected = single[0].state_dict()
    assert all(isinstance(p, DTensor) for p in sharded) and scalars
    torch.testing.assert_close(state, expected, rtol=1e-4, atol=1e-5)
    _networks()[0].load_state_dict(state)
    distributed.destroy_process_group()


def test_two_processes_train_as_one(tmp_path: Path):
    torch.multiprocessing.spawn(_worker, (str(tmp_path),), nprocs=2)
