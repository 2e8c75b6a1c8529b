"""Reconstruction losses against torch.distributions and hand values."""

import math

import pytest
import torch
from torch.distributions import Bernoulli, Normal

from genkit.data.source import Batch, Info
from genkit.errors import InputError
from genkit.models import vae
from genkit.objectives import bernoulli
from genkit.objectives.reconstruction import binarised, gaussian_nats, image_nats, psnr
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
    assert bernoulli.nats(logits, x).item() == pytest.approx(3 * math.log(2) + math.log(4 / 3), rel=1e-6)


def test_bernoulli_is_the_log_likelihood():
    """Oracle: torch.distributions.Bernoulli on black and white pixels."""
    g = torch.Generator().manual_seed(0)
    logits, bit = torch.randn(3, 5, generator=g) * 3, torch.randint(0, 2, (3, 5), generator=g).float()
    exact = -Bernoulli(logits=logits).log_prob(bit).sum()
    torch.testing.assert_close(bernoulli.nats(logits, 2 * bit - 1), exact)


def test_gaussian_is_the_log_likelihood():
    """Oracle: torch.distributions.Normal."""
    g = torch.Generator().manual_seed(0)
    mean, x = torch.randn(3, 5, generator=g), torch.randn(3, 5, generator=g)
    for log_sigma in (-2.0, 0.0, 0.7):
        exact = -Normal(mean, math.exp(log_sigma)).log_prob(x).sum() / len(x)
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
    assert set(loss.logs) == {"loss", "recon", "kl", "kl_unit", "collapsed", "idle"}
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


def test_image_nats_are_the_same_nats():
    """Oracle: the batch's sums, and for mse the normal of sigma 1 with its constant."""
    g = torch.Generator().manual_seed(0)
    raw, x = torch.randn(3, 1, 4, 4, generator=g), torch.rand(3, 1, 4, 4, generator=g) * 2 - 1
    sigma = torch.tensor(-0.7)
    torch.testing.assert_close(image_nats("bce", raw, x, None).sum(), bernoulli.nats(raw, x))
    torch.testing.assert_close(image_nats("gaussian", raw, x, sigma).mean(), gaussian_nats(raw, x, sigma))
    exact = -Normal(raw, 1.0).log_prob(x).sum(dim=(1, 2, 3))
    torch.testing.assert_close(image_nats("mse", raw, x, None), exact)


def test_psnr_by_hand():
    """Oracle: an error of 0.2 on a range of 2 is 20 dB; outside the range pixels are clipped; equal: 100."""
    x = torch.zeros(3, 1, 2, 2)
    y = torch.stack([x[0] + 0.2, x[1] + 7.0, x[2]])
    torch.testing.assert_close(psnr(x, y), torch.tensor([20.0, 10 * math.log10(4.0), 100.0]))


def test_fixed_sigma():
    """Oracle: torch.distributions.Normal of that sigma; no parameter for it."""
    objective, batch, noise = _setup(recon="gaussian", sigma=0.1)
    loss = objective.loss("main", batch, noise)
    model = objective.model
    raw = model.decode_raw(model.encode(batch.x, noise=noise.normal(6, (3, 1, 1))).z)
    torch.testing.assert_close(loss.logs["recon"], -Normal(raw, 0.1).log_prob(batch.x).sum().detach() / 4)
    assert len(objective.phases()[0].parameters) == 8


def test_only_kl_and_only_reconstruction():
    """Oracle: the terms by themselves; the decoder has no gradient from the KL."""
    objective, batch, noise = _setup(recon_weight=0.0)
    loss = objective.loss("main", batch, noise)
    torch.testing.assert_close(loss.total.detach(), loss.logs["kl"])
    loss.total.backward()
    assert all(not p.grad.any() for p in objective.model.decoder.parameters())
    objective, batch, noise = _setup(beta=0.0)
    loss = objective.loss("main", batch, noise)
    torch.testing.assert_close(loss.total.detach(), loss.logs["recon"])


