"""Bottlenecks against closed forms."""

import torch
from torch.distributions import Normal, kl_divergence

from genkit.codecs.bottlenecks import GaussianBottleneck, IdentityBottleneck


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
