"""genkit interpolate A B: a path between two images, two latents or two seeds."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genkit import machine
from genkit.config import REQUIRED, arg, check_read
from genkit.diffusion.denoiser import Denoiser
from genkit.diffusion.interpolation import METHODS, path
from genkit.errors import InputError
from genkit.io.checkpoint import command_line
from genkit.io.images import tile
from genkit.io.latents import Latents
from genkit.models.load import Loaded

from .common import DataConfig, PrecisionConfig, load
from .conditions import ConditionConfig, check_null, classes_of, parse_labels, parted
from .ends import KINDS, End, Ends, Given, given
from .options import make
from .outputs import (
    Folder,
    Out,
    check_finite,
    parse_out,
    report_folder,
    write_animation,
    write_picture,
    write_tensors,
)
from .spaces import codec_space, diffusion_space, seeds_of


@dataclass(frozen=True)
class InterpolateConfig:
    """The two ends, the model between them, and the form of the result."""

    a: str = arg(
        REQUIRED,
        "A seed (a whole number), an image, a folder, zip or data set of them, a latents or noise file, each "
        "with :3 for its row 3 (from 0); or - for a tensor stream.",
        positional=True,
    )
    b: str = arg(REQUIRED, "The other end, of the same kind.", positional=True)
    model: Path | None = arg(None, "Run folder or checkpoint; default: the newest run that fits.", short="-m")
    out: str = arg(
        "interpolation.png",
        "x.png strip, x.gif, dir/ of frames, x.safetensors, or - for a stream.",
        short="-o",
    )
    count: int = arg(9, "Frames, both ends included.", min=2, short="-n")
    method: str = arg("slerp", "Along the great circle, or straight.", choices=METHODS)
    rows: int = arg(1, "Strips, one below the other: of so many rows, from the named one on.", min=1)
    steps: int = arg(50, "Network evaluations of a diffusion model.", min=1)
    label: str | None = arg(
        None,
        "Class of both ends, or two, one for each (3,8); default: the ends' own, for seeds none, or the "
        "classes in turn where they have parts of the prior.",
    )
    codec: Path | None = arg(None, "Codec of a latent model; default: found beside the model or under runs/.")
    fresh: bool = arg(False, "Replace what the folder holds.")
    json: bool = arg(False, "Print the result as one JSON line.")


def command(name: str) -> Any:
    """The `genkit interpolate` command."""
    return make(
        _interpolate,
        InterpolateConfig,
        DataConfig,
        PrecisionConfig,
        command="interpolate",
        defaults={"precision": "fp32"},
        help="A path between two images, two latents or two seeds.",
    )


def _interpolate(config: InterpolateConfig, data: DataConfig, run: PrecisionConfig) -> None:
    machine.tune()
    out = parse_out(config.out)
    device = machine.pick_device(run.device)
    loaded = load(config.model, "interpolate")
    a, b = both(config)
    prior = None
    if isinstance(loaded.module, Denoiser):
        space = diffusion_space(loaded, config.steps, config.codec, run, device)
    else:
        check_read(config, dict.fromkeys(("steps", "codec"), (False, "diffusion models")))
        # a class is a part of the model's own prior
        own = config.label is not None and parted(loaded)
        prior = seeds_of(loaded) if a.kind == "seed" and not own else None
        space = codec_space(loaded, run, device, prior)
    known = Ends(loaded, space, data, device)
    labels = asked_labels(config, loaded, seeds=a.kind == "seed")
    strips, marks = [], []
    for row in range(config.rows):
        ends = [known.point(end, row, label) for end, label in zip((a, b), labels)]
        if ends[0].x.shape != ends[1].x.shape:
            raise InputError(
                f"{config.a} and {config.b} differ in shape: {ends[0].x.shape} and {ends[1].x.shape}"
            )
        marks.append([[end.mark, end.label] for end in ends])
        between = path(ends[0].x[0], ends[1].x[0], config.count, config.method)
        cond = conditions(loaded, ends, config.count, device)
        parts = torch.arange(config.count, device=device).split(run.batch_size)
        shown = [space.show(between[i], None if cond is None else cond[i]) for i in parts]
        strips.append(torch.cat(shown).cpu())
    settings = {
        "ends": marks,
        "frames": config.count,
        "method": config.method,
        "steps": config.steps,
        "precision": machine.resolve_precision(run.precision, device),
        "model": loaded.checkpoint.sha256,
        "prior": prior.sha256 if prior is not None else None,
    }
    _write(out, torch.stack(strips), config, settings)


def both(config: InterpolateConfig) -> tuple[Given, Given]:
    """The two ends.

    Raises:
        InputError: no path joins them: they are of different kinds, or both the stream.
    """
    a, b = given(config.a), given(config.b)
    if a.kind != b.kind:
        raise InputError(
            f"{config.a} is {KINDS[a.kind]} and {config.b} {KINDS[b.kind]}; give two of the same kind"
        )
    if a.name == b.name == "-":
        raise InputError(
            "both ends are -, one stream; write x.safetensors and give x.safetensors:0 x.safetensors:1"
        )
    return a, b


def asked_labels(config: InterpolateConfig, loaded: Loaded, seeds: bool) -> tuple[int | None, int | None]:
    """What --label says of the two ends, which are `seeds` or not.

    Raises:
        InputError: it names more than two classes, or the model has none.
    """
    if config.label is None:
        return None, None
    if not isinstance(loaded.module, Denoiser) and not parted(loaded):
        raise InputError(
            f"--label {config.label} needs classes and {loaded.checkpoint.path} knows none; use a "
            "class-conditional diffusion model, or `train aae --prior mixture --class-conditional`"
        )
    if parted(loaded):
        if not seeds:
            raise InputError(
                f"--label {config.label} says which part of its prior this model draws seeds from; "
                "an image has a code of its own"
            )
        known = loaded.info.classes
    else:
        known = classes_of(loaded, ConditionConfig(label=config.label))
    found = parse_labels(config.label, known)
    if len(found) > 2:
        raise InputError(f"--label {config.label} names {len(found)} classes; give one, or one for each end")
    return found[0], found[-1]


@torch.inference_mode()
def conditions(loaded: Loaded, ends: list[End], count: int, device: torch.device) -> Tensor | None:
    """(count, E) embeddings on the straight line between those of the ends' classes; no class is the null
    class, and None a model without classes."""
    model: Any = loaded.module
    if not getattr(model, "classes", 0):
        return None
    if any(end.label is None for end in ends):
        check_null(loaded, "an end without --label")
    labels = [model.classes if end.label is None else end.label for end in ends]
    a, b = model.embed(torch.tensor(labels, device=device))
    return torch.lerp(a, b, torch.linspace(0, 1, count, device=device)[:, None])


def _write(out: Out, strips: Tensor, config: InterpolateConfig, settings: dict[str, Any]) -> None:
    """(rows, frames, C, H, W) in the form that -o asks for; a folder goes on with the same settings only."""
    frames = strips.shape[1]
    check_finite(strips)
    about = {**settings, "a": config.a, "b": config.b, "command": command_line()}
    if out.form == "png":
        write_picture(out, tile(strips.flatten(0, 1), columns=frames, least=640), about, config.json)
    elif out.form == "gif":
        there = [tile(strips[:, i], least=256) for i in range(frames)]
        write_animation(out, [*there, *there[-2:0:-1]], config.json)
    elif out.form in ("tensors", "stream"):
        found = Latents(strips.flatten(0, 1), "images", model=settings["model"], extra=about)
        write_tensors(out, found, config.json)
    else:
        folder = Folder(out.path, settings, config.fresh)
        pictures = strips.flatten(0, 1)
        todo = folder.missing(len(pictures))
        for i in todo:
            folder.add(i, pictures[i], about)
        folder.finish(len(pictures))
        report_folder(out, len(todo), len(pictures), config.json)
