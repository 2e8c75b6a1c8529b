"""The average of the weights over training (EMA), which is what gets saved and sampled from."""

import copy

import torch
from torch import Tensor, nn


class Average:
    """An exponential moving average whose half-life is a fixed share of the steps so far.

    Weights of step k then count as (k / n)^(ln 2 / share) at step n: a power-function average (Karras et
    al. 2024, "Analyzing and improving the training dynamics", eq. 4), which needs no knowledge of the
    run's length.
    """

    def __init__(self, model: nn.Module, share: float) -> None:
        self.module = copy.deepcopy(model).eval().requires_grad_(False)
        self.share = share
        self._source = model
        self._pairs: tuple[list[Tensor], list[Tensor]] | None = None

    def _tensors(self) -> tuple[list[Tensor], list[Tensor]]:
        if self._pairs is None:
            self._pairs = (list(self.module.parameters()), list(self._source.parameters()))
        return self._pairs

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after `step` optimiser steps (from 1)."""
        averaged, current = self._tensors()
        half_life = self.share * step
        if half_life < 1:
            torch._foreach_copy_(averaged, current)
        else:
            torch._foreach_lerp_(averaged, current, 1 - 0.5 ** (1 / half_life))
        for mine, theirs in zip(self.module.buffers(), self._source.buffers()):
            mine.copy_(theirs)
