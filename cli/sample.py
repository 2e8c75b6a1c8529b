"""genkit sample METHOD: new images or latents, image i of a seed the same whatever the batch."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genkit import dist, machine
from genkit.config import arg, to_dict
from genkit.diffusion.denoiser import Denoise, Denoiser, bind, clipped
from genkit.diffusion.samplers import VARIANCES, Step, ddim, ddpm
from genkit.diffusion.schedules import SPACINGS, times
from genkit.errors import InputError
from genkit.io.checkpoint import command_line
from genkit.io.images import tile
from genkit.io.latents import Latents, load_latents
from genkit.models.load import Loaded
from genkit.models.prior import draw_prior
from genkit.models.sampling import initial_noise, prepare, step_noise

from .common import MachineConfig, load
from .console import Meter, say
from .options import make
from .outputs import (
    Folder,
    Out,
    batched,
    parse_out,
    report_folder,
    write_animation,
    write_picture,
    write_tensors,
)
from .preview import codec_for
from .streams import read_input

Draw = Callable[[Tensor], Tensor]  # indices (B,) -> (B, C, H, W) in the model's data space


@dataclass(frozen=True)
class SampleConfig:
    """What is drawn, from which model, and where it goes."""

    model: Path | None = arg(None, "Run folder or checkpoint; default: the newest run that fits.", short="-m")
    count: int = arg(64, "How many to draw.", min=1, short="-n")
    out: str | None = arg(
        None,
        "dir/ of PNGs, x.png grid, x.gif of the sampling, x.safetensors, or - for a stream; "
        "default: METHOD.png.",
        short="-o",
    )
    seed: int = arg(0, "Image i of a seed is always the same picture.", min=0)
    codec: Path | None = arg(
        None,
        "Codec that turns a latent model's samples into pictures; default: the one that "
        "encoded its training data, if it is beside the model or under runs/.",
    )
    fresh: bool = arg(False, "Replace what the folder holds.")
    json: bool = arg(False, "Print the result as one JSON line.")


@dataclass(frozen=True)
class DiffusionConfig:
    """How a diffusion model is sampled."""

    steps: int = arg(50, "Network evaluations.", min=1, panel="Sampler")
    spacing: str = arg("trailing", "How the times are spaced.", choices=SPACINGS, panel="Sampler")
    clip: bool | None = arg(
        None,
        "Keep each predicted image in [-1, 1]; default: yes for images, no for latents and for --noise.",
        panel="Sampler",
    )
    noise: str | None = arg(
        None, "Start from this noise file (`genkit invert`) instead of the seed.", panel="Sampler"
    )


@dataclass(frozen=True)
class DdimConfig(DiffusionConfig):
    """DDIM's own choice."""

    eta: float = arg(
        0.0, "Share of DDPM's noise: 0 deterministic, 1 as much as DDPM.", min=0.0, max=1.0, panel="Sampler"
    )


@dataclass(frozen=True)
class DdpmSamplerConfig(DiffusionConfig):
    """DDPM's own choices."""

    steps: int = arg(1000, "Network evaluations.", min=1, panel="Sampler")
    variance: str = arg(
        "small",
        "Variance of a step: the posterior's, the forward step's, or none.",
        choices=VARIANCES,
        panel="Sampler",
    )


def command(name: str) -> Any:
    """The `genkit sample NAME` command."""
    if name == "prior":
        help = "From the prior of an autoencoder: standard normal codes, decoded."
        return make(_prior, SampleConfig, MachineConfig, command="sample prior", help=help)
    config = {"ddim": DdimConfig, "ddpm": DdpmSamplerConfig}[name]

    def body(sample: SampleConfig, sampler: DiffusionConfig, run: MachineConfig) -> None:
        _diffusion(name, sample, sampler, run)

    return make(body, SampleConfig, config, MachineConfig, command=f"sample {name}", help=HELP[name])


HELP = {
    "ddim": "DDIM (Song et al. 2021): few steps, deterministic at --eta 0.",
    "ddpm": "Ancestral sampling (Ho et al. 2020), on all steps or a thinned chain.",
}


def _prior(sample: SampleConfig, run: MachineConfig) -> None:
    machine.tune_allocator()
    out = parse_out(sample.out or "prior.png", ("folder", "png", "tensors", "stream"))
    device = machine.pick_device(run.device)
    loaded = load(sample.model, "sample prior")
    dist.start(device)
    try:
        module = loaded.module.to(device)

        @torch.inference_mode()
        def draw(index: Tensor) -> Tensor:
            return draw_prior(module, sample.seed, index.to(device))

        settings = {"method": "prior", "seed": sample.seed, "model": loaded.checkpoint.sha256}
        _deliver("prior", draw, loaded, out, sample, run, settings)
    finally:
        dist.stop()


def _diffusion(name: str, sample: SampleConfig, sampler: DiffusionConfig, run: MachineConfig) -> None:
    machine.tune_allocator()
    out = parse_out(sample.out or f"{name}.png")
    device = machine.pick_device(run.device)
    loaded = load(sample.model, f"sample {name}")
    start = _start(sampler, loaded)
    if start is not None:
        sample = _with_count(sample, len(start))
    dist.start(device)
    try:
        steps_of = stepper(name, loaded, sampler, sample.seed, run, device, start, sample.count)
        if out.form == "gif":
            _animate(steps_of, loaded, out, sample, device)
            return

        def draw(index: Tensor) -> Tensor:
            return last(steps_of(index)).x

        settings = {
            "method": name,
            "seed": sample.seed,
            **to_dict(sampler),
            "model": loaded.checkpoint.sha256,
        }
        _deliver(name, draw, loaded, out, sample, run, settings)
    finally:
        dist.stop()


