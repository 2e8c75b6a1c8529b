"""The variational bound of a diffusion model on the images of a source, and its curve over the chain."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .. import dist
from .. import noise as rng
from ..data.source import Source
from ..diffusion.bound import Chain, prior_bits, terms
from ..diffusion.denoiser import Denoise
from ..diffusion.schedules import Schedule
from ..errors import RunError
from .subset import spread

Bind = Callable[[Tensor | None], Denoise]  # labels (B,), for a model with classes -> the model with them
Progress = Callable[[int], None]  # network evaluations done, of one example each, in this process


class Estimate(NamedTuple):
    """A mean over images and its standard error."""

    value: float
    error: float


class Point(NamedTuple):
    """One step of the curve: its number in the chain from 1, its time, and means over the images."""

    step: int
    t: float
    bits: float  # its term of the bound, bits/dim
    error: float  # standard error of `bits`
    x0_mse: float  # squared error of the predicted x0, in the data's units


class Nll(NamedTuple):
    """The bound of `n` images in bits/dim, total = prior + steps + decoder."""

    n: int
    total: Estimate
    prior: Estimate  # L_T
    steps: Estimate  # the sum of L_{t-1}
    decoder: Estimate  # L_0
    curve: tuple[Point, ...]  # from the step next to the data


def nll(
    bind: Bind,
    schedule: Schedule,
    chain: Chain,
    source: Source,
    device: torch.device,
    *,
    variance: str = "large",
    limit: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
    progress: Progress | None = None,
) -> Nll:
    """The bound of every example of `source`, or of `limit` spread over it; the same in every process.

    Each example's noise at each step depends on `seed` and its place in the source only. Latents get a
    density at the last step, images a probability.

    Raises:
        RunError: the bound is not finite.
    """
    index = spread(len(source), limit)
    n, mine = len(index), index[list(dist.share(len(index)))]
    parts = mine.split(batch_size) if len(mine) else ()
    discrete, steps = source.info.kind == "images", len(chain.times)
    rows = torch.zeros(len(mine), 3, dtype=torch.float64)  # L_T, the sum of L_{t-1}, L_0 of each example
    sums = torch.zeros(steps, 3, dtype=torch.float64)  # over the examples: the term, its square, error of x0
    done = 0
    for part, batch in zip(parts, source.batches(iter(parts), device)):
        place = part.to(device)

        def noise(k: int, place: Tensor = place, shape: tuple[int, ...] = source.info.shape) -> Tensor:
            return rng.normal(seed, rng.STEP + k, place, shape)

        walk = terms(
            bind(batch.label), schedule, chain, batch.x, variance=variance, noise=noise, discrete=discrete
        )
        found = []
        for term in walk:
            found.append(term)
            if progress:
                progress(done * steps + len(found) * len(part))
        # (S, B) from step 0 on; read from the device once a batch
        bits, errors = (torch.stack(column[::-1]).double().cpu() for column in list(zip(*found))[1:])
        row = rows[done : done + len(part)]
        row[:, 0] = prior_bits(schedule, chain.times[-1], batch.x)
        row[:, 1], row[:, 2] = bits[1:].sum(dim=0), bits[0]
        sums += torch.stack([bits.sum(dim=1), bits.square().sum(dim=1), errors.sum(dim=1)], dim=1)
        done += len(part)
    rows, sums = dist.gather_rows(rows), dist.gather_rows(sums[None]).sum(dim=0)
    if not (rows.isfinite().all() and sums.isfinite().all()):
        raise RunError("the bound is not finite: the model answers NaN or infinity; try --precision fp32")
    return _summary(n, rows, sums, chain.times)


def _summary(n: int, rows: Tensor, sums: Tensor, times: Tensor) -> Nll:
    """rows: (n, 3) terms of each example; sums: (S, 3) of each step over the examples; times: (S,)."""
    mean, square, mse = (sums / n).unbind(1)
    error = ((square - mean**2).clamp(min=0) / max(1, n - 1)).sqrt()
    curve = zip(range(1, len(times) + 1), times.tolist(), mean.tolist(), error.tolist(), mse.tolist())
    prior, steps, decoder = (estimate(column) for column in rows.unbind(1))
    return Nll(n, estimate(rows.sum(dim=1)), prior, steps, decoder, tuple(Point(*p) for p in curve))


def estimate(values: Tensor) -> Estimate:
    """The mean of values (n,) and its standard error."""
    error = values.std().item() / len(values) ** 0.5 if len(values) > 1 else 0.0
    return Estimate(values.mean().item(), error)
