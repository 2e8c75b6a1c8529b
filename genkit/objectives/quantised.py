"""The loss of a VQ-VAE (van den Oord et al. 2017)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import noise as rng
from ..codecs.autoencoder import Autoencoder
from ..codecs.bottlenecks import Code
from ..codecs.vq import VectorQuantizer
from ..data.source import Batch
from ..train.objective import Loss, Noise
from .judged import Judgeable, Parts
from .reconstruction import psnr

PIXELS = ("mse", "l1")


def pixel_loss(raw: Tensor, x: Tensor, kind: str) -> Tensor:
    """0-dim mean over pixels of the squared ("mse") or absolute ("l1") error."""
    return F.mse_loss(raw, x) if kind == "mse" else F.l1_loss(raw, x)


class Quantised(Judgeable):
    """Reconstruction, a mean over pixels, + the penalty of the codebook."""

    def __init__(self, model: Autoencoder, pixels: str = "mse") -> None:
        super().__init__()
        self.model, self.pixels = model, pixels

    @property
    def bottleneck(self) -> VectorQuantizer:
        """The model's."""
        assert isinstance(self.model.bottleneck, VectorQuantizer)
        return self.model.bottleneck

    def parts(self, batch: Batch, noise: Noise) -> Parts:
        """Images that went there and back, their error and the penalty of their codes.

        In training the codebook takes note of what it sees.
        """
        x = batch.x
        h = self.model.encoder(x)
        code: Code = self.bottleneck(h)
        raw = self.model.decode_raw(code.z)
        if self.training and torch.is_grad_enabled():
            assert code.tokens is not None
            self.bottleneck.observe(h, code.tokens, noise.uniform(rng.CODEBOOK, (code.tokens[0].numel(),)))
        recon, penalty = pixel_loss(raw, x, self.pixels), code.penalty.mean()
        logs = {"recon": recon.detach(), "commitment": penalty.detach(), **code.logs}
        return Parts(x, raw, recon, penalty, logs)

    def loss(self, phase: str, batch: Batch, noise: Noise) -> Loss:
        """The loss; logs its terms, perplexity and live codes."""
        return self.parts(batch, noise).added()

    def compared(self, parts: Parts, batch: Batch, noise: Noise) -> dict[str, Tensor]:
        """The PSNR in dB of images that went there and back."""
        return {"psnr": psnr(parts.x, self.model.shown(parts.raw)).mean()}

    @torch.no_grad()
    def stepped(self) -> None:
        """Let the codebook learn."""
        self.bottleneck.stepped()
