"""kl-vae: the first stage of a latent diffusion model (diffusers' `AutoencoderKL`), imported as a codec."""

from dataclasses import dataclass
from typing import NoReturn

from torch import nn

from ..codecs.autoencoder import Autoencoder
from ..codecs.bottlenecks import GaussianBottleneck
from ..config import arg
from ..data.source import Info
from ..errors import InputError
from ..nn.kl import KlDecoder, KlEncoder
from ..registry import Entry, register


@dataclass(frozen=True)
class ImportedVaeConfig:
    """The numbers of a diffusers `AutoencoderKL`. The image's size is in the `Info`.

    scaling_factor, shift_factor: what diffusers' pipelines do to a latent, (z - shift) * scaling; genkit
    measures its own on the data it encodes and keeps these for `export`.
    """

    latent: int = arg(4, "Channels of a code.", min=1)
    channels: tuple[int, ...] = arg((32, 64), "Channels of each level.", min=1)
    blocks: int = arg(2, "Residual blocks a level of the encoder; the decoder has one more.", min=1)
    groups: int = arg(32, "Groups of the norms.", min=1)
    middle_attention: bool = arg(True, "Attention at the bottom.")
    quant: bool = arg(True, "A 1x1 convolution closes the encoder.")
    post_quant: bool = arg(True, "A 1x1 convolution opens the decoder.")
    scaling_factor: float = arg(0.18215, "diffusers multiplies latents by it.")
    shift_factor: float | None = arg(None, "diffusers first subtracts it from latents.")
    force_upcast: bool = arg(True, "diffusers runs it in float32 beside 16-bit networks.")


def build(config: ImportedVaeConfig, info: Info) -> Autoencoder:
    """The autoencoder for images like those of `info`.

    Raises:
        InputError: the size is no multiple of its factor, or its numbers do not fit each other.
    """
    channels, height, width = info.shape
    factor = 2 ** (len(config.channels) - 1)
    if height % factor or width % factor:
        raise InputError(f"{info.name} takes images of multiples of {factor} pixels, got {height}x{width}")
    bottleneck, network = GaussianBottleneck(), (config.channels, config.blocks, config.groups)
    wide = bottleneck.width_in(config.latent)
    try:
        encoder = KlEncoder(channels, wide, *network, config.middle_attention, config.quant)
        decoder = KlDecoder(config.latent, channels, *network, config.middle_attention, config.post_quant)
    except ValueError as error:
        raise InputError(f"the network of {info.name} cannot be built: {error}") from None
    return Autoencoder(encoder, bottleneck, decoder, (config.latent, height // factor, width // factor))


def objective(module: nn.Module, config: ImportedVaeConfig, info: Info) -> NoReturn:
    """Nothing: an imported codec is not trained.

    Raises:
        InputError: always.
    """
    raise InputError(f"{info.name} was imported and is not trained by genkit; use `genkit train vae`")


register(
    "kl-vae",
    Entry(
        help="The codec of a latent diffusion model (diffusers' AutoencoderKL), imported.",
        config=ImportedVaeConfig,
        build=build,
        objective=objective,
        # its codes are far from standard normal, so it has no prior to sample from
        verbs=("encode", "decode", "interpolate"),
    ),
)
