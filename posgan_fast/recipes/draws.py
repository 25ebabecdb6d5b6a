"""Random numbers that depend on a seed, a purpose and an index, and on nothing that was drawn before.

So a run that was interrupted continues with the numbers that it would have drawn, and several processes draw the
numbers that one process would have drawn for the same samples.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Sequence

import torch

from . import ranks


class Draws:
    """Draws for the samples of one iteration.

    Args:
        seed: seed of the run.
        iteration: number of the iteration.
        batch: samples of this process.
        device, dtype: of the tensors.
    """

    def __init__(self, seed: int, iteration: int, batch: int, device: torch.device, dtype: torch.dtype) -> None:
        self.seed, self.iteration, self.batch, self.device, self.dtype = seed, iteration, batch, device, dtype

    def normal(self, purpose: str, *shape: int, n: int | None = None) -> torch.Tensor:
        """Draw N(0, 1) of ``shape`` for each of ``n`` samples (None: the batch): [n, *shape]."""
        rows = [torch.randn(shape, generator=g, device=self.device, dtype=self.dtype) for g in self._each(purpose, n)]
        return torch.stack(rows)

    def uniform(self, purpose: str) -> torch.Tensor:
        """Draw a number from 0 to 1 for each sample: [batch]."""
        rows = [torch.rand((), generator=g, device=self.device, dtype=self.dtype) for g in self._each(purpose, None)]
        return torch.stack(rows)

    def number(self, purpose: str) -> float:
        """Draw one number from 0 to 1, the same in every process."""
        return float(torch.rand((), generator=generator(self.seed, self.iteration, purpose), dtype=torch.float64))

    def _each(self, purpose: str, n: int | None) -> list[torch.Generator]:
        indices = sample_indices(self.batch if n is None else n)
        return [generator(self.seed, self.iteration, purpose, i, device=self.device) for i in indices]


def sample_indices(batch: int) -> range:
    """Numbers of this process's samples among those of all processes.

    Every ``world_size``-th sample is this process's: then groups of :class:`posgan_fast.nn.MinibatchStd` hold the same
    samples as in one process with the whole batch.
    """
    return range(ranks.rank(), batch * ranks.world_size(), ranks.world_size())


def generator(*key: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """Return a generator seeded by ``key``."""
    digest = hashlib.blake2b(repr(key).encode(), digest_size=8).digest()
    return torch.Generator(device).manual_seed(int.from_bytes(digest, "little") >> 1)


@contextlib.contextmanager
def seeded_weights(seed: int) -> Iterator[None]:
    """Let torch's own random numbers on the CPU follow from ``seed`` for the time of the block."""
    with torch.random.fork_rng(devices=[]):
        torch.random.set_rng_state(generator(seed, "weights").get_state())
        yield


def choose(probabilities: Sequence[float], number: float) -> int:
    """Return the index that a number from 0 to 1 falls on."""
    total = 0.0
    for index, probability in enumerate(probabilities):
        total += probability
        if number < total:
            return index
    return len(probabilities) - 1
