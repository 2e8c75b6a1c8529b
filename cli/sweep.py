"""genkit sweep METHOD REAL: an FID for every combination of sampler settings, with the same seeds in each."""

import csv
import dataclasses
import io as stdio
import itertools
import json
import time
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from genkit import dist, io, machine
from genkit.config import REQUIRED, arg, coerce, differences, from_dict, to_dict
from genkit.data.resident import resident_images
from genkit.errors import InputError, unknown
from genkit.evaluate.cache import statistics_of
from genkit.evaluate.extractors import Extractor
from genkit.evaluate.score import score
from genkit.evaluate.statistics import Statistics, is_statistics, load_statistics
from genkit.io.checkpoint import command_line
from genkit.io.images import labelled, save_png, tile, to_uint8
from genkit.models.load import Loaded

from .common import DataConfig, MachineConfig, load, open_data
from .conditions import ConditionConfig, labels_of, load_guide
from .console import Meter, emit, say
from .eval_fid import FeatureConfig, make_extractor
from .methods import METHODS, SamplerConfig, settled
from .options import make
from .outputs import batched
from .preview import codec_for
from .sample import last, make_ready, stepper

Cell = dict[str, Any]  # option -> value
ROWS = ".genkit.json"  # the rows with the settings that they share


@dataclass(frozen=True)
class SweepConfig:
    """What is varied, over which model, against which images."""

    real: str = arg(REQUIRED, "Real images to measure against: as in eval-fid.", positional=True)
    over: str = arg(
        "steps=10,20,50 guidance=1",
        'Options and their values: "steps=10,20,50,100 eta=0,0.2,0.5,1".',
    )
    model: Path | None = arg(None, "Run folder or checkpoint; default: the newest run that fits.", short="-m")
    count: int = arg(2048, "Images a cell.", min=2, short="-n")
    out: Path = arg(
        Path("sweep"), "Folder for table.csv and grid.png; cells in it are not made again.", short="-o"
    )
    show: int = arg(8, "Images of each cell in grid.png.", min=1, max=64)
    seed: int = arg(0, "Decides the noise, the same in every cell.", min=0, max=2**63 - 1)
    codec: Path | None = arg(None, "Codec of a latent model; default: found beside the model or under runs/.")
    fresh: bool = arg(False, "Make all cells again.")
    json: bool = arg(False, "Print the table as one JSON line.")


def command(name: str) -> Any:
    """The `genkit sweep NAME` command."""

    def body(
        sweep: SweepConfig,
        sampler: SamplerConfig,
        condition: ConditionConfig,
        features: FeatureConfig,
        data: DataConfig,
        run: MachineConfig,
    ) -> None:
        Sweep(name, sweep, sampler, condition, features, data, run).run()

    groups = (SweepConfig, METHODS[name].config, ConditionConfig, FeatureConfig, DataConfig, MachineConfig)
    return make(body, *groups, command=f"sweep {name}", help=f"A table of FIDs. {METHODS[name].help}")


def parse_axes(text: str, *groups: type) -> dict[str, list[Any]]:
    """Option -> values of `steps=10,20 eta=0,1`; values have the type of the option's field.

    Raises:
        InputError: for another form, an unknown option or a value of another type.
    """
    hints = {name: hint for group in groups for name, hint in typing.get_type_hints(group).items()}
    axes: dict[str, list[Any]] = {}
    for part in text.split():
        name, sign, values = part.partition("=")
        name = name.replace("-", "_")
        if not sign or not values:
            raise InputError(f'--over must read like "steps=10,20,50 eta=0,1", got {part!r}')
        if name not in hints:
            raise unknown("option in --over", name, hints)
        axes[name] = [_value(name, value, hints[name]) for value in values.split(",")]
    if not axes:
        raise InputError('--over is empty; it reads like "steps=10,20,50 eta=0,1"')
    return axes


def _value(name: str, text: str, hint: Any) -> Any:
    """`text` as the field's type."""
    try:
        plain = json.loads(text)
    except json.JSONDecodeError:
        plain = text
    wants_text = str in (typing.get_args(hint) or (hint,))
    return coerce(name, text if wants_text else plain, hint)


class Drawn(NamedTuple):
    """images: (n, C, H, W) in [-1, 1]; labels: (n,) classes or None; seconds: what they took."""

    images: Tensor
    labels: Tensor | None
    seconds: float


