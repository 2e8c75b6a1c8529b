"""diffusers-unet: the U-Net of a diffusers pipeline, imported; it samples like a ddpm and is not trained
further."""

from dataclasses import dataclass
from typing import NoReturn

from torch import nn

from ..config import arg
from ..data.source import Info
from ..diffusion import schedules
from ..diffusion.denoiser import Denoiser
from ..diffusion.schedules import Schedule
from ..errors import InputError
from ..nn.unet import Details, UNet
from ..registry import Entry, register

SCHEDULES = ("linear", "scaled-linear", "cosine")


@dataclass(frozen=True)
class ImportedUnetConfig:
    """The numbers of a diffusers `UNet2DModel` and of its scheduler. The image's size is in the `Info`."""

    channels: tuple[int, ...] = arg((32, 64), "Channels of each level.", min=2)
    blocks: int = arg(2, "Residual blocks a level.", min=1)
    attention_down: tuple[bool, ...] = arg((False, False), "Attention of each level on the way down.")
    attention_up: tuple[bool, ...] = arg((False, False), "The same on the way up, deepest first.")
    middle_attention: bool = arg(True, "Attention at the bottom.")
    head_dim: int | None = arg(None, "Channels of an attention head; none: one head.", min=1)
    groups: int = arg(32, "Groups of the norms.", min=1)
    middle_groups: int | None = arg(None, "Of the middle attention's norm; none: as the others, 0: no norm.")
    norm_eps: float = arg(1e-5, "Added to the variance by the norms.", min=0.0)
    embedding: int | None = arg(None, "Units of the time embedding; none: 4 times the first level's.", min=1)
    scale_shift: bool = arg(False, "The time scales and shifts the norms instead of being added.")
    centred: bool = arg(True, "The halvings pad all four sides.")
    cosine_first: bool = arg(True, "Order of the time's waves.")
    frequency_shift: float = arg(0.0, "Shift in the time's frequencies.")
    rescale_input: bool = arg(False, "The network reads 2 x - 1.")
    dropout: float = arg(0.0, "Dropout in the residual blocks.", min=0.0, max=0.9)
    learn_variance: bool = arg(False, "Twice the channels come out, the second half the variance.")
    target: str = arg("eps", "What the network predicts.", choices=("eps", "x0", "v"))
    schedule: str = arg("linear", "Noise schedule.", choices=SCHEDULES)
    chain: int = arg(1000, "Steps of the training chain.", min=2)
    beta_min: float = arg(1e-4, "Its first beta (linear, scaled-linear).", min=0.0, max=0.9999)
    beta_max: float = arg(2e-2, "Its last beta.", min=0.0, max=0.9999)
    clip: bool = arg(True, "Whether its pipeline keeps predicted images in [-1, 1].")
    sampler: str = arg("ddpm", "The sampler of its pipeline.", choices=("ddpm", "ddim"))
    variance: str = arg("small", "That sampler's variance.", choices=("small", "large", "learned"))
    spacing: str = arg("leading", "That sampler's times.", choices=("leading", "trailing", "linspace"))


def schedule_of(config: ImportedUnetConfig) -> Schedule:
    """The noise schedule that the network was trained with."""
    if config.schedule == "cosine":
        return schedules.cosine(config.chain)
    make = schedules.linear if config.schedule == "linear" else schedules.scaled_linear
    return make(config.chain, config.beta_min, config.beta_max)


def build(config: ImportedUnetConfig, info: Info) -> Denoiser:
    """The denoiser for images like those of `info`.

    Raises:
        InputError: the network does not fit the size, or its numbers do not fit each other.
    """
    channels, height, width = info.shape
    details = Details(
        channels=config.channels,
        attention_down=config.attention_down,
        attention_up=config.attention_up,
        embedding=config.embedding,
        exact_groups=True,
        middle_groups=config.middle_groups,
        norm_eps=config.norm_eps,
        centred=config.centred,
        cosine_first=config.cosine_first,
        frequency_shift=config.frequency_shift,
        rescale_input=config.rescale_input,
    )
    try:
        network = UNet(
            channels,
            channels * (2 if config.learn_variance else 1),
            max(height, width),
            blocks=config.blocks,
            attention=(),
            middle_attention=config.middle_attention,
            head_dim=config.head_dim,
            dropout=config.dropout,
            scale_shift=config.scale_shift,
            groups=config.groups,
            details=details,
        )
        network.check_size(height, width)
    except ValueError as error:
        raise InputError(
            f"the network of {info.name} cannot be built for {height}x{width}: {error}"
        ) from None
    return Denoiser(network, schedule_of(config), config.target, learn_variance=config.learn_variance)


def objective(module: nn.Module, config: ImportedUnetConfig, info: Info) -> NoReturn:
    """Nothing: an imported network is not trained.

    Raises:
        InputError: always.
    """
    raise InputError(f"{info.name} was imported and is not trained by genkit; use `genkit train ddpm`")


register(
    "diffusers-unet",
    Entry(
        help="The U-Net of a diffusers pipeline, imported.",
        config=ImportedUnetConfig,
        build=build,
        objective=objective,
        verbs=(
            "sample ddpm",
            "sample ddim",
            "sample heun",
            "sample euler",
            "sample dpmpp",
            "invert",
            "interpolate",
            "inpaint",
            "eval-nll",
        ),
    ),
)
