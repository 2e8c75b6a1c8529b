"""FID, KID, precision, recall and inception score by torch-fidelity; the sampling error of FID by us."""

from typing import NamedTuple

import torch
from torch import Tensor
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_statistics_to_metric
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from .. import noise
from .statistics import Statistics

RESAMPLES = 200
_LEVEL = 0.95
_DRAWS = 1 << 18  # random numbers drawn at a time
_RNG_SEED = 2020  # torch-fidelity's own default


class Estimate(NamedTuple):
    """A number with its spread; None where the spread cannot be known."""

    value: float
    spread: float | None = None


class Interval(NamedTuple):
    """95 % bootstrap interval and standard error of FID."""

    low: float
    high: float
    error: float


class PrecisionRecall(NamedTuple):
    """Shares of fake images near real ones and of real images near fake ones (Kynkäänniemi et al. 2019)."""

    precision: float
    recall: float


class Confidence(NamedTuple):
    """What a classifier thinks of images."""

    confident: float  # share that it puts into one class with probability above 0.9
    entropy: float  # mean entropy of one image's class probabilities, nats
    classes: float  # effective number of classes: the exponential of the entropy of the mean probabilities


def fid(fake: Statistics, real: Statistics) -> float:
    """Squared Fréchet distance of two Gaussians (Heusel et al. 2017, eq. 6); rounding below 0 is cut off."""
    pair = [{"mu": s.mu.numpy(), "sigma": s.sigma.numpy()} for s in (fake, real)]
    return max(0.0, fid_statistics_to_metric(*pair, verbose=False)[KEY_METRIC_FID])


def fid_interval(
    value: float, features: Tensor, fake: Statistics, real: Statistics, *, seed: int = 0
) -> Interval:
    """Interval around the FID `value` for the choice of the fake images, by a bootstrap of its linear part.

    A resample holds duplicates, so its covariance has a lower rank and its FID is biased upwards, often by
    more than the width of the interval. So we resample not FID but each image's first-order influence on it
    (the infinitesimal jackknife: Jaeckel 1972; Efron 1982, ch. 6), which also costs one eigenproblem in all,
    not one a resample. In simulations its standard error exceeded the true one by 10 to 45 %. The interval
    says how much FID varies with other images of the same model; it holds neither the upward bias of a
    small n nor the error of the real set.

    features: (n, D) of the fake images, whose moments are `fake`.
    """
    influence = _influence(features, fake, real)
    n = len(influence)
    shifts = torch.cat(
        [
            influence[noise.integers(seed, noise.BOOTSTRAP, block, n, (n,))].mean(1)
            for block in torch.arange(RESAMPLES).split(max(1, _DRAWS // n))
        ]
    )
    tail = (1 - _LEVEL) / 2
    low, high = shifts.quantile(torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return Interval(max(0.0, value + low), value + high, influence.norm().item() / n)


def _influence(features: Tensor, fake: Statistics, real: Statistics) -> Tensor:
    """(n,) float64, mean 0: the derivative of FID to the weight of each fake image, times n.

    With S for a covariance, S_real = L L' and T = L (L' S_fake L)^(-1/2) L', the optimal map between the
    Gaussians, the Bures distance has d FID = 2 (mu_fake - mu_real).d mu + tr((I - T) d S_fake).
    """
    factor = _factor(real.sigma)
    values, vectors = torch.linalg.eigh(factor.T @ fake.sigma @ factor)
    floor = values[-1].clamp(min=0) * len(values) * torch.finfo(torch.float64).eps
    # resamples stay in the span of the images, where the inverse exists; outside it counts as 0
    scale = torch.where(values > floor, values.clamp(min=1e-300).rsqrt(), 0.0)
    basis = factor @ vectors
    slope = 2 * (fake.mu - real.mu)
    parts = []
    for part in features.split(4096):
        c = part.double() - fake.mu
        parts.append((c * c).sum(1) - ((c @ basis).square() * scale).sum(1) + c @ slope)
    influence = torch.cat(parts)
    return influence - influence.mean()


def _factor(sigma: Tensor) -> Tensor:
    """L with L L' = sigma: Cholesky's, or the symmetric root where sigma is singular."""
    lower, failed = torch.linalg.cholesky_ex(sigma)
    if not failed:
        return lower
    values, vectors = torch.linalg.eigh(sigma)
    return vectors * values.clamp(min=0).sqrt()


def kid(fake: Tensor, real: Tensor) -> Estimate:
    """Unbiased MMD² of the cubic kernel (Bińkowski et al. 2018), mean of 100 subsets of 1000, or fewer.

    The spread is over subsets, as papers print it: no standard error. Two equally large sets of at most 1000
    are taken whole, once.
    """
    size = min(1000, len(fake), len(real))
    whole = size == len(fake) == len(real)
    found = kid_features_to_metric(
        fake, real, kid_subsets=1 if whole else 100, kid_subset_size=size, rng_seed=_RNG_SEED, verbose=False
    )
    return Estimate(found[KEY_METRIC_KID_MEAN], None if whole else found[KEY_METRIC_KID_STD])


def precision_recall(fake: Tensor, real: Tensor) -> PrecisionRecall:
    """Precision and recall with balls to the third neighbour (nearer for fewer than four images)."""
    neighbour = min(3, len(fake) - 1, len(real) - 1)
    found = prc_features_to_metric(
        fake, real, prc_neighborhood=neighbour, prc_batch_size=2048, save_cpu_ram=True, verbose=False
    )
    return PrecisionRecall(found[KEY_METRIC_PRECISION], found[KEY_METRIC_RECALL])


def inception_score(logits: Tensor) -> Estimate:
    """exp of the mutual information of image and class (Salimans et al. 2016) over 10 splits (n below 10)."""
    found = isc_features_to_metric(logits, splits=min(10, len(logits)), shuffle=True, rng_seed=_RNG_SEED)
    return Estimate(found[KEY_METRIC_ISC_MEAN], found[KEY_METRIC_ISC_STD])


def confidence(logits: Tensor) -> Confidence:
    """How sure a classifier is of (n, K) logits, and over how many classes they spread."""
    log_p = logits.double().log_softmax(1)
    p = log_p.exp()
    entropy = -(p * log_p).sum(1).mean().item()
    classes = torch.special.entr(p.mean(0)).sum().exp().item()
    return Confidence((p.amax(1) > 0.9).double().mean().item(), entropy, classes)
