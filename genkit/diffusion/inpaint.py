"""Inpainting with a model that was never trained for it: the known part is imposed at every noise level."""

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from .denoiser import Denoise
from .samplers import Step, StepNoise, ddpm, levels, posterior
from .schedules import Schedule


def blend(
    denoise: Denoise,
    schedule: Schedule,
    x: Tensor,
    known: Tensor,
    mask: Tensor,
    times: Tensor,
    *,
    noise: StepNoise,
) -> Iterator[Step]:
    """Ancestral sampling whose known part is `known`, noised anew to the level of each step (Song et al.
    2021, "score-based generative modeling", app. I.2).

    The unknown part never learns how its own choice fits: `repaint` gives it the occasion. x: (B, *S) at
    times[0]; mask: broadcasts against x, 1 is known; noise: draws number 2k and 2k + 1 are of step k.
    """
    yield from repaint(denoise, schedule, x, known, mask, times, resample=1, noise=noise)


def repaint(
    denoise: Denoise,
    schedule: Schedule,
    x: Tensor,
    known: Tensor,
    mask: Tensor,
    times: Tensor,
    *,
    resample: int = 10,
    jump: int = 1,
    noise: StepNoise,
) -> Iterator[Step]:
    """`blend` that walks every stretch of `jump` steps `resample` times, diffusing back in between (Lugmayr
    et al. 2022, alg. 1 and app. B).

    So the unknown part is drawn again given a known part that it has already agreed with. A jump back is one
    draw of x_t given x_s, the same in law as the paper's single steps. Yields one Step a network evaluation;
    `walk` counts them. Arguments as for `blend`; every use of `noise` has its own number.

    Raises:
        ValueError: resample or jump below 1.
    """
    given = mask.to(x.device) > 0.5
    count = itertools.count()
    place = 0
    for start, end in walk(len(times) - 1, resample, jump):
        if start < place:
            x = diffuse(schedule, x, times[place], times[start], noise(next(count)))
        step = next(ddpm(denoise, schedule, x, times[start : end + 1], noise=lambda _: noise(next(count))))
        alpha, sigma = levels(schedule, times[end])
        # at t = 0 the known part is itself, to the bit
        imposed = alpha * known + sigma * noise(next(count)) if sigma > 0 else known
        x, place = torch.where(given, imposed, step.x), end
        yield step._replace(x=x)


def diffuse(schedule: Schedule, x: Tensor, s: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """A draw of x_t given x_s = x, for t > s. noise: standard normal, shaped like x."""
    ratio = levels(schedule, t)[0] / levels(schedule, s)[0]
    return ratio * x + posterior(schedule, t, s)[3] ** 0.5 * noise


def walk(n: int, resample: int, jump: int = 1) -> list[tuple[int, int]]:
    """The denoising steps (i, i + 1) of RePaint on n + 1 times, in order; where one starts before the last
    one's end, x is diffused back.

    As in the authors' code, the way back starts at states 1, 1 + jump, 1 + 2 jump, … steps before the data,
    as far as it stays on the times.

    Raises:
        ValueError: resample or jump below 1.
    """
    if min(resample, jump) < 1:
        raise ValueError(f"resample and jump must be at least 1, got {resample} and {jump}")
    turns = {n - 1 - left: resample - 1 for left in range(0, n - jump, jump)}
    steps, place = [], 0
    while place < n:
        steps.append((place, place + 1))
        place += 1
        if turns.get(place, 0) > 0:
            turns[place] -= 1
            place -= jump
    return steps
