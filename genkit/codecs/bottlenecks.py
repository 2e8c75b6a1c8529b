"""Bottlenecks: what turns an encoder's output into a code, and what that code costs.

A bottleneck is a module with `width_in(channels)`, the channels it wants from the encoder for a code of
`channels`; `forward(h, noise)`, the `Code`; `has_prior`, whether normal codes decode to new images; `cost`,
the name of its penalty in logs, empty where it has none; and, where it has no use for noise,
`random = False`, so that none is drawn for it.
"""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .. import dist
from . import gaussian

COLLAPSED = 0.01  # nats: a unit whose mean KL is below carries nothing
DEAD = 0.01  # a sparse unit that is active for less than this share of rho is never on


class Code(NamedTuple):
    """The code of a batch. z: (B, C, H, W) float32; a latent vector is C x 1 x 1."""

    z: Tensor
    penalty: Tensor  # (B,) float32, per image: KL in nats, commitment, sparsity or 0
    tokens: Tensor | None = None  # (B, H, W) int64, where the code is discrete
    logs: Mapping[str, Tensor] = MappingProxyType({})  # 0-dim, detached: how well the bottleneck is used
    units: Tensor | None = None  # (B, C, H, W) float32: each unit's share of the penalty, where it has one


class GaussianBottleneck(nn.Module):
    """A diagonal normal posterior against a standard normal prior (Kingma & Welling 2014)."""

    has_prior, cost = True, "kl"

    def width_in(self, channels: int) -> int:
        """Channels wanted from the encoder: a mean and a log variance for each of the code's."""
        return 2 * channels

    def forward(self, h: Tensor, noise: Tensor | None = None) -> Code:
        """The code of h: (B, 2 C, H, W), its penalty the KL in nats.

        noise: (B, C, H, W) standard normal samples the posterior; without it z is its mean.
        """
        z, kl, penalty = gaussian.coded(h.float(), noise)
        with torch.no_grad():
            unit = kl.mean(dim=0)
            collapsed = (unit < COLLAPSED).sum()
            logs = {"kl_unit": unit.mean(), "collapsed": collapsed, "idle": collapsed / unit.numel()}
        return Code(z, penalty, logs=logs, units=kl)

    def posterior(self, h: Tensor) -> tuple[Tensor, Tensor]:
        """(mean, log variance), each (B, C, H, W) float32, of h: (B, 2 C, H, W)."""
        return gaussian.posterior(h.float())


class IdentityBottleneck(nn.Module):
    """No bottleneck but the code's size: a plain autoencoder."""

    has_prior, cost, random = False, "", False

    def width_in(self, channels: int) -> int:
        """Channels wanted from the encoder."""
        return channels

    def forward(self, h: Tensor, noise: Tensor | None = None) -> Code:
        """The code h itself, (B, C, H, W), free of charge; `noise` has no use here."""
        z = h.float()
        return Code(z, z.new_zeros(len(z)))


class SparseBottleneck(nn.Module):
    """Sigmoid units that are to be active a share `rho` of the time each (Ng 2011, "Sparse autoencoder").

    A unit to which the encoder gives 0 is active `rho`: training starts where it is to end.

    Raises:
        ValueError: rho is not inside (0, 1).
    """

    has_prior, cost, random = False, "sparsity", False

    def __init__(self, rho: float) -> None:
        super().__init__()
        if not 0.0 < rho < 1.0:
            raise ValueError(f"the mean activation must lie inside (0, 1), got {rho}")
        self.rho = rho
        self.rest = math.log(rho / (1.0 - rho))

    def width_in(self, channels: int) -> int:
        """Channels wanted from the encoder."""
        return channels

    def forward(self, h: Tensor, noise: Tensor | None = None) -> Code:
        """The code sigmoid(h + logit rho), (B, C, H, W); `noise` has no use here.

        The penalty is the KL between coins of mean rho and of each unit's mean activation over the batch,
        summed over the units, the same for every image. In training that mean is over all processes;
        gradient accumulation takes it over each part of the batch.
        """
        z = (h.float() + self.rest).sigmoid()
        mean = z.mean(dim=0)
        if self.training:
            mean = dist.average(mean)
        penalty = bernoulli_kl(self.rho, mean).sum()
        with torch.no_grad():
            logs = {"activation": mean.mean(), "dead": (mean < DEAD * self.rho).sum().float()}
        return Code(z, penalty.expand(len(z)), logs=logs)


class Standardised(nn.Module):
    """Sparse codes as a decoder learns best from: a coin of mean `rho` gets mean 0 and variance 1."""

    def __init__(self, rho: float) -> None:
        super().__init__()
        self.rho, self.scale = rho, (rho * (1.0 - rho)) ** -0.5

    def forward(self, z: Tensor) -> Tensor:
        """(z - rho) / sqrt(rho (1 - rho)) for z of any shape."""
        return (z - self.rho) * self.scale


def bernoulli_kl(rho: float, mean: Tensor) -> Tensor:
    """KL(coin of mean rho || coin of mean `mean`) in nats, elementwise; rho inside (0, 1)."""
    # a unit that is saturated for a whole batch has a mean of exactly 0 or 1
    mean = mean.clamp(1e-6, 1.0 - 1e-6)
    return rho * (math.log(rho) - mean.log()) + (1.0 - rho) * (math.log1p(-rho) - torch.log1p(-mean))
