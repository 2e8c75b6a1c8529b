"""A network with its schedule and target: x_t -> the predicted (x0, eps)."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .schedules import Schedule
from .targets import input_scale, solve


class Prediction(NamedTuple):
    """x0, eps: shaped like x, float32. var: log-variance interpolation of Nichol & Dhariwal 2021 (eq. 15),
    or None."""

    x0: Tensor
    eps: Tensor
    var: Tensor | None = None


Denoise = Callable[[Tensor, Tensor], Prediction]  # (x, t) with every condition bound


def expand(values: Tensor, x: Tensor) -> Tensor:
    """`values` () or (B,) in x's type, shaped to broadcast against x (B, …).

    A 0-dim tensor stays on the CPU, where arithmetic with a device tensor needs no copy and no sync.
    """
    if values.ndim == 0:
        return values.to(x.dtype)
    return values.to(x.device, x.dtype).reshape(values.shape + (1,) * (x.ndim - 1))


class Denoiser(nn.Module):
    """network(x (B, *S), level (B,), cond) -> (B, *S) with its schedule, its target and the data's spread."""

    def __init__(self, network: nn.Module, schedule: Schedule, target: str, data_std: float = 1.0) -> None:
        super().__init__()
        self.network = network
        self.schedule = schedule
        self.target = target
        self.data_std = data_std

    def output(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        """The network's raw output in the target's units, float32. x: (B, *S); t: () or (B,)."""
        alpha, sigma = (expand(f(t), x) for f in (self.schedule.alpha, self.schedule.sigma))
        scaled = x * input_scale(self.target, alpha, sigma, self.data_std)
        level = self.schedule.embed(t).to(torch.float32).expand(len(x))
        return self.network(scaled, level.to(x.device), cond).float()

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Prediction:
        """The prediction at time t. x: (B, *S); t: () or (B,), on x's device or the CPU."""
        y = self.output(x, t, cond)
        alpha, sigma = (expand(f(t), x) for f in (self.schedule.alpha, self.schedule.sigma))
        return Prediction(*solve(y, x, alpha, sigma, self.target, self.data_std))


def clipped(denoise: Denoise, schedule: Schedule, low: float = -1.0, high: float = 1.0) -> Denoise:
    """`denoise` with x0 kept in [low, high] and eps made consistent with it (Ho et al. 2020's code).

    A sampler run backwards (inversion) must not use it: clipping cannot be undone.
    """

    def clip(x: Tensor, t: Tensor) -> Prediction:
        prediction = denoise(x, t)
        x0 = prediction.x0.clamp(low, high)
        alpha, sigma = (expand(f(t), x) for f in (schedule.alpha, schedule.sigma))
        return prediction._replace(x0=x0, eps=(x - alpha * x0) / sigma)

    return clip


def bind(model: Denoiser, cond: Tensor | None = None) -> Denoise:
    """`model` with its condition fixed."""
    return lambda x, t: model(x, t, cond)
