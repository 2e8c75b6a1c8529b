"""Latents files and folders of their shards as a source of unit-variance examples."""

import re
import sys
from pathlib import Path

import torch

from ..errors import InputError
from .resident import Resident, fingerprint
from .source import Info


def shards(folder: Path) -> list[Path]:
    """The files `00000.safetensors`, `00001.safetensors`, … of a folder in order.

    Raises:
        InputError: when one in between is missing.
    """
    files = sorted(p for p in folder.iterdir() if re.fullmatch(r"\d{5,}\.safetensors", p.name))
    for i, path in enumerate(files):
        if int(path.stem) != i:
            raise InputError(f"{folder} lacks shard {i:05d}.safetensors; run the command that wrote it again")
    return files


def open_latents(spec: str, files: list[Path]) -> Resident:
    """The latents in `files`, one after the other; those on stdin for none.

    Raises:
        InputError: when shards do not belong together: another codec, normalisation, shape, or labels in some.
    """
    from ..io import load_latents

    parts = [load_latents(f) for f in files] if files else [load_latents(sys.stdin.buffer)]
    first = parts[0]
    for path, part in zip(files, parts):
        for what, one, other in (
            ("codec", first.codec, part.codec),
            ("shift", tuple(first.shift), tuple(part.shift)),
            ("scale", tuple(first.scale), tuple(part.scale)),
            ("shape", first.z.shape[1:], part.z.shape[1:]),
            ("labels", first.labels is None, part.labels is None),
            ("captions", first.captions is None, part.captions is None),
        ):
            if one != other:
                raise InputError(f"{path} and {files[0]} differ in their {what}; encode them together")
    z = torch.cat([p.z for p in parts]).permute(0, 2, 3, 1).contiguous()
    labels = None if first.labels is None else torch.cat([p.labels for p in parts])
    captions = None if first.captions is None else [c for p in parts for c in p.captions]
    classes = tuple(str(i) for i in range(int(labels.max()) + 1)) if labels is not None else ()
    count, height, width, channels = z.shape
    info = Info(
        spec,
        "latents",
        (channels, height, width),
        count,
        classes,
        fingerprint(z, labels, [first.codec, *map(str, first.shift), *map(str, first.scale)], captions),
        first.codec,
        tuple(first.shift),
        tuple(first.scale),
    )
    return Resident(info, z, labels, captions)
