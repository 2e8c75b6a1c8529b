"""genkit sweep METHOD REAL: an FID for every combination of sampler settings, with the same seeds in each."""

import dataclasses
import itertools
import json
import time
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from genkit import dist, machine
from genkit.config import REQUIRED, arg, coerce, from_dict, to_dict
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
from .methods import METHODS, SamplerConfig, check_churn, settled
from .options import make
from .outputs import batched, check_parents
from .preview import codec_for
from .sample import last, make_ready, stepper
from .sweep_table import Cell, Table, line, short


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
        _sweep(plan(name, sweep, sampler, condition, features, data, run))

    groups = (SweepConfig, METHODS[name].config, ConditionConfig, FeatureConfig, DataConfig, MachineConfig)
    return make(body, *groups, command=f"sweep {name}", help=f"A table of FIDs. {METHODS[name].help}")


FIXED = ("noise", "classifier", "guidance_interval")  # options with no place for several values in --over


def parse_axes(text: str, *groups: type) -> dict[str, list[Any]]:
    """Option -> values of `steps=10,20 eta=0,1`; values have the type of the option's field.

    Raises:
        InputError: for another form, an unknown option or one that stands twice, or a value of another type.
    """
    hints = {name: hint for group in groups for name, hint in typing.get_type_hints(group).items()}
    hints = {name: hint for name, hint in hints.items() if name not in FIXED}
    axes: dict[str, list[Any]] = {}
    for part in text.split():
        name, sign, values = part.partition("=")
        name = name.replace("-", "_")
        if not sign or not values:
            raise InputError(f'--over must read like "steps=10,20,50 eta=0,1", got {part!r}')
        if name not in hints:
            raise unknown("option in --over", name, hints)
        if name in axes:
            raise InputError(f"{name} stands twice in --over {text!r}; list its values behind one")
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


class Job(NamedTuple):
    """What a sweep is to make: the options that its cells share, and what each of them changes."""

    method: str
    config: SweepConfig
    sampler: SamplerConfig
    condition: ConditionConfig
    features: FeatureConfig
    data: DataConfig
    run: MachineConfig
    axes: dict[str, list[Any]]
    cells: list[Cell]

    def options(self, cell: Cell) -> tuple[SamplerConfig, ConditionConfig]:
        """The options of one cell."""

        def changed(config: Any) -> Any:
            names = {f.name for f in dataclasses.fields(config)}
            return from_dict(type(config), {**vars(config), **{k: v for k, v in cell.items() if k in names}})

        return changed(self.sampler), changed(self.condition)

    def steps(self, cell: Cell) -> int:
        """The sampler's steps in one cell."""
        return self.options(cell)[0].steps or METHODS[self.method].usual["steps"]


def plan(
    method: str,
    config: SweepConfig,
    sampler: SamplerConfig,
    condition: ConditionConfig,
    features: FeatureConfig,
    data: DataConfig,
    run: MachineConfig,
) -> Job:
    """The job whose cells are all combinations of the values in --over.

    Raises:
        InputError: a value that its option does not take, or a sweep over noise files.
    """
    axes = parse_axes(config.over, type(sampler), ConditionConfig)
    if sampler.noise is not None:
        raise InputError("a sweep draws its images from --seed, so --noise cannot be; use `genkit sample`")
    check_parents(config.out)
    cells: list[Cell] = [dict(zip(axes, values)) for values in itertools.product(*axes.values())]
    job = Job(method, config, sampler, condition, features, data, run, axes, cells)
    # wrong values are found before the first image is drawn
    samplers = [job.options(cell)[0] for cell in cells]
    # a cell without churn may stand among others, for comparison
    for one in [s for s in samplers if getattr(s, "churn", 0) > 0] or samplers:
        check_churn(one)
    return job


class Judge(NamedTuple):
    """What the images of a cell are measured by."""

    real: Statistics
    extractor: Extractor


class Drawn(NamedTuple):
    """images: (n, C, H, W) in [-1, 1]; labels: (n,) classes or None; seconds: what they took."""

    images: Tensor
    labels: Tensor | None
    seconds: float


def _sweep(job: Job) -> None:
    """Fill the table, write it after every cell, and print it."""
    machine.tune()
    config, device = job.config, machine.pick_device(job.run.device)
    loaded = load(config.model, f"sample {job.method}")
    for cell in job.cells:
        sampler, condition = job.options(cell)
        labels_of(loaded, condition, torch.arange(1))
        settled(job.method, sampler, loaded, {})
    extractor = make_extractor(job.features, device)
    dist.start(device)
    try:
        judge = Judge(_real(job, extractor), extractor)
        table = Table(config.out, _settings(job, loaded, judge), config.fresh)
        make_ready(loaded, job.run, device, config.count * max(map(job.steps, job.cells)))
        pictures = [_fill(job, cell, table, loaded, judge, device) for cell in job.cells]
        if dist.is_main():
            _finish(job, [row for cell in job.cells if (row := table.find(cell))], pictures)
    finally:
        dist.stop()


