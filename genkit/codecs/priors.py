"""Priors for the codes of an adversarial autoencoder (Makhzani et al. 2016), and the bottleneck for them."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .. import noise as rng
from .bottlenecks import Code

RADIUS, OUTWARD, SIDEWAYS = 4.0, 0.8, 0.3  # of the mixture: its ring, and each normal's standard deviations
TURNS, SIZE, BLUR = 2.0, 4.0, 0.1  # of the swiss roll: turns, outer radius, and standard deviation across it


class Prior(NamedTuple):
    """A distribution of codes, which may have parts for classes to take.

    draw: (normal (B, C), place (B,)) -> z (B, C), normal being standard normal and place uniform on [0, 1).
    Part k of P is what places from k / P to (k + 1) / P give.
    units: of the codes it is for; None for any. parts: the largest P; None for any, 1 for no parts.
    """

    draw: Callable[[Tensor, Tensor], Tensor]
    units: int | None = None
    parts: int | None = 1


def gaussian(normal: Tensor, place: Tensor) -> Tensor:
    """z: (B, C), standard normal."""
    return normal


def mixture(normal: Tensor, place: Tensor) -> Tensor:
    """z: (B, 2) of ten normals on a ring, longer outward; place (B,) in [0, 1) decides which."""
    angle = (torch.floor(10.0 * place) * (2.0 * math.pi / 10.0)).to(normal.dtype)
    out = torch.stack([angle.cos(), angle.sin()], dim=1)
    side = torch.stack([-angle.sin(), angle.cos()], dim=1)
    return (RADIUS + OUTWARD * normal[:, :1]) * out + SIDEWAYS * normal[:, 1:] * side


def swiss_roll(normal: Tensor, place: Tensor) -> Tensor:
    """z: (B, 2) along a spiral, about as dense everywhere; place (B,) in [0, 1) is how far along it."""
    along = place.sqrt().to(normal.dtype)  # the length of such a spiral grows with the square of its angle
    angle = 2.0 * math.pi * TURNS * along
    return SIZE * along[:, None] * torch.stack([angle.cos(), angle.sin()], dim=1) + BLUR * normal


def place_in(part: Tensor, place: Tensor, parts: int) -> Tensor:
    """(B,) float64 places in the parts `part` (B,) of so many, given places (B,) in [0, 1) of the whole.

    In float64, because the last places of a part would round into the next one.
    """
    return (part + place.double()) / parts


PRIORS = {
    "gaussian": Prior(gaussian),
    "mixture": Prior(mixture, units=2, parts=10),
    "swiss-roll": Prior(swiss_roll, units=2, parts=None),
}


class PriorBottleneck(nn.Module):
    """Codes as the encoder gives them, which training shapes like the prior of that name."""

    has_prior, cost, random = True, "", False

    def __init__(self, prior: str) -> None:
        super().__init__()
        self.prior = PRIORS[prior]

    def width_in(self, channels: int) -> int:
        """Channels wanted from the encoder."""
        return channels

    def forward(self, h: Tensor, noise: Tensor | None = None) -> Code:
        """The code h itself, (B, C, H, W), free of charge; `noise` has no use here."""
        z = h.float()
        return Code(z, z.new_zeros(len(z)))

    def draw(
        self,
        seed: int,
        index: Tensor,
        shape: tuple[int, ...],
        label: Tensor | None = None,
        classes: int = 0,
    ) -> Tensor:
        """(B, *shape) codes of the prior; row i depends on `seed`, index[i] and label[i] only.

        label: (B,) of `classes` classes, each of which takes its part of the prior; None: all of the prior.
        """
        normal = rng.normal(seed, rng.INITIAL, index, (math.prod(shape),))
        place = rng.uniform(seed, rng.COMPONENT, index)
        if label is not None:
            place = place_in(label, place, classes)
        return self.prior.draw(normal, place).reshape(len(index), *shape)
