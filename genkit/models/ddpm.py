"""ddpm: a diffusion model of images, or of latents: a U-Net, a noise schedule and a prediction target."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..config import arg, check_read
from ..data.source import Batch, Info
from ..diffusion.denoiser import Denoiser, bind
from ..diffusion.samplers import ddim
from ..diffusion.schedules import SCHEDULES, times
from ..diffusion.targets import TARGETS
from ..errors import InputError
from ..nn.unet import UNet
from ..objectives.diffusion import LOSSES, WEIGHTINGS, Bound, Diffusion
from ..objectives.times import TIME_SAMPLING, Times
from ..registry import Entry, register
from .sampling import initial_noise

_TARGETS = tuple(name for name in TARGETS if name != "score")


@dataclass(frozen=True)
class DdpmConfig:
    """Settings of `genkit train ddpm`."""

    width: int = arg(64, "Channels of the first level.", min=2, panel="Network")
    multipliers: tuple[int, ...] | None = arg(
        None,
        "Channels of each level over --width; each level but the last halves the size; default: 1,2, or 2 "
        "alone where the size is odd.",
        min=1,
        panel="Network",
    )
    blocks: int = arg(2, "Residual blocks a level.", min=1, panel="Network")
    attention: tuple[int, ...] = arg(
        (), "Feature-map sizes with attention; the bottom always has some.", min=1, panel="Network"
    )
    patch: int | None = arg(
        None,
        "Space-to-depth before the network; default: 2 for images of 24 pixels or more, else 1.",
        min=1,
        panel="Network",
    )
    head_dim: int | None = arg(
        None, "Channels of an attention head; default: one head.", min=1, panel="Network"
    )
    scale_shift: bool = arg(
        True, "The time scales and shifts the norms instead of being added.", panel="Network"
    )
    norm_groups: int = arg(32, "Groups of the norms; 1 is the fastest on a CPU.", min=1, panel="Network")
    middle_attention: bool = arg(True, "Attention at the bottom.", panel="Network")
    dropout: float = arg(0.0, "Dropout in the residual blocks.", min=0.0, max=0.9, panel="Network")
    class_conditional: bool = arg(
        False, "Learn the classes of the data, for --label and --guidance.", panel="Condition"
    )
    label_dropout: float = arg(
        0.1,
        "Share of examples shown the null class instead of their own, for guidance.",
        min=0.0,
        max=1.0,
        panel="Condition",
    )
    schedule: str = arg("cosine", "Noise schedule.", choices=tuple(SCHEDULES), panel="Diffusion")
    target: str = arg("v", "What the network predicts.", choices=_TARGETS, panel="Diffusion")
    loss: str = arg(
        "simple",
        "simple: squared error; hybrid: that and --vlb-weight of the variational bound, which teaches the "
        "variance; vlb: the bound alone (Nichol & Dhariwal 2021).",
        choices=LOSSES,
        panel="Diffusion",
    )
    vlb_weight: float = arg(0.001, "Weight of the bound in the hybrid loss.", min=0.0, panel="Diffusion")
    weighting: str = arg(
        "none",
        "Weight of the loss over time: none, or min(SNR, --gamma) in x0 (Hang et al. 2023).",
        choices=WEIGHTINGS,
        panel="Diffusion",
    )
    gamma: float = arg(5.0, "Largest weight of min-snr.", min=1e-3, panel="Diffusion")
    time_sampling: str = arg(
        "uniform",
        "Training times: uniform in t; normal in ln(sigma / alpha), logit-normal in t for --schedule flow; "
        "or by the steps' shares of the bound, for --loss vlb or hybrid.",
        choices=TIME_SAMPLING,
        panel="Diffusion",
    )
    time_mean: float = arg(-1.2, "Mean of ln(sigma / alpha) for lognormal times.", panel="Diffusion")
    time_std: float = arg(1.2, "Its standard deviation.", min=1e-3, panel="Diffusion")
    data_std: float | None = arg(
        None,
        "Standard deviation of the data, for the edm target; default: 0.5 for images, 1 for latents.",
        min=1e-3,
        panel="Diffusion",
    )


def levels(config: DdpmConfig, info: Info) -> tuple[tuple[int, ...], int]:
    """The multipliers and the patch of the network for data like that of `info`: what the configuration says,
    or what fits."""
    size = info.shape[1:]
    patch = config.patch or (2 if info.kind == "images" and min(size) >= 24 else 1)
    odd = any(side // patch % 2 for side in size)
    return config.multipliers if config.multipliers is not None else (2,) if odd else (1, 2), patch


def build(config: DdpmConfig, info: Info) -> Denoiser:
    """The denoiser for data like that of `info`.

    Raises:
        InputError: the network does not fit the data's size, or the target does not fit the schedule.
    """
    if config.class_conditional and not info.classes:
        raise InputError(
            f"--class-conditional needs labels and {info.name} has none; use a source with classes, such as "
            "an image folder with a sub-folder a class"
        )
    classes = len(info.classes) if config.class_conditional else 0
    _check_loss(config)
    learned = config.loss != "simple"
    channels, height, width = info.shape
    multipliers, patch = levels(config, info)
    try:
        network = UNet(
            channels,
            channels * (2 if learned else 1),
            max(height, width),
            width=config.width,
            multipliers=multipliers,
            blocks=config.blocks,
            attention=config.attention,
            head_dim=config.head_dim,
            dropout=config.dropout,
            classes=classes,
            patch=patch,
            scale_shift=config.scale_shift,
            groups=config.norm_groups,
            middle_attention=config.middle_attention,
        )
        network.check_size(height, width)
    except ValueError as error:
        raise InputError(
            f"the network does not fit {height}x{width} {info.kind} of {info.name}: {error}"
        ) from None
    if config.target == "eps" and config.schedule == "flow":
        raise InputError(
            "--target eps says nothing of x0 at t = 1 of --schedule flow; use --target flow, v or edm"
        )
    data_std = config.data_std or (1.0 if info.kind == "latents" else 0.5)
    return Denoiser(
        network,
        SCHEDULES[config.schedule](),
        config.target,
        data_std,
        classes=classes,
        learn_variance=learned,
    )


def _check_loss(config: DdpmConfig) -> None:
    """Refuse options of the loss that contradict each other.

    Raises:
        InputError: naming both.
    """
    if config.loss == "simple" and config.time_sampling == "importance":
        raise InputError(
            "--time-sampling importance follows the terms of the bound, which --loss simple has not; "
            "add --loss vlb or hybrid"
        )
    if config.loss != "simple" and config.time_sampling == "lognormal":
        raise InputError(
            f"--loss {config.loss} trains on the steps of a chain, so --time-sampling lognormal cannot be; "
            "use uniform or importance"
        )
    if config.loss == "vlb" and config.weighting != "none":
        raise InputError(
            f"--weighting {config.weighting} weighs the squared error, which --loss vlb has not; "
            "use --loss simple or hybrid"
        )


def _check_idle(config: DdpmConfig) -> None:
    """Refuse a value for an option that nothing reads; checkpoints are not held to it.

    Raises:
        InputError: naming the option and what would read it, or classes that are never shown.
    """
    lognormal = config.time_sampling == "lognormal", "--time-sampling lognormal"
    readers = {
        "label_dropout": (config.class_conditional, "--class-conditional"),
        "gamma": (config.weighting == "min-snr", "--weighting min-snr"),
        "vlb_weight": (config.loss == "hybrid", "--loss hybrid"),
        "time_mean": lognormal,
        "time_std": lognormal,
        "data_std": (config.target == "edm", "--target edm"),
    }
    check_read(config, readers)
    if config.class_conditional and config.label_dropout == 1:
        raise InputError("--label-dropout 1 never shows a class; lower it, or drop --class-conditional")


def objective(module: nn.Module, config: DdpmConfig, info: Info) -> Diffusion:
    """The denoising loss of `module`.

    Raises:
        InputError: an option is given that nothing reads.
    """
    assert isinstance(module, Denoiser)
    _check_idle(config)
    bound = None
    if config.loss != "simple":
        bound = Bound(
            module.schedule,
            weight=config.vlb_weight if config.loss == "hybrid" else None,
            importance=config.time_sampling == "importance",
            discrete=info.kind == "images",
        )
    return Diffusion(
        module,
        Times(module.schedule, config.time_sampling, config.time_mean, config.time_std),
        label_dropout=config.label_dropout,
        weighting=config.weighting,
        gamma=config.gamma,
        bound=bound,
    )


@torch.inference_mode()
def preview(module: nn.Module, config: DdpmConfig, info: Info, batch: Batch) -> Tensor:
    """(36, C, H, W) samples of DDIM with 25 steps, of the same noise every time and the classes in turn."""
    assert isinstance(module, Denoiser)
    index = torch.arange(36, device=batch.x.device)
    x = initial_noise(module.schedule, 0, index, info.shape, times(25))
    label = index % module.classes if module.classes else None
    for step in ddim(bind(module, label), module.schedule, x, times(25)):
        x = step.x
    return x


register(
    "ddpm",
    Entry(
        help="A diffusion model of images, or of latents: U-Net, noise schedule, prediction target.",
        config=DdpmConfig,
        build=build,
        objective=objective,
        latents=True,
        verbs=(
            *(f"sample {name}" for name in ("ddim", "ddpm", "dpmpp", "heun", "euler")),
            "invert",
            "inpaint",
            "interpolate",
            "eval-nll",
        ),
        defaults={
            "lr": 1e-3,
            "batch_size": 128,
            "warmup": 200,
            "decay": "cosine",
            "grad_clip": 1.0,
            "epochs": 10,
        },
        preview=preview,
    ),
)
