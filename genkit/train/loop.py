"""The one training loop. Every example's order, noise and augmentation are functions of (seed, position)."""

import itertools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from .. import dist, io, machine
from .. import noise as rng
from ..data.source import Batch, Source
from ..errors import InputError, RunError
from ..nn.dropout import dropouts
from .adamw import AdamW
from .average import Average
from .config import OptimConfig, RunConfig
from .objective import Bank, Noise, Objective
from .order import Order, positions
from .state import MODEL, Optimizers, cut_log, load_state, save_state

COOLDOWN = 0.2  # last share of the steps after warm-up, over which "wsd" falls
_TOGETHER = 64  # logged values that are added up at a time
AHEAD = 32  # micro-batches whose noise is drawn together where it is small


class Report(NamedTuple):
    """What the loop tells its caller at intervals. logs: means since the last report, of this process."""

    step: int
    steps: int
    images_per_s: float
    logs: dict[str, float]


class Hooks(NamedTuple):
    """What the caller adds to the loop: progress, pictures, a wish to stop."""

    report: Callable[[Report], None] = lambda report: None
    preview: Callable[[nn.Module, int], None] | None = None  # the averaged model and the step
    stop: Callable[[], bool] = lambda: False


class Result(NamedTuple):
    """model: the averaged model; step: optimiser steps done; finished: whether that is all of them."""

    model: nn.Module
    step: int
    finished: bool


def total_steps(optim: OptimConfig, n: int) -> int:
    """The run's length in optimiser steps for n examples.

    Raises:
        InputError: when neither or both of steps and epochs are given.
    """
    if (optim.steps is None) == (optim.epochs is None):
        raise InputError("give the length of training as either --steps or --epochs")
    if optim.steps is not None:
        return optim.steps
    return max(1, math.ceil((optim.epochs or 0) * n / optim.batch_size))


def check_split(optim: OptimConfig) -> None:
    """Refuse a batch that does not divide.

    Raises:
        InputError: a step's batch cannot be shared out evenly over the processes and their parts.
    """
    if optim.batch_size % (dist.world() * optim.accumulate):
        raise InputError(
            f"--batch-size must be a multiple of processes x --accumulate "
            f"({dist.world()} x {optim.accumulate}), got {optim.batch_size}"
        )


def learning_rate(optim: OptimConfig, step: int, steps: int) -> float:
    """The learning rate of optimiser step `step` (from 0) of `steps`."""
    rise = min(1.0, (step + 1) / optim.warmup) if optim.warmup else 1.0
    done = max(0.0, (step - optim.warmup) / max(1, steps - optim.warmup))
    fall = {
        "none": 1.0,
        "linear": 1 - done,
        "cosine": 0.5 + 0.5 * math.cos(math.pi * done),
        "wsd": min(1.0, (1 - done) / COOLDOWN),
    }[optim.decay]
    return optim.lr * rise * fall


def make_optimizers(objective: Objective, optim: OptimConfig) -> Optimizers:
    """One fused AdamW per phase."""
    return {
        phase.name: AdamW(
            phase.parameters,
            lr=optim.lr * phase.lr_scale,
            betas=(optim.beta1, optim.beta2),
            weight_decay=optim.weight_decay,
        )
        for phase in objective.phases()
    }


def noises(seed: int, walk: Iterator[tuple[int, int]], device: torch.device, ahead: int) -> Iterator[Noise]:
    """The noise of each (start, stop) of `walk`, prepared for `ahead` of them together."""
    while True:
        spans = list(itertools.islice(walk, ahead))
        position = torch.cat([torch.arange(a, b, device=device) for a, b in spans])
        bank = Bank(seed, position) if ahead > 1 else None
        row = 0
        for part in position.split([b - a for a, b in spans]):
            yield Noise(seed, part, bank, row)
            row += len(part)


def batches(
    source: Source, optim: OptimConfig, step: int, device: torch.device, ahead: int = 1
) -> Iterator[tuple[Batch, Noise]]:
    """Endless micro-batches of this process, with the noise of their positions, from step `step` on."""
    order = Order(optim.seed, len(source))
    place = (step, optim.batch_size, optim.accumulate, dist.rank(), dist.world())
    examples = (order.examples(a, b) for a, b in positions(*place))
    stream = source.batches(examples, device)
    for noise, batch in zip(noises(optim.seed, positions(*place), device, ahead), stream):
        if optim.flip:
            mirrored = noise.uniform(rng.FLIP, (1, 1, 1)) < 0.5
            batch = batch._replace(x=torch.where(mirrored, batch.x.flip(-1), batch.x))
        yield batch, noise


