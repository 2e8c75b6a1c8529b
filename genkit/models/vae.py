"""vae: a variational autoencoder; generates by itself and is the codec of latent models."""

import re
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .. import noise as rng
from ..codecs.autoencoder import Autoencoder
from ..codecs.bottlenecks import GaussianBottleneck, IdentityBottleneck
from ..config import arg
from ..data.source import Batch, Info
from ..errors import InputError
from ..nn.coders import ConvDecoder, ConvEncoder, halvings, mlp_decoder, mlp_encoder
from ..objectives.reconstruction import RECON, Reconstruction
from ..registry import Entry, register

_NETWORK, _LOSS = "Network", "Loss"
WIDTHS = {"mlp": 400, "conv": 32}
BOTTLENECKS: dict[str, type[GaussianBottleneck | IdentityBottleneck]] = {
    "gaussian": GaussianBottleneck,
    "none": IdentityBottleneck,
}


@dataclass(frozen=True)
class VaeConfig:
    """Settings of `genkit train vae`."""

    latent: str = arg(
        "20", "The code: 20 is a vector of 20 units, 4x7x7 a 7x7 map of 4 channels.", panel=_NETWORK
    )
    arch: str = arg("conv", "Kind of encoder and decoder.", choices=tuple(WIDTHS), panel=_NETWORK)
    width: int | None = arg(
        None,
        "Hidden units (mlp; 400), or channels after the first halving (conv; 32).",
        min=2,
        panel=_NETWORK,
    )
    blocks: int = arg(
        0, "Residual blocks a size (conv): better pictures at 3 times the work for 1.", min=0, panel=_NETWORK
    )
    bottleneck: str = arg(
        "gaussian", "gaussian is a VAE, none a plain autoencoder.", choices=tuple(BOTTLENECKS), panel=_NETWORK
    )
    recon: str = arg(
        "bce",
        "Pixels are bce: Bernoulli; gaussian: normal of a learned sigma; mse: normal of sigma 1 on [-1, 1].",
        choices=RECON,
        panel=_LOSS,
    )
    beta: float = arg(1.0, "Weight of the KL; 1 is the ELBO (Higgins et al. 2017).", min=0.0, panel=_LOSS)


def latent_shape(text: str, info: Info) -> tuple[int, int, int]:
    """(C, H, W) of a code written as `20` or `4x7x7`.

    Raises:
        InputError: it reads otherwise, or a map does not fit the images of `info`.
    """
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*x[1-9]\d*)?", text):
        raise InputError(f"--latent must be a number of units like 20 or a map like 4x7x7, got {text!r}")
    c, h, w = (*map(int, text.split("x")), 1, 1)[:3]
    try:
        halvings(info.shape, (c, h, w))
    except ValueError:
        _, height, width = info.shape
        sizes = [(height >> k, width >> k) for k in range(7) if not (height | width) % (1 << k)]
        maps = ", ".join(f"{c}x{a}x{b}" for a, b in sizes)
        raise InputError(
            f"--latent {text} does not fit {height}x{width} images of {info.name}: a map is the image's size "
            f"over a power of two; use {maps}, or a number of units like 20"
        ) from None
    return c, h, w


def build(config: VaeConfig, info: Info) -> Autoencoder:
    """The autoencoder for images like those of `info`.

    Raises:
        InputError: the source holds latents, or the latent shape does not fit.
    """
    if info.kind != "images":
        raise InputError(f"vae trains on images and {info.name} holds {info.kind}; give the images")
    code, image = latent_shape(config.latent, info), info.shape
    width = config.width or WIDTHS[config.arch]
    bottleneck = BOTTLENECKS[config.bottleneck]()
    wide = (bottleneck.width_in(code[0]), *code[1:])
    encoder: nn.Module
    decoder: nn.Module
    if config.arch == "mlp":
        encoder, decoder = mlp_encoder(image, wide, width), mlp_decoder(code, image, width)
    else:
        encoder = ConvEncoder(image, wide, width, config.blocks)
        decoder = ConvDecoder(code, image, width, config.blocks)
    gaussian = config.recon == "gaussian"
    return Autoencoder(encoder, bottleneck, decoder, code, logits=config.recon == "bce", learn_sigma=gaussian)


def objective(module: nn.Module, config: VaeConfig, info: Info) -> Reconstruction:
    """The -ELBO of `module`."""
    assert isinstance(module, Autoencoder)
    return Reconstruction(module, config.recon, config.beta)


@torch.inference_mode()
def preview(module: nn.Module, config: VaeConfig, info: Info, batch: Batch) -> Tensor:
    """A grid of 6 columns: a row of images, a row of their reconstructions, twice; then 12 new images."""
    assert isinstance(module, Autoencoder)
    rows = []
    for x in batch.x[:12].split(6):
        rows += [x, module.decode(module.encode(x).z)]
    if module.bottleneck.has_prior:
        index = torch.arange(12, device=batch.x.device)
        rows.append(module.decode(rng.normal(0, rng.INITIAL, index, module.latent_shape)))
    return torch.cat(rows)


register(
    "vae",
    Entry(
        help="A variational autoencoder: generates by itself and is the codec of latent models.",
        config=VaeConfig,
        build=build,
        objective=objective,
        verbs=("sample prior", "encode", "decode", "interpolate"),
        defaults={
            "lr": 2e-3,
            "batch_size": 128,
            "warmup": 500,
            "decay": "linear",
            "ema": 0.02,
            "steps": 9400,
        },
        preview=preview,
    ),
)
