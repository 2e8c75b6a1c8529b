"""Euler's and Heun's methods for the probability-flow ODE, with churn (Karras et al. 2022, alg. 2)."""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import InputError
from .denoiser import Denoise
from .samplers import Step, StepNoise, levels
from .schedules import Schedule

STEEP = 200.0  # above this sigma / alpha, x / alpha is too large to compute with


class _Churn(NamedTuple):
    """S_churn over the number of steps, S_min, S_max and S_noise of the paper."""

    share: float
    low: float
    high: float
    scale: float


def euler(
    denoise: Denoise,
    schedule: Schedule,
    x: Tensor,
    times: Tensor,
    *,
    churn: float = 0.0,
    churn_min: float = 0.0,
    churn_max: float = math.inf,
    churn_noise: float = 1.0,
    noise: StepNoise | None = None,
) -> Iterator[Step]:
    """Algorithm 2 of Karras et al. 2022 without its second-order correction; one evaluation a step.

    Without churn this is `ddim` with eta = 0, rising times (inversion) included. Arguments: see `heun`.

    Raises:
        InputError: churn > 0 without `noise`, or with rising times.
    """
    settings = _check(times, churn, churn_min, churn_max, churn_noise, noise)
    return _steps(denoise, schedule, x, times, settings, noise, correct=False)


def heun(
    denoise: Denoise,
    schedule: Schedule,
    x: Tensor,
    times: Tensor,
    *,
    churn: float = 0.0,
    churn_min: float = 0.0,
    churn_max: float = math.inf,
    churn_noise: float = 1.0,
    noise: StepNoise | None = None,
) -> Iterator[Step]:
    """Algorithm 2 of Karras et al. 2022 for any alpha and sigma: two evaluations a step, one on the last.

    x: (B, *S) at times[0]; times: (n + 1,) float64. churn, churn_min, churn_max, churn_noise: the paper's
    S_churn, S_min, S_max and S_noise; its sigma is sigma / alpha. noise: drawn once a step that churns.
    Churn stops at the highest level that the schedule has.

    Raises:
        InputError: churn > 0 without `noise`, or with rising times.
    """
    settings = _check(times, churn, churn_min, churn_max, churn_noise, noise)
    return _steps(denoise, schedule, x, times, settings, noise, correct=True)


def _check(
    times: Tensor, churn: float, low: float, high: float, scale: float, noise: StepNoise | None
) -> _Churn:
    if churn > 0 and noise is None:
        raise InputError("churn > 0 needs noise")
    if churn > 0 and times[-1] > times[0]:
        raise InputError("rising times (inversion) need churn = 0")
    return _Churn(churn / (len(times) - 1), low, high, scale)


def _steps(
    denoise: Denoise,
    schedule: Schedule,
    x: Tensor,
    times: Tensor,
    churn: _Churn,
    noise: StepNoise | None,
    correct: bool,
) -> Iterator[Step]:
    """The steps of `heun` (correct) or `euler`."""
    for k, (t, s) in enumerate(zip(times[:-1], times[1:])):
        if noise is not None:
            x, t = _raised(schedule, x, t, k, churn, noise)
        alpha, sigma = levels(schedule, s)
        x0, eps, _ = denoise(x, t)
        x = alpha * x0 + sigma * eps
        start = levels(schedule, t)
        # as in the paper, a step that touches the data is Euler's
        if correct and sigma > 0 and start[1] > 0:
            again = denoise(x, s)
            x0_gain, eps_gain = _trapezoid(start, (alpha, sigma))
            x = x + (x0_gain * (again.x0 - x0) if eps_gain == 0 else eps_gain * (again.eps - eps))
        yield Step(s.item(), x, x0)


def _trapezoid(start: tuple[float, float], end: tuple[float, float]) -> tuple[float, float]:
    """What the changes of x0 and of eps from start to end, each (alpha, sigma), add to Euler's step; one of
    the two is 0.

    The paper's trapezoid rule integrates d(x / alpha) / d(sigma / alpha) = eps. Where alpha is 0 or nearly,
    the same rule integrates d(x / sigma) / d(alpha / sigma) = x0, in which that end is an ordinary point.
    """
    (alpha_t, sigma_t), (alpha_s, sigma_s) = start, end
    if sigma_t > STEEP * alpha_t or sigma_s > STEEP * alpha_s:
        return 0.5 * (alpha_s - sigma_s * alpha_t / sigma_t), 0.0
    return 0.0, 0.5 * (sigma_s - alpha_s * sigma_t / alpha_t)


def _raised(
    schedule: Schedule, x: Tensor, t: Tensor, k: int, churn: _Churn, noise: StepNoise
) -> tuple[Tensor, Tensor]:
    """(x, t) after churn: noise added up to sigma / alpha times 1 + gamma (alg. 2, lines 4-6)."""
    alpha, sigma = levels(schedule, t)
    ratio = sigma / alpha if alpha > 0 else math.inf
    gamma = min(churn.share, math.sqrt(2) - 1) if churn.low <= ratio <= churn.high else 0.0
    if gamma == 0 or ratio in (0, math.inf):  # at alpha = 0 x is all noise already
        return x, t
    raised = schedule.time_of(torch.tensor(ratio * (1 + gamma), dtype=torch.float64))
    alpha_up, sigma_up = levels(schedule, raised)
    # 0 where the schedule ends
    spread = alpha_up * math.sqrt(max(0.0, (sigma_up / alpha_up) ** 2 - ratio**2))
    return (alpha_up / alpha) * x + spread * churn.scale * noise(k), raised
