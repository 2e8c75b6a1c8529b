"""vqgan: a VQ-VAE judged by a critic of patches and a perceptual distance too (Esser et al. 2021)."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from ..codecs.autoencoder import Autoencoder
from ..config import arg
from ..data.source import Info
from ..objectives.judged import Judged
from ..objectives.quantised import PIXELS, Quantised
from ..registry import Entry, register
from .judge import JudgeConfig, judged
from .vqvae import OPTIM, QuantisedConfig, autoencoder, preview


@dataclass(frozen=True)
class VqGanConfig(QuantisedConfig, JudgeConfig):
    """Settings of `genkit train vqgan`."""

    recon: str = arg("l1", "Error of a pixel: squared or absolute.", choices=PIXELS, panel="Loss")


def build(config: VqGanConfig, info: Info) -> Autoencoder:
    """The autoencoder for images like those of `info`; see `vqvae.autoencoder`."""
    return autoencoder("vqgan", config, info)


def objective(module: nn.Module, config: VqGanConfig, info: Info) -> Judged:
    """Reconstruction, commitment, perceptual distance and the critic's opinion of `module`."""
    assert isinstance(module, Autoencoder)
    return judged(Quantised(module, config.recon), config, info)


DEFAULTS: dict[str, Any] = {**OPTIM, "beta1": 0.5, "lr": 1e-3}

register(
    "vqgan",
    Entry(
        help="A VQGAN: a VQ-VAE with a patch critic and a perceptual loss.",
        config=VqGanConfig,
        build=build,
        objective=objective,
        verbs=("encode", "decode", "interpolate"),
        defaults=DEFAULTS,
        preview=preview,
    ),
)