def _start(sampler: DiffusionConfig, loaded: Loaded) -> Tensor | None:
    """The noise that --noise names, checked against the model."""
    if sampler.noise is None:
        return None
    noise = load_latents(read_input(sampler.noise), ("noise",))
    if noise.model != loaded.checkpoint.sha256:
        raise InputError(
            f"{sampler.noise} was inverted by another model ({noise.model[:12]}); give that one with -m"
        )
    if (noise.extra or {}).get("spacing", sampler.spacing) != sampler.spacing:
        say(f"note: the noise was inverted with --spacing {(noise.extra or {})['spacing']}")
    return noise.z


def _with_count(sample: SampleConfig, n: int) -> SampleConfig:
    from dataclasses import replace

    return replace(sample, count=n)


def last(steps: Iterator[Step]) -> Step:
    """The last step of a sampler."""
    *_, final = steps
    return final


def stepper(
    name: str,
    loaded: Loaded,
    sampler: DiffusionConfig,
    seed: int,
    run: MachineConfig,
    device: torch.device,
    start: Tensor | None,
    count: int,
) -> Callable[[Tensor], Iterator[Step]]:
    """indices -> the sampler's steps for them, on a model made ready for `device`."""
    model = loaded.module
    assert isinstance(model, Denoiser)
    schedule, shape = model.schedule, loaded.info.shape
    precision = machine.resolve_precision(run.precision, device)
    many = device.type == "cuda" and count * sampler.steps > 4 * run.batch_size
    prepare(model, device, precision, run.compile if run.compile is not None else many)
    clip = sampler.clip if sampler.clip is not None else loaded.info.kind == "images" and start is None
    denoise: Denoise = clipped(bind(model), schedule) if clip else bind(model)
    path = times(sampler.steps, sampler.spacing)

    def steps_of(index: Tensor) -> Iterator[Step]:
        index = index.to(device)
        x = initial_noise(schedule, seed, index, shape) if start is None else start[index.cpu()].to(device)
        noise = step_noise(seed, index, shape)
        with torch.inference_mode():
            if isinstance(sampler, DdimConfig):
                yield from ddim(denoise, schedule, x, path, eta=sampler.eta, noise=noise)
            elif isinstance(sampler, DdpmSamplerConfig):
                yield from ddpm(denoise, schedule, x, path, variance=sampler.variance, noise=noise)

    return steps_of


def _deliver(
    label: str,
    draw: Draw,
    loaded: Loaded,
    out: Out,
    sample: SampleConfig,
    run: MachineConfig,
    settings: dict[str, Any],
) -> None:
    """Draw what is still missing and put it where -o says."""
    n = sample.count
    device = machine.pick_device(run.device)
    pictures = out.form in ("folder", "png")
    show = (
        codec_for(loaded.info, sample.codec, device, loaded.checkpoint.path.parent)
        if pictures
        else (lambda x: x)
    )
    folder = Folder(out.path, settings, sample.fresh) if out.form == "folder" else None
    todo = folder.missing(n) if folder else list(range(n))
    mine = [todo[i] for i in dist.share(len(todo))]
    about = {**settings, "command": command_line()}
    rows = []
    with Meter(f"sample {label}", len(mine)) as meter:
        done = 0
        for index in batched(mine, run.batch_size):
            # a short last batch is filled up: one shape, and the same kernels, for every picture
            padded = torch.cat([index, index[-1:].expand(min(run.batch_size, n) - len(index))])
            x = show(draw(padded))[: len(index)]
            if folder:
                for i, image in zip(index.tolist(), x):
                    folder.add(i, image, about)
            else:
                rows.append(x.cpu())
            done += len(index)
            meter.update(done)
    if folder:
        folder.finish(n)
        report_folder(out, len(todo), n, sample.json)
        return
    z = dist.gather_rows(torch.cat(rows) if rows else torch.zeros(0, *loaded.info.shape))
    if out.form == "png":
        write_picture(out, tile(z[:1024]), about, sample.json)
    else:
        write_tensors(out, as_latents(z, loaded, settings), sample.json)


def as_latents(z: Tensor, loaded: Loaded, extra: dict[str, Any]) -> Latents:
    """What a model drew, with what `decode` needs to know of it."""
    info, model = loaded.info, loaded.checkpoint.sha256
    if info.kind == "images":
        return Latents(z, "images", model=model, extra=extra)
    shift, scale = (torch.tensor(v).reshape(-1, 1, 1) for v in (info.shift, info.scale))
    return Latents(
        z * scale + shift,
        "latents",
        shift=info.shift,
        scale=info.scale,
        codec=info.codec,
        model=model,
        extra=extra,
    )


def _animate(
    steps_of: Callable[[Tensor], Iterator[Step]],
    loaded: Loaded,
    out: Out,
    sample: SampleConfig,
    device: torch.device,
) -> None:
    """The grid of x_t on its way from noise to images."""
    show = codec_for(loaded.info, sample.codec, device, loaded.checkpoint.path.parent)
    frames = []
    n = min(sample.count, 64)
    with Meter("sample", 0) as meter:
        for k, step in enumerate(steps_of(torch.arange(n))):
            frames.append(tile(show(step.x.clamp(-3, 3)).cpu(), least=256))
            meter.update(k + 1)
    stride = max(1, len(frames) // 50)
    write_animation(out, [*frames[:-1:stride], frames[-1]], sample.json)
