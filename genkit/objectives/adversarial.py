"""Adversarial losses on a critic's scores, and the objective of a generative adversarial network."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import noise as rng
from ..data.source import Batch
from ..train.objective import Loss, Noise, Objective, Phase

GAN_LOSSES = ("nonsaturating", "hinge", "wgan-gp")


def critic_loss(real: Tensor, fake: Tensor, kind: str) -> Tensor:
    """0-dim: what a critic minimises, for its scores of real and of generated images, of any shape.

    "nonsaturating": Goodfellow et al. 2014; "hinge": Lim & Ye 2017; "wgan-gp": Arjovsky et al. 2017, to which
    `gradient_penalty` is added.
    """
    if kind == "nonsaturating":
        return F.softplus(-real).mean() + F.softplus(fake).mean()
    if kind == "hinge":
        return F.relu(1.0 - real).mean() + F.relu(1.0 + fake).mean()
    return fake.mean() - real.mean()


def generator_loss(fake: Tensor, kind: str) -> Tensor:
    """0-dim: what a generator minimises, for the critic's scores of its images."""
    return F.softplus(-fake).mean() if kind == "nonsaturating" else -fake.mean()


def accuracy(real: Tensor, fake: Tensor) -> Tensor:
    """0-dim share of scores on the right side of 0; half where the critic cannot tell."""
    return 0.5 * ((real > 0).float().mean() + (fake < 0).float().mean())


def slope(score: Tensor, x: Tensor) -> Tensor:
    """(B,) squared norm of the gradient of each score by its image x: (B, C, H, W); itself differentiable."""
    (gradient,) = torch.autograd.grad(score.sum(), x, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3))


def gradient_penalty(critic: nn.Module, real: Tensor, fake: Tensor, mix: Tensor) -> Tensor:
    """0-dim mean of (slope - 1)^2 at points between real and generated images (Gulrajani et al. 2017, eq. 3).

    mix: (B, 1, 1, 1) in [0, 1), where on the line.
    """
    x = torch.lerp(real, fake, mix).requires_grad_()
    return (slope(critic(x), x).add(1e-12).sqrt() - 1.0).square().mean()


class Gan(Objective):
    """Two phases: the critic learns to tell images from the generator's, the generator to be taken for them.

    model: (B, *latent_shape) -> (B, C, H, W) in [-1, 1], which is the generator; critic: images -> scores.
    r1: weight of half the squared slope at real images (Mescheder et al. 2018, eq. 9), each step.
    penalty: weight of the gradient penalty of "wgan-gp". critic_steps: to one of the generator.
    """

    def __init__(
        self,
        model: nn.Module,
        critic: nn.Module,
        kind: str = "nonsaturating",
        *,
        r1: float = 0.0,
        penalty: float = 10.0,
        critic_steps: int = 1,
        critic_lr: float = 1.0,
    ) -> None:
        super().__init__()
        self.model, self.critic, self.kind = model, critic, kind
        self.r1, self.penalty = r1, penalty
        self.critic_steps, self.critic_lr = critic_steps, critic_lr

    def phases(self) -> list[Phase]:
        """The critic at every step, then the generator."""
        return [
            Phase("critic", list(self.critic.parameters()), lr_scale=self.critic_lr),
            Phase("generator", list(self.model.parameters()), every=self.critic_steps),
        ]

    @torch.compiler.disable  # no compiler differentiates twice, as the penalties want
    def loss(self, phase: str, batch: Batch, noise: Noise) -> Loss:
        """The loss of one side, both on the same codes; logs it, and how often the critic is right."""
        shape: tuple[int, ...] = self.model.latent_shape  # type: ignore[assignment]
        z = noise.normal(rng.FAKE, shape)
        if phase == "critic":
            with torch.no_grad():
                fake = self.model(z)
            return self._critic(batch.x, fake, noise)
        with frozen(self.critic):
            total = generator_loss(self.critic(self.model(z)).float(), self.kind)
        return Loss(total, {"generator": total.detach()})

    def _critic(self, x: Tensor, fake: Tensor, noise: Noise) -> Loss:
        x = x.detach().requires_grad_(self.r1 > 0)
        if self.r1:
            # apart: the slope at real images would be sent back through generated ones as well, as zeros
            real, unreal = self.critic(x).float(), self.critic(fake).float()
        else:
            real, unreal = self.critic(torch.cat([x, fake])).float().chunk(2)
        total = critic_loss(real, unreal, self.kind)
        logs = {"critic": total.detach()}
        if self.kind == "wgan-gp":
            # there is no right side of 0: the critic's loss is minus the distance of the distributions
            mix = noise.uniform(rng.MIX, (1, 1, 1))
            penalty = gradient_penalty(self.critic, x.detach(), fake, mix)
            total = total + self.penalty * penalty
            logs["penalty"] = penalty.detach()
        else:
            logs["accuracy"] = accuracy(real.detach(), unreal.detach())
        if self.r1:
            steep = slope(real, x).mean()
            total = total + 0.5 * self.r1 * steep
            logs["r1"] = steep.detach()
        return Loss(total, logs)

    @torch.no_grad()
    def evaluate(self, batch: Batch, noise: Noise) -> dict[str, Tensor]:
        """Nothing: a generator has no likelihood; `eval-fid` measures it."""
        return {}

    def stepped(self) -> None:
        """Let the critic follow its weights, where it has spectral norms."""
        follow(self.critic)


def follow(critic: nn.Module) -> None:
    """Call what `critic` wants done after every step, such as its spectral norms' power iteration."""
    stepped = getattr(critic, "stepped", None)
    if stepped is not None:
        stepped()


class frozen:
    """Within: the parameters of `module` take no gradient, which saves computing it."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __enter__(self) -> None:
        self.module.requires_grad_(False)

    def __exit__(self, *error: object) -> None:
        self.module.requires_grad_(True)
