"""The importance-weighted bound of a latent variable model on the images of a source (Burda et al. 2016)."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from .. import dist
from .. import noise as rng
from ..data.source import Source
from ..errors import RunError
from .nll import Estimate, Progress, estimate
from .subset import spread

AT_ONCE = 4096  # codes decoded together


class Posterior(NamedTuple):
    """q(z | x) of a batch: diagonal normals, against a standard normal prior."""

    mean: Tensor  # (B, *S) float32
    log_var: Tensor
    kl: Tensor  # (B,) KL(q(z | x) || p(z)) in nats


class ImportanceBound(NamedTuple):
    """Nats per image, each a mean over `n` images: smaller is likelier."""

    n: int
    samples: int
    bound: Estimate  # -log p(x) is at most this on average: the importance-weighted bound
    elbo: Estimate  # the negative ELBO, recon + kl
    recon: Estimate  # -log p(x | z), averaged over the samples
    kl: Estimate  # KL(q(z | x) || p(z)), exact
    effective: float  # effective sample size of the weights, of `samples`; near 1, the bound is loose


Encode = Callable[[Tensor], Posterior]  # x (B, C, H, W) -> q(z | x)
LogLikelihood = Callable[[Tensor, Tensor], Tensor]  # z (M, *S), x (M, C, H, W) -> log p(x | z) (M,) in nats


def log_weights(posterior: Posterior, noise: Tensor) -> tuple[Tensor, Tensor]:
    """(z, log p(z) - log q(z | x)) of posterior samples, (K, B, *S) and (K, B); noise: (K, B, *S).

    With z = mean + std noise the constants of the two normals cancel.
    """
    std = torch.exp(0.5 * posterior.log_var)
    z = posterior.mean + std * noise
    ratio = 0.5 * (noise.square() - z.square() + posterior.log_var)
    return z, ratio.flatten(2).sum(dim=2)


def weigh(
    posterior: Posterior,
    log_likelihood: LogLikelihood,
    x: Tensor,
    place: Tensor,
    samples: int,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """(log p(x | z), log p(z) - log q(z | x)), each (samples, B), of samples of q(z | x).

    Sample k of an image depends on `seed`, k and its `place` (B,) only.
    """
    shape, size = tuple(posterior.mean.shape[1:]), max(1, AT_ONCE // len(x))
    likely, ratio = [], []
    for part in torch.arange(samples).split(size):
        noise = torch.stack([rng.normal(seed, rng.STEP + int(k), place, shape) for k in part])
        z, extra = log_weights(posterior, noise)
        again = x.expand(len(part), *x.shape).flatten(0, 1)
        likely.append(log_likelihood(z.flatten(0, 1), again).reshape(len(part), len(x)))
        ratio.append(extra)
    return torch.cat(likely), torch.cat(ratio)


def importance_bound(
    encode: Encode,
    log_likelihood: LogLikelihood,
    source: Source,
    device: torch.device,
    *,
    samples: int = 100,
    limit: int | None = None,
    seed: int = 0,
    batch_size: int = 64,
    prepare: Callable[[Tensor, Tensor], Tensor] = lambda x, place: x,
    progress: Progress | None = None,
) -> ImportanceBound:
    """The bound of every image of `source`, or of `limit` spread over it; the same in every process.

    log p(x) >= E log 1/K sum_k p(x, z_k) / q(z_k | x), z_k ~ q(z | x): the ELBO for K = 1, and never looser
    with more samples (Burda et al. 2016, eq. 8). prepare: (images, their places in the source) -> the images
    to be measured.

    Raises:
        RunError: the bound is not finite.
    """
    index = spread(len(source), limit)
    mine = index[list(dist.share(len(index)))]
    parts = mine.split(batch_size) if len(mine) else ()
    rows = [torch.zeros(0, 4, dtype=torch.float64)]
    done = 0
    for part, batch in zip(parts, source.batches(iter(parts), device)):
        place = part.to(device)
        x = prepare(batch.x, place)
        posterior = encode(x)
        likely, ratio = weigh(posterior, log_likelihood, x, place, samples, seed)
        weights = likely.double() + ratio.double()
        bound = math.log(samples) - weights.logsumexp(dim=0)
        effective = 1.0 / weights.softmax(dim=0).square().sum(dim=0)
        recon, cost = -likely.double().mean(dim=0), posterior.kl.double()
        rows.append(torch.stack([bound, recon, cost, effective], dim=1).cpu())
        done += len(part)
        if progress:
            progress(done)
    found = dist.gather_rows(torch.cat(rows))
    if not found.isfinite().all():
        raise RunError("the bound is not finite: the model answers NaN or infinity; try --precision fp32")
    bound, recon, cost, effective = found.unbind(1)
    return ImportanceBound(
        len(found),
        samples,
        bound=estimate(bound),
        elbo=estimate(recon + cost),
        recon=estimate(recon),
        kl=estimate(cost),
        effective=float(effective.mean()),
    )
