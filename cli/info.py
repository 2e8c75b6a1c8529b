"""genkit info FILE: what a file is, and the command that made it."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from genkit.config import REQUIRED, arg
from genkit.errors import InputError

from .console import emit
from .options import make

_FIRST = ("kind", "model", "step", "command")


@dataclass(frozen=True)
class InfoConfig:
    """The file in question."""

    file: Path = arg(
        REQUIRED,
        "A checkpoint, run folder, latents or statistics file, a PNG, or - for a stream.",
        positional=True,
    )
    json: bool = arg(False, "Print everything as one JSON line.")


def command(name: str) -> Any:
    """The `genkit info` command."""
    return make(
        _info, InfoConfig, command="info", help="What a genkit file is, and the command that made it."
    )


def _info(config: InfoConfig) -> None:
    from .streams import read_input

    source = read_input(str(config.file))
    about = _tensors(source) if isinstance(source, bytes) else describe(source)
    if config.json:
        emit(about, True)
        return
    rows = [row for key in sorted(about, key=_place) for row in _rows(key, about[key])]
    width = max(len(key) for key, _ in rows)
    for key, words in rows:
        emit(f"{key:<{width}}  {words}")


def _place(key: str) -> tuple[int, str]:
    """Where a key stands among others: first what a person looks for."""
    return (_FIRST.index(key) if key in _FIRST else len(_FIRST), key)


def _rows(key: str, value: Any) -> Iterator[tuple[str, str]]:
    """(key, words) of a value that says something; a dict of dicts has a row KEY.PART for each part."""
    if isinstance(value, dict) and any(isinstance(part, dict) for part in value.values()):
        for name, part in value.items():
            yield from _rows(f"{key}.{name}", part)
    elif words := _words(value):
        yield key, words


def _words(value: Any) -> str:
    """A value of JSON as a person reads it; nothing where nothing was set."""
    if value is None:
        return ""
    if isinstance(value, dict):
        return ", ".join(f"{name} {words}" for name, part in value.items() if (words := _words(part)))
    if isinstance(value, list):
        # lists in lists keep their brackets
        found = [f"[{_words(v)}]" if isinstance(v, list) else _words(v) for v in value]
        numbers = all(isinstance(v, int | float) for v in value)
        return (" " if numbers else ", ").join(filter(None, found))
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def describe(path: Path) -> dict[str, Any]:
    """What `path` says of itself.

    Raises:
        InputError: when genkit did not write it.
    """
    if path.suffix.lower() == ".png":
        from genkit.io.images import read_about

        about = read_about(path)
        if about is None:
            raise InputError(f"{path} does not say how it was made; genkit did not write it")
        return {"kind": "picture", **about}
    if path.is_dir():
        inside = _inside(path)
        if inside.suffix == ".png":
            count = len(list(path.glob("[0-9]*.png")))
            return {**describe(inside), "kind": "folder of pictures", "pictures": count, "index": "0, …"}
        path = inside
    if path.suffix != ".safetensors":
        raise InputError(f"{path}: info reads .safetensors, .png and the folders that genkit writes")
    return _tensors(path)


def _inside(folder: Path) -> Path:
    for name in ("model.safetensors", "00000.safetensors", "000000.png"):
        if (folder / name).exists():
            return folder / name
    raise InputError(f"{folder} holds no checkpoint, shards or pictures of genkit")


def _tensors(source: Path | bytes) -> dict[str, Any]:
    """What a .safetensors file, or its bytes, says of itself."""
    from genkit.io import load_tensors, read_metadata

    metadata = read_metadata(source)
    kind = metadata.get("kind", "?")
    tensors, _ = load_tensors(source, (kind,))  # all of it: a damaged file must not pass for a good one
    about: dict[str, Any] = {"kind": kind}
    for key, value in metadata.items():
        try:
            about[key] = json.loads(value) if value[:1] in "[{" else value
        except json.JSONDecodeError:
            about[key] = value
    if "captions" in about:
        about["captions"] = f"{len(about['captions'])} captions"
    shapes = {name: list(tensor.shape) for name, tensor in tensors.items()}
    if len(shapes) <= 8:
        about["tensors"] = shapes
    else:
        about["tensors"] = f"{len(shapes)} tensors, {sum(t.numel() for t in tensors.values()):,} values"
    return about
