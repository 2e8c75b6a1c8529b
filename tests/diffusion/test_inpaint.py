"""Inpainting of a correlated Gaussian, whose conditional mean is known."""

import pytest
import torch

from genkit import noise as rng
from genkit.diffusion.denoiser import Prediction
from genkit.diffusion.inpaint import blend, diffuse, repaint, walk
from genkit.diffusion.schedules import cosine, flow, karras, linear, times

MEAN = torch.tensor([0.3, -0.2, 0.5, 0.1])
PLACE = torch.arange(4.0)
COV = 0.25 * 0.8 ** (PLACE[:, None] - PLACE).abs()
KNOWN = torch.tensor([0.9, 0.0, 0.0, -0.6])
MASK = torch.tensor([1.0, 0.0, 0.0, 1.0])
OPEN, GIVEN = [1, 2], [0, 3]
GAIN = COV[OPEN][:, GIVEN] @ torch.linalg.inv(COV[GIVEN][:, GIVEN])
CONDITIONAL = MEAN[OPEN] + GAIN @ (KNOWN - MEAN)[GIVEN]
COUNT = 4_000  # standard error of a mean: 0.27 / 63 = 0.004


def exact(schedule):
    """The exact denoiser of N(MEAN, COV), in the basis where COV is diagonal."""
    values, basis = torch.linalg.eigh(COV)

    def denoise(x, t):
        alpha, sigma = schedule.alpha(t).item(), schedule.sigma(t).item()
        gain = alpha * values / (alpha**2 * values + sigma**2)
        x0 = MEAN + ((x - alpha * MEAN) @ basis * gain) @ basis.T
        return Prediction(x0, (x - alpha * x0) / sigma)

    return denoise


def generator(seed=0):
    g = torch.Generator().manual_seed(seed)
    return lambda k: torch.randn(COUNT, 4, generator=g)


def off(schedule, method, steps=50, **options):
    """The largest distance of the mean of many samples from the conditional mean."""
    x = schedule.prior_scale * generator(1)(0)
    known = KNOWN.expand(COUNT, 4)
    *_, end = method(exact(schedule), schedule, x, known, MASK, times(steps), noise=generator(), **options)
    assert torch.equal(end.x[:, GIVEN], known[:, GIVEN])
    return (end.x[:, OPEN].mean(dim=0) - CONDITIONAL).abs().max().item()


@pytest.mark.parametrize("make", [cosine, flow, karras])
def test_repaint_finds_the_conditional_mean(make):
    """Oracle: the conditional mean of a Gaussian; within 0.03, where blending is at least 0.06 off."""
    assert off(make(), repaint) < 0.03
    assert off(make(), blend) > 0.06


def test_repaint_on_the_linear_schedule():
    """Oracle: the conditional mean, with 80 steps: this schedule has few at the levels that matter."""
    assert off(linear(), repaint, 80) < 0.03


def test_longer_jumps():
    """Oracle: the conditional mean; jumps of 5 cost as much and mix less on 50 steps."""
    assert off(flow(), repaint, jump=5) < 0.03


def test_walk_is_the_papers():
    """Oracle: the list that alg. 1 gives for 3 steps and U = 2, and the authors' for 5 steps, jumps of 2."""
    assert walk(3, 2) == [(0, 1), (0, 1), (1, 2), (1, 2), (2, 3)]
    assert walk(4, 1) == [(0, 1), (1, 2), (2, 3), (3, 4)]
    # in their count of states: 4 3 2, back to 4, 3 2 1 0, back to 2, 1 0, and the data
    assert walk(5, 2, 2) == [(0, 1), (1, 2), (0, 1), (1, 2), (2, 3), (3, 4), (2, 3), (3, 4), (4, 5)]
    with pytest.raises(ValueError, match="at least 1"):
        walk(3, 0)


def test_a_jump_has_the_law_of_its_steps():
    """Oracle: mean and variance of two single steps, alpha_t / alpha_s and the sum of their variances."""
    schedule = cosine()
    s, m, t = (torch.tensor(v, dtype=torch.float64) for v in (0.2, 0.3, 0.4))
    one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
    mean = diffuse(schedule, diffuse(schedule, one, s, m, zero), m, t, zero)
    assert torch.allclose(diffuse(schedule, one, s, t, zero), mean)
    first = diffuse(schedule, diffuse(schedule, zero, s, m, one), m, t, zero)
    second = diffuse(schedule, zero, m, t, one)
    assert torch.allclose(diffuse(schedule, zero, s, t, one) ** 2, first**2 + second**2)


def test_noise_is_used_once_and_images_stand_alone():
    """Oracle: the numbers asked of the noise are 0, 1, 2, …; an image alone is the one of the batch."""
    schedule, asked = cosine(), []

    def run(rows):
        def noise(k):
            asked.append(k)
            return rng.normal(0, rng.STEP + k, torch.tensor(rows), (4,))

        x = rng.normal(0, rng.INITIAL, torch.tensor(rows), (4,))
        *_, end = repaint(
            exact(schedule), schedule, x, KNOWN.expand(len(rows), 4), MASK, times(6), noise=noise
        )
        return end.x

    both = run([0, 1])
    assert asked == list(range(len(asked)))
    assert torch.allclose(run([1]), both[1:], atol=1e-5)
