"""The ends of a path: seeds, tensor files or images, as points of a model's space."""

import re
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

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


class Given(NamedTuple):
    """An end as it was typed: NAME, or NAME:ROW for another row than the first."""

    name: str
    row: int

    @property
    def kind(self) -> str:
        """What the name is of."""
        if self.name.isdecimal():
            return "a seed"
        tensors = self.name == "-" or Path(self.name).suffix == ".safetensors"
        return "a tensor file" if tensors else "an image"


def given(text: str) -> Given:
    """The end that `text` names.

    Raises:
        InputError: a seed or row that is out of range.
    """
    found = re.fullmatch(r"(.+):([0-9]+)", text)
    name, row = (found[1], int(found[2])) if found and not Path(text).exists() else (text, 0)
    for what, number in (("seed", name), ("row", str(row))):
        if number.isdecimal() and int(number) >= 2**63:
            raise InputError(f"{what} {number} is out of range; the largest is {2**63 - 1}")
    return Given(name, row)


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
        if end.kind == "a seed":
            index = torch.tensor([row], device=self.device)
            return End(self.space.of_seed(int(end.name), index, label), f"seed {end.name} {row}", label)
        if end.kind == "a tensor file":
            return self._of_file(end.name, row, label)
        return self._of_image(end.name, row, label)

    def _of_file(self, name: str, row: int, label: int | None) -> End:
        """The end that is row `row` of a latents or noise file, or of such a stream."""
        loaded, space, info = self.loaded, self.space, self.loaded.info
        if name not in self._files:
            self._files[name] = load_latents(read_input(name), space.kinds)
        latents, name = self._files[name], "stdin" if name == "-" else name
        z = latents.z[row : row + 1].to(self.device)
        if not len(z):
            raise InputError(f"{name} holds {len(latents.z)} points, and there is no row {row} (from 0)")
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
            raise InputError(f"{name} holds {len(source)} images, and there is no row {row} (from 0)")
        if label is None and isinstance(loaded.module, Denoiser) and loaded.module.classes:
            labels = source_labels(source, loaded, None, name, row + 1)
            label = None if labels is None else int(labels[row])
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
            if name.partition(":")[0] not in NAMES and not Path(name).expanduser().exists():
                raise InputError(f"{name} is no seed (a whole number), no file and no data set")
            self._sources[name] = open_data(name, self.data, like)
            check_shape(self._sources[name].info.shape, like.info.shape, name)
        return self._sources[name]
