"""A diffusers folder or hub model -> what a genkit checkpoint holds."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..config import from_dict
from ..data.source import Info
from ..errors import InputError
from ..models.imported_unet import ImportedUnetConfig
from ..models.imported_vae import ImportedVaeConfig
from ..registry import find
from .hub import Repository
from .names import UNET, VAE, Table, import_weights
from .scheduler import read_scheduler
from .settings import read_json, refuse
from .unet import Shape, read_unet
from .vae import read_vae
from .weights import read_weights

PIPELINES = ("DDPMPipeline", "DDIMPipeline")  # those whose U-Net genkit samples as they do
PARTS = ("unet", "vae")
CLASSES = {"UNet2DModel": "unet", "AutoencoderKL": "vae"}


class Imported(NamedTuple):
    """A model ready to be saved: its family, configuration, images, weights, and what to tell the person."""

    family: str
    config: ImportedUnetConfig | ImportedVaeConfig
    info: Info
    tensors: dict[str, Tensor]
    file: Path  # of the weights
    notes: tuple[str, ...]


def import_model(repository: Repository, part: str | None = None, size: int | None = None) -> Imported:
    """The U-Net or the autoencoder of `repository`.

    part: "unet" or "vae"; None takes what the pipeline is for. size: pixels a side, where the model should
    work on other images than its configuration says.

    Raises:
        InputError: a file is missing or damaged, or says what genkit cannot reproduce, by name.
    """
    part, folder, notes = _part(repository, part)
    path = repository.find(f"{folder}config.json")
    if path is None:
        raise InputError(
            f"{repository.name} has no {folder}config.json; give the folder of a diffusers model"
        )
    values = read_json(path)
    kind = values.get("_class_name")
    if CLASSES.get(str(kind)) != part:
        raise refuse(str(path), "_class_name", kind, f"genkit imports {' and '.join(CLASSES)}")
    if part == "vae":
        fields, shape = read_vae(values, str(path))
        return _finish(repository, folder, from_dict(ImportedVaeConfig, fields), shape, size, VAE, notes)
    fields, found = read_unet(values, str(path))
    schedule, more = _schedule(repository)
    if found is None and size is None:
        raise InputError(f"{path}: sample_size is missing; say how large its images are with --size")
    config = from_dict(ImportedUnetConfig, {**fields, **schedule})
    if config.learn_variance != (config.variance == "learned") and config.sampler == "ddpm":
        wanted = "twice the channels" if config.variance == "learned" else "as many channels as go in"
        remedy = f"the scheduler's variance_type wants {wanted}"
        raise refuse(str(path), "out_channels", values.get("out_channels", 3), remedy)
    shape = found or (values.get("in_channels", 3), 0, 0)
    return _finish(repository, folder, config, shape, size, UNET, (*notes, *more))


def _part(repository: Repository, wanted: str | None) -> tuple[str, str, tuple[str, ...]]:
    """(part, the folder it is in, notes)."""
    path = repository.find("model_index.json")
    if path is None:
        return _bare(repository, wanted)
    index = read_json(path)
    pairs = {k: v for k, v in index.items() if isinstance(v, list) and len(v) == 2}  # (library, class)
    classes = {name: str(kind) for name, (_, kind) in pairs.items()}
    pipeline = index.get("_class_name")
    if wanted is None:
        wanted = "vae" if pipeline not in PIPELINES and classes.get("vae") == "AutoencoderKL" else "unet"
    if wanted == "unet" and pipeline not in PIPELINES:
        remedy = f"genkit imports the U-Nets of {' and '.join(PIPELINES)}, and AutoencoderKL from any"
        raise refuse(str(path), "_class_name", pipeline, remedy)
    if CLASSES.get(classes.get(wanted, "")) != wanted:
        remedy = f"genkit imports {' and '.join(CLASSES)}"
        raise refuse(str(path), wanted, classes.get(wanted), remedy)
    notes = (f"only the vae of this {pipeline} is imported",) if pipeline not in PIPELINES else ()
    # the first pipelines on the hub keep everything in one folder
    nested = repository.find(f"{wanted}/config.json") is not None
    return wanted, f"{wanted}/" if nested else "", notes


def _bare(repository: Repository, wanted: str | None) -> tuple[str, str, tuple[str, ...]]:
    """The same without a model_index.json: a model's own folder, or a sub-folder of it."""
    for folder in ("", *(f"{part}/" for part in PARTS if wanted in (None, part))):
        path = repository.find(f"{folder}config.json")
        if path is None:
            continue
        part = CLASSES.get(str(kind := read_json(path).get("_class_name")))
        if part is None or wanted not in (None, part):
            remedy = f"genkit imports {' and '.join(k for k, v in CLASSES.items() if wanted in (None, v))}"
            raise refuse(str(path), "_class_name", kind, remedy)
        return part, folder, ()
    raise InputError(f"{repository.name} has no model_index.json and no config.json; give a diffusers model")


def _schedule(repository: Repository) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The schedule fields of the repository's scheduler, and notes."""
    for name in ("scheduler/scheduler_config.json", "scheduler_config.json"):
        path = repository.find(name)
        if path is not None:
            return read_scheduler(read_json(path), str(path)), ()
    note = "no scheduler_config.json: DDPM's linear schedule and eps prediction are assumed"
    return read_scheduler({}, repository.name), (note,)


def _finish(
    repository: Repository,
    folder: str,
    config: ImportedUnetConfig | ImportedVaeConfig,
    shape: Shape,
    size: int | None,
    table: Table,
    notes: tuple[str, ...],
) -> Imported:
    """The weights under their new names, checked against the network that the configuration asks for."""
    family = "kl-vae" if table is VAE else "diffusers-unet"
    if size is not None:
        shape = (shape[0], size, size)
    info = Info(repository.name, "images", shape, 0)
    wanted = _skeleton(family, config, info)
    tensors, file = read_weights(repository, folder)
    return Imported(family, config, info, import_weights(tensors, wanted, table, str(file)), file, notes)


def _skeleton(family: str, config: Any, info: Info) -> Mapping[str, Tensor]:
    """The names and shapes of a model's weights, without their memory."""
    with torch.device("meta"):
        return find(family).build(config, info).state_dict()
