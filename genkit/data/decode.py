"""One image file to a uint8 array: every mode, over white, upright, fitted to a size."""

import os
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import BinaryIO, NamedTuple, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

T = TypeVar("T")
R = TypeVar("R")

MIN_SIDE = 4
GONE = "does not exist"
ORIENTATION = 0x0112  # the EXIF tag; values from 5 on exchange width and height
# What Pillow's plugins raise on damaged files, by fuzzing and by its own handlers.
DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    EOFError,
    OverflowError,
    AttributeError,
    RuntimeError,
    struct.error,
    zlib.error,
)
BOMB = (Image.DecompressionBombError, Image.DecompressionBombWarning)


class BadImage(ValueError):
    """A file that is no usable image; the message continues the sentence that the file's name begins."""


class Header(NamedTuple):
    """What a file says about its image before a pixel is decoded."""

    height: int
    width: int
    grey: bool


@contextmanager
def told() -> Iterator[None]:
    """Whatever Pillow raises inside as a BadImage that gives the reason."""
    try:
        yield
    except BadImage:
        raise
    except UnidentifiedImageError:
        raise BadImage("is not an image") from None
    except BOMB:
        raise BadImage(f"has more than {Image.MAX_IMAGE_PIXELS:,} pixels") from None
    except DAMAGED as error:
        raise BadImage(reason(error)) from None


def open_image(stream: BinaryIO) -> Image.Image:
    """The undecoded image in `stream`. A warning about its size must have been made an error by the caller.

    Raises:
        BadImage: not an image, more pixels than Pillow's limit, fewer than 4 a side, or several frames.
    """
    with told():
        image = Image.open(stream)
        # Phones append a second picture (gain map, depth) to a JPEG and call it MPO: the first is the photo.
        frames = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if frames > 1:
        raise BadImage(f"is an animation of {frames} frames, not one image")
    if min(image.size) < MIN_SIDE:
        raise BadImage(f"is {image.width}×{image.height} pixels, smaller than {MIN_SIDE} a side")
    return image


def reason(error: Exception) -> str:
    """Why a file could not be read, as the end of a sentence that begins with its name."""
    if isinstance(error, FileNotFoundError):
        return GONE
    if isinstance(error, OSError) and error.strerror:
        return f"cannot be read ({error.strerror})"
    return f"is damaged ({' '.join(str(error).split()) or type(error).__name__})"


def header(image: Image.Image) -> Header:
    """Height, width (upright) and greyness of an opened image.

    Raises:
        BadImage: when the palette or the orientation cannot be read.
    """
    with told():
        turned = "exif" in image.info and image.getexif().get(ORIENTATION, 1) >= 5
        width, height = reversed(image.size) if turned else image.size
        return Header(height, width, is_grey(image))


def is_grey(image: Image.Image) -> bool:
    """Whether the mode, or the palette, can hold nothing but grey."""
    if image.mode in ("P", "PA"):
        colours = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
        return bool((colours == colours[:, :1]).all())
    return image.mode in ("1", "L", "LA", "La", "I") or image.mode.startswith("I;16")


def to_array(image: Image.Image, channels: int, size: tuple[int, int]) -> np.ndarray:
    """(H, W, channels) uint8 of an opened image: over white, upright, fitted to `size` = (H, W).

    Raises:
        BadImage: when the pixels cannot be decoded.
    """
    with told():
        image.load()
        if "exif" in image.info:
            image = ImageOps.exif_transpose(image)
        array = np.asarray(fit(flatten(image, "L" if channels == 1 else "RGB"), size))
    return array.reshape(*size, channels)


def flatten(image: Image.Image, mode: str) -> Image.Image:
    """The image in `mode` ("L" or "RGB"), transparency over white, 16 bits a channel scaled to 8."""
    if image.mode == "F":
        raise BadImage("holds floating-point pixels, whose range is unknown; save it with 8 or 16 bits")
    if image.mode == "I" or image.mode.startswith("I;16"):
        wide = np.asarray(image).astype(np.float64).clip(0, 65535)
        image = Image.fromarray(np.rint(wide / 257).astype(np.uint8))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        white = Image.new("RGB", image.size, (255, 255, 255))
        white.paste(image, mask=image.getchannel("A"))
        image = white
    return image if image.mode == mode else image.convert(mode)


def fit(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """The image resized (Lanczos, antialiased) to cover `size` = (H, W), and its centre cut out."""
    height, width = size
    if image.size == (width, height):
        return image
    shrink = min(image.width / width, image.height / height)
    left, top = (image.width - shrink * width) / 2, (image.height - shrink * height) / 2
    left, top = max(left, 0.0), max(top, 0.0)
    box = (left, top, image.width - left, image.height - top)
    return image.resize((width, height), Image.Resampling.LANCZOS, box)


def cpus() -> int:
    """CPU cores for this process, its share when torchrun started several on the machine."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, count // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def parallel(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """[function(item) for item in items] over threads: Pillow decodes and resizes without holding the GIL."""
    chunk = 32  # small enough to balance large photos, large enough to hide the pool's own cost

    def run(start: int) -> list[R]:
        return [function(item) for item in items[start : start + chunk]]

    with ThreadPoolExecutor(min(8, cpus())) as pool:
        return [result for part in pool.map(run, range(0, len(items), chunk)) for result in part]


def convert(pixels: np.ndarray, size: tuple[int, int] | None, channels: int | None) -> np.ndarray:
    """(N, H, W, C) uint8 pixels at another size and number of channels."""
    size = size or pixels.shape[1:3]
    channels = channels or pixels.shape[3]
    if pixels.shape[1:] == (*size, channels):
        return pixels
    mode = "L" if channels == 1 else "RGB"

    def one(array: np.ndarray) -> np.ndarray:
        image = Image.fromarray(array[..., 0] if array.shape[-1] == 1 else array)
        return np.asarray(fit(flatten(image, mode), size)).reshape(*size, channels)

    return np.stack(parallel(one, list(pixels)))
