"""Autoencoder: an encoder, a bottleneck and a decoder as one module."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .bottlenecks import Code

# A perfect fit must not drive the likelihood to infinity (Rybkin et al. 2021).
MIN_LOG_SIGMA = -6.0


class Autoencoder(nn.Module):
    """Images to codes and back.

    encoder: (B, C, H, W) in [-1, 1] -> what the bottleneck takes; decoder: codes -> (B, C, H, W) raw output.
    latent_shape: (C, H, W) of a code; a latent vector is C x 1 x 1.
    logits: the raw output is the logit of a pixel's brightness in [0, 1]; otherwise the pixel in [-1, 1].
    learn_sigma: holds `log_sigma`, the log standard deviation of the pixels around the decoder's output;
    sigma: fixes it instead.
    """

    fixed_log_sigma: Tensor | None

    def __init__(
        self,
        encoder: nn.Module,
        bottleneck: nn.Module,
        decoder: nn.Module,
        latent_shape: tuple[int, int, int],
        *,
        logits: bool = False,
        learn_sigma: bool = False,
        sigma: float | None = None,
    ) -> None:
        super().__init__()
        self.encoder, self.bottleneck, self.decoder = encoder, bottleneck, decoder
        self.latent_shape, self.logits = latent_shape, logits
        self.raw_log_sigma = nn.Parameter(torch.zeros(1)) if learn_sigma and sigma is None else None
        fixed = None if sigma is None else torch.tensor(math.log(sigma))
        self.register_buffer("fixed_log_sigma", fixed, persistent=False)  # the configuration keeps it

    @property
    def log_sigma(self) -> Tensor:
        """0-dim log standard deviation of a pixel in [-1, 1].

        Raises:
            ValueError: the autoencoder was built without `learn_sigma` and `sigma`.
        """
        if self.fixed_log_sigma is not None:
            return self.fixed_log_sigma
        if self.raw_log_sigma is None:
            raise ValueError("this autoencoder has no log_sigma; build it with learn_sigma=True")
        return MIN_LOG_SIGMA + F.softplus(self.raw_log_sigma[0] - MIN_LOG_SIGMA)

    def encode(self, x: Tensor, *, noise: Tensor | None = None) -> Code:
        """The codes of x: (B, C, H, W) in [-1, 1].

        noise: (B, *latent_shape) standard normal numbers sample the posterior; without them z is its mean.
        """
        return self.bottleneck(self.encoder(x), noise)

    def decode_raw(self, z: Tensor) -> Tensor:
        """The decoder's output for z: (B, *latent_shape), as (B, C, H, W) float32: logits or pixels."""
        return self.decoder(z).float()

    def decode(self, z: Tensor) -> Tensor:
        """The images of z: (B, *latent_shape), as (B, C, H, W) float32 in [-1, 1]."""
        snap = getattr(self.bottleneck, "snap", None)
        # what another model drew lies between the codes of a codebook; codes themselves stay as they are
        return self.shown(self.decode_raw(z if snap is None else snap(z))).clamp(-1.0, 1.0)

    def shown(self, raw: Tensor) -> Tensor:
        """The raw output as images, which may leave [-1, 1] where it is no logit."""
        return raw.sigmoid() * 2.0 - 1.0 if self.logits else raw

    def forward(self, x: Tensor, *, noise: Tensor | None = None) -> tuple[Code, Tensor]:
        """The codes of x and the raw output for them: all that a loss needs."""
        code = self.encode(x, noise=noise)
        return code, self.decode_raw(code.z)
