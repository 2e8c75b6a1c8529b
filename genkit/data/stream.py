"""A source that does not fit in memory: image files decoded by worker processes, ahead of their use."""

import hashlib
import json
import signal
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import InputError
from .decode import BadImage, cpus, open_image, parallel, reason, to_array
from .listing import Listing
from .resident import MIDDLE, finish, pick
from .source import Batch, Info
from .store import Store


class Decoder(Dataset):
    """The decoded images of a store: example i is `names[i]` with `shape` = (C, H, W)."""

    def __init__(self, store: Store, names: list[str], shape: tuple[int, int, int]) -> None:
        self.store, self.names, self.shape = store, names, shape

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> np.ndarray:
        """(H, W, C) uint8.

        Raises:
            InputError: when the file turns out to be damaged.
        """
        channels, height, width = self.shape
        try:
            with self.store.open(self.names[index]) as stream:
                return to_array(open_image(stream), channels, (height, width))
        except (BadImage, OSError) as error:
            why = str(error) if isinstance(error, BadImage) else reason(error)
            remedy = "replace or remove it, or pass --skip-bad"
            raise InputError(f"{self.store.path}/{self.names[index]} {why}; {remedy}") from None

    def __getitems__(self, indices: list[int]) -> tuple[list[int], Tensor | str]:
        """The indices and their (B, H, W, C) uint8 tensor, or the message of the first error.

        A message, not an exception: DataLoader would wrap that in a traceback.
        """
        try:
            return indices, torch.from_numpy(np.stack([self[i] for i in indices]))
        except InputError as error:
            return indices, str(error)


def quiet(worker: int) -> None:
    """Leave Ctrl-C to the main process, which saves a checkpoint before it stops the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def same(data: tuple[list[int], Tensor | str]) -> tuple[list[int], Tensor | str]:
    """A whole batch as the worker made it; a named function, since a lambda does not pickle."""
    return data


class Streaming:
    """Examples read from image files when they are needed."""

    def __init__(self, name: str, listing: Listing, shape: tuple[int, int, int], workers: int | None) -> None:
        self.notes = list(listing.notes)
        self.captions: Sequence[str] | None = listing.captions
        self.names: Sequence[str] | None = listing.names
        self.labels = None if listing.labels is None else torch.tensor(listing.labels)
        self._decoder = Decoder(listing.store, listing.names, shape)
        self._workers = min(16, cpus()) if workers is None else workers
        mark = fingerprint(listing, shape)
        self.info = Info(name, "images", shape, len(listing.names), listing.classes, mark)

    def __len__(self) -> int:
        return len(self._decoder)

    def batches(self, indices: Iterable[Tensor], device: torch.device) -> Iterator[Batch]:
        """One Batch per index tensor (B,) int64 on the CPU, in order; `indices` may be endless.

        Raises:
            InputError: when a file turns out to be damaged.
        """
        loader = DataLoader(
            self._decoder,
            batch_sampler=(index.tolist() for index in indices),  # type: ignore[arg-type]
            num_workers=self._workers,
            collate_fn=same,  # type: ignore[arg-type]
            pin_memory=device.type == "cuda",
            worker_init_fn=quiet,
            generator=torch.Generator(),  # otherwise each start would draw from the global one
        )
        for index, pixels in loader:
            if isinstance(pixels, str):
                raise InputError(pixels)
            at = torch.tensor(index)
            x = finish(pixels.to(device, non_blocking=True), MIDDLE, MIDDLE)
            label = None if self.labels is None else self.labels[at].to(device)
            yield Batch(x, label, pick(self.captions, at))

    def uint8(self, indices: Tensor) -> Tensor:
        """(B, C, H, W) uint8 on the CPU: the decoded pixels of examples `indices`, (B,) int64."""
        pixels = np.stack(parallel(self._decoder.__getitem__, indices.tolist()))
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def fingerprint(listing: Listing, shape: tuple[int, int, int]) -> str:
    """sha256 over names, sizes and checksums (zip) or modification times (folder), not over the pixels."""
    stamps = [(name, *listing.store.stamp(name)) for name in listing.names]
    about = [shape, stamps, listing.classes, listing.labels, listing.captions]
    return hashlib.sha256(json.dumps(about).encode()).hexdigest()
