"""An autoencoder's loss with a perceptual distance and a critic's opinion added (Esser et al. 2021)."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from .. import dist
from ..codecs.autoencoder import Autoencoder
from ..data.source import Batch
from ..train.objective import Loss, Noise, Objective, Phase
from .adversarial import accuracy, critic_loss, follow, frozen, generator_loss

MOST = 1e4  # of the adaptive weight (Esser et al. 2021)
Distance = Callable[[Tensor, Tensor], Tensor]  # (B, C, H, W) twice -> (B,)


class Parts(NamedTuple):
    """The loss of an autoencoder before it is added up, for a batch of images."""

    x: Tensor  # (B, C, H, W) in [-1, 1]: what is to come back
    raw: Tensor  # (B, C, H, W): the model's raw output
    fit: Tensor  # 0-dim: how badly it came back, mean over the batch
    penalty: Tensor  # 0-dim: what the codes cost
    logs: dict[str, Tensor]
    numbers: int = 1  # of an image, which `fit` is the sum over; 1 where it is a mean

    def added(self) -> Loss:
        """fit + penalty."""
        total = self.fit + self.penalty
        return Loss(total, {"loss": total.detach(), **self.logs})


class Judgeable(Objective):
    """An objective of an autoencoder that can say what its loss is made of."""

    model: Autoencoder

    def parts(self, batch: Batch, noise: Noise) -> Parts:
        """What the loss of `batch` is made of."""
        raise NotImplementedError

    def compared(self, parts: Parts, batch: Batch, noise: Noise) -> dict[str, Tensor]:
        """How close the images of `parts`, which came of the other two, come back by the mean of their codes;
        0-dim, the mean over the batch."""
        raise NotImplementedError

    @torch.no_grad()
    def evaluate(self, batch: Batch, noise: Noise) -> dict[str, Tensor]:
        """The loss's numbers, and how close images come back."""
        parts = self.parts(batch, noise)
        return {**parts.added().logs, **self.compared(parts, batch, noise)}