class _Watch:
    """Averages of the logged tensors between two reports, read from the device only then."""

    def __init__(self) -> None:
        self.values: dict[str, list[Tensor]] = {}
        self.counts: dict[str, int] = {}

    def add(self, logs: dict[str, Tensor]) -> None:
        for name, value in logs.items():
            values = self.values.setdefault(name, [])
            values.append(value.detach())
            if len(values) == _TOGETHER:
                values[:] = [_sum(values)]
            self.counts[name] = self.counts.get(name, 0) + 1

    def read(self) -> dict[str, float]:
        if not self.values:
            return {}
        sums = torch.stack([_sum(values) for values in self.values.values()]).tolist()
        means = {k: v / self.counts[k] for k, v in zip(self.values, sums)}
        self.values, self.counts = {}, {}
        return means


def _sum(values: list[Tensor]) -> Tensor:
    """0-dim float32, of 0-dim ones."""
    return torch.stack([v.float() for v in values]).sum()


class _Trainer:
    """The moving parts of one run."""

    def __init__(
        self, objective: Objective, optim: OptimConfig, compiled: bool, device: torch.device
    ) -> None:
        self.objective, self.optim, self.device = objective, optim, device
        self.precision = machine.resolve_precision(optim.precision, device)
        self.phases = objective.phases()
        self.optimizers = make_optimizers(objective, optim)
        self.average = Average(objective.model, optim.ema)
        self.everything = list(objective.parameters())  # zero_grad looks for them in every module, each time
        objective.dropouts = dropouts(objective)
        module: nn.Module = objective
        if dist.world() > 1:
            ids = [device] if device.type == "cuda" else None
            # buckets of gradients are reduced while backward still computes the others
            module = DistributedDataParallel(
                objective,
                device_ids=ids,
                find_unused_parameters=len(self.phases) > 1,
                broadcast_buffers=False,
            )
        self.module = module
        self.compiled = compiled
        self.call: Callable[..., Any] = torch.compile(module) if compiled else module
        self.watch = _Watch()

    def step(self, step: int, steps: int, stream: Iterator[tuple[Batch, Noise]]) -> None:
        parts = [next(stream) for _ in range(self.optim.accumulate)]
        rate = learning_rate(self.optim, step, steps)
        for phase in self.phases:
            if step >= phase.start and step % phase.every == 0:
                self._phase(phase.name, phase.parameters, rate * phase.lr_scale, parts)
        self.objective.stepped()
        self.average.update(step + 1)

    def _phase(
        self, name: str, parameters: list[nn.Parameter], rate: float, parts: list[tuple[Batch, Noise]]
    ) -> None:
        optimizer = self.optimizers[name]
        for i, (batch, noise) in enumerate(parts):
            last = i == len(parts) - 1
            wait = (
                self.module.no_sync()
                if isinstance(self.module, DistributedDataParallel) and not last
                else None
            )
            with wait or nullcontext(), machine.autocast(self.device, self.precision):
                loss = self.call(name, batch, noise)
            (loss.total / len(parts) if len(parts) > 1 else loss.total).backward()
            self.watch.add(loss.logs)
        if self.optim.grad_clip > 0:
            norm = nn.utils.clip_grad_norm_(parameters, self.optim.grad_clip, foreach=True)
            self.watch.add({"grad_norm" if len(self.phases) == 1 else f"{name}_grad_norm": norm})
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.update()
        # other phases' gradients through this loss must not linger either
        for parameter in self.everything:
            parameter.grad = None


def fit(
    objective: Objective,
    source: Source,
    *,
    optim: OptimConfig,
    run: RunConfig,
    out: Path,
    save: Callable[[nn.Module, int], None],
    settings: dict[str, Any],
    hooks: Hooks | None = None,
) -> Result:
    """Train `objective` on `source` for the configured length, going on from what `out` holds.

    save(model, step) writes the averaged model's checkpoint; settings: what a resumed run must share.

    Raises:
        InputError: a batch that cannot be split, a state of another model.
        RunError: non-finite loss (the last good checkpoint stays), a full disk.
    """
    hooks = hooks or Hooks()
    device = machine.pick_device(run.device)
    check_split(optim)
    objective.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    compiled = run.compile if run.compile is not None else device.type == "cuda"
    trainer = _Trainer(objective, optim, compiled, device)
    steps = total_steps(optim, len(source))
    start = load_state(out, objective, trainer.average, trainer.optimizers)
    if dist.any_of(start != dist.on_main(lambda: start), device):
        raise InputError(
            f"{out} differs between machines; a run under torchrun needs a folder that all share"
        )
    if dist.is_main():
        cut_log(out, start)
        if start >= steps and _saved_step(out) != start:
            save(trainer.average.module, start)  # a kill fell between the two files of the last save
    step = _run(trainer, source, start, steps, run, out, save, settings, hooks)
    return Result(trainer.average.module, step, step >= steps)


