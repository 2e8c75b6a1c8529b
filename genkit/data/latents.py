"""Files that `encode` and `sample` write as a source: latents of unit variance, or float images."""

import os
import re
from pathlib import Path

from ..errors import InputError
from .decode import convert
from .resident import Resident, fingerprint, resident_images
from .source import Info


def is_tensors(path: Path) -> bool:
    """Whether `path` is a `.safetensors` file, or a folder of its shards `00000.safetensors`, ….

    Raises:
        InputError: when one of the shards is missing.
    """
    if not path.is_dir():
        return path.suffix.lower() == ".safetensors"
    try:
        files = sorted(n for n in os.listdir(path) if re.fullmatch(r"\d+\.safetensors", n))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    for i, name in enumerate(files):
        if int(name.split(".")[0]) != i:
            raise InputError(f"{path} lacks {i:05d}.safetensors; run the command that wrote it again")
    return bool(files)


def open_tensors(
    spec: str, path: Path | None, size: tuple[int, int] | None, channels: int | None
) -> Resident:
    """The examples in a `.safetensors` file or a folder of its shards; those on stdin for None.

    Raises:
        InputError: when they are missing, damaged or of another kind, or latents are to change their shape.
    """
    from ..io import load_latents, read_stdin

    file = load_latents(path if path is not None else read_stdin(), ("latents", "images"))
    labels, classes = file.labels, file.classes
    if labels is not None and not classes:
        classes = tuple(str(i) for i in range(int(labels.max()) + 1))
    if labels is not None and not 0 <= int(labels.min()) <= int(labels.max()) < len(classes):
        raise InputError(f"{spec} has labels outside its {len(classes)} classes; encode it again")
    z = file.z.permute(0, 2, 3, 1).contiguous()
    if file.kind == "images":
        if z.shape[-1] not in (1, 3):
            raise InputError(f"{spec} has {z.shape[-1]} channels; images have 1 or 3")
        pixels = convert(((z.clamp(-1, 1) + 1) * 127.5).round().byte().numpy(), size, channels)
        tags = None if labels is None else labels.numpy()
        return resident_images(spec, pixels, classes=classes, labels=tags, captions=file.captions)
    if size is not None or channels is not None:
        raise InputError(f"{spec} holds latents, whose size is fixed; encode images of another size instead")
    count, height, width, channels = z.shape
    about = [*classes, file.codec, str(file.shift), str(file.scale)]
    info = Info(
        name=spec,
        kind="latents",
        shape=(channels, height, width),
        count=count,
        classes=classes if labels is not None else (),
        fingerprint=fingerprint(z, labels, about, file.captions),
        codec=file.codec,
        shift=file.shift or (0.0,) * channels,
        scale=file.scale or (1.0,) * channels,
    )
    return Resident(info, z, labels, file.captions)
