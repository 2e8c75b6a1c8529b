"""Samplers against exact denoisers: closed-form flows of Gaussians, and the papers' one-step formulas."""

import pytest
import torch

from genkit.diffusion.denoiser import Denoiser, Prediction, bind, clipped
from genkit.diffusion.inversion import invert
from genkit.diffusion.samplers import ddim, ddpm, posterior
from genkit.diffusion.schedules import cosine, karras, linear, times
from genkit.errors import InputError

MEAN, STD = 0.7, 0.4


def gaussian(schedule):
    """The exact denoiser of data ~ N(MEAN, STD^2): E[x0 | x_t]."""

    def denoise(x, t):
        alpha, sigma = schedule.alpha(t).item(), schedule.sigma(t).item()
        gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
        x0 = MEAN + gain * (x - alpha * MEAN)
        eps = (x - alpha * x0) / sigma if sigma > 0 else torch.zeros_like(x)
        return Prediction(x0, eps)

    return denoise


def last(steps):
    *_, step = steps
    return step


def exact_flow(schedule, x, t, s):
    """The probability-flow ODE's solution for Gaussian data: the standardised value stays the same."""

    def moments(u):
        alpha, sigma = schedule.alpha(u), schedule.sigma(u)
        return alpha * MEAN, (alpha**2 * STD**2 + sigma**2) ** 0.5

    (mean_t, std_t), (mean_s, std_s) = moments(t), moments(s)
    return mean_s + std_s * (x - mean_t) / std_t


@pytest.mark.parametrize("make", [linear, cosine, karras])
def test_ddim_converges_to_the_exact_flow_at_first_order(make):
    """Oracle: the closed-form ODE solution; halving the step halves the error (order 1.0 +- 0.15)."""
    schedule = make()
    x = schedule.prior_scale * torch.linspace(-2, 2, 9, dtype=torch.float64)[:, None]
    errors = []
    for n in (40, 80, 160, 320):
        path = torch.linspace(0.9, 0.1, n + 1, dtype=torch.float64)
        found = last(ddim(gaussian(schedule), schedule, x, path)).x
        errors.append((found - exact_flow(schedule, x, path[0], path[-1])).abs().max().item())
    orders = [torch.log2(torch.tensor(a / b)).item() for a, b in zip(errors, errors[1:])]
    assert orders[-1] == pytest.approx(1.0, abs=0.15)


def round_trip(steps, refine=0):
    """The largest error of inverting and sampling again."""
    schedule = cosine()
    x = torch.linspace(0.2, 1.2, 7, dtype=torch.float64)[:, None]
    path = times(steps)
    noise = last(invert(gaussian(schedule), schedule, x, path, refine=refine)).x
    return (last(ddim(gaussian(schedule), schedule, noise, path)).x - x).abs().max().item()


def test_inversion_round_trip_is_of_first_order():
    """Oracle: the image itself; four times the steps leave a quarter of the error."""
    coarse, fine = round_trip(50), round_trip(200)
    assert fine < 0.01
    assert coarse / fine == pytest.approx(4, rel=0.2)


def test_refined_inversion_is_nearly_exact():
    """Oracle: the sampler's own step undone. It converges slowly at the noisy end, so not to rounding."""
    assert round_trip(25, refine=30) < 0.01 * round_trip(25)
    assert round_trip(25, refine=3) < 0.3 * round_trip(25)


def test_posterior_is_the_one_of_the_paper():
    """Oracle: eq. 6-7 of Ho et al. 2020 with their beta, alpha_bar, at step 500 of the linear chain."""
    schedule, i = linear(), 500
    beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    bar = torch.cumprod(1 - beta, 0)
    t, s = (torch.tensor(k / 1000, dtype=torch.float64) for k in (i + 1, i))
    keep, pull, small, large = posterior(schedule, t, s)
    assert keep == pytest.approx(((1 - beta[i]).sqrt() * (1 - bar[i - 1]) / (1 - bar[i])).item(), rel=1e-8)
    assert pull == pytest.approx((bar[i - 1].sqrt() * beta[i] / (1 - bar[i])).item(), rel=1e-7)
    assert small == pytest.approx((beta[i] * (1 - bar[i - 1]) / (1 - bar[i])).item(), rel=1e-7)
    assert large == pytest.approx(beta[i].item(), rel=1e-7)


