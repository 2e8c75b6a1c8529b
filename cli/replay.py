"""What a noise file says of its making, for the verbs that start from it."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from genkit.diffusion.denoiser import Denoiser
from genkit.diffusion.guidance import Null
from genkit.diffusion.inversion import null_at
from genkit.diffusion.schedules import SPACINGS
from genkit.errors import InputError
from genkit.io.latents import Latents
from genkit.models.load import Loaded
from genkit.models.sampling import sampling_times

from .common import check_shape


class Replay(NamedTuple):
    """x: (N, *S) the noise, and the settings under which it gives its images back."""

    x: Tensor
    steps: int
    spacing: str
    guidance: float
    labels: Tensor | None  # (N,) the classes told, the null class being one more than the last
    nulls: Tensor | None  # (N, steps, E) null embeddings of pivotal inversion


def replay_of(noise: Latents, name: str, loaded: Loaded) -> Replay:
    """How `noise`, read from `name`, was made.

    Raises:
        InputError: it is of another model, or what it says does not fit together.
    """
    if noise.model != loaded.checkpoint.sha256:
        raise InputError(
            f"{name} was inverted by other weights ({noise.model[:12]}) than {loaded.checkpoint.path} has "
            f"at step {loaded.checkpoint.step}; give that model with -m, or invert again if it was trained on"
        )
    made, module = noise.extra or {}, loaded.module
    replay = Replay(
        noise.z,
        made.get("steps", 50),
        made.get("spacing", "trailing"),
        made.get("guidance", 1.0),
        noise.labels,
        noise.nulls,
    )
    classes: Any = getattr(module, "classes", 0)
    labels, nulls = noise.labels, noise.nulls
    if labels is not None and not (classes and 0 <= int(labels.min()) <= int(labels.max()) <= classes):
        raise InputError(f"{name} has labels that its model does not know; invert the images again")
    if replay.spacing not in SPACINGS or (nulls is not None and nulls.shape[1] != replay.steps):
        raise InputError(f"{name} does not say how it was made; invert the images again")
    check_shape(tuple(noise.z.shape[1:]), loaded.info.shape, name)
    if nulls is not None:
        if labels is None or not classes:
            raise InputError(f"{name} has null embeddings and no classes; invert the images again")
        assert isinstance(module, Denoiser)
        width = module.embed(module.null(1)).shape[1]
        if nulls.shape[2] != width:
            raise InputError(
                f"{name} has null embeddings of {nulls.shape[2]} numbers, and the model's have {width}; "
                "invert the images again"
            )
    return replay


def null_of(
    replay: Replay, loaded: Loaded, index: Tensor, device: torch.device, guidance: float | None = None
) -> Null | None:
    """The null embeddings of images `index` (B,) as `classifier_free` takes them; None where there are none.

    guidance: that of the sampling, where it is not the file's own; the embeddings hold for that one alone.
    """
    if replay.nulls is None or (guidance is not None and guidance != replay.guidance):
        return None
    return null_at(replay.nulls[index.cpu()].to(device), sampling_times(loaded, replay.steps, replay.spacing))
