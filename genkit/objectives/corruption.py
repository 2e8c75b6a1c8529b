"""Corruptions of images: what a denoising autoencoder learns to undo (Vincent et al. 2010)."""

from typing import NamedTuple

import torch
from torch import Tensor

from .. import noise as rng
from ..errors import InputError, unknown
from ..train.objective import Noise

KINDS = ("gaussian", "mask", "saltpepper")


class Corruption(NamedTuple):
    """What is done to images in [-1, 1].

    gaussian: normal noise of standard deviation `strength` is added to brightness in [0, 1], unclipped.
    mask: a pixel, all channels of it, turns black with probability `strength`.
    saltpepper: a pixel turns black or white, by a fair coin, with probability `strength`.
    """

    kind: str
    strength: float

    def __call__(self, x: Tensor, noise: Noise) -> Tensor:
        """x: (B, C, H, W), corrupted; row i by the numbers at noise.position[i] only."""
        if self.kind == "gaussian":
            return x + 2.0 * self.strength * noise.normal(rng.CORRUPT, tuple(x.shape[1:]))
        u = noise.uniform(rng.CORRUPT, (1, *x.shape[2:]))
        black = u < (self.strength if self.kind == "mask" else 0.5 * self.strength)
        x = torch.where(black, -1.0, x)
        if self.kind == "saltpepper":
            x = torch.where(~black & (u < self.strength), 1.0, x)
        return x


def parse_corruption(text: str) -> Corruption | None:
    """The corruption written as `gaussian:0.3`; None for `none`.

    Raises:
        InputError: an unknown kind, or a strength that is no number or out of range.
    """
    if text == "none":
        return None
    kind, _, number = text.partition(":")
    if kind not in KINDS:
        raise unknown("corruption in --corrupt", kind, (*KINDS, "none"))
    example = {"gaussian": "0.3", "mask": "0.5", "saltpepper": "0.1"}[kind]
    try:
        strength = float(number)
    except ValueError:
        raise InputError(f"--corrupt needs a strength like {kind}:{example}, got {text!r}") from None
    if kind == "gaussian" and not 0.0 < strength <= 10.0:
        raise InputError(f"--corrupt gaussian:S takes an S in (0, 10], in brightness of 0 to 1, got {text!r}")
    if kind != "gaussian" and not 0.0 < strength < 1.0:
        raise InputError(f"--corrupt {kind}:P takes a probability inside (0, 1), got {text!r}")
    return Corruption(kind, strength)
