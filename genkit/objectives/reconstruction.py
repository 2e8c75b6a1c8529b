"""The loss of an autoencoder: how badly images come back, plus what their codes cost."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import noise as rng
from ..codecs.autoencoder import Autoencoder
from ..data.source import Batch
from ..train.objective import Loss, Noise, Objective

RECON = ("bce", "mse", "gaussian")


def bernoulli_nats(logits: Tensor, x: Tensor) -> Tensor:
    """-log p(x) summed over the batch, in nats: each pixel, as a brightness in [0, 1], is the mean of a coin.

    logits: (B, ...) of the brightness; x: the same shape, in [-1, 1].
    """
    return F.binary_cross_entropy_with_logits(logits, 0.5 * x + 0.5, reduction="sum")


def gaussian_nats(mean: Tensor, x: Tensor, log_sigma: Tensor) -> Tensor:
    """-log N(x; mean, sigma^2) summed over the batch, in nats: the density of pixels in [-1, 1].

    log_sigma: 0-dim.
    """
    square = F.mse_loss(mean, x, reduction="sum")
    constant = log_sigma + 0.5 * math.log(2.0 * math.pi)
    return 0.5 * square * torch.exp(-2.0 * log_sigma) + x.numel() * constant


class Reconstruction(Objective):
    """-ELBO in nats per image: reconstruction + beta * penalty (beta: Higgins et al. 2017).

    recon "bce": Bernoulli on brightness in [0, 1]; the model's raw output is its logit.
    recon "mse": half the squared error of pixels in [-1, 1], summed: a normal of variance 1, no constant.
    recon "gaussian": a normal whose one sigma is learned, constants included (sigma-VAE, Rybkin et al. 2021).
    """

    model: Autoencoder

    def __init__(self, model: Autoencoder, recon: str, beta: float) -> None:
        super().__init__()
        self.model, self.recon, self.beta = model, recon, beta

    def loss(self, phase: str, batch: Batch, noise: Noise) -> Loss:
        """-ELBO with one posterior sample an image; logs its two terms and the bottleneck's own numbers."""
        model, x = self.model, batch.x
        code, raw = model(x, noise=noise.normal(rng.POSTERIOR, model.latent_shape))
        recon = self.nats(raw, x) / len(x)
        penalty = code.penalty.mean()
        total = recon + self.beta * penalty
        logs = {"loss": total.detach(), "recon": recon.detach(), "kl": penalty.detach(), **code.logs}
        return Loss(total, logs)

    def nats(self, raw: Tensor, x: Tensor) -> Tensor:
        """-log p(x | z) summed over the batch, for the model's raw output."""
        if self.recon == "bce":
            return bernoulli_nats(raw, x)
        if self.recon == "mse":
            return 0.5 * F.mse_loss(raw, x, reduction="sum")
        return gaussian_nats(raw, x, self.model.log_sigma)
