"""What every `genkit sample` shares: how much is asked for, and where it goes."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from genkit import machine
from genkit.config import arg
from genkit.errors import InputError
from genkit.io.latents import Latents
from genkit.models.load import Loaded

from .common import PrecisionConfig
from .outputs import Out, deliver
from .preview import check_codec_use, codec_for, scaling

Draw = Callable[[Tensor], Tensor]  # indices (B,) -> (B, C, H, W) in the model's data space


@dataclass(frozen=True)
class SampleConfig:
    """What is drawn, from which model, and where it goes."""

    model: Path | None = arg(None, "Run folder or checkpoint; default: the newest run that fits.", short="-m")
    count: int = arg(64, "How many to draw.", min=1, short="-n")
    out: str | None = arg(
        None,
        "dir/ of PNGs, x.png grid, x.gif of the sampling (prior has none, being one step), x.safetensors, "
        "or - for a stream; default: METHOD.png.",
        short="-o",
    )
    seed: int = arg(0, "Image i of a seed is always the same picture.", min=0, max=2**63 - 1)
    codec: Path | None = arg(
        None,
        "Codec that turns a latent model's samples into pictures; default: the one that "
        "encoded its training data, if it is beside the model or under runs/.",
    )
    fresh: bool = arg(False, "Replace what the folder holds.")
    json: bool = arg(False, "Print the result as one JSON line.")


def class_name(loaded: Loaded, label: int) -> str:
    """The name of a class; nothing for the null class."""
    names = loaded.info.classes
    return names[label] if label < len(names) else ""


def check_codec_reader(sample: SampleConfig, loaded: Loaded, out: Out, film: bool = False) -> None:
    """Refuse a codec that nothing would read. film: whether a trajectory is drawn.

    Raises:
        InputError: the model makes images, or only tensors are asked for.
    """
    check_codec_use(loaded.info, sample.codec)
    if sample.codec is not None and out.form in ("tensors", "stream") and not film:
        raise InputError(f"--codec {sample.codec} is for pictures, and -o {out.path} takes tensors; drop it")


def deliver_drawn(
    draw: Draw,
    loaded: Loaded,
    out: Out,
    sample: SampleConfig,
    run: PrecisionConfig,
    settings: dict[str, Any],
    labels: Tensor | None = None,
) -> None:
    """Draw what is still missing and put it where -o says; pictures of latents go through their codec."""
    device = machine.pick_device(run.device)
    near = loaded.checkpoint.path.parent
    shown = out.form in ("folder", "png")
    show = codec_for(loaded.info, sample.codec, device, near) if shown else (lambda x: x)
    deliver(
        f"sample {settings['method']}",
        lambda index: show(draw(index)),
        sample.count,
        out,
        settings,
        lambda z: as_latents(z, loaded, settings, labels),
        batch_size=run.batch_size,
        fresh=sample.fresh,
        as_json=sample.json,
        classes=(lambda i: class_name(loaded, int(labels[i]))) if labels is not None else None,
        columns=columns(labels),
    )


def columns(labels: Tensor | None) -> int | None:
    """Of a grid in which classes that come in turn stand below each other."""
    if labels is None:
        return None
    kinds = len(labels.unique())
    in_turn = len(labels) >= 2 * kinds and bool((labels[kinds:] == labels[:-kinds]).all())
    return kinds if 4 < kinds <= 16 and in_turn else None


def as_latents(z: Tensor, loaded: Loaded, extra: dict[str, Any], labels: Tensor | None = None) -> Latents:
    """What a model drew, with what `decode` needs to know of it."""
    info, model = loaded.info, loaded.checkpoint.sha256
    if labels is not None and int(labels.max()) >= len(info.classes):
        labels = None  # the null class is no label of the data
    classes = info.classes if labels is not None else ()
    if info.kind == "images":
        return Latents(z, "images", labels, model=model, classes=classes, extra=extra)
    shift, scale = scaling(info, z.device)
    return Latents(
        z * scale + shift,
        "latents",
        labels,
        shift=info.shift,
        scale=info.scale,
        codec=info.codec,
        model=model,
        classes=classes,
        extra=extra,
    )
