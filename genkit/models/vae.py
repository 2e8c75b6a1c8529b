"""vae: a variational autoencoder; generates by itself and is the codec of latent models."""

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .. import noise as rng
from ..codecs.autoencoder import Autoencoder
from ..codecs.bottlenecks import GaussianBottleneck, IdentityBottleneck
from ..config import arg, check_read
from ..data.source import Batch, Info
from ..errors import InputError
from ..nn.coders import WIDTHS, BlackAndWhite, coders, halvings
from ..objectives.reconstruction import BINARISE, RECON, Reconstruction, image_nats
from ..registry import Entry, register
from ..train.objective import Objective
from .judge import JudgeConfig, check_judge, judged

_NETWORK, _LOSS = "Network", "Loss"
BOTTLENECKS: dict[str, type[GaussianBottleneck | IdentityBottleneck]] = {
    "gaussian": GaussianBottleneck,
    "none": IdentityBottleneck,
}
OPTIM: dict[str, Any] = {
    "lr": 2e-3,
    "batch_size": 128,
    "warmup": 500,
    "decay": "wsd",
    "ema": 0.02,
    "steps": 9400,
}


@dataclass(frozen=True)
class NetworkConfig:
    """The networks of an autoencoder of one encoder and one decoder."""

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
    dense: int = arg(
        512,
        "Units of a layer between the convolutions and a code that is a vector (conv); 0 for none.",
        min=0,
        panel=_NETWORK,
    )


@dataclass(frozen=True)
class CoderConfig(NetworkConfig):
    """What autoencoders of any code and pixels share."""

    latent: str = arg(
        "20", "The code: 20 is a vector of 20 units, 4x7x7 a 7x7 map of 4 channels.", panel=_NETWORK
    )
    recon: str = arg(
        "bce",
        "Pixels are bce: Bernoulli; gaussian: normal of one sigma; mse: normal of sigma 1 on [-1, 1].",
        choices=RECON,
        panel=_LOSS,
    )
    sigma: float | None = arg(
        None,
        "Standard deviation of --recon gaussian, of pixels in [-1, 1]; default: learned.",
        min=1e-3,
        panel=_LOSS,
    )


@dataclass(frozen=True)
class VaeConfig(CoderConfig, JudgeConfig):
    """Settings of `genkit train vae`."""

    bottleneck: str = arg(
        "gaussian", "gaussian is a VAE, none a plain autoencoder.", choices=tuple(BOTTLENECKS), panel=_NETWORK
    )
    beta: float = arg(1.0, "Weight of the KL; 1 is the ELBO (Higgins et al. 2017).", min=0.0, panel=_LOSS)
    recon_weight: float = arg(
        1.0, "Weight of the reconstruction; 0 leaves only the KL.", min=0.0, panel=_LOSS
    )
    kl_warmup: int = arg(0, "Steps over which the weight of the KL rises from 0 to beta.", min=0, panel=_LOSS)
    free_bits: float = arg(
        0.0, "Nats that each unit may spend at no cost (Kingma et al. 2016).", min=0.0, panel=_LOSS
    )
    binarise: str = arg(
        "none",
        "Make pixels black or white, by threshold: cut at half of full brightness, or sampled: white with "
        "its brightness as probability, anew every time (the benchmark's binary MNIST).",
        choices=BINARISE,
        panel=_LOSS,
    )
    adversarial: bool = arg(
        False,
        "Add a critic of patches: sharper pictures than likelihood gives (Rombach et al. 2022).",
        panel="Critic",
    )


def check_network(config: NetworkConfig, vector: bool) -> None:
    """Refuse a value for an option that the network has no use for; checkpoints are not held to it.

    vector: whether the code is one, not a map.

    Raises:
        InputError: naming the option and what would read it.
    """
    conv = config.arch == "conv"
    # 0 is true of any network
    dense = (conv and vector) or not config.dense, "a convolutional network whose code is a vector"
    check_read(config, {"blocks": (conv, "--arch conv"), "dense": dense})


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


def autoencoder(
    name: str,
    config: CoderConfig,
    info: Info,
    bottleneck: GaussianBottleneck | nn.Module,
    binarise: bool = False,
) -> Autoencoder:
    """The autoencoder of family `name` for images like those of `info`, around `bottleneck`.

    binarise: the encoder makes its input black and white first.

    Raises:
        InputError: the source holds latents, the latent shape does not fit, or --sigma has no use.
    """
    if info.kind != "images":
        raise InputError(f"{name} trains on images and {info.name} holds {info.kind}; give the images")
    if config.sigma is not None and config.recon != "gaussian":
        raise InputError(f"--sigma {config.sigma:g} is for --recon gaussian, not --recon {config.recon}")
    code, image = latent_shape(config.latent, info), info.shape
    wide = (bottleneck.width_in(code[0]), *code[1:])  # type: ignore[operator]
    encoder, decoder = coders(config.arch, image, wide, code, config.width, config.blocks, config.dense)
    if binarise:
        encoder = nn.Sequential(BlackAndWhite(), encoder)
    logits, gaussian = config.recon == "bce", config.recon == "gaussian"
    return Autoencoder(
        encoder, bottleneck, decoder, code, logits=logits, learn_sigma=gaussian, sigma=config.sigma
    )


def build(config: VaeConfig, info: Info) -> Autoencoder:
    """The autoencoder for images like those of `info`.

    Raises:
        InputError: see `autoencoder`.
    """
    return autoencoder("vae", config, info, BOTTLENECKS[config.bottleneck](), config.binarise != "none")


def objective(module: nn.Module, config: VaeConfig, info: Info) -> Objective:
    """The -ELBO of `module`, as `config` weighs it, with the judges that it asks for.

    Raises:
        InputError: an option is given that nothing reads.
    """
    assert isinstance(module, Autoencoder)
    check_network(config, vector=module.latent_shape[1:] == (1, 1))
    check_judge(config, config.adversarial)
    posterior = config.bottleneck == "gaussian", "--bottleneck gaussian"
    check_read(config, dict.fromkeys(("beta", "kl_warmup", "free_bits"), posterior))
    elbo = Reconstruction(
        module,
        config.recon,
        config.beta,
        recon_weight=config.recon_weight,
        warmup=config.kl_warmup,
        free_bits=config.free_bits,
        binarise=config.binarise,
    )
    if config.adversarial or config.perceptual != "none":
        return judged(elbo, config, info, config.adversarial)
    return elbo


def posterior(module: Autoencoder, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(mean, log variance, KL from the prior (B,) in nats) of q(z | x)."""
    assert isinstance(module.bottleneck, GaussianBottleneck)
    h = module.encoder(x)
    return *module.bottleneck.posterior(h), module.bottleneck(h).penalty


def log_likelihood(module: Autoencoder, config: CoderConfig, z: Tensor, x: Tensor) -> Tensor:
    """(B,) log p(x | z) in nats: of brightness as a coin's mean for bce, else a density on [-1, 1]."""
    log_sigma = module.log_sigma if config.recon == "gaussian" else None
    return -image_nats(config.recon, module.decode_raw(z), x, log_sigma)


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
        verbs=("sample prior", "encode", "decode", "interpolate", "eval-nll"),
        defaults=OPTIM,
        preview=preview,
    ),
)
