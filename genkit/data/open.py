"""A data source from what a person typed: a name, a folder, a zip, one image, or latents."""

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from ..errors import InputError, unknown
from .decode import fit, flatten, parallel
from .latents import open_latents, shards
from .listing import Listing, is_image, list_images
from .load import RESIDENT_LIMIT, Size, load_images
from .names import NAMES, load_named
from .resident import Resident, resident_images
from .store import Folder, Zip

if TYPE_CHECKING:
    from .stream import Streaming


def open_source(
    spec: str,
    *,
    root: Path | None = None,
    size: int | tuple[int, int] | None = None,
    channels: int | None = None,
    skip_bad: bool = False,
    need_labels: bool = False,
    limit: int = RESIDENT_LIMIT,
    workers: int | None = None,
) -> "Resident | Streaming":
    """The source that `spec` names: `NAME[:SPLIT]`, an image folder or `.zip`, an image, latents, `-` for stdin.

    root: where named data sets lie. size: a side or (height, width) that images are resized and cropped to, and
    channels 1 or 3: both follow the data when None. skip_bad: leave out unreadable images instead of raising.
    limit: decoded image files above this many bytes are streamed by `workers` processes instead of held in memory.

    Raises:
        InputError: one line that names the source and what to do.
    """
    wanted = check_size(size)
    if channels not in (None, 1, 3):
        raise InputError(f"channels must be 1 or 3, got {channels}")
    source = dispatch(spec, root, wanted, channels, skip_bad, limit, workers)
    if source.info.kind == "latents" and (size is not None or channels is not None):
        raise InputError(
            f"{spec} holds latents, whose size and channels are fixed; encode resized images instead"
        )
    if need_labels and not source.info.classes:
        remedy = "put images into one sub-folder for each class, or add a label column to metadata.csv"
        if source.info.kind == "latents":
            remedy = "encode a source that has labels"
        raise InputError(f"{spec} has no labels, and they are needed here; {remedy}")
    return source


def check_size(size: int | tuple[int, int] | None) -> Size | None:
    """`size` as (height, width)."""
    if size is None:
        return None
    pair = (size, size) if isinstance(size, int) else (size[0], size[1])
    if min(pair) < 4 or max(pair) > 8192:
        raise InputError(f"size must be from 4 to 8192 pixels a side, got {size}")
    return pair


def dispatch(
    spec: str,
    root: Path | None,
    size: Size | None,
    channels: int | None,
    skip_bad: bool,
    limit: int,
    workers: int | None,
) -> "Resident | Streaming":
    """The source of `spec` by its form; a data set's name goes before a folder of that name (`./NAME` is this)."""
    name, _, split = spec.partition(":")
    if name in NAMES:
        return named(spec, name, split or "train", root, size, channels)
    if spec == "-":
        return open_latents(spec, [])
    path = existing(spec)
    if path.is_dir() and (files := shards(path)):
        return open_latents(spec, files)
    if path.suffix.lower() == ".safetensors":
        return open_latents(spec, [path])
    return load_images(
        spec,
        listing(path),
        size=size,
        channels=channels,
        skip_bad=skip_bad,
        limit=limit,
        workers=workers,
    )


def existing(spec: str) -> Path:
    """The path `spec`.

    Raises:
        InputError: when there is none, with the data set's name that may have been meant.
    """
    path = Path(spec).expanduser()
    if path.exists():
        return path
    name = spec.partition(":")[0]
    if not spec or "/" in spec or "\\" in spec or path.suffix:
        raise InputError(
            f"data source {spec!r} does not exist; it is no file, no folder and no name of a data set"
        )
    raise InputError(f"{unknown('data source', name, NAMES)}; nor is there a folder {name!r} here")


def listing(path: Path) -> Listing:
    """The images in a folder, a zip or a single file."""
    if path.is_dir():
        return list_images(Folder(path))
    if path.suffix.lower() == ".zip":
        return list_images(Zip(path))
    if is_image(path.name):
        return Listing(Folder(path.parent), [path.name], (), None, None, [])
    kinds = "a folder or .zip of images, an image, or a .safetensors file of latents"
    raise InputError(f"{path} is not a data source; give {kinds}")


def named(
    spec: str, name: str, split: str, root: Path | None, size: Size | None, channels: int | None
) -> Resident:
    """A data set by name, brought to the size and channels asked for."""
    data = load_named(name, split, root, max(size) if size else None)
    pixels = convert(data.pixels, size, channels)
    return resident_images(spec, pixels, classes=data.classes, labels=data.labels, captions=data.captions)


def convert(pixels: np.ndarray, size: Size | None, channels: int | None) -> np.ndarray:
    """(N, H, W, C) uint8 pixels at another size and number of channels."""
    size = size or pixels.shape[1:3]
    channels = channels or pixels.shape[3]
    if pixels.shape[1:] == (*size, channels):
        return pixels
    mode = "L" if channels == 1 else "RGB"

    def one(array: np.ndarray) -> np.ndarray:
        image = Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)
        return np.asarray(fit(flatten(image, mode), size)).reshape(*size, channels)

    return np.stack(parallel(one, pixels))
