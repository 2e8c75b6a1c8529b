"""A source that fits in memory: one tensor on the device, batches by indexing."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ..errors import InputError
from .source import Batch, Info

MIDDLE = 127.5  # uint8 v becomes (v - 127.5) / 127.5: 0 and 255 become exactly -1 and 1


def finish(x: Tensor, shift: Tensor | float, scale: Tensor | float) -> Tensor:
    """(B, C, H, W) float32 of normalised examples from a fresh (B, H, W, C) tensor.

    Channels stay last in memory where there are several, which convolutions like; with one, both orders are
    the same bytes, and the plain strides spare torch the guess.
    """
    x = x.to(torch.float32).sub_(shift).div_(scale)
    batch, height, width, channels = x.shape
    return x.permute(0, 3, 1, 2) if channels > 1 else x.view(batch, 1, height, width)


class Resident:
    """Examples in one (N, H, W, C) tensor: uint8 pixels, or latents with a shift and scale per channel."""

    def __init__(
        self,
        info: Info,
        data: Tensor,
        labels: Tensor | None,
        captions: Sequence[str] | None,
        notes: Iterable[str] = (),
        names: Sequence[str] | None = None,
    ) -> None:
        self.info = info
        self.labels, self.captions, self.names = labels, captions, names
        self.notes = list(notes)
        self._data = data
        self._here: tuple[torch.device, Tensor, Tensor | None] | None = None

    def __len__(self) -> int:
        return len(self._data)

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor | None]:
        """The data and labels on `device`, copied there at the first use."""
        if self._here is None or self._here[0] != device:
            labels = None if self.labels is None else self.labels.to(device)
            self._here = (device, self._data.to(device), labels)
        return self._here[1], self._here[2]

    def batches(self, indices: Iterable[Tensor], device: torch.device) -> Iterator[Batch]:
        """One Batch per index tensor (B,) int64 on the CPU, in order; lazily, so `indices` may be endless."""
        data, labels = self._on(device)
        shift: Tensor | float = MIDDLE
        scale: Tensor | float = MIDDLE
        if self.info.kind == "latents":
            shift, scale = (torch.tensor(v, device=device) for v in (self.info.shift, self.info.scale))
        # A blocking copy of the index would wait for all queued kernels; other devices than CUDA need it.
        hurry = device.type == "cuda"
        for index in indices:
            at = index.to(device, non_blocking=hurry)
            x = finish(data.index_select(0, at), shift, scale)
            label = None if labels is None else labels.index_select(0, at)
            yield Batch(x, label, pick(self.captions, index))

    def uint8(self, indices: Tensor) -> Tensor:
        """(B, C, H, W) uint8 on the CPU: the stored pixels of examples `indices`, (B,) int64.

        Raises:
            InputError: when this is no source of images.
        """
        if self.info.kind != "images":
            raise InputError(f"{self.info.name} holds {self.info.kind}, not images; decode it first")
        return self._data.index_select(0, indices.cpu()).permute(0, 3, 1, 2).contiguous()


def pick(captions: Sequence[str] | None, index: Tensor) -> list[str] | None:
    """The captions at `index`."""
    return None if captions is None else [captions[i] for i in index.tolist()]


def resident_images(
    name: str,
    pixels: np.ndarray,
    *,
    classes: tuple[str, ...] = (),
    labels: Sequence[int] | np.ndarray | None = None,
    captions: Sequence[str] | None = None,
    notes: Iterable[str] = (),
    names: Sequence[str] | None = None,
) -> Resident:
    """A Resident of (N, H, W, C) uint8 pixels."""
    count, height, width, channels = pixels.shape
    data = torch.from_numpy(pixels)
    tags = None if labels is None else torch.as_tensor(np.asarray(labels, np.int64))
    shape = (channels, height, width)
    mark = fingerprint(data, tags, classes, captions)
    info = Info(name, "images", shape, count, classes if tags is not None else (), mark)
    return Resident(info, data, tags, captions, notes, names)


def fingerprint(
    data: Tensor, labels: Tensor | None, classes: Sequence[str], captions: Sequence[str] | None
) -> str:
    """sha256 over the content: the same for a folder and its zip, not for another pixel, label or caption."""
    about = [list(data.shape), str(data.dtype), list(classes), None if captions is None else list(captions)]
    digest = hashlib.sha256(json.dumps(about).encode())
    for tensor in (data, labels):
        if tensor is not None:
            digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
