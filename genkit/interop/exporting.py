"""A genkit checkpoint -> a folder that diffusers loads."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor, nn

from ..diffusion.denoiser import Denoiser
from ..errors import InputError
from ..io.atomic import atomic, write_text
from ..models.ddpm import DdpmConfig
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
Files = dict[str, dict[str, Any] | dict[str, Tensor]]  # name in the folder -> JSON or tensors


def export_model(loaded: Loaded) -> Files:
    """The files of the diffusers model that is the same network as `loaded`.

    Raises:
        InputError: diffusers has no such network, by the setting that it lacks.
    """
    config, shape, tensors = loaded.config, loaded.info.shape, loaded.module.state_dict()
    if isinstance(config, ImportedVaeConfig):
        weights = export_weights(tensors, VAE)
        return {"config.json": _versioned(write_vae(config, shape)), f"{STEM}.safetensors": weights}
    if isinstance(config, DdpmConfig):
        config = as_unet2d(loaded)
    if not isinstance(config, ImportedUnetConfig):
        raise InputError(
            f"{loaded.checkpoint.path} is a {loaded.checkpoint.model}, and diffusers has no such model; "
            f"export takes {', '.join(FAMILIES)}"
        )
    scheduler = write_scheduler(config)
    index = {
        "_class_name": PIPELINES[config.sampler],
        "scheduler": ["diffusers", scheduler["_class_name"]],
        "unet": ["diffusers", "UNet2DModel"],
    }
    return {
        "unet/config.json": _versioned(write_unet(config, shape)),
        f"unet/{STEM}.safetensors": export_weights(tensors, UNET),
        "scheduler/scheduler_config.json": _versioned(scheduler),
        "model_index.json": _versioned(index),
    }


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


def as_unet2d(loaded: Loaded) -> ImportedUnetConfig:
    """The configuration under which diffusers builds the network of a genkit ddpm.

    Raises:
        InputError: it cannot, by the setting.
    """
    config, model = loaded.config, loaded.module
    assert isinstance(config, DdpmConfig)
    assert isinstance(model, Denoiser)
    network = model.network
    assert isinstance(network, UNet)
    _check(loaded, network)
    attention = tuple(isinstance(level.attentions[0], Attention) for level in network.down)  # type: ignore[union-attr, index]
    groups, middle_groups = _groups(loaded, network)
    return ImportedUnetConfig(
        channels=tuple(config.width * m for m in config.multipliers),
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


def _check(loaded: Loaded, network: UNet) -> None:
    """Refuse a ddpm whose network, data or formulas diffusers' `UNet2DModel` pipelines lack."""
    config, path = loaded.config, loaded.checkpoint.path

    def no(setting: str, why: str) -> InputError:
        return InputError(f"{path} has {setting}, and diffusers' UNet2DModel {why}")

    if loaded.info.kind != "images":
        raise no(f"data of kind {loaded.info.kind}", "pipelines draw images")
    if network.patch != 1:
        raise no(f"patch {network.patch}", "has no space-to-depth; train with --patch 1")
    if network.classes:
        raise no("class_conditional", "has no null class")
    if config.multipliers[0] != 1:
        raise no(f"multipliers[0] {config.multipliers[0]}", "starts with the first level's channels")
    if config.target not in ("eps", "x0", "v"):
        raise no(f"target {config.target}", "knows eps, x0 and v")
    if config.schedule not in SCHEDULES:
        raise no(f"schedule {config.schedule}", f"knows {', '.join(SCHEDULES)}")


def _groups(loaded: Loaded, network: UNet) -> tuple[int, int | None]:
    """(groups of the norms, groups of the middle attention's norm where they differ)."""
    levels = [m for m in [*network.down, *network.up] for m in m.modules()]
    norms = [m.norm1 for m in network.modules() if isinstance(m, ResBlock)]
    norms += [m.norm2 for m in network.modules() if isinstance(m, ResBlock)]
    norms += [m.norm for m in levels if isinstance(m, Attention)]
    counts = sorted({_count(norm) for norm in [*norms, network.norm_out]})
    if len(counts) > 1:
        raise InputError(
            f"{loaded.checkpoint.path} has norms of {', '.join(map(str, counts))} groups, and diffusers' "
            "UNet2DModel one number for all; train with a --norm-groups that divides every level's channels"
        )
    middle = network.middle_attention
    own = _count(middle.norm) if isinstance(middle, Attention) else counts[0]
    # with scale_shift diffusers gives this norm only on request
    asked = own != counts[0] or loaded.config.scale_shift
    return counts[0], own if asked and isinstance(middle, Attention) else None


def _count(norm: nn.Module) -> int:
    assert isinstance(norm, nn.GroupNorm)
    return norm.num_groups
