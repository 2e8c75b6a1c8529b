"""The variational bound on a diffusion model's likelihood, term by term, in bits/dim.

-log p(x0) <= L_T + sum of L_{t-1} + L_0 (Ho et al. 2020, eq. 5; Nichol & Dhariwal 2021, eq. 4-7), for a
chain of any number of steps and any noise schedule.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import InputError, unknown
from .denoiser import Denoise, expand
from .samplers import StepNoise, posterior
from .schedules import Schedule

VARIANCES = ("large", "small", "learned")
HALF_BIN = 1 / 255  # 8-bit data in [-1, 1] lie 2 / 255 apart
LEAST_LOG = math.log(1e-12)  # the probability at which the authors' code stops


class Chain(NamedTuple):
    """What the bound needs of each step of a chain, (S,) float64. Step i leads from times[i] to times[i - 1],
    step 0 to the data.

    pull: weight of x0 in the mean of q(x_s | x_t, x0). log_small, log_large: the logarithms of its variance
    and of that of q(x_t | x_s); that of step 0, which is 0, is taken from step 1.
    """

    times: Tensor
    pull: Tensor
    log_small: Tensor
    log_large: Tensor


class Term(NamedTuple):
    """One step's share of the bound: bits: (B,) bits/dim; error: (B,) mean squared error of x0."""

    step: int
    bits: Tensor
    error: Tensor


def make_chain(schedule: Schedule, times: Tensor) -> Chain:
    """The chain of a sampler that walks through `times`, (S + 1,) float64, falling to 0.

    Raises:
        InputError: it has a single step, whose variance nothing defines.
    """
    if len(times) < 3:
        raise InputError(f"a chain with a likelihood needs at least 2 steps, got {len(times) - 1}")
    rows = [posterior(schedule, t, s) for t, s in zip(times[:-1], times[1:])]
    _, pull, small, large = torch.tensor(rows[::-1], dtype=torch.float64).unbind(1)
    small = torch.cat([small[1:2], small[1:]])
    return Chain(times[:-1].flip(0), pull, small.log(), large.log())


def gaussian_kl(mean: Tensor, log_var: Tensor, other: Tensor, other_log_var: Tensor) -> Tensor:
    """KL(N(mean, exp(log_var)) || N(other, exp(other_log_var))) of each element, in nats."""
    ratio = log_var - other_log_var
    # expm1(r) - r keeps the digits of nearly equal variances
    return 0.5 * (torch.expm1(ratio) - ratio + (mean - other).square() * torch.exp(-other_log_var))


def gaussian_log_density(x: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """log N(x; mean, exp(log_var)) of each element, in nats."""
    return -0.5 * (math.log(2 * math.pi) + log_var + (x - mean).square() * torch.exp(-log_var))


def discretized_log_likelihood(x: Tensor, mean: Tensor, log_var: Tensor) -> Tensor:
    """Log-probability in nats that a Gaussian falls into x's bin, for 8-bit data x in [-1, 1].

    The bins are 2 / 255 wide, the first and the last open (Ho et al. 2020, eq. 13). As in the authors' code
    the normal distribution function is 0.5 (1 + tanh(sqrt(2 / pi) (z + 0.044715 z^3))), which is a
    distribution of its own, so that the bound stays a bound; and no bin counts for less than 1e-12.
    """
    centred, inverse = x - mean, torch.exp(-0.5 * log_var)
    upper, lower = (_logit_cdf(inverse * (centred + edge)) for edge in (HALF_BIN, -HALF_BIN))
    # mirrored where both edges lie above the mean: a difference of numbers near 1 has no digits
    flip = upper + lower > 0
    low, high = torch.where(flip, -upper, lower), torch.where(flip, -lower, upper)
    inside = (torch.sigmoid(high) - torch.sigmoid(low)).clamp(min=1e-12).log()
    below, above = (torch.nn.functional.logsigmoid(z).clamp(min=LEAST_LOG) for z in (upper, -lower))
    return torch.where(x < -0.999, below, torch.where(x > 0.999, above, inside))


def _logit_cdf(z: Tensor) -> Tensor:
    """log(cdf / (1 - cdf)) of the approximated standard normal distribution."""
    return 2 * math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)


