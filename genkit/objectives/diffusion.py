"""The denoising loss: the network's output against the target at random times; and the variational bound."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import noise as rng
from ..data.source import Batch
from ..diffusion.bound import Chain, log_variance, make_chain, step_bits
from ..diffusion.denoiser import Denoiser, expand
from ..diffusion.schedules import Schedule, times
from ..diffusion.targets import coefficients, solve
from ..train.objective import Loss, Noise, Objective
from .times import ImportantSteps, Times, UniformSteps

WEIGHTINGS = ("none", "min-snr")
LOSSES = ("simple", "hybrid", "vlb")
CHAIN_STEPS = 1000


def min_snr(schedule: Schedule, target: str, t: Tensor, data_std: float, gamma: float = 5.0) -> Tensor:
    """(B,) weights of the target's squared error that make it min(SNR, gamma) times that of x0.

    Hang et al. 2023 for every target: an error d of x0 is one of p d - q d alpha / sigma of p x0 + q eps.
    t: (B,) times.
    """
    alpha, sigma = schedule.alpha(t), schedule.sigma(t).clamp(min=1e-6)
    p, q = coefficients(target, alpha, sigma, data_std)
    snr = (alpha / sigma) ** 2
    return snr.clamp(max=gamma) / (p - q * alpha / sigma).square().clamp(min=1e-12)


class Noised(NamedTuple):
    """A batch at its random times: x = alpha x0 + sigma eps; alpha, sigma broadcast against x."""

    x0: Tensor
    x: Tensor
    eps: Tensor
    t: Tensor
    alpha: Tensor
    sigma: Tensor


def noised(schedule: Schedule, x0: Tensor, eps: Tensor, t: Tensor) -> Noised:
    """x0 (B, *S) with the noise `eps` at the times t (B,)."""
    alpha, sigma = (expand(f(t), x0) for f in (schedule.alpha, schedule.sigma))
    return Noised(x0, alpha * x0 + sigma * eps, eps, t, alpha, sigma)


class Diffusion(Objective):
    """Mean squared error of the network's output in the target's own units (Ho et al. 2020, eq. 14 for eps).

    For the edm target this is the loss of Karras et al. 2022 (eq. 8) with its weighting 1 / c_out^2.

    label_dropout: for a model with classes, the share of examples that are shown the null class instead of
    theirs (Ho & Salimans 2022). weighting: "min-snr" with `gamma`, see `min_snr`. bound: the variational
    bound beside it, or in its place.
    """

    model: Denoiser

    def __init__(
        self,
        model: Denoiser,
        times: Times,
        *,
        label_dropout: float = 0.0,
        weighting: str = "none",
        gamma: float = 5.0,
        bound: "Bound | None" = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.times = times
        self.label_dropout = label_dropout
        self.weighting, self.gamma = weighting, gamma
        self.bound = bound

    def loss(self, phase: str, batch: Batch, noise: Noise) -> Loss:
        """The loss per pixel or latent value; one random time an example.

        Raises:
            ValueError: the model has classes and the batch no labels.
        """
        # one uniform number shared out over the batch would depend on the batch; each example draws its own
        u, eps = noise.uniform(rng.TIME), noise.normal(rng.EPS, tuple(batch.x.shape[1:]))
        if self.bound is not None:
            step, weight = self.bound.steps(u)
            t = self.bound.times[step]
        else:
            t = self.times(u)
        at = noised(self.model.schedule, batch.x, eps, t)
        output, share = self.model.output(at.x, t, self._condition(batch, noise))
        error = self._error(at, output)
        if self.bound is None:
            loss = error.mean()
            return Loss(loss, {"loss": loss.detach()})
        bits = self.bound(self.model, at, step, output, share)
        each = bits if self.bound.weight is None else error + self.bound.weight * bits
        if self.training:
            self.bound.steps.note(step, each)
        loss = (weight * each).mean()
        logs = {"loss": loss, "mse": (weight * error).mean(), "vlb": (weight * bits).mean()}
        return Loss(loss, {name: value.detach() for name, value in logs.items()})

    def _error(self, at: Noised, output: Tensor) -> Tensor:
        """(B,) weighted squared errors of the network's output."""
        model = self.model
        p, q = coefficients(model.target, at.alpha, at.sigma, model.data_std)
        error = F.mse_loss(output, p * at.x0 + q * at.eps, reduction="none").flatten(1).mean(dim=1)
        if self.weighting == "min-snr":
            error = error * min_snr(model.schedule, model.target, at.t, model.data_std, self.gamma)
        return error

    def stepped(self) -> None:
        """The losses of the step join the history of importance sampling."""
        if self.bound is not None:
            self.bound.steps.commit()

    def _condition(self, batch: Batch, noise: Noise) -> Tensor | None:
        """The labels that the network is shown: those of the batch, some of them dropped in training."""
        if not self.model.classes:
            return None
        if batch.label is None:
            raise ValueError("a class-conditional model needs labels and this batch has none")
        if not self.training or self.label_dropout == 0:
            return batch.label
        dropped = noise.uniform(rng.LABEL) < self.label_dropout
        return torch.where(dropped, self.model.classes, batch.label)


class Bound(nn.Module):
    """(B,) bits/dim of T L_t at random steps of the chain of T = 1000 steps: their mean is the variational
    bound without its constant L_T.

    weight: beside the squared error, as the hybrid loss of Nichol & Dhariwal 2021 (eq. 16, where 0.001), in
    which the bound teaches the variance alone; None is the bound in its place, which teaches both.
    importance: steps by `ImportantSteps`. discrete: see `bound.step_bits`.
    """

    times: Tensor

    def __init__(
        self, schedule: Schedule, *, weight: float | None, importance: bool = False, discrete: bool = True
    ) -> None:
        super().__init__()
        self.weight, self.discrete = weight, discrete
        self.steps = ImportantSteps(CHAIN_STEPS) if importance else UniformSteps(CHAIN_STEPS)
        chain = make_chain(schedule, times(CHAIN_STEPS, steps=CHAIN_STEPS))
        for name, values in chain._asdict().items():
            self.register_buffer(name, values, persistent=False)

    def forward(
        self, model: Denoiser, at: Noised, step: Tensor, output: Tensor, share: Tensor | None
    ) -> Tensor:
        """The bits of the network's answer (output, share) at the steps (B,) of `at`."""
        chain = Chain(*(getattr(self, name) for name in Chain._fields))
        mean = output if self.weight is None else output.detach()
        predicted, _ = solve(mean, at.x, at.alpha, at.sigma, model.target, model.data_std)
        log_var = log_variance(chain, step, "learned", share)
        return CHAIN_STEPS * step_bits(chain, step, at.x0, predicted, log_var, discrete=self.discrete)
