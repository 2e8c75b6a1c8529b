"""The ends of a path: seeds, tensor files or images, as points of a model's space."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from genkit.data.latents import is_tensors
from genkit.data.names import NAMES
from genkit.data.source import Source
from genkit.diffusion.denoiser import Denoiser
from genkit.errors import InputError
from genkit.io.latents import Latents, load_latents
from genkit.models.load import Loaded

from .common import DataConfig, check_shape, open_data
from .invert import source_labels
from .preview import check_codec, scaling
from .replay import replay_of
from .spaces import Space
from .streams import read_input

KINDS = {"seed": "a seed", "tensors": "a tensor file", "images": "an image"}
LARGEST = 2**63 - 1  # seed, and row


class Given(NamedTuple):
    """An end as it was typed: NAME, or NAME:ROW for another row than the first. kind: one of KINDS."""

    name: str
    row: int
    kind: str


def given(text: str) -> Given:
    """The end that `text` names.

    Raises:
        InputError: a seed or row that is out of range.
    """
    found = re.fullmatch(r"(.+):([0-9]+)", text)
    name, row = (found[1], found[2]) if found and not _exists(text) else (text, "0")
    for what, number in (("seed", name), ("row", row)):
        if number.isdecimal() and (len(number) > 19 or int(number) > LARGEST):
            raise InputError(f"{what} {short(number)} is out of range; the largest is {LARGEST}")
    if name.isdecimal():
        return Given(name, int(row), "seed")
    tensors = name == "-" or Path(name).suffix.lower() == ".safetensors"
    tensors = tensors or (_exists(name) and is_tensors(Path(name).expanduser()))
    return Given(name, int(row), "tensors" if tensors else "images")


def short(number: str) -> str:
    """The number, or its beginning."""
    return number if len(number) <= 32 else f"{number[:32]}…"


def _exists(name: str) -> bool:
    """Whether there is such a file or folder."""
    try:
        return Path(name).expanduser().exists()
    except (OSError, RuntimeError):  # too long a name, no such user
        return False


class End(NamedTuple):
    """x: (1, *S) the point; mark: what it was made of; label: its class as the model counts them, None
    without one."""

    x: Tensor
    mark: str
    label: int | None = None


class Ends:
    """Points of `space`, from what ends are given as; every file, source and stream is read once.

    data: how images are read.
    """

    def __init__(self, loaded: Loaded, space: Space, data: DataConfig, device: torch.device) -> None:
        self.loaded, self.space, self.data, self.device = loaded, space, data, device
        self._files: dict[str, Latents] = {}
        self._sources: dict[str, Source] = {}

    def point(self, end: Given, row: int, label: int | None) -> End:
        """The point `row` rows after the one that `end` names.

        label: of its class, where asked for.

        Raises:
            InputError: there is none, or it belongs to another model.
        """
        row += end.row
        if row > LARGEST:
            raise InputError(f"row {row} of {end.name} is out of range; the largest is {LARGEST}")
        if end.kind == "seed":
            index = torch.tensor([row], device=self.device)
            return End(self.space.of_seed(int(end.name), index, label), f"seed {end.name} {row}", label)
        of = self._of_file if end.kind == "tensors" else self._of_image
        return of(end.name, row, label)

    def _of_file(self, name: str, row: int, label: int | None) -> End:
        """The end that is row `row` of a latents or noise file, or of such a stream."""
        loaded, space, info = self.loaded, self.space, self.loaded.info
        if name not in self._files:
            self._files[name] = load_latents(read_input(name), space.kinds)
        latents = self._files[name]
        name = "standard input" if name == "-" else name
        z = latents.z[row : row + 1].to(self.device)
        if not len(z):
            raise InputError(
                f"{name} has no row {row}: they are counted from 0, and there are {len(latents.z)}"
            )
        check_shape(tuple(z.shape[1:]), space.shape, name)
        mark = f"{latents.sha256} {row}"
        if latents.kind == "noise":
            labels = replay_of(latents, name, loaded).labels
            return End(z, mark, int(labels[row]) if label is None and labels is not None else label)
        if not isinstance(loaded.module, Denoiser):
            check_codec(loaded, latents.codec, name)
            return End(z, mark)
        if info.codec != latents.codec:
            raise InputError(f"{name} holds latents of another codec than the model's training data")
        if label is None and latents.labels is not None and loaded.module.classes:
            told = latents.classes[int(latents.labels[row])] if latents.classes else ""
            label = info.classes.index(told) if told in info.classes else None
        # the model's own normalisation: the file's was measured on whatever it holds
        shift, scale = scaling(info, self.device)
        return End(space.of_images((z - shift) / scale, label), mark, label)

    def _of_image(self, name: str, row: int, label: int | None) -> End:
        """The end that is image `row` of a source; through the codec where the model works on latents."""
        loaded, codec = self.loaded, self.space.codec
        source = self._source(name, codec or loaded)
        if row >= len(source):
            raise InputError(f"{name} has no row {row}: they are counted from 0, and there are {len(source)}")
        classes = getattr(loaded.module, "classes", 0)
        if label is None and classes and source.labels is not None:
            labels = source_labels(source, loaded, None, name, torch.tensor([row]))
            label = None if labels is None else int(labels)
        x = next(iter(source.batches(iter([torch.tensor([row])]), self.device))).x
        if codec is not None:
            module: Any = codec.module.to(self.device)
            shift, scale = scaling(loaded.info, self.device)
            with torch.inference_mode():
                x = (module.encode(x).z - shift) / scale
        return End(self.space.of_images(x, label), f"{source.info.fingerprint} {row}", label)

    def _source(self, name: str, like: Loaded) -> Source:
        """The images called `name`, of the size and channels of `like`."""
        if name not in self._sources:
            try:
                source = open_data(name, self.data, like)
            except InputError as error:
                if _exists(name) or name.partition(":")[0] in NAMES:
                    raise
                raise InputError(f"{error}; nor is it a seed (a whole number)") from None
            check_shape(source.info.shape, like.info.shape, name)
            self._sources[name] = source
        return self._sources[name]
