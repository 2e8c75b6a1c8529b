"""genkit encode SOURCE: images -> latents, with their measured shift and scale."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from genkit import dist, io, machine
from genkit import noise as rng
from genkit.codecs.autoencoder import Autoencoder
from genkit.config import REQUIRED, arg, check_read, differences
from genkit.data.source import ImageSource
from genkit.errors import InputError
from genkit.io.latents import Latents, load_latents
from genkit.models.load import Loaded

from .common import DataConfig, PrecisionConfig, check_shape, load, open_data
from .console import Meter, emit, say
from .options import make
from .outputs import Out, batched, parse_out, write_tensors

SHARD = 4096
Stats = tuple[tuple[float, ...], tuple[float, ...]]  # shift and scale of each channel


@dataclass(frozen=True)
class EncodeConfig:
    """What is encoded, by which codec, and where the latents go."""

    source: str = arg(REQUIRED, "Data set name, image folder or zip.", positional=True)
    model: Path | None = arg(
        None, "Codec: run folder or checkpoint; default: the newest run that fits.", short="-m"
    )
    out: str = arg("latents.safetensors", "x.safetensors, - for a stream, or dir/ of shards.", short="-o")
    sample: bool = arg(False, "Draw from the posterior instead of taking its mean.")
    seed: int = arg(0, "Decides the draws of --sample.", min=0, max=2**63 - 1)
    fresh: bool = arg(False, "Replace the shards that the folder holds.")
    json: bool = arg(False, "Print the result as one JSON line.")


def command(name: str) -> Any:
    """The `genkit encode` command."""
    return make(
        _encode,
        EncodeConfig,
        DataConfig,
        PrecisionConfig,
        command="encode",
        defaults={"precision": "fp32"},
        help="Images to the latents of a codec.",
    )


def _encode(config: EncodeConfig, data: DataConfig, run: PrecisionConfig) -> None:
    machine.tune()
    out = parse_out(config.out, ("tensors", "stream", "folder"))
    device = machine.pick_device(run.device)
    check_read(config, {"seed": (config.sample, "--sample")})
    loaded = load(config.model, "encode")
    if config.sample and not getattr(getattr(loaded.module, "bottleneck", None), "random", True):
        raise InputError(
            f"--sample draws from a posterior, and {loaded.what()}, whose code of an image is one point; "
            "leave it out"
        )
    source = open_data(config.source, data, loaded)
    if source.info.kind != "images":
        raise InputError(f"{config.source} holds {source.info.kind}; encode takes images")
    check_shape(source.info.shape, loaded.info.shape, config.source)
    dist.start(device)
    try:
        job = Job(loaded, source, config, run, device)
        if out.form == "folder":
            job.shards(out)
        else:
            latents = gather(job.codes(list(dist.share(len(source)))))
            write_tensors(out, job.describe(latents, measure(latents.z)), config.json)
    finally:
        dist.stop()


def gather(mine: Latents) -> Latents:
    """The latents of all processes, in order."""
    labels = dist.gather_rows(mine.labels) if mine.labels is not None else None
    tokens = dist.gather_rows(mine.tokens) if mine.tokens is not None else None
    captions = dist.gather_lists(mine.captions)
    return mine._replace(z=dist.gather_rows(mine.z), labels=labels, captions=captions, tokens=tokens)


def measure(z: Tensor) -> Stats:
    """(mean, standard deviation) of each channel of z (N, C, H, W); 1 for a channel that does not vary."""
    channels = z.double().transpose(0, 1).flatten(1)
    scale = channels.std(dim=1, correction=0)
    scale = torch.where(scale < 1e-6, 1.0, scale)
    return tuple(channels.mean(dim=1).tolist()), tuple(scale.tolist())


class Job:
    """One source, one codec, and how they are brought together."""

    def __init__(
        self,
        loaded: Loaded,
        source: ImageSource,
        config: EncodeConfig,
        run: PrecisionConfig,
        device: torch.device,
    ) -> None:
        self.source, self.config, self.run, self.device = source, config, run, device
        self.seed = config.seed
        self.codec, self.sha256 = cast(Autoencoder, loaded.module.to(device)), loaded.checkpoint.sha256
        self.precision = machine.resolve_precision(run.precision, device)
        self.identity = {
            "source": source.info.name,
            "fingerprint": source.info.fingerprint,
            "posterior": f"seed {self.seed}" if config.sample else "mean",
            "precision": self.precision,
        }

    @torch.inference_mode()
    def codes(self, indices: list[int]) -> Latents:
        """The codes of the examples `indices`, with their labels and captions."""
        rows, tokens, source = [], [], self.source
        _, height, width = self.codec.latent_shape
        parts = list(batched(indices, self.run.batch_size))
        with Meter("encode", len(indices)) as meter, machine.autocast(self.device, self.precision):
            for index, batch in zip(parts, source.batches(iter(parts), self.device)):
                code = self.codec.encode(batch.x, noise=self._noise(index) if self.config.sample else None)
                rows.append(code.z.float().cpu())
                if code.tokens is not None:
                    tokens.append(code.tokens.cpu())
                meter.update(meter.done + len(index))
        return Latents(
            torch.cat(rows) if rows else torch.zeros(0, *self.codec.latent_shape),
            labels=source.labels[indices] if source.labels is not None else None,
            captions=[source.captions[i] for i in indices] if source.captions is not None else None,
            # a process without a share of the examples still takes part in gathering them
            tokens=torch.cat([torch.zeros(0, height, width, dtype=torch.int64), *tokens])
            if hasattr(getattr(self.codec, "bottleneck", None), "lookup")
            else None,
        )

    def _noise(self, index: Tensor) -> Tensor:
        """(B, C, H, W): what the posteriors of the examples `index` are drawn with."""
        return rng.normal(self.seed, rng.POSTERIOR, index.to(self.device), self.codec.latent_shape)

    def describe(self, latents: Latents, stats: Stats, shards: int | None = None) -> Latents:
        """`latents` with what a reader must know: statistics, codec, classes and origin."""
        return latents._replace(
            shift=stats[0],
            scale=stats[1],
            codec=self.sha256,
            classes=self.source.info.classes,
            extra={**self.identity, **({"shards": shards} if shards else {})},
        )

    def shards(self, out: Out) -> None:
        """A folder of shards; those that are there already are kept.

        Shift and scale are measured on examples spread over the whole source and are the same in every shard.
        """
        n = len(self.source)
        count = -(-n // SHARD)
        stats = dist.on_main(lambda: self._claim(out))
        if stats is None:
            spread = torch.linspace(0, n - 1, min(n, SHARD)).round().long().tolist()
            stats = measure(gather(self.codes([spread[i] for i in dist.share(len(spread))])).z)
        todo = [k for k in range(count) if not _shard_path(out, k).exists()]
        dist.barrier()  # nobody writes before everybody has looked
        for i in dist.share(len(todo)):
            index = range(todo[i] * SHARD, min((todo[i] + 1) * SHARD, n))
            shard = self.describe(self.codes(list(index)), stats, count)
            io.save_latents(_shard_path(out, todo[i]), shard)
        dist.barrier()
        say(f"{count} shards, {count - len(todo)} of them were there already")
        emit({"out": str(out.path), "n": n} if self.config.json else out.path, self.config.json)

    def _claim(self, out: Out) -> Stats | None:
        """The statistics of the shards that are there already; with --fresh they are removed.

        Raises:
            InputError: they are of another codec, source or way of encoding.
        """
        shards = sorted(out.path.glob("[0-9]*.safetensors"))
        if self.config.fresh:
            for path in shards:
                path.unlink()
        if self.config.fresh or not shards:
            return None
        head = load_latents(shards[0])
        extra = {k: (head.extra or {}).get(k) for k in self.identity}
        changed = differences({"codec": head.codec, **extra}, {"codec": self.sha256, **self.identity})
        if changed:
            raise InputError(
                f"{shards[0]} was encoded otherwise ({'; '.join(changed)}); use --fresh or another -o"
            )
        return head.shift, head.scale


def _shard_path(out: Out, k: int) -> Path:
    return out.path / f"{k:05d}.safetensors"
