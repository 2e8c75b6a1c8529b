"""An image listing to a source: find size and channels, decode what fits in memory, stream the rest."""

import warnings
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ..errors import InputError
from .decode import GONE, BadImage, Header, header, open_image, parallel, reason, to_array
from .listing import Listing
from .resident import Resident, resident_images
from .store import Store
from .stream import Streaming

RESIDENT_LIMIT = 2 << 30  # bytes of decoded pixels
Size = tuple[int, int]


class Scan(NamedTuple):
    """What the first look at a file found: `bad` says why it is unusable, `pixels` is None unless kept."""

    header: Header | None = None
    pixels: np.ndarray | None = None
    bad: str = ""


class Plan(NamedTuple):
    """What to decode at the first look, before the sizes of all files are known."""

    size: Size | None  # as asked for; else the files' own
    channels: int | None  # as asked for; else the file's own
    guess: Size | None  # keep the pixels of files of this size, in the hope that all have it
    verify: bool  # decode even what is not kept


def load_images(
    name: str,
    listing: Listing,
    *,
    size: Size | None,
    channels: int | None,
    skip_bad: bool,
    limit: int = RESIDENT_LIMIT,
    workers: int | None = None,
) -> Resident | Streaming:
    """A source of the listed images: Resident when the decoded set is at most `limit` bytes, else Streaming.

    Raises:
        InputError: for unreadable files (Streaming: those with a bad header), unless `skip_bad`.
    """
    listing, scans = scan(listing, size, channels, skip_bad, limit)
    headers = [s.header for s in scans if s.header is not None]
    if channels is None:
        channels = 1 if all(h.grey for h in headers) else 3
    if size is None:
        size, notes = common_size(listing.store.path, headers)
    else:
        notes = changed(listing.store.path, headers, size, channels)
    listing = listing._replace(notes=listing.notes + notes)
    shape = (channels, *size)
    if len(listing.names) * channels * size[0] * size[1] > limit:
        return Streaming(name, listing, shape, workers)
    pixels = gather(listing, scans, channels, size)
    classes, labels, captions = listing.classes, listing.labels, listing.captions
    return resident_images(
        name,
        pixels,
        classes=classes,
        labels=labels,
        captions=captions,
        notes=listing.notes,
        names=listing.names,
    )


def scan(
    listing: Listing, size: Size | None, channels: int | None, skip_bad: bool, limit: int
) -> tuple[Listing, list[Scan]]:
    """The readable part of the listing, and the Scan of each of its files.

    Raises:
        InputError: when files are unreadable and not to be skipped, or none is readable.
    """
    store, names = listing.store, listing.names
    with warnings.catch_warnings():
        # The filter is the process's, so the threads see it too; a bomb must be refused before it decodes.
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        warnings.simplefilter("ignore", UserWarning)  # Pillow's on odd tags: what matters is an error as well
        first = next((h for h in (look(store, n, None).header for n in names[:100]) if h), None)
        guess = size or (first and (first.height, first.width))
        if guess and len(names) * guess[0] * guess[1] * (channels or 3) > limit:
            guess = None
        plan = Plan(size, channels, guess, verify=skip_bad)
        scans = parallel(lambda n: look(store, n, plan), names)
    bad = [i for i, s in enumerate(scans) if s.bad]
    if not bad:
        return listing, scans
    report = complaint(listing, [(i, scans[i].bad) for i in bad])
    if not skip_bad or len(bad) == len(names):
        raise InputError(report if skip_bad else report + ", or pass --skip-bad")
    good = [i for i, s in enumerate(scans) if not s.bad]
    note = f"{store.path}: {len(bad):,} of {len(names):,} images are unreadable and are left out"
    return select(listing, good)._replace(notes=[*listing.notes, note]), [scans[i] for i in good]


