"""Which example stands at each place of the endless sequence that training walks through."""

from collections.abc import Iterator

import torch
from torch import Tensor

from .. import noise


class Order:
    """position p -> example: epoch p // n, shuffled by (seed, epoch)."""

    def __init__(self, seed: int, n: int) -> None:
        self.seed, self.n = seed, n
        self._epochs: dict[int, Tensor] = {}

    def _epoch(self, epoch: int) -> Tensor:
        if epoch not in self._epochs:
            # a batch touches at most the epoch before this one
            self._epochs = {e: p for e, p in self._epochs.items() if e >= epoch - 1}
            self._epochs[epoch] = noise.permutation(self.seed, epoch, self.n)
        return self._epochs[epoch]

    def examples(self, start: int, stop: int) -> Tensor:
        """(stop - start,) int64 examples at positions start … stop - 1."""
        parts = []
        while start < stop:
            epoch, place = divmod(start, self.n)
            take = min(stop - start, self.n - place)
            parts.append(self._epoch(epoch)[place : place + take])
            start += take
        return parts[0] if len(parts) == 1 else torch.cat(parts)


def positions(step: int, batch: int, accumulate: int, rank: int, world: int) -> Iterator[tuple[int, int]]:
    """Endless (start, stop) of the micro-batches of this process from optimiser step `step` on.

    The batch of a step is the same set of positions for any number of processes and parts; each process
    takes a
    contiguous part of it, and each part of that in turn.
    """
    share = batch // world // accumulate
    while True:
        for part in range(accumulate):
            start = step * batch + (rank * accumulate + part) * share
            yield start, start + share
        step += 1
