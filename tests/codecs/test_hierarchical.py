"""The hierarchy of latents: its bound against exact likelihoods, its code against the levels, L = 1 against
the VAE's bottleneck."""

import math

import pytest
import torch
from torch import nn
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence

from genkit.codecs.bottlenecks import GaussianBottleneck
from genkit.codecs.hierarchical import HierarchicalAutoencoder, Hierarchy, Walk, costs, normal_kl, usage
from genkit.codecs.hierarchical import Normal as Given


class Affine(nn.Module):
    """(B, C, 1, 1) -> (B, 2 C', 1, 1): the normal of mean A z + b and variances `variance`."""

    def __init__(self, matrix, variance, offset=0.0):
        super().__init__()
        self.matrix, self.log_var = torch.as_tensor(matrix).float(), torch.as_tensor(variance).float().log()
        self.offset = offset

    def forward(self, z):
        mean = z.flatten(1) @ self.matrix.T + self.offset
        return torch.cat([mean, self.log_var.expand_as(mean)], dim=1)[:, :, None, None]


def links(seed, units, hidden=8):
    """Small random networks between levels of `units`: (up, down)."""
    torch.manual_seed(seed)

    def link(a, b):
        layers = nn.Flatten(), nn.Linear(a, hidden), nn.Tanh(), nn.Linear(hidden, 2 * b)
        return nn.Sequential(*layers, nn.Unflatten(1, (2 * b, 1, 1)))

    pairs = list(zip(units, units[1:]))
    return [link(a, b) for a, b in pairs], [link(b, a) for a, b in pairs]


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# One unit a level: p(z2) = N(0, 1), p(z1 | z2) = N(A z2, S), p(x | z1) = N(D z1, R).
A, S, D, R = 0.8, 0.5, 1.5, 0.3
V1 = A * A + S  # variance of z1
VX = D * D * V1 + R


def bound(x, gain, spread, n=40000):
    """-(ELBO, its standard error) in nats of the chain above at x, by n draws, when q(z1 | x) has the exact
    posterior's mean times `gain` and its variance times `spread`, and q(z2 | z1) is exact."""
    variance = V1 * R / VX
    encode = Affine([[gain * D * V1 / VX]], [spread * variance])
    up = Affine([[A / V1]], [S / V1])
    hierarchy = Hierarchy((1, 1), [up], [Affine([[A]], [S])])
    h = encode(torch.full((n, 1, 1, 1), x))
    walk = hierarchy.climb(h, noise(n, 2, 1, 1))
    likelihood = Normal(D * walk.z[0], math.sqrt(R)).log_prob(torch.tensor(x)).flatten()
    values = (hierarchy.code_of(walk, True).penalty - likelihood).double()
    return values.mean().item(), values.std().item() / math.sqrt(n)


@pytest.mark.parametrize("x", [-2.0, 0.1, 1.7])
def test_the_exact_posterior_reaches_the_likelihood(x):
    """Oracle: log N(x; 0, D^2 (A^2 + S) + R); within 4 standard errors, themselves below 0.01 nats."""
    exact = -Normal(0.0, math.sqrt(VX)).log_prob(torch.tensor(x)).item()
    value, error = bound(x, 1.0, 1.0)
    assert error < 0.01
    assert value == pytest.approx(exact, abs=4 * error + 1e-5)


@pytest.mark.parametrize("gain, spread", [(0.7, 1.0), (1.0, 0.4), (1.0, 2.5), (1.2, 0.8)])
def test_another_posterior_pays_its_distance(gain, spread):
    """Oracle: log p(x) - ELBO = KL(q(z1 | x) || p(z1 | x)), in closed form; the bound never exceeds log p."""
    x, variance = 1.7, V1 * R / VX
    exact = -Normal(0.0, math.sqrt(VX)).log_prob(torch.tensor(x)).item()
    mean = D * V1 / VX * x
    gap = kl_divergence(
        Normal(torch.tensor(gain * mean), math.sqrt(spread * variance)),
        Normal(torch.tensor(mean), math.sqrt(variance)),
    ).item()
    value, error = bound(x, gain, spread)
    assert gap > 20 * error
    assert value == pytest.approx(exact + gap, abs=4 * error + 1e-5)


