"""The variational bound against improved-diffusion, and against densities in closed form.

The golden numbers are those of openai/improved-diffusion at commit 1bc7bbb, run in float64 (its tables
too, which it rounds to float32) on the network below, with the chains of its `space_timesteps` and this
project's noise.
"""

import math

import pytest
import torch

from genkit import noise as rng
from genkit.data.source import Batch
from genkit.diffusion.bound import (
    bits,
    discretized_log_likelihood,
    gaussian_kl,
    log_variance,
    make_chain,
    prior_bits,
    step_bits,
    terms,
)
from genkit.diffusion.denoiser import Denoiser, Prediction, bind, clipped
from genkit.diffusion.samplers import posterior
from genkit.diffusion.schedules import SCHEDULES, times
from genkit.errors import InputError
from genkit.objectives.diffusion import Bound, Diffusion
from genkit.objectives.times import Times
from genkit.train.objective import Noise

# calc_bpd_loop, clipped: total of both images; the first one's terms of steps 1, 2, 3, S / 2 + 1, S; the
# second one's error of x0 at step S / 2 + 1
LOOP = {
    ("linear", 50, "learned"): [
        23.8545471,
        18.0956506,
        2.31345426,
        16.8197074,
        2.05289212,
        0.0117073866,
        2.44787482e-05,
        0.37597387,
    ],
    ("linear", 50, "large"): [
        9.06686486,
        8.64241905,
        2.3113725,
        3.03305297,
        1.30966035,
        0.0116421246,
        2.44786404e-05,
        0.37597387,
    ],
    ("linear", 50, "small"): [
        56.0025698,
        78.317645,
        2.3113725,
        47.5051107,
        3.1711249,
        0.0117352663,
        2.44789843e-05,
        0.37597387,
    ],
    ("linear", 1000, "learned"): [
        11.2395698,
        9.89958636,
        3.60062235,
        0.9900097,
        0.369039716,
        0.000290906995,
        1.0151374e-06,
        0.609185773,
    ],
    ("cosine", 50, "learned"): [
        21.3968334,
        17.4869007,
        1.71215145,
        13.6673073,
        2.21608207,
        0.0336171063,
        0.00119749465,
        0.190751918,
    ],
    ("cosine", 50, "large"): [
        9.28656251,
        8.72431654,
        1.7092165,
        2.82925507,
        1.3273387,
        0.0334458198,
        0.00119723886,
        0.190751918,
    ],
    ("cosine", 50, "small"): [
        44.5368752,
        61.6351565,
        1.7092165,
        35.5418885,
        3.11526291,
        0.0341065938,
        0.001198062,
        0.190751918,
    ],
    ("cosine", 1000, "learned"): [
        11.3150447,
        9.95232274,
        2.87920299,
        0.942003266,
        0.345452581,
        0.0014732676,
        2.99023072e-06,
        0.395600786,
    ],
}
# training_losses of both images at these steps (from 0): hybrid loss, and its variational part
HYBRID = {
    ("linear", (0, 700)): [3.55862844, 0.00560628304, 2.41060357, 5.74113109e-05],
    ("linear", (1, 30)): [1.83988283, 0.916228433, 0.701017617, 0.0372772717],
    ("cosine", (0, 700)): [2.95715403, 0.0850489703, 1.80227981, 0.000474960497],
    ("cosine", (1, 30)): [1.81837361, 1.00999221, 0.669109679, 0.0383215663],
}
# at x0 + 0.1 and this step (from 0): the model's mean, log variance and x0; the posterior's mean and log
# variance
POSTERIOR = {
    ("linear", 0): [-0.892022132, -9.81419797, -0.892022132, -1.0, -9.81672514],
    ("linear", 1): [-0.893566092, -9.81344066, -0.888200978, -0.954529149, -9.81672514],
    ("linear", 500): [-0.896793532, -4.60004112, -0.686585106, -0.897751973, -4.60004974],
    ("cosine", 0): [-0.89486381, -10.7314192, -0.89486381, -1.0, -10.7340825],
    ("cosine", 1): [-0.896061685, -10.7309554, -0.892537981, -0.952778141, -10.7340825],
    ("cosine", 500): [-0.898150809, -5.76159095, -0.533477275, -0.900188518, -5.76162185],
}
LIKELIHOOD = [-0.536542853, -3.61946095, -1.18607505, -27.6310211, -3.76896804, -0.0586226493, -27.6310211]


