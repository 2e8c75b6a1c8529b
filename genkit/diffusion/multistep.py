"""DPM-Solver++: second order with one network evaluation a step, by remembering the last prediction."""

import math
from collections.abc import Iterator

from torch import Tensor

from ..errors import InputError
from .denoiser import Denoise
from .samplers import Step, StepNoise, levels
from .schedules import Schedule


def dpmpp(
    denoise: Denoise,
    schedule: Schedule,
    x: Tensor,
    times: Tensor,
    *,
    sde: bool = False,
    noise: StepNoise | None = None,
) -> Iterator[Step]:
    """DPM-Solver++(2M) (Lu et al. 2022, alg. 2) or, with sde, SDE-DPM-Solver++(2M) (their eq. 18).

    x: (B, *S) at times[0]; times: (n + 1,) float64. With q = e^-h the papers' updates are

        x_s = alpha_s x0 + sigma_s eps + alpha_s (1 - q) D                                     (ODE)
        x_s = alpha_s x0 + sigma_s (q eps + (1 - q^2)^0.5 noise) + alpha_s (1 - q^2) D         (SDE)

    where D = h / (2 h_before) (x0 - x0_before). So written they are regular at alpha = 0 and sigma = 0, and
    the SDE's without D is `ddim` with eta = 1. D is absent from the first step, and from the one to t = 0,
    where h is infinite; it vanishes after a start at alpha = 0, where h_before is.

    Raises:
        InputError: sde without `noise`, or with rising times.
    """
    if sde and noise is None:
        raise InputError("sde needs noise")
    if sde and times[-1] > times[0]:
        raise InputError("rising times (inversion) need the ODE form")
    before: Tensor | None = None
    h_before = math.inf
    for k, (t, s) in enumerate(zip(times[:-1], times[1:])):
        alpha, sigma = levels(schedule, s)
        h = _log_snr(alpha, sigma) - _log_snr(*levels(schedule, t))
        keep, spread = (math.exp(-h), (-math.expm1(-2 * h)) ** 0.5) if sde else (1.0, 0.0)
        x0, eps, _ = denoise(x, t)
        x = alpha * x0 + sigma * keep * eps
        if before is not None and math.isfinite(h):
            gain = -math.expm1(-2 * h if sde else -h)
            x = x + (alpha * gain * h / (2 * h_before)) * (x0 - before)
        if noise is not None and sigma * spread > 0:
            x = x + sigma * spread * noise(k)
        before, h_before = x0, h
        yield Step(s.item(), x, x0)


def _log_snr(alpha: float, sigma: float) -> float:
    """ln(alpha / sigma): minus infinity at pure noise, infinity at the data."""
    if alpha == 0 or sigma == 0:
        return math.inf if sigma == 0 else -math.inf
    return math.log(alpha) - math.log(sigma)