def test_a_linear_hierarchy_of_vectors():
    """Oracle: MultivariateNormal of x under three linear levels; q is its posterior, diagonal as links are
    turns and variances equal. Within 4 standard errors."""
    n, dims = 20000, 3
    turn, _ = torch.linalg.qr(noise(dims, dims, seed=3))
    eye = torch.eye(dims)
    down = [Affine(0.6 * turn, torch.full((dims,), 0.4)), Affine(0.9 * eye, torch.full((dims,), 0.7))]
    v3, v2 = 1.0, 0.81 + 0.7  # variances of z3 and z2 without conditions
    v1 = 0.36 * v2 + 0.4
    up = [
        Affine(0.6 * v2 / v1 * turn.T, torch.full((dims,), 0.4 * v2 / v1)),
        Affine(0.9 * v3 / v2 * eye, torch.full((dims,), 0.7 * v3 / v2)),
    ]
    x, r = torch.tensor([0.5, -1.0, 2.0]), 0.2
    vx = v1 + r  # x = z1 + noise
    encode = Affine(v1 / vx * eye, torch.full((dims,), v1 * r / vx))
    hierarchy = Hierarchy((dims,) * 3, up, down)
    walk = hierarchy.climb(encode(x[None, :, None, None].expand(n, -1, -1, -1)), noise(n, 9, 1, 1))
    likelihood = Normal(walk.z[0].flatten(1), math.sqrt(r)).log_prob(x).sum(dim=1)
    values = (hierarchy.code_of(walk, True).penalty - likelihood).double()
    exact = -MultivariateNormal(torch.zeros(dims), vx * eye).log_prob(x).item()
    error = values.std().item() / math.sqrt(n)
    assert error < 0.02
    assert values.mean().item() == pytest.approx(exact, abs=4 * error + 1e-5)


@pytest.mark.parametrize("drawn", [True, False])
def test_one_level_is_the_gaussian_bottleneck(drawn):
    """Oracle: GaussianBottleneck on the same h and noise: the code, the penalty, image by image."""
    h, eps = 2 * noise(5, 6, 1, 1), noise(5, 3, 1, 1, seed=1)
    given = eps if drawn else None
    one, usual = Hierarchy((3,), [], [])(h, given), GaussianBottleneck()(h, given)
    torch.testing.assert_close(one.z, usual.z)
    torch.testing.assert_close(one.penalty, usual.penalty)


def test_terms_add_up_to_the_penalty():
    """Oracle: the logged level terms, means over the batch, sum to the mean penalty; and the terms from
    torch.distributions at the levels drawn."""
    units = (5, 4, 3)
    hierarchy = Hierarchy(units, *links(0, units))
    h, eps = noise(6, 10, 1, 1), noise(6, 12, 1, 1, seed=1)
    code, walk = hierarchy(h, eps), hierarchy.climb(h, eps)
    torch.testing.assert_close(sum(code.logs[f"kl_{i}"] for i in (1, 2, 3)), code.penalty.detach().mean())

    def normal(given):
        return Independent(Normal(given.mean.flatten(1), given.std.flatten(1)), 1)

    by_hand = [
        normal(q).log_prob(z.flatten(1)) - normal(p).log_prob(z.flatten(1))
        for z, q, p in zip(walk.z[:2], walk.q, walk.p)
    ]
    by_hand.append(kl_divergence(normal(walk.q[2]), normal(walk.p[2])))
    for term, exact in zip(costs(walk, True), by_hand, strict=True):
        torch.testing.assert_close(term, exact, rtol=1e-4, atol=1e-4)


