"""What every data source offers to training, encoding and evaluation."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor


class Info(NamedTuple):
    """What a checkpoint must know about the data it was trained on; JSON-able through `_asdict`."""

    name: str  # the source as the person named it
    kind: str  # "images" or "latents"
    shape: tuple[int, int, int]  # (C, H, W)
    count: int  # type: ignore[assignment]  # hides tuple.count
    classes: tuple[str, ...] = ()  # class names in label order; empty when the source has no labels
    fingerprint: str = ""  # changes when any example changes
    codec: str = ""  # latents: sha256 of the weights of the codec that wrote them
    shift: tuple[float, ...] = ()  # latents: per channel; examples are (z - shift) / scale
    scale: tuple[float, ...] = ()


class Batch(NamedTuple):
    """Examples on one device. x: (B, C, H, W) float32, images in [-1, 1], latents of unit variance."""

    x: Tensor
    label: Tensor | None = None  # (B,) int64
    caption: list[str] | None = None


class Source(Protocol):
    """A finite, ordered set of examples."""

    info: Info
    notes: list[str]  # what a person should know about how the data was read, one line each, for stderr
    labels: Tensor | None  # (N,) int64 on the CPU
    captions: Sequence[str] | None
    names: Sequence[str] | None  # of the image files, below the source's root; None of other examples

    def __len__(self) -> int: ...

    def batches(self, indices: Iterable[Tensor], device: torch.device) -> Iterator[Batch]:
        """One Batch per index tensor (B,) int64 on the CPU, in order; lazily, so `indices` may be endless."""
        ...


class ImageSource(Source, Protocol):
    """A Source of kind "images"."""

    def uint8(self, indices: Tensor) -> Tensor:
        """(B, C, H, W) uint8 on the CPU: the stored pixels of examples `indices`, (B,) int64."""
        ...


def info_from_json(values: dict[str, Any]) -> Info:
    """The Info whose `_asdict` went through JSON (lists become tuples again)."""
    plain: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
    return Info(**plain)
