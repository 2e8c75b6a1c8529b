"""The loss of a VQ-VAE; with a critic and a perceptual distance, that of a VQGAN."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import dist
from .. import noise as rng
from ..codecs.autoencoder import Autoencoder
from ..codecs.bottlenecks import Code
from ..codecs.vq import VectorQuantizer
from ..data.source import Batch
from ..train.objective import Loss, Noise, Objective, Phase
from .adversarial import accuracy, critic_loss, follow, frozen, generator_loss
from .reconstruction import psnr

PIXELS = ("mse", "l1")
MOST = 1e4  # of the adaptive weight (Esser et al. 2021)
Distance = Callable[[Tensor, Tensor], Tensor]  # (B, C, H, W) twice -> (B,)


def pixel_loss(raw: Tensor, x: Tensor, kind: str) -> Tensor:
    """0-dim mean over pixels of the squared ("mse") or absolute ("l1") error."""
    return F.mse_loss(raw, x) if kind == "mse" else F.l1_loss(raw, x)


class Quantised(Objective):
    """Reconstruction + the codebook's penalty, and perceptual distance and a critic's opinion where given.

    perceptual: a distance of images, weighed by `perceptual_weight`; None for none.
    critic: (B, C, H, W) -> scores of patches; from step `start` on it is trained with the hinge loss, and its
    opinion of reconstructions counts critic_weight * lambda, lambda being adaptive (see `stepped`).
    """

    model: Autoencoder
    balance: Tensor
    done: Tensor

    def __init__(
        self,
        model: Autoencoder,
        pixels: str = "mse",
        *,
        perceptual: Distance | None = None,
        perceptual_weight: float = 1.0,
        critic: nn.Module | None = None,
        critic_weight: float = 1.0,
        start: int = 0,
    ) -> None:
        super().__init__()
        self.model, self.pixels = model, pixels
        self.perceptual, self.perceptual_weight = perceptual, perceptual_weight
        self.critic, self.critic_weight, self.start = critic, critic_weight, start
        self._count: int | None = None  # `done`, known without asking the device
        self._playing = False
        self._slopes: Tensor | None = None
        if critic is not None:
            self.register_buffer("balance", torch.zeros(()))  # lambda
            self.register_buffer("done", torch.zeros((), dtype=torch.int64))
            self.register_load_state_dict_post_hook(_forget)

    @property
    def bottleneck(self) -> VectorQuantizer:
        """The model's."""
        assert isinstance(self.model.bottleneck, VectorQuantizer)
        return self.model.bottleneck

    def phases(self) -> list[Phase]:
        """The autoencoder; then the critic, once its time has come."""
        main = Phase("main", [p for p in self.model.parameters() if p.requires_grad])
        if self.critic is None:
            return [main]
        return [main, Phase("critic", list(self.critic.parameters()), start=self.start)]

    def loss(self, phase: str, batch: Batch, noise: Noise) -> Loss:
        """The loss of the autoencoder or of the critic; logs its terms, perplexity and live codes."""
        x = batch.x
        if phase == "critic":
            return self._critic(x)
        h = self.model.encoder(x)
        code: Code = self.bottleneck(h)
        raw = self.model.decode_raw(code.z)
        if self.training and torch.is_grad_enabled():
            assert code.tokens is not None
            self.bottleneck.observe(h, code.tokens, noise.uniform(rng.CODEBOOK, (code.tokens[0].numel(),)))
        recon = pixel_loss(raw, x, self.pixels)
        penalty = code.penalty.mean()
        logs = {"recon": recon.detach(), "commitment": penalty.detach(), **code.logs}
        fit = recon
        if self.perceptual is not None:
            distance = self.perceptual(raw, x).mean()
            fit = recon + self.perceptual_weight * distance
            logs["perceptual"] = distance.detach()
        logs = {"loss": (fit + penalty).detach(), **logs}
        if self.training and self._plays():
            return self._against_critic(raw, fit, penalty, logs)
        return Loss(fit + penalty, logs)

    def _plays(self) -> bool:
        if self.critic is None:
            return False
        if self._count is None:
            self._count = int(self.done)
            self._playing = self._count >= self.start
        return self._playing

    @torch.compiler.disable
    def _against_critic(self, raw: Tensor, fit: Tensor, penalty: Tensor, logs: dict[str, Tensor]) -> Loss:
        """The loss with the critic's opinion; takes note of what lambda is to be made of.

        Both gradients are taken at the images, so that each goes through the decoder's last layer on its own,
        for lambda, and then once through all the rest, as their sum.
        """
        assert self.critic is not None
        with frozen(self.critic):
            opinion = generator_loss(self.critic(raw).float(), "hinge")
        (of_fit,) = torch.autograd.grad(fit, raw, retain_graph=True)
        (of_critic,) = torch.autograd.grad(opinion, raw)
        last = last_weight(self.model.decoder)
        slopes = [torch.autograd.grad(raw, last, g, retain_graph=True)[0] for g in (of_fit, of_critic)]
        seen = torch.stack(slopes).float()
        self._slopes = seen if self._slopes is None else self._slopes + seen
        gradient = of_fit + self.critic_weight * self.balance * of_critic
        logs |= {"generator": opinion.detach(), "balance": self.balance.clone()}
        return Loss((raw * gradient).sum() + penalty, logs)

    def _critic(self, x: Tensor) -> Loss:
        assert self.critic is not None
        with torch.no_grad():
            _, fake = self.model(x)
        real, unreal = self.critic(torch.cat([x, fake])).float().chunk(2)
        total = critic_loss(real, unreal, "hinge")
        return Loss(total, {"critic": total.detach(), "accuracy": accuracy(real.detach(), unreal.detach())})

    @torch.no_grad()
    def evaluate(self, batch: Batch, noise: Noise) -> dict[str, Tensor]:
        """The loss's numbers without the critic's, and the PSNR in dB of images that went there and back."""
        logs = self.loss("main", batch, noise).logs
        logs["psnr"] = psnr(batch.x, self.model.decode(self.model.encode(batch.x).z)).mean()
        return logs

    @torch.no_grad()
    def stepped(self) -> None:
        """Let the codebook learn, and set lambda for the next step.

        lambda = |gradient of the fit| / |gradient of the critic's opinion|, at the decoder's last layer
        (Esser et al. 2021, eq. 7). Theirs is of the same step; ours of the step before, because the gradient
        of the whole batch is known only when all parts of it, in all processes, have gone through.
        """
        self.bottleneck.stepped()
        if self.critic is None:
            return
        if self._slopes is not None:
            fit, opinion = dist.total(self._slopes).flatten(1).norm(dim=1)
            self.balance.copy_((fit / (opinion + 1e-4 * fit)).clamp(max=MOST))
            self._slopes = None
        follow(self.critic)
        self.done += 1
        self._count = None if self._count is None else self._count + 1
        self._playing = self._count is not None and self._count >= self.start


def last_weight(decoder: nn.Module) -> nn.Parameter:
    """The weight of the last convolution of `decoder`."""
    *_, last = (m for m in decoder.modules() if isinstance(m, nn.Conv2d))
    assert isinstance(last.weight, nn.Parameter)
    return last.weight


def _forget(module: nn.Module, incompatible: object) -> None:
    """After loading, the number of steps is what the file says."""
    module._count = None  # type: ignore[assignment]
