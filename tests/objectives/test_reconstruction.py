"""Reconstruction losses against torch.distributions and hand values."""

import math

import pytest
import torch
from torch.distributions import Bernoulli, Normal

from genkit.data.source import Batch, Info
from genkit.models import vae
from genkit.objectives.reconstruction import bernoulli_nats, gaussian_nats
from genkit.train.objective import Noise

INFO = Info("test", "images", (1, 8, 8), 4)


def _setup(**settings):
    torch.manual_seed(0)
    config = vae.VaeConfig(latent="3", arch="mlp", width=16, **settings)
    module = vae.build(config, INFO)
    x = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    return vae.objective(module, config, INFO), Batch(x), Noise(0, torch.arange(4))


def test_bernoulli_by_hand():
    """Oracle: logit 0 costs ln 2 whatever the pixel; a white pixel (1) at probability 3/4 costs ln 4/3."""
    x = torch.tensor([[-1.0, 0.3], [1.0, 1.0]])
    logits = torch.tensor([[0.0, 0.0], [math.log(3.0), 0.0]])
    assert bernoulli_nats(logits, x).item() == pytest.approx(3 * math.log(2) + math.log(4 / 3), rel=1e-6)


def test_bernoulli_is_the_log_likelihood():
    """Oracle: torch.distributions.Bernoulli on black and white pixels."""
    g = torch.Generator().manual_seed(0)
    logits, bit = torch.randn(3, 5, generator=g) * 3, torch.randint(0, 2, (3, 5), generator=g).float()
    exact = -Bernoulli(logits=logits).log_prob(bit).sum()
    torch.testing.assert_close(bernoulli_nats(logits, 2 * bit - 1), exact)


def test_gaussian_is_the_log_likelihood():
    """Oracle: torch.distributions.Normal."""
    g = torch.Generator().manual_seed(0)
    mean, x = torch.randn(3, 5, generator=g), torch.randn(3, 5, generator=g)
    for log_sigma in (-2.0, 0.0, 0.7):
        exact = -Normal(mean, math.exp(log_sigma)).log_prob(x).sum()
        torch.testing.assert_close(gaussian_nats(mean, x, torch.tensor(log_sigma)), exact)


def test_gaussian_is_least_at_the_true_error():
    """Oracle: the best sigma is the root mean squared error; there the gradient by log sigma vanishes."""
    mean, x = torch.zeros(2, 3), torch.tensor([[0.1, -0.2, 0.3], [0.1, 0.4, 0.0]])
    best = (0.5 * x.square().mean().log()).requires_grad_()
    gaussian_nats(mean, x, best).backward()
    assert best.grad is not None
    assert abs(best.grad.item()) < 1e-5


@pytest.mark.parametrize("recon", ["bce", "mse", "gaussian"])
def test_loss_is_recon_plus_beta_kl(recon):
    """Oracle: the terms computed from the model by hand, per image."""
    objective, batch, noise = _setup(recon=recon, beta=0.5)
    loss = objective.loss("main", batch, noise)
    model = objective.model
    code = model.encode(batch.x, noise=noise.normal(6, (3, 1, 1)))
    raw = model.decode_raw(code.z)
    recon_nats = {
        "bce": lambda: -Bernoulli(logits=raw, validate_args=False).log_prob((batch.x + 1) / 2),
        "mse": lambda: (raw - batch.x).square() / 2,
        "gaussian": lambda: -Normal(raw, model.log_sigma.exp()).log_prob(batch.x),
    }[recon]().sum() / 4
    torch.testing.assert_close(loss.logs["recon"], recon_nats.detach())
    torch.testing.assert_close(loss.logs["kl"], code.penalty.mean().detach())
    torch.testing.assert_close(loss.total, recon_nats + 0.5 * code.penalty.mean())
    assert set(loss.logs) == {"loss", "recon", "kl", "kl_unit", "collapsed"}
    assert not any(value.requires_grad for value in loss.logs.values())


def test_every_parameter_learns():
    """Oracle: a gradient for each parameter, log sigma among them, under bf16 autocast."""
    objective, batch, noise = _setup(recon="gaussian")
    with torch.autocast("cpu", torch.bfloat16):
        loss = objective.loss("main", batch, noise)
    assert loss.total.dtype == torch.float32
    loss.total.backward()
    parameters = objective.phases()[0].parameters
    assert len(parameters) == 9
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in parameters)


def test_loss_of_a_batch_is_the_mean_of_its_halves():
    """Oracle: gradient accumulation: noise follows the position, and the loss is a mean over images."""
    objective, batch, noise = _setup()
    halves = [
        objective.loss("main", Batch(batch.x[a : a + 2]), Noise(0, noise.position[a : a + 2])).total
        for a in (0, 2)
    ]
    torch.testing.assert_close(objective.loss("main", batch, noise).total, sum(halves) / 2)