def _fill(job: Job, cell: Cell, table: Table, loaded: Loaded, judge: Judge, device: torch.device) -> Tensor:
    """(m, C, H, W) the first images of a cell, whose row is in the table from then on."""
    row = table.find(cell)
    drawn = _draw(job, cell, loaded, device, job.config.show if row else job.config.count)
    if row is None:
        row = _measure(job, cell, drawn, loaded, judge)
        table.add(cell, row)
    say(line(row))
    return drawn.images[: job.config.show]


def _settings(job: Job, loaded: Loaded, judge: Judge) -> dict[str, Any]:
    """What the rows of one table share; what is varied is in the rows."""
    plain = {**to_dict(job.sampler), **to_dict(job.condition)}
    if job.condition.classifier is not None:
        plain["classifier"] = load_guide(job.condition.classifier, loaded).checkpoint.sha256
    return {
        "precision": machine.resolve_precision(job.run.precision, judge.extractor.device),
        "method": job.method,
        "model": loaded.checkpoint.sha256,
        "seed": job.config.seed,
        "n": job.config.count,
        "real": judge.real.fingerprint or judge.real.name,
        "features": judge.extractor.identity,
        "over": list(job.axes),
        **{k: v for k, v in plain.items() if k not in job.axes},
    }


def _real(job: Job, extractor: Extractor) -> Statistics:
    """The real side, measured once."""
    spec = job.config.real
    if is_statistics(Path(spec)):
        return load_statistics(Path(spec))
    source = open_data(spec, job.data)
    if source.info.kind != "images":
        raise InputError(f"{spec} holds {source.info.kind}; a sweep compares images")
    return statistics_of(source, extractor, cache=job.features.cache).statistics


def _draw(job: Job, cell: Cell, loaded: Loaded, device: torch.device, n: int) -> Drawn:
    """The first n images of a cell, drawn by all processes."""
    sampler, condition = job.options(cell)
    sampler = settled(job.method, sampler, loaded, {})
    labels = labels_of(loaded, condition, torch.arange(n))
    steps_of = stepper(job.method, loaded, sampler, condition, job.config.seed, device, labels)
    show = codec_for(loaded.info, job.config.codec, device, loaded.checkpoint.path.parent)
    mine = list(dist.share(n))
    parts = []
    began = time.perf_counter()
    with Meter(" ".join(f"{k}={v}" for k, v in cell.items()), len(mine)) as meter:
        for index in batched(mine, job.run.batch_size):
            parts.append(show(last(steps_of(index)).x).cpu())
            meter.update(meter.done + len(index))
    seconds = time.perf_counter() - began
    images = dist.gather_rows(torch.cat(parts) if parts else torch.zeros(0, *loaded.info.shape))
    return Drawn(images, labels, seconds)


def _measure(job: Job, cell: Cell, drawn: Drawn, loaded: Loaded, judge: Judge) -> Cell:
    """The row of a cell: its settings, what it cost and how good it is."""
    pixels = to_uint8(drawn.images).permute(0, 2, 3, 1).contiguous().numpy()
    classes, labels = loaded.info.classes, drawn.labels
    tags = None if labels is None else labels.numpy()
    source = resident_images("the cell", pixels, classes=classes if labels is not None else (), labels=tags)
    found = score(source, judge.real, judge.extractor, ("fid",), cache=False)
    if found is None:  # only the main process has the scores
        return cell
    scores = found._asdict()
    return {
        **cell,
        "nfe": METHODS[job.method].calls(job.steps(cell)),
        "n": len(drawn.images),
        **{k: scores[k] for k in ("fid", "fid_low", "fid_high", "confident", "accuracy")},
        "seconds": round(drawn.seconds, 2),
    }


def _finish(job: Job, rows: list[Cell], pictures: list[Tensor]) -> None:
    """grid.png, and the table on stdout."""
    config = job.config
    across = len(next(reversed(job.axes.values()))) if len(job.axes) > 1 else len(rows)
    titles = [
        ", ".join(f"{k} {v}" for k, v in cell.items()) + f": FID {short(row['fid'])}"
        for cell, row in zip(job.cells, rows)
    ]
    cells = [tile(images, least=192) for images in pictures]
    about = {"over": config.over, "command": command_line()}
    save_png(config.out / "grid.png", labelled(cells, titles, across), about)
    say(f"{config.out}/table.csv, {config.out}/grid.png")
    if config.json:
        emit({"out": str(config.out), "rows": rows}, True)
        return
    names = [k for k in rows[0] if any(row[k] is not None for row in rows)]
    emit("  ".join(f"{name:>10}" for name in names))
    for row in rows:
        emit("  ".join(f"{short(row[name]):>10}" for name in names))
