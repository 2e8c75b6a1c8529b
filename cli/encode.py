"""genkit encode SOURCE: images -> latents, with their measured shift and scale."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genkit import dist, io, machine
from genkit import noise as rng
from genkit.config import REQUIRED, arg
from genkit.data.source import Source
from genkit.errors import InputError
from genkit.io.latents import Latents, load_latents
from genkit.models.load import Loaded

from .common import DataConfig, MachineConfig, load, open_data
from .console import Meter, emit, say
from .options import make
from .outputs import Out, batched, parse_out, write_tensors

SHARD = 4096


@dataclass(frozen=True)
class EncodeConfig:
    """What is encoded, by which codec, and where the latents go."""

    source: str = arg(REQUIRED, "Data set name, image folder or zip.", positional=True)
    model: Path | None = arg(
        None, "Codec: run folder or checkpoint; default: the newest run that fits.", short="-m"
    )
    out: str = arg("latents.safetensors", "x.safetensors, - for a stream, or dir/ of shards.", short="-o")
    sample: bool = arg(False, "Draw from the posterior instead of taking its mean.")
    seed: int = arg(0, "Decides the draws of --sample.", min=0)
    fresh: bool = arg(False, "Replace the shards that the folder holds.")
    json: bool = arg(False, "Print the result as one JSON line.")


def command(name: str) -> Any:
    """The `genkit encode` command."""
    return make(
        _encode,
        EncodeConfig,
        DataConfig,
        MachineConfig,
        command="encode",
        help="Images to the latents of a codec.",
    )


def _encode(config: EncodeConfig, data: DataConfig, run: MachineConfig) -> None:
    machine.tune_allocator()
    out = parse_out(config.out, ("tensors", "stream", "folder"))
    device = machine.pick_device(run.device)
    loaded = load(config.model, "encode")
    source = open_data(config.source, data, loaded)
    if source.info.kind != "images":
        raise InputError(f"{config.source} holds {source.info.kind}; encode takes images")
    dist.start(device)
    try:
        loaded.module.to(device)
        if out.form == "folder":
            _shards(loaded, source, config, run, out, device)
        else:
            mine = list(dist.share(len(source)))
            latents = gather(_codes(loaded, source, mine, config, run, device))
            write_tensors(out, describe(latents, loaded, source, measure(latents.z)), config.json)
    finally:
        dist.stop()


@torch.inference_mode()
def _codes(
    loaded: Loaded,
    source: Source,
    indices: list[int],
    config: EncodeConfig,
    run: MachineConfig,
    device: torch.device,
) -> Latents:
    """The codes of the examples `indices`, with their labels and captions."""
    module: Any = loaded.module
    rows, labels, done = [], [], 0
    captions: list[str] = []
    parts = list(batched(indices, run.batch_size))
    with Meter("encode", len(indices)) as meter:
        for index, batch in zip(parts, source.batches(iter(parts), device)):
            noise = rng.normal(config.seed, rng.POSTERIOR, index.to(device), module.latent_shape)
            rows.append(module.encode(batch.x, noise=noise if config.sample else None).z.float().cpu())
            labels += [batch.label.cpu()] if batch.label is not None else []
            captions += batch.caption or []
            done += len(index)
            meter.update(done)
    z = torch.cat(rows) if rows else torch.zeros(0, *module.latent_shape)
    return Latents(z, labels=torch.cat(labels) if labels else None, captions=captions or None)


def gather(mine: Latents) -> Latents:
    """The latents of all processes, in order."""
    labels = dist.gather_rows(mine.labels) if mine.labels is not None else None
    return mine._replace(z=dist.gather_rows(mine.z), labels=labels, captions=dist.gather_lists(mine.captions))


def measure(z: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, standard deviation) of each channel of z (N, C, H, W)."""
    channels = z.double().transpose(0, 1).flatten(1)
    scale = channels.std(dim=1).clamp(min=1e-6)
    return tuple(channels.mean(dim=1).tolist()), tuple(scale.tolist())


def describe(
    latents: Latents, loaded: Loaded, source: Source, stats: tuple[tuple[float, ...], tuple[float, ...]]
) -> Latents:
    """`latents` with what a reader must know: statistics, codec, classes and source."""
    return latents._replace(
        shift=stats[0],
        scale=stats[1],
        codec=loaded.checkpoint.sha256,
        classes=source.info.classes,
        extra={"source": source.info.name, "fingerprint": source.info.fingerprint},
    )


def _shards(
    loaded: Loaded, source: Source, config: EncodeConfig, run: MachineConfig, out: Out, device: torch.device
) -> None:
    """A folder of shards; those that are there already are kept. Shift and scale are measured on the
    first."""
    _check_shards(out, loaded, source, config)
    starts = list(range(0, len(source), SHARD))
    first = out.path / "00000.safetensors"
    if not first.exists() and dist.is_main():
        _shard(loaded, source, 0, None, config, run, out, device)
    dist.barrier()
    head = load_latents(first)
    todo = [k for k in range(len(starts)) if not (out.path / f"{k:05d}.safetensors").exists()]
    dist.barrier()  # nobody writes before everybody has looked
    for i in dist.share(len(todo)):
        _shard(loaded, source, todo[i], (head.shift, head.scale), config, run, out, device)
    dist.barrier()
    say(f"{len(starts)} shards, {len(todo)} of them new after the first")
    emit({"out": str(out.path), "n": len(source)} if config.json else out.path, config.json)


def _shard(
    loaded: Loaded,
    source: Source,
    k: int,
    stats: tuple[tuple[float, ...], tuple[float, ...]] | None,
    config: EncodeConfig,
    run: MachineConfig,
    out: Out,
    device: torch.device,
) -> None:
    index = torch.arange(k * SHARD, min((k + 1) * SHARD, len(source)))
    latents = _codes(loaded, source, index.tolist(), config, run, device)
    latents = describe(latents, loaded, source, stats or measure(latents.z))
    io.save_latents(out.path / f"{k:05d}.safetensors", latents)


def _check_shards(out: Out, loaded: Loaded, source: Source, config: EncodeConfig) -> None:
    """Refuse a folder with shards of another codec or source; with --fresh, empty it.

    Raises:
        InputError: naming the first shard.
    """
    shards = sorted(out.path.glob("[0-9]*.safetensors"))
    if config.fresh and dist.is_main():
        for path in shards:
            path.unlink()
    elif shards:
        head = load_latents(shards[0])
        same = (head.extra or {}).get("fingerprint") == source.info.fingerprint
        if head.codec != loaded.checkpoint.sha256 or not same:
            raise InputError(
                f"{shards[0]} was encoded from other data or by another codec; use --fresh or another -o"
            )
    dist.barrier()
