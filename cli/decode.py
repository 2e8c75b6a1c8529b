"""genkit decode LATENTS: latents -> images, by the codec that encoded them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genkit import dist, machine
from genkit.config import REQUIRED, arg
from genkit.errors import InputError
from genkit.io.latents import Latents, load_latents

from .common import PrecisionConfig, check_shape, load
from .options import make
from .outputs import deliver, parse_out
from .preview import check_codec
from .streams import read_input


@dataclass(frozen=True)
class DecodeConfig:
    """What is decoded, by which codec, and where the images go."""

    latents: str = arg(REQUIRED, "Latents file, folder of shards, or - for a stream.", positional=True)
    model: Path | None = arg(
        None, "Codec: run folder or checkpoint; default: the newest run that fits.", short="-m"
    )
    out: str = arg("decoded.png", "dir/ of PNGs, x.png grid, x.safetensors or - (floats).", short="-o")
    fresh: bool = arg(False, "Replace what the folder holds.")
    json: bool = arg(False, "Print the result as one JSON line.")


def command(name: str) -> Any:
    """The `genkit decode` command."""
    return make(
        _decode,
        DecodeConfig,
        PrecisionConfig,
        command="decode",
        defaults={"precision": "fp32"},
        help="Latents back to images.",
    )


def _decode(config: DecodeConfig, run: PrecisionConfig) -> None:
    machine.tune()
    out = parse_out(config.out, ("folder", "png", "tensors", "stream"))
    device = machine.pick_device(run.device)
    wanted = "decode takes a latents file, such as `genkit encode` makes of images"
    latents = load_latents(read_input(config.latents, wanted))
    name = "stdin" if config.latents == "-" else config.latents
    check_labels(latents, name)
    loaded = load(config.model, "decode", latents.codec)
    check_codec(loaded, latents.codec, name)
    module: Any = loaded.module.to(device)
    check_shape(tuple(latents.z.shape[1:]), module.latent_shape, name)
    tokens = checked_tokens(latents, module, name)
    precision = machine.resolve_precision(run.precision, device)
    settings = {
        "method": "decode",
        "codec": loaded.checkpoint.sha256,
        "latents": latents.sha256,
        "from": latents.extra or {},
        "model": latents.model,
        "precision": precision,
    }

    @torch.inference_mode()
    def draw(index: Tensor) -> Tensor:
        with machine.autocast(device, precision):
            if tokens is not None:
                return module.decode(module.bottleneck.lookup(tokens[index].to(device)))
            return module.decode(latents.z[index].to(device))

    def wrap(images: Tensor) -> Latents:
        return Latents(images, "images", labels=latents.labels, classes=latents.classes, extra=settings)

    def class_name(i: int) -> str:
        assert latents.labels is not None
        label = int(latents.labels[i])
        return latents.classes[label] if label < len(latents.classes) else ""

    dist.start(device)
    try:
        deliver(
            "decode",
            draw,
            len(latents.z),
            out,
            settings,
            wrap,
            batch_size=run.batch_size,
            fresh=config.fresh,
            as_json=config.json,
            classes=class_name if latents.labels is not None and latents.classes else None,
        )
    finally:
        dist.stop()


def check_labels(latents: Latents, name: str) -> None:
    """Refuse labels that none of the classes of the file `name` has. What a diffusion model drew may bear the
    null class, one more than the last.

    Raises:
        InputError: with the label.
    """
    if latents.labels is None or not latents.classes:
        return
    count = len(latents.classes)
    low, high = int(latents.labels.min()), int(latents.labels.max())
    if low < 0 or high >= count + bool(latents.model):
        raise InputError(
            f"{name} has the label {low if low < 0 else high}, outside its {count} classes "
            f"(0 to {count - 1}); encode the images again"
        )


def checked_tokens(latents: Latents, module: Any, name: str) -> Tensor | None:
    """The tokens of the file `name`, for a codec that has a codebook; None where either has none.

    Raises:
        InputError: a token is outside the codebook.
    """
    codes = getattr(getattr(module, "bottleneck", None), "codes", None)
    if latents.tokens is None or codes is None:
        return None
    low, high = int(latents.tokens.min()), int(latents.tokens.max())
    if low < 0 or high >= codes:
        raise InputError(
            f"{name}: token {low if low < 0 else high} is outside the codec's codebook of {codes} codes "
            f"(0 to {codes - 1}); encode the images again"
        )
    return latents.tokens
