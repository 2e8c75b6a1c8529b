"""Which examples stand for all of a source, where not all are measured."""

import torch
from torch import Tensor

from .. import noise


def spread(n: int, limit: int | None) -> Tensor:
    """(m,) int64 examples of 0 … n - 1 in order, m = min(n, limit): one of each of m stretches, at random.

    Folders are often sorted by class, and samples come with their classes in turn: neither the first examples
    nor every tenth are like the whole. The same n and limit give the same examples.
    """
    count = n if limit is None else min(n, limit)
    place = torch.arange(count + 1) * n // max(count, 1)
    start, length = place[:-1], place.diff()
    u = noise.uniform(0, noise.SUBSET, torch.arange(count)).double()
    return start + (u * length).long()
