"""genkit decode LATENTS: latents -> images, by the codec that encoded them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from genkit import dist, machine
from genkit.config import REQUIRED, arg
from genkit.io.checkpoint import command_line
from genkit.io.images import tile
from genkit.io.latents import Latents, load_latents

from .common import MachineConfig, check_shape, load
from .console import Meter
from .options import make
from .outputs import Folder, batched, parse_out, report_folder, write_picture, write_tensors
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
    return make(_decode, DecodeConfig, MachineConfig, command="decode", help="Latents back to images.")


def _decode(config: DecodeConfig, run: MachineConfig) -> None:
    machine.tune_allocator()
    out = parse_out(config.out, ("folder", "png", "tensors", "stream"))
    device = machine.pick_device(run.device)
    latents = load_latents(read_input(config.latents))
    loaded = load(config.model, "decode")
    name = "stdin" if config.latents == "-" else config.latents
    check_codec(loaded, latents.codec, name)
    module: Any = loaded.module.to(device)
    check_shape(tuple(latents.z.shape[1:]), module.latent_shape, name)
    extra = latents.extra or {}
    settings = {"method": "decode", "codec": loaded.checkpoint.sha256, "from": extra, "model": latents.model}
    dist.start(device)
    try:
        n = len(latents.z)
        folder = Folder(out.path, settings, config.fresh) if out.form == "folder" else None
        todo = folder.missing(n) if folder else list(range(n))
        mine = [todo[i] for i in dist.share(len(todo))]
        rows, about = [], {**settings, "command": command_line()}
        with Meter("decode", len(mine)) as meter, torch.inference_mode():
            for index in batched(mine, run.batch_size):
                x = module.decode(latents.z[index].to(device))
                if folder:
                    for i, image in zip(index.tolist(), x):
                        folder.add(i, image, about)
                else:
                    rows.append(x.cpu())
                meter.update(meter.done + len(index))
        if folder:
            folder.finish(n)
            report_folder(out, len(todo), n, config.json)
            return
        images = dist.gather_rows(torch.cat(rows) if rows else torch.zeros(0, *loaded.info.shape))
        if out.form == "png":
            write_picture(out, tile(images[:1024]), about, config.json)
        else:
            write_tensors(out, Latents(images, "images", labels=latents.labels, extra=settings), config.json)
    finally:
        dist.stop()
