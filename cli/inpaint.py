"""genkit inpaint IMAGES --mask MASK.png or MASKS/: the white part of a mask filled in, the rest untouched."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from genkit import dist, machine
from genkit.config import REQUIRED, arg, to_dict
from genkit.data.source import Source
from genkit.diffusion.denoiser import Denoiser, clipped
from genkit.diffusion.inpaint import repaint, walk
from genkit.diffusion.schedules import SPACINGS
from genkit.errors import InputError
from genkit.io.checkpoint import command_line
from genkit.io.images import labelled, save_png, tile
from genkit.io.latents import Latents
from genkit.models.load import Loaded
from genkit.models.sampling import initial_noise, prepare, sampling_times, step_noise

from .common import DataConfig, MachineConfig, check_shape, clips, load, open_data
from .conditions import ConditionConfig, classes_of, denoise_of, labels_of, load_guide, strength
from .console import say
from .invert import SHOWN, source_labels
from .masks import Masks, read_masks
from .methods import own_spacing
from .options import make
from .outputs import Out, batched, deliver, parse_out
from .preview import check_codec_use, load_codec, scaling
from .sample import last

METHODS = ("repaint", "blend")


@dataclass(frozen=True)
class InpaintConfig:
    """What is filled in, by which model, and where the result goes."""

    images: str = arg(REQUIRED, "Images: a data set name, a folder, a zip or one image.", positional=True)
    mask: Path | None = arg(
        None,
        "Black and white PNG of the images' size; WHITE is filled in, black is kept. Or a folder/ of one an "
        "image: of its file name, or, where no names agree, in order; "
        "a folder/ of results goes on only with the same masks. Needed.",
    )
    model: Path | None = arg(None, "Run folder or checkpoint; default: the newest run that fits.", short="-m")
    out: str = arg("inpaint.png", "dir/ of PNGs, x.png grid, x.safetensors, or - for a stream.", short="-o")
    count: int | None = arg(None, "Only the first so many; default: all.", min=1, short="-n")
    seed: int = arg(0, "Image i of a seed is always filled in alike.", min=0, max=2**63 - 1)
    codec: Path | None = arg(None, "Codec of a latent model; default: found beside the model or under runs/.")
    report: Path | None = arg(
        None, "Also draw originals, masked images and results into this PNG.", panel="Report"
    )
    fresh: bool = arg(False, "Replace what the folder holds.")
    json: bool = arg(False, "Print the result as one JSON line.")


@dataclass(frozen=True)
class FillConfig:
    """How the part is filled in."""

    method: str = arg(
        "repaint",
        "repaint walks back and forth so that the parts agree (Lugmayr et al. 2022); blend is faster "
        "and does not.",
        choices=METHODS,
        panel="Sampler",
    )
    steps: int = arg(50, "Sampler steps.", min=1, panel="Sampler")
    resample: int = arg(10, "How often repaint walks each stretch; the paper's 10.", min=1, panel="Sampler")
    jump: int = arg(1, "Steps of a stretch that repaint walks again.", min=1, panel="Sampler")
    spacing: str | None = arg(
        None,
        "How the times are spaced; default: trailing, or as an imported pipeline has it.",
        choices=SPACINGS,
        panel="Sampler",
    )
    clip: bool | None = arg(
        None,
        "Keep each predicted image in [-1, 1]; default: yes for images, no for latents.",
        panel="Sampler",
    )


def command(name: str) -> Any:
    """The `genkit inpaint` command."""
    return make(
        _inpaint,
        InpaintConfig,
        FillConfig,
        ConditionConfig,
        DataConfig,
        MachineConfig,
        command="inpaint",
        help="Fill in the white part of a mask, or of each image's own, with what the model thinks fits; the "
        "rest stays as it is.",
    )


class Space(NamedTuple):
    """Where the model works, given the holes (B, 1, H, W) bool of images (B, C, H, W)."""

    enter: Callable[[Tensor, Tensor], Tensor]  # images, holes -> the model's data (B, c, h, w)
    leave: Callable[[Tensor], Tensor]  # and back
    unknown: Callable[[Tensor], Tensor]  # holes -> (B, 1, h, w) bool, the part of the data that is filled in
    codec: str = ""  # sha256


class Tags(NamedTuple):
    """labels: (n,) classes of the results, None without; names: what they are called."""

    labels: Tensor | None
    names: tuple[str, ...]


def _inpaint(
    config: InpaintConfig, fill: FillConfig, condition: ConditionConfig, data: DataConfig, run: MachineConfig
) -> None:
    machine.tune()
    out = parse_out(config.out, ("folder", "png", "tensors", "stream"))
    path = _check(config, fill)
    device = machine.pick_device(run.device)
    loaded = load(config.model, "inpaint")
    check_codec_use(loaded.info, config.codec)
    codec = load_codec(loaded.info, config.codec, loaded.checkpoint.path.parent) if latent(loaded) else None
    source = open_data(config.images, data, codec or loaded)
    if source.info.kind != "images":
        raise InputError(f"{config.images} holds {source.info.kind}; inpaint takes images")
    shape = (codec or loaded).info.shape
    check_shape(source.info.shape, shape, config.images)
    n = min(config.count or len(source), len(source))
    masks = read_masks(path, source, n)
    labels = classes_for(source, loaded, condition, config.images, n)
    space = latent_space(codec, loaded, device) if codec else pixel_space()
    fill = replace(fill, spacing=own_spacing(fill.spacing, loaded))
    precision = machine.resolve_precision(run.precision, device)
    settings = {
        **_asked(fill, condition, loaded),
        "seed": config.seed,
        "source": source.info.fingerprint,
        "mask": masks.sha256,
        "precision": precision,
        "model": loaded.checkpoint.sha256,
        "codec": space.codec,
    }
    dist.start(device)
    try:
        prepare(loaded.module, device, precision, bool(run.compile))  # type: ignore[arg-type]
        draw = drawer(loaded, source, space, masks, fill, condition, labels, config.seed, device)
        say(f"inpaint: {len(_walk(fill))} network evaluations an image")
        tags = tags_of(labels, loaded, condition, source, n)
        _deliver(config, run, source, masks, draw, n, out, settings, device, tags)
    finally:
        dist.stop()


def _asked(fill: FillConfig, condition: ConditionConfig, loaded: Loaded) -> dict[str, Any]:
    """What a folder must share with new pictures of how they are filled in."""
    guide = condition.classifier and load_guide(condition.classifier, loaded).checkpoint.sha256
    return {
        **to_dict(fill),
        **to_dict(condition),
        "guidance": strength(condition),
        "classifier": guide,
        "method": f"inpaint {fill.method}",
    }


def _check(config: InpaintConfig, fill: FillConfig) -> Path:
    """The mask's file, or the masks' folder.

    Raises:
        InputError: there is none, the report is no PNG, or the jumps are as long as the whole way.
    """
    if config.report is not None:
        parse_out(str(config.report), ("png",), "--report")
    if config.mask is None:
        raise InputError(
            "inpaint needs --mask MASK.png, black and white, whose white part is filled in, or a folder of "
            "masks"
        )
    if fill.method == "blend" and (fill.resample, fill.jump) != (FillConfig.resample, FillConfig.jump):
        raise InputError("--resample and --jump are repaint's; leave them out of --method blend")
    if fill.method == "repaint" and fill.jump > 1 and fill.jump >= fill.steps:
        raise InputError(f"--jump {fill.jump} must be below --steps {fill.steps}, or nothing is walked again")
    return config.mask


def _deliver(
    config: InpaintConfig,
    run: MachineConfig,
    source: Source,
    masks: Masks,
    draw: Callable[[Tensor], Tensor],
    n: int,
    out: Out,
    settings: dict[str, Any],
    device: torch.device,
    tags: Tags,
) -> None:
    """Fill in what is still missing, put it where -o says, and draw the report."""
    shown: dict[int, Tensor] = {}
    labels, names = tags

    def drawn(index: Tensor) -> Tensor:
        x = draw(index)
        shown.update((i, row.cpu()) for i, row in zip(index.tolist(), x) if i < SHOWN)
        return x

    def wrap(x: Tensor) -> Latents:
        return Latents(x, "images", labels, model=settings["model"], classes=names, extra=settings)

    deliver(
        "inpaint",
        drawn,
        n,
        out,
        settings,
        wrap,
        batch_size=run.batch_size,
        fresh=config.fresh,
        as_json=config.json,
        classes=(lambda i: names[int(labels[i])]) if labels is not None and names else None,
    )
    if config.report is None or not dist.is_main():
        return
    # those that a folder had already, or another process made
    for index in batched([i for i in range(min(n, SHOWN)) if i not in shown], run.batch_size):
        drawn(index)
    _report(config.report, source, masks, torch.stack([shown[i] for i in range(min(n, SHOWN))]), device)


def latent(loaded: Loaded) -> bool:
    """Whether the model works on latents."""
    return loaded.info.kind == "latents"


def classes_for(
    source: Source, loaded: Loaded, condition: ConditionConfig, name: str, n: int
) -> Tensor | None:
    """(n,) classes of the images: as --label says, else the source's; those of --classifier only as --label
    says."""
    if condition.label is None and condition.classifier is None:
        if not getattr(loaded.module, "classes", 0):
            return labels_of(loaded, condition, torch.arange(n))
        return source_labels(source, loaded, None, name, torch.arange(n))
    if condition.label is None:
        raise InputError("--classifier needs --label: the class that the result should have")
    return labels_of(loaded, condition, torch.arange(n))


def tags_of(
    labels: Tensor | None, loaded: Loaded, condition: ConditionConfig, source: Source, n: int
) -> Tags:
    """The classes that the results were given, `labels` (n,); where they were given none, the source's."""
    names = classes_of(loaded, condition)
    if labels is not None and int(labels.max()) < len(names):
        return Tags(labels, names)
    return Tags(source.labels[:n] if source.labels is not None else None, source.info.classes)