def test_ddim_eta_1_is_ddpm():
    """Oracle: Song et al. 2021, sec. 4.1: the same update when the noise is the same."""
    schedule, path = linear(), times(20)
    x = torch.randn(6, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def noise(k):
        return torch.randn(6, 4, generator=torch.Generator().manual_seed(k + 1), dtype=torch.float64)

    a = last(ddim(gaussian(schedule), schedule, x, path, eta=1.0, noise=noise)).x
    b = last(ddpm(gaussian(schedule), schedule, x, path, noise=noise)).x
    assert torch.allclose(a, b, atol=1e-9)


def test_ddpm_draws_the_data_distribution():
    """Oracle: mean and standard deviation of the data; 5 standard errors plus the bias of 500 steps."""
    schedule, n = linear(), 20_000
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, 1, generator=generator, dtype=torch.float64)

    def noise(k):
        return torch.randn(n, 1, generator=generator, dtype=torch.float64)

    x = last(ddpm(gaussian(schedule), schedule, x, times(500), noise=noise)).x
    assert x.mean().item() == pytest.approx(MEAN, abs=5 * STD / n**0.5 + 0.005)
    assert x.std().item() == pytest.approx(STD, abs=5 * STD / (2 * n) ** 0.5 + 0.005)


def test_zero_variance_is_the_mean_and_too_narrow():
    """Oracle: without noise the samples collapse towards the mean of the data."""
    schedule = linear()
    x = torch.randn(2000, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = last(ddpm(gaussian(schedule), schedule, x, times(200), variance="zero", noise=lambda k: x)).x
    assert x.std() < 0.5 * STD


def test_wrong_requests():
    """Oracle: noise must be given for eta > 0, and inversion takes none."""
    schedule, x = linear(), torch.zeros(1, 1)
    with pytest.raises(InputError, match="needs noise"):
        last(ddim(gaussian(schedule), schedule, x, times(3), eta=0.5))
    with pytest.raises(InputError, match="rising times"):
        last(ddim(gaussian(schedule), schedule, x, times(3).flip(0), eta=0.5, noise=lambda k: x))
    with pytest.raises(InputError, match="did you mean 'large'"):
        last(ddpm(gaussian(schedule), schedule, x, times(3), variance="lrge", noise=lambda k: x))


class Constant(torch.nn.Module):
    """A network that always answers with the same number."""

    def forward(self, x, level, cond=None):
        return torch.full_like(x, 3.0)


def test_clipping_keeps_x_consistent():
    """Oracle: x = alpha x0 + sigma eps holds for the clipped prediction, with x0 inside [-1, 1]."""
    schedule = linear()
    model = Denoiser(Constant(), schedule, "eps")
    x, t = (
        torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(0)),
        torch.tensor(0.6, dtype=torch.float64),
    )
    x0, eps, _ = clipped(bind(model), schedule)(x, t)
    assert x0.abs().max() <= 1
    assert torch.allclose(schedule.alpha(t).float() * x0 + schedule.sigma(t).float() * eps, x, atol=1e-5)


def test_denoiser_takes_one_time_or_one_per_image():
    """Oracle: a batch of equal times is one time."""
    model = Denoiser(Constant(), cosine(), "v")
    x = torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    one = model(x, torch.tensor(0.4))
    many = model(x, torch.full((3,), 0.4))
    assert torch.allclose(one.x0, many.x0)
    assert torch.allclose(one.eps, many.eps)
