"""genkit's side of the training benchmarks: its loop without pictures and checkpoints."""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bench_duel import Turns
from bench_networks import count


def train(objective: Any, source: Any, optim: Any, stop: Callable[[], bool], compiled: bool = False) -> Any:
    """genkit.train.loop.fit's result, as `genkit train` calls it; stop: asked after every step."""
    from genkit.train.config import RunConfig
    from genkit.train.loop import Hooks, fit

    with tempfile.TemporaryDirectory() as out:
        return fit(
            objective,
            source,
            optim=optim,
            run=RunConfig(compile=compiled, save_every=1e9),
            out=Path(out),
            save=lambda model, step: None,
            settings={},
            hooks=Hooks(stop=stop),
        )


def train_in_turns(
    objective: Any, source: Any, optim: Any, args: argparse.Namespace, compiled: bool = False
) -> None:
    """Train for as long as the turns go on, each of --images images."""
    from genkit import machine

    steps = args.images // args.batch
    turns = Turns(steps, steps, args.batch, args.clock)
    precision = machine.resolve_precision(optim.precision, machine.pick_device())
    turns.about = {"parameters": count(objective), "precision": precision}
    train(objective, source, optim, lambda: not turns.tick(), compiled)
