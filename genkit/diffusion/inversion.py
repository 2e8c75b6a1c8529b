"""Inversion: the x_1 from which a deterministic sampler regenerates an image."""

from collections.abc import Iterator

import torch
from torch import Tensor

from .denoiser import Denoise, Prediction
from .samplers import Step, ddim
from .schedules import Schedule


def invert(
    denoise: Denoise, schedule: Schedule, x: Tensor, times: Tensor, *, refine: int = 0
) -> Iterator[Step]:
    """DDIM run towards noise. x: (B, *S) data; times: the sampler's, falling to 0; they are walked backwards.

    Plain DDIM inversion (refine = 0; Song et al. 2021, sec. 4.3) evaluates the network at the start of
    each step, the sampler at its end, so the round trip has an error of first order in the step. Each
    refinement solves the sampler's own step for x by one fixed-point iteration (Pan et al. 2023,
    "accelerated iterative diffusion inversion"): x_s = (alpha_s / alpha_t) x_t + (sigma_s - alpha_s
    sigma_t / alpha_t) eps(x_s, s). `denoise` must not clip.
    """
    # x0 says nothing of eps at sigma = 0: the network is asked at the first noise it was trained on instead
    first = times.new_tensor(1e-3)

    def asked(x: Tensor, t: Tensor) -> Prediction:
        return denoise(x, torch.maximum(t, first))

    rising = times.flip(0)
    for t, s in zip(rising[:-1], rising[1:]):
        step = next(ddim(asked, schedule, x, rising.new_tensor([t, s])))
        for _ in range(refine):
            eps = asked(step.x, s).eps
            ratio = (schedule.alpha(s) / schedule.alpha(t)).item()
            gain = (schedule.sigma(s) - ratio * schedule.sigma(t)).item()
            step = step._replace(x=ratio * x + gain * eps)
        x = step.x
        yield step