def test_warm_up_follows_the_steps():
    """Oracle: beta k / 4 after k steps, from 0 to beta; held-out data are measured at beta."""
    objective, batch, noise = _setup(beta=0.5, kl_warmup=4)
    weights = []
    for _ in range(6):
        logs = objective.loss("main", batch, noise).logs
        weights.append(logs["beta"].item())
        torch.testing.assert_close(logs["loss"], logs["recon"] + weights[-1] * logs["kl"])
        objective.stepped()
    assert weights == [0.0, 0.125, 0.25, 0.375, 0.5, 0.5]
    fresh, batch, noise = _setup(beta=0.5, kl_warmup=4)
    found = fresh.eval().evaluate(batch, noise)
    torch.testing.assert_close(found["loss"], found["recon"] + 0.5 * found["kl"])


def test_free_bits_clamp_each_unit():
    """Oracle: the sum over units of max(lambda, mean KL) by hand; units below lambda have no gradient."""
    objective, batch, noise = _setup(free_bits=0.05)
    h = torch.zeros(4, 6, 1, 1)
    h[:, 0], h[:, 1], h[:, 2] = 0.02, 1.0, torch.tensor([0.1, -0.2, 0.8, 0.9]).view(4, 1, 1)
    h.requires_grad_()  # means of the three units; KLs of 0.0002, 0.5 and 0.19
    code = objective.model.bottleneck(h)
    unit = code.units.mean(dim=0).flatten()
    below = unit < 0.05
    assert below.tolist() == [True, False, False]
    paid = objective.paid(code)
    torch.testing.assert_close(paid, torch.where(below, 0.05, unit).sum())
    paid.backward()
    for i in range(3):
        assert bool(h.grad[:, [i, i + 3]].any()) == (not below[i])
    loss = objective.loss("main", batch, noise)
    code = objective.model.encode(batch.x)
    torch.testing.assert_close(loss.total, loss.logs["recon"] + objective.paid(code))


def test_free_bits_need_units():
    """Oracle: a plain autoencoder has no KL of which to give away."""
    with pytest.raises(InputError, match="--free-bits"):
        _setup(free_bits=0.1, bottleneck="none")


def test_binarised_images_are_what_comes_back():
    """Oracle: the same loss as on images that are black and white already."""
    objective, batch, noise = _setup(binarise="threshold")
    black_white = Batch(torch.where(batch.x > 0, 1.0, -1.0))
    one, two = (objective.loss("main", b, noise).total for b in (batch, black_white))
    assert torch.equal(one, two)
    other, _, _ = _setup()
    assert not torch.equal(one, other.loss("main", batch, noise).total)


def test_sampled_binarisation_has_the_brightness_as_mean():
    """Oracle: a coin's mean and its standard error; black and white stay; a place decides its coins alone."""
    x = torch.tensor([-1.0, -0.4, 0.6, 1.0]).view(1, 1, 2, 2).expand(4000, 1, 2, 2)
    found = binarised(x, "sampled", Noise(0, torch.arange(4000)))
    assert set(found.unique().tolist()) == {-1.0, 1.0}
    share = (found > 0).float().mean(dim=0).flatten()
    torch.testing.assert_close(share, torch.tensor([0.0, 0.3, 0.8, 1.0]), atol=0.03, rtol=0)
    assert torch.equal(found[7:9], binarised(x[:2], "sampled", Noise(0, torch.tensor([7, 8]))))
    assert torch.equal(binarised(x, "none", Noise(0, torch.arange(4000))), x)


def test_held_out_psnr():
    """Oracle: the decoded means of the posteriors, by hand."""
    objective, batch, noise = _setup()
    found = objective.evaluate(batch, noise)
    back = objective.model.decode(objective.model.encode(batch.x).z)
    torch.testing.assert_close(found["psnr"], psnr(batch.x, back).mean())
