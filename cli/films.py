"""Films of sampling: x_t on its way from noise to images."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from genkit import dist, io
from genkit.config import arg
from genkit.diffusion.samplers import Step
from genkit.io.images import gif_bytes, tile
from genkit.models.load import Loaded

from .console import Meter, say
from .outputs import Out, parse_out, write_animation
from .preview import codec_for
from .sample_output import SampleConfig

StepsOf = Callable[[Tensor], Iterator[Step]]  # indices (B,) -> the sampler's steps for them


@dataclass(frozen=True)
class TrajectoryConfig:
    """A look at the way."""

    trajectory: Path | None = arg(
        None,
        "Also write this GIF: x_t of 8 images, and below it the image predicted from it.",
        panel="Sampler",
    )


def film(
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


def animate(
    steps_of: StepsOf, loaded: Loaded, out: Out, sample: SampleConfig, total: int, device: torch.device
) -> None:
    """The grid of x_t on its way from noise to images."""
    show = codec_for(loaded.info, sample.codec, device, loaded.checkpoint.path.parent)
    n = min(sample.count, 64)
    if n < sample.count:
        say(f"the animation shows the first {n} of {sample.count}")
    frames = film("animate", steps_of, n, total, lambda step: show(step.x.clamp(-3, 3)))
    write_animation(out, frames, sample.json)


def trajectory(
    steps_of: StepsOf, loaded: Loaded, path: Path, sample: SampleConfig, total: int, device: torch.device
) -> None:
    """A GIF of x_t, and below each image the x0 predicted from it."""
    out = parse_out(str(path), ("gif",), "--trajectory")
    show = codec_for(loaded.info, sample.codec, device, loaded.checkpoint.path.parent)

    def frame(step: Step) -> Tensor:
        above, below = show(step.x.clamp(-3, 3)), show(step.x0)
        return torch.cat([half for pair in zip(above.split(8), below.split(8)) for half in pair])

    frames = film("trajectory", steps_of, min(sample.count, 8), total, frame)
    if dist.is_main():
        io.write_bytes(out.path, gif_bytes(frames))
        say(f"trajectory: {out.path}")
