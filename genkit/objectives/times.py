"""Random training times: continuous ones, and the steps of a chain."""

import torch
from torch import Tensor, nn

from .. import dist
from ..diffusion.schedules import Schedule

TIME_SAMPLING = ("uniform", "lognormal", "importance")


class Times(nn.Module):
    """Random training times: uniform on [0, 1], or such that ln(sigma / alpha) is normal (Karras et al.
    2022). On the straight path of flow matching the latter is t = sigmoid(normal), the logit-normal times of
    Esser et al. 2024.

    mean, std: of ln(sigma / alpha), for lognormal.
    """

    grid: Tensor
    level: Tensor

    def __init__(self, schedule: Schedule, sampling: str, mean: float, std: float) -> None:
        super().__init__()
        self.sampling, self.mean, self.std = sampling, mean, std
        # sigma / alpha rises with t: its logarithm on a fine grid inverts it for every schedule alike
        t = torch.linspace(0, 1, 8193, dtype=torch.float64)[1:]
        level = (schedule.sigma(t) / schedule.alpha(t).clamp(min=1e-12)).log()
        self.register_buffer("grid", t.float(), persistent=False)
        self.register_buffer("level", level.float(), persistent=False)

    def forward(self, u: Tensor) -> Tensor:
        """(B,) times in (0, 1] for u: (B,) uniform on [0, 1)."""
        if self.sampling == "uniform":
            return 1 - u
        wanted = self.mean + self.std * torch.special.ndtri(u.clamp(1e-6, 1 - 1e-6))
        place = torch.searchsorted(self.level, wanted).clamp(1, len(self.grid) - 1)
        low, high = self.level[place - 1], self.level[place]
        share = ((wanted - low) / (high - low)).clamp(0, 1)
        return torch.lerp(self.grid[place - 1], self.grid[place], share)


class UniformSteps(nn.Module):
    """Every step of a chain with the same probability."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.steps = steps

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) int64 steps in 0 … steps - 1 for u: (B,) uniform on [0, 1), and their weights, 1."""
        return (u.double() * self.steps).long(), torch.ones_like(u)

    def note(self, step: Tensor, loss: Tensor) -> None:
        """Nothing is learned from the losses."""

    def commit(self) -> None:
        """Nothing is kept."""


class ImportantSteps(nn.Module):
    """Steps of a chain in proportion to the root mean square of the last losses of each (Nichol & Dhariwal
    2021, eq. 18), and all alike until each has `keep` losses.

    What is kept is a function of the losses of finished optimiser steps, in order of the examples' positions:
    it is the same in every process and for every accumulation (up to the rounding of the losses), and
    travels in the training state.

    keep: losses of a step that are remembered. floor: the share of draws that is uniform in any case.
    """

    losses: Tensor
    seen: Tensor

    def __init__(self, steps: int, keep: int = 10, floor: float = 0.001) -> None:
        super().__init__()
        self.steps, self.keep, self.floor = steps, keep, floor
        # the row past the last takes what is not to be kept, so that no shape depends on the data
        self.register_buffer("losses", torch.zeros(steps + 1, keep))
        self.register_buffer("seen", torch.zeros(steps, dtype=torch.int64))
        self._pending: list[tuple[Tensor, Tensor]] = []

    def probabilities(self) -> Tensor:
        """(steps,) float64 probabilities of the steps."""
        size = self.losses[: self.steps].double().square().mean(dim=1).sqrt()
        even = torch.full_like(size, 1 / self.steps)
        learned = (1 - self.floor) * size / size.sum().clamp(min=1e-300) + self.floor * even
        return torch.where((self.seen >= self.keep).all(), learned, even)

    def forward(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """(B,) int64 steps for u: (B,) uniform on [0, 1), and the weights 1 / (steps p) that keep the mean
        loss what it is under uniform steps."""
        p = self.probabilities()
        edges = p.cumsum(0)
        step = torch.searchsorted(edges, u.double() * edges[-1], right=True).clamp(max=self.steps - 1)
        return step, (1 / (self.steps * p[step])).to(u.dtype)

    @torch.compiler.disable
    def note(self, step: Tensor, loss: Tensor) -> None:
        """Remember the losses (B,) of steps (B,) until `commit`."""
        self._pending.append((step.detach(), loss.detach().float()))

    @torch.no_grad()
    def commit(self) -> None:
        """Take what was noted since the last time, in all processes, into the history."""
        if not self._pending:
            return
        step, loss = (dist.gather_rows(torch.cat(column)) for column in zip(*self._pending))
        self._pending = []
        step, order = step.sort(stable=True)
        count = torch.zeros_like(self.seen).scatter_add_(0, step, torch.ones_like(step))
        turn = torch.arange(len(step), device=step.device) - (count.cumsum(0) - count)[step]
        late = turn >= count[step] - self.keep
        # a ring: the order within a row does not matter, only which losses are the last
        slot = (self.seen[step] + turn) % self.keep
        self.losses[torch.where(late, step, self.steps), slot] = loss[order]
        self.losses[self.steps] = 0
        self.seen += count
