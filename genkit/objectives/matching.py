"""The objective of an adversarial autoencoder (Makhzani et al. 2016)."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import noise as rng
from ..codecs.autoencoder import Autoencoder
from ..codecs.priors import PriorBottleneck, place_in
from ..data.source import Batch
from ..train.objective import Loss, Noise, Objective, Phase
from .adversarial import accuracy, critic_loss, generator_loss
from .reconstruction import mean_nats, psnr

PIXELS = ("mse", "bce")


class Bounded(torch.autograd.Function):
    """z (B, …) and a bound -> z for the image and z for the critic; backward, a code's gradient from the
    critic is cut to `bound` times the length of that from its image.

    While an image tells its code little yet, a critic would drive all codes to one point, and none comes back
    from there: a decoder that knows only that point has no gradient for them.
    """

    @staticmethod
    def forward(ctx: Any, z: Tensor, bound: float) -> tuple[Tensor, Tensor]:
        """z for the image, z for the critic."""
        ctx.bound = bound
        return z.clone(), z.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        """The sum of both, the critic's cut."""
        of_image, of_critic = (g.flatten(1) for g in gradients)
        most, length = ctx.bound * of_image.norm(dim=1, keepdim=True), of_critic.norm(dim=1, keepdim=True)
        share = (most / length.clamp(min=torch.finfo(length.dtype).tiny)).clamp(max=1.0)
        return (of_image + share * of_critic).view_as(gradients[0]), None


class Matching(Objective):
    """Images come back; a critic learns to tell codes from the prior; the encoder misleads it.

    The decoder minimises the reconstruction in nats an image, the critic its own loss. The encoder follows
    the gradients of the reconstruction + weight * softplus(-critic(z)), the critic's opinion that a code is
    none of the prior's; but the critic's pull of a code is bounded by that of its image, and where the bound
    holds, which is often, it counts instead of the weight. Makhzani et al. take turns, an optimiser each.

    critic: (B, units + classes) -> (B, 1) scores of a code and, with classes, its label as a one-hot vector.
    classes: each takes its part of the prior; 0 for none. bound: of the critic's pull; see `Bounded`.
    """

    model: Autoencoder

    def __init__(
        self,
        model: Autoencoder,
        critic: nn.Module,
        recon: str,
        classes: int = 0,
        *,
        weight: float,
        bound: float,
    ) -> None:
        super().__init__()
        self.model, self.critic, self.recon = model, critic, recon
        self.classes, self.weight, self.bound = classes, weight, bound

    def phases(self) -> list[Phase]:
        """One, of all parameters."""
        return [Phase("main", [p for p in self.parameters() if p.requires_grad])]

    def loss(self, phase: str, batch: Batch, noise: Noise) -> Loss:
        """The sum of the three; logs each, and how often the critic is right."""
        to_image, to_critic = Bounded.apply(self.model.encode(batch.x).z, self.bound)
        recon = self.nats(self.model.decode_raw(to_image), batch.x)
        z, drawn = self.told(to_critic, batch), self.told(self.prior(batch, noise), batch)
        misled = generator_loss(self.opinion(z).float(), "nonsaturating")
        real, unreal = self.critic(torch.cat([drawn, z.detach()])).float().chunk(2)
        critic = critic_loss(real, unreal, "nonsaturating")
        logs = {"loss": recon, "encoder": misled, "critic": critic, "accuracy": accuracy(real, unreal)}
        return Loss(recon + self.weight * misled + critic, {k: v.detach() for k, v in logs.items()})

    def nats(self, raw: Tensor, x: Tensor) -> Tensor:
        """0-dim -log p(x | z) in nats, the mean over images; see `mean_nats`."""
        return mean_nats(self.recon, raw, x)

    def opinion(self, z: Tensor) -> Tensor:
        """The critic's scores of z, with gradients for z but none for the critic."""
        held = {name: p.detach() for name, p in self.critic.named_parameters()}
        scores: Tensor = torch.func.functional_call(self.critic, held, (z,))
        return scores

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
        _, raw = self.model(batch.x)
        return {"loss": self.nats(raw, batch.x), "psnr": psnr(batch.x, self.model.shown(raw)).mean()}
