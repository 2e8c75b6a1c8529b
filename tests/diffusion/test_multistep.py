"""DPM-Solver++ where the general formulas have their corners; exactness and order are tested elsewhere."""

import pytest
import torch

from genkit.diffusion.denoiser import Prediction
from genkit.diffusion.multistep import dpmpp
from genkit.diffusion.samplers import ddim
from genkit.diffusion.schedules import cosine, flow, karras, linear, times
from genkit.errors import InputError

SCHEDULES = {"linear": linear(), "cosine": cosine(), "flow": flow(), "karras": karras()}


def curved(schedule):
    """A denoiser that is no Gaussian's."""

    def denoise(x, t):
        t = t.clamp(min=1e-3)
        x0 = torch.tanh(x + torch.sin(9 * t))
        return Prediction(x0, (x - schedule.alpha(t) * x0) / schedule.sigma(t))

    return denoise


def normal(seed):
    return torch.randn(5, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def last(steps):
    *_, step = steps
    return step.x


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("sde", [False, True])
def test_without_a_past_it_is_ddim(name, n, sde):
    """Oracle: DDIM with eta 0, or 1 for the SDE: the first step, and the last one, which ends at t = 0.
    1e-9: DDIM's sigma^2 - spread^2 cancels where alpha is nearly 0."""
    schedule, x = SCHEDULES[name], normal(0)
    denoise = curved(schedule)
    first, final = times(max(n, 2))[:2], times(1)
    for path in (first, final):
        a = last(dpmpp(denoise, schedule, x, path, sde=sde, noise=normal))
        b = last(ddim(denoise, schedule, x, path, eta=float(sde), noise=normal))
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", SCHEDULES)
def test_second_step_is_the_papers(name):
    """Oracle: alg. 2 of Lu et al. 2022 as printed, with lambda, h and r, at times away from the ends."""
    schedule, x = SCHEDULES[name], normal(0)
    denoise = curved(schedule)
    path = torch.tensor([0.8, 0.6, 0.3], dtype=torch.float64)
    alpha, sigma = schedule.alpha(path), schedule.sigma(path)
    level = (alpha / sigma).log()
    h1, h2 = level.diff()
    x0 = denoise(x, path[0]).x0
    middle = sigma[1] / sigma[0] * x - alpha[1] * torch.expm1(-h1) * x0
    past = 1 / (2 * (h1 / h2))
    mixed = (1 + past) * denoise(middle, path[1]).x0 - past * x0
    wanted = sigma[2] / sigma[1] * middle - alpha[2] * torch.expm1(-h2) * mixed
    assert torch.allclose(last(dpmpp(denoise, schedule, x, path)), wanted, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", SCHEDULES)
def test_rising_times_are_inversion(name):
    """Oracle: sampling again, of Gaussian data, from t = 0 to 0.9 and back; t = 1 is reached too."""
    schedule, x = SCHEDULES[name], 0.5 * normal(0)

    def gaussian(x, t):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        scale = 0.25 * alpha**2 + sigma**2
        return Prediction(0.25 * alpha / scale * x, sigma / scale * x)

    path = torch.linspace(0.9, 0, 401, dtype=torch.float64)
    noise = last(dpmpp(gaussian, schedule, x, path.flip(0)))
    assert (last(dpmpp(gaussian, schedule, noise, path)) - x).abs().max() < 0.01
    assert last(dpmpp(gaussian, schedule, x, times(9).flip(0))).isfinite().all()


def test_wrong_requests():
    """Oracle: the SDE needs noise and falling times."""
    with pytest.raises(InputError, match="sde needs noise"):
        last(dpmpp(curved(linear()), linear(), normal(0), times(3), sde=True))
    with pytest.raises(InputError, match="rising times"):
        last(dpmpp(curved(linear()), linear(), normal(0), times(3).flip(0), sde=True, noise=normal))
