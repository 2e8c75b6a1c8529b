"""The ends of a path: seeds, tensor files or images, as points of a model's space."""

from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from genkit.diffusion.denoiser import Denoiser
from genkit.errors import InputError
from genkit.io.latents import load_latents
from genkit.models.load import Loaded

from .common import DataConfig, check_shape, open_data
from .invert import source_labels
from .preview import check_codec, load_codec, scaling
from .replay import replay_of
from .spaces import Space


class End(NamedTuple):
    """x: (1, *S) the point; mark: what it was made of; label: its class as the model counts them, None
    without one."""

    x: Tensor
    mark: str
    label: int | None = None


class Place(NamedTuple):
    """What every end is a point of. codec: as --codec names it; data: how images are read."""

    loaded: Loaded
    space: Space
    codec: Path | None
    data: DataConfig
    device: torch.device


def kind_of(text: str) -> str:
    """What an end is given as: a seed, a tensor file or an image."""
    if text.isdecimal():
        return "a seed"
    return "a tensor file" if Path(text).suffix == ".safetensors" else "an image"


def end_point(place: Place, text: str, row: int, label: int | None) -> End:
    """The point that `text` names: a seed, or row `row` of a tensor file or of a source of images.

    label: of its class, where asked for.

    Raises:
        InputError: when it is none of them, or belongs to another model.
    """
    if text.isdecimal():
        index = torch.tensor([row], device=place.device)
        return End(place.space.of_seed(int(text), index, label), f"seed {text}", label)
    if Path(text).suffix == ".safetensors":
        return _of_file(place, text, row, label)
    if not Path(text).exists():
        raise InputError(f"{text} is no seed (a whole number) and no file")
    return _of_image(place, text, row, label)


def _of_file(place: Place, text: str, row: int, label: int | None) -> End:
    """The end that is row `row` of a latents or noise file."""
    loaded, space, device = place.loaded, place.space, place.device
    latents, info = load_latents(Path(text), space.kinds), loaded.info
    z = latents.z[row : row + 1].to(device)
    if not len(z):
        raise InputError(f"{text} holds {len(latents.z)} points; --rows asks for more")
    check_shape(tuple(z.shape[1:]), space.shape, text)
    mark = f"{latents.sha256} {row}"
    if latents.kind == "noise":
        labels = replay_of(latents, text, loaded).labels
        return End(z, mark, int(labels[row]) if label is None and labels is not None else label)
    if not isinstance(loaded.module, Denoiser):
        check_codec(loaded, latents.codec, text)
        return End(z, mark)
    if info.codec != latents.codec:
        raise InputError(f"{text} holds latents of another codec than the model's training data")
    if label is None and latents.labels is not None and loaded.module.classes:
        name = latents.classes[int(latents.labels[row])] if latents.classes else ""
        label = info.classes.index(name) if name in info.classes else None
    # the model's own normalisation: the file's was measured on whatever it holds
    shift, scale = scaling(info, device)
    return End(space.of_images((z - shift) / scale, label), mark, label)


def _of_image(place: Place, text: str, row: int, label: int | None) -> End:
    """The end that is image `row` of a source; through the codec where the model works on latents."""
    loaded, device = place.loaded, place.device
    info, codec = loaded.info, None
    if info.kind == "latents":
        codec = load_codec(info, place.codec, loaded.checkpoint.path.parent)
    source = open_data(text, place.data, codec or loaded)
    check_shape(source.info.shape, (codec or loaded).info.shape, text)
    if row >= len(source):
        raise InputError(f"{text} holds {len(source)} images; --rows asks for more")
    if label is None and isinstance(loaded.module, Denoiser) and loaded.module.classes:
        found = source_labels(source, loaded, None, text, row + 1)
        label = None if found is None else int(found[row])
    x = next(iter(source.batches(iter([torch.tensor([row])]), device))).x
    if codec is not None:
        module: Any = codec.module.to(device)
        shift, scale = scaling(info, device)
        with torch.inference_mode():
            x = (module.encode(x).z - shift) / scale
    return End(place.space.of_images(x, label), f"{source.info.fingerprint} {row}", label)
