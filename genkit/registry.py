"""MODELS: the name of a model family -> how to configure, build and train it. Files name models, never
code."""

import importlib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from .errors import unknown

if TYPE_CHECKING:
    from torch import Tensor, nn

    from .data.source import Batch, Info
    from .train.objective import Objective


class Entry(NamedTuple):
    """One model family: what `genkit train NAME` shows, how its network is built and what it minimises."""

    help: str
    config: type  # frozen dataclass of `config.arg` fields
    build: "Callable[[Any, Info], nn.Module]"
    objective: "Callable[[nn.Module, Any, Info], Objective]"
    latents: bool = False  # can train on a latents file
    verbs: tuple[str, ...] = ()  # the verbs that a checkpoint of it serves: "sample prior", "encode", ...
    defaults: Mapping[str, Any] = MappingProxyType(
        {}
    )  # of train.config.OptimConfig, where this family differs
    # (averaged model, config, info, some examples) -> (N, C, H, W) pictures of how training goes, in the
    # data's units
    preview: "Callable[[nn.Module, Any, Info, Batch], Tensor] | None" = None


MODELS: dict[str, Entry] = {}
FAMILIES = {  # name -> its module in genkit.models, imported on demand
    "vae": "vae",
    "ae": "ae",
    "hvae": "hvae",
    "vqvae": "vqvae",
    "vqgan": "vqgan",
    "gan": "gan",
    "aae": "aae",
    "ddpm": "ddpm",
    "classifier": "classifier",
    "diffusers-unet": "imported_unet",
    "kl-vae": "imported_vae",
}


def register(name: str, entry: Entry) -> None:
    """Make `entry` known as `name`; called once by each module of genkit.models."""
    MODELS[name] = entry


def find(name: str) -> Entry:
    """The entry registered as `name`.

    Raises:
        InputError: when there is no such model, with the closest name.
    """
    if name not in FAMILIES and name not in MODELS:
        raise unknown("model", name, (*FAMILIES, *MODELS))
    if name not in MODELS:
        importlib.import_module(f"genkit.models.{FAMILIES[name]}")
    return MODELS[name]


def serving(verb: str) -> tuple[str, ...]:
    """The names of the model families whose checkpoints serve `verb`."""
    return tuple(name for name in FAMILIES if verb in find(name).verbs)
