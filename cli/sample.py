"""genkit sample METHOD: new images or latents, image i of a seed the same whatever the batch."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
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
from genkit.io.images import tile
from genkit.io.latents import Latents, load_latents
from genkit.models.load import Loaded
from genkit.models.prior import draw_prior
from genkit.models.sampling import initial_noise, prepare, step_noise

from .common import MachineConfig, PrecisionConfig, load
from .console import Meter, say
from .options import make
from .outputs import Out, deliver, parse_out, write_animation
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
    seed: int = arg(0, "Image i of a seed is always the same picture.", min=0, max=2**63 - 1)
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
        return make(_prior, SampleConfig, PrecisionConfig, command="sample prior", help=help)
    config = {"ddim": DdimConfig, "ddpm": DdpmSamplerConfig}[name]

    def body(sample: SampleConfig, sampler: DiffusionConfig, run: MachineConfig) -> None:
        _diffusion(name, sample, sampler, run)

    return make(body, SampleConfig, config, MachineConfig, command=f"sample {name}", help=HELP[name])


HELP = {
    "ddim": "DDIM (Song et al. 2021): few steps, deterministic at --eta 0.",
    "ddpm": "Ancestral sampling (Ho et al. 2020), on all steps or a thinned chain.",
}


def _prior(sample: SampleConfig, run: PrecisionConfig) -> None:
    machine.tune_allocator()
    out = parse_out(sample.out or "prior.png", ("folder", "png", "tensors", "stream"))
    device = machine.pick_device(run.device)
    loaded = load(sample.model, "sample prior")
    module: Any = loaded.module.to(device)
    if not module.bottleneck.has_prior:
        raise InputError(f"{loaded.checkpoint.path} has no prior; train one with --bottleneck gaussian")
    precision = machine.resolve_precision(run.precision, device)

    @torch.inference_mode()
    def draw(index: Tensor) -> Tensor:
        with machine.autocast(device, precision):
            return draw_prior(module, sample.seed, index.to(device))

    settings = {
        "method": "prior",
        "seed": sample.seed,
        "precision": precision,
        "model": loaded.checkpoint.sha256,
    }
    dist.start(device)
    try:
        _deliver(draw, loaded, out, sample, run, settings)
    finally:
        dist.stop()


def _diffusion(name: str, sample: SampleConfig, sampler: DiffusionConfig, run: MachineConfig) -> None:
    machine.tune_allocator()
    out = parse_out(sample.out or f"{name}.png")
    device = machine.pick_device(run.device)
    noise = load_latents(read_input(sampler.noise), ("noise",)) if sampler.noise is not None else None
    loaded = load(sample.model, f"sample {name}", noise.model if noise else "")
    if noise is not None:
        sample = replace(sample, count=_check_noise(noise, sample, sampler, loaded))
    settings = {
        "method": name,
        "seed": sample.seed,
        **to_dict(sampler),
        "noise": noise.sha256 if noise else None,
        "precision": machine.resolve_precision(run.precision, device),
        "model": loaded.checkpoint.sha256,
    }
    dist.start(device)
    try:
        steps_of = stepper(loaded, sampler, sample, run, device, noise.z if noise else None)
        if out.form == "gif":
            _animate(steps_of, loaded, out, sample, sampler, device)
        else:
            _deliver(lambda index: last(steps_of(index)).x, loaded, out, sample, run, settings)
    finally:
        dist.stop()


def _check_noise(noise: Latents, sample: SampleConfig, sampler: DiffusionConfig, loaded: Loaded) -> int:
    """How many images the noise file gives; -n may ask for fewer.

    Raises:
        InputError: it is of another model.
    """
    if noise.model != loaded.checkpoint.sha256:
        raise InputError(
            f"{sampler.noise} was inverted by another model ({noise.model[:12]}); give that one with -m"
        )
    made = noise.extra or {}
    for name, value in (("steps", sampler.steps), ("spacing", sampler.spacing)):
        if made.get(name, value) != value:
            say(f"note: the noise was inverted with --{name} {made[name]}, and is sampled with {value}")
    return min(sample.count, len(noise.z))


def last(steps: Iterator[Step]) -> Step:
    """The last step of a sampler."""
    *_, final = steps
    return final


def stepper(
    loaded: Loaded,
    sampler: DiffusionConfig,
    sample: SampleConfig,
    run: MachineConfig,
    device: torch.device,
    start: Tensor | None,
) -> Callable[[Tensor], Iterator[Step]]:
    """indices -> the sampler's steps for them, on a model made ready for `device`.

    start: (N, *S) noise to begin from instead of the seed's.
    """
    model = loaded.module
    assert isinstance(model, Denoiser)
    schedule, shape, seed = model.schedule, loaded.info.shape, sample.seed
    precision = machine.resolve_precision(run.precision, device)
    many = device.type == "cuda" and sample.count * sampler.steps > 4 * run.batch_size
    prepare(model, device, precision, run.compile if run.compile is not None else many)
    clip = sampler.clip if sampler.clip is not None else loaded.info.kind == "images" and start is None
    denoise: Denoise = clipped(bind(model), schedule) if clip else bind(model)
    path = times(sampler.steps, sampler.spacing)

    def steps_of(index: Tensor) -> Iterator[Step]:
        index = index.to(device)
        x = (
            initial_noise(schedule, seed, index, shape, path)
            if start is None
            else start[index.cpu()].to(device)
        )
        noise = step_noise(seed, index, shape)
        with torch.inference_mode():
            if isinstance(sampler, DdimConfig):
                yield from ddim(denoise, schedule, x, path, eta=sampler.eta, noise=noise)
            elif isinstance(sampler, DdpmSamplerConfig):
                yield from ddpm(denoise, schedule, x, path, variance=sampler.variance, noise=noise)

    return steps_of


def _deliver(
    draw: Draw, loaded: Loaded, out: Out, sample: SampleConfig, run: PrecisionConfig, settings: dict[str, Any]
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
        lambda z: as_latents(z, loaded, settings),
        batch_size=run.batch_size,
        fresh=sample.fresh,
        as_json=sample.json,
    )


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
    sampler: DiffusionConfig,
    device: torch.device,
) -> None:
    """The grid of x_t on its way from noise to images."""
    show = codec_for(loaded.info, sample.codec, device, loaded.checkpoint.path.parent)
    frames = []
    n = min(sample.count, 64)
    if n < sample.count:
        say(f"the animation shows the first {n} of {sample.count}")
    with Meter("sample", sampler.steps) as meter:
        for k, step in enumerate(steps_of(torch.arange(n))):
            frames.append(tile(show(step.x.clamp(-3, 3)).cpu(), least=256))
            meter.update(k + 1)
    stride = max(1, len(frames) // 50)
    write_animation(out, [*frames[:-1:stride], frames[-1]], sample.json)
