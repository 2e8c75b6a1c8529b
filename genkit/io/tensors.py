"""Safetensors with string metadata and a checksum over both."""

import hashlib
import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ..errors import InputError
from .atomic import atomic

FORMAT = "1"
_MAX_HEADER = 100_000_000  # the format's own limit


def digest(tensors: Mapping[str, Tensor]) -> str:
    """Hex sha256 of names, types, shapes and values; the same for the same weights in any file."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        if tensor.numel():
            sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()


def _checksum(weights: str, metadata: Mapping[str, str]) -> str:
    body = {k: v for k, v in metadata.items() if k != "checksum"}
    return hashlib.sha256((weights + json.dumps(body, sort_keys=True)).encode()).hexdigest()


def _seal(tensors: Mapping[str, Tensor], kind: str, metadata: Mapping[str, str]) -> dict[str, str]:
    sealed = {"genkit": FORMAT, "kind": kind, **metadata, "sha256": digest(tensors)}
    sealed["checksum"] = _checksum(sealed["sha256"], sealed)
    return sealed


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    # clone: tied or strided tensors are refused by the format
    return {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()}


def save_tensors(path: Path, tensors: Mapping[str, Tensor], kind: str, metadata: Mapping[str, str]) -> str:
    """Write a genkit safetensors file atomically and return the sha256 of its tensors."""
    plain = _plain(tensors)
    sealed = _seal(plain, kind, metadata)
    atomic(path, lambda temporary: safetensors.torch.save_file(plain, str(temporary), metadata=sealed))
    return sealed["sha256"]


def tensor_bytes(tensors: Mapping[str, Tensor], kind: str, metadata: Mapping[str, str]) -> bytes:
    """The same file as `save_tensors` writes, as bytes for a pipe."""
    plain = _plain(tensors)
    return safetensors.torch.save(plain, metadata=_seal(plain, kind, metadata))


def _parse_header(data: bytes, name: str) -> dict[str, Any]:
    if len(data) < 8:
        raise InputError(f"{name} is not a safetensors file: only {len(data)} bytes")
    (length,) = struct.unpack("<Q", data[:8])
    if length > _MAX_HEADER:
        raise InputError(f"{name} is not a safetensors file; genkit reads no pickles or other formats")
    try:
        header = json.loads(data[8 : 8 + length])
    except (UnicodeDecodeError, json.JSONDecodeError):
        raise InputError(f"{name} is not a safetensors file, or is damaged") from None
    if not isinstance(header, dict):
        raise InputError(f"{name} is not a safetensors file, or is damaged")
    return header


def read_metadata(source: Path | bytes) -> dict[str, str]:
    """The metadata of a safetensors file without reading its tensors; bytes come from a pipe.

    Raises:
        InputError: when the file is missing or not safetensors.
    """
    header = _parse_header(source, "standard input") if isinstance(source, bytes) else _read_header(source)
    metadata = header.get("__metadata__", {})
    return metadata if isinstance(metadata, dict) else {}


def _read_header(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            start = file.read(8)
            length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            return _parse_header(start + file.read(min(length, _MAX_HEADER)), str(path))
    except FileNotFoundError:
        raise InputError(f"{path} does not exist") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder, not a .safetensors file") from None
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None


def load_tensors(source: Path | bytes, kinds: tuple[str, ...]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """(tensors, metadata) of a genkit file of one of `kinds`; bytes come from a pipe.

    Raises:
        InputError: when it is missing, truncated, foreign, altered, of another kind or holds NaN or infinity.
    """
    name = "standard input" if isinstance(source, bytes) else str(source)
    try:
        if isinstance(source, bytes):
            header = _parse_header(source, name)
            metadata, tensors = header.get("__metadata__") or {}, safetensors.torch.load(source)
        else:
            metadata = read_metadata(source)
            with safe_open(str(source), "pt") as file:
                tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{name} is truncated or damaged ({error}); make it again") from None
    _check(name, tensors, metadata, kinds)
    return tensors, metadata


def _check(name: str, tensors: dict[str, Tensor], metadata: dict[str, str], kinds: tuple[str, ...]) -> None:
    if "genkit" not in metadata:
        raise InputError(f"{name} was not written by genkit (no 'genkit' key in its metadata)")
    if metadata["genkit"] != FORMAT:
        raise InputError(
            f"{name} has format {metadata['genkit']!r}, this genkit reads {FORMAT!r}; upgrade genkit"
        )
    kind = metadata.get("kind", "?")
    if kind not in kinds:
        raise InputError(f"{name} holds {kind}, but {' or '.join(kinds)} is needed here")
    for key, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise InputError(f"{name}: tensor {key!r} holds NaN or infinity")
    weights = digest(tensors)
    if metadata.get("sha256") != weights or metadata.get("checksum") != _checksum(weights, metadata):
        raise InputError(f"{name} is damaged: its content does not match its checksum; make it again")


def json_field(name: str, metadata: Mapping[str, str], key: str) -> Any:
    """The JSON value of a metadata key.

    Raises:
        InputError: when it is missing or not JSON.
    """
    try:
        return json.loads(metadata[key])
    except (KeyError, json.JSONDecodeError):
        raise InputError(f"{name}: metadata {key!r} is missing or not JSON") from None
