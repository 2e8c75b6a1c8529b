"""A genkit checkpoint -> a folder that diffusers loads."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor, nn

from ..diffusion.denoiser import Denoiser
from ..errors import InputError, with_article
from ..io.atomic import atomic, write_text
from ..models.ddpm import DdpmConfig, levels
from ..models.imported_unet import SCHEDULES, ImportedUnetConfig
from ..models.imported_vae import ImportedVaeConfig
from ..models.load import Loaded
from ..nn.blocks import Attention, ResBlock
from ..nn.unet import UNet
from .names import UNET, VAE, export_weights
from .scheduler import write_scheduler
from .unet import write_unet
from .vae import write_vae
from .weights import STEM

FAMILIES = ("diffusers-unet", "kl-vae", "ddpm")
VERSION = "0.30.0"  # of diffusers, whose keys these are
PIPELINES = {"ddpm": "DDPMPipeline", "ddim": "DDIMPipeline"}
VAE_FILES = ("config.json", f"{STEM}.safetensors")
UNET_FILES = (
    "unet/config.json",
    f"unet/{STEM}.safetensors",
    "scheduler/scheduler_config.json",
    "model_index.json",
)
Files = dict[str, dict[str, Any] | dict[str, Tensor]]  # name in the folder -> JSON or tensors


def files_of(loaded: Loaded) -> tuple[str, ...]:
    """The names in the folder of what `export_model` gives, the index of a pipeline last."""
    return VAE_FILES if isinstance(loaded.config, ImportedVaeConfig) else UNET_FILES


def export_model(loaded: Loaded) -> Files:
    """The files of the diffusers model that is the same network as `loaded`.

    Raises:
        InputError: diffusers has no such network, by all that it lacks.
    """
    if why := refusal(loaded):
        raise InputError(why)
    config, shape, tensors = loaded.config, loaded.info.shape, loaded.module.state_dict()
    if isinstance(config, ImportedVaeConfig):
        return dict(zip(VAE_FILES, (_versioned(write_vae(config, shape)), export_weights(tensors, VAE))))
    if isinstance(config, DdpmConfig):
        config = as_unet2d(loaded)
    assert isinstance(config, ImportedUnetConfig)  # as `refusal` has seen to
    scheduler = write_scheduler(config)
    index = {
        "_class_name": PIPELINES[config.sampler],
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "unet": ["diffusers", "UNet2DModel"],
    }
    unet = _versioned(write_unet(config, shape)), export_weights(tensors, UNET)
    return dict(zip(UNET_FILES, (*unet, _versioned(scheduler), _versioned(index))))


def write_files(files: Files, folder: Path) -> None:
    """Write `files` into `folder`, each atomically, the index last."""
    for name, content in files.items():
        path = folder / name
        if name.endswith(".json"):
            write_text(path, json.dumps(content, indent=2, sort_keys=True) + "\n")
        else:
            _write_tensors(path, content)


def _write_tensors(path: Path, tensors: Mapping[str, Any]) -> None:
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # diffusers reads no file that does not say which framework wrote it
    about = {"format": "pt"}
    atomic(path, lambda temporary: safetensors.torch.save_file(plain, str(temporary), metadata=about))


def _versioned(values: dict[str, Any]) -> dict[str, Any]:
    return {"_diffusers_version": VERSION, **values}


def refusal(loaded: Loaded) -> str:
    """What keeps `loaded` from being a diffusers model: all of its settings that do, each with the reason;
    empty where none does."""
    path, family = loaded.checkpoint.path, loaded.checkpoint.model
    if family not in FAMILIES:
        known = ", ".join(FAMILIES)
        return f"{path} is {with_article(family)}, and diffusers has no such model; export takes {known}"
    if not isinstance(loaded.config, DdpmConfig):
        return ""
    assert isinstance(loaded.module, Denoiser)
    network = loaded.module.network
    assert isinstance(network, UNet)
    lacking = [*_missing(loaded, network), *_uneven(network)]
    return f"{path} has what diffusers' UNet2DModel cannot have: {', '.join(lacking)}" if lacking else ""


def as_unet2d(loaded: Loaded) -> ImportedUnetConfig:
    """The configuration under which diffusers builds the network of a genkit ddpm without `refusal`."""
    config, model = loaded.config, loaded.module
    assert isinstance(config, DdpmConfig)
    assert isinstance(model, Denoiser)
    network = model.network
    assert isinstance(network, UNet)
    attention = tuple(isinstance(level.attentions[0], Attention) for level in network.down)  # type: ignore[union-attr, index]
    groups, middle_groups = _groups(loaded, network)
    return ImportedUnetConfig(
        channels=tuple(config.width * m for m in levels(config, loaded.info)[0]),
        blocks=config.blocks,
        attention_down=attention,
        attention_up=attention[::-1],
        middle_attention=config.middle_attention,
        head_dim=config.head_dim,
        groups=groups,
        middle_groups=middle_groups,
        norm_eps=network.details.norm_eps,
        scale_shift=config.scale_shift,
        centred=False,
        cosine_first=False,
        frequency_shift=1.0,
        dropout=config.dropout,
        learn_variance=model.learn_variance,
        target=config.target,
        schedule=config.schedule,
        # genkit's own betas of this name
        beta_min=0.00085 if config.schedule == "scaled-linear" else 1e-4,
        beta_max=0.012 if config.schedule == "scaled-linear" else 2e-2,
        clip=True,
        sampler="ddpm" if model.learn_variance else "ddim",
        variance="learned" if model.learn_variance else "small",
        spacing="trailing",
    )


def _missing(loaded: Loaded, network: UNet) -> list[str]:
    """Settings of a ddpm, each with why the `UNet2DModel` pipelines cannot have it."""
    config, known = loaded.config, ", ".join(SCHEDULES)
    multiplier = levels(config, loaded.info)[0][0]
    found = (
        (loaded.info.kind != "images", f"data of kind {loaded.info.kind} (its pipelines draw images)"),
        (network.patch != 1, f"patch {network.patch} (it has no space-to-depth; train with --patch 1)"),
        (network.classes, "class_conditional (it has no null class)"),
        (
            multiplier != 1,
            f"multipliers[0] {multiplier} (it starts with the first level's channels)",
        ),
        (config.target not in ("eps", "x0", "v"), f"target {config.target} (it knows eps, x0 and v)"),
        (config.schedule not in SCHEDULES, f"schedule {config.schedule} (it knows {known})"),
    )
    return [setting for there, setting in found if there]


def _uneven(network: UNet) -> list[str]:
    """The norms' numbers of groups, where they are not one number; diffusers has one for all."""
    counts = _group_counts(network)
    if len(counts) == 1:
        return []
    found = ", ".join(map(str, counts))
    if any(isinstance(m, Attention) for level in network.down for m in level.modules()):
        remedy = "attention has 32: train with --norm-groups 32 and a --width that 64 divides"
    else:
        remedy = "train with a --norm-groups twice which divides every level's channels"
    return [f"norms of {found} groups (it has one number for all; {remedy})"]


def _group_counts(network: UNet) -> list[int]:
    """The numbers of groups, rising, of all norms but that of the middle attention."""
    levels = [m for m in [*network.down, *network.up] for m in m.modules()]
    norms = [m.norm1 for m in network.modules() if isinstance(m, ResBlock)]
    norms += [m.norm2 for m in network.modules() if isinstance(m, ResBlock)]
    norms += [m.norm for m in levels if isinstance(m, Attention)]
    return sorted({_count(norm) for norm in [*norms, network.norm_out]})


def _groups(loaded: Loaded, network: UNet) -> tuple[int, int | None]:
    """(groups of the norms, groups of the middle attention's norm where they differ)."""
    (groups,) = _group_counts(network)
    middle = network.middle_attention
    own = _count(middle.norm) if isinstance(middle, Attention) else groups
    # with scale_shift diffusers gives this norm only on request
    asked = own != groups or loaded.config.scale_shift
    return groups, own if asked and isinstance(middle, Attention) else None


def _count(norm: nn.Module) -> int:
    assert isinstance(norm, nn.GroupNorm)
    return norm.num_groups
