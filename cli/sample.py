"""genkit sample METHOD: new images or latents, image i of a seed the same whatever the batch."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from genkit import dist, io, machine
from genkit.config import arg, to_dict
from genkit.diffusion.denoiser import Denoiser, clipped
from genkit.diffusion.samplers import Step
from genkit.errors import InputError
from genkit.io.images import gif_bytes, tile
from genkit.io.latents import Latents, load_latents
from genkit.models.load import Loaded
from genkit.models.prior import draw_prior, prior_of
from genkit.models.sampling import initial_noise, prepare, sampling_times, step_noise

from .common import MachineConfig, PrecisionConfig, clips, load
from .conditions import ConditionConfig, denoise_of, labels_of, load_guide, strength
from .console import Meter, say
from .methods import METHODS, SamplerConfig, settled
from .options import make
from .outputs import Out, deliver, parse_out, write_animation
from .preview import codec_for, scaling
from .replay import Replay, null_of, replay_of
from .streams import read_input

Draw = Callable[[Tensor], Tensor]  # indices (B,) -> (B, C, H, W) in the model's data space
StepsOf = Callable[[Tensor], Iterator[Step]]  # indices (B,) -> the sampler's steps for them


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
class TrajectoryConfig:
    """A look at the way."""

    trajectory: Path | None = arg(
        None,
        "Also write this GIF: x_t of 8 images, and below it the image predicted from it.",
        panel="Sampler",
    )


@dataclass(frozen=True)
class PriorConfig:
    """Where codes are drawn from."""

    prior: str | None = arg(
        None,
        "File of `genkit fit-prior`, or own: what the model was trained to have, such as a standard normal; "
        "default: the one that was fitted to the model and is beside it, else its own.",
    )


def command(name: str) -> Any:
    """The `genkit sample NAME` command."""
    if name == "prior":
        help = "From the prior of an autoencoder, standard normal or fitted: codes, decoded."
        return make(_prior, SampleConfig, PriorConfig, PrecisionConfig, command="sample prior", help=help)
    method = METHODS[name]

    def body(
        sample: SampleConfig,
        sampler: SamplerConfig,
        film: TrajectoryConfig,
        condition: ConditionConfig,
        run: MachineConfig,
    ) -> None:
        _diffusion(name, sample, sampler, film, condition, run)

    groups = (SampleConfig, method.config, TrajectoryConfig, ConditionConfig, MachineConfig)
    return make(body, *groups, command=f"sample {name}", help=method.help)


def _prior(sample: SampleConfig, asked: PriorConfig, run: PrecisionConfig) -> None:
    machine.tune_allocator()
    out = parse_out(sample.out or "prior.png", ("folder", "png", "tensors", "stream"))
    device = machine.pick_device(run.device)
    loaded = load(sample.model, "sample prior")
    module: Any = loaded.module.to(device)
    prior, words = prior_of(module, loaded.checkpoint.path, loaded.checkpoint.sha256, asked.prior)
    if words:
        say(f"prior: {words}")
    precision = machine.resolve_precision(run.precision, device)

    @torch.inference_mode()
    def draw(index: Tensor) -> Tensor:
        with machine.autocast(device, precision):
            return draw_prior(module, sample.seed, index.to(device), prior)

    settings = {
        "method": "prior",
        "seed": sample.seed,
        "precision": precision,
        "model": loaded.checkpoint.sha256,
        "prior": prior.sha256 if prior is not None else None,
    }
    dist.start(device)
    try:
        _deliver(draw, loaded, out, sample, run, settings)
    finally:
        dist.stop()


def _diffusion(
    name: str,
    sample: SampleConfig,
    sampler: SamplerConfig,
    film: TrajectoryConfig,
    condition: ConditionConfig,
    run: MachineConfig,
) -> None:
    machine.tune_allocator()
    out = parse_out(sample.out or f"{name}.png")
    device = machine.pick_device(run.device)
    noise = load_latents(read_input(sampler.noise), ("noise",)) if sampler.noise is not None else None
    loaded = load(sample.model, f"sample {name}", noise.model if noise else "")
    made = replay_of(noise, str(sampler.noise), loaded) if noise is not None else None
    if noise is not None:
        if sample.count > len(noise.z) and sample.count != SampleConfig.count:
            say(f"note: {sampler.noise} holds {len(noise.z)} images, fewer than -n {sample.count}")
        sample = replace(sample, count=min(sample.count, len(noise.z)))
    sampler = settled(name, sampler, loaded, made._asdict() if made else {})
    if made is not None:
        condition = _remarks(made, sampler, condition)
    labels = labels_of(loaded, condition, torch.arange(sample.count))
    if made is not None and made.labels is not None and condition.label is None:
        if condition.classifier is not None:  # these labels are the model's, which may be of no class
            raise InputError("--classifier needs --label: the class that the result should have")
        labels = made.labels[: sample.count]
    settings = {
        "method": name,
        "seed": sample.seed,
        **to_dict(sampler),
        "noise": noise.sha256 if noise else None,
        "precision": machine.resolve_precision(run.precision, device),
        "model": loaded.checkpoint.sha256,
        **_asked(condition, loaded, labels),
    }
    dist.start(device)
    try:
        make_ready(loaded, run, device, sample.count * (sampler.steps or 1))
        steps_of = stepper(name, loaded, sampler, condition, sample.seed, device, labels, noise, made)
        if film.trajectory is not None:
            _trajectory(steps_of, loaded, film.trajectory, sample, sampler.steps or 1, device)
        if out.form == "gif":
            _animate(steps_of, loaded, out, sample, sampler.steps or 1, device)
        else:
            draw: Draw = lambda index: last(steps_of(index)).x  # noqa: E731
            _deliver(draw, loaded, out, sample, run, settings, labels)
    finally:
        dist.stop()


def class_name(loaded: Loaded, label: int) -> str:
    """The name of a class; nothing for the null class."""
    names = loaded.info.classes
    return names[label] if label < len(names) else ""


def _asked(condition: ConditionConfig, loaded: Loaded, labels: Tensor | None) -> dict[str, Any]:
    """What a folder must share with new pictures of the condition; nothing for a model without classes."""
    if labels is None:
        return {}
    guide = condition.classifier and load_guide(condition.classifier, loaded).checkpoint.sha256
    return {
        "label": condition.label,
        "guidance": strength(condition),
        "guidance_interval": list(condition.guidance_interval),
        "classifier": guide,
    }


def _remarks(made: Replay, sampler: SamplerConfig, condition: ConditionConfig) -> ConditionConfig:
    """The condition with the guidance that the noise was made for, unless another is asked for; says where
    the images cannot come back."""
    for option in ("steps", "spacing"):
        before, now = getattr(made, option), getattr(sampler, option)
        if before != now:
            say(f"note: the noise was inverted with --{option} {before}, and is sampled with {now}")
    if condition.guidance is None and condition.classifier is None:
        if made.nulls is not None:
            say(f"guidance: {made.guidance:g}, for which the null embeddings of the noise were fitted")
        return replace(condition, guidance=made.guidance if made.nulls is not None else 1.0)
    if made.nulls is not None and condition.classifier is not None:
        say("note: the null embeddings are for classifier-free guidance and are left out")
    elif made.nulls is not None and condition.guidance != made.guidance:
        say(f"note: the null embeddings are for --guidance {made.guidance:g} and are left out")
    return condition


def last(steps: Iterator[Step]) -> Step:
    """The last step of a sampler."""
    *_, final = steps
    return final


def make_ready(loaded: Loaded, run: MachineConfig, device: torch.device, evaluations: int) -> None:
    """Bring the model to `device` in the precision asked for, compiled where so many evaluations pay it."""
    assert isinstance(loaded.module, Denoiser)
    many = device.type == "cuda" and evaluations > 4 * run.batch_size
    precision = machine.resolve_precision(run.precision, device)
    prepare(loaded.module, device, precision, run.compile if run.compile is not None else many)


def stepper(
    name: str,
    loaded: Loaded,
    sampler: SamplerConfig,
    condition: ConditionConfig,
    seed: int,
    device: torch.device,
    labels: Tensor | None = None,
    noise: Latents | None = None,
    made: Replay | None = None,
) -> StepsOf:
    """indices (B,) -> the steps of method `name` for them; the model is ready for `device` already.

    labels: (n,) classes of all images; noise: what to begin from instead of the seed, and how it was made.
    """
    assert sampler.steps is not None
    assert sampler.spacing is not None
    model = loaded.module
    assert isinstance(model, Denoiser)
    schedule, shape = model.schedule, loaded.info.shape
    clip = clips(sampler.clip, loaded) and (noise is None or bool(sampler.clip))
    path = sampling_times(loaded, sampler.steps, sampler.spacing)

    def steps_of(index: Tensor) -> Iterator[Step]:
        chosen = labels[index.cpu()] if labels is not None else None
        null = null_of(made, loaded, index, device, condition.guidance) if made is not None else None
        denoise = denoise_of(loaded, condition, chosen, device, null)
        if clip:
            denoise = clipped(denoise, schedule)
        at = index.to(device)
        if noise is None:
            x = initial_noise(schedule, seed, at, shape, path)
        else:
            x = noise.z[index.cpu()].to(device)
        with torch.inference_mode():
            fresh = step_noise(seed, at, shape)
            yield from METHODS[name].run(sampler, denoise, schedule, x, path, fresh)

    return steps_of


def _deliver(
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
        columns=_columns(labels),
    )


def _columns(labels: Tensor | None) -> int | None:
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


def _film(
    label: str, steps_of: StepsOf, n: int, total: int, show: Callable[[Step], Tensor]
) -> list[Image.Image]:
    """At most some 50 frames of the steps of the first n images; show: a step -> what its frame shows."""
    frames, stride = [], max(1, total // 50)
    with Meter(label, total) as meter:
        for k, step in enumerate(steps_of(torch.arange(n))):
            if k % stride == 0 or k + 1 == total:
                frames.append(tile(show(step).cpu(), least=256))
            meter.update(k + 1)
    return frames


def _animate(
    steps_of: StepsOf, loaded: Loaded, out: Out, sample: SampleConfig, total: int, device: torch.device
) -> None:
    """The grid of x_t on its way from noise to images."""
    show = codec_for(loaded.info, sample.codec, device, loaded.checkpoint.path.parent)
    n = min(sample.count, 64)
    if n < sample.count:
        say(f"the animation shows the first {n} of {sample.count}")
    frames = _film("animate", steps_of, n, total, lambda step: show(step.x.clamp(-3, 3)))
    write_animation(out, frames, sample.json)


def _trajectory(
    steps_of: StepsOf, loaded: Loaded, path: Path, sample: SampleConfig, total: int, device: torch.device
) -> None:
    """A GIF of x_t, and below each image the x0 predicted from it."""
    out = parse_out(str(path), ("gif",))
    show = codec_for(loaded.info, sample.codec, device, loaded.checkpoint.path.parent)

    def frame(step: Step) -> Tensor:
        above, below = show(step.x.clamp(-3, 3)), show(step.x0)
        return torch.cat([half for pair in zip(above.split(8), below.split(8)) for half in pair])

    frames = _film("trajectory", steps_of, min(sample.count, 8), total, frame)
    if dist.is_main():
        io.write_bytes(out.path, gif_bytes(frames))
        say(f"trajectory: {out.path}")
