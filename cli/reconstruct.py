"""genkit reconstruct SOURCE: images through a codec and back, beside the originals, with their PSNR.

It is `genkit plot reconstructions` too.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from genkit import dist, machine
from genkit.config import REQUIRED, arg
from genkit.data.source import Source
from genkit.errors import InputError
from genkit.evaluate.nll import estimate
from genkit.evaluate.subset import spread
from genkit.io.checkpoint import command_line
from genkit.io.images import save_png, tile
from genkit.models.load import Loaded
from genkit.objectives.corruption import Corruption, parse_corruption
from genkit.objectives.reconstruction import psnr
from genkit.train.objective import Noise

from .common import DataConfig, PrecisionConfig, check_shape, load, open_data
from .console import Meter, emit, say
from .options import make
from .outputs import Folder, Out, parse_out

COLUMNS, SHOWN = 16, 128


@dataclass(frozen=True)
class ReconstructConfig:
    """What is reconstructed, by which codec, and where the comparison goes."""

    source: str = arg(REQUIRED, "Data set name, image folder or zip.", positional=True)
    model: Path | None = arg(
        None, "Codec: run folder or checkpoint; default: the newest run that fits.", short="-m"
    )
    count: int | None = arg(
        16,
        "So many images, spread evenly over the source; 0: all. A picture shows the first 128.",
        min=0,
        short="-n",
    )
    out: str = arg(
        "reconstructions.png",
        "x.png: rows of originals, corrupted, restored; dir/ of the restored, with that picture as grid.png.",
        short="-o",
    )
    corrupt: str | None = arg(
        None,
        "Damage the images first: gaussian:0.3, mask:0.5, saltpepper:0.1 or none; default: as in training.",
    )
    seed: int = arg(0, "Decides the damage of each image.", min=0, max=2**63 - 1)
    fresh: bool = arg(False, "Replace what the folder holds.")
    json: bool = arg(False, "Print the result as one JSON line.")


def command(name: str) -> Any:
    """The `genkit reconstruct` command, or under the name "reconstructions" that of `genkit plot`."""
    return make(
        _reconstruct,
        ReconstructConfig,
        DataConfig,
        PrecisionConfig,
        command=name if name == "reconstruct" else f"plot {name}",
        defaults={"precision": "fp32"},
        help="Images through a codec and back, beside the originals, with their PSNR.",
    )


class Trip(NamedTuple):
    """Images on their way: the first ones to be shown, (N, C, H, W), and the PSNR of all, (n,) dB."""

    x: Tensor
    seen: Tensor  # what the encoder was given
    back: Tensor
    psnr: Tensor
    psnr_seen: Tensor


def _reconstruct(config: ReconstructConfig, data: DataConfig, run: PrecisionConfig) -> None:
    machine.tune()
    out = parse_out(config.out, ("folder", "png"))
    device = machine.pick_device(run.device)
    loaded = load(config.model, "encode")
    if "decode" not in loaded.entry.verbs:
        raise InputError(f"{loaded.checkpoint.path} has no decoder; name a codec, such as a vae")
    asked = config.corrupt if config.corrupt is not None else getattr(loaded.config, "corrupt", "none")
    corrupt = parse_corruption(asked)
    source = open_data(config.source, data, loaded)
    if source.info.kind != "images":
        raise InputError(f"{config.source} holds {source.info.kind}; reconstruct takes images")
    check_shape(source.info.shape, loaded.info.shape, config.source)
    if corrupt and config.corrupt is None:
        say(f"note: images are corrupted by {asked}, as in training; --corrupt none leaves them clean")
    loaded.module.to(device)
    settings = {
        "method": "reconstruct",
        "source": source.info.name,
        "fingerprint": source.info.fingerprint,
        "count": config.count,
        "corrupt": asked,
        "seed": config.seed if corrupt else None,
        "precision": machine.resolve_precision(run.precision, device),
        "codec": loaded.checkpoint.sha256,
    }
    dist.start(device)
    try:
        folder = Folder(out.path, settings, config.fresh) if out.form == "folder" else None
        trip = _travel(loaded, source, corrupt, config, run, device, folder, settings)
    finally:
        dist.stop()
    if dist.is_main():
        _show(trip, out, settings, corrupt is not None)
        _print(trip, out, source, asked, config.json)


@torch.inference_mode()
def _travel(
    loaded: Loaded,
    source: Source,
    corrupt: Corruption | None,
    config: ReconstructConfig,
    run: PrecisionConfig,
    device: torch.device,
    folder: Folder | None,
    settings: dict[str, Any],
) -> Trip:
    """Every image there and back, shared out over the processes; a folder gets those that it lacks."""
    module: Any = loaded.module
    chosen = spread(len(source), config.count or None)
    missing = set(folder.missing(len(chosen)) if folder else ())
    mine = torch.tensor(list(dist.share(len(chosen))), dtype=torch.int64)
    about = {**settings, "command": command_line()}
    empty = torch.zeros(0, *source.info.shape)
    shown: list[list[Tensor]] = [[empty], [empty], [empty]]
    ratios: list[list[Tensor]] = [[torch.zeros(0)], [torch.zeros(0)]]
    parts = mine.split(run.batch_size) if len(mine) else ()
    with Meter("reconstruct", len(mine)) as meter, machine.autocast(device, settings["precision"]):
        for place, batch in zip(parts, source.batches((chosen[p] for p in parts), device)):
            x = batch.x
            seen = corrupt(x, Noise(config.seed, chosen[place].to(device))) if corrupt else x
            back = module.decode(module.encode(seen).z)
            for kept, images in zip(shown, (x, seen, back)):
                kept.append(images[(place < SHOWN).to(device)].float().cpu())
            for ratio, images in zip(ratios, (back, seen)):
                ratio.append(psnr(x, images).cpu())
            for i, image in zip(place.tolist(), back):
                if i in missing and folder:
                    folder.add(i, image, {**about, "example": int(chosen[i])})
            meter.update(meter.done + len(place))
    return Trip(*(dist.gather_rows(torch.cat(part)) for part in (*shown, *ratios)))


def _show(trip: Trip, out: Out, settings: dict[str, Any], corrupted: bool) -> None:
    """Write the picture: rows of originals, of the corrupted where there are such, and of what came back."""
    rows = []
    columns = min(COLUMNS, len(trip.x))
    full = len(trip.x) // columns * columns  # the grid has no place for a last row that is shorter
    for parts in zip(*(images[:full].split(columns) for images in (trip.x, trip.seen, trip.back))):
        x, seen, back = parts
        rows += [x, *([seen] if corrupted else []), back]
    path = out.path / "grid.png" if out.form == "folder" else out.path
    save_png(path, tile(torch.cat(rows), columns), {**settings, "command": command_line()})


def _print(trip: Trip, out: Out, source: Source, corrupt: str, as_json: bool) -> None:
    restored, damaged = estimate(trip.psnr), estimate(trip.psnr_seen)
    if as_json:
        values = {"psnr": restored.value, "psnr_error": restored.error}
        if corrupt != "none":
            gain = estimate(trip.psnr - trip.psnr_seen)
            values |= {"psnr_corrupted": damaged.value, "gain": gain.value, "gain_error": gain.error}
        about = {"source": source.info.name, "n": len(trip.psnr), "corrupt": corrupt}
        emit({**about, **values, "out": str(out.path)}, True)
        return
    text = f"PSNR {restored.value:.2f} ± {restored.error:.2f} dB over {len(trip.psnr)} images"
    if corrupt != "none":
        text += f", {restored.value - damaged.value:+.2f} dB over the corrupted ones' {damaged.value:.2f} dB"
    say(text)
    emit(out.path, False)
