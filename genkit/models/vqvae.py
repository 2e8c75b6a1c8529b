"""vqvae: an autoencoder whose codes are tokens of a learned codebook (van den Oord et al. 2017)."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..codecs.autoencoder import Autoencoder
from ..codecs.vq import UPDATES, VectorQuantizer
from ..config import arg, check_read
from ..data.source import Batch, Info
from ..errors import InputError
from ..nn.coders import ConvDecoder, ConvEncoder
from ..objectives.quantised import PIXELS, Quantised
from ..registry import Entry, register
from .vae import latent_shape

_NETWORK, _CODEBOOK, _LOSS = "Network", "Codebook", "Loss"
CHANNELS = 16
OPTIM: dict[str, Any] = {
    "lr": 2e-3,
    "batch_size": 128,
    "warmup": 100,
    "decay": "none",
    "ema": 0.02,
    "steps": 4000,
}


@dataclass(frozen=True)
class QuantisedConfig:
    """What autoencoders with a codebook share."""

    latent: str | None = arg(
        None,
        "The code: 16x7x7 is a 7x7 map of tokens that stand for 16 numbers each; default: 16 channels at a "
        "quarter of the size, at half of it for images below 16 pixels.",
        panel=_NETWORK,
    )
    width: int = arg(32, "Channels after the first halving.", min=2, panel=_NETWORK)
    blocks: int = arg(1, "Residual blocks a size.", min=0, panel=_NETWORK)
    codes: int = arg(512, "Size of the codebook.", min=2, max=1 << 20, panel=_CODEBOOK)
    codebook: str = arg(
        "ema",
        "How it learns: running means of the encoder's vectors, or by the codebook loss.",
        choices=UPDATES,
        panel=_CODEBOOK,
    )
    codebook_decay: float = arg(
        0.9,
        "Decay of the running means; at first they are over the last tenth of the steps so far.",
        min=0.0,
        max=0.9999,
        panel=_CODEBOOK,
    )
    codebook_start: str = arg(
        "kmeans",
        "What it is made of: k-means on the first batch, or vectors of it.",
        choices=("kmeans", "data"),
        panel=_CODEBOOK,
    )
    commitment: float = arg(
        0.25, "Weight of the encoder's distance to its codes: beta of the paper.", min=0.0, panel=_LOSS
    )
    recon: str = arg("mse", "Error of a pixel: squared or absolute.", choices=PIXELS, panel=_LOSS)


@dataclass(frozen=True)
class VqVaeConfig(QuantisedConfig):
    """Settings of `genkit train vqvae`."""


def check_codebook(config: QuantisedConfig) -> None:
    """Refuse a decay of running means where the codebook has none.

    Raises:
        InputError: naming the option and what would read it.
    """
    check_read(config, {"codebook_decay": (config.codebook == "ema", "--codebook ema")})


def default_latent(info: Info) -> str:
    """The code's shape for images of `info`, as `--latent` writes it."""
    _, height, width = info.shape
    for times in (2, 1) if min(height, width) >= 16 else (1,):
        if not (height | width) % (1 << times):
            return f"{CHANNELS}x{height >> times}x{width >> times}"
    return f"{CHANNELS}x{height}x{width}"


def autoencoder(name: str, config: QuantisedConfig, info: Info) -> Autoencoder:
    """The autoencoder of family `name` for images like those of `info`.

    Raises:
        InputError: the source holds latents, or the latent shape does not fit.
    """
    if info.kind != "images":
        raise InputError(f"{name} trains on images and {info.name} holds {info.kind}; give the images")
    code = latent_shape(config.latent or default_latent(info), info)
    bottleneck = VectorQuantizer(
        config.codes,
        code[0],
        update=config.codebook,
        commitment=config.commitment,
        decay=config.codebook_decay,
        start=config.codebook_start,
    )
    encoder = ConvEncoder(info.shape, code, config.width, config.blocks)
    decoder = ConvDecoder(code, info.shape, config.width, config.blocks)
    return Autoencoder(encoder, bottleneck, decoder, code)


def build(config: VqVaeConfig, info: Info) -> Autoencoder:
    """The autoencoder for images like those of `info`; see `autoencoder`."""
    return autoencoder("vqvae", config, info)


def objective(module: nn.Module, config: VqVaeConfig, info: Info) -> Quantised:
    """Reconstruction and commitment of `module`.

    Raises:
        InputError: an option is given that nothing reads.
    """
    assert isinstance(module, Autoencoder)
    check_codebook(config)
    return Quantised(module, config.recon)


@torch.inference_mode()
def preview(module: nn.Module, config: QuantisedConfig, info: Info, batch: Batch) -> Tensor:
    """A grid of 6 columns: a row of images, a row of their reconstructions, three times."""
    assert isinstance(module, Autoencoder)
    rows = []
    for x in batch.x[:18].split(6):
        rows += [x, module.decode(module.encode(x).z)]
    return torch.cat(rows)


register(
    "vqvae",
    Entry(
        help="A VQ-VAE: images as grids of tokens from a learned codebook.",
        config=VqVaeConfig,
        build=build,
        objective=objective,
        verbs=("encode", "decode", "interpolate"),
        defaults=OPTIM,
        preview=preview,
    ),
)
