"""Tensors that travel between verbs: latents of a codec, noise of an inversion, images as floats."""

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import InputError
from .checkpoint import command_line
from .tensors import json_field, load_tensors, save_tensors, tensor_bytes

KINDS = ("latents", "noise", "images")


class Latents(NamedTuple):
    """z: (N, C, H, W) float32 as the codec gave it; (z - shift) / scale has mean 0 and variance 1 per
    channel.

    kind "latents": written by `encode` or sampled from a latent model. kind "noise": written by `invert`,
    the x_t at the largest time; `model` is the sha256 of the model that inverted, `labels` are the classes
    it was told (the null class is one more than the last). kind "images": floats in [-1, 1].
    """

    z: Tensor
    kind: str = "latents"
    labels: Tensor | None = None  # (N,) int64
    captions: list[str] | None = None
    shift: tuple[float, ...] = ()
    scale: tuple[float, ...] = ()
    codec: str = ""  # sha256 of the weights of the codec that wrote or will decode them
    model: str = ""  # sha256 of the diffusion model, where one was involved
    classes: tuple[str, ...] = ()
    extra: dict[str, Any] | None = None  # JSON: seeds, times, the source's name
    sha256: str = ""  # of the tensors, when read from a file
    nulls: Tensor | None = None  # noise: (N, steps, E) null embeddings of null-text inversion, noise first
    tokens: Tensor | None = None  # (N, H, W) int64: the codes that z consists of, where there is a codebook


def _pack(latents: Latents) -> tuple[dict[str, Tensor], str, dict[str, str]]:
    tensors = {"latents": latents.z.float()}
    if latents.labels is not None:
        tensors["labels"] = latents.labels.to(torch.int64)
    if latents.nulls is not None:
        tensors["nulls"] = latents.nulls.float()
    if latents.tokens is not None:
        tensors["tokens"] = latents.tokens.to(torch.int64)
    metadata = {
        "shape": json.dumps(list(latents.z.shape[1:])),
        "shift": json.dumps(list(latents.shift)),
        "scale": json.dumps(list(latents.scale)),
        "codec": latents.codec,
        "model": latents.model,
        "classes": json.dumps(list(latents.classes)),
        "extra": json.dumps(latents.extra or {}),
        "command": command_line(),
    }
    if latents.captions is not None:
        metadata["captions"] = json.dumps(latents.captions)
    return tensors, latents.kind, metadata


def save_latents(path: Path, latents: Latents) -> None:
    """Write `latents` atomically."""
    tensors, kind, metadata = _pack(latents)
    save_tensors(path, tensors, kind, metadata)


def latents_bytes(latents: Latents) -> bytes:
    """The file as bytes, for a pipe."""
    return tensor_bytes(*_pack(latents))


