"""Which images a folder or zip holds, with their classes and captions."""

import posixpath
from typing import NamedTuple

from ..errors import InputError
from .metadata import Row, read_metadata
from .store import Store

# fmt: off
SUFFIXES = (
    ".avif", ".bmp", ".gif", ".jfif", ".jp2", ".jpe", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".pnm", ".ppm",
    ".tga", ".tif", ".tiff", ".webp",
)
# fmt: on
METADATA = ("metadata.csv", "metadata.jsonl")


class Listing(NamedTuple):
    """The images of a store in order; labels and captions are parallel to names."""

    store: Store
    names: list[str]
    classes: tuple[str, ...]
    labels: list[int] | None
    captions: list[str] | None
    notes: list[str]
    rows: list[str] | None = None  # parallel to names: the table's line that names each


def is_image(name: str) -> bool:
    """Whether the suffix, in any case, is that of an image file."""
    return posixpath.splitext(name)[1].lower() in SUFFIXES


def list_images(store: Store) -> Listing:
    """The images below the root, sorted by path: those a `metadata.csv` or `.jsonl` at the top names, or all.

    A top folder that holds everything (as in a zipped folder) is looked through. `grid.png` at the top is the
    overview that genkit writes beside its images, not one of them.

    Raises:
        InputError: when there is no image, or the metadata is wrong.
    """
    names = store.names()
    images = [n for n in names if is_image(n)]
    top = common(images)
    tables = [n for n in names if posixpath.basename(n) in METADATA and above(n, top)]
    if len(tables) > 1:
        raise InputError(f"{store.path} has both {tables[0]} and {tables[1]}; keep one")
    if tables:
        return from_rows(store, posixpath.dirname(tables[0]), read_metadata(store, tables[0]), images)
    images = [n for n in images if n != posixpath.join(top, "grid.png")]
    if not images:
        raise InputError(f"{store.path} holds no images ({', '.join(SUFFIXES)})")
    return from_folders(store, images)


def common(names: list[str]) -> str:
    """The innermost folder that contains all of `names`."""
    return posixpath.commonpath([posixpath.dirname(n) for n in names]) if names else ""


def above(name: str, folder: str) -> bool:
    """Whether file `name` lies in `folder` or in a folder that contains it."""
    parent = posixpath.dirname(name)
    return parent in ("", folder) or folder.startswith(parent + "/")


def from_folders(store: Store, images: list[str]) -> Listing:
    """A Listing whose classes are the sub-folders; none where all lie in one, or images lie beside these."""
    top = common(images)
    groups = [group(n, top) for n in images]
    classes, labels = classify(groups) if "" not in groups else ((), None)
    notes = []
    if labels is None and any(groups):
        notes.append(
            f"{store.path}: images lie beside the sub-folders too, so no classes are taken from these"
        )
    return Listing(store, images, classes, labels, None, notes)


def group(name: str, top: str) -> str:
    """The sub-folder of `top` that `name` lies in, "" for `top` itself."""
    below = name[len(top) + 1 :] if top else name
    return below.split("/")[0] if "/" in below else ""


def from_rows(store: Store, top: str, rows: list[Row], images: list[str]) -> Listing:
    """A Listing of the images that the metadata names; without a label column, classes are sub-folders."""
    rows = sorted(rows, key=lambda row: row.name)
    names = [row.name for row in rows]
    listing = from_folders(store, names)
    if any(row.label is not None for row in rows):
        classes, labels = classify([row.label or "" for row in rows])
        listing = listing._replace(classes=classes, labels=labels)
    if any(row.caption is not None for row in rows):
        listing = listing._replace(captions=[row.caption or "" for row in rows])
    left = len(set(images) - set(names) - {posixpath.join(top, "grid.png")})
    notes = [f"{store.path}: {left:,} images are not in the metadata and are left out"] if left else []
    return listing._replace(notes=notes, rows=[row.where for row in rows])


def classify(words: list[str]) -> tuple[tuple[str, ...], list[int]]:
    """(class names in order, index of each word): numbers in numerical order, otherwise alphabetical."""
    unique = set(words)
    numbers = all(w.isascii() and w.isdigit() for w in unique)
    classes = sorted(unique, key=lambda w: (int(w), w) if numbers else (0, w))
    index = {w: i for i, w in enumerate(classes)}
    return tuple(classes), [index[w] for w in words]
