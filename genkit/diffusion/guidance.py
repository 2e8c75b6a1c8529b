"""Guidance: each function takes what denoises and returns a Denoise, so that they nest, under any sampler."""

from collections.abc import Callable

import torch
from torch import Tensor

from .denoiser import Denoise, Denoiser, Prediction, expand, per_example
from .schedules import Schedule

Null = Tensor | Callable[[Tensor], Tensor]  # labels or embeddings of nothing, or a function of t to them
LogProb = Callable[[Tensor, Tensor], Tensor]  # (x_t, t) -> (B,) log p(label | x_t)


def classifier_free(
    model: Denoiser,
    cond: Tensor,
    null: Null,
    scale: float,
    interval: tuple[float, float] = (0.0, 1.0),
) -> Denoise:
    """`model` under `cond`, pushed away from `null`: null + scale (cond - null) (Ho & Salimans 2022).

    scale 1 is the plain conditional model, 0 the unconditional one; their paper's w is scale - 1. x0 and
    eps are linear in each other at a given x, so pushing one pushes both.

    cond: (B,) labels or (B, E) embeddings; null: the same of the null class, or a function of t that gives
    them (null-text inversion). interval: the times at which guidance acts; elsewhere the conditional model
    runs alone, in half the time (Kynkäänniemi et al. 2024). Both branches go through the network as one
    batch.
    """

    def empty(t: Tensor) -> Tensor:
        return null(t) if callable(null) else null

    def denoise(x: Tensor, t: Tensor) -> Prediction:
        if scale == 1 or not _acts(interval, t):
            return model(x, t, cond)
        nothing = empty(t)
        if scale == 0:
            return model(x, t, nothing)
        both = torch.cat([_like(model, cond, nothing), _like(model, nothing, cond)])
        x0, eps, var = model(torch.cat([x, x]), t, both)
        (x0_c, x0_u), (eps_c, eps_u) = x0.chunk(2), eps.chunk(2)
        kept = None if var is None else var.chunk(2)[0]
        return Prediction(torch.lerp(x0_u, x0_c, scale), torch.lerp(eps_u, eps_c, scale), kept)

    return denoise


def _acts(interval: tuple[float, float], t: Tensor) -> bool:
    """Whether t () on the CPU is in the interval; levels that churn raises beyond t = 1 count as 1."""
    return interval[0] <= min(t.item(), 1.0) <= interval[1]


def _like(model: Denoiser, cond: Tensor, other: Tensor) -> Tensor:
    """`cond` as embeddings where `other` is."""
    if other.is_floating_point() and not cond.is_floating_point():
        return model.embed(cond)
    return cond


def classifier(
    denoise: Denoise,
    schedule: Schedule,
    log_prob: LogProb,
    scale: float,
    interval: tuple[float, float] = (0.0, 1.0),
) -> Denoise:
    """`denoise` with eps - scale sigma grad log p(label | x_t) (Dhariwal & Nichol 2021, alg. 2).

    With an unconditional `denoise`, scale 1 samples p(x | label) and larger scales sharpen it; with one that
    is given the label already, scale 0 does the former and every larger one sharpens. x0 follows from
    x = alpha x0 + sigma eps; where alpha is 0 nothing is known of it and guidance waits.
    """

    def guided(x: Tensor, t: Tensor) -> Prediction:
        prediction = denoise(x, t)
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        if scale == 0 or alpha.item() == 0 or not _acts(interval, t):
            return prediction
        gradient = _gradient(log_prob, x, t)
        push = scale * sigma
        x0 = prediction.x0 + expand(push * sigma / alpha, x) * gradient
        return prediction._replace(x0=x0, eps=prediction.eps - expand(push, x) * gradient)

    return guided


def _gradient(log_prob: LogProb, x: Tensor, t: Tensor) -> Tensor:
    """d/dx of the sum of log_prob(x, t), also inside inference mode."""
    with torch.inference_mode(False), torch.enable_grad():
        free = x.detach().clone().requires_grad_()
        (gradient,) = torch.autograd.grad(log_prob(free, t).sum(), free)
    return gradient


def label_log_prob(network: Callable[[Tensor, Tensor], Tensor], schedule: Schedule, label: Tensor) -> LogProb:
    """(x_t, t) -> log p(label | x_t) of a noise-conditioned classifier, whatever the schedule.

    network: (x of unit-norm mixing, level) -> (B, classes) logits, where the level is the angle
    atan2(sigma, alpha) in units of pi / 2 and x_t comes divided by sqrt(alpha^2 + sigma^2).
    """

    def log_prob(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        level = torch.atan2(sigma, alpha) / (torch.pi / 2)
        scaled = x * expand((alpha**2 + sigma**2) ** -0.5, x)
        logits = network(scaled, per_example(level, x))
        return torch.log_softmax(logits.float(), dim=1).gather(1, label[:, None])[:, 0]

    return log_prob
