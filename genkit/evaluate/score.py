"""The comparison of a fake and a real set of images, and every remark that a person should read beside it."""

from collections.abc import Callable, Sequence
from itertools import combinations
from typing import NamedTuple

import torch

from .. import dist
from ..data.source import ImageSource
from ..errors import InputError, unknown
from .cache import Found, statistics_of
from .extractors import CLASSIFIER, Extractor
from .features import count
from .metrics import confidence, fid, fid_interval, inception_score, kid, precision_recall
from .statistics import Statistics
from .subset import spread

METRICS = ("fid", "kid", "prc", "isc")
ENOUGH = 2048  # images below which the covariance of Inception's 2048 features is singular
Progress = Callable[[str, int, int], None]  # (name of the source, images done, images to do)


class Scores(NamedTuple):
    """What `eval-fid` prints; None for what was not asked or cannot be known."""

    fake: str
    real: str
    n_fake: int | None
    n_real: int | None
    size_fake: tuple[int, int, int] | None  # (C, H, W)
    size_real: tuple[int, int, int] | None
    extractor: str
    resize: str
    fid: float | None = None
    fid_low: float | None = None
    fid_high: float | None = None
    fid_error: float | None = None
    kid: float | None = None
    kid_std: float | None = None
    precision: float | None = None
    recall: float | None = None
    isc: float | None = None
    isc_std: float | None = None
    confident: float | None = None
    accuracy: float | None = None  # share of labelled fake images that the classifier gives their label
    entropy: float | None = None
    classes: float | None = None
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def score(
    fake: ImageSource | Statistics,
    real: ImageSource | Statistics,
    extractor: Extractor | None,
    metrics: Sequence[str] = ("fid", "kid"),
    *,
    limit: int | None = None,
    cache: bool = True,
    seed: int = 0,
    batch_size: int = 128,
    progress: Progress | None = None,
) -> Scores | None:
    """The scores of `fake` against `real`; None in every process of torchrun but the first, which has them.

    extractor: may be None where both sets are statistics. limit: so many images of each set, spread over it.
    cache: whether statistics of real images are read from and put into the cache. seed: of the bootstrap.

    Raises:
        InputError: an unknown metric, too few images, statistics of another extractor, or a metric that needs
            more of a set than its statistics hold.
    """
    _check_request(fake, real, extractor, metrics, limit)
    pairs = not {"kid", "prc"}.isdisjoint(metrics)

    def obtain(images: ImageSource | Statistics, cache: bool) -> Found:
        if isinstance(images, Statistics):
            return Found(images)
        if extractor is None:
            raise ValueError("an extractor is needed to measure images")
        name = images.info.name
        told = None if progress is None else lambda done, total: progress(name, done, total)
        return statistics_of(
            images, extractor, limit=limit, features=pairs, cache=cache, batch_size=batch_size, progress=told
        )

    ours, theirs = obtain(fake, False), obtain(real, cache)
    if not dist.is_main():
        return None
    scores = compare(ours.statistics, theirs.statistics, extractor, metrics, seed=seed, notes=theirs.notes)
    return scores._replace(accuracy=_accuracy(fake, ours.statistics, extractor))


def _accuracy(fake: ImageSource | Statistics, found: Statistics, extractor: Extractor | None) -> float | None:
    """The share of `fake` that a classifier gives its own label, where both know the classes by one name."""
    if isinstance(fake, Statistics) or fake.labels is None or found.logits is None or extractor is None:
        return None
    if not set(fake.info.classes) <= set(extractor.names):
        return None
    index = torch.tensor([extractor.names.index(name) for name in fake.info.classes])
    answer = found.logits.argmax(dim=1).cpu()
    asked = fake.labels[spread(len(fake), len(answer))]
    return (answer == index[asked]).double().mean().item()


def compare(
    fake: Statistics,
    real: Statistics,
    extractor: Extractor | None,
    metrics: Sequence[str],
    *,
    seed: int = 0,
    notes: tuple[str, ...] = (),
) -> Scores:
    """The scores of two sets that are measured already; `notes` come first among the notes."""
    scores = Scores(
        fake=fake.name,
        real=real.name,
        n_fake=fake.n,
        n_real=real.n,
        size_fake=fake.size,
        size_real=real.size,
        extractor=fake.extractor or real.extractor or (extractor.identity if extractor else "unknown"),
        resize=extractor.note if extractor else "as in the statistics files",
        warnings=_warnings(fake, real),
        notes=notes + _notes(fake, real, metrics),
    )
    if "fid" in metrics:
        scores = _with_fid(scores, fake, real, seed)
    if "kid" in metrics and fake.features is not None and real.features is not None:
        estimate = kid(fake.features, real.features)
        scores = scores._replace(kid=estimate.value, kid_std=estimate.spread)
    if "prc" in metrics and fake.features is not None and real.features is not None:
        scores = scores._replace(**precision_recall(fake.features, real.features)._asdict())
    if "isc" in metrics and fake.logits is not None:
        estimate = inception_score(fake.logits)
        scores = scores._replace(isc=estimate.value, isc_std=estimate.spread)
    if fake.logits is not None and (fake.extractor or "").startswith(CLASSIFIER):
        scores = scores._replace(**confidence(fake.logits)._asdict())
    return scores


