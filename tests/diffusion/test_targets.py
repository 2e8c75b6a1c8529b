"""Targets: one linear solve inverts every parameterisation."""

import pytest
import torch

from genkit.diffusion.schedules import SCHEDULES
from genkit.diffusion.targets import TARGETS, coefficients, input_scale, solve
from genkit.errors import InputError


def pair():
    generator = torch.Generator().manual_seed(0)
    return (torch.randn(4, 3, 5, 5, generator=generator, dtype=torch.float64) for _ in range(2))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("t", [0.02, 0.3, 0.7, 0.97])
def test_solve_inverts_the_target(schedule, target, t):
    """Oracle: x0 and eps themselves, from p x0 + q eps and alpha x0 + sigma eps."""
    x0, eps = pair()
    s = SCHEDULES[schedule]()
    alpha, sigma = (f(torch.tensor(t, dtype=torch.float64)) for f in (s.alpha, s.sigma))
    p, q = coefficients(target, alpha, sigma, 0.5)
    back = solve(p * x0 + q * eps, alpha * x0 + sigma * eps, alpha, sigma, target, 0.5)
    for found, wanted in zip(back, (x0, eps)):
        assert torch.allclose(found, wanted, rtol=1e-7, atol=1e-7)


def test_edm_is_the_preconditioning_of_the_paper():
    """Oracle: D = c_skip x + c_out F with tab. 1 of Karras et al. 2022 (alpha = 1)."""
    x0, eps = pair()
    sigma, data = torch.tensor(1.7, dtype=torch.float64), 0.5
    alpha = torch.ones_like(sigma)
    x = x0 + sigma * eps
    c_skip = data**2 / (sigma**2 + data**2)
    c_out = sigma * data / (sigma**2 + data**2) ** 0.5
    p, q = coefficients("edm", alpha, sigma, data)
    assert torch.allclose(c_skip * x + c_out * (p * x0 + q * eps), x0)
    assert input_scale("edm", alpha, sigma, data).item() == pytest.approx((1.7**2 + 0.25) ** -0.5)


def test_edm_target_and_input_have_unit_variance():
    """Oracle: the two conditions from which Karras et al. derive c_in and c_out (app. B.6), for any alpha."""
    alpha, sigma, data = torch.tensor(0.6), torch.tensor(0.8), 0.3
    p, q = coefficients("edm", alpha, sigma, data)
    assert (p * data) ** 2 + q**2 == pytest.approx(1, abs=1e-6)
    scale = input_scale("edm", alpha, sigma, data)
    assert scale**2 * ((alpha * data) ** 2 + sigma**2) == pytest.approx(1, abs=1e-6)


def test_edm_of_unit_data_is_minus_v():
    """Oracle: Salimans & Ho 2022: v = alpha eps - sigma x0."""
    alpha, sigma = torch.tensor(0.6), torch.tensor(0.8)
    p, q = coefficients("edm", alpha, sigma, 1.0)
    pv, qv = coefficients("v", alpha, sigma)
    assert torch.allclose(torch.stack([p, q]), -torch.stack([pv, qv]))


def test_unknown_target():
    """Oracle: the closest name is offered."""
    with pytest.raises(InputError, match="did you mean 'eps'"):
        coefficients("esp", torch.ones(()), torch.ones(()))