class Judged(Objective):
    """The loss of `inner` + a perceptual distance + the opinion of a critic, which is trained beside it.

    perceptual: a distance of images, weighed by `perceptual_weight`; None for none. Where the error is summed
    over an image's numbers, so is the distance, as if each number had it.
    critic: (B, C, H, W) -> scores of patches; from step `start` on it is trained with the hinge loss, and its
    opinion of reconstructions counts critic_weight * lambda, lambda being adaptive (see `stepped`).
    """

    balance: Tensor
    done: Tensor

    def __init__(
        self,
        inner: Judgeable,
        *,
        perceptual: Distance | None = None,
        perceptual_weight: float = 1.0,
        critic: nn.Module | None = None,
        critic_weight: float = 1.0,
        start: int = 0,
    ) -> None:
        super().__init__()
        self.inner = inner
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
    def model(self) -> Autoencoder:  # type: ignore[override]
        """The autoencoder, of which `inner` is the owner."""
        return self.inner.model

    def phases(self) -> list[Phase]:
        """The autoencoder; then the critic, once its time has come."""
        main = self.inner.phases()
        if self.critic is None:
            return main
        return [*main, Phase("critic", list(self.critic.parameters()), start=self.start)]

    def loss(self, phase: str, batch: Batch, noise: Noise) -> Loss:
        """The loss of the autoencoder or of the critic; logs its terms and those of `inner`."""
        if self.critic is not None:
            return self._of_two(phase, batch, noise)
        parts = self.inner.parts(batch, noise)
        return _summed(parts, self.distance(parts))

    @torch.compiler.disable  # a compiled graph has no gradients by its own tensors, of which lambda is made
    def _of_two(self, phase: str, batch: Batch, noise: Noise) -> Loss:
        if phase == "critic":
            return self._critic(batch, noise)
        parts = self.inner.parts(batch, noise)
        distance = self.distance(parts)
        if self.training and self._plays():
            return self._against_critic(parts, distance)
        return _summed(parts, distance)

    def distance(self, parts: Parts) -> Tensor | None:
        """0-dim mean perceptual distance of what came back, weighed as it counts; None without one."""
        if self.perceptual is None:
            return None
        seen = self.perceptual(self.model.shown(parts.raw), parts.x).mean()
        parts.logs["perceptual"] = seen.detach()
        return self.perceptual_weight * parts.numbers * seen

    def _plays(self) -> bool:
        if self.critic is None:
            return False
        if self._count is None:
            self._count = int(self.done)
            self._playing = self._count >= self.start
        return self._playing

    def _against_critic(self, parts: Parts, distance: Tensor | None) -> Loss:
        """The loss with the critic's opinion; takes note of what lambda is to be made of.

        The gradients are taken at the raw output, so that each goes through the decoder's last layer on its
        own, for lambda, and then once through all the rest, as their sum.
        """
        assert self.critic is not None
        raw = parts.raw
        with frozen(self.critic):
            opinion = generator_loss(self.critic(self.model.shown(raw)).float(), "hinge")
        (of_pixels,) = torch.autograd.grad(parts.fit, raw, retain_graph=True)
        (of_critic,) = torch.autograd.grad(opinion, raw)
        of_seen = 0.0 if distance is None else torch.autograd.grad(distance, raw)[0]
        last = last_weight(self.model.decoder)
        sides = (of_pixels + of_seen, of_critic)
        seen = torch.stack([torch.autograd.grad(raw, last, g, retain_graph=True)[0] for g in sides]).float()
        self._slopes = seen if self._slopes is None else self._slopes + seen
        further = of_seen + self.critic_weight * self.balance * of_critic
        logs = _summed(parts, distance).logs
        logs |= {"generator": opinion.detach(), "balance": self.balance.clone()}
        # a sigma that is learned has its gradient through `fit` alone
        return Loss(parts.fit + parts.penalty + (raw * further).sum(), logs)

    def _critic(self, batch: Batch, noise: Noise) -> Loss:
        assert self.critic is not None
        with torch.no_grad():
            parts = self.inner.parts(batch, noise)
            fake = self.model.shown(parts.raw)
        real, unreal = self.critic(torch.cat([parts.x, fake])).float().chunk(2)
        total = critic_loss(real, unreal, "hinge")
        return Loss(total, {"critic": total.detach(), "accuracy": accuracy(real.detach(), unreal.detach())})

    @torch.no_grad()
    def evaluate(self, batch: Batch, noise: Noise) -> dict[str, Tensor]:
        """The numbers of `inner`, and the perceptual distance where there is one, as part of `loss` too."""
        parts = self.inner.parts(batch, noise)
        return {**_summed(parts, self.distance(parts)).logs, **self.inner.compared(parts, batch, noise)}

    @torch.no_grad()
    def stepped(self) -> None:
        """Let `inner` and the critic follow, and set lambda for the next step.

        lambda = |gradient of the fit| / |gradient of the critic's opinion|, at the decoder's last layer
        (Esser et al. 2021, eq. 7). Theirs is of the same step; ours of the step before, because the gradient
        of the whole batch is known only when all parts of it, in all processes, have gone through.
        """
        self.inner.stepped()
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


def _summed(parts: Parts, distance: Tensor | None) -> Loss:
    """The loss without a critic."""
    return parts.added() if distance is None else parts._replace(fit=parts.fit + distance).added()


def last_weight(decoder: nn.Module) -> nn.Parameter:
    """The weight of the last layer of `decoder`."""
    *_, last = (m for m in decoder.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d | nn.Linear))
    assert isinstance(last.weight, nn.Parameter)
    return last.weight


def _forget(module: nn.Module, incompatible: object) -> None:
    """After loading, the number of steps is what the file says."""
    module._count = None  # type: ignore[assignment]