class Table:
    """The rows of table.csv, kept from one attempt to the next under the settings that they share."""

    def __init__(self, folder: Path, settings: dict[str, Any], fresh: bool) -> None:
        self.folder, self.settings = folder, settings
        self.rows: dict[str, Cell] = dist.on_main(lambda: self._claim(fresh))

    def _claim(self, fresh: bool) -> dict[str, Cell]:
        """The rows that the folder has already.

        Raises:
            InputError: they were made with other settings.
        """
        path = self.folder / ROWS
        if self.folder.exists() and not self.folder.is_dir():
            raise InputError(f"-o {self.folder} is a file; a sweep needs a folder")
        if fresh or not path.exists():
            return {}
        try:
            old = json.loads(path.read_text("utf-8"))
            changed = differences(old["settings"], self.settings)
            rows = dict(old["rows"])
        except (ValueError, KeyError, TypeError):
            raise InputError(f"{path} is damaged; use --fresh or another -o") from None
        if changed:
            raise InputError(
                f"{self.folder}/ holds a table made with other settings ({'; '.join(changed)}); "
                "use --fresh or another -o"
            )
        return rows

    def find(self, cell: Cell) -> Cell | None:
        """The row of a cell."""
        return self.rows.get(json.dumps(cell))

    def add(self, cell: Cell, row: Cell) -> None:
        """Take a row in and write the files."""
        self.rows[json.dumps(cell)] = row
        dist.on_main(self._write)

    def _write(self) -> None:
        text = stdio.StringIO()
        table = csv.DictWriter(text, list(next(iter(self.rows.values()))), lineterminator="\n")
        table.writeheader()
        table.writerows(self.rows.values())
        io.write_text(self.folder / "table.csv", text.getvalue())
        io.write_text(self.folder / ROWS, json.dumps({"settings": self.settings, "rows": self.rows}))