def _with_fid(scores: Scores, fake: Statistics, real: Statistics, seed: int) -> Scores:
    value = fid(fake, real)
    if fake.features is None:
        return scores._replace(fid=value)
    interval = fid_interval(value, fake.features, fake, real, seed=seed)
    return scores._replace(fid=value, fid_low=interval.low, fid_high=interval.high, fid_error=interval.error)


def _check_request(
    fake: ImageSource | Statistics,
    real: ImageSource | Statistics,
    extractor: Extractor | None,
    metrics: Sequence[str],
    limit: int | None,
) -> None:
    """Everything that can be wrong is found before an image is read."""
    for metric in metrics:
        if metric not in METRICS:
            raise unknown("metric", metric, METRICS)
    if not metrics:
        raise InputError(f"no metric was asked for; choose from {', '.join(METRICS)}")
    for images in (fake, real):
        if not isinstance(images, Statistics):
            count(images, limit)
            continue
        if images.features is None and not {"kid", "prc"}.isdisjoint(metrics):
            raise InputError(
                f"{images.name} holds a mean and a covariance only, while KID, precision and recall compare "
                "features image by image; give the images themselves, or --metrics fid"
            )
    if "isc" in metrics:
        _check_logits(fake, extractor)
    _check_extractors(fake, real, extractor)


def _check_logits(fake: ImageSource | Statistics, extractor: Extractor | None) -> None:
    if isinstance(fake, Statistics):
        if fake.logits is None:
            raise InputError(
                f"{fake.name} holds no class scores, which isc needs; give the images, or --metrics fid"
            )
    elif extractor is not None and not extractor.classes:
        raise InputError(f"{extractor.identity} has no classes, which isc needs; leave isc out of --metrics")


def _check_extractors(
    fake: ImageSource | Statistics, real: ImageSource | Statistics, extractor: Extractor | None
) -> None:
    """Both sets must be measured in the same way: by `extractor`, or by whoever made the statistics."""
    known: list[tuple[str, str | None, int]] = []
    if extractor is not None:
        known.append(("this run", extractor.identity, extractor.dim))
    known += [(s.name, s.extractor, len(s.mu)) for s in (fake, real) if isinstance(s, Statistics)]
    for (name, identity, dim), (other, its_identity, its_dim) in combinations(known, 2):
        if dim != its_dim:
            raise InputError(f"{other} has {its_dim} features and {name} {dim}; choose --features to match")
        if identity and its_identity and identity != its_identity:
            raise InputError(
                f"{other} was measured by {its_identity}, {name} by {identity}; choose --features to match"
            )


def _warnings(fake: Statistics, real: Statistics) -> tuple[str, ...]:
    """What makes the numbers less than they seem."""
    found = []
    for role, s in (("fake", fake), ("real", real)):
        if s.n is not None and s.n < ENOUGH:
            found.append(
                f"n = {s.n:,} < {ENOUGH:,} {role} images: FID is biased upwards at this size; look at KID"
            )
    if fake.size and real.size and fake.size != real.size:
        found.append(
            f"fake images are {_size(fake.size)}, real ones {_size(real.size)}: "
            "the scores measure that difference too"
        )
    if fake.fingerprint and fake.fingerprint == real.fingerprint:
        found.append(f"{fake.name} and {real.name} are the same images")
    return tuple(found)


def _notes(fake: Statistics, real: Statistics, metrics: Sequence[str]) -> tuple[str, ...]:
    """What is unknown."""
    found = [
        f"{s.name} does not say by which network it was measured; the scores hold only if it was this one"
        for s in (fake, real)
        if s.extractor is None
    ]
    if "fid" in metrics and fake.features is None:
        found.append(f"no interval: {fake.name} holds no features to resample")
    return tuple(found)


def _size(shape: tuple[int, int, int]) -> str:
    channels, height, width = shape
    return f"{width}x{height} {'grey' if channels == 1 else 'RGB'}"
