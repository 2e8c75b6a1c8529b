"""What a model family tells the training loop: its phases and the loss of each."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .. import noise as rng
from ..data.source import Batch
from ..nn.dropout import Dropout, give_keys

Draw = Callable[[int, int, Tensor, tuple[int, ...]], Tensor]  # a function of genkit.noise


class Phase(NamedTuple):
    """One optimiser of a step: single-loss training has one phase, adversarial training two."""

    name: str
    parameters: list[nn.Parameter]
    lr_scale: float = 1.0
    start: int = 0  # first step at which the phase runs
    every: int = 1


class Loss(NamedTuple):
    """total: 0-dim, what the phase minimises; logs: 0-dim detached tensors by name, averaged between log
    lines."""

    total: Tensor
    logs: dict[str, Tensor]


class Bank:
    """Numbers of several batches drawn together: small shapes cost calls, not arithmetic."""

    LIMIT = 1 << 17  # numbers; beyond it, drawing together gains nothing

    def __init__(self, seed: int, position: Tensor) -> None:
        self.seed, self.position = seed, position
        self._drawn: dict[tuple[Draw, int, tuple[int, ...]], Tensor] = {}

    def draw(self, how: Draw, stream: int, shape: tuple[int, ...]) -> Tensor | None:
        """The numbers of all positions, or None where they are too many to keep."""
        if len(self.position) * math.prod(shape) > self.LIMIT:
            return None
        if (how, stream, shape) not in self._drawn:
            self._drawn[how, stream, shape] = how(self.seed, stream, self.position, shape)
        return self._drawn[how, stream, shape]


class Noise(NamedTuple):
    """Random numbers of one training batch: row i depends on (seed, stream, position[i]) only.

    position: (B,) int64, the example's place in the endless sequence of examples seen in training.
    bank, row: where these numbers may have been drawn already, and from which row on.
    """

    seed: int
    position: Tensor
    bank: Bank | None = None
    row: int = 0

    def normal(self, stream: int, shape: tuple[int, ...]) -> Tensor:
        """(B, *shape) standard normal numbers on the device of `position`."""
        return self._draw(rng.normal, stream, shape)

    def uniform(self, stream: int, shape: tuple[int, ...] = ()) -> Tensor:
        """(B, *shape) numbers, uniform on [0, 1)."""
        return self._draw(rng.uniform, stream, shape)

    def words(self, stream: int, shape: tuple[int, ...]) -> Tensor:
        """(B, *shape) int32 numbers of 32 random bits."""
        return self._draw(rng.words, stream, shape)

    def _draw(self, how: Draw, stream: int, shape: tuple[int, ...]) -> Tensor:
        drawn = self.bank.draw(how, stream, shape) if self.bank is not None else None
        if drawn is not None:
            return drawn[self.row : self.row + len(self.position)]
        return how(self.seed, stream, self.position, shape)


class Objective(nn.Module):
    """A loss over a batch. `model` is the part that is averaged (EMA), saved and sampled from."""

    model: nn.Module
    dropouts: Sequence[Dropout] = ()  # the layers that need keys; the loop looks for them once

    def phases(self) -> list[Phase]:
        """One phase over all trainable parameters of the model, unless the family says otherwise."""
        return [Phase("main", [p for p in self.model.parameters() if p.requires_grad])]

    def loss(self, phase: str, batch: Batch, noise: Noise) -> Loss:
        """The loss of `phase`: the mean over the batch, so that accumulation and data parallelism average
        it."""
        raise NotImplementedError(phase)

    @torch.no_grad()
    def evaluate(self, batch: Batch, noise: Noise) -> dict[str, Tensor]:
        """Numbers worth reporting on held-out data, each a mean over the batch; the training loss by
        default."""
        return self.loss(self.phases()[0].name, batch, noise).logs

    def stepped(self) -> None:
        """Called after every optimiser step, of however many micro-batches, in every process."""

    def forward(self, phase: str, batch: Batch, noise: Noise) -> Loss:
        """`loss`, under the name that DistributedDataParallel and torch.compile hook into, with the masks of
        dropout those of the batch's positions."""
        give_keys(self.dropouts, lambda count: noise.words(rng.DROPOUT, (count, 2)))
        return self.loss(phase, batch, noise)