def pixel_space() -> Space:
    """Images as they are."""
    return Space(lambda x, hole: x, lambda x: x, lambda hole: hole)


def latent_space(codec: Loaded, loaded: Loaded, device: torch.device) -> Space:
    """The codec's latents, normalised as the model's training data were; a latent is unknown if a pixel of
    its cell is."""
    module: Any = codec.module.to(device)
    info = loaded.info
    shift, scale = scaling(info, device)

    @torch.inference_mode()
    def enter(x: Tensor, hole: Tensor) -> Tensor:
        # the encoder sees beyond a cell: what lies in the hole must not reach the part that is kept
        known = ~hole
        count = known.sum(dim=(2, 3), keepdim=True).clamp(min=1)
        mean = (x * known).sum(dim=(2, 3), keepdim=True) / count
        return (module.encode(torch.where(known, x, mean)).z - shift) / scale

    @torch.inference_mode()
    def leave(z: Tensor) -> Tensor:
        return module.decode(z * scale + shift)

    def unknown(hole: Tensor) -> Tensor:
        return F.adaptive_max_pool2d(hole.float(), info.shape[1:]) > 0

    return Space(enter, leave, unknown, codec.checkpoint.sha256)


def _walk(fill: FillConfig) -> list[tuple[int, int]]:
    return walk(fill.steps, fill.resample if fill.method == "repaint" else 1, fill.jump)


