"""The forms of -o: a folder of PNGs, one picture, an animation, tensors in a file or on stdout."""

import csv
import io as stdio
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from genkit import dist, io
from genkit.errors import InputError, RunError
from genkit.io.checkpoint import command_line
from genkit.io.images import gif_bytes, picture, save_png, tile
from genkit.io.latents import Latents, latents_bytes

from .console import Meter, emit, emit_bytes, say

MOST = 1024  # pictures in one grid
GRID = 64  # pictures in a folder's grid.png
SETTINGS = ".genkit.json"  # what made the pictures of a folder


class Out(NamedTuple):
    """Where a result goes and in which form: "folder", "png", "gif", "tensors" or "stream"."""

    path: Path
    form: str


def parse_out(
    text: str,
    allowed: tuple[str, ...] = ("folder", "png", "gif", "tensors", "stream"),
    option: str = "-o",
) -> Out:
    """The form that -o, or another `option`, asks for by its suffix.

    Raises:
        InputError: for another suffix, or a form that the verb does not make.
    """
    suffix = Path(text).suffix.lower()
    forms = {".png": "png", ".gif": "gif", ".safetensors": "tensors"}
    form = (
        "stream" if text == "-" else forms.get(suffix, "folder" if not suffix or text.endswith("/") else "")
    )
    if form not in allowed:
        known = {
            "folder": "a folder/",
            "png": "x.png",
            "gif": "x.gif",
            "tensors": "x.safetensors",
            "stream": "-",
        }
        forms_here = ", ".join(known[a] for a in allowed)
        raise InputError(f"{option} {text} is no form of output here; use {forms_here}")
    if form == "stream" and sys.stdout.isatty():
        raise InputError("-o - writes a tensor stream; pipe it into another command or name a file")
    path = Path(text)
    if form != "stream":
        check_parents(path, option)
    if form == "folder" and path.exists() and not path.is_dir():
        raise InputError(f"{option} {text} is a file; name a folder, or give a suffix (.png, .safetensors)")
    if form not in ("folder", "stream") and path.is_dir():
        raise InputError(f"{option} {text} is a folder; name a file or drop the suffix")
    return Out(path, form)


def check_parents(path: Path, option: str = "-o") -> None:
    """Refuse a result below something that is no folder, before any work is done for it.

    Raises:
        InputError: there is such a thing above `path`.
    """
    for above in path.parents:
        if above.exists() and not above.is_dir():
            raise InputError(
                f"{option} {path}: {above} is a file, and nothing can lie below it; name another"
            )


class Folder:
    """A folder of PNGs named by index, filled by as many processes and attempts as it takes."""

    def __init__(self, path: Path, settings: dict[str, Any], fresh: bool) -> None:
        self.path, self.settings = path, settings
        dist.on_main(lambda: self._claim(fresh))

    def _claim(self, fresh: bool) -> None:
        """Take the folder for these settings.

        Raises:
            InputError: when it holds pictures made with other settings, or not by genkit.
        """
        mark = self.path / SETTINGS
        new = json.dumps(self.settings, sort_keys=True)
        pictures = list(self.path.glob("[0-9]*.png"))
        if pictures and not fresh:
            try:
                old = json.loads(mark.read_text("utf-8")) if mark.exists() else {}
            except (json.JSONDecodeError, UnicodeDecodeError):
                raise InputError(f"{mark} is damaged; use --fresh or another -o") from None
            changed = [f"{k}: {old.get(k)} -> {v}" for k, v in self.settings.items() if old.get(k) != v]
            if changed:
                raise InputError(
                    f"{self.path}/ holds pictures made with other settings ({'; '.join(changed)}); "
                    "use --fresh to replace them or another -o"
                )
        if fresh:
            for picture_path in [*pictures, self.path / "grid.png"]:
                picture_path.unlink(missing_ok=True)
        io.write_text(mark, new)

    def name(self, index: int) -> Path:
        """The file of picture `index`."""
        return self.path / f"{index:06d}.png"

    def missing(self, n: int) -> list[int]:
        """The indices below n that have no picture yet, the same list in every process."""
        present = {p.name for p in self.path.glob("[0-9]*.png")}
        dist.barrier()  # nobody writes before everybody has looked
        return [i for i in range(n) if self.name(i).name not in present]

    def add(self, index: int, image: Tensor, about: dict[str, Any]) -> None:
        """Write one (C, H, W) image."""
        save_png(self.name(index), picture(image), {**about, "index": index})

    def finish(self, n: int, classes: Callable[[int], str] | None = None, columns: int | None = None) -> None:
        """Write grid.png of the first pictures, and metadata.csv where they have classes."""
        dist.barrier()
        if not dist.is_main():
            return
        if classes is not None:
            beyond = self._labelled_beyond(n)
            table = stdio.StringIO()
            rows = csv.writer(table, lineterminator="\n")
            rows.writerow(("file_name", "label"))
            rows.writerows((self.name(i).name, classes(i)) for i in range(n))
            rows.writerows(beyond)
            io.write_text(self.path / "metadata.csv", table.getvalue())
        shown = []
        most = GRID // columns * columns if columns else GRID  # full rows
        for index in range(min(n, most)):
            with Image.open(self.name(index)) as image:
                pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
                shown.append(
                    pixels.reshape(image.height, image.width, -1).permute(2, 0, 1).float() / 127.5 - 1
                )
        save_png(self.path / "grid.png", tile(torch.stack(shown), columns), {"first": min(n, most)})

    def _labelled_beyond(self, n: int) -> list[tuple[str, str]]:
        """(file, class) of the pictures from index n on, which an earlier and larger request left."""
        path = self.path / "metadata.csv"
        if not path.exists():
            return []
        with path.open(encoding="utf-8", newline="") as file:
            rows = [tuple(row) for row in csv.reader(file)][1:]
        last = self.name(n - 1).name
        return [
            (row[0], row[1])
            for row in rows
            if len(row) == 2 and row[0] > last and (self.path / row[0]).exists()
        ]


