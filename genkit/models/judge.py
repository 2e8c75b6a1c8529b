"""What judges reconstructions beside their pixels: a perceptual distance and a critic of patches."""

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ..config import arg, check_read
from ..data.source import Info
from ..errors import InputError, RunError, with_article
from ..nn.adversarial import PatchCritic
from ..nn.convnet import ConvNet
from ..nn.spectral import Normalised
from ..objectives.judged import Judgeable, Judged
from ..objectives.perceptual import Perceptual, by_classifier, by_lpips
from .load import load_model

_CRITIC, _LOSS = "Critic", "Loss"
LEAST = 16  # pixels a side that LPIPS needs: its network halves them four times


@dataclass(frozen=True)
class JudgeConfig:
    """Settings of the perceptual distance and of the critic."""

    perceptual: str = arg(
        "none",
        "Distance of what a network sees: a classifier's run folder, lpips (downloads weights), or none.",
        panel=_LOSS,
    )
    perceptual_weight: float | None = arg(
        None,
        "Weight of that distance over the pixels' error: over a mean for vqgan, over each number of the "
        "image for vae, whose error is a sum; default: 0.05 for a classifier's, 1 for lpips.",
        min=0.0,
        panel=_LOSS,
    )
    disc_start: int = arg(1000, "First step of the critic and of its opinion.", min=0, panel=_CRITIC)
    disc_weight: float = arg(
        0.2,
        "Weight of the critic's opinion, over the adaptive one; Esser et al. 2021 have 0.8.",
        min=0.0,
        panel=_CRITIC,
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


def judged(inner: Judgeable, config: JudgeConfig, info: Info, adversarial: bool = True) -> Judged:
    """`inner` with the distance of `config` and, where `adversarial`, with a critic.

    Raises:
        InputError: see `check_judge`, `perceptual_of` and `critic_of`.
    """
    check_judge(config, adversarial)
    return Judged(
        inner,
        perceptual=perceptual_of(config.perceptual, info),
        perceptual_weight=_weight(config),
        critic=critic_of(config, info) if adversarial else None,
        critic_weight=config.disc_weight,
        start=config.disc_start,
    )


def _weight(config: JudgeConfig) -> float:
    """The weight of the distance: LPIPS' is that of Esser et al. 2021; a classifier's maps differ by far more
    than pixels do, and at 1 MNIST came back 3 dB worse."""
    if config.perceptual_weight is not None:
        return config.perceptual_weight
    return 1.0 if config.perceptual == "lpips" else 0.05


def check_judge(config: JudgeConfig, adversarial: bool) -> None:
    """Refuse a weight of no distance, and options of a critic where there is none; checkpoints are not held
    to it.

    Raises:
        InputError: naming the option and what would read it.
    """
    readers = {"perceptual_weight": (config.perceptual != "none", "--perceptual")}
    names = ("disc_start", "disc_weight", "disc_width", "disc_depth", "spectral_norm")
    check_read(config, {**readers, **dict.fromkeys(names, (adversarial, "--adversarial"))})


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
        raise InputError(
            f"--perceptual {name} is {with_article(loaded.checkpoint.model)}; give a classifier, or lpips"
        )
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


def critic_of(config: JudgeConfig, info: Info) -> nn.Module:
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
