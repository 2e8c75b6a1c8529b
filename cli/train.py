"""genkit train MODEL: a run folder with a checkpoint that explains itself."""

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from genkit import dist, io, machine
from genkit.config import arg, to_dict
from genkit.data.source import Info, Source
from genkit.errors import InputError, RunError
from genkit.registry import Entry, find
from genkit.train.config import OptimConfig, RunConfig
from genkit.train.loop import Hooks, Report, check_split, fit, total_steps
from genkit.train.objective import Noise, Objective
from genkit.train.state import LOG, MODEL, check_settings, erase, steps_done

from .common import RUNS, DataConfig, open_data
from .console import Interrupt, Meter, emit, say
from .health import Health
from .options import make
from .outputs import check_parents
from .preview import picture_maker


@dataclass(frozen=True)
class TrainConfig:
    """What is trained on and where the run is kept."""

    data: str = arg("digits", "Data set name, image folder, zip, or latents file.", panel="Data")
    test: str | None = arg(
        None, "Held-out data to report on at the end; default: the data set's test split.", panel="Data"
    )
    out: Path | None = arg(None, "Run folder; default: runs/MODEL-DATA.", short="-o", panel="Run")
    fresh: bool = arg(False, "Start over where the folder holds another run.", panel="Run")
    json: bool = arg(False, "Print the result as one JSON line.", panel="Run")


def command(name: str) -> Any:
    """The `genkit train NAME` command."""
    entry = find(name)

    def body(train: TrainConfig, config: Any, data: DataConfig, optim: OptimConfig, run: RunConfig) -> None:
        _train(name, entry, train, config, data, optim, run)

    defaults = {"epochs": 10.0, **entry.defaults}
    if "steps" in entry.defaults:
        defaults.pop("epochs")
    groups = (TrainConfig, entry.config, DataConfig, OptimConfig, RunConfig)
    return make(body, *groups, command=f"train {name}", help=entry.help, defaults=defaults)


def build(entry: Entry, config: Any, info: Info, seed: int) -> tuple[torch.nn.Module, Objective]:
    """The model and its objective, with initial weights that are a function of the seed."""
    # layers initialise themselves from torch's global generator: it is borrowed and given back
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = entry.build(config, info)
        return module, entry.objective(module, config, info)


def default_out(name: str, data: str) -> Path:
    """runs/MODEL-DATA, where DATA is the data set's name or the file's stem."""
    return RUNS / f"{name}-{Path(data).stem if '/' in data or '.' in data else data.replace(':', '-')}"


def _train(
    name: str,
    entry: Entry,
    train: TrainConfig,
    config: Any,
    data: DataConfig,
    optim: OptimConfig,
    run: RunConfig,
) -> None:
    machine.tune()
    device = machine.pick_device(run.device)
    out = train.out or default_out(name, train.data)
    check_parents(out)
    if out.exists() and not out.is_dir():
        raise InputError(f"-o {out} is a file; a run needs a folder")
    check_split(optim)
    if run.tensorboard:
        _writer()
    dist.start(device)
    try:
        _run(name, entry, train, config, data, optim, run, out, device)
    finally:
        dist.stop()


def _open(train: TrainConfig, data: DataConfig) -> tuple[Source, Source | None]:
    """The training data and the held-out data; the main process reads first, so that only it downloads."""

    def read() -> tuple[Source, Source | None]:
        source = open_data(train.data, data)
        return source, _test_source(train, data, source.info)

    kept: list[tuple[Source, Source | None]] = []
    dist.on_main(lambda: kept.append(read()))  # what is wrong with the data ends every process alike
    return kept[0] if kept else read()


def _run(
    name: str,
    entry: Entry,
    train: TrainConfig,
    config: Any,
    data: DataConfig,
    optim: OptimConfig,
    run: RunConfig,
    out: Path,
    device: torch.device,
) -> None:
    source, held_out = _open(train, data)
    info: Info = source.info
    if info.kind == "latents" and not entry.latents:
        raise InputError(f"{name} trains on images, and {train.data} holds latents; give it the images")
    module, objective = build(entry, config, info, optim.seed)
    steps = total_steps(optim, len(source))
    settings = {**to_dict(config), **to_dict(optim), "model": name, "fingerprint": info.fingerprint}
    settings.pop("accumulate")  # changes the memory, not the result
    preview = picture_maker(entry, config, source, out / "samples", device)
    # last of all that may be refused: --fresh is not to cost a run that the new one does not replace
    dist.on_main(lambda: erase(out) if train.fresh else check_settings(out, settings))
    about = {"model": to_dict(config), "optim": to_dict(optim), "data": to_dict(data), "source": train.data}

    def save(model: torch.nn.Module, step: int) -> None:
        io.save_checkpoint(
            out / MODEL, model.state_dict(), model=name, config=about, data=info._asdict(), step=step
        )

    done = steps_done(out)
    if done >= steps:
        say(f"{out} is done ({done} steps)")
    else:
        _describe(name, info, module, steps, out, optim, device)
        if done:
            say(f"continuing from step {done}")
        for phase in objective.phases():
            if phase.start >= steps:
                say(
                    f"warning: the {phase.name} starts at step {phase.start} and this run ends at {steps}, "
                    "without it; give a lower --disc-start"
                )
    interrupt = Interrupt()
    with Meter(f"train {name}", steps, start=done) as meter, interrupt.watched():
        log = Log(out, meter, run.tensorboard)
        hooks = Hooks(log, preview, interrupt)
        result = fit(
            objective, source, optim=optim, run=run, out=out, save=save, settings=settings, hooks=hooks
        )
    if not result.finished:
        say(f"stopped at step {result.step}/{steps}, saved in {out}; the same command goes on")
        raise KeyboardInterrupt
    scores = _test(entry, result.model, config, info, held_out, device)
    if scores:
        if done < steps:
            log.write({"step": result.step, **{f"test_{k}": v for k, v in scores.items()}})
        say("test: " + "  ".join(f"{k} {v:.4g}" for k, v in scores.items()))
    log.close()
    answer = {"run": str(out), "step": result.step, "test": scores}
    emit(answer if train.json else out / MODEL, train.json)


