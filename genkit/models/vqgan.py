"""vqgan: a VQ-VAE judged by a critic of patches and a perceptual distance too (Esser et al. 2021)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from ..codecs.autoencoder import Autoencoder
from ..config import arg
from ..data.source import Info
from ..errors import InputError, RunError
from ..nn.adversarial import PatchCritic
from ..nn.convnet import ConvNet
from ..nn.spectral import Normalised
from ..objectives.perceptual import Perceptual, by_classifier, by_lpips
from ..objectives.quantised import PIXELS, Quantised
from ..registry import Entry, register
from .load import load_model
from .vqvae import OPTIM, QuantisedConfig, autoencoder, preview

_CRITIC, _LOSS = "Critic", "Loss"
LEAST = 16  # pixels a side that LPIPS needs: its network halves them four times


@dataclass(frozen=True)
class VqGanConfig(QuantisedConfig):
    """Settings of `genkit train vqgan`."""

    recon: str = arg("l1", "Error of a pixel: squared or absolute.", choices=PIXELS, panel=_LOSS)
    perceptual: str = arg(
        "none",
        "Distance of what a network sees: a classifier's run folder, lpips (downloads weights), or none.",
        panel=_LOSS,
    )
    perceptual_weight: float = arg(1.0, "Weight of that distance.", min=0.0, panel=_LOSS)
    disc_start: int = arg(1000, "First step of the critic and of its opinion.", min=0, panel=_CRITIC)
    disc_weight: float = arg(
        0.8, "Weight of the critic's opinion, over the adaptive one.", min=0.0, panel=_CRITIC
    )
    disc_width: int = arg(32, "Channels of the critic after its first halving.", min=2, panel=_CRITIC)
    disc_depth: int | None = arg(
        None,
        "Halvings of the critic: patches of 14, 30 or 62 pixels for 1, 2 or 3; default: 1 below 48 "
        "pixels, 2 below 128, else 3.",
        min=1,
        max=6,
        panel=_CRITIC,
    )
    spectral_norm: bool = arg(False, "Spectral norm in the critic (Miyato et al. 2018).", panel=_CRITIC)


def build(config: VqGanConfig, info: Info) -> Autoencoder:
    """The autoencoder for images like those of `info`; see `vqvae.autoencoder`."""
    return autoencoder("vqgan", config, info)


def perceptual_of(name: str, info: Info) -> Perceptual | None:
    """The distance that --perceptual names, for images like those of `info`.

    Raises:
        InputError: it is no classifier, one of other images, or LPIPS of images that are too small.
        RunError: LPIPS cannot be downloaded.
    """
    if name == "none":
        return None
    if name == "lpips":
        if min(info.shape[1:]) < LEAST:
            raise InputError(
                f"--perceptual lpips needs images of {LEAST} pixels or more, and {info.name} has "
                f"{info.shape[1]}x{info.shape[2]}; use a classifier's run folder"
            )
        return Perceptual(lpips_network(), by_lpips)
    loaded = load_model(Path(name))
    if not isinstance(loaded.module, ConvNet):
        raise InputError(f"--perceptual {name} is a {loaded.checkpoint.model}; give a classifier, or lpips")
    if loaded.info.kind != info.kind or loaded.info.shape[0] != info.shape[0]:
        raise InputError(
            f"--perceptual {name} is a classifier of {loaded.info.kind} of {loaded.info.shape[0]} channels, "
            f"and {info.name} has {info.kind} of {info.shape[0]}; train one on the same data"
        )
    return Perceptual(loaded.module, by_classifier)


def lpips_network() -> nn.Module:
    """torch-fidelity's LPIPS with its trained weights, which are downloaded once.

    Raises:
        RunError: they cannot be.
    """
    from torch_fidelity.sample_similarity_lpips import SampleSimilarityLPIPS

    try:
        return SampleSimilarityLPIPS("lpips-vgg16")
    except OSError as error:
        raise RunError(
            f"the weights of LPIPS cannot be downloaded ({error}); use --perceptual with a classifier's run"
        ) from None


def critic_of(config: VqGanConfig, info: Info) -> nn.Module:
    """A new critic of patches of images like those of `info`.

    Raises:
        InputError: nothing would be left of the images after its halvings.
    """
    small = min(info.shape[1:])
    depth = config.disc_depth or (1 if small < 48 else 2 if small < 128 else 3)
    if small >> depth < 2:
        raise InputError(
            f"--disc-depth {depth} halves {info.shape[1]}x{info.shape[2]} images of {info.name} too often; "
            "use a smaller one"
        )
    critic: nn.Module = PatchCritic(info.shape[0], config.disc_width, depth)
    return Normalised(critic) if config.spectral_norm else critic


def objective(module: nn.Module, config: VqGanConfig, info: Info) -> Quantised:
    """Reconstruction, commitment, perceptual distance and the critic's opinion of `module`."""
    assert isinstance(module, Autoencoder)
    return Quantised(
        module,
        config.recon,
        perceptual=perceptual_of(config.perceptual, info),
        perceptual_weight=config.perceptual_weight,
        critic=critic_of(config, info),
        critic_weight=config.disc_weight,
        start=config.disc_start,
    )


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
