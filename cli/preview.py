"""Pictures of how a training run is going, at growing intervals."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from genkit.data.source import Info, Source
from genkit.errors import InputError
from genkit.io.checkpoint import find_weights
from genkit.io.images import save_png, tile
from genkit.models.load import Loaded, load_model
from genkit.registry import Entry

from .common import RUNS
from .console import say


def picture_maker(
    entry: Entry, config: Any, source: Source, folder: Path, device: torch.device
) -> Callable[[nn.Module, int], None] | None:
    """A function (model, step) that writes folder/STEP.png; None for a model that has nothing to show."""
    show = entry.preview
    if show is None:
        return None
    info = source.info
    examples = next(iter(source.batches(iter([torch.arange(min(32, len(source)))]), device)))
    decode = decoder_of(info, device, folder.parent)

    def write(model: nn.Module, step: int) -> None:
        pictures = decode(show(model, config, info, examples))
        save_png(folder / f"{step:07d}.png", tile(pictures))

    return write


def decoder_of(info: Info, device: torch.device, near: Path) -> Callable[[Tensor], Tensor]:
    """Data of `info` -> images in [-1, 1] as by `codec_for`; without the codec, latents as they are."""
    try:
        return codec_for(info, None, device, near)
    except InputError:
        say(f"note: no codec {info.codec[:12]} beside {near} or under {RUNS}/; pictures show the latents")
        return lambda x: (x / 3).clamp(-1, 1)


def scaling(info: Info, device: torch.device) -> tuple[Tensor, Tensor]:
    """(shift, scale), (C, 1, 1): a model of `info` works on (latents - shift) / scale."""
    shift, scale = (torch.tensor(v, device=device).reshape(-1, 1, 1) for v in (info.shift, info.scale))
    return shift, scale


def codec_for(info: Info, path: Path | None, device: torch.device, near: Path) -> Callable[[Tensor], Tensor]:
    """A function from a model's data to images in [-1, 1]: the identity for images, else the codec's decoder.

    Raises:
        InputError: the codec is not there, or is another one, see `load_codec`; or one is given for images.
    """
    return shown_by(codec_of(info, path, near), info, device)


def codec_of(info: Info, path: Path | None, near: Path) -> Loaded | None:
    """`load_codec` for a model of latents, None for one of images.

    Raises:
        InputError: see `codec_for`.
    """
    check_codec_use(info, path)
    return load_codec(info, path, near) if info.kind == "latents" else None


def shown_by(codec: Loaded | None, info: Info, device: torch.device) -> Callable[[Tensor], Tensor]:
    """A function from data of `info` to images in [-1, 1], which they are where there is no codec."""
    if codec is None:
        return lambda x: x
    module: Any = codec.module.to(device)
    shift, scale = scaling(info, device)

    @torch.inference_mode()
    def decode(x: Tensor) -> Tensor:
        return module.decode(x * scale + shift)

    return decode


def check_codec_use(info: Info, path: Path | None) -> None:
    """Refuse a codec for a model whose data are images.

    Raises:
        InputError: there is one.
    """
    if path is not None and info.kind != "latents":
        raise InputError(f"--codec {path} is for a model of latents, and this one makes images; leave it out")


def load_codec(info: Info, path: Path | None, near: Path) -> Loaded:
    """The codec whose latents `info` describes.

    path: the codec; None finds the one that encoded the data, by the hash of its weights, among the runs
    beside the run folder `near` and under runs/.

    Raises:
        InputError: when it is not there, or is another codec.
    """
    path = path or find_weights(near.resolve().parent, info.codec) or find_weights(RUNS, info.codec)
    if path is None:
        raise InputError(
            f"no codec with weights {info.codec[:12]} beside {near} or under {RUNS}/ to show latents; "
            "give it with --codec, or write -o x.safetensors and decode that"
        )
    codec = load_model(path, "decode")
    check_codec(codec, info.codec, "this model's latents")
    return codec


def check_codec(codec: Loaded, wanted: str, what: str) -> None:
    """Refuse to decode with another codec than the one that encoded.

    Raises:
        InputError: with both hashes.
    """
    have = codec.checkpoint.sha256
    if wanted and wanted != have:
        raise InputError(
            f"{codec.checkpoint.path} ({have[:12]}) is not the codec of {what} ({wanted[:12]}); "
            "give that one with -m, or encode afresh"
        )
