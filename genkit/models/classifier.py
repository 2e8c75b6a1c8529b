"""classifier: a small residual network; guides sampling and serves as the feature extractor of eval-fid."""

from dataclasses import dataclass

from torch import nn

from ..config import arg
from ..data.source import Info
from ..errors import InputError
from ..nn.convnet import ConvNet
from ..objectives.classification import Classification
from ..registry import Entry, register


@dataclass(frozen=True)
class ClassifierConfig:
    """Settings of `genkit train classifier`."""

    width: int = arg(
        32, "Channels of the first of three scales; features have 4 times as many.", min=2, panel="Network"
    )
    blocks: int = arg(1, "Residual blocks a scale.", min=1, panel="Network")
    shift: int | None = arg(
        None,
        "Move training images by up to this many pixels; default: a 14th of their size.",
        min=0,
        panel="Loss",
    )
    noise_conditioned: bool = arg(
        False, "Learn noisy images too, told how noisy: for `sample --classifier`.", panel="Loss"
    )
    smoothing: float = arg(0.0, "Label smoothing (Szegedy et al. 2016).", min=0.0, max=0.99, panel="Loss")


def build(config: ClassifierConfig, info: Info) -> ConvNet:
    """The network for images like those of `info`.

    Raises:
        InputError: the source has no labels.
    """
    if not info.classes:
        raise InputError(
            f"classifier needs labels and {info.name} has none; "
            "use one with classes, such as an image folder with a sub-folder a class"
        )
    channels, height, width = info.shape
    stride = 2 if max(height, width) > 16 else 1
    return ConvNet(channels, len(info.classes), config.width, config.blocks, stride, config.noise_conditioned)


def objective(module: nn.Module, config: ClassifierConfig, info: Info) -> Classification:
    """Cross-entropy of `module`."""
    most = min(info.shape[1:]) // 14 if config.shift is None else config.shift
    return Classification(module, config.smoothing, most, config.noise_conditioned)


register(
    "classifier",
    Entry(
        help="A classifier: guides sampling, and measures images in place of Inception (--features).",
        config=ClassifierConfig,
        build=build,
        objective=objective,
        latents=True,
        verbs=("eval-fid",),
        defaults={
            "lr": 3e-3,
            "batch_size": 128,
            "weight_decay": 0.05,
            "decay": "linear",
            "ema": 0.02,
            "steps": 3000,
        },
    ),
)
