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
from genkit.models.load import load_model
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
    decode = decoder_of(info, device)

    def write(model: nn.Module, step: int) -> None:
        pictures = decode(show(model, config, info, examples))
        save_png(folder / f"{step:07d}.png", tile(pictures))

    return write


def decoder_of(info: Info, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Data of `info` -> images in [-1, 1]: through the codec for latents, if it is under runs/, else as they are."""
    if info.kind != "latents":
        return lambda x: x
    found = find_weights(RUNS, info.codec)
    try:
        codec = load_model(found, "decode").module.to(device) if found else None
    except InputError:
        codec = None
    if codec is None:
        say(f"note: no codec {info.codec[:12]} under {RUNS}/; pictures of training show the latents themselves")
        return lambda x: (x / 3).clamp(-1, 1)
    shift, scale = (torch.tensor(v, device=device).reshape(-1, 1, 1) for v in (info.shift, info.scale))

    @torch.inference_mode()
    def decode(x: Tensor) -> Tensor:
        return codec.decode(x * scale + shift)

    return decode
