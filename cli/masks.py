"""The masks of inpaint: one picture for all images, or a folder of one an image."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from genkit.data.listing import common, list_images
from genkit.data.source import Source
from genkit.data.store import Folder
from genkit.errors import InputError
from genkit.io.tensors import digest

from .console import say


class Masks(NamedTuple):
    """hole: (n, 1, H, W) bool, True where image i is filled in; sha256: of what was read."""

    hole: Tensor
    sha256: str


def read_masks(path: Path, source: Source, n: int) -> Masks:
    """The masks of the first n images of `source`: the picture at `path` for each, or its own of that folder.

    A folder is read as far as it has masks for the source's images, so that more of them can follow.

    Raises:
        InputError: an image has no mask, or a mask cannot be meant; see `match` and `read_mask`.
    """
    size = source.info.shape[1:]
    if not path.is_dir():
        hole = read_mask(path, size)
        return Masks(hole.expand(n, 1, *size), digest({"mask": hole}))
    found = match(path, list_images(Folder(path)).names, source, n)
    holes = torch.stack([read_mask(path / name, size) for name in found.values()])
    return Masks(holes[:n, None], digest({"mask": holes, "image": torch.tensor(list(found))}))


def match(path: Path, masks: list[str], source: Source, n: int) -> dict[int, str]:
    """Place of an image in `source` -> its mask among the files `masks` of the folder `path`, for the first n
    images and those after them that have one, in rising order.

    By file name, whatever the suffix; where no image has a name that a mask has, in order.

    Raises:
        InputError: some of the first n images have a mask of their name and one has none, or the order is to
            decide and the counts differ.
    """
    found = by_name(masks, source.names) if source.names is not None else {}
    if not found:
        if len(masks) not in (n, len(source)):
            raise InputError(
                f"--mask {path} holds {len(masks)} masks, none of an image's name, for {n} images; name them "
                "as the images are, or give one for each"
            )
        why = "images have no names" if source.names is None else "masks have other names than the images"
        say(f"note: the {why}, and the masks of {path} are taken in order")
        return dict(enumerate(masks))
    lacking = next((k for k in range(n) if k not in found), None)
    if lacking is not None:
        assert source.names is not None
        raise InputError(
            f"{source.names[lacking]} of {source.info.name} has no mask of its name in --mask {path}, which "
            f"has {len(found)} of the others; add it"
        )
    if len(found) < len(masks):
        say(f"note: {len(masks) - len(found)} masks of {path} are of no image and are left out")
    return found


def by_name(masks: Sequence[str], images: Sequence[str]) -> dict[int, str]:
    """Place of an image -> the mask of its name, in rising order.

    By the bare names where these tell files apart, else by the paths below the common folder, without
    suffixes and at last with them.
    """
    for theirs, mine in zip(spellings(masks), spellings(images)):
        if len(set(theirs)) == len(masks) and len(set(mine)) == len(images):
            break
    of = dict(zip(theirs, masks))
    return {k: of[name] for k, name in enumerate(mine) if name in of}


def spellings(names: Sequence[str]) -> tuple[list[str], list[str], list[str]]:
    """(bare names, paths below the common folder without suffixes, those paths) of files."""
    root = common(list(names))
    below = [name.removeprefix(root).lstrip("/") for name in names]
    return (
        [PurePosixPath(n).stem for n in names],
        [str(PurePosixPath(n).with_suffix("")) for n in below],
        below,
    )


def read_mask(path: Path, size: tuple[int, ...]) -> Tensor:
    """(H, W) bool of a black and white picture: True where it is white, the part to fill in.

    Raises:
        InputError: it cannot be read, has another size, other values than 0 and 255, or nothing white.
    """
    try:
        with Image.open(path) as image:
            grey = image.convert("L")
    except FileNotFoundError:
        raise InputError(f"--mask {path} does not exist") from None
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise InputError(f"--mask {path} is not a readable picture ({error})") from None
    values = torch.frombuffer(bytearray(grey.tobytes()), dtype=torch.uint8).reshape(grey.height, grey.width)
    if tuple(values.shape) != tuple(size):
        raise InputError(
            f"--mask {path} has {grey.width}x{grey.height} pixels and the images {size[1]}x{size[0]}; "
            "they must agree"
        )
    strange = values[(values != 0) & (values != 255)]
    if len(strange):
        raise InputError(
            f"--mask {path} holds the value {int(strange[0])}; a mask has only 0 (kept) and 255 (filled in)"
        )
    if not values.any():
        raise InputError(f"--mask {path} is all black; paint what is to be filled in white")
    return values > 0
