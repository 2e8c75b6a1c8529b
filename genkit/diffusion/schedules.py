"""Noise schedules: x_t = alpha(t) x0 + sigma(t) eps with t = 0 data and t = 1 noise, everywhere."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..errors import unknown


class Schedule(NamedTuple):
    """Three functions of t (any shape, float, in [0, 1]) that return tensors of t's shape, type and device.

    embed is what the network is told about the noise level. `prior_scale` is the standard deviation of x
    at t = 1:
    sampling starts from prior_scale times standard normal noise.
    """

    alpha: Callable[[Tensor], Tensor]
    sigma: Callable[[Tensor], Tensor]
    embed: Callable[[Tensor], Tensor]
    prior_scale: float = 1.0


def _table(log_alpha_bar: Tensor) -> Schedule:
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

    # the chain's first step is 0: at t = 0 itself (inversion starts there) the network is told the same
    return Schedule(alpha, sigma, lambda t: (t * steps - 1).clamp(min=0))


def linear(steps: int = 1000, beta_min: float = 1e-4, beta_max: float = 2e-2) -> Schedule:
    """beta rising linearly over `steps` (Ho et al. 2020, sec. 4)."""
    beta = torch.linspace(beta_min, beta_max, steps, dtype=torch.float64)
    return _table(torch.log1p(-beta).cumsum(0))


def scaled_linear(steps: int = 1000, beta_min: float = 0.00085, beta_max: float = 0.012) -> Schedule:
    """sqrt(beta) rising linearly over `steps` (Rombach et al. 2022)."""
    beta = torch.linspace(beta_min**0.5, beta_max**0.5, steps, dtype=torch.float64) ** 2
    return _table(torch.log1p(-beta).cumsum(0))


def cosine(steps: int = 1000, offset: float = 0.008, beta_limit: float = 0.999) -> Schedule:
    """alpha_bar = cos^2((t + offset) / (1 + offset) * pi / 2), beta clipped (Nichol & Dhariwal 2021, eq.
    17)."""
    t = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
    bar = torch.cos((t + offset) / (1 + offset) * (math.pi / 2)) ** 2
    beta = (1 - bar[1:] / bar[:-1]).clamp(max=beta_limit)
    return _table(torch.log1p(-beta).cumsum(0))


def flow() -> Schedule:
    """The straight path alpha = 1 - t, sigma = t (Lipman et al. 2023; Liu et al. 2023)."""
    return Schedule(lambda t: 1 - t, lambda t: t, lambda t: 1000 * t)


def karras(sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0) -> Schedule:
    """alpha = 1 and sigma^(1/rho) linear in t from sigma_min to sigma_max (Karras et al. 2022, eq. 5).

    sigma(0) is exactly 0, as the paper appends to its list of noise levels. The network is told 250
    ln(sigma): the paper's ln(sigma) / 4 on the scale of a chain's 1000 steps.
    """
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)

    def raw(t: Tensor) -> Tensor:
        return (low + t * (high - low)) ** rho

    def sigma(t: Tensor) -> Tensor:
        return torch.where(t > 0, raw(t), torch.zeros_like(t))

    return Schedule(torch.ones_like, sigma, lambda t: 250 * raw(t).log(), sigma_max)


SCHEDULES: dict[str, Callable[[], Schedule]] = {
    "linear": linear,
    "cosine": cosine,
    "scaled-linear": scaled_linear,
    "flow": flow,
    "karras": karras,
}
SPACINGS = ("trailing", "leading", "linspace", "quadratic", "karras")


def times(n: int, spacing: str = "trailing", *, steps: int = 1000, rho: float = 7.0) -> Tensor:
    """(n + 1,) float64 times from high noise to t = 0 for n network evaluations.

    trailing, leading, linspace and quadratic are the ways of thinning a chain of `steps` steps (Lin et
    al. 2024, tab. 2; Song et al. 2021, app. D.2); a thinned index i is t = (i + 1) / steps. More network
    steps than `steps` simply divide [0, 1] finer. karras crowds the times near t = 0 by the power rho
    (Karras et al. 2022, eq. 5).

    Raises:
        InputError: for an unknown spacing.
    """
    if spacing not in SPACINGS:
        raise unknown("spacing", spacing, SPACINGS)
    k = torch.arange(n, dtype=torch.float64)
    fine = steps if n <= steps else n
    if spacing == "trailing":
        inner = (fine - k * fine / n).round() / fine
    elif spacing == "leading":
        inner = (((n - 1 - k) * (fine // n)).round() + 1) / fine
    elif spacing == "linspace":
        inner = (torch.linspace(fine - 1, 0, n, dtype=torch.float64).round() + 1) / fine
    elif spacing == "quadratic":
        # the square root of the index is evenly spaced up to 0.8 of the chain
        root = torch.linspace((0.8 * fine) ** 0.5, 0, n, dtype=torch.float64)
        inner = ((root**2).floor() + 1) / fine
        inner = _distinct(inner, fine)
    else:
        low, high = (1 / fine) ** (1 / rho), 1.0
        inner = (high + (k / max(n - 1, 1)) * (low - high)) ** rho
    return torch.cat([inner, torch.zeros(1, dtype=torch.float64)])


def _distinct(inner: Tensor, fine: int) -> Tensor:
    """Falling times with repeated grid points pushed up to the next free one, so that every step moves."""
    grid = (inner * fine).round().flip(0)
    for i in range(1, len(grid)):
        grid[i] = max(grid[i].item(), grid[i - 1].item() + 1)
    return grid.flip(0) / fine
