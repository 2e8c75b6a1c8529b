"""genkit export: a checkpoint as a folder that diffusers loads."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genkit.config import arg
from genkit.errors import InputError
from genkit.interop.exporting import FAMILIES, export_model, files_of, refusal, write_files
from genkit.io.checkpoint import newest_run
from genkit.models.load import load_model

from .common import RUNS
from .console import emit, say
from .options import make
from .outputs import check_parents


@dataclass(frozen=True)
class ExportConfig:
    """What is exported, and where the folder goes."""

    model: Path | None = arg(None, "Run folder or checkpoint; default: the newest run that fits.", short="-m")
    out: Path = arg(Path("diffusers"), "The folder to write.", short="-o")
    fresh: bool = arg(False, "Replace the model that the folder holds.")
    json: bool = arg(False, "Print the result as one JSON line.")


def command(name: str) -> Any:
    """The `genkit export` command."""
    return make(_export, ExportConfig, command="export", help=HELP)


HELP = """A checkpoint as a folder that diffusers loads.

A ddpm or an imported U-Net becomes a pipeline, an imported autoencoder an AutoencoderKL.
What diffusers has no word for is refused by name, all of it in one line."""


def _export(config: ExportConfig) -> None:
    path = config.model or newest_run(RUNS, FAMILIES)
    if path is None:
        raise InputError(f"no model under {RUNS}/ that diffusers has; train a ddpm or give -m")
    if config.model is None:
        say(f"model: {path}")
    loaded = load_model(path)
    if obstacles := [why for why in (refusal(loaded), _in_the_way(config, files_of(loaded))) if why]:
        raise InputError("; ".join(obstacles))
    files = export_model(loaded)
    write_files(files, config.out)
    result = {"out": str(config.out), "files": sorted(files)}
    emit(result if config.json else config.out, config.json)


def _in_the_way(config: ExportConfig, names: tuple[str, ...]) -> str:
    """Why files of these names cannot be written to -o; empty where they can."""
    check_parents(config.out)
    if config.out.exists() and not config.out.is_dir():
        return f"-o {config.out} is a file; give a folder"
    there = [name for name in names if (config.out / name).exists()]
    if there and not config.fresh:
        return f"{config.out} holds a model already ({there[0]}); use --fresh or another -o"
    return ""
