"""genkit sample METHOD by diffusion: new images or latents, image i of a seed the same whatever the batch.

The priors of autoencoders are drawn from in sample_prior.py.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from genkit import dist, machine
from genkit.config import to_dict
from genkit.diffusion.denoiser import Denoiser, clipped
from genkit.diffusion.samplers import Step
from genkit.errors import InputError
from genkit.io.latents import Latents, load_latents
from genkit.models.load import Loaded
from genkit.models.sampling import initial_noise, prepare, sampling_times, step_noise

from .common import MachineConfig, clips, load
from .conditions import ConditionConfig, denoise_of, knows, labels_of, load_guide, strength
from .console import say
from .films import StepsOf, TrajectoryConfig, animate, trajectory
from .methods import METHODS, SamplerConfig, check_churn, settled
from .options import make
from .outputs import parse_out
from .replay import Replay, null_of, replay_of
from .sample_output import Draw, SampleConfig, check_codec_reader, deliver_drawn
from .streams import read_input


def command(name: str) -> Any:
    """The `genkit sample NAME` command."""
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


def _diffusion(
    name: str,
    sample: SampleConfig,
    sampler: SamplerConfig,
    film: TrajectoryConfig,
    condition: ConditionConfig,
    run: MachineConfig,
) -> None:
    machine.tune()
    out = parse_out(sample.out or f"{name}.png")
    device = machine.pick_device(run.device)
    noise = load_latents(read_input(sampler.noise), ("noise",)) if sampler.noise is not None else None
    loaded = load(sample.model, f"sample {name}", noise.model if noise else "")
    made = replay_of(noise, str(sampler.noise), loaded) if noise is not None else None
    if noise is not None:
        if sample.count > len(noise.z) and sample.count != SampleConfig.count:
            say(f"note: {sampler.noise} holds {len(noise.z)} images, fewer than -n {sample.count}")
        sample = replace(sample, count=min(sample.count, len(noise.z)))
    check_churn(sampler)
    check_codec_reader(sample, loaded, out, film.trajectory is not None)
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
            trajectory(steps_of, loaded, film.trajectory, sample, sampler.steps or 1, device)
        if out.form == "gif":
            animate(steps_of, loaded, out, sample, sampler.steps or 1, device)
        else:
            draw: Draw = lambda index: last(steps_of(index)).x  # noqa: E731
            deliver_drawn(draw, loaded, out, sample, run, settings, labels)
    finally:
        dist.stop()


def _asked(condition: ConditionConfig, loaded: Loaded, labels: Tensor | None) -> dict[str, Any]:
    """What a folder must share with new pictures of the condition; nothing for a model without classes."""
    if labels is None:
        return {}
    guide = condition.classifier and load_guide(condition.classifier, loaded)
    return {
        "label": condition.label,
        "guidance": strength(condition),
        "guidance_interval": list(condition.guidance_interval),
        "classifier": guide.checkpoint.sha256 if guide else None,
        "guided": "model of its classes" if guide and knows(loaded, guide) else None,
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