class Sweep:
    """A table in the making."""

    def __init__(
        self,
        method: str,
        config: SweepConfig,
        sampler: SamplerConfig,
        condition: ConditionConfig,
        features: FeatureConfig,
        data: DataConfig,
        run: MachineConfig,
    ) -> None:
        self.method, self.config, self.sampler, self.condition = method, config, sampler, condition
        self.features, self.data, self.machine = features, data, run
        self.axes = parse_axes(config.over, type(sampler), ConditionConfig)
        if sampler.noise is not None or "noise" in self.axes:
            raise InputError(
                "a sweep draws its images from --seed, so --noise cannot be; use `genkit sample`"
            )
        self.cells: list[Cell] = [dict(zip(self.axes, v)) for v in itertools.product(*self.axes.values())]
        for cell in self.cells:  # wrong values are found before the first image is drawn
            self._configs(cell)

    def _configs(self, cell: Cell) -> tuple[SamplerConfig, ConditionConfig]:
        """The options of one cell."""

        def changed(config: Any) -> Any:
            names = {f.name for f in dataclasses.fields(config)}
            return from_dict(type(config), {**vars(config), **{k: v for k, v in cell.items() if k in names}})

        return changed(self.sampler), changed(self.condition)

    def run(self) -> None:
        """Fill the table, write it after every cell, and print it."""
        machine.tune_allocator()
        config, device = self.config, machine.pick_device(self.machine.device)
        loaded = load(config.model, f"sample {self.method}")
        for cell in self.cells:
            sampler, condition = self._configs(cell)
            labels_of(loaded, condition, torch.arange(1))
            settled(self.method, sampler, loaded, {})
        extractor = make_extractor(self.features, device)
        dist.start(device)
        try:
            real = self._real(extractor)
            table = Table(config.out, self._settings(loaded, real, extractor), config.fresh)
            make_ready(loaded, self.machine, device, config.count * max(map(self._steps, self.cells)))
            pictures = []
            for cell in self.cells:
                row = table.find(cell)
                drawn = self._draw(loaded, cell, device, config.show if row else config.count)
                pictures.append(drawn.images[: config.show])
                if row is None:
                    row = self._measure(cell, drawn, loaded, real, extractor)
                    table.add(cell, row)
                say(_line(row))
            if dist.is_main():
                self._finish(table, pictures)
        finally:
            dist.stop()

    def _steps(self, cell: Cell) -> int:
        return self._configs(cell)[0].steps or METHODS[self.method].usual["steps"]

    def _settings(self, loaded: Loaded, real: Statistics, extractor: Extractor) -> dict[str, Any]:
        """What the rows of one table share; what is varied is in the rows."""
        plain = {**to_dict(self.sampler), **to_dict(self.condition)}
        if self.condition.classifier is not None:
            plain["classifier"] = load_guide(self.condition.classifier, loaded).checkpoint.sha256
        return {
            "precision": machine.resolve_precision(self.machine.precision, extractor.device),
            "method": self.method,
            "model": loaded.checkpoint.sha256,
            "seed": self.config.seed,
            "n": self.config.count,
            "real": real.fingerprint or real.name,
            "features": extractor.identity,
            **{k: v for k, v in plain.items() if k not in self.axes},
        }

    def _real(self, extractor: Extractor) -> Statistics:
        """The real side, measured once."""
        if is_statistics(Path(self.config.real)):
            return load_statistics(Path(self.config.real))
        source = open_data(self.config.real, self.data)
        if source.info.kind != "images":
            raise InputError(f"{self.config.real} holds {source.info.kind}; a sweep compares images")
        return statistics_of(source, extractor, cache=self.features.cache).statistics

    def _draw(self, loaded: Loaded, cell: Cell, device: torch.device, n: int) -> Drawn:
        """The first n images of a cell, drawn by all processes."""
        sampler, condition = self._configs(cell)
        sampler = settled(self.method, sampler, loaded, {})
        labels = labels_of(loaded, condition, torch.arange(n))
        steps_of = stepper(self.method, loaded, sampler, condition, self.config.seed, device, labels)
        show = codec_for(loaded.info, self.config.codec, device, loaded.checkpoint.path.parent)
        mine = list(dist.share(n))
        parts = []
        began = time.perf_counter()
        with Meter(" ".join(f"{k}={v}" for k, v in cell.items()), len(mine)) as meter:
            for index in batched(mine, self.machine.batch_size):
                parts.append(show(last(steps_of(index)).x).cpu())
                meter.update(meter.done + len(index))
        seconds = time.perf_counter() - began
        images = dist.gather_rows(torch.cat(parts) if parts else torch.zeros(0, *loaded.info.shape))
        return Drawn(images, labels, seconds)

    def _measure(
        self, cell: Cell, drawn: Drawn, loaded: Loaded, real: Statistics, extractor: Extractor
    ) -> Cell:
        """The row of a cell: its settings, what it cost and how good it is."""
        pixels = to_uint8(drawn.images).permute(0, 2, 3, 1).contiguous().numpy()
        classes, labels = loaded.info.classes, drawn.labels
        tags = None if labels is None else labels.numpy()
        source = resident_images(
            "the cell", pixels, classes=classes if labels is not None else (), labels=tags
        )
        found = score(source, real, extractor, ("fid",), cache=False)
        if found is None:  # only the main process has the scores
            return cell
        scores = found._asdict()
        return {
            **cell,
            "nfe": METHODS[self.method].calls(self._steps(cell)),
            "n": len(drawn.images),
            **{k: scores[k] for k in ("fid", "fid_low", "fid_high", "confident", "accuracy")},
            "seconds": round(drawn.seconds, 2),
        }

    def _finish(self, table: Table, pictures: list[Tensor]) -> None:
        """grid.png, and the table on stdout."""
        rows = [row for cell in self.cells if (row := table.find(cell))]
        across = len(next(reversed(self.axes.values()))) if len(self.axes) > 1 else len(rows)
        titles = [
            ", ".join(f"{k} {v}" for k, v in cell.items()) + f": FID {_short(row['fid'])}"
            for cell, row in zip(self.cells, rows)
        ]
        cells = [tile(images, least=192) for images in pictures]
        about = {"over": self.config.over, "command": command_line()}
        save_png(self.config.out / "grid.png", labelled(cells, titles, across), about)
        say(f"{self.config.out}/table.csv, {self.config.out}/grid.png")
        if self.config.json:
            emit({"out": str(self.config.out), "rows": rows}, True)
            return
        names = [k for k in rows[0] if any(row[k] is not None for row in rows)]
        emit("  ".join(f"{name:>10}" for name in names))
        for row in rows:
            emit("  ".join(f"{_short(row[name]):>10}" for name in names))


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _line(row: Cell) -> str:
    return ", ".join(f"{k} {_short(v)}" for k, v in row.items() if v is not None)
