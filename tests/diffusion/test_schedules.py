"""Schedules: the papers' tables, the ends, and the spacings of times."""

import math

import pytest
import torch

from genkit.diffusion.schedules import (
    SCHEDULES,
    SPACINGS,
    cosine,
    flow,
    karras,
    karras_times,
    linear,
    scaled_linear,
    times,
)
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


@pytest.mark.parametrize("name", SCHEDULES)
def test_time_of_inverts(name):
    """Oracle: t itself, on the chain's steps and between them."""
    schedule = SCHEDULES[name]()
    t = torch.cat([grid(), torch.linspace(0.0013, 0.9991, 777, dtype=torch.float64)])
    ratio = schedule.sigma(t) / schedule.alpha(t)
    assert torch.allclose(schedule.time_of(ratio), t, rtol=1e-9, atol=0)


def test_time_of_keeps_to_the_levels_that_are_known():
    """Oracle: a chain ends at its first and last step; flow reaches alpha = 0; karras has levels beyond
    t = 1 (EDM's churn goes there) and sigma_min just above 0."""
    ratios = torch.tensor([1e-5, 1e9, math.inf], dtype=torch.float64)
    for name in ("linear", "cosine", "scaled-linear"):
        assert SCHEDULES[name]().time_of(ratios).tolist() == pytest.approx([0.001, 1, 1], abs=1e-15)
    assert flow().time_of(ratios).tolist() == pytest.approx([1e-5, 1, 1], rel=1e-4)
    schedule = karras()
    t = schedule.time_of(torch.tensor([100.0, 0.002, 0.001], dtype=torch.float64))
    assert t[0] > 1
    assert schedule.sigma(t).tolist() == pytest.approx([100, 0.002, 0.002])


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("n", [1, 2, 3, 7, 10, 30, 50, 600, 999, 1000, 1500])
def test_times_fall_to_zero(spacing, n):
    """Oracle: n + 1 strictly falling times from at most 1 to exactly 0."""
    for name in SCHEDULES if spacing == "karras" else ["linear"]:
        t = times(n, spacing, schedule=SCHEDULES[name]())
        assert len(t) == n + 1
        assert t.dtype == torch.float64
        assert t[0] <= 1
        assert t[-1] == 0
        assert (t.diff() < 0).all()


def indices(n, spacing):
    """The chain's steps that are visited."""
    return [round(t * 1000) - 1 for t in times(n, spacing)[:-1].tolist()]


def test_spacings_by_hand():
    """Oracle: the indices of a chain of 1000 thinned to 5 (Lin et al. 2024, tab. 2): t = (index + 1) /
    1000."""
    assert indices(5, "trailing") == [999, 799, 599, 399, 199]
    assert indices(5, "leading") == [800, 600, 400, 200, 0]
    assert indices(5, "linspace") == [999, 749, 500, 250, 0]  # 499.5 is rounded to even
    assert indices(5, "quadratic") == [800, 450, 200, 50, 0]


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
@pytest.mark.parametrize("n", [2, 7, 10, 30, 50, 600, 1000])
def test_indices_are_those_of_diffusers(spacing, n):
    """Oracle: the indices of diffusers 0.42's DDIMScheduler and DDPMScheduler, by their formulas in numpy.

    Measured for all n up to 1000, trailing differs only where an exact half is rounded (first at 48), and
    where their arange is one entry too long (first at 61).
    """
    numpy = pytest.importorskip("numpy")
    wanted = {
        "trailing": numpy.round(numpy.arange(1000, 0, -1000 / n)) - 1,
        "leading": numpy.arange(n)[::-1] * (1000 // n),
        "linspace": numpy.linspace(0, 999, n).round()[::-1],
    }[spacing]
    assert indices(n, spacing) == wanted.tolist()


@pytest.mark.parametrize("n", [2, 10, 20, 29, 50, 100, 1000])
def test_quadratic_is_the_ddim_papers(n):
    """Oracle: int(linspace(0, sqrt(0.8 T), n)^2) of the authors' program; from n = 30 on it repeats its
    lowest indices, which genkit moves up to the next free one, leaving the others."""
    root = torch.linspace(0, 800**0.5, n, dtype=torch.float64)
    wanted = [int(v + 1e-9) for v in (root**2).tolist()]
    found = indices(n, "quadratic")[::-1]
    if n < 30:
        assert found == wanted
    assert len(set(found)) == n
    assert all(a == b or a <= i for i, (a, b) in enumerate(zip(wanted, found)))
    assert found[-1] == (800 if n < 1000 else 999)


def test_a_single_step_starts_at_the_noisy_end():
    """Oracle: one step from (nearly) pure noise to the data, where numpy's linspace would give index 0."""
    assert indices(1, "trailing") == indices(1, "linspace") == [999]
    assert indices(1, "quadratic") == [800]


@pytest.mark.parametrize("name", SCHEDULES)
def test_karras_spacing(name):
    """Oracle: eq. 5 of Karras et al. 2022 between 80 and 0.002, or the ends of the schedule's chain."""
    schedule, n = SCHEDULES[name](), 18
    t = times(n, "karras", schedule=schedule)[:-1]
    levels = schedule.sigma(grid()) / schedule.alpha(grid())
    low = 0.002 if name in ("flow", "karras") else levels[0].item()
    high = min(80.0, levels[-1].item())
    place = torch.arange(n, dtype=torch.float64) / (n - 1)
    wanted = (high ** (1 / 7) + place * (low ** (1 / 7) - high ** (1 / 7))) ** 7
    assert torch.allclose(schedule.sigma(t) / schedule.alpha(t), wanted, rtol=1e-9, atol=0)
    assert torch.equal(karras_times(n, schedule)[:-1], t)


def test_karras_spacing_needs_a_schedule():
    """Oracle: one line that says so."""
    with pytest.raises(InputError, match="needs the model's schedule"):
        times(10, "karras")


def test_all_steps_are_the_chain():
    """Oracle: with n = 1000 every spacing but the crowded ones visits each step once."""
    for spacing in ("trailing", "leading", "linspace"):
        assert torch.allclose(times(1000, spacing)[:-1], grid().flip(0))


def test_unknown_spacing():
    """Oracle: the closest name is offered."""
    with pytest.raises(InputError, match="did you mean 'quadratic'"):
        times(10, "quadratc")
