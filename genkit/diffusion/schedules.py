"""Noise schedules: x_t = alpha(t) x0 + sigma(t) eps with t = 0 data and t = 1 noise, everywhere."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import InputError, unknown


class Schedule(NamedTuple):
    """Three functions of t (any shape, float, in [0, 1]) that return tensors of t's shape, type and device,
    and the way back.

    embed is what the network is told about the noise level. time_of returns the t at which sigma / alpha is
    the given ratio (any shape, float64, on the CPU, positive, inf allowed), kept within the noise levels that
    a network of this schedule knows. `prior_scale` is the standard deviation of x at t = 1: sampling starts
    from prior_scale times standard normal noise.
    """

    alpha: Callable[[Tensor], Tensor]
    sigma: Callable[[Tensor], Tensor]
    embed: Callable[[Tensor], Tensor]
    time_of: Callable[[Tensor], Tensor]
    prior_scale: float = 1.0


def chain(log_alpha_bar: Tensor) -> Schedule:
    """The schedule of a discrete chain: t = (i + 1) / T is its step i; log alpha_bar is linear in between."""
    steps = len(log_alpha_bar)
    knots = torch.cat([torch.zeros(1, dtype=torch.float64), log_alpha_bar.double()])
    tables = {torch.device("cpu"): knots}  # one copy a device: a copy at every call would sync the GPU

    def log_bar(t: Tensor) -> Tensor:
        if t.device not in tables:
            tables[t.device] = knots.to(t.device)
        table = tables[t.device]
        place = t.double().clamp(0, 1) * steps
        low = place.floor().long().clamp(max=steps - 1)
        return torch.lerp(table[low], table[low + 1], place - low)

    def alpha(t: Tensor) -> Tensor:
        return torch.exp(0.5 * log_bar(t)).to(t.dtype)

    def sigma(t: Tensor) -> Tensor:
        # expm1 keeps the digits that 1 - alpha_bar loses near t = 0
        return torch.sqrt(-torch.expm1(log_bar(t))).to(t.dtype)

    def time_of(ratio: Tensor) -> Tensor:
        wanted = (-torch.log1p(ratio**2)).clamp(
            knots[-1], knots[1]
        )  # from the chain's last step to its first
        high = torch.searchsorted(-knots, -wanted).clamp(1, steps)
        share = (wanted - knots[high - 1]) / (knots[high] - knots[high - 1])
        return (high - 1 + share) / steps

    # the chain's first step is 0: at t = 0 itself (inversion starts there) the network is told the same
    return Schedule(alpha, sigma, lambda t: (t * steps - 1).clamp(min=0), time_of)


def linear(steps: int = 1000, beta_min: float = 1e-4, beta_max: float = 2e-2) -> Schedule:
    """beta rising linearly over `steps` (Ho et al. 2020, sec. 4)."""
    beta = torch.linspace(beta_min, beta_max, steps, dtype=torch.float64)
    return chain(torch.log1p(-beta).cumsum(0))


def scaled_linear(steps: int = 1000, beta_min: float = 0.00085, beta_max: float = 0.012) -> Schedule:
    """sqrt(beta) rising linearly over `steps` (Rombach et al. 2022)."""
    beta = torch.linspace(beta_min**0.5, beta_max**0.5, steps, dtype=torch.float64) ** 2
    return chain(torch.log1p(-beta).cumsum(0))


def cosine(steps: int = 1000, offset: float = 0.008, beta_limit: float = 0.999) -> Schedule:
    """alpha_bar = cos^2((t + offset) / (1 + offset) * pi / 2), beta clipped (Nichol & Dhariwal 2021, eq.
    17)."""
    t = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    bar = torch.cos((t + offset) / (1 + offset) * (math.pi / 2)) ** 2
    beta = (1 - bar[1:] / bar[:-1]).clamp(max=beta_limit)
    return chain(torch.log1p(-beta).cumsum(0))


def flow() -> Schedule:
    """The straight path alpha = 1 - t, sigma = t (Lipman et al. 2023; Liu et al. 2023)."""
    return Schedule(lambda t: 1 - t, lambda t: t, lambda t: 1000 * t, lambda ratio: 1 / (1 + 1 / ratio))


def karras(sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Schedule:
    """alpha = 1 and sigma^(1/rho) linear in t from sigma_min to sigma_max (Karras et al. 2022, eq. 5).

    sigma(0) is exactly 0, as the paper appends to its list of noise levels, and sigma_min is just above it.
    Levels above sigma_max (churn reaches them) lie at t > 1. The network is told 250 ln(sigma): the paper's
    ln(sigma) / 4 on the scale of a chain's 1000 steps.
    """
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)

    def raw(t: Tensor) -> Tensor:
        return (low + t * (high - low)) ** rho

    def sigma(t: Tensor) -> Tensor:
        return torch.where(t > 0, raw(t), torch.zeros_like(t))

    def time_of(ratio: Tensor) -> Tensor:
        return ((ratio ** (1 / rho) - low) / (high - low)).clamp(min=1e-12)

    return Schedule(torch.ones_like, sigma, lambda t: 250 * raw(t).log(), time_of, sigma_max)


SCHEDULES: dict[str, Callable[[], Schedule]] = {
    "linear": linear,
    "cosine": cosine,
    "scaled-linear": scaled_linear,
    "flow": flow,
    "karras": karras,
}
SPACINGS = ("trailing", "leading", "linspace", "quadratic", "karras")


def times(
    n: int,
    spacing: str = "trailing",
    *,
    steps: int = 1000,
    rho: float = 7.0,
    schedule: Schedule | None = None,
) -> Tensor:
    """(n + 1,) float64 strictly falling times from high noise to t = 0 for n network evaluations.

    trailing, leading, linspace and quadratic are the ways of thinning a chain of `steps` steps (Lin et
    al. 2024, tab. 2; Song et al. 2021, app. D.2); a thinned index i is t = (i + 1) / steps. More network
    steps than `steps` simply divide [0, 1] finer. karras is `karras_times` of `schedule`.

    The indices are those of diffusers' DDIM and DDPM (trailing, leading, linspace) and of the DDIM paper's
    code (quadratic), with two departures: a single step of linspace or quadratic starts at the noisy end
    instead of at index 0, and quadratic's repeated indices, which cost an evaluation and move nothing, are
    pushed up to the next free one.

    Raises:
        InputError: for an unknown spacing, or karras without a schedule.
    """
    if spacing not in SPACINGS:
        raise unknown("spacing", spacing, SPACINGS)
    if spacing == "karras":
        if schedule is None:
            raise InputError("spacing karras is made of noise levels and needs the model's schedule")
        return karras_times(n, schedule, rho=rho)
    fine = steps if n <= steps else n
    index = _thinned(n, spacing, fine).round()
    return torch.cat([(index + 1) / fine, torch.zeros(1, dtype=torch.float64)])


def karras_times(
    n: int, schedule: Schedule, *, rho: float = 7.0, low: float = 0.002, high: float = 80.0
) -> Tensor:
    """(n + 1,) float64 times whose sigma / alpha are the n levels of Karras et al. 2022 (eq. 5), then t = 0.

    low, high: the paper's ends, drawn in where the schedule's own levels end earlier.
    """
    ends = schedule.time_of(torch.tensor([high, low], dtype=torch.float64)).clamp(max=1)
    root = (schedule.sigma(ends) / schedule.alpha(ends)) ** (1 / rho)
    levels = torch.lerp(root[0], root[1], torch.linspace(0, 1, n, dtype=torch.float64)) ** rho
    return torch.cat([schedule.time_of(levels).clamp(max=1), torch.zeros(1, dtype=torch.float64)])


def _thinned(n: int, spacing: str, fine: int) -> Tensor:
    """(n,) falling indices of a chain of `fine` steps."""
    k = torch.arange(n - 1, -1, -1, dtype=torch.float64)
    if spacing == "trailing":
        return (fine - (n - 1 - k) * fine / n).round() - 1
    if spacing == "leading":
        return k * (fine // n)
    if n == 1:
        return torch.tensor([fine - 1.0 if spacing == "linspace" else 0.8 * fine], dtype=torch.float64)
    if spacing == "linspace":
        return k * ((fine - 1) / (n - 1))
    # quadratic: the square root of the index is evenly spaced up to 0.8 of the chain
    return _distinct(((k * ((0.8 * fine) ** 0.5 / (n - 1))) ** 2).floor())


def _distinct(index: Tensor) -> Tensor:
    """Falling indices with repeated ones pushed up to the next free one, so that every step moves."""
    rising = index.flip(0).tolist()
    for i in range(1, len(rising)):
        rising[i] = max(rising[i], rising[i - 1] + 1)
    return torch.tensor(rising[::-1], dtype=torch.float64)
