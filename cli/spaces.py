"""Where paths of `interpolate` run: how images, files and seeds become points, and points images."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genkit import machine
from genkit.diffusion.denoiser import Denoiser, bind
from genkit.diffusion.inversion import invert
from genkit.diffusion.samplers import ddim
from genkit.errors import InputError
from genkit.models.load import Loaded
from genkit.models.prior import Parts, Prior, draw_codes, own_codes, prior_of
from genkit.models.sampling import initial_noise, prepare, sampling_times

from .common import PrecisionConfig
from .conditions import parted
from .console import say
from .methods import own_spacing
from .preview import codec_of, shown_by
from .sample import last


class Space:
    """Where the path runs: how an image, a file and a seed become a point, and a point an image.

    codec: that of a latent model, None for a model of images.
    """

    def __init__(
        self,
        of_images: Callable[[Tensor, int | None], Tensor],
        of_seed: Callable[[int, Tensor, int | None], Tensor],
        kinds: tuple[str, ...],
        shape: tuple[int, ...],
        show: Callable[[Tensor, Tensor | None], Tensor],
        codec: Loaded | None = None,
    ) -> None:
        self.codec = codec
        self.of_images, self.of_seed, self.kinds = of_images, of_seed, kinds
        self.shape, self.show = shape, show


def codec_space(loaded: Loaded, run: PrecisionConfig, device: torch.device, prior: Prior | None) -> Space:
    """The latents of an autoencoder; seeds are codes of `prior`, None for the model's own."""
    module: Any = loaded.module.to(device)
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
    loaded: Loaded, steps: int, codec: Path | None, run: PrecisionConfig, device: torch.device
) -> Space:
    """The noise of a diffusion model; data of the model's kind get there by inversion under their class."""
    model = loaded.module
    assert isinstance(model, Denoiser)
    prepare(model, device, machine.resolve_precision(run.precision, device), compiled=False)
    falling = sampling_times(loaded, steps, own_spacing(None, loaded))
    coder = codec_of(loaded.info, codec, loaded.checkpoint.path.parent)
    to_picture = shown_by(coder, loaded.info, device)

    @torch.inference_mode()
    def of_images(x: Tensor, label: int | None) -> Tensor:
        told = None if label is None else torch.full((len(x),), label, device=device)
        return last(invert(bind(model, told), model.schedule, x, falling, refine=2)).x

    @torch.inference_mode()
    def show(x: Tensor, cond: Tensor | None) -> Tensor:
        return to_picture(last(ddim(bind(model, cond), model.schedule, x, falling)).x)

    def of_seed(seed: int, index: Tensor, label: int | None) -> Tensor:
        return initial_noise(model.schedule, seed, index, loaded.info.shape, falling)

    return Space(of_images, of_seed, ("noise", "latents"), loaded.info.shape, show, coder)
