"""Inversion: the x_1 from which a deterministic sampler regenerates an image, also under guidance."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ..errors import InputError
from .denoiser import Denoise, Denoiser, Prediction
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


def null_text(
    model: Denoiser,
    schedule: Schedule,
    cond: Tensor,
    null: Tensor,
    scale: float,
    trajectory: Sequence[Tensor],
    times: Tensor,
    *,
    inner: int = 10,
    lr: float = 1e-2,
    tolerance: float = 1e-5,
) -> list[Tensor]:
    """n null embeddings (B, E), one a step, with which guided DDIM follows `trajectory` back to the data.

    The list of `null_text_steps`, which has the arguments.
    """
    steps = null_text_steps(
        model,
        schedule,
        cond,
        null,
        scale,
        trajectory,
        times,
        inner=inner,
        lr=lr,
        tolerance=tolerance,
    )
    return list(steps)


def null_text_steps(
    model: Denoiser,
    schedule: Schedule,
    cond: Tensor,
    null: Tensor,
    scale: float,
    trajectory: Sequence[Tensor],
    times: Tensor,
    *,
    inner: int = 10,
    lr: float = 1e-2,
    tolerance: float = 1e-5,
) -> Iterator[Tensor]:
    """The null embedding (B, E) of each step from noise to data, as soon as it is found (Mokady et al. 2023,
    alg. 1).

    Plain inversion runs at guidance 1; sampled at guidance `scale` its noise leads elsewhere. Each step's
    null embedding starts from the one before and takes up to `inner` steps of Adam towards the guided DDIM
    step that lands on the trajectory. An image stops once its mean squared distance is below `tolerance`;
    the images of a batch do not see each other.

    cond, null: (B,) labels or (B, E) embeddings. trajectory: the n + 1 points (B, *S) of the inversion at
    guidance 1, noise first, at `times` (n + 1,). lr: at step k it is lr (1 - k / 2n), which at n = 50 is the
    paper's; the paper's tolerance rises from 1e-5 by 2e-5 a step, which in pixels is a visible error.

    Raises:
        InputError: the weights are of 16 bits, where the optimisation fails.
    """
    if any(p.dtype in (torch.bfloat16, torch.float16) for p in model.parameters()):
        raise InputError("null-text optimisation fails in 16 bits; load the model with --precision fp32")
    n = len(times) - 1
    cond, null = (_embedded(model, c) for c in (cond, null))
    x = _own(trajectory[0])
    for k in range(n):
        step = _guided_step(model, schedule, cond, scale, x, times[k : k + 2])
        null = _fit(step, _own(trajectory[k + 1]), null, inner, lr * (1 - k / (2 * n)), tolerance)
        with torch.no_grad():
            x = step(null)
        yield null


def _own(x: Tensor) -> Tensor:
    """A copy that autograd takes, also of a tensor made under inference mode."""
    with torch.inference_mode(False):
        return x.detach().clone()


def _embedded(model: Denoiser, cond: Tensor) -> Tensor:
    """`cond` as (B, E) embeddings."""
    return _own(cond if cond.is_floating_point() else model.embed(cond))


def _guided_step(
    model: Denoiser, schedule: Schedule, cond: Tensor, scale: float, x: Tensor, pair: Tensor
) -> Callable[[Tensor], Tensor]:
    """null (B, E) -> x after the guided DDIM step from pair[0] to pair[1]; the conditional half is computed
    once."""
    with torch.inference_mode(False), torch.no_grad():
        known = model(x, pair[0], cond)

    def step(null: Tensor) -> Tensor:
        def denoise(x: Tensor, t: Tensor) -> Prediction:
            x0, eps, _ = model(x, t, null)
            return Prediction(torch.lerp(x0, known.x0, scale), torch.lerp(eps, known.eps, scale))

        with torch.inference_mode(False):
            return next(ddim(denoise, schedule, x, pair)).x

    return step


def _fit(
    step: Callable[[Tensor], Tensor], goal: Tensor, null: Tensor, inner: int, lr: float, tolerance: float
) -> Tensor:
    """(B, E) the null embedding after at most `inner` steps of Adam on |step(null) - goal|^2."""
    with torch.inference_mode(False), torch.enable_grad():
        free = null.detach().clone().requires_grad_()
        adam = torch.optim.Adam([free], lr=lr)
        for _ in range(inner):
            error = (step(free) - goal).square().flatten(1).mean(dim=1)
            active = error.detach() > tolerance
            if not active.any():
                break
            (free.grad,) = torch.autograd.grad(error.sum(), free)
            before = free.detach().clone()
            adam.step()
            with torch.no_grad():
                # an image that is done keeps what it has, whatever Adam's momentum says
                free.copy_(torch.where(active[:, None], free, before))
        return free.detach()


def null_at(nulls: Tensor, times: Tensor) -> Callable[[Tensor], Tensor]:
    """A function of t to the null embedding (B, E) found for the nearest of the steps' times.

    nulls: (B, n, E); times: those of the inversion, (n + 1,) on the CPU. Made for `classifier_free`.
    """
    starts = times[:-1]
    return lambda t: nulls[:, int((starts - t.cpu()).abs().argmin())]
