"""Samplers as generators: one network evaluation (or more) a step; progress, previews and early stop are
the caller's.

A step goes from time t to time s = the next entry of `times`. Coefficients are float64 on the CPU.
"""

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


def _levels(schedule: Schedule, t: Tensor) -> tuple[float, float]:
    return schedule.alpha(t).item(), schedule.sigma(t).item()


def posterior(schedule: Schedule, t: Tensor, s: Tensor) -> tuple[float, float, float, float]:
    """(a, b, small, large): q(x_s | x_t, x0) has mean a x_t + b x0 and variance `small`; `large` is that
    of x_t | x_s.

    Ho et al. 2020, eq. 6-7, for any alpha and sigma and any s < t.
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = _levels(schedule, t), _levels(schedule, s)
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
        alpha, sigma = _levels(schedule, s)
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


VARIANCES = ("large", "small", "zero")


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

    variance: that of q(x_s | x_t, x0) (small), of q(x_t | x_s) (large), or none (zero: the posterior mean
    alone).

    Raises:
        InputError: for another variance.
    """
    if variance not in VARIANCES:
        raise unknown("variance", variance, VARIANCES)
    for k, (t, s) in enumerate(zip(times[:-1], times[1:])):
        keep, pull, small, large = posterior(schedule, t, s)
        x0, _, _ = denoise(x, t)
        x = keep * x + pull * x0
        # the last step reaches the data: the mean of q(x_0 | x_t, x0) is x0 itself
        if s > 0 and variance != "zero":
            x = x + (large if variance == "large" else small) ** 0.5 * noise(k)
        yield Step(s.item(), x, x0)
