"""Guidance of exact denoisers of Gaussian mixtures, whose posteriors are known."""

import math

import pytest
import torch

from genkit.diffusion.denoiser import Denoiser, Prediction
from genkit.diffusion.guidance import classifier, classifier_free, label_log_prob
from genkit.diffusion.samplers import ddim
from genkit.diffusion.schedules import cosine, flow, karras, linear, times

CENTRES, STD = torch.tensor([-1.0, 1.0], dtype=torch.float64), 0.25


def log_components(schedule, x, t):
    """(B, 2) ln(p(k) p(x_t | k)) of the two equally likely components, up to a constant."""
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    variance = alpha**2 * STD**2 + sigma**2
    return -0.5 * (x - alpha * CENTRES) ** 2 / variance


def mixture(schedule, weights=None):
    """The exact denoiser of the mixture; weights (2,) are those of the components, equal by default."""

    def denoise(x, t):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        log = log_components(schedule, x, t)
        if weights is not None:
            log = log + torch.tensor(weights, dtype=torch.float64).log()
        share = torch.softmax(log, dim=1)
        gain = alpha * STD**2 / (alpha**2 * STD**2 + sigma**2)
        x0 = (share * (CENTRES + gain * (x - alpha * CENTRES))).sum(dim=1, keepdim=True)
        return Prediction(x0, (x - alpha * x0) / sigma)

    return denoise


def last(steps):
    *_, step = steps
    return step


