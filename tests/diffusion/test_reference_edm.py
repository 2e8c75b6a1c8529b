"""Euler and Heun against algorithm 2 of Karras et al. 2022, written out here as the paper prints it.

Golden numbers: `edm_sampler` of NVlabs/edm, commit 008a4e5, float64, run on the same function.
"""

import math

import pytest
import torch
from diffusion_networks import Smooth, relative, start, step_noise, waves

from genkit.diffusion.denoiser import Prediction
from genkit.diffusion.edm import euler, heun
from genkit.diffusion.samplers import ddim
from genkit.diffusion.schedules import Schedule, cosine, flow, karras, karras_times, linear, times
from genkit.errors import InputError

NETWORK = Smooth(dtype=torch.float64)
# steps, S_churn, S_min, S_max, S_noise
SETTINGS = [(18, 0, 0, math.inf, 1), (18, 40, 0.05, 50, 1.003), (32, 80, 0, math.inf, 1.007)]
GOLDEN = [
    (SETTINGS[0], [-0.595593377, 0.777143657, -0.53478627, 0.08902263]),
    (SETTINGS[1], [-0.586792898, 0.781410328, -0.535185916, 0.056832322]),
    (SETTINGS[2], [-0.612037801, 0.769497953, -0.534781463, 0.127035608]),
]


def clean(x, sigma):
    """A smooth D(x; sigma)."""
    return NETWORK(x / (1 + sigma**2) ** 0.5, 1000 + 250 * sigma.log())


def denoise(x, t):
    sigma = karras().sigma(t)
    x0 = clean(x, sigma)
    return Prediction(x0, (x - x0) / sigma)


def noise(k):
    return step_noise(k, torch.float64)


def algorithm_2(x, sigmas, churn, low, high, scale, second=True):
    """The paper's listing: sigma(t) = t, s(t) = 1; x is at sigmas[0], and the last of sigmas is 0."""
    count = len(sigmas) - 1
    for i in range(count):
        now, after = sigmas[i], sigmas[i + 1]
        gamma = min(churn / count, 2**0.5 - 1) if low <= now <= high else 0.0
        hat = now * (1 + gamma)
        x_hat = x + (hat**2 - now**2) ** 0.5 * scale * noise(i)
        slope = (x_hat - clean(x_hat, hat)) / hat
        x = x_hat + (after - hat) * slope
        if after != 0 and second:
            x = x_hat + (after - hat) * 0.5 * (slope + (x - clean(x, after)) / after)
    return x


def last(steps):
    *_, step = steps
    return step.x


def options(settings):
    _, churn, low, high, scale = settings
    return {"churn": churn, "churn_min": low, "churn_max": high, "churn_noise": scale, "noise": noise}


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("sampler", [euler, heun])
def test_algorithm_2(sampler, settings):
    """Oracle: the listing in float64; the bound is rounding (levels go through t and back)."""
    path = karras_times(settings[0], karras())
    x = 80 * start(torch.float64)
    ramp = torch.arange(settings[0], dtype=torch.float64) / (settings[0] - 1)
    sigmas = (80 ** (1 / 7) + ramp * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    sigmas = torch.cat([sigmas, torch.zeros(1, dtype=torch.float64)])
    wanted = algorithm_2(x, sigmas, *settings[1:], second=sampler is heun)
    found = last(sampler(denoise, karras(), x, path, **options(settings)))
    assert relative(found, wanted) < 1e-9


@pytest.mark.parametrize("settings, wanted", GOLDEN)
def test_golden(settings, wanted):
    """Oracle: the authors' program."""
    path = karras_times(settings[0], karras())
    found = last(heun(denoise, karras(), 80 * start(torch.float64), path, **options(settings)))
    assert found[0, :4].tolist() == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize("schedule", [linear(), cosine(), flow()], ids=["linear", "cosine", "flow"])
@pytest.mark.parametrize("churn", [0.0, 6.0])
def test_any_schedule_walks_the_same_levels(schedule, churn):
    """Oracle: algorithm 2 on x / alpha and sigma / alpha, below the level where genkit leaves that form."""
    path = karras_times(12, schedule)
    alpha, sigma = schedule.alpha(path), schedule.sigma(path)

    def scaled(x, t):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        x0 = clean(x / alpha, sigma / alpha)
        return Prediction(x0, (x - alpha * x0) / sigma)

    x = waves(4, 8, 3.0) * sigma[0]
    # linear's own top level is above 80, so its churn is not cut short here
    settings = (churn, 0.01, 50.0, 1.0)
    wanted = algorithm_2(x / alpha[0], sigma / alpha, *settings)
    found = last(heun(scaled, schedule, x, path, **options((12, *settings))))
    assert relative(found, wanted) < 1e-9


def test_euler_is_ddim():
    """Oracle: DDIM with eta 0, falling and rising."""
    for path in (karras_times(9, karras()), times(9).flip(0)[1:]):
        x = start(torch.float64)
        a, b = (last(sampler(denoise, karras(), x, path)) for sampler in (euler, ddim))
        assert torch.equal(a, b)


@pytest.mark.parametrize("schedule", [flow(), cosine()], ids=["flow", "cosine"])
def test_pure_noise_is_an_ordinary_start(schedule):
    """Oracle: data that is one point c: x0 = c everywhere, so every path ends there, from alpha = 0 too."""

    def point(x, t):
        x0 = torch.full_like(x, 0.3)
        return Prediction(x0, (x - schedule.alpha(t) * x0) / schedule.sigma(t))

    x = start(torch.float64)
    found = last(heun(point, schedule, x, times(8), churn=4.0, noise=noise))
    assert torch.allclose(found, torch.full_like(x, 0.3), atol=1e-12)


def test_the_form_for_steep_levels_is_the_better_one_there():
    """Oracle: the exact flow of Gaussian data in two long steps from just below and just above the switch at
    200: the paper's form errs by 0.13, the other by less than 0.02."""
    schedule: Schedule = flow()

    def gaussian(x, t):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        x0 = alpha * x / (alpha**2 + sigma**2)
        return Prediction(x0, (x - alpha * x0) / sigma)

    def error(ratio):
        top = schedule.time_of(torch.tensor(ratio, dtype=torch.float64))
        path = torch.stack([top, top.new_tensor(0.9), top.new_tensor(0.8)])
        norm = (schedule.alpha(path) ** 2 + schedule.sigma(path) ** 2).sqrt()
        x = start(torch.float64)
        return relative(last(heun(gaussian, schedule, x, path)), x * norm[-1] / norm[0])

    assert error(199.0) == pytest.approx(0.13, abs=0.01)
    assert error(201.0) < 0.02


def test_churn_ends_with_the_schedule():
    """Oracle: a chain has no level above its noisiest one, so churn there changes nothing."""
    schedule, path = linear(), times(10)[:2]
    x = start(torch.float64)
    still = last(euler(denoise, schedule, x, path))
    assert torch.equal(last(euler(denoise, schedule, x, path, churn=1.0, noise=noise)), still)


def test_wrong_requests():
    """Oracle: churn needs noise and falling times, said before any step."""
    x, path = torch.zeros(1, 8), times(3)
    with pytest.raises(InputError, match="churn > 0 needs noise"):
        heun(denoise, linear(), x, path, churn=1.0)
    with pytest.raises(InputError, match="rising times"):
        euler(denoise, linear(), x, path.flip(0), churn=1.0, noise=noise)