def load_latents(source: Path | bytes, kinds: tuple[str, ...] = ("latents",)) -> Latents:
    """The latents in a file, a folder of shards (`00000.safetensors`, …) or the bytes of a pipe.

    Raises:
        InputError: when they are missing, damaged, of another kind, or shards disagree.
    """
    if isinstance(source, Path) and source.is_dir():
        return _load_shards(source, kinds)
    name = "standard input" if isinstance(source, bytes) else str(source)
    tensors, metadata = load_tensors(source, kinds)
    z, labels = tensors.get("latents"), tensors.get("labels")
    if z is None or z.ndim != 4 or not z.is_floating_point() or len(z) == 0:
        raise InputError(f"{name}: 'latents' must be a float tensor (N, C, H, W) with N > 0")
    if labels is not None and (labels.ndim != 1 or labels.dtype != torch.int64):
        raise InputError(
            f"{name}: 'labels' must be an int64 tensor (N,), got {labels.dtype} {tuple(labels.shape)}"
        )
    shift, scale = (_numbers(name, metadata, key, z.shape[1]) for key in ("shift", "scale"))
    if not all(s > 0 for s in scale):
        raise InputError(f"{name}: scale must be positive, got {list(scale)}; encode the images again")
    captions = _texts(name, metadata, "captions") if "captions" in metadata else None
    if any(rows is not None and len(rows) != len(z) for rows in (labels, captions)):
        raise InputError(f"{name}: there must be one label and one caption per latent ({len(z)})")
    nulls = tensors.get("nulls")
    if nulls is not None and (
        nulls.ndim != 3 or not nulls.is_floating_point() or len(nulls) != len(z) or 0 in nulls.shape
    ):
        raise InputError(
            f"{name}: 'nulls' must be a float tensor (N, steps, E) with the N of the latents ({len(z)}), "
            f"got {tuple(nulls.shape)}"
        )
    tokens = tensors.get("tokens")
    if tokens is not None and (tokens.shape != (len(z), *z.shape[2:]) or tokens.dtype != torch.int64):
        raise InputError(
            f"{name}: 'tokens' must be an int64 tensor (N, H, W) with the N, H and W of the latents "
            f"{(len(z), *z.shape[2:])}, got {tokens.dtype} {tuple(tokens.shape)}"
        )
    extra = json_field(name, metadata, "extra")
    if not isinstance(extra, dict):
        raise InputError(f"{name}: metadata 'extra' must be a JSON object, got {extra!r}")
    return Latents(
        z=z.float(),
        kind=metadata["kind"],
        labels=labels,
        captions=captions,
        shift=shift,
        scale=scale,
        codec=metadata.get("codec", ""),
        model=metadata.get("model", ""),
        classes=tuple(_texts(name, metadata, "classes")),
        extra=extra,
        sha256=metadata["sha256"],
        nulls=None if nulls is None else nulls.float(),
        tokens=tokens,
    )


def _numbers(name: str, metadata: dict[str, str], key: str, channels: int) -> tuple[float, ...]:
    """The numbers of a metadata key, one for each channel or none at all."""
    values = json_field(name, metadata, key)
    if (
        not isinstance(values, list)
        or len(values) not in (0, channels)
        or not all(isinstance(v, int | float) and abs(v) <= torch.finfo(torch.float32).max for v in values)
    ):
        raise InputError(
            f"{name}: {key} must be one value per channel ({channels}), each a finite number, "
            f"got {values}; encode the images again"
        )
    return tuple(values)


def _texts(name: str, metadata: dict[str, str], key: str) -> list[str]:
    """The strings of a metadata key."""
    values = json_field(name, metadata, key)
    if not isinstance(values, list) or not all(isinstance(v, str) for v in values):
        raise InputError(f"{name}: metadata {key!r} must be a JSON list of strings")
    return values


def _load_shards(folder: Path, kinds: tuple[str, ...]) -> Latents:
    paths = sorted(folder.glob("[0-9]*.safetensors"))
    if not paths:
        raise InputError(f"{folder} holds no shards (00000.safetensors, …)")
    parts = [load_latents(path, kinds) for path in paths]
    first = parts[0]
    wanted = (first.extra or {}).get("shards", len(paths))
    if [int(path.stem) for path in paths] != list(range(wanted)):
        raise InputError(
            f"{folder} holds {len(paths)} of {wanted} shards; run the same `genkit encode` again"
        )
    for path, part in zip(paths, parts):
        same = [
            (p.z.shape[1:], p.codec, p.shift, p.scale, *(f is None for f in (p.labels, p.captions, p.tokens)))
            for p in (part, first)
        ]
        if same[0] != same[1]:
            raise InputError(
                f"{path} was written by another codec or run than {paths[0]}; encode the folder afresh"
            )
    labels = [p.labels for p in parts if p.labels is not None]
    captions = [p.captions for p in parts if p.captions is not None]
    tokens = [p.tokens for p in parts if p.tokens is not None]
    return first._replace(
        sha256="+".join(p.sha256[:12] for p in parts),
        z=torch.cat([p.z for p in parts]),
        labels=torch.cat(labels) if len(labels) == len(parts) else None,
        captions=[text for part in captions for text in part] if len(captions) == len(parts) else None,
        tokens=torch.cat(tokens) if len(tokens) == len(parts) else None,
    )
