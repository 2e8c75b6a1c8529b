"""Samplers as generators: one network evaluation (or more) a step; progress, previews and early stop are
the caller's. Here are DDIM and DDPM; `edm` has Euler and Heun, `multistep` DPM-Solver++.

A step goes from time t to time s = the next entry of `times`. Coefficients are float64 on the CPU.
"""

import math
from collections.abc import Callable, Iterator
from typing import NamedTuple

from torch import Tensor

from ..errors import InputError, unknown
from .denoiser import Denoise
from .schedules import Schedule

StepNoise = Callable[[int], Tensor]  # step number -> standard normal numbers shaped like x


class Step(NamedTuple):
    """After a step: the time reached, x there, and the x0 predicted on the way."""

    t: float
    x: Tensor
    x0: Tensor


def levels(schedule: Schedule, t: Tensor) -> tuple[float, float]:
    """(alpha, sigma) at t (), as numbers. t is on the CPU: no device waits for them."""
    return schedule.alpha(t).item(), schedule.sigma(t).item()


def posterior(schedule: Schedule, t: Tensor, s: Tensor) -> tuple[float, float, float, float]:
    """(a, b, small, large): q(x_s | x_t, x0) has mean a x_t + b x0 and variance `small`; `large` is that
    of x_t | x_s.

    Ho et al. 2020, eq. 6-7, for any alpha and sigma and any s < t.
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = levels(schedule, t), levels(schedule, s)
    ratio = alpha_t / alpha_s
    large = sigma_t**2 - (ratio * sigma_s) ** 2
    keep = ratio * (sigma_s / sigma_t) ** 2
    return keep, alpha_s * large / sigma_t**2, large * (sigma_s / sigma_t) ** 2, large


def ddim(
    denoise: Denoise,
    schedule: Schedule,
    x: Tensor,
    times: Tensor,
    *,
    eta: float = 0.0,
    noise: StepNoise | None = None,
) -> Iterator[Step]:
    """DDIM (Song et al. 2021, eq. 12 and 16): eta = 0 is deterministic, eta = 1 is DDPM with the small
    variance.

    x: (B, *S) at times[0]; times: (n + 1,) float64. Rising times with eta = 0 are DDIM inversion.

    Raises:
        InputError: eta > 0 without `noise`, or with rising times.
    """
    if eta > 0 and noise is None:
        raise InputError("eta > 0 needs noise")
    for k, (t, s) in enumerate(zip(times[:-1], times[1:])):
        alpha, sigma = levels(schedule, s)
        x0, eps, _ = denoise(x, t)
        spread = 0.0
        if eta > 0:
            if s > t:
                raise InputError("rising times (inversion) need eta = 0")
            spread = eta * posterior(schedule, t, s)[2] ** 0.5
        x = alpha * x0 + max(0.0, sigma**2 - spread**2) ** 0.5 * eps
        if spread > 0 and noise is not None:
            x = x + spread * noise(k)
        yield Step(s.item(), x, x0)


VARIANCES = ("large", "small", "zero", "learned")


def log_variances(
    schedule: Schedule, t: Tensor, s: Tensor, before: Tensor | None = None
) -> tuple[float, float]:
    """(log small, log large) of the step t -> s, between which a learned variance lies: log variance = v log
    large + (1 - v) log small (Nichol & Dhariwal 2021, eq. 15, with v = `Prediction.var`).

    small is 0 on the step to s = 0, where its logarithm is that of the step before -> t, as in the authors'
    code. before: the time that precedes t in the chain; only that step needs it.
    """
    _, _, small, large = posterior(schedule, t, s)
    if s == 0 and before is not None:
        small = posterior(schedule, before, t)[2]
    return math.log(small), math.log(large)


def ddpm(
    denoise: Denoise,
    schedule: Schedule,
    x: Tensor,
    times: Tensor,
    *,
    variance: str = "small",
    noise: StepNoise,
) -> Iterator[Step]:
    """Ancestral sampling (Ho et al. 2020, alg. 2), on all steps or a thinned chain (Nichol & Dhariwal
    2021, sec. 4).

    variance: that of q(x_s | x_t, x0) (small), of q(x_t | x_s) (large), none (zero: the posterior mean
    alone), or what the network says between small and large (learned).

    Raises:
        InputError: for another variance, or learned of a model that predicts none.
    """
    if variance not in VARIANCES:
        raise unknown("variance", variance, VARIANCES)
    for k, (t, s) in enumerate(zip(times[:-1], times[1:])):
        keep, pull, small, large = posterior(schedule, t, s)
        x0, _, share = denoise(x, t)
        if variance == "learned" and share is None:
            raise InputError(
                "this model has no learned variance; use --variance small, or train with --loss hybrid"
            )
        x = keep * x + pull * x0
        # the last step reaches the data: the mean of q(x_0 | x_t, x0) is x0 itself
        if s > 0 and variance == "learned" and share is not None:
            low, high = log_variances(schedule, t, s)
            x = x + (0.5 * (low + share * (high - low))).exp() * noise(k)
        elif s > 0 and variance != "zero":
            x = x + (large if variance == "large" else small) ** 0.5 * noise(k)
        yield Step(s.item(), x, x0)