def _saved_step(out: Path) -> int:
    try:
        return int(io.read_metadata(out / MODEL).get("step", -1))
    except InputError:
        return -1  # missing or damaged: the state is the truth


def pause(log_every: float, elapsed: float) -> float:
    """Seconds between two reports, `elapsed` seconds into the run: `log_every`, but fewer in the first half
    minute, so that a short run leaves a curve as well."""
    return log_every if elapsed >= 30 else min(log_every, max(0.5, 0.2 * elapsed))


class _Keeper:
    """What happens beside the steps: reports, checks, checkpoints."""

    def __init__(self, trainer: _Trainer, steps: int, start: int, report: Callable[[Report], None]) -> None:
        self.trainer, self.steps, self.report = trainer, steps, report
        self.saved = self.looked_step = start
        self.looked = self.kept = time.monotonic()

    def _left(self) -> str:
        """What a run that fails leaves behind."""
        if self.saved == 0:
            return "no checkpoint had been written yet"
        return f"the last good checkpoint is kept ({self.saved} steps)"

    def look(self, step: int) -> None:
        """Report the averages since the last look; stop the run when they are not finite."""
        now, logs = time.monotonic(), self.trainer.watch.read()
        bad = [name for name, value in logs.items() if not math.isfinite(value)]
        if bad:
            raise RunError(
                f"{bad[0]} became {logs[bad[0]]} between steps {self.looked_step + 1} and {step}; "
                f"{self._left()}: try a lower --lr, --grad-clip 1 or --precision fp32"
            )
        logs["lr"] = learning_rate(self.trainer.optim, step - 1, self.steps)
        done = (step - self.looked_step) * self.trainer.optim.batch_size
        rate = done / max(1e-9, now - self.looked)
        self.looked, self.looked_step = now, step
        self.report(Report(step, self.steps, rate, logs))

    def keep(
        self, step: int, out: Path, save: Callable[[nn.Module, int], None], settings: dict[str, Any]
    ) -> None:
        """Write state and model, unless the weights are not finite."""
        trainer = self.trainer
        if not all(bool(p.isfinite().all()) for p in trainer.average.module.parameters()):
            raise RunError(f"weights became non-finite by step {step}; {self._left()}")
        if dist.is_main():
            save_state(out, trainer.objective, trainer.average, trainer.optimizers, step, settings)
            save(trainer.average.module, step)
        self.saved, self.kept = step, time.monotonic()


def _run(
    trainer: _Trainer,
    source: Source,
    start: int,
    steps: int,
    run: RunConfig,
    out: Path,
    save: Callable[[nn.Module, int], None],
    settings: dict[str, Any],
    hooks: Hooks,
) -> int:
    keeper = _Keeper(trainer, steps, start, hooks.report)
    step, began = start, time.monotonic()
    picture_at = began + 20.0
    # a compiled step draws its own noise
    stream = batches(source, trainer.optim, start, trainer.device, 1 if trainer.compiled else AHEAD)
    while step < steps:
        trainer.step(step, steps, stream)
        step += 1
        now = time.monotonic()
        stopping = _stop_wanted(hooks, step, trainer.device)
        last = step == steps or stopping
        due_save = now - keeper.kept >= run.save_every
        if last or due_save or now - keeper.looked >= pause(run.log_every, now - began):
            keeper.look(step)
        if last or due_save:
            keeper.keep(step, out, save, settings)
        if hooks.preview and dist.is_main() and (now >= picture_at or last):
            hooks.preview(trainer.average.module, step)
            picture_at = began + 2 * (now - began) + 20.0
        if stopping:
            break
    return step


def _stop_wanted(hooks: Hooks, step: int, device: torch.device) -> bool:
    if dist.world() == 1:
        return hooks.stop()
    # processes must agree, and agreeing every step would serialise them
    return step % 16 == 0 and dist.any_of(hooks.stop(), device)