def batched(indices: list[int], size: int) -> Iterator[Tensor]:
    """The indices in tensors of `size`; the last one may be shorter."""
    for start in range(0, len(indices), size):
        yield torch.tensor(indices[start : start + size])


def write_tensors(
    out: Out, latents: Latents, as_json: bool = False, more: dict[str, Any] | None = None
) -> None:
    """Latents as a file or as a stream; `more` joins the JSON line of a file."""
    store_tensors(out, latents)
    name_tensors(out, latents, as_json, more)


def check_finite(x: Tensor) -> None:
    """Refuse to write what no verb could read, or a picture that would be black for no reason.

    Raises:
        RunError: x holds NaN or infinity.
    """
    if not x.isfinite().all():
        raise RunError(
            "the result holds NaN or infinity and is not written; try --precision fp32, more --steps or less "
            "--guidance"
        )


def store_tensors(out: Out, latents: Latents) -> None:
    """The file or the stream itself.

    Raises:
        RunError: see `check_finite`.
    """
    if not dist.is_main():
        return
    check_finite(latents.z)
    if out.form == "stream":
        emit_bytes(latents_bytes(latents))
    else:
        io.save_latents(out.path, latents)


def name_tensors(out: Out, latents: Latents, as_json: bool, more: dict[str, Any] | None = None) -> None:
    """Say on stdout which file was written; a stream has stdout for itself."""
    if dist.is_main() and out.form != "stream":
        emit({"out": str(out.path), "n": len(latents.z), **(more or {})} if as_json else out.path, as_json)


def write_picture(out: Out, image: Image.Image, about: dict[str, Any], as_json: bool = False) -> None:
    """One PNG with its provenance."""
    if dist.is_main():
        save_png(out.path, image, about)
        emit({"out": str(out.path)} if as_json else out.path, as_json)


def write_animation(out: Out, frames: Iterable[Image.Image], as_json: bool = False) -> None:
    """One GIF."""
    if dist.is_main():
        io.write_bytes(out.path, gif_bytes(list(frames)))
        emit({"out": str(out.path)} if as_json else out.path, as_json)


def report_folder(out: Out, made: int, n: int, as_json: bool = False) -> None:
    """Say what a folder holds now."""
    if made < n:
        say(f"{n - made} of {n} were there already")
    emit({"out": str(out.path), "n": n, "made": made} if as_json else out.path, as_json)


def deliver(
    label: str,
    draw: Callable[[Tensor], Tensor],
    n: int,
    out: Out,
    settings: dict[str, Any],
    wrap: Callable[[Tensor], Latents],
    *,
    batch_size: int,
    fresh: bool = False,
    as_json: bool = False,
    classes: Callable[[int], str] | None = None,
    columns: int | None = None,
) -> None:
    """Make examples 0 … n - 1 in batches, shared out over the processes, and put them where -o says.

    draw: indices (B,) -> (B, C, H, W). settings: what the examples are a function of; a folder keeps
    those that it has. wrap: all tensors -> the record for a file or stream. classes: the class of an
    example, for the pictures' own record and the folder's metadata.csv. columns: of a grid; default: square.
    """
    folder = Folder(out.path, settings, fresh) if out.form == "folder" else None
    todo = folder.missing(n) if folder else list(range(n))
    mine = [todo[i] for i in dist.share(len(todo))]
    about = {**settings, "command": command_line()}
    rows = []
    with Meter(label, len(mine)) as meter:
        for index in batched(mine, batch_size):
            # a short last batch is filled up: one shape, and the same kernels, for every example
            padded = torch.cat([index, index[-1:].expand(min(batch_size, n) - len(index))])
            x = draw(padded)[: len(index)]
            check_finite(x)
            if folder:
                for i, image in zip(index.tolist(), x):
                    folder.add(i, image, {**about, **({"class": classes(i)} if classes else {})})
            else:
                rows.append(x.cpu())
            meter.update(meter.done + len(index))
    if folder:
        folder.finish(n, classes, columns)
        report_folder(out, len(todo), n, as_json)
        return
    z = dist.gather_rows(torch.cat(rows) if rows else torch.zeros(0))
    if out.form == "png":
        if n > MOST:
            say(f"the first {MOST} of {n} are shown; a folder or .safetensors holds them all")
        write_picture(out, tile(z[:MOST], columns), about, as_json)
    else:
        write_tensors(out, wrap(z), as_json)
