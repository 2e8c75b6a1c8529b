"""The average of the weights over training (EMA), which is what gets saved and sampled from."""

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn


class _Pairs(NamedTuple):
    """What is averaged and of what. Buffers by name, as a module may put another in its place."""

    averaged: list[Tensor]
    current: list[Tensor]
    buffers: list[tuple[dict[str, Tensor | None], dict[str, Tensor | None], str]]


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
        self._pairs: _Pairs | None = None

    def _found(self) -> _Pairs:
        if self._pairs is None:  # not before: what is loaded may move them
            both = list(zip(self.module.modules(), self._source.modules()))
            names = [
                (mine._buffers, theirs._buffers, name) for mine, theirs in both for name in mine._buffers
            ]
            self._pairs = _Pairs(list(self.module.parameters()), list(self._source.parameters()), names)
        return self._pairs

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after `step` optimiser steps (from 1)."""
        averaged, current, buffers = self._found()
        half_life = self.share * step
        if half_life < 1:
            torch._foreach_copy_(averaged, current)
        else:
            torch._foreach_lerp_(averaged, current, 1 - 0.5 ** (1 / half_life))
        for mine, theirs, name in buffers:
            ours, other = mine[name], theirs[name]
            if ours is not None and other is not None:
                ours.copy_(other)
