"""genkit interpolate A B: a path between two images, two latents or two seeds."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from genkit import machine
from genkit.config import REQUIRED, arg, check_read
from genkit.diffusion.denoiser import Denoiser, bind
from genkit.diffusion.interpolation import METHODS, path
from genkit.diffusion.inversion import invert
from genkit.diffusion.samplers import ddim
from genkit.errors import InputError
from genkit.io.checkpoint import command_line
from genkit.io.images import tile
from genkit.io.latents import Latents, load_latents
from genkit.models.load import Loaded
from genkit.models.prior import Parts, Prior, draw_codes, own_codes, prior_of
from genkit.models.sampling import initial_noise, prepare, sampling_times

from .common import DataConfig, PrecisionConfig, check_shape, load, open_data
from .conditions import ConditionConfig, check_null, classes_of, parse_labels, parted
from .console import say
from .invert import source_labels
from .methods import own_spacing
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
from .preview import check_codec, codec_for, load_codec, scaling
from .replay import replay_of
from .sample import last


@dataclass(frozen=True)
class InterpolateConfig:
    """The two ends, the model between them, and the form of the result."""

    a: str = arg(REQUIRED, "A seed (a whole number), an image, or a latents or noise file.", positional=True)
    b: str = arg(REQUIRED, "The other end, of the same kind.", positional=True)
    model: Path | None = arg(None, "Run folder or checkpoint; default: the newest run that fits.", short="-m")
    out: str = arg(
        "interpolation.png",
        "x.png strip, x.gif, dir/ of frames, x.safetensors, or - for a stream.",
        short="-o",
    )
    count: int = arg(9, "Frames, both ends included.", min=2, short="-n")
    method: str = arg("slerp", "Along the great circle, or straight.", choices=METHODS)
    rows: int = arg(1, "Strips, one below the other: of so many images of each seed, source or file.", min=1)
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
    machine.tune_allocator()
    out = parse_out(config.out)
    device = machine.pick_device(run.device)
    loaded = load(config.model, "interpolate")
    check_ends(config)
    prior = None
    if isinstance(loaded.module, Denoiser):
        space = diffusion_space(loaded, config, run, device)
    else:
        prior = seeds_of(loaded) if config.a.isdecimal() else None
        space = codec_space(loaded, config, run, device, prior)
    labels = asked_labels(config, loaded)
    strips, marks = [], []
    for row in range(config.rows):
        ends = [
            end_point(text, row, loaded, space, config, data, device, label)
            for text, label in zip((config.a, config.b), labels)
        ]
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


class End(NamedTuple):
    """x: (1, *S) the point; mark: what it was made of; label: its class as the model counts them, None
    without one."""

    x: Tensor
    mark: str
    label: int | None = None


def check_ends(config: InterpolateConfig) -> None:
    """Refuse two ends that no path joins.

    Raises:
        InputError: they are of different kinds, or seeds are out of range.
    """
    kinds = [kind_of(text) for text in (config.a, config.b)]
    if kinds[0] != kinds[1]:
        raise InputError(f"{config.a} is {kinds[0]} and {config.b} {kinds[1]}; give two of the same kind")
    for text in (config.a, config.b):
        if text.isdecimal() and int(text) >= 2**63:
            raise InputError(f"seed {text} is out of range; the largest is {2**63 - 1}")


def asked_labels(config: InterpolateConfig, loaded: Loaded) -> tuple[int | None, int | None]:
    """What --label says of the two ends.

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
        if not (config.a.isdecimal() and config.b.isdecimal()):
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


class Space:
    """Where the path runs: how an image, a file and a seed become a point, and a point an image."""

    def __init__(
        self,
        of_images: Callable[[Tensor, int | None], Tensor],
        of_seed: Callable[[int, Tensor, int | None], Tensor],
        kinds: tuple[str, ...],
        shape: tuple[int, ...],
        show: Callable[[Tensor, Tensor | None], Tensor],
    ) -> None:
        self.of_images, self.of_seed, self.kinds = of_images, of_seed, kinds
        self.shape, self.show = shape, show


def codec_space(
    loaded: Loaded,
    config: InterpolateConfig,
    run: PrecisionConfig,
    device: torch.device,
    prior: Prior | None,
) -> Space:
    """The latents of an autoencoder; seeds are codes of `prior`, None for the model's own.

    Raises:
        InputError: an option of diffusion models is given.
    """
    module: Any = loaded.module.to(device)
    check_read(config, dict.fromkeys(("steps", "codec"), (False, "diffusion models")))
    precision = machine.resolve_precision(run.precision, device)

    @torch.inference_mode()
    def of_images(x: Tensor, label: int | None) -> Tensor:
        if not hasattr(module, "encode"):
            raise InputError(f"{loaded.what()}, which cannot encode images; give two seeds")
        with machine.autocast(device, precision):
            return module.encode(x).z

    @torch.inference_mode()
    def show(z: Tensor, cond: Tensor | None) -> Tensor:
        with machine.autocast(device, precision):
            return module.decode(z)

    def of_seed(seed: int, index: Tensor, label: int | None) -> Tensor:
        if prior is not None:
            if label is not None:
                raise InputError(f"a fitted prior knows no classes; leave --label {label} out")
            return draw_codes(prior, seed, index, module.latent_shape)
        if not parted(loaded):
            return own_codes(module, seed, index)
        classes = len(loaded.info.classes)
        # without --label the codes of `sample prior`, which draws the classes in turn
        told = index % classes if label is None else torch.full_like(index, label)
        return own_codes(module, seed, index, Parts(told, classes))

    return Space(of_images, of_seed, ("latents",), module.latent_shape, show)


