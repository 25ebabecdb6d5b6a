"""The processes of a training run: one, or those that torchrun starts.

Gradients are averaged after each backward pass rather than by DistributedDataParallel, because R1 and path length
differentiate a network twice and call its halves separately, which that wrapper does not see.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
from torch.distributed import nn as dist_nn


def rank() -> int:
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[None]:
    """Join the processes that torchrun started, for the time of the block; a process of its own joins none."""
    if "WORLD_SIZE" not in os.environ or dist.is_initialized():
        yield
        return
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def choose_device(name: str) -> torch.device:
    """Return the device of this process: "auto" is a GPU for each process where there are any.

    Raises:
        ValueError: a device that torch does not have here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ValueError(f"device: expected auto, cpu, cuda or cuda:N, got {name!r}") from None
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ValueError(f"device: expected one that torch can use here, got {name!r}")
        if device.index is None:
            device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        elif int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise ValueError(f"device: expected cuda, of which each process takes its own, got {name!r}")
        if device.index >= torch.cuda.device_count():
            raise ValueError(f"device: expected less than {torch.cuda.device_count()} processes or GPUs, got {device}")
        torch.cuda.set_device(device)
    elif device.type != "cpu":
        raise ValueError(f"device: expected auto, cpu, cuda or cuda:N, got {name!r}")
    return device


def gathered(value: object) -> list:
    """Return the values of all processes, in each of them."""
    if world_size() == 1:
        return [value]
    values: list = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def wait() -> None:
    """Wait until all processes are here."""
    if world_size() > 1:
        dist.barrier()


def average_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Average the gradients of the processes, in one message; every process has to have the same gradients."""
    if world_size() == 1:
        return
    grads = [p.grad for p in parameters if p.grad is not None]
    flat = torch.cat([grad.flatten() for grad in grads])
    dist.all_reduce(flat)
    flat /= world_size()
    for grad, part in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
        grad.copy_(part.view_as(grad))


def average(x: torch.Tensor) -> torch.Tensor:
    """Return the mean of ``x`` over the processes, through which gradients flow."""
    return x if world_size() == 1 else dist_nn.all_reduce(x) / world_size()


def average_(x: torch.Tensor) -> None:
    """Replace ``x`` by its mean over the processes."""
    if world_size() > 1:
        dist.all_reduce(x)
        x /= world_size()
