"""Features of the images of a source, extracted in batches and shared among the processes of torchrun."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
import torch.distributed
from torch import Tensor

from .. import dist
from ..data.source import ImageSource
from ..errors import InputError, RunError
from .extractors import Extractor, Features
from .subset import spread

Progress = Callable[[int, int], None]  # (images done, images to do) in this process


def count(source: ImageSource, limit: int | None = None) -> int:
    """How many images of `source` are measured: `limit` of them, or all.

    Raises:
        InputError: that is fewer than the two which a covariance needs, or they are no images.
    """
    info = source.info
    if info.kind != "images":
        raise InputError(f"{info.name} holds {info.kind}; decode them into images first (genkit decode)")
    n = len(source) if limit is None else min(limit, len(source))
    if n < 2:
        raise InputError(f"{info.name}: at least 2 images are needed to measure a distribution, got {n}")
    return n


def extract(
    source: ImageSource,
    extractor: Extractor,
    *,
    limit: int | None = None,
    batch_size: int = 128,
    progress: Progress | None = None,
) -> Features:
    """Features of `limit` images spread over the source (or all), on the CPU and in its order.

    Under torchrun each process works on its own part of the range and all receive the whole.

    Raises:
        InputError: too few images, or no images.
        RunError: the extractor gives NaN or infinity.
    """
    n = count(source, limit)
    chosen, mine = spread(len(source), n), dist.share(n)
    features, logits = torch.empty(len(mine), extractor.dim), torch.empty(len(mine), extractor.classes)
    done = 0
    # a process may have no image at all
    chunks = chosen[mine.start : mine.stop].split(batch_size) if len(mine) else ()
    for images in _read_ahead(source, chunks):
        found, rows = extractor(images), slice(done, done + len(images))
        features[rows] = found.features
        if found.logits is not None:
            logits[rows] = found.logits
        done += len(images)
        if progress:
            progress(done, len(mine))
    features, logits = _gather(features, n, extractor.device), _gather(logits, n, extractor.device)
    if not (features.isfinite().all() and logits.isfinite().all()):
        raise RunError(
            f"{extractor.identity} gives NaN or infinity for {source.info.name}; its weights are unusable"
        )
    return Features(features, logits if extractor.classes else None)


def _read_ahead(source: ImageSource, chunks: Sequence[Tensor]) -> Iterator[Tensor]:
    """The images of each chunk; a thread reads the next, so that decoding PNGs overlaps with the network."""
    with ThreadPoolExecutor(1) as pool:
        ahead = [pool.submit(source.uint8, chunk) for chunk in chunks[:1]]
        for chunk in chunks[1:]:
            images = ahead.pop().result()
            ahead.append(pool.submit(source.uint8, chunk))
            yield images
        for last in ahead:
            yield last.result()


def _gather(mine: Tensor, n: int, device: torch.device) -> Tensor:
    """Every process's rows in rank order. `dist.share` gives them n / world or one more: pad, then cut."""
    if not torch.distributed.is_initialized():
        return mine
    longest, world = -(-n // dist.world()), dist.world()
    padded = torch.zeros(longest, mine.shape[1], device=device)
    padded[: len(mine)] = mine
    parts = [torch.empty_like(padded) for _ in range(world)]
    torch.distributed.all_gather(parts, padded)
    lengths = [n * (r + 1) // world - n * r // world for r in range(world)]
    return torch.cat([part[:length] for part, length in zip(parts, lengths)]).cpu()