def network(x, level, cond=None):
    """Something smooth of x and the level, with as many channels for the variance."""
    w = (0.9 + 0.1 * torch.cos(level / 100)).reshape(-1, 1, 1, 1)
    return torch.cat([w * x + 0.1 * torch.sin(5 * x), torch.sin(3 * x + w)], dim=1)


class Network(torch.nn.Module):
    """`network` with or without its variance."""

    def __init__(self, learned):
        super().__init__()
        self.learned = learned

    def forward(self, x, level, cond=None):
        y = network(x, level)
        return y if self.learned else y[:, :1]


def images():
    """(2, 1, 4, 4) 8-bit values with both ends."""
    x0 = (torch.arange(2 * 16) * 37 % 256).double().reshape(2, 1, 4, 4) / 127.5 - 1
    x0[0, 0, 0, 1] = 1
    return x0


def noise(k):
    return rng.normal(3, rng.STEP + k, torch.arange(2), (1, 4, 4)).double()


def model(name, learned=True):
    return Denoiser(Network(learned), SCHEDULES[name](), "eps", learn_variance=learned)


@pytest.mark.parametrize("name, steps, variance", LOOP)
def test_terms_are_those_of_improved_diffusion(name, steps, variance):
    """Oracle: LOOP. The networks answer in float32, so 1e-5; the total sums 1,000 of them."""
    denoiser = model(name, variance == "learned")
    path = times(steps, "linspace")
    chain = make_chain(denoiser.schedule, path)
    walk = terms(
        clipped(bind(denoiser), denoiser.schedule),
        denoiser.schedule,
        chain,
        images(),
        variance=variance,
        noise=noise,
    )
    found = {term.step: term for term in walk}
    total = prior_bits(denoiser.schedule, path[0], images()) + sum(t.bits for t in found.values())
    picked = [found[i].bits[0].item() for i in (0, 1, 2, steps // 2, steps - 1)]
    made = [*total.tolist(), *picked, found[steps // 2].error[1].item()]
    assert made == pytest.approx(LOOP[name, steps, variance], rel=1e-5)


@pytest.mark.parametrize("name, places", HYBRID)
def test_hybrid_loss_is_that_of_improved_diffusion(name, places):
    """Oracle: HYBRID; fp32 network, 1e-5."""
    denoiser, seen = model(name), []
    objective = Diffusion(
        denoiser, Times(denoiser.schedule, "uniform", 0, 1), bound=Bound(denoiser.schedule, weight=0.001)
    )
    objective.bound.steps.forward = lambda u: (torch.tensor(places), torch.ones(2))
    objective.bound.steps.note = lambda step, loss: seen.append(loss)
    loss = objective.loss("main", Batch(images()), Noise(3, torch.arange(2)))
    golden = HYBRID[name, places]
    assert seen[0].tolist() == pytest.approx(golden[:2], rel=1e-5)
    assert loss.total.item() == pytest.approx(sum(golden[:2]) / 2, rel=1e-5)
    assert loss.logs["vlb"].item() / 1000 == pytest.approx(sum(golden[2:]) / 2, rel=1e-5)


@pytest.mark.parametrize("name, step", POSTERIOR)
def test_posterior_and_model_are_those_of_improved_diffusion(name, step):
    """Oracle: POSTERIOR; fp32 network, 1e-5."""
    denoiser, x0 = model(name), images()
    chain, x, t = make_chain(denoiser.schedule, times(1000)), images() + 0.1, torch.tensor((step + 1) / 1000)
    keep, pull, _, _ = posterior(denoiser.schedule, t.double(), torch.tensor(step / 1000).double())
    predicted, _, share = denoiser(x, torch.tensor((step + 1) / 1000, dtype=torch.float64))
    log_var = log_variance(chain, torch.tensor(step), "learned", share)
    mean, true = keep * x + pull * predicted, keep * x + pull * x0
    made = [v.flatten()[0].item() for v in (mean, log_var, predicted, true)]
    assert [*made, chain.log_small[step].item()] == pytest.approx(POSTERIOR[name, step], rel=1e-5)


def test_likelihood_is_that_of_improved_diffusion():
    """Oracle: LIKELIHOOD, both ends, the inside, and bins beyond 1e-12."""
    x = torch.tensor([-1, -1, 0.0, 0.0, 0.5, 1, 1], dtype=torch.float64)
    x = (x * 127.5 + 127.5).round() / 127.5 - 1
    mean = torch.tensor([-1, -0.9, 0.01, 0.3, 0.49, 1, 0.2], dtype=torch.float64)
    log_std = torch.tensor([-4.0, -3, -5, -4, -2, -6, -4], dtype=torch.float64)
    found = discretized_log_likelihood(x, mean, 2 * log_std)
    assert found.tolist() == pytest.approx(LIKELIHOOD, rel=1e-8)
    single = discretized_log_likelihood(x.float(), mean.float(), 2 * log_std.float())
    assert single.tolist() == pytest.approx(LIKELIHOOD, rel=1e-4)


@pytest.mark.parametrize("log_std", [-6.0, -3.0, 0.0, 1.0])
def test_bins_are_a_distribution(log_std):
    """Oracle: the 256 probabilities sum to 1 but for the 1e-12 that every bin has at least."""
    x = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    for mean in (-1.2, -0.3, 0.9):
        value = discretized_log_likelihood(x, torch.full_like(x, mean), torch.full_like(x, 2 * log_std))
        assert value.exp().sum().item() == pytest.approx(1, abs=1e-9)


def test_divergence_of_gaussians():
    """Oracle: torch.distributions."""
    g = torch.Generator().manual_seed(0)
    a, b, c, d = torch.randn(4, 50, generator=g, dtype=torch.float64)
    p, q = (torch.distributions.Normal(m, (0.5 * v).exp()) for m, v in ((a, b), (c, d)))
    assert torch.allclose(gaussian_kl(a, b, c, d), torch.distributions.kl_divergence(p, q), rtol=1e-12)


SPREAD = 0.6  # of the Gaussian data below


def exact(schedule, chain):
    """The denoiser of independent N(0, SPREAD^2) values: mean and variance of the reverse process exactly."""

    def denoise(x, t):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        total = (alpha * SPREAD) ** 2 + sigma**2
        step = int((chain.times == t).nonzero())
        rest = (SPREAD * sigma) ** 2 / total  # of x0 given x_t
        s = chain.times[step - 1] if step else torch.zeros_like(t)
        true = posterior(schedule, t, s)[2] + chain.pull[step] ** 2 * rest
        low, high = chain.log_small[step], chain.log_large[step]
        share = (true.log() - low) / (high - low)
        return Prediction(alpha * SPREAD**2 / total * x, x, share.expand_as(x))

    return denoise


@pytest.mark.parametrize("name", ["linear", "cosine", "flow", "karras"])
@pytest.mark.parametrize("steps", [3, 20])
def test_bound_of_gaussian_data_is_their_density(name, steps):
    """Oracle: -log N(x0; 0, SPREAD^2) in bits/dim. With the exact reverse process the bound has no gap but
    that of L_T's prior (below 1e-4 bits: alpha(1)^2 <= 4e-5 and 1 / 80^2); 5 standard errors of the noise."""
    schedule = SCHEDULES[name]()
    path = times(steps)
    chain = make_chain(schedule, path)
    n = 200
    x0 = SPREAD * rng.normal(0, rng.INITIAL, torch.arange(n), (1, 16, 16)).double()
    walk = terms(
        exact(schedule, chain),
        schedule,
        chain,
        x0,
        variance="learned",
        noise=lambda k: rng.normal(0, rng.STEP + k, torch.arange(n), (1, 16, 16)).double(),
        discrete=False,
    )
    total = prior_bits(schedule, path[0], x0) + sum(t.bits for t in walk)
    density = bits(0.5 * math.log(2 * math.pi * SPREAD**2) + 0.5 * (x0 / SPREAD) ** 2)
    gap = total - density
    assert gap.mean().item() == pytest.approx(0, abs=5 * gap.std().item() / n**0.5 + 1e-4)


def test_fixed_variances_approach_the_density_with_more_steps():
    """Oracle: Ho et al. 2020, sec. 3.2: both variances are right in the limit, so what L_{t-1} adds to the
    exact variance's falls as 1 / steps. Without L_0, whose variance stays fixed."""
    schedule = SCHEDULES["flow"]()
    gaps = []
    for steps in (50, 200):
        chain = make_chain(schedule, times(steps))
        x0 = SPREAD * rng.normal(0, rng.INITIAL, torch.arange(20), (1, 8, 8)).double()
        sums = []
        for variance in ("learned", "large"):
            walk = terms(
                exact(schedule, chain),
                schedule,
                chain,
                x0,
                variance=variance,
                noise=lambda k: rng.normal(0, rng.STEP + k, torch.arange(20), (1, 8, 8)).double(),
                discrete=False,
            )
            # from t = 0.1 on: the steps next to the data are never small beside their noise
            sums.append(sum(t.bits.mean().item() for t in walk if t.step >= steps // 10))
        gaps.append(sums[1] - sums[0])
    assert gaps[1] > 0
    assert gaps[0] / gaps[1] == pytest.approx(4, rel=0.25)


def test_mixed_steps_are_the_single_ones():
    """Oracle: each example alone, which takes the other branch of the code."""
    schedule, x0 = SCHEDULES["cosine"](), images()
    chain = make_chain(schedule, times(100))
    guess, log_var = x0 * 0.9, torch.tensor([-8.0, -5.0], dtype=torch.float64)
    mixed = step_bits(chain, torch.tensor([0, 40]), x0, guess, log_var)
    alone = [
        step_bits(chain, torch.tensor(step), x0[i : i + 1], guess[i : i + 1], log_var[i])
        for i, step in enumerate((0, 40))
    ]
    assert torch.allclose(mixed, torch.cat(alone), rtol=1e-12)


def test_prior_of_unit_and_wide_schedules():
    """Oracle: by hand. A chain that starts at noise of the sampler's own spread leaves alpha x0 alone."""
    x0 = images()
    mean_square = x0.square().flatten(1).mean(dim=1)
    one = torch.ones((), dtype=torch.float64)
    assert torch.allclose(prior_bits(SCHEDULES["flow"](), one, x0), torch.zeros(2).double(), atol=1e-15)
    wide = prior_bits(SCHEDULES["karras"](), one, x0)
    assert torch.allclose(wide, 0.5 * mean_square / 80**2 / math.log(2), rtol=1e-9)


def test_what_has_no_bound():
    """Oracle: one line each."""
    schedule = SCHEDULES["cosine"]()
    with pytest.raises(InputError, match="at least 2 steps"):
        make_chain(schedule, times(1))
    chain = make_chain(schedule, times(10))
    with pytest.raises(InputError, match="no learned variance"):
        log_variance(chain, torch.tensor(3), "learned", None)
    with pytest.raises(InputError, match="did you mean 'small'"):
        log_variance(chain, torch.tensor(3), "smal", None)
    assert log_variance(chain, torch.tensor(0), "large", None) == chain.log_small[0]
