"""aae: an autoencoder whose codes a critic shapes like a prior (Makhzani et al. 2016)."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..codecs.autoencoder import Autoencoder
from ..codecs.priors import PRIORS, PriorBottleneck
from ..config import arg, check_read
from ..data.source import Batch, Info
from ..errors import InputError
from ..nn.adversarial import VectorCritic
from ..nn.coders import coders
from ..objectives.matching import PIXELS, Matching
from ..registry import Entry, register
from .prior import Parts, draw_prior
from .vae import OPTIM, NetworkConfig, check_network, latent_shape

_NETWORK, _LOSS, _CRITIC = "Network", "Loss", "Critic"
# The critic's weight is this over the units, after the FID of the prior's images by weight (1,500 steps of
# MNIST): 8 units 1.29 (1), 0.89 (3), 1.27 (10); 16 units 1.73 (1), 1.71 (3), 3.4 (30); 49 units 9.6 (1),
# 9.3 (3, and 1 dB less).
WEIGHT = 48.0
# At 0.5, codes of small images stay apart that fell into one point at 2 and more. With 2 units the gradient
# of an image never ends, and a mixture of ten takes shape only if the critic may outweigh it.
BOUND, BOUND_IN_PLANE = 0.5, 2.0


@dataclass(frozen=True)
class AaeConfig(NetworkConfig):
    """Settings of `genkit train aae`."""

    latent: str | None = arg(
        None,
        "The code: 8 is a vector of 8 units; default: 8, and 2 where the prior lies in the plane.",
        panel=_NETWORK,
    )
    prior: str = arg(
        "gaussian",
        "What codes are to be distributed like: standard normal, ten normals on a ring, or a swiss roll.",
        choices=tuple(PRIORS),
        panel=_LOSS,
    )
    class_conditional: bool = arg(
        False, "Each class of the data takes its part of the mixture or the swiss roll.", panel=_LOSS
    )
    recon: str = arg(
        "bce", "Pixels are bce: Bernoulli on brightness; mse: squared error.", choices=PIXELS, panel=_LOSS
    )
    critic_width: int = arg(256, "Hidden units of the critic of codes.", min=2, panel=_CRITIC)
    critic_weight: float | None = arg(
        None,
        "Weight of the critic's opinion over the image's nats, as far as --critic-bound lets it count; "
        "default: 48 over the units of the code.",
        min=0.0,
        panel=_CRITIC,
    )
    critic_bound: float | None = arg(
        None,
        "Longest gradient of a code from the critic, over that from its image; default: 0.5, and 2 for a "
        "code of 2 units.",
        min=0.0,
        panel=_CRITIC,
    )


def build(config: AaeConfig, info: Info) -> Autoencoder:
    """The autoencoder for images like those of `info`.

    Raises:
        InputError: the source holds latents, or the latent shape fits neither it nor the prior.
    """
    if info.kind != "images":
        raise InputError(f"aae trains on images and {info.name} holds {info.kind}; give the images")
    prior, image = PRIORS[config.prior], info.shape
    code = latent_shape(config.latent or str(prior.units or 8), info)
    if prior.units is not None and math.prod(code) != prior.units:
        raise InputError(
            f"--prior {config.prior} is of codes of {prior.units} units, not --latent {config.latent}; "
            f"use --latent {prior.units}, or --prior gaussian"
        )
    encoder, decoder = coders(config.arch, image, code, code, config.width, config.blocks, config.dense)
    return Autoencoder(encoder, PriorBottleneck(config.prior), decoder, code, logits=config.recon == "bce")


def objective(module: nn.Module, config: AaeConfig, info: Info) -> Matching:
    """Reconstruction and the game about the codes of `module`.

    Raises:
        InputError: classes are asked for where the data or the prior has none, or too few, or an option is
            given that nothing reads.
    """
    assert isinstance(module, Autoencoder)
    check_network(config, vector=module.latent_shape[1:] == (1, 1))
    check_read(config, {"critic_bound": (config.critic_weight != 0, "a critic with a weight")})
    classes = len(info.classes) if config.class_conditional else 0
    if config.class_conditional:
        _check_classes(config.prior, info)
    units = math.prod(module.latent_shape)
    critic = VectorCritic(units + classes, config.critic_width)
    bound = BOUND_IN_PLANE if units == 2 else BOUND
    return Matching(
        module,
        critic,
        config.recon,
        classes,
        weight=WEIGHT / units if config.critic_weight is None else config.critic_weight,
        bound=bound if config.critic_bound is None else config.critic_bound,
    )


def _check_classes(name: str, info: Info) -> None:
    parts = PRIORS[name].parts
    if not info.classes:
        raise InputError(
            f"--class-conditional needs labels and {info.name} has none; use a source with classes, such as "
            "an image folder with a sub-folder a class"
        )
    if parts == 1:
        raise InputError(f"--prior {name} has no parts for classes; use --prior mixture or swiss-roll")
    if parts is not None and len(info.classes) != parts:
        raise InputError(
            f"--prior {name} has {parts} parts and {info.name} {len(info.classes)} classes; "
            "use --prior swiss-roll, which has any number"
        )


@torch.inference_mode()
def preview(module: nn.Module, config: AaeConfig, info: Info, batch: Batch) -> Tensor:
    """A grid of 6 columns: a row of images, a row of their reconstructions, twice; then 12 of the prior,
    the classes in turn where each has its part."""
    assert isinstance(module, Autoencoder)
    rows = []
    for x in batch.x[:12].split(6):
        rows += [x, module.decode(module.encode(x).z)]
    index = torch.arange(12, device=batch.x.device)
    classes = len(info.classes)
    parts = Parts(index % classes, classes) if config.class_conditional else None
    return torch.cat([*rows, draw_prior(module, 0, index, parts=parts)])


DEFAULTS: dict[str, Any] = {**OPTIM, "lr": 1e-3}

register(
    "aae",
    Entry(
        help="An adversarial autoencoder: codes shaped like a prior of your choice.",
        config=AaeConfig,
        build=build,
        objective=objective,
        verbs=("sample prior", "encode", "decode", "interpolate"),
        defaults=DEFAULTS,
        preview=preview,
    ),
)
