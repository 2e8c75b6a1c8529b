"""Statistics of real data, kept between runs under the fingerprint of everything they depend on."""

import hashlib
import json
from pathlib import Path
from typing import NamedTuple

import torch_fidelity

from .. import cache, dist
from ..data.source import ImageSource, Info
from ..errors import InputError, RunError
from ..io.checkpoint import versions
from .extractors import Extractor
from .features import Progress, count, extract
from .statistics import Statistics, load_statistics, measure, save_statistics

_FEATURE_BYTES = 500_000_000  # features up to this size are kept in the file: 50,000 of Inception


class Found(NamedTuple):
    """Statistics, and what a person should know about where they came from."""

    statistics: Statistics
    notes: tuple[str, ...] = ()


def cache_path(info: Info, extractor: Extractor, n: int) -> Path:
    """The file for `n` of the images: statistics/SHA.safetensors in $GENKIT_CACHE or ~/.cache/genkit.

    SHA covers the data, the weights, which images are measured and the versions of the code in between: there
    is nothing to go stale.
    """
    code = {**versions(), "torch-fidelity": torch_fidelity.__version__}
    chosen = n if n == info.count else [n, "spread"]  # the first n, once
    key = json.dumps(
        [info.fingerprint, info.shape, extractor.identity, extractor.note, chosen, code], sort_keys=True
    )
    return cache.folder() / "statistics" / f"{hashlib.sha256(key.encode()).hexdigest()}.safetensors"


def statistics_of(
    source: ImageSource,
    extractor: Extractor,
    *,
    limit: int | None = None,
    features: bool = False,
    cache: bool = True,
    batch_size: int = 128,
    progress: Progress | None = None,
) -> Found:
    """Statistics of a source, from the cache where they are, else measured and put there.

    features: whether the features themselves are needed (KID, precision and recall), so that a cached file
    without them will not do. A source without a fingerprint is never cached.

    Raises:
        InputError: too few images, or no images.
    """
    info, n = source.info, count(source, limit)
    path = cache_path(info, extractor, n) if cache and info.fingerprint else None
    kept, notes = _look_up(path, info, extractor, n, features)
    # all processes must agree, as machines may not share a home folder and extraction is a joint work
    if not dist.any_of(kept is None, extractor.device) and kept is not None:
        return Found(kept, notes)
    found = extract(source, extractor, limit=limit, batch_size=batch_size, progress=progress)
    statistics = measure(found, info, extractor)
    if path is not None and dist.is_main():
        notes += _store(path, statistics)
    return Found(statistics, notes)


def _look_up(
    path: Path | None, info: Info, extractor: Extractor, n: int, features: bool
) -> tuple[Statistics | None, tuple[str, ...]]:
    if path is None or not path.is_file():
        return None, ()
    try:
        kept = load_statistics(path)
    except InputError as error:
        return None, (f"the cached statistics are damaged and were made again ({error})",)
    if (kept.fingerprint, kept.extractor, kept.n) != (info.fingerprint, extractor.identity, n):
        return None, (f"{path} is not what its name says and was made again",)
    if features and kept.features is None:
        return None, ()
    return kept._replace(name=info.name), (f"statistics of {info.name} from the cache: {path}",)


def _store(path: Path, statistics: Statistics) -> tuple[str, ...]:
    rows = [t for t in (statistics.features, statistics.logits) if t is not None]
    if sum(t.nbytes for t in rows) > _FEATURE_BYTES:
        statistics = statistics._replace(features=None, logits=None)
    try:
        save_statistics(path, statistics)
    except RunError as error:  # a read-only home must not cost the result
        return (f"the statistics of {statistics.name} were not cached ({error})",)
    return ()