def seeds_of(loaded: Loaded) -> Prior | None:
    """The fitted prior that seeds are codes of, None for the model's own; as `sample prior` has it.

    Raises:
        InputError: the model has neither.
    """
    bottleneck = getattr(loaded.module, "bottleneck", None)
    if bottleneck is not None and not bottleneck.has_prior and "sample prior" not in loaded.entry.verbs:
        raise InputError(f"{loaded.what()}, whose codes no seed gives; give two images")
    path, sha256 = loaded.checkpoint.path, loaded.checkpoint.sha256
    prior, words = prior_of(loaded.module, path, sha256, None)
    if words:
        say(f"prior: {words}")
    return prior


def diffusion_space(
    loaded: Loaded, config: InterpolateConfig, run: PrecisionConfig, device: torch.device
) -> Space:
    """The noise of a diffusion model; data of the model's kind get there by inversion under their class."""
    model = loaded.module
    assert isinstance(model, Denoiser)
    prepare(model, device, machine.resolve_precision(run.precision, device), compiled=False)
    falling = sampling_times(loaded, config.steps, own_spacing(None, loaded))
    to_picture = codec_for(loaded.info, config.codec, device, loaded.checkpoint.path.parent)

    @torch.inference_mode()
    def of_images(x: Tensor, label: int | None) -> Tensor:
        told = None if label is None else torch.full((len(x),), label, device=device)
        return last(invert(bind(model, told), model.schedule, x, falling, refine=2)).x

    @torch.inference_mode()
    def show(x: Tensor, cond: Tensor | None) -> Tensor:
        return to_picture(last(ddim(bind(model, cond), model.schedule, x, falling)).x)

    def of_seed(seed: int, index: Tensor, label: int | None) -> Tensor:
        return initial_noise(model.schedule, seed, index, loaded.info.shape, falling)

    return Space(of_images, of_seed, ("noise", "latents"), loaded.info.shape, show)


def kind_of(text: str) -> str:
    """What an end is given as: a seed, a tensor file or an image."""
    if text.isdecimal():
        return "a seed"
    return "a tensor file" if Path(text).suffix == ".safetensors" else "an image"


def end_point(
    text: str,
    row: int,
    loaded: Loaded,
    space: Space,
    config: InterpolateConfig,
    data: DataConfig,
    device: torch.device,
    label: int | None,
) -> End:
    """The point that `text` names: a seed, a tensor file or an image. label: of its class, where asked for.

    Raises:
        InputError: when it is none of them, or belongs to another model.
    """
    if text.isdecimal():
        return End(space.of_seed(int(text), torch.tensor([row], device=device), label), f"seed {text}", label)
    if Path(text).suffix == ".safetensors":
        return _of_file(text, row, loaded, space, device, label)
    if not Path(text).exists():
        raise InputError(f"{text} is no seed (a whole number) and no file")
    return _of_image(text, row, loaded, space, config, data, device, label)


def _of_file(
    text: str, row: int, loaded: Loaded, space: Space, device: torch.device, label: int | None
) -> End:
    """The end that is row `row` of a latents or noise file."""
    latents, info = load_latents(Path(text), space.kinds), loaded.info
    z = latents.z[row : row + 1].to(device)
    if not len(z):
        raise InputError(f"{text} holds {len(latents.z)} points; --rows asks for more")
    check_shape(tuple(z.shape[1:]), space.shape, text)
    mark = f"{latents.sha256} {row}"
    if latents.kind == "noise":
        labels = replay_of(latents, text, loaded).labels
        return End(z, mark, int(labels[row]) if label is None and labels is not None else label)
    if not isinstance(loaded.module, Denoiser):
        check_codec(loaded, latents.codec, text)
        return End(z, mark)
    if info.codec != latents.codec:
        raise InputError(f"{text} holds latents of another codec than the model's training data")
    if label is None and latents.labels is not None and loaded.module.classes:
        name = latents.classes[int(latents.labels[row])] if latents.classes else ""
        label = info.classes.index(name) if name in info.classes else None
    # the model's own normalisation: the file's was measured on whatever it holds
    shift, scale = scaling(info, device)
    return End(space.of_images((z - shift) / scale, label), mark, label)


def _of_image(
    text: str,
    row: int,
    loaded: Loaded,
    space: Space,
    config: InterpolateConfig,
    data: DataConfig,
    device: torch.device,
    label: int | None,
) -> End:
    """The end that is image `row` of a source; through the codec where the model works on latents."""
    info = loaded.info
    codec = None
    if info.kind == "latents":
        codec = load_codec(info, config.codec, loaded.checkpoint.path.parent)
    source = open_data(text, data, codec or loaded)
    check_shape(source.info.shape, (codec or loaded).info.shape, text)
    if row >= len(source):
        raise InputError(f"{text} holds {len(source)} images; --rows asks for more")
    if label is None and isinstance(loaded.module, Denoiser) and loaded.module.classes:
        found = source_labels(source, loaded, None, text, row + 1)
        label = None if found is None else int(found[row])
    x = next(iter(source.batches(iter([torch.tensor([row])]), device))).x
    if codec is not None:
        module: Any = codec.module.to(device)
        shift, scale = scaling(info, device)
        with torch.inference_mode():
            x = (module.encode(x).z - shift) / scale
    return End(space.of_images(x, label), f"{source.info.fingerprint} {row}", label)


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
