"""DDPM and DDIM against improved-diffusion (Nichol & Dhariwal 2021): its formulas in terms of beta, written
out here, and golden numbers of its program at commit 1bc7bbb (float64)."""

import math
from functools import cache

import pytest
import torch
from diffusion_networks import WIDTH, Smooth, relative, start, step_noise

from genkit.diffusion.denoiser import Prediction
from genkit.diffusion.samplers import ddim, ddpm, log_variances, posterior
from genkit.diffusion.schedules import cosine, linear, times
from genkit.diffusion.targets import solve
from genkit.errors import InputError

NETWORK = Smooth(2 * WIDTH, torch.float64)
GOLDEN = {
    ("linear", "small"): [-0.991179035, -0.594253381, -0.335930085, 1.37244999],
    ("linear", "large"): [-1.05272725, -0.52480675, -0.39866634, 1.43827436],
    ("linear", "learned"): [-1.00051924, -0.584565647, -0.340082974, 1.43529745],
    ("linear", "reverse"): [-1.12500886, 0.374737934, -1.12321891, 1.07422209],
    ("cosine", "small"): [-1.02438147, -0.544950717, -0.446477648, 1.42294996],
    ("cosine", "large"): [-1.05825222, -0.506880484, -0.483560114, 1.4591886],
    ("cosine", "learned"): [-1.03090059, -0.537570837, -0.45063929, 1.45886164],
    ("cosine", "reverse"): [-1.0494909, 0.709075511, -1.24946751, 0.978668743],
}


