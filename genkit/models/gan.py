"""gan: a generative adversarial network; the checkpoint is its generator."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .. import noise as rng
from ..config import arg, check_read
from ..data.source import Batch, Info
from ..errors import InputError
from ..nn.adversarial import Critic, Generator
from ..nn.spectral import Normalised
from ..objectives.adversarial import GAN_LOSSES, Gan
from ..registry import Entry, register


@dataclass(frozen=True)
class GanConfig:
    """Settings of `genkit train gan`."""

    latent: int = arg(64, "Units of the code.", min=1, panel="Network")
    width: int = arg(
        32, "Channels before the generator's last doubling; deeper ones have more.", min=2, panel="Network"
    )
    critic_width: int | None = arg(None, "The same of the critic; default: --width.", min=2, panel="Network")
    spectral_norm: bool = arg(False, "Spectral norm in the critic (Miyato et al. 2018).", panel="Network")
    gan_loss: str = arg(
        "nonsaturating",
        "nonsaturating (Goodfellow et al. 2014), hinge (Lim & Ye 2017) or wgan-gp (Gulrajani et al. 2017).",
        choices=GAN_LOSSES,
        panel="Loss",
    )
    r1: float | None = arg(
        None,
        "Weight of the critic's squared slope at real images (Mescheder et al. 2018); default: 0.5 "
        "for nonsaturating, else 0.",
        min=0.0,
        panel="Loss",
    )
    gp_weight: float = arg(10.0, "Weight of wgan-gp's gradient penalty.", min=0.0, panel="Loss")
    critic_steps: int | None = arg(
        None,
        "Steps of the critic to one of the generator; default: 5 for wgan-gp, else 1.",
        min=1,
        panel="Loss",
    )
    critic_lr: float = arg(1.0, "Learning rate of the critic over --lr.", min=0.0, panel="Loss")


def build(config: GanConfig, info: Info) -> Generator:
    """The generator of images like those of `info`.

    Raises:
        InputError: the source holds latents.
    """
    if info.kind != "images":
        raise InputError(f"gan trains on images and {info.name} holds {info.kind}; give the images")
    return Generator(config.latent, info.shape, config.width)


def objective(module: nn.Module, config: GanConfig, info: Info) -> Gan:
    """The game of `module` and a new critic.

    Raises:
        InputError: an option is given that nothing reads.
    """
    check_read(config, {"gp_weight": (config.gan_loss == "wgan-gp", "--gan-loss wgan-gp")})
    critic: nn.Module = Critic(info.shape, config.critic_width or config.width)
    if config.spectral_norm:
        critic = Normalised(critic)
    wgan, plain = config.gan_loss == "wgan-gp", config.gan_loss == "nonsaturating"
    return Gan(
        module,
        critic,
        config.gan_loss,
        r1=(0.5 if plain else 0.0) if config.r1 is None else config.r1,
        penalty=config.gp_weight,
        critic_steps=config.critic_steps or (5 if wgan else 1),
        critic_lr=config.critic_lr,
    )


@torch.inference_mode()
def preview(module: nn.Module, config: GanConfig, info: Info, batch: Batch) -> Tensor:
    """(36, C, H, W) images of the same codes every time."""
    assert isinstance(module, Generator)
    index = torch.arange(36, device=batch.x.device)
    return module.decode(rng.normal(0, rng.INITIAL, index, module.latent_shape))


register(
    "gan",
    Entry(
        help="A generative adversarial network: one step from noise to an image.",
        config=GanConfig,
        build=build,
        objective=objective,
        verbs=("sample prior", "interpolate"),
        defaults={
            "lr": 2e-3,
            "beta1": 0.0,
            "beta2": 0.99,
            "batch_size": 64,
            "ema": 0.05,
            "steps": 6000,
        },
        preview=preview,
    ),
)