def start(schedule, n=4000):
    generator = torch.Generator().manual_seed(0)
    return schedule.prior_scale * torch.randn(n, 1, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("make", [linear, cosine, karras])
@pytest.mark.parametrize("likelihood", [(0.8, 0.3), (0.05, 0.9), (1.0, 1.0)])
def test_classifier_guidance_gives_the_posterior_weights(make, likelihood):
    """Oracle: Bayes. p(label | k) = likelihood[k] makes component 1 that probable; 0.03, of which 0.008 is
    the standard error of 4,000 samples."""
    schedule = make()

    def log_prob(x, t):
        share = torch.softmax(log_components(schedule, x, t), dim=1)
        return (share * torch.tensor(likelihood, dtype=torch.float64)).sum(dim=1).log()

    guided = classifier(mixture(schedule), schedule, log_prob, 1.0)
    with torch.inference_mode():  # as the commands run it
        x = last(ddim(guided, schedule, start(schedule), times(60))).x
    wanted = likelihood[1] / sum(likelihood)
    assert (x > 0).double().mean().item() == pytest.approx(wanted, abs=0.03)


def test_guided_predictions_stay_consistent():
    """Oracle: x = alpha x0 + sigma eps for any scale, and scale 0 changes nothing."""
    schedule, t = cosine(), torch.tensor(0.6, dtype=torch.float64)
    x = torch.linspace(-2, 2, 7, dtype=torch.float64)[:, None]
    plain = mixture(schedule)(x, t)
    log_prob = lambda x, t: torch.log_softmax(log_components(schedule, x, t), dim=1)[:, 1]  # noqa: E731
    guided = classifier(mixture(schedule), schedule, log_prob, 3.0)(x, t)
    assert torch.allclose(schedule.alpha(t) * guided.x0 + schedule.sigma(t) * guided.eps, x, atol=1e-12)
    assert not torch.allclose(guided.x0, plain.x0, atol=0.01)
    assert torch.equal(classifier(mixture(schedule), schedule, log_prob, 0.0)(x, t).x0, plain.x0)


def test_classifier_guidance_waits_where_alpha_is_0():
    """Oracle: nothing is known of x0 at pure noise, so the prediction is the unguided one, and finite."""
    schedule, t = flow(), torch.tensor(1.0, dtype=torch.float64)
    x = torch.ones(2, 1, dtype=torch.float64)
    guided = classifier(mixture(schedule), schedule, lambda x, t: x[:, 0], 2.0)(x, t)
    assert guided.x0.isfinite().all()


class Labelled(torch.nn.Module):
    """The mixture conditioned on a component: labels 0 and 1 are the components, 2 is both. Counts calls."""

    classes = 2

    def __init__(self, schedule):
        super().__init__()
        self.schedule, self.sizes = schedule, []

    def forward(self, x, t, cond):
        self.sizes.append(len(x))
        one = [mixture(self.schedule, w)(x, t) for w in ((1, 1e-300), (1e-300, 1), (1, 1))]
        pick = cond[:, None]
        return Prediction(*(sum(torch.where(pick == k, one[k][i], 0.0) for k in range(3)) for i in range(2)))


def test_classifier_free_is_the_formula_in_one_batch():
    """Oracle: null + scale (cond - null) by hand; one call of twice the batch, or of it at scale 0 and 1."""
    schedule, t = cosine(), torch.tensor(0.7, dtype=torch.float64)
    x = torch.linspace(-2, 2, 6, dtype=torch.float64)[:, None]
    cond, null = torch.tensor([0, 1, 0, 1, 0, 1]), torch.full((6,), 2)
    model = Labelled(schedule)
    with_label, without = model(x, t, cond), model(x, t, null)
    model.sizes.clear()
    for scale, size in ((0.0, 6), (1.0, 6), (2.5, 12)):
        found = classifier_free(model, cond, null, scale)(x, t)
        assert torch.allclose(found.x0, without.x0 + scale * (with_label.x0 - without.x0))
        assert torch.allclose(found.eps, without.eps + scale * (with_label.eps - without.eps))
        assert model.sizes.pop() == size
    assert not model.sizes


def test_guidance_acts_within_its_interval_only():
    """Oracle: outside of it the conditional model alone, at half the batch."""
    schedule = cosine()
    x = torch.ones(2, 1, dtype=torch.float64)
    cond, null = torch.tensor([0, 1]), torch.full((2,), 2)
    model = Labelled(schedule)
    guided = classifier_free(model, cond, null, 3.0, (0.3, 0.7))
    for time, size in ((0.2, 2), (0.5, 4), (0.9, 2)):
        guided(x, torch.tensor(time, dtype=torch.float64))
        assert model.sizes.pop() == size


def test_guidance_acts_above_the_schedule_s_last_level():
    """Oracle: churn raises the first level of `karras` beyond t = 1; guidance acts there too."""
    schedule, t = karras(), torch.tensor(1.02, dtype=torch.float64)
    x = torch.full((2, 1), 60.0, dtype=torch.float64)
    model = Labelled(schedule)
    classifier_free(model, torch.tensor([0, 1]), torch.full((2,), 2), 3.0)(x, t)
    assert model.sizes == [4]
    log_prob = lambda x, t: torch.log_softmax(log_components(schedule, x, t), dim=1)[:, 1]  # noqa: E731
    guided = classifier(mixture(schedule), schedule, log_prob, 3.0)(x, t)
    assert not torch.equal(guided.x0, mixture(schedule)(x, t).x0)


@pytest.mark.parametrize("label", [0, 1])
def test_guided_samples_are_of_their_class(label):
    """Oracle: the mean of the label's component and, for scale 1, its spread (5 standard errors)."""
    schedule, n = cosine(), 2000
    cond, null = torch.full((n,), label), torch.full((n,), 2)
    x = last(
        ddim(classifier_free(Labelled(schedule), cond, null, 1.0), schedule, start(schedule, n), times(60))
    ).x
    assert x.mean().item() == pytest.approx(CENTRES[label].item(), abs=5 * STD / math.sqrt(n) + 0.01)
    assert x.std().item() == pytest.approx(STD, abs=5 * STD / math.sqrt(2 * n) + 0.01)


def test_a_condition_may_be_its_embedding():
    """Oracle: the network's own embedding of the label, and a null that is a function of time."""
    from genkit.nn.unet import UNet

    torch.manual_seed(0)
    network = UNet(1, 1, 8, width=8, multipliers=(1,), blocks=1, attention=(), classes=3)
    torch.nn.init.normal_(network.conv_out.weight, std=0.1)
    for parameter in network.parameters():  # the network starts as a constant
        torch.nn.init.normal_(parameter, std=0.2)
    model = Denoiser(network, cosine(), "v", classes=3)
    x, t = torch.randn(2, 1, 8, 8), torch.tensor(0.5, dtype=torch.float64)
    label = torch.tensor([2, 0])
    by_label = classifier_free(model, label, model.null(2), 2.0)(x, t)
    by_embedding = classifier_free(model, label, lambda t: model.embed(model.null(2)), 2.0)(x, t)
    assert torch.allclose(by_label.x0, by_embedding.x0, atol=1e-5)
    assert not torch.allclose(by_label.x0, classifier_free(model, label, model.null(2), 1.0)(x, t).x0)


def test_label_log_prob_meets_the_classifier_as_it_was_trained():
    """Oracle: by hand, x_t over its norm and the angle of (alpha, sigma), for a schedule with alpha = 1."""
    seen = {}

    def network(x, level):
        seen.update(x=x, level=level)
        return torch.tensor([[1.0, 3.0], [0.0, 0.0]])

    schedule, t = karras(), torch.tensor(0.5, dtype=torch.float64)
    sigma = schedule.sigma(t).item()
    found = label_log_prob(network, schedule, torch.tensor([1, 0]))(torch.ones(2, 1), t)
    assert seen["x"][0].item() == pytest.approx(1 / math.sqrt(1 + sigma**2), rel=1e-6)
    assert seen["level"][0].item() == pytest.approx(math.atan(sigma) / (math.pi / 2), rel=1e-6)
    assert found.tolist() == pytest.approx([-math.log(1 + math.exp(-2)), -math.log(2)])
