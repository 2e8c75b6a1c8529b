"""A data source from what a person typed: a name, a folder, a zip, one image, or latents."""

from pathlib import Path

from ..errors import InputError, unknown
from .decode import convert
from .latents import is_tensors, open_tensors
from .listing import Listing, is_image, list_images
from .load import RESIDENT_LIMIT, Size, load_images
from .names import NAMES, load_named
from .resident import Resident, resident_images
from .store import Folder, Zip
from .stream import Streaming

LABELLING = "put images into one sub-folder for each class, or give metadata.csv a label column"


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
) -> Resident | Streaming:
    """The source `spec` names: `NAME[:SPLIT]`, a folder or `.zip` of images, an image, latents, `-` (stdin).

    root: folder of named data sets. size: side or (height, width) to fit images to.
    channels: 1 or 3; both follow the data when None. skip_bad: leave out unreadable images, do not raise.
    limit: image files that decode to more bytes are streamed by `workers` processes, not held in memory.

    Raises:
        InputError: one line that names the source and what to do.
    """
    wanted = check_size(size)
    if channels not in (None, 1, 3):
        raise InputError(f"channels must be 1 or 3, got {channels}")
    name, _, split = spec.partition(":")
    source: Resident | Streaming
    if name in NAMES:
        data = load_named(name, split or "train", root, max(wanted) if wanted else None)
        pixels = convert(data.pixels, wanted, channels)
        before, after = data.pixels.shape[1:], pixels.shape[1:]
        notes = [f"images of {spec} are brought from {spelled(before)} to {spelled(after)}"]
        source = resident_images(
            spec,
            pixels,
            classes=data.classes,
            labels=data.labels,
            captions=data.captions,
            notes=notes if before != after else (),
        )
    elif spec == "-" or is_tensors(existing(spec)):
        source = open_tensors(spec, None if spec == "-" else existing(spec), wanted, channels)
    else:
        found = listing(existing(spec))
        source = load_images(
            spec,
            found,
            size=wanted,
            channels=channels,
            skip_bad=skip_bad,
            limit=limit,
            workers=workers,
        )
    if need_labels and not source.info.classes:
        raise InputError(f"{spec} has no labels, and labels are needed here; {LABELLING}")
    return source


def spelled(shape: tuple[int, ...]) -> str:
    """A (height, width, channels) as a person writes it: 28×28 grey."""
    height, width, channels = shape
    return f"{width}×{height} {'grey' if channels == 1 else 'RGB'}"


def check_size(size: int | tuple[int, int] | None) -> Size | None:
    """`size` as (height, width)."""
    if size is None:
        return None
    pair = (size, size) if isinstance(size, int) else (size[0], size[1])
    if min(pair) < 4 or max(pair) > 8192:
        raise InputError(f"size must be from 4 to 8192 pixels a side, got {size}")
    return pair


def existing(spec: str) -> Path:
    """The path `spec`.

    Raises:
        InputError: when there is none, with the data set's name that may have been meant.
    """
    try:
        path = Path(spec).expanduser()
        if spec and path.exists():
            return path
    except (OSError, RuntimeError) as error:
        raise InputError(f"data source {spec!r} cannot be opened: {error}") from None
    name = spec.partition(":")[0]
    if not spec or "/" in spec or "\\" in spec or path.suffix:
        raise InputError(
            f"data source {spec!r} does not exist; it is no file, no folder and no name of a data set"
        )
    raise InputError(f"{unknown('data source', name, NAMES)}; nor is there a folder {name!r} here")


def listing(path: Path) -> Listing:
    """The images in a folder, a zip or a single file."""
    if (path / "model.safetensors").exists():
        raise InputError(f"{path} is a training run, not data; name it with -m, or name a folder in it")
    if path.is_dir():
        return list_images(Folder(path))
    if path.suffix.lower() == ".zip":
        return list_images(Zip(path))
    if is_image(path.name):
        return Listing(Folder(path.parent), [path.name], (), None, None, [])
    kinds = "a folder or .zip of images, an image, or a .safetensors file of latents"
    raise InputError(f"{path} is not a data source; give {kinds}")
