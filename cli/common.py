"""What several verbs share: the default model, the data options, the forms of an output."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from genkit.config import arg
from genkit.errors import InputError

from .console import say

if TYPE_CHECKING:
    from genkit.data.source import Source
    from genkit.models.load import Loaded

RUNS = Path("runs")


@dataclass(frozen=True)
class DataConfig:
    """Where images come from and what is done to them on reading."""

    data_root: Path | None = arg(
        None, "Folder of named data sets; default: $GENKIT_DATA or the user's cache.", panel="Data"
    )
    size: int | None = arg(None, "Resize and crop images to this many pixels a side.", min=4, panel="Data")
    channels: int | None = arg(
        None, "1 for grey, 3 for RGB; default: as the images are.", min=1, max=3, panel="Data"
    )
    skip_bad: bool = arg(False, "Leave out unreadable images instead of stopping.", panel="Data")


@dataclass(frozen=True)
class PrecisionConfig:
    """Where and how a model runs."""

    batch_size: int = arg(
        64, "Examples at a time; changes the speed, not the result.", min=1, panel="Machine"
    )
    device: str = arg("auto", "auto, cpu, cuda, cuda:1, …", panel="Machine")
    precision: str = arg(
        "auto",
        "Arithmetic of the network; auto: bf16 on a GPU that has it and a CPU with AMX.",
        choices=("auto", "bf16", "fp32"),
        panel="Machine",
    )


@dataclass(frozen=True)
class MachineConfig(PrecisionConfig):
    """The same for a network that is evaluated many times."""

    compile: bool | None = arg(
        None, "Compile the network; default: on CUDA, for more than a few batches.", panel="Machine"
    )


def open_data(spec: str, config: DataConfig, like: "Loaded | None" = None):  # type: ignore[no-untyped-def]
    """The source `spec`; with `like`, images brought to that model's size and channels where none were
    asked for."""
    from genkit.data import open_source

    size: int | tuple[int, int] | None = config.size
    channels = config.channels
    if like is not None and like.info.kind == "images" and not spec.endswith(".safetensors") and spec != "-":
        c, h, w = like.info.shape
        size, channels = size or (h, w), channels or (c if c in (1, 3) else None)
    source = open_source(spec, root=config.data_root, size=size, channels=channels, skip_bad=config.skip_bad)
    for note in source.notes:
        say(f"note: {note}")
    return source


def load(model: Path | None, verb: str, sha256: str = "") -> "Loaded":
    """The model given with -m, or the newest run that serves `verb`, named on stderr.

    sha256: of the weights that an input was made with; without -m the run that has them is taken first.

    Raises:
        InputError: when there is none, with the command that trains one.
    """
    from genkit.io.checkpoint import find_weights, newest_run
    from genkit.models.load import load_model
    from genkit.registry import serving

    if model is None:
        suits = serving(verb)
        model = (find_weights(RUNS, sha256) if sha256 else None) or newest_run(RUNS, suits)
        if model is None:
            raise InputError(
                f"no model under {RUNS}/ serves `{verb}`; train one with `genkit train {suits[0]}` or give -m"
            )
        say(f"model: {model}")
    return load_model(model, verb)


def check_shape(source_shape: tuple[int, ...], wanted: tuple[int, ...], what: str) -> None:
    """Refuse inputs of another shape than the model's.

    Raises:
        InputError: with both shapes.
    """
    if tuple(source_shape) != tuple(wanted):
        raise InputError(f"{what} has shape {tuple(source_shape)}, the model needs {tuple(wanted)}")


def check_source(source: "Source", loaded: "Loaded", name: str) -> None:
    """Refuse data that the model was not made for: another kind, another shape, another codec's latents.
    Those of its own codec are normalised as the model's training data were from here on.

    Raises:
        InputError: with what does not match.
    """
    info = source.info
    if info.kind != loaded.info.kind:
        remedy = "encode the images first" if loaded.info.kind == "latents" else "give the images themselves"
        raise InputError(f"{name} holds {info.kind}, and the model works on {loaded.info.kind}; {remedy}")
    check_shape(info.shape, loaded.info.shape, name)
    if info.codec != loaded.info.codec:
        raise InputError(
            f"{name} was encoded by another codec than the model's training data; encode with that one"
        )
    # the model's own normalisation: the file's was measured on whatever it holds
    source.info = info._replace(shift=loaded.info.shift, scale=loaded.info.scale)


def clips(asked: bool | None, loaded: "Loaded") -> bool:
    """Whether predicted data are kept in [-1, 1]: as asked, else as the checkpoint says, else for images."""
    if asked is not None:
        return asked
    usual = getattr(loaded.config, "clip", None)
    return loaded.info.kind == "images" if usual is None else bool(usual)
