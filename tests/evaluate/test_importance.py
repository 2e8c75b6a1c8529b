"""The importance-weighted bound against a linear-Gaussian model, whose likelihood is known."""

import math

import pytest
import torch
from torch.distributions import MultivariateNormal, Normal, kl_divergence

from genkit.data.source import Batch, Info
from genkit.errors import RunError
from genkit.evaluate.importance import Posterior, importance_bound, log_weights

SIGMA = 0.5
W = torch.tensor([[1.0, 0.5], [1.0, -0.5], [0.5, 1.0], [0.5, -1.0]])  # columns are orthogonal
BIAS = torch.tensor([0.1, 0.2, 0.3, 0.4])


class Images:
    """40 images of 1 x 2 x 2 drawn from x = W z + b + sigma e, z ~ N(0, I)."""

    info = Info("linear", "images", (1, 2, 2), 40)
    labels = None

    def __init__(self):
        g = torch.Generator().manual_seed(0)
        z, e = torch.randn(40, 2, generator=g), torch.randn(40, 4, generator=g)
        self.x = z @ W.T + BIAS + SIGMA * e

    def __len__(self):
        return 40

    def batches(self, indices, device):
        return (Batch(self.x[i].reshape(-1, 1, 2, 2)) for i in indices)


def exact_nats(x):
    """-log N(x; b, W W^T + sigma^2 I) of x (B, 4)."""
    return -MultivariateNormal(BIAS, W @ W.T + SIGMA**2 * torch.eye(4)).log_prob(x)


def posterior(x, widen=1.0, shift=0.0):
    """p(z | x), which is diagonal as the columns of W are orthogonal; or a wider, shifted one."""
    flat = x.flatten(1)
    precision = 1 + W.square().sum(dim=0) / SIGMA**2
    mean = (flat - BIAS) @ W / SIGMA**2 / precision + shift
    var = (widen**2 / precision).expand_as(mean)
    kl = kl_divergence(Normal(mean, var.sqrt()), Normal(0.0, 1.0)).sum(dim=1)
    return Posterior(mean[:, :, None, None], var.log()[:, :, None, None], kl)


def log_likelihood(z, x):
    return Normal(z.flatten(1) @ W.T + BIAS, SIGMA).log_prob(x.flatten(1)).sum(dim=1)


def bound(encode=posterior, **options):
    return importance_bound(encode, log_likelihood, Images(), torch.device("cpu"), **options)


@pytest.mark.parametrize("samples", [1, 7])
def test_the_true_posterior_leaves_no_gap(samples):
    """Oracle: with q = p(z | x) every weight is p(x), so one sample is exact; fp32 sums of about 10 nats."""
    found = bound(samples=samples)
    exact = exact_nats(Images().x)
    assert found.bound.value == pytest.approx(exact.mean().item(), abs=1e-5)
    assert found.bound.error == pytest.approx((exact.std() / 40**0.5).item(), rel=1e-4)
    assert found.effective == pytest.approx(samples, rel=1e-6)
    assert (found.n, found.samples) == (40, samples)


def test_a_poor_posterior_is_mended_by_samples():
    """Oracle: exact < IW bound < -ELBO, the gap of the ELBO is KL(q || p(z | x)), and 2,000 samples come
    within 0.02 nats of the exact value."""
    poor = lambda x: posterior(x, widen=1.3, shift=0.1)  # noqa: E731
    exact = exact_nats(Images().x).mean().item()
    few, many = bound(poor, samples=5), bound(poor, samples=2000)
    assert exact - 0.02 < many.bound.value < few.bound.value < few.elbo.value
    assert many.bound.value == pytest.approx(exact, abs=0.02)
    x = Images().x.reshape(-1, 1, 2, 2)
    (mean, log_var, _), (true, true_log_var, _) = poor(x), posterior(x)
    q, p = Normal(mean, (0.5 * log_var).exp()), Normal(true, (0.5 * true_log_var).exp())
    gap = kl_divergence(q, p).flatten(1).sum(dim=1).mean().item()
    # 80,000 likelihoods with a deviation of some 2 nats: four errors are 0.03
    assert many.elbo.value - exact == pytest.approx(gap, abs=0.03)
    assert many.elbo.value == pytest.approx(many.recon.value + many.kl.value, rel=1e-9)
    assert many.effective < 2000


def test_log_weights_are_the_ratio_of_normals():
    """Oracle: torch.distributions."""
    g = torch.Generator().manual_seed(1)
    mean, log_var, noise = (
        torch.randn(*s, generator=g) for s in ((3, 2, 1, 1), (3, 2, 1, 1), (5, 3, 2, 1, 1))
    )
    z, ratio = log_weights(Posterior(mean, log_var, torch.zeros(3)), noise)
    q = Normal(mean, (0.5 * log_var).exp())
    exact = (Normal(0.0, 1.0).log_prob(z) - q.log_prob(z)).flatten(2).sum(dim=2)
    torch.testing.assert_close(ratio, exact)


def test_batches_and_a_longer_list_change_nothing():
    """Oracle: each sample's noise is a function of (seed, k, image): equal to rounding."""
    poor = lambda x: posterior(x, widen=1.3)  # noqa: E731
    one, two = bound(poor, samples=9, batch_size=64), bound(poor, samples=9, batch_size=7)
    assert one.bound.value == pytest.approx(two.bound.value, rel=1e-6)
    other = bound(poor, samples=9, seed=1)
    assert other.bound.value != pytest.approx(one.bound.value, rel=1e-6)
    assert bound(limit=10).n == 10


def test_images_are_prepared_first():
    """Oracle: the exact likelihood of the prepared images."""
    found = bound(prepare=lambda x, place: x * 0, samples=3)
    assert found.bound.value == pytest.approx(exact_nats(torch.zeros(1, 4)).item(), abs=1e-5)
    assert math.isclose(found.bound.error, 0.0, abs_tol=1e-6)


def test_not_finite_is_an_error():
    """Oracle: RunError."""
    broken = lambda z, x: z.new_full((len(z),), math.nan)  # noqa: E731
    with pytest.raises(RunError, match="not finite"):
        importance_bound(posterior, broken, Images(), torch.device("cpu"), samples=2)
