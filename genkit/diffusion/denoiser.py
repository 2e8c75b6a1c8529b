"""A network with its schedule and target: x_t -> the predicted (x0, eps)."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .schedules import Schedule
from .targets import input_scale, solve


class Prediction(NamedTuple):
    """x0, eps: shaped like x, float32.

    var: where the model learned a variance, the share v in [0, 1] of the forward step's in log variance =
    v log(large) + (1 - v) log(small) (Nichol & Dhariwal 2021, eq. 15), shaped like x; else None.
    """

    x0: Tensor
    eps: Tensor
    var: Tensor | None = None


Denoise = Callable[[Tensor, Tensor], Prediction]  # (x, t) with every condition bound


def expand(values: Tensor, x: Tensor) -> Tensor:
    """`values` () or (B,), shaped to broadcast against x (B, …) and to leave its type as it is.

    A 0-dim tensor stays on the CPU, where arithmetic with a device tensor needs no copy and no sync, and in
    float64, in which alpha and sigma near the ends keep the digits that solving for x0 and eps needs.
    """
    if values.ndim == 0:
        return values
    return values.to(x.device, x.dtype).reshape(values.shape + (1,) * (x.ndim - 1))


def per_example(values: Tensor, x: Tensor) -> Tensor:
    """(B,) float32 on x's device of `values` () or (B,), one for each example of x (B, …)."""
    if values.ndim == 0 and values.device.type == "cpu":
        # filled in there: a copy from the CPU would make the host wait for the device at every step
        return torch.full((len(x),), values.item(), device=x.device, dtype=torch.float32)
    return values.to(x.device, torch.float32).expand(len(x))


class Denoiser(nn.Module):
    """network(x (B, *S), level (B,), cond) -> (B, *S) with its schedule, its target and the data's spread.

    classes: how many the network knows; index `classes` is the null class, and 0 means no condition.
    learn_variance: the network answers with 2 C channels, the second half the logit of `Prediction.var`.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        target: str,
        data_std: float = 1.0,
        *,
        classes: int = 0,
        learn_variance: bool = False,
    ) -> None:
        super().__init__()
        self.network = network
        self.schedule = schedule
        self.target = target
        self.data_std = data_std
        self.classes = classes
        self.learn_variance = learn_variance

    def output(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The network's answer in the target's units, and `Prediction.var`, float32.

        x: (B, *S); t: () or (B,), on x's device or the CPU; cond: (B,) int64 labels, or (B, E) embeddings of
        them; None is the null class.
        """
        alpha, sigma = (expand(f(t), x) for f in (self.schedule.alpha, self.schedule.sigma))
        scaled = x * input_scale(self.target, alpha, sigma, self.data_std)
        y = self.network(scaled, per_example(self.schedule.embed(t), x), cond).float()
        if not self.learn_variance:
            return y, None
        y, raw = y.chunk(2, dim=1)
        # Nichol & Dhariwal's network answers in [-1, 1] unbounded; so does this one, and their weights fit
        return y, 0.5 * (raw + 1)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Prediction:
        """The prediction at time t; arguments as for `output`."""
        y, var = self.output(x, t, cond)
        alpha, sigma = (expand(f(t), x) for f in (self.schedule.alpha, self.schedule.sigma))
        return Prediction(*solve(y, x, alpha, sigma, self.target, self.data_std), var)

    def null(self, n: int) -> Tensor:
        """(n,) int64 labels of the null class."""
        return torch.full((n,), self.classes, dtype=torch.int64)

    def embed(self, label: Tensor) -> Tensor:
        """(B, E) float32 embeddings of (B,) labels, which may stand in their place as a condition."""
        return self.network.embed_label(label).float()  # type: ignore[operator]


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