def drawer(
    loaded: Loaded,
    source: Source,
    space: Space,
    masks: Masks,
    fill: FillConfig,
    condition: ConditionConfig,
    labels: Tensor | None,
    seed: int,
    device: torch.device,
) -> Callable[[Tensor], Tensor]:
    """indices (B,) -> the filled-in images (B, C, H, W), equal to the source's outside their holes."""
    model = loaded.module
    assert isinstance(model, Denoiser)
    assert fill.spacing is not None
    schedule, shape = model.schedule, loaded.info.shape
    path = sampling_times(loaded, fill.steps, fill.spacing)
    clip = clips(fill.clip, loaded)

    def draw(index: Tensor) -> Tensor:
        # outside inference mode: a classifier's gradient goes through the labels' tensor
        denoise = denoise_of(loaded, condition, None if labels is None else labels[index], device)
        images, at = images_of(source, index, device), index.to(device)
        hole = masks.hole[index.cpu()].to(device)
        with torch.inference_mode():
            steps = repaint(
                clipped(denoise, schedule) if clip else denoise,
                schedule,
                initial_noise(schedule, seed, at, shape, path),
                space.enter(images, hole),
                ~space.unknown(hole),
                path,
                resample=fill.resample if fill.method == "repaint" else 1,
                jump=fill.jump,
                noise=step_noise(seed, at, shape),
            )
            return torch.where(hole, space.leave(last(steps).x), images)

    return draw


def images_of(source: Source, index: Tensor, device: torch.device) -> Tensor:
    """(B, C, H, W) images `index` of the source, in [-1, 1]."""
    batches: Iterator[Any] = source.batches(iter([index.cpu()]), device)
    return next(itertools.islice(batches, 1)).x


def _report(path: Path, source: Source, masks: Masks, results: Tensor, device: torch.device) -> None:
    """A picture of the first images: originals, what the model was given, and `results` (n, C, H, W)."""
    images = images_of(source, torch.arange(len(results)), device).cpu()
    masked = torch.where(masks.hole[: len(results)], torch.zeros(()), images)
    titles = ["original", "masked", "result"]
    rows = [tile(row, columns=len(results)) for row in (images, masked, results)]
    save_png(path, labelled(rows, titles, columns=1), {"shows": titles, "command": command_line()})
    say(f"report: {path}")
