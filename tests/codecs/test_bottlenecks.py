"""Bottlenecks against closed forms."""

import math

import pytest
import torch
from torch.distributions import Bernoulli, Normal, kl_divergence

from genkit.codecs.bottlenecks import (
    GaussianBottleneck,
    IdentityBottleneck,
    SparseBottleneck,
    Standardised,
    bernoulli_kl,
)


def _parameters(batch: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    g = torch.Generator().manual_seed(0)
    return torch.randn(batch, 3, 2, 2, generator=g), torch.randn(batch, 3, 2, 2, generator=g)


def test_penalty_is_the_kl():
    """Oracle: torch.distributions' kl_divergence, summed over the units of an image."""
    mean, log_var = _parameters()
    code = GaussianBottleneck()(torch.cat([mean, log_var], dim=1))
    exact = kl_divergence(Normal(mean, (0.5 * log_var).exp()), Normal(0.0, 1.0))
    torch.testing.assert_close(code.penalty, exact.sum(dim=(1, 2, 3)))
    torch.testing.assert_close(code.logs["kl_unit"], exact.mean())


def test_z_is_the_mean_or_a_sample():
    """Oracle: mean, and mean + std * noise."""
    mean, log_var = _parameters()
    h = torch.cat([mean, log_var], dim=1)
    noise = torch.randn(mean.shape, generator=torch.Generator().manual_seed(1))
    assert torch.equal(GaussianBottleneck()(h).z, mean)
    torch.testing.assert_close(GaussianBottleneck()(h, noise).z, mean + log_var.div(2).exp() * noise)


def test_collapsed_counts_units_at_the_prior():
    """Oracle: 4 of 12 units are N(0, 1) for every image, the others one nat away or more."""
    mean = torch.full((6, 3, 2, 2), 1.5)
    mean[:, 1] = 0.0
    code = GaussianBottleneck()(torch.cat([mean, torch.zeros_like(mean)], dim=1))
    assert code.logs["collapsed"] == 4
    assert code.logs["idle"] == 4 / code.z[0].numel()


def test_overflow_is_finite():
    """Oracle: a log variance of 1e6 would be infinite in float32."""
    h = torch.full((1, 2, 1, 1), 1e6)
    assert GaussianBottleneck()(h).penalty.isfinite().all()


def test_identity():
    """Oracle: the input itself, at no cost, in float32 whatever came in."""
    h = torch.randn(3, 4, 2, 2).bfloat16()
    code = IdentityBottleneck()(h, torch.randn(3, 4, 2, 2))
    assert code.z.dtype == torch.float32
    assert torch.equal(code.z, h.float())
    assert torch.equal(code.penalty, torch.zeros(3))


def test_width_in():
    """Oracle: a normal has two parameters."""
    assert GaussianBottleneck().width_in(4) == 8
    assert IdentityBottleneck().width_in(4) == 4
    assert SparseBottleneck(0.05).width_in(4) == 4


def test_sparsity_is_the_kl_of_coins():
    """Oracle: torch.distributions between coins of rho and of each unit's mean over the batch."""
    h = _parameters()[0]
    code = SparseBottleneck(0.05)(h)
    z = (h + math.log(0.05 / 0.95)).sigmoid()
    torch.testing.assert_close(code.z, z)
    exact = kl_divergence(Bernoulli(torch.tensor(0.05)), Bernoulli(z.mean(dim=0))).sum()
    torch.testing.assert_close(code.penalty, exact.expand(5))
    torch.testing.assert_close(code.logs["activation"], z.mean())


def test_sparsity_costs_nothing_at_rho_and_pulls_towards_it():
    """Oracle: KL(rho || rho) = 0; the slope (1 - rho) / (1 - m) - rho / m, over the batch's size, and the
    sigmoid's m (1 - m)."""
    rho = 0.2
    assert SparseBottleneck(rho)(torch.zeros(4, 1, 1, 1)).penalty.abs().max() < 1e-6
    # a unit at 0.5
    h = torch.full((4, 1, 1, 1), math.log((1 - rho) / rho), requires_grad=True)
    SparseBottleneck(rho)(h).penalty.mean().backward()
    slope = ((1 - rho) / 0.5 - rho / 0.5) * 0.25 / 4
    torch.testing.assert_close(h.grad, torch.full_like(h, slope))


def test_sparse_codes_standardised_for_the_decoder():
    """Oracle: moments of coins of mean rho."""
    coins = (torch.rand(100_000, generator=torch.Generator().manual_seed(0)) < 0.05).float()
    z = Standardised(0.05)(coins)
    assert abs(z.mean().item()) < 0.02  # five standard errors
    assert abs(z.var().item() - 1) < 0.08


def test_dead_and_saturated_units_have_a_finite_price():
    """Oracle: units at exactly 0 and 1; one of the two is never on."""
    h = torch.tensor([[-200.0, 200.0]]).reshape(1, 2, 1, 1)
    code = SparseBottleneck(0.05)(h)
    assert code.penalty.isfinite().all()
    assert code.logs["dead"] == 1
    assert bernoulli_kl(0.5, torch.tensor(0.0)).item() == pytest.approx(0.5 * math.log(0.25e6), rel=1e-5)


@pytest.mark.parametrize("rho", [0.0, 1.0, -0.1, 1.5, math.nan])
def test_rho_is_inside_the_unit_interval(rho):
    """Oracle: the refusal."""
    with pytest.raises(ValueError, match="inside"):
        SparseBottleneck(rho)


def test_units_add_up_to_the_penalty():
    """Oracle: their sum."""
    mean, log_var = _parameters()
    code = GaussianBottleneck()(torch.cat([mean, log_var], dim=1))
    assert code.units is not None
    torch.testing.assert_close(code.units.sum(dim=(1, 2, 3)), code.penalty)