@cache
def betas(name):
    """The chain's 1000 betas as its authors define them."""
    if name == "linear":
        return torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    bar = [math.cos((i / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(1001)]
    return torch.tensor([min(1 - b / a, 0.999) for a, b in zip(bar, bar[1:])], dtype=torch.float64)


SCHEDULES = {"linear": linear(), "cosine": cosine()}


def answer(name, x, index):
    """(eps, raw variance) of the network at an index of the original chain.

    eps is built from a bounded v, so that x stays of unit size and every coefficient shows.
    """
    y, raw = NETWORK(x, index).chunk(2, dim=1)
    bar = torch.cumprod(1 - betas(name), 0)[int(index.round())]
    return bar.sqrt() * y + (1 - bar).sqrt() * x, raw


def denoise_with(name):
    """genkit's reading of the network."""
    schedule = SCHEDULES[name]

    def denoise(x, t):
        eps, raw = answer(name, x, schedule.embed(t))
        return Prediction(*solve(eps, x, schedule.alpha(t), schedule.sigma(t), "eps"), 0.5 * (raw + 1))

    return denoise


def noise(k):
    return step_noise(k, torch.float64)


def last(steps):
    *_, step = steps
    return step.x


def respaced(name, kept):
    """(beta, alpha_bar, the previous alpha_bar) of the chain of the `kept` indices, as sec. 4 makes them."""
    bar = torch.cumprod(1 - betas(name), 0)[kept]
    before = torch.cat([torch.ones(1, dtype=torch.float64), bar[:-1]])
    return 1 - bar / before, bar, before


def chain_of(kept):
    """The times of rising indices."""
    falling = (torch.tensor(kept, dtype=torch.float64).flip(0) + 1) / 1000
    return torch.cat([falling, torch.zeros(1, dtype=torch.float64)])


def ancestral(name, kept, variance):
    """x_0 by the respaced chain's own posterior (Ho et al. 2020, eq. 7; Nichol & Dhariwal 2021, eq. 15)."""
    beta, bar, before = respaced(name, kept)
    small = beta * (1 - before) / (1 - bar)
    clipped = torch.cat([small[1:2], small[1:]])
    x = start(torch.float64)
    for k, i in enumerate(reversed(range(len(kept)))):
        eps, raw = answer(name, x, torch.tensor(float(kept[i])))
        x0 = x / bar[i].sqrt() - (1 / bar[i] - 1).sqrt() * eps
        x = (
            beta[i] * before[i].sqrt() / (1 - bar[i]) * x0
            + (1 - before[i]) * (1 - beta[i]).sqrt() / (1 - bar[i]) * x
        )
        share = (raw + 1) / 2
        log = {
            "small": clipped[i].log(),
            "large": beta[i].log(),
            "learned": share * beta[i].log() + (1 - share) * clipped[i].log(),
        }[variance]
        x = x + (i > 0) * (0.5 * log).exp() * noise(k)
    return x


KEPT = {10: list(range(0, 1000, 111)), 50: [round(i * 999 / 49) for i in range(50)], 1000: list(range(1000))}


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize(
    "n, variance", [*((n, v) for n in (10, 50) for v in ("small", "large", "learned")), (1000, "learned")]
)
def test_ancestral_sampling(n, variance, name):
    """Oracle: the formulas in beta on the respaced chain, float64; the bound is the cancellation in their
    1 - alpha_bar, which the division by alpha (5e-5 for cosine) magnifies."""
    schedule = SCHEDULES[name]
    path = chain_of(KEPT[n])
    found = last(
        ddpm(denoise_with(name), schedule, start(torch.float64), path, variance=variance, noise=noise)
    )
    assert relative(found, ancestral(name, KEPT[n], variance)) < 1e-7


@pytest.mark.parametrize("name", SCHEDULES)
def test_posterior_and_learned_variance_of_every_step(name):
    """Oracle: the clipped log variances, log beta and both posterior coefficients of all 1000 steps."""
    beta, bar, before = respaced(name, list(range(1000)))
    small = beta * (1 - before) / (1 - bar)
    low = torch.cat([small[1:2], small[1:]]).log()
    path = times(1000)
    rows = []
    for k, (t, s) in enumerate(zip(path[:-1], path[1:])):
        keep, pull, _, _ = posterior(SCHEDULES[name], t, s)
        rows.append([keep, pull, *log_variances(SCHEDULES[name], t, s, path[k - 1] if k else None)])
    found = torch.tensor(rows, dtype=torch.float64).flip(0).T
    wanted = torch.stack(
        [
            (1 - before) * (1 - beta).sqrt() / (1 - bar),
            beta * before.sqrt() / (1 - bar),
            low,
            beta.log(),
        ]
    )
    assert torch.allclose(found, wanted, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("name", SCHEDULES)
def test_reverse_ddim(name):
    """Oracle: the reverse ODE, x_{i+1} = sqrt(bar_{i+1}) x0 + sqrt(1 - bar_{i+1}) eps(x_i, i)."""
    bar = torch.cumprod(1 - betas(name), 0)
    x = 0.3 * start(torch.float64)
    for i in range(0, 990, 10):
        eps, _ = answer(name, x, torch.tensor(float(i)))
        x0 = x / bar[i].sqrt() - (1 / bar[i] - 1).sqrt() * eps
        x = bar[i + 10].sqrt() * x0 + (1 - bar[i + 10]).sqrt() * eps
    rising = (torch.arange(0, 1000, 10, dtype=torch.float64) + 1) / 1000
    schedule = SCHEDULES[name]
    found = last(ddim(denoise_with(name), schedule, 0.3 * start(torch.float64), rising))
    assert relative(found, x) < 1e-8


def strided(count):
    """The indices that their `space_timesteps` keeps of 1000 in one section of `count`, computed exactly."""
    return [round(i * 999 / (count - 1)) for i in range(count)]


@pytest.mark.parametrize("n", [2, 10, 25, 50, 100, 250, 500, 1000])
def test_linspace_is_their_respacing(n):
    """Oracle: rounded even strides from the first to the last index. (Their program adds up the stride,
    so a few counts differ by one index where the exact place is a half.)"""
    assert torch.equal(times(n, "linspace"), chain_of(strided(n)))


@pytest.mark.parametrize("case, wanted", GOLDEN.items(), ids=str)
def test_golden(case, wanted):
    """Oracle: the authors' program: `p_sample` with each variance, and `ddim_reverse_sample` 30 times from
    the first index of the chain of 50."""
    name, kind = case
    schedule, denoise = SCHEDULES[name], denoise_with(name)
    if kind == "reverse":
        rising = chain_of(KEPT[50]).flip(0)[1:32]
        found = last(ddim(denoise, schedule, start(torch.float64), rising))
    else:
        path = chain_of(KEPT[50])
        found = last(ddpm(denoise, schedule, start(torch.float64), path, variance=kind, noise=noise))
    assert found[0, :4].tolist() == pytest.approx(wanted, rel=1e-6)


def test_no_learned_variance():
    """Oracle: the line that says what to do instead."""

    def plain(x, t):
        return Prediction(x, x)

    with pytest.raises(InputError, match="no learned variance; use --variance small, or train with"):
        last(ddpm(plain, linear(), start(), times(3), variance="learned", noise=step_noise))
