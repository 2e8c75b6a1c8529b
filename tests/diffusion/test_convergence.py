"""Orders of convergence on exact denoisers: a Gaussian's closed flow, and a mixture's by a fine RK4; and what
the stochastic samplers draw."""

import math
from functools import cache

import pytest
import torch

from genkit.diffusion.denoiser import Prediction
from genkit.diffusion.edm import heun
from genkit.diffusion.multistep import dpmpp
from genkit.diffusion.samplers import ddim
from genkit.diffusion.schedules import SCHEDULES, times

MEANS, STDS, WEIGHTS = (
    torch.tensor(v, dtype=torch.float64) for v in ([-1.0, 0.5, 1.2], [0.3, 0.2, 0.5], [0.5, 0.3, 0.2])
)
SAMPLERS = {"ddim": ddim, "heun": heun, "dpmpp": dpmpp}
COUNTS = (40, 80, 160, 320)


def posterior_mean(x, alpha, sigma, mixture):
    """E[x0 | x] of the mixture, or of its first part alone. x: (B, 1)."""
    means, stds, weights = (MEANS, STDS, WEIGHTS) if mixture else (MEANS[:1], STDS[:1], WEIGHTS[:1])
    variance = (alpha * stds) ** 2 + sigma**2
    log_part = weights.log() - 0.5 * variance.log() - 0.5 * (x - alpha * means) ** 2 / variance
    each = means + alpha * stds**2 / variance * (x - alpha * means)
    return (log_part.softmax(dim=1) * each).sum(dim=1, keepdim=True)


def exact(schedule, mixture=True):
    """The exact denoiser."""

    def denoise(x, t):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        x0 = posterior_mean(x, alpha, sigma, mixture)
        return Prediction(x0, (x - alpha * x0) / sigma)

    return denoise


def flow_by_rk4(x, start, end, steps=800):
    """x at end, by d(x / alpha) / d ln(sigma / alpha) = x / alpha - x0. start, end: each (alpha, sigma)."""
    y = x / start[0]
    low, high = (math.log(sigma / alpha) for alpha, sigma in (start, end))
    h = (high - low) / steps

    def slope(y, level):
        return y - posterior_mean(y, 1.0, math.exp(level), True)

    for i in range(steps):
        level = low + i * h
        a = slope(y, level)
        b = slope(y + 0.5 * h * a, level + 0.5 * h)
        c = slope(y + 0.5 * h * b, level + 0.5 * h)
        y = y + h / 6 * (a + 2 * b + 2 * c + slope(y + h * c, level + h))
    return end[0] * y


def ends(schedule, path):
    return [(schedule.alpha(t).item(), schedule.sigma(t).item()) for t in (path[0], path[-1])]


def initial(schedule, path):
    alpha, sigma = ends(schedule, path)[0]
    return math.hypot(alpha, sigma) * torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]


@cache
def wanted(name, top):
    schedule = SCHEDULES[name]()
    path = torch.tensor([top, 0.1], dtype=torch.float64)
    return flow_by_rk4(initial(schedule, path), *ends(schedule, path))


def last(steps):
    *_, step = steps
    return step.x


def gaussian_flow(x, start, end):
    """The exact flow of the first part: the standardised value stays the same."""
    (mean_t, std_t), (mean_s, std_s) = (
        (alpha * MEANS[0], ((alpha * STDS[0]) ** 2 + sigma**2) ** 0.5) for alpha, sigma in (start, end)
    )
    return mean_s + std_s * (x - mean_t) / std_t


def orders(sampler, name, mixture, top=0.9):
    """log2 of the error's fall at each doubling of the steps, evenly spaced from t = top to 0.1."""
    schedule = SCHEDULES[name]()
    errors = []
    for n in COUNTS:
        path = torch.linspace(top, 0.1, n + 1, dtype=torch.float64)
        x = initial(schedule, path)
        truth = wanted(name, top) if mixture else gaussian_flow(x, *ends(schedule, path))
        found = last(SAMPLERS[sampler](exact(schedule, mixture), schedule, x, path))
        errors.append((found - truth).abs().max().item())
    return [math.log2(a / b) for a, b in zip(errors, errors[1:])]


@pytest.mark.parametrize("name", ["linear", "cosine", "flow", "karras"])
@pytest.mark.parametrize("mixture", [False, True], ids=["gaussian", "mixture"])
@pytest.mark.parametrize("sampler, order, within", [("ddim", 1, 0.15), ("heun", 2, 0.2), ("dpmpp", 2, 0.2)])
def test_order(sampler, order, within, mixture, name):
    """Oracle: the exact flow; the order at the last doubling, from 160 to 320 steps."""
    assert orders(sampler, name, mixture)[-1] == pytest.approx(order, abs=within)


@pytest.mark.parametrize("name", ["linear", "cosine", "flow"])
@pytest.mark.parametrize("sampler", ["heun", "dpmpp"])
def test_order_from_pure_noise(sampler, name):
    """Oracle: the exact flow from t = 1, where flow's alpha is 0 and cosine's 5e-5."""
    assert orders(sampler, name, mixture=False, top=1.0)[-1] == pytest.approx(2, abs=0.2)


def drawn(sampler, name, n, **options):
    """Samples of the Gaussian from 20,000 starts of pure noise."""
    schedule, path = SCHEDULES[name](), times(n)
    generator = torch.Generator().manual_seed(0)

    def noise(k):
        return torch.randn(20_000, 1, generator=generator, dtype=torch.float64)

    x = noise(0) * schedule.sigma(path[0])
    return last(SAMPLERS[sampler](exact(schedule, False), schedule, x, path, noise=noise, **options))


@pytest.mark.parametrize("name", ["linear", "cosine", "flow", "karras"])
@pytest.mark.parametrize(
    "sampler, options", [("dpmpp", {"sde": True}), ("heun", {"churn": 40.0, "churn_max": 50.0})]
)
def test_stochastic_samplers_draw_the_data(sampler, options, name):
    """Oracle: mean and standard deviation; 5 standard errors plus 0.01 for 100 steps."""
    x = drawn(sampler, name, 100, **options)
    mean, std, n = MEANS[0].item(), STDS[0].item(), len(x)
    assert x.mean().item() == pytest.approx(mean, abs=5 * std / n**0.5 + 0.01)
    assert x.std().item() == pytest.approx(std, abs=5 * std / (2 * n) ** 0.5 + 0.01)
