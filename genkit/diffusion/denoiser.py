"""A network with its schedule and target: x_t -> the predicted (x0, eps)."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .schedules import Schedule
from .targets import input_scale, solve


class Prediction(NamedTuple):
    """x0, eps: shaped like x, float32. var: log-variance interpolation of Nichol & Dhariwal 2021 (eq. 15), or None."""

    x0: Tensor
    eps: Tensor
    var: Tensor | None = None


Denoise = Callable[[Tensor, Tensor], Prediction]  # (x, t) with every condition bound


def expand(values: Tensor, x: Tensor) -> Tensor:
    """`values` () or (B,) shaped to broadcast against x (B, …), in x's type."""
    return values.to(x.dtype).reshape(values.shape + (1,) * (x.ndim - values.ndim)) if values.ndim else values.to(x)


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


def bind(model: Denoiser, cond: Tensor | None = None) -> Denoise:
    """`model` with its condition fixed."""
    return lambda x, t: model(x, t, cond)
