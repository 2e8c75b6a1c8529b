"""hvae: a Markovian hierarchical variational autoencoder, half way from a VAE to a diffusion model."""

import re
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .. import noise as rng
from ..codecs.hierarchical import HierarchicalAutoencoder, Hierarchy
from ..config import arg, check_read
from ..data.source import Batch, Info
from ..errors import InputError
from ..nn.coders import coders
from ..objectives.reconstruction import RECON, Reconstruction
from ..registry import Entry, register
from .vae import NetworkConfig, check_network

_NETWORK, _LOSS = "Network", "Loss"


@dataclass(frozen=True)
class HvaeConfig(NetworkConfig):
    """Settings of `genkit train hvae`."""

    latents: str = arg(
        "64,32,16", "Units of each level, from the image up; as many levels as numbers.", panel=_NETWORK
    )
    hidden: int = arg(
        256, "Units of the two hidden layers between one level and the next.", min=2, panel=_NETWORK
    )
    recon: str = arg(
        "bce",
        "Pixels are bce: Bernoulli; gaussian: normal of a learned sigma; mse: normal of sigma 1 on [-1, 1].",
        choices=RECON,
        panel=_LOSS,
    )
    beta: float = arg(1.0, "Weight of the KL; 1 is the ELBO.", min=0.0, panel=_LOSS)
    kl_warmup: int = arg(
        0,
        "Steps over which the weight of the KL rises from 0 to beta: wakes the upper levels.",
        min=0,
        panel=_LOSS,
    )


def level_units(text: str) -> tuple[int, ...]:
    """The units of each level, z_1 first, of `64,32,16`.

    Raises:
        InputError: it reads otherwise.
    """
    if not re.fullmatch(r"[1-9]\d*(,[1-9]\d*)*", text):
        raise InputError(f"--latents must be the units of each level like 64,32,16, got {text!r}")
    return tuple(map(int, text.split(",")))


def link(units_in: int, units_out: int, hidden: int) -> nn.Sequential:
    """(B, units_in, 1, 1) -> (B, 2 units_out, 1, 1): the normal of one level given its neighbour."""
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(units_in, hidden),
        nn.SiLU(),
        nn.Linear(hidden, hidden),
        nn.SiLU(),
        nn.Linear(hidden, 2 * units_out),
        nn.Unflatten(1, (2 * units_out, 1, 1)),
    )


def build(config: HvaeConfig, info: Info) -> HierarchicalAutoencoder:
    """The hierarchy for images like those of `info`.

    Raises:
        InputError: the source holds latents, or --latents is no list of sizes.
    """
    if info.kind != "images":
        raise InputError(f"hvae trains on images and {info.name} holds {info.kind}; give the images")
    units, image = level_units(config.latents), info.shape
    wide, first = (2 * units[0], 1, 1), (units[0], 1, 1)
    encoder, decoder = coders(config.arch, image, wide, first, config.width, config.blocks, config.dense)
    pairs = list(zip(units, units[1:]))
    up = [link(low, high, config.hidden) for low, high in pairs]
    down = [link(high, low, config.hidden) for low, high in pairs]
    return HierarchicalAutoencoder(
        encoder,
        Hierarchy(units, up, down),
        decoder,
        logits=config.recon == "bce",
        learn_sigma=config.recon == "gaussian",
    )


def objective(module: nn.Module, config: HvaeConfig, info: Info) -> Reconstruction:
    """The -ELBO of `module`, its KL that of the whole hierarchy.

    Raises:
        InputError: an option is given that nothing reads.
    """
    check_network(config, vector=True)
    check_read(config, {"hidden": ("," in config.latents, "a hierarchy of two levels or more")})
    known: Any = module  # has all of an Autoencoder that the objective asks for
    assert isinstance(module, HierarchicalAutoencoder)
    return Reconstruction(known, config.recon, config.beta, warmup=config.kl_warmup)


def below(hierarchy: Hierarchy, level: int, count: int, device: torch.device) -> Tensor:
    """(count, sum(units), 1, 1) codes that share all levels above `level` (1 is next to the image) and draw
    the others afresh."""
    shape = (sum(hierarchy.units), 1, 1)
    codes = rng.normal(0, rng.INITIAL, torch.arange(count, device=device), shape)
    shared = sum(hierarchy.units[level:])  # the top comes first in a code
    codes[:, :shared] = codes[:1, :shared]
    return codes


@torch.inference_mode()
def preview(module: nn.Module, config: HvaeConfig, info: Info, batch: Batch) -> Tensor:
    """A grid of 6 columns: images and their reconstructions; 12 new images; then for each level from the one
    below the top a row of images that share all levels above it."""
    assert isinstance(module, HierarchicalAutoencoder)
    x, device = batch.x[:6], batch.x.device
    index = torch.arange(12, device=device)
    codes = [module.encode(x).z, rng.normal(0, rng.INITIAL, index, module.latent_shape)]
    codes += [below(module.bottleneck, n, 6, device) for n in range(module.bottleneck.levels - 1, 0, -1)]
    return torch.cat([x, *(module.decode(z) for z in codes)])


register(
    "hvae",
    Entry(
        help="A hierarchical VAE: levels of latents, each explained by the one above.",
        config=HvaeConfig,
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