def look(store: Store, name: str, plan: Plan | None) -> Scan:
    """The Scan of one file; decoded as the plan says, or its header alone without one."""
    try:
        with store.open(name) as stream:
            image = open_image(stream)
            head = header(image)
            own = (head.height, head.width)
            keep = plan is not None and plan.guess is not None and plan.guess == (plan.size or own)
            if plan is None or not (keep or plan.verify):
                return Scan(head)
            pixels = to_array(image, plan.channels or (1 if head.grey else 3), plan.size or own)
            return Scan(head, pixels if keep else None)
    except BadImage as error:
        return Scan(bad=str(error))
    except OSError as error:
        return Scan(bad=reason(error))


def complaint(listing: Listing, bad: list[tuple[int, str]]) -> str:
    """One line on the unreadable files `bad`, (index, reason), with the names of the first few; a file that
    only a table knows of is the table's mistake."""
    root, names = listing.store.path, listing.names
    rows = [listing.rows[i] for i, why in bad if listing.rows is not None and why == GONE]
    if len(bad) == 1:
        i, why = bad[0]
        if rows:
            return f"{rows[0]}: {names[i]} {why}; correct or remove that row"
        return f"{root}/{names[i]} {why}; replace or remove it"
    listed = ", ".join(f"{names[i]} {why}" for i, why in bad[:3]) + (", …" if len(bad) > 3 else "")
    remedy = f"correct or remove their rows, the first being {rows[0]}" if rows else "replace or remove them"
    return f"{root}: {len(bad):,} of {len(names):,} images are unreadable ({listed}); {remedy}"


def select(listing: Listing, keep: list[int]) -> Listing:
    """The listing of examples `keep` only; the classes stay as they are."""
    return listing._replace(
        names=[listing.names[i] for i in keep],
        labels=None if listing.labels is None else [listing.labels[i] for i in keep],
        captions=None if listing.captions is None else [listing.captions[i] for i in keep],
        rows=None if listing.rows is None else [listing.rows[i] for i in keep],
    )


def changed(root: Path, headers: list[Header], size: Size, channels: int) -> list[str]:
    """A note where images are brought to another size, or from colour to grey, than their own."""
    others = sum((h.height, h.width) != size or (channels == 1 and not h.grey) for h in headers)
    kind = "grey" if channels == 1 else "RGB"
    note = f"{root}: {others:,} of {len(headers):,} images are brought to {size[1]}×{size[0]} {kind}"
    return [note] if others else []


def common_size(root: Path, headers: list[Header]) -> tuple[Size, list[str]]:
    """The (H, W) to bring all images to, with a note if they differ: a square of the commonest short side."""
    sizes = Counter((h.height, h.width) for h in headers)
    if len(sizes) == 1:
        return next(iter(sizes)), []
    sides = Counter(min(h.height, h.width) for h in headers)
    side = min(sides, key=lambda s: (-sides[s], s))
    low, high = min(sizes, key=lambda s: s[0] * s[1]), max(sizes, key=lambda s: s[0] * s[1])
    span = f"{low[1]}×{low[0]} to {high[1]}×{high[0]}"
    return (side, side), [f"{root}: sizes differ ({span}); resized and centre-cropped to {side}×{side}"]


def gather(listing: Listing, scans: list[Scan], channels: int, size: Size) -> np.ndarray:
    """(N, H, W, channels) uint8: the pixels that the scan kept where they fit, the others decoded now.

    Raises:
        InputError: when files cannot be decoded.
    """
    store, names = listing.store, listing.names
    pixels = np.empty((len(names), *size, channels), np.uint8)
    again = Plan(size, channels, size, verify=False)

    def fill(i: int) -> str:
        kept = scans[i].pixels
        if kept is None or kept.shape[:2] != size or kept.shape[2] > channels:
            late = look(store, names[i], again)
            if late.pixels is None:
                return late.bad
            kept = late.pixels
        pixels[i] = kept  # one channel spreads over three
        scans[i] = Scan()  # the copy is free to go
        return ""

    bad = [(i, why) for i, why in enumerate(parallel(fill, range(len(names)))) if why]
    if bad:
        raise InputError(complaint(listing, bad) + ", or pass --skip-bad")
    return pixels