def bits(nats: Tensor) -> Tensor:
    """(B,) bits/dim of (B, *S) nats."""
    return nats.flatten(1).mean(dim=1) / math.log(2)


def log_variance(chain: Chain, step: Tensor, variance: str, share: Tensor | None) -> Tensor:
    """log of the variance with which the model leaves step `step`, () or (B,), shaped like the step's or like
    `share`.

    share: `Prediction.var`, for learned (Nichol & Dhariwal 2021, eq. 15). large is that of step 1's
    posterior at step 0, as in their code, where the forward step's would blur the data.

    Raises:
        InputError: for another variance, or learned without a share.
    """
    if variance not in VARIANCES:
        raise unknown("variance", variance, VARIANCES)
    small, large = chain.log_small[step], chain.log_large[step]
    if variance == "learned":
        if share is None:
            raise InputError("this model has no learned variance; use --variance large or small")
        low, high = expand(small, share), expand(large, share)
        return low + share * (high - low)
    return torch.where(step == 0, small, large) if variance == "large" else small


def step_bits(
    chain: Chain, step: Tensor, x0: Tensor, predicted: Tensor, log_var: Tensor, *, discrete: bool = True
) -> Tensor:
    """(B,) bits/dim of the steps `step`, () or (B,): L_{t-1} = KL(q(x_s | x_t, x0) || p(x_s | x_t)), and
    L_0 = -log p(x0 | x_t) at step 0 (Nichol & Dhariwal 2021, eq. 5-6).

    x0, predicted: (B, *S), the model's x0 at x_t; log_var: of `log_variance`, (), (B,) or (B, *S).
    discrete: x0 are 8-bit images in [-1, 1]; else L_0 is a density (latents), and may be negative.
    """
    log_var = log_var if log_var.ndim == x0.ndim else expand(log_var, x0)
    small, pull = expand(chain.log_small[step], x0), expand(chain.pull[step], x0)

    def decoder() -> Tensor:
        # the mean of q(x_0 | x_t, x0) is x0 itself
        likelihood = discretized_log_likelihood if discrete else gaussian_log_density
        return -bits(likelihood(x0, predicted, log_var))

    def divergence() -> Tensor:
        # both means hold the same share of x_t
        return bits(gaussian_kl(pull * (x0 - predicted), small, x0.new_zeros(()), log_var))

    if step.ndim == 0:
        return decoder() if step == 0 else divergence()
    return torch.where(step == 0, decoder(), divergence())


def prior_bits(schedule: Schedule, t: Tensor, x0: Tensor) -> Tensor:
    """(B,) bits/dim of L_T = KL(q(x_t | x0) || p(x_t)) at the chain's first time t, ().

    p is what sampling starts from: standard normal, or of the schedule's own spread where it is not of unit
    variance (Nichol & Dhariwal 2021, eq. 7).
    """
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    log_var = 2 * sigma.log()
    spread = torch.zeros_like(log_var) if schedule.prior_scale == 1 else log_var
    mean = expand(alpha, x0) * x0
    return bits(gaussian_kl(mean, expand(log_var, x0), x0.new_zeros(()), expand(spread, x0)))


def terms(
    denoise: Denoise,
    schedule: Schedule,
    chain: Chain,
    x0: Tensor,
    *,
    variance: str = "large",
    noise: StepNoise,
    discrete: bool = True,
) -> Iterator[Term]:
    """The terms of `step_bits` for x0 (B, *S), from the noisiest step to step 0; each with its own noise.

    noise: k counts from the noisiest step, as in the samplers. `clipped` in front of the model is how the
    authors evaluate images.
    """
    last = len(chain.times) - 1
    for k in range(last + 1):
        step = torch.tensor(last - k)
        t = chain.times[step]
        x = expand(schedule.alpha(t), x0) * x0 + expand(schedule.sigma(t), x0) * noise(k)
        predicted, _, share = denoise(x, t)
        log_var = log_variance(chain, step, variance, share)
        error = (predicted - x0).square().flatten(1).mean(dim=1)
        yield Term(last - k, step_bits(chain, step, x0, predicted, log_var, discrete=discrete), error)
