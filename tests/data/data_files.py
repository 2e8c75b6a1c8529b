"""Small image files and zips for the data tests."""

import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def noise_image(seed: int, height: int = 8, width: int = 8, channels: int = 3) -> np.ndarray:
    """(H, W, 3) or (H, W) uint8 pixels that no lossless format changes."""
    shape = (height, width) if channels == 1 else (height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def save(path: Path, array: np.ndarray) -> np.ndarray:
    """Write an image, its folder too, and hand the pixels back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path)
    return array


def png(width: int, height: int) -> bytes:
    """A few bytes that claim to be a PNG of any size."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = (chunk(b"IHDR", head), chunk(b"IDAT", zlib.compress(bytes(100))), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def zip_of(folder: Path, path: Path, method: int = zipfile.ZIP_STORED, prefix: str = "") -> Path:
    """A zip of all files below `folder`."""
    with zipfile.ZipFile(path, "w", method) as archive:
        for file in sorted(folder.rglob("*")):
            if file.is_file():
                archive.write(file, prefix + file.relative_to(folder).as_posix())
    return path