def test_a_level_that_follows_its_prior_costs_nothing():
    """Oracle: q = p gives exactly 0 for every draw, and 0 in closed form."""
    p = Given(noise(4, 3, 1, 1), 0.3 * noise(4, 3, 1, 1, seed=1))
    z = p.sample(noise(4, 3, 1, 1, seed=2))
    zero = Given(torch.zeros(4, 3, 1, 1), torch.zeros(4, 3, 1, 1))
    terms = costs(Walk([z, torch.zeros_like(z)], [p, zero], [p, zero]), True)
    assert torch.equal(terms[0], torch.zeros(4))
    torch.testing.assert_close(normal_kl(p, p), torch.zeros(4), atol=1e-6, rtol=0)


def test_codes_and_levels_determine_each_other():
    """Oracle: descending from the code of a walk gives its z_1 back; the top's innovation is z_L itself."""
    units = (6, 4, 2)
    hierarchy = Hierarchy(units, *links(1, units))
    walk = hierarchy.climb(noise(7, 12, 1, 1), noise(7, 12, 1, 1, seed=1))
    code = hierarchy.code_of(walk, True)
    assert code.z.shape == (7, 12, 1, 1)
    torch.testing.assert_close(hierarchy.descend(code.z), walk.z[0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(code.z[:, :2], walk.z[2])


def test_normal_codes_are_ancestral_samples():
    """Oracle: the linear chain's exact mean and covariance of z_1, over 40,000 standard normal codes; within
    4 standard errors (sqrt(2 / n) of a variance)."""
    n = 40000
    turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]])
    down = [Affine(0.5 * turn, [0.3, 0.6], offset=1.0), Affine([[2.0], [0.0]], [0.1, 1.0])]
    hierarchy = Hierarchy((2, 2, 1), [nn.Identity()] * 2, down)
    z = hierarchy.descend(noise(n, 5, 1, 1)).flatten(1)
    second = torch.diag(torch.tensor([4.0 + 0.1, 1.0]))
    exact = 0.25 * turn @ second @ turn.T + torch.diag(torch.tensor([0.3, 0.6]))
    error = 4 * exact.diagonal().max().item() * math.sqrt(2 / n)
    torch.testing.assert_close(torch.cov(z.T), exact, atol=error, rtol=0)
    torch.testing.assert_close(z.mean(dim=0), torch.ones(2), atol=error, rtol=0)


def test_lower_innovations_of_zero_are_means():
    """Oracle: by hand: the top goes down through the mean halves of the links."""
    units = (3, 2)
    hierarchy = Hierarchy(units, *links(2, units))
    top = noise(4, 2, 1, 1)
    code = torch.cat([top, torch.zeros(4, 3, 1, 1)], dim=1)
    torch.testing.assert_close(hierarchy.descend(code), hierarchy.down[0](top)[:, :3])


def test_usage_counts_units_that_ignore_the_image():
    """Oracle: by hand: two units whose mean is the same for every image, one that varies, at any scale."""
    mean = torch.cat([torch.full((9, 2), 3.0), 1e-3 * torch.arange(9.0)[:, None]], dim=1)[:, :, None, None]
    q = Given(mean, torch.log(torch.tensor([1.0, 1.0, 1e-8])).reshape(1, 3, 1, 1).expand(9, 3, 1, 1))
    assert usage(Walk([mean], [q], [q]))["collapsed"].item() == 2
    assert usage(Walk([mean[:1]], [q], [q])) == {}


def test_forward_agrees_with_encode_and_decode():
    """Oracle: encode and decode_raw one after the other; pixels of `decode` in [-1, 1]."""
    units = (4, 3)
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.Unflatten(1, (8, 1, 1)))
    decoder = nn.Sequential(nn.Flatten(), nn.Linear(4, 16), nn.Unflatten(1, (1, 4, 4)))
    model = HierarchicalAutoencoder(encoder, Hierarchy(units, *links(3, units)), decoder, logits=True)
    x, eps = noise(5, 1, 4, 4).clamp(-1, 1), noise(5, 7, 1, 1, seed=1)
    code, raw = model(x, noise=eps)
    torch.testing.assert_close(code.z, model.encode(x, noise=eps).z)
    torch.testing.assert_close(raw, model.decode_raw(code.z), rtol=1e-4, atol=1e-5)
    assert model.latent_shape == (7, 1, 1)
    assert model.decode(9 * code.z).abs().max() <= 1
