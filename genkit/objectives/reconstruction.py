"""The loss of an autoencoder: how badly images come back, plus what their codes cost."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import dist
from .. import noise as rng
from ..codecs.autoencoder import Autoencoder
from ..codecs.bottlenecks import Code
from ..data.source import Batch
from ..train.objective import Loss, Noise
from . import bernoulli
from .corruption import Corruption
from .judged import Judgeable, Parts

RECON = ("bce", "mse", "gaussian")
BINARISE = ("none", "threshold", "sampled")


def gaussian_nats(mean: Tensor, x: Tensor, log_sigma: Tensor) -> Tensor:
    """-log N(x; mean, sigma^2) in nats, 0-dim, the mean over the batch: the density of pixels in [-1, 1].

    log_sigma: 0-dim.
    """
    square = F.mse_loss(mean, x, reduction="sum") / len(x)
    constant = log_sigma + 0.5 * math.log(2.0 * math.pi)
    return 0.5 * square * torch.exp(-2.0 * log_sigma) + x[0].numel() * constant


def mean_nats(recon: str, raw: Tensor, x: Tensor) -> Tensor:
    """0-dim -log p(x | z) in nats, the mean over the batch, for a model's raw output, both (B, C, H, W).

    recon "bce": Bernoulli on brightness; "mse": half the squared error of pixels in [-1, 1], as a normal of
    sigma 1 has it, without the constant.
    """
    if recon == "bce":
        return bernoulli.nats(raw, x, len(x))
    return F.mse_loss(raw, x, reduction="sum") / (2 * len(x))


def image_nats(recon: str, raw: Tensor, x: Tensor, log_sigma: Tensor | None) -> Tensor:
    """(B,) -log p(x | z) of each image in nats, constants included, for a model's raw output.

    log_sigma: 0-dim, for recon "gaussian"; "mse" is a normal of sigma 1.
    """
    if recon == "bce":
        nats = F.binary_cross_entropy_with_logits(raw, 0.5 * x + 0.5, reduction="none")
        return nats.flatten(1).sum(dim=1)
    log_sigma = raw.new_zeros(()) if log_sigma is None else log_sigma
    square = (raw - x).square().flatten(1).sum(dim=1)
    constant = log_sigma + 0.5 * math.log(2.0 * math.pi)
    return 0.5 * square * torch.exp(-2.0 * log_sigma) + x[0].numel() * constant


def psnr(x: Tensor, y: Tensor) -> Tensor:
    """(B,) peak signal-to-noise ratio in dB of each image of y against x, both (B, C, H, W) in [-1, 1].

    y is clipped to the range first, as a picture of it would be; equal images count as 100 dB.
    """
    mse = (x - y.clamp(-1.0, 1.0)).square().flatten(1).mean(dim=1)
    return 10.0 * torch.log10(4.0 / mse.clamp(min=4e-10))


def binarised(x: Tensor, kind: str, noise: Noise) -> Tensor:
    """x (B, C, H, W) in [-1, 1] as black and white, -1 and 1, by one of BINARISE.

    "threshold": a pixel is white where it is brighter than half; "sampled": with its brightness as
    probability (Salakhutdinov & Murray 2008), anew at every position of training. "none": x itself. Test
    images are sampled by their place alone, which makes of them one fixed set, the same for every model.
    """
    if kind == "none":
        return x
    cut = 2.0 * noise.uniform(rng.BINARISE, tuple(x.shape[1:])) - 1.0 if kind == "sampled" else 0.0
    return torch.where(x > cut, 1.0, -1.0)


class Reconstruction(Judgeable):
    """recon_weight * reconstruction + beta * penalty of the code, per image; 1 and 1 give the -ELBO in nats.

    recon "bce": Bernoulli on brightness in [0, 1]; the model's raw output is its logit.
    recon "mse": half the squared error of pixels in [-1, 1], summed: a normal of variance 1, no constant.
    recon "gaussian": a normal of one sigma, learned or fixed, constants included (Rybkin et al. 2021).
    beta: Higgins et al. 2017. warmup: optimiser steps over which it rises from 0 (Sonderby et al. 2016).
    free_bits: nats that each unit may spend at no cost, on average over the batch (Kingma et al. 2016,
    eq. 15, with every unit a group of its own).
    corrupt: done to the encoder's input; the clean images are to come back (Vincent et al. 2010).
    binarise: how images are made black and white first; see `binarised`.
    """

    model: Autoencoder
    done: Tensor

    def __init__(
        self,
        model: Autoencoder,
        recon: str,
        beta: float = 1.0,
        *,
        recon_weight: float = 1.0,
        warmup: int = 0,
        free_bits: float = 0.0,
        corrupt: Corruption | None = None,
        binarise: str = "none",
    ) -> None:
        super().__init__()
        self.model, self.recon, self.beta, self.recon_weight = model, recon, beta, recon_weight
        self.warmup, self.free_bits, self.corrupt, self.binarise = warmup, free_bits, corrupt, binarise
        if warmup:
            # optimiser steps done: a buffer is saved with the run's state, and a compiled loss can read it
            self.register_buffer("done", torch.zeros((), dtype=torch.int64))

    def stepped(self) -> None:
        """Count the step, which the warm-up is a function of."""
        if self.warmup:
            self.done += 1

    def parts(self, batch: Batch, noise: Noise) -> Parts:
        """Images that went there and back, one posterior sample each, in nats an image."""
        model, x = self.model, self.clean(batch.x, noise)
        seen = self.corrupt(x, noise) if self.corrupt else x
        drawn = noise.normal(rng.POSTERIOR, model.latent_shape) if self.random else None
        code, raw = model(seen, noise=drawn)
        recon = self.nats(raw, x)
        penalty = code.penalty.mean()
        paid = self.paid(code) if self.free_bits > 0 else penalty
        weight = self.weight()
        logs = {"recon": recon.detach()}
        if cost := getattr(model.bottleneck, "cost", "kl"):
            logs[cost] = penalty.detach()
        logs |= code.logs
        if isinstance(weight, Tensor):
            logs["beta"] = weight
        return Parts(x, raw, _times(self.recon_weight, recon), _times(weight, paid), logs, x[0].numel())

    @property
    def random(self) -> bool:
        """Whether codes are drawn, so that an image comes back otherwise each time."""
        return getattr(self.model.bottleneck, "random", True)

    def loss(self, phase: str, batch: Batch, noise: Noise) -> Loss:
        """The loss with one posterior sample an image; logs its terms and the bottleneck's own numbers."""
        return self.parts(batch, noise).added()

    def compared(self, parts: Parts, batch: Batch, noise: Noise) -> dict[str, Tensor]:
        """The PSNR in dB of images that went there and back by the mean of their codes, and of the corrupted
        ones where the model restores."""
        x, model = parts.x, self.model
        seen = self.corrupt(x, noise) if self.corrupt else x
        back = model.decode(model.encode(seen).z) if self.random else model.shown(parts.raw)
        logs = {"psnr": psnr(x, back).mean()}
        if self.corrupt:
            logs["psnr_corrupted"] = psnr(x, seen).mean()
        return logs

    def clean(self, x: Tensor, noise: Noise) -> Tensor:
        """What is to come back for x: (B, C, H, W)."""
        return binarised(x, self.binarise, noise)

    def weight(self) -> float | Tensor:
        """The weight of the penalty: a function of the optimiser steps done in training, else beta."""
        if not (self.warmup and self.training):
            return self.beta
        return self.beta * (self.done / self.warmup).clamp(max=1.0)

    def paid(self, code: Code) -> Tensor:
        """The penalty, 0-dim, of which each unit's first `free_bits` nats are not minimised.

        The mean of a unit is over the whole batch, of all processes; gradient accumulation takes it over
        each part of the batch.
        """
        if code.units is None:
            raise ValueError("free bits need a bottleneck that knows what each unit costs")
        unit = code.units.mean(dim=0)
        return (dist.average(unit) if self.training else unit).clamp(min=self.free_bits).sum()

    def nats(self, raw: Tensor, x: Tensor) -> Tensor:
        """0-dim -log p(x | z), the mean over the batch, for the model's raw output."""
        if self.recon == "gaussian":
            return gaussian_nats(raw, x, self.model.log_sigma)
        return mean_nats(self.recon, raw, x)


def _times(weight: float | Tensor, value: Tensor) -> Tensor:
    """Their product, without a step of the graph where it changes nothing."""
    return value if isinstance(weight, float) and weight == 1.0 else weight * value
