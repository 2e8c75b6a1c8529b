"""genkit sample prior: codes of an autoencoder's prior, or a generator's, decoded."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from genkit import dist, machine
from genkit.config import arg
from genkit.errors import InputError
from genkit.models.load import Loaded
from genkit.models.prior import Parts, Prior, draw_prior, prior_of

from .common import PrecisionConfig, load
from .conditions import chosen, in_turn, parted
from .console import say
from .options import make
from .outputs import parse_out
from .sample_output import SampleConfig, check_codec_reader, deliver_drawn


@dataclass(frozen=True)
class PriorConfig:
    """Where codes are drawn from."""

    prior: str | None = arg(
        None,
        "File of `genkit fit-prior`, or own: what the model was trained to have, such as a standard normal; "
        "default: the one that was fitted to the model and is beside it, else its own.",
    )
    label: str | None = arg(
        None,
        "Classes to draw, in turn: 3, or 0-9, or 1,3,5, or their names; for an aae trained with "
        "--class-conditional, whose classes have parts of the prior. Default: all of them.",
    )


def command(name: str) -> Any:
    """The `genkit sample prior` command."""
    help = "From the prior of an autoencoder, standard normal or fitted, or of a GAN: codes, decoded."
    return make(_sample, SampleConfig, PriorConfig, PrecisionConfig, command="sample prior", help=help)


def _sample(sample: SampleConfig, asked: PriorConfig, run: PrecisionConfig) -> None:
    machine.tune()
    out = parse_out(sample.out or "prior.png", ("folder", "png", "tensors", "stream"))
    device = machine.pick_device(run.device)
    loaded = load(sample.model, "sample prior")
    check_codec_reader(sample, loaded, out)
    module: Any = loaded.module.to(device)
    prior, words = prior_of(module, loaded.checkpoint.path, loaded.checkpoint.sha256, asked.prior)
    labels = labels_for(loaded, prior, asked.label, sample.count)
    if words:
        say(f"prior: {words}")
    precision = machine.resolve_precision(run.precision, device)
    settings = {
        "method": "prior",
        "seed": sample.seed,
        "precision": precision,
        "model": loaded.checkpoint.sha256,
        "prior": prior.sha256 if prior is not None else None,
        **({"label": chosen(asked.label, loaded.info.classes)} if labels is not None else {}),
    }
    draw = drawer(loaded, prior, labels, sample.seed, device, precision)
    dist.start(device)
    try:
        deliver_drawn(draw, loaded, out, sample, run, settings, labels)
    finally:
        dist.stop()


def drawer(
    loaded: Loaded,
    prior: Prior | None,
    labels: Tensor | None,
    seed: int,
    device: torch.device,
    precision: str,
) -> Callable[[Tensor], Tensor]:
    """indices (B,) -> images (B, C, H, W) of `seed`. labels: (n,) classes of all images."""
    module, classes = loaded.module, len(loaded.info.classes)

    @torch.inference_mode()
    def draw(index: Tensor) -> Tensor:
        parts = None if labels is None else Parts(labels[index.cpu()].to(device), classes)
        with machine.autocast(device, precision):
            return draw_prior(module, seed, index.to(device), prior, parts)

    return draw


def labels_for(loaded: Loaded, prior: Prior | None, label: str | None, n: int) -> Tensor | None:
    """(n,) classes of the images: those that `label` writes, in turn, else all in turn; None where the prior
    has no parts for classes.

    Raises:
        InputError: --label of such a prior, or a class that is not there.
    """
    path = loaded.checkpoint.path
    if parted(loaded) and prior is None:
        return in_turn(label, loaded.info.classes, torch.arange(n))
    if label is None:
        return None
    if parted(loaded):
        raise InputError(
            f"--label {label} is for the prior that {path} was trained to have, not for a fitted one, which "
            "has no parts for classes; add --prior own"
        )
    raise InputError(
        f"--label {label} needs a model whose prior has parts for classes, and that of {path} has none; "
        "train one with `genkit train aae --prior mixture --class-conditional`"
    )