def _describe(
    name: str,
    info: Info,
    module: torch.nn.Module,
    steps: int,
    out: Path,
    optim: OptimConfig,
    device: torch.device,
) -> None:
    parameters = sum(p.numel() for p in module.parameters()) / 1e6
    shape = "x".join(map(str, info.shape))
    precision = machine.resolve_precision(optim.precision, device)
    say(
        f"{name}: {parameters:.2f} M parameters, {info.count} {info.kind} of {shape} from {info.name}, "
        f"{steps} steps of {optim.batch_size} on {device} in {precision} -> {out}"
    )
    if optim.warmup >= steps > 1:
        say(
            f"note: the learning rate rises in all {steps} steps (--warmup {optim.warmup}) and ends at "
            f"{steps / optim.warmup:.0%} of --lr; try --warmup {steps // 10}"
        )


class Log:
    """Report -> progress line, log.jsonl and, where asked for, TensorBoard."""

    def __init__(self, out: Path, meter: Meter, tensorboard: bool) -> None:
        self.path, self.meter, self.began = out / LOG, meter, time.time()
        self.health = Health(meter.done)
        self.board = _tensorboard(out) if tensorboard and dist.is_main() else None

    def __call__(self, report: Report) -> None:
        numbers = "  ".join(f"{k} {v:.4g}" for k, v in report.logs.items() if k != "lr")
        self.meter.update(report.step, f"{report.images_per_s:,.0f} images/s  {numbers}")
        for warning in self.health.check(report.step, report.logs):
            say(warning)
        self.write(
            {
                "step": report.step,
                "time": round(time.time(), 2),
                "images_per_s": report.images_per_s,
                **report.logs,
            }
        )
        if self.board is not None:
            for key, value in report.logs.items():
                self.board.add_scalar(key, value, report.step)

    def write(self, line: dict[str, Any]) -> None:
        """Append a JSON line."""
        if dist.is_main():
            io.append_text(self.path, json.dumps(line) + "\n")

    def close(self) -> None:
        """Let TensorBoard write what it still holds."""
        if self.board is not None:
            self.board.close()


def _writer() -> Any:
    """TensorBoard's SummaryWriter.

    Raises:
        InputError: the package is missing.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise InputError("--tensorboard needs the package: pip install 'genkit[tensorboard]'") from None
    return SummaryWriter


def _tensorboard(out: Path) -> Any:
    try:
        return _writer()(str(out))
    except OSError as error:
        raise RunError(f"cannot write {out}: {error.strerror}; choose another -o") from error


def _test_source(train: TrainConfig, data: DataConfig, info: Info) -> Source | None:
    """The held-out data: the one asked for, or the test split of a data set that was named without a
    split."""
    from genkit.data.names import NAMES

    if train.test is None and train.data not in NAMES:
        return None
    source = open_data(train.test or f"{train.data}:test", data)
    if source.info.classes != info.classes:
        raise InputError(f"--test has the classes {source.info.classes}, but --data {info.classes}")
    if source.info.shape != info.shape:
        raise InputError(f"--test holds {source.info.shape}, but --data {info.shape}; give both one --size")
    return source


@torch.no_grad()
def _test(
    entry: Entry, model: torch.nn.Module, config: Any, info: Info, source: Source | None, device: torch.device
) -> dict[str, float]:
    """Means over the held-out data, in fp32, of what the objective reports; empty without such data."""
    if source is None:
        return {}
    objective = entry.objective(model, config, info).to(device).eval()
    sums: dict[str, float] = {}
    index = torch.arange(len(source))
    parts = index.split(500)
    for part, batch in zip(parts, source.batches(iter(parts), device)):
        for key, value in objective.evaluate(batch, Noise(0, part.to(device))).items():
            sums[key] = sums.get(key, 0.0) + value.item() * len(part)
    return {k: v / len(index) for k, v in sums.items()}
