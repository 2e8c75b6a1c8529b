"""genkit import SOURCE: a diffusers model as a genkit checkpoint."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genkit.config import REQUIRED, arg, to_dict
from genkit.errors import InputError
from genkit.interop.hub import open_repository
from genkit.interop.importing import PARTS, Imported, import_model
from genkit.io.checkpoint import save_checkpoint
from genkit.io.tensors import digest, read_metadata

from .common import RUNS
from .console import emit, say
from .options import make
from .outputs import parse_out


@dataclass(frozen=True)
class ImportConfig:
    """What is imported, and where the checkpoint goes."""

    source: str = arg(
        REQUIRED, "Folder of a diffusers model, or its name on the hub: ORG/NAME.", positional=True
    )
    out: Path | None = arg(
        None, "x.safetensors, or a run folder for model.safetensors; default: runs/NAME.", short="-o"
    )
    part: str | None = arg(
        None, "Of a pipeline: its U-Net or its autoencoder; default: what it is for.", choices=PARTS
    )
    size: int | None = arg(None, "Pixels a side of its images; default: what its configuration says.", min=4)
    fresh: bool = arg(False, "Replace another model that is there already.")
    json: bool = arg(False, "Print the result as one JSON line.")


def command(name: str) -> Any:
    """The `genkit import` command."""
    return make(_import, ImportConfig, command="import", help=HELP)


HELP = """A diffusers model as a genkit checkpoint: UNet2DModel of DDPM and DDIM pipelines, AutoencoderKL.

Its settings are carried over; what genkit cannot reproduce is refused by name."""


def _import(config: ImportConfig) -> None:
    path = _path(config)
    repository = open_repository(config.source, say)
    model = import_model(repository, config.part, config.size)
    for note in model.notes:
        say(f"note: {note}")
    if not config.fresh and path.exists():
        _check_same(path, model)
    sha256 = save_checkpoint(
        path,
        model.tensors,
        model=model.family,
        config={"model": to_dict(model.config), "import": {"source": config.source, "file": str(model.file)}},
        data=model.info._asdict(),
        step=0,
    )
    values = sum(tensor.numel() for tensor in model.tensors.values())
    say(f"{model.family} of {values:,} parameters for {'x'.join(map(str, model.info.shape))} images")
    emit({"out": str(path), "model": model.family, "sha256": sha256} if config.json else path, config.json)


def _path(config: ImportConfig) -> Path:
    """The checkpoint's file.

    Raises:
        InputError: -o has another suffix, or is a file or a folder where it should not be one.
    """
    if config.out is None:
        return RUNS / Path(config.source).resolve().name / "model.safetensors"
    out = parse_out(str(config.out), ("tensors", "folder"))
    return out.path if out.form == "tensors" else out.path / "model.safetensors"


def _check_same(path: Path, model: Imported) -> None:
    """Refuse to replace another model.

    Raises:
        InputError: `path` holds other weights.
    """
    if read_metadata(path).get("sha256") != digest(model.tensors):
        raise InputError(f"{path} is there already and holds another model; use --fresh or another -o")
