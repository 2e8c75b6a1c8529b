"""genkit interpolate A B: a path between two images, two latents or two seeds."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genkit import machine
from genkit import noise as rng
from genkit.config import REQUIRED, arg
from genkit.diffusion.denoiser import Denoiser, bind
from genkit.diffusion.interpolation import METHODS, path
from genkit.diffusion.inversion import invert
from genkit.diffusion.samplers import ddim
from genkit.diffusion.schedules import times
from genkit.errors import InputError
from genkit.io.checkpoint import command_line
from genkit.io.images import tile
from genkit.io.latents import load_latents
from genkit.models.load import Loaded
from genkit.models.sampling import initial_noise, prepare

from .common import DataConfig, PrecisionConfig, check_shape, load, open_data
from .options import make
from .outputs import Folder, Out, parse_out, report_folder, write_animation, write_picture
from .preview import check_codec, codec_for
from .sample import last


@dataclass(frozen=True)
class InterpolateConfig:
    """The two ends, the model between them, and the form of the result."""

    a: str = arg(REQUIRED, "A seed (a whole number), an image, or a latents or noise file.", positional=True)
    b: str = arg(REQUIRED, "The other end, of the same kind.", positional=True)
    model: Path | None = arg(None, "Run folder or checkpoint; default: the newest run that fits.", short="-m")
    out: str = arg("interpolation.png", "x.png strip, x.gif, or dir/ of frames.", short="-o")
    count: int = arg(9, "Frames, both ends included.", min=2, short="-n")
    method: str = arg("slerp", "Along the great circle, or straight.", choices=METHODS)
    rows: int = arg(1, "With seeds: strips of this many images of each seed, one below the other.", min=1)
    steps: int = arg(50, "Network evaluations of a diffusion model.", min=1)
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
    out = parse_out(config.out, ("folder", "png", "gif"))
    device = machine.pick_device(run.device)
    loaded = load(config.model, "interpolate")
    space = (
        diffusion_space(loaded, config, run, device)
        if isinstance(loaded.module, Denoiser)
        else codec_space(loaded, run, device)
    )
    kinds = [kind_of(text) for text in (config.a, config.b)]
    if kinds[0] != kinds[1]:
        raise InputError(f"{config.a} is {kinds[0]} and {config.b} {kinds[1]}; give two of the same kind")
    strips = []
    for row in range(config.rows):
        ends = [end_point(text, row, loaded, space, data, device) for text in (config.a, config.b)]
        if ends[0].shape != ends[1].shape:
            raise InputError(
                f"{config.a} and {config.b} differ in shape: {ends[0].shape} and {ends[1].shape}"
            )
        between = path(ends[0][0], ends[1][0], config.count, config.method)
        strips.append(torch.cat([space.show(part) for part in between.split(run.batch_size)]).cpu())
    _write(out, torch.stack(strips), config, loaded)


class Space:
    """Where the path runs: how an image, a file and a seed become a point, and a point an image."""

    def __init__(
        self,
        of_images: Callable[[Tensor], Tensor],
        of_seed: Callable[[int, Tensor], Tensor],
        kinds: tuple[str, ...],
        shape: tuple[int, ...],
        show: Callable[[Tensor], Tensor],
    ) -> None:
        self.of_images, self.of_seed, self.kinds = of_images, of_seed, kinds
        self.shape, self.show = shape, show


def codec_space(loaded: Loaded, run: PrecisionConfig, device: torch.device) -> Space:
    """The latents of an autoencoder."""
    module: Any = loaded.module.to(device)
    precision = machine.resolve_precision(run.precision, device)

    @torch.inference_mode()
    def of_images(x: Tensor) -> Tensor:
        with machine.autocast(device, precision):
            return module.encode(x).z

    @torch.inference_mode()
    def show(z: Tensor) -> Tensor:
        with machine.autocast(device, precision):
            return module.decode(z)

    def of_seed(seed: int, index: Tensor) -> Tensor:
        return rng.normal(seed, rng.INITIAL, index, module.latent_shape)

    return Space(of_images, of_seed, ("latents",), module.latent_shape, show)


def diffusion_space(
    loaded: Loaded, config: InterpolateConfig, run: PrecisionConfig, device: torch.device
) -> Space:
    """The noise of a diffusion model; images get there by inversion."""
    model = loaded.module
    assert isinstance(model, Denoiser)
    prepare(model, device, machine.resolve_precision(run.precision, device), compiled=False)
    falling = times(config.steps)
    to_picture = codec_for(loaded.info, config.codec, device, loaded.checkpoint.path.parent)

    @torch.inference_mode()
    def of_images(x: Tensor) -> Tensor:
        return last(invert(bind(model), model.schedule, x, falling, refine=2)).x

    @torch.inference_mode()
    def show(x: Tensor) -> Tensor:
        return to_picture(last(ddim(bind(model), model.schedule, x, falling)).x)

    def of_seed(seed: int, index: Tensor) -> Tensor:
        return initial_noise(model.schedule, seed, index, loaded.info.shape, falling)

    return Space(of_images, of_seed, ("noise", "latents"), loaded.info.shape, show)


def kind_of(text: str) -> str:
    """What an end is given as: a seed, a tensor file or an image."""
    if text.isdecimal():
        return "a seed"
    return "a tensor file" if Path(text).suffix == ".safetensors" else "an image"


def end_point(
    text: str, row: int, loaded: Loaded, space: Space, data: DataConfig, device: torch.device
) -> Tensor:
    """(1, *S) the point that `text` names: a seed, a tensor file or an image.

    Raises:
        InputError: when it is none of them, or belongs to another model.
    """
    if text.isdecimal():
        return space.of_seed(int(text), torch.tensor([row], device=device))
    file = Path(text)
    if file.suffix == ".safetensors":
        latents = load_latents(file, space.kinds)
        z = latents.z[row : row + 1].to(device)
        if not len(z):
            raise InputError(f"{text} holds {len(latents.z)} points; --rows asks for more")
        if latents.kind == "noise" and latents.model != loaded.checkpoint.sha256:
            raise InputError(
                f"{text} is noise of another model ({latents.model[:12]}); give that one with -m"
            )
        check_shape(tuple(z.shape[1:]), space.shape, text)
        if latents.kind == "latents" and isinstance(loaded.module, Denoiser):
            info = loaded.info
            if info.codec != latents.codec:
                raise InputError(f"{text} holds latents of another codec than the model's training data")
            # the model's own normalisation: the file's was measured on whatever it holds
            shift, scale = (
                torch.tensor(v, device=device).reshape(-1, 1, 1) for v in (info.shift, info.scale)
            )
            return space.of_images((z - shift) / scale)
        if latents.kind == "latents":
            check_codec(loaded, latents.codec, text)
        return z
    if loaded.info.kind == "latents":
        raise InputError(
            f"{loaded.checkpoint.path} works on latents; encode {text} and give the latents file"
        )
    if not file.exists():
        raise InputError(f"{text} is no seed (a whole number) and no file")
    source = open_data(text, data, loaded)
    check_shape(source.info.shape, loaded.info.shape, text)
    batch = next(iter(source.batches(iter([torch.tensor([min(row, len(source) - 1)])]), device)))
    return space.of_images(batch.x)


def _write(out: Out, strips: Tensor, config: InterpolateConfig, loaded: Loaded) -> None:
    """(rows, frames, C, H, W) in the form that -o asks for."""
    frames = strips.shape[1]
    settings = {
        "a": config.a,
        "b": config.b,
        "frames": frames,
        "method": config.method,
        "steps": config.steps,
        "model": loaded.checkpoint.sha256,
    }
    about = {**settings, "command": command_line()}
    if out.form == "png":
        write_picture(out, tile(strips.flatten(0, 1), columns=frames, least=640), about, config.json)
    elif out.form == "gif":
        there = [tile(strips[:, i], least=256) for i in range(frames)]
        write_animation(out, [*there, *there[-2:0:-1]], config.json)
    else:
        folder = Folder(out.path, settings, config.fresh)
        pictures = strips.flatten(0, 1)
        todo = folder.missing(len(pictures))
        for i in todo:
            folder.add(i, pictures[i], about)
        folder.finish(len(pictures))
        report_folder(out, len(todo), len(pictures), config.json)
