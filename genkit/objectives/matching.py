"""The objective of an adversarial autoencoder (Makhzani et al. 2016)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import noise as rng
from ..codecs.autoencoder import Autoencoder
from ..codecs.priors import PriorBottleneck, place_in
from ..data.source import Batch
from ..train.objective import Loss, Noise, Objective, Phase
from .adversarial import accuracy, critic_loss, frozen, generator_loss
from .reconstruction import bernoulli_nats, psnr

PIXELS = ("mse", "bce")


class Matching(Objective):
    """Three phases: images come back; a critic learns to tell codes from the prior; the encoder misleads it.

    Each has an optimiser of its own, so that the size of one loss does not weigh against the other's.

    critic: (B, units + classes) -> (B, 1) scores of a code and, with classes, its label as a one-hot vector.
    classes: each takes its part of the prior; 0 for none. encoder_lr: of the third phase, over --lr.
    """

    model: Autoencoder

    def __init__(
        self, model: Autoencoder, critic: nn.Module, recon: str, classes: int = 0, encoder_lr: float = 0.1
    ) -> None:
        super().__init__()
        self.model, self.critic, self.recon = model, critic, recon
        self.classes, self.encoder_lr = classes, encoder_lr

    def phases(self) -> list[Phase]:
        """Reconstruction, the critic, the encoder against it."""
        encoder = list(self.model.encoder.parameters())
        return [
            Phase("main", [p for p in self.model.parameters() if p.requires_grad]),
            Phase("critic", list(self.critic.parameters()), lr_scale=self.encoder_lr),
            Phase("encoder", encoder, lr_scale=self.encoder_lr),
        ]

    def loss(self, phase: str, batch: Batch, noise: Noise) -> Loss:
        """The loss of one phase; logs it, and how often the critic is right."""
        if phase == "main":
            return self._reconstruction(batch.x)
        if phase == "critic":
            with torch.no_grad():
                z = self.model.encode(batch.x).z
            drawn = self.prior(batch, noise)
            scores = self.critic(torch.cat([self.told(drawn, batch), self.told(z, batch)])).float()
            real, unreal = scores.chunk(2)
            total = critic_loss(real, unreal, "nonsaturating")
            return Loss(total, {"critic": total.detach(), "accuracy": accuracy(real, unreal).detach()})
        with frozen(self.critic):
            total = generator_loss(
                self.critic(self.told(self.model.encode(batch.x).z, batch)).float(), "nonsaturating"
            )
        return Loss(total, {"encoder": total.detach()})

    def _reconstruction(self, x: Tensor) -> Loss:
        _, raw = self.model(x)
        if self.recon == "bce":
            total = bernoulli_nats(raw, x) / len(x)
        else:
            total = F.mse_loss(raw, x)
        return Loss(total, {"loss": total.detach()})

    def prior(self, batch: Batch, noise: Noise) -> Tensor:
        """(B, units) codes of the prior, of the parts of the batch's classes where these have some."""
        assert isinstance(self.model.bottleneck, PriorBottleneck)
        place = noise.uniform(rng.COMPONENT)
        if self.classes:
            assert batch.label is not None
            place = place_in(batch.label, place, self.classes)
        return self.model.bottleneck.prior.draw(noise.normal(rng.PRIOR, (self._units(),)), place)

    def _units(self) -> int:
        c, h, w = self.model.latent_shape
        return c * h * w

    def told(self, z: Tensor, batch: Batch) -> Tensor:
        """(B, units + classes): what the critic is given of codes z (B, …) of a batch."""
        flat = z.flatten(1)
        if not self.classes:
            return flat
        assert batch.label is not None
        return torch.cat([flat, F.one_hot(batch.label, self.classes).to(flat)], dim=1)

    @torch.no_grad()
    def evaluate(self, batch: Batch, noise: Noise) -> dict[str, Tensor]:
        """The reconstruction loss, and the PSNR in dB of images that went there and back."""
        logs = self._reconstruction(batch.x).logs
        return {**logs, "psnr": psnr(batch.x, self.model.decode(self.model.encode(batch.x).z)).mean()}
