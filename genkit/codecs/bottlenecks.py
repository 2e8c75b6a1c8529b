"""Bottlenecks: what turns an encoder's output into a code, and what that code costs.

A bottleneck is a module with `width_in(channels)`, the channels it wants from the encoder for a code of
`channels`; `forward(h, noise)`, the `Code`; and `has_prior`, whether normal codes decode to new images.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor, nn

COLLAPSED = 0.01  # nats: a unit whose mean KL is below carries nothing


class Code(NamedTuple):
    """The code of a batch. z: (B, C, H, W) float32; a latent vector is C x 1 x 1."""

    z: Tensor
    penalty: Tensor  # (B,) float32, per image: KL in nats, commitment, sparsity or 0
    tokens: Tensor | None = None  # (B, H, W) int64, where the code is discrete
    logs: Mapping[str, Tensor] = MappingProxyType({})  # 0-dim, detached: how well the bottleneck is used


class GaussianBottleneck(nn.Module):
    """A diagonal normal posterior against a standard normal prior (Kingma & Welling 2014)."""

    has_prior = True

    def width_in(self, channels: int) -> int:
        """Channels wanted from the encoder: a mean and a log variance for each of the code's."""
        return 2 * channels

    def forward(self, h: Tensor, noise: Tensor | None = None) -> Code:
        """The code of h: (B, 2 C, H, W), its penalty the KL in nats.

        noise: (B, C, H, W) standard normal samples the posterior; without it z is its mean.
        """
        mean, log_var = h.float().chunk(2, dim=1)
        # exp() of a stray log variance must not overflow; nothing of use lies outside (Rombach et al. 2022).
        log_var = log_var.clamp(-30.0, 20.0)
        std = torch.exp(0.5 * log_var)
        kl = gaussian_kl(mean, std, log_var)
        z = mean if noise is None else torch.addcmul(mean, std, noise)
        with torch.no_grad():
            unit = kl.mean(dim=0)
            logs = {"kl_unit": unit.mean(), "collapsed": (unit < COLLAPSED).sum().float()}
        return Code(z, kl.sum(dim=(1, 2, 3)), logs=logs)


def gaussian_kl(mean: Tensor, std: Tensor, log_var: Tensor) -> Tensor:
    """KL(N(mean, std^2) || N(0, 1)) of each unit, in nats; log_var = 2 log std (Kingma & Welling 2014)."""
    return 0.5 * (mean.square() + std.square() - log_var - 1.0)


class IdentityBottleneck(nn.Module):
    """No bottleneck but the code's size: a plain autoencoder."""

    has_prior = False

    def width_in(self, channels: int) -> int:
        """Channels wanted from the encoder."""
        return channels

    def forward(self, h: Tensor, noise: Tensor | None = None) -> Code:
        """The code h itself, (B, C, H, W), free of charge; `noise` has no use here."""
        z = h.float()
        return Code(z, z.new_zeros(len(z)))
