"""Schedules: the papers' tables, the ends, and the spacings of times."""

import math

import pytest
import torch

from genkit.diffusion.schedules import SCHEDULES, SPACINGS, cosine, flow, karras, linear, scaled_linear, times
from genkit.errors import InputError


def grid(steps=1000):
    return (torch.arange(steps, dtype=torch.float64) + 1) / steps


def test_linear_is_the_table_of_the_paper():
    """Oracle: alpha_bar = cumprod(1 - beta), Ho et al. 2020, computed here as written."""
    bar = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    schedule = linear()
    assert torch.allclose(schedule.alpha(grid()) ** 2, bar, rtol=1e-10, atol=0)
    assert torch.allclose(schedule.sigma(grid()) ** 2, 1 - bar, rtol=1e-8, atol=0)
    assert torch.equal(schedule.embed(grid()).round(), torch.arange(1000, dtype=torch.float64))


def test_scaled_linear_is_the_table_of_the_paper():
    """Oracle: sqrt(beta) linear (Rombach et al. 2022), computed here as written."""
    beta = torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2
    assert torch.allclose(scaled_linear().alpha(grid()) ** 2, torch.cumprod(1 - beta, 0), rtol=1e-10, atol=0)


def test_cosine_is_the_formula_of_the_paper():
    """Oracle: eq. 17 of Nichol & Dhariwal 2021, where beta is not clipped."""

    def f(t):
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    bar = torch.tensor([f((i + 1) / 1000) / f(0) for i in range(900)], dtype=torch.float64)
    assert torch.allclose(cosine().alpha(grid()[:900]) ** 2, bar, rtol=1e-9, atol=0)


@pytest.mark.parametrize("name", SCHEDULES)
def test_ends_and_monotony(name):
    """Oracle: t = 0 is data, and sigma / alpha rises strictly up to t = 1 where noise rules."""
    schedule = SCHEDULES[name]()
    zero = torch.zeros((), dtype=torch.float64)
    assert schedule.alpha(zero) == 1
    assert schedule.sigma(zero) == 0
    t = grid(500)[:-1] if name == "flow" else grid(500)
    ratio = schedule.sigma(t) / schedule.alpha(t)
    assert (ratio.diff() > 0).all()
    assert ratio[-1] > 10


@pytest.mark.parametrize("name", ["linear", "cosine", "scaled-linear"])
def test_variance_preserving(name):
    """Oracle: alpha^2 + sigma^2 = 1 between the chain's steps too."""
    schedule, t = (
        SCHEDULES[name](),
        torch.rand(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
    )
    total = schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2
    assert torch.allclose(total, torch.ones_like(total), atol=1e-12)


def test_flow_is_straight():
    """Oracle: the definition."""
    assert flow().alpha(torch.tensor(0.3)).item() == pytest.approx(0.7)
    assert flow().sigma(torch.tensor(0.3)).item() == pytest.approx(0.3)


def test_karras_levels():
    """Oracle: eq. 5 of Karras et al. 2022 for N = 18, written out."""
    n, low, high, rho = 18, 0.002, 80.0, 7.0
    t = torch.linspace(1, 0, n, dtype=torch.float64)[:-1]
    wanted = [
        (high ** (1 / rho) + i / (n - 1) * (low ** (1 / rho) - high ** (1 / rho))) ** rho
        for i in range(n - 1)
    ]
    assert torch.allclose(karras().sigma(t), torch.tensor(wanted, dtype=torch.float64), rtol=1e-12)
    assert karras().prior_scale == 80


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("n", [1, 2, 10, 50, 999, 1000, 2500])
def test_times_fall_to_zero(spacing, n):
    """Oracle: n + 1 strictly falling times from at most 1 to exactly 0."""
    t = times(n, spacing)
    assert len(t) == n + 1
    assert t.dtype == torch.float64
    assert t[0] <= 1
    assert t[-1] == 0
    assert (t.diff() < 0).all()


def test_spacings_by_hand():
    """Oracle: the indices of a chain of 1000 thinned to 5 (Lin et al. 2024, tab. 2): t = (index + 1) /
    1000."""
    index = {s: [round(t * 1000) - 1 for t in times(5, s)[:-1].tolist()] for s in SPACINGS}
    assert index["trailing"] == [999, 799, 599, 399, 199]
    assert index["leading"] == [800, 600, 400, 200, 0]
    assert index["linspace"] == [999, 749, 500, 250, 0]  # torch rounds 749.25 and 499.5 to even
    assert index["quadratic"] == [800, 450, 200, 50, 0]


def test_all_steps_are_the_chain():
    """Oracle: with n = 1000 every spacing but the crowded ones visits each step once."""
    for spacing in ("trailing", "leading", "linspace"):
        assert torch.allclose(times(1000, spacing)[:-1], grid().flip(0))


def test_unknown_spacing():
    """Oracle: the closest name is offered."""
    with pytest.raises(InputError, match="did you mean 'quadratic'"):
        times(10, "quadratc")
