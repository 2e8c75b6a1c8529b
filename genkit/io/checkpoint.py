"""A checkpoint explains itself: weights, the configuration that built them, the data they saw, the
command."""

import json
import platform
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import __version__
from ..errors import InputError
from .tensors import json_field, load_tensors, read_metadata, save_tensors


class Checkpoint(NamedTuple):
    """A trained model as it stands in a file."""

    path: Path
    model: str  # name in the registry
    config: dict[str, Any]  # {"model": …, "optim": …, "run": …}: everything `train` was given
    data: dict[str, Any]  # data.source.Info as JSON
    step: int
    sha256: str  # of the weights
    tensors: dict[str, Tensor]
    metadata: dict[str, str]


def versions() -> dict[str, str]:
    """The versions that matter for repeating a run."""
    return {"genkit": __version__, "torch": torch.__version__, "python": platform.python_version()}


def command_line() -> str:
    """The command that this process was started with, for the record."""
    return shlex.join(["genkit", *sys.argv[1:]])


def save_checkpoint(
    path: Path,
    tensors: Mapping[str, Tensor],
    *,
    model: str,
    config: dict[str, Any],
    data: dict[str, Any],
    step: int,
) -> str:
    """Write a model checkpoint atomically; returns the sha256 of its weights."""
    metadata = {
        "model": model,
        "config": json.dumps(config),
        "data": json.dumps(data),
        "step": str(step),
        "versions": json.dumps(versions()),
        "command": command_line(),
    }
    return save_tensors(path, tensors, "checkpoint", metadata)


def checkpoint_path(path: Path) -> Path:
    """The checkpoint file that `-m path` means: the file itself, or `model.safetensors` of a run folder.

    Raises:
        InputError: when there is none.
    """
    if path.is_dir():
        inner = path / "model.safetensors"
        if not inner.is_file():
            raise InputError(f"{path} holds no model.safetensors yet; train into it or name another run")
        return inner
    if not path.exists():
        raise InputError(f"model {path} does not exist; name a run folder or a .safetensors checkpoint")
    return path


def load_checkpoint(path: Path) -> Checkpoint:
    """The checkpoint at `path` (a file or a run folder), checked.

    Raises:
        InputError: when it is missing, damaged or no checkpoint.
    """
    path = checkpoint_path(path)
    tensors, metadata = load_tensors(path, ("checkpoint",))
    return Checkpoint(
        path=path,
        model=metadata.get("model", "?"),
        config=json_field(str(path), metadata, "config"),
        data=json_field(str(path), metadata, "data"),
        step=int(json_field(str(path), metadata, "step")),
        sha256=metadata["sha256"],
        tensors=tensors,
        metadata=metadata,
    )


def newest_run(root: Path, suits: tuple[str, ...]) -> Path | None:
    """The most recently written run folder under `root` whose model name is in `suits`, or None."""
    found = []
    for path in root.glob("*/model.safetensors"):
        try:
            if read_metadata(path).get("model") in suits:
                found.append((path.stat().st_mtime, path.parent))
        except (InputError, OSError):
            continue
    return max(found)[1] if found else None


def find_weights(root: Path, sha256: str) -> Path | None:
    """The run folder under `root` whose model has these weights, or None."""
    for path in sorted(root.glob("*/model.safetensors")):
        try:
            if read_metadata(path).get("sha256") == sha256:
                return path.parent
        except (InputError, OSError):
            continue
    return None
