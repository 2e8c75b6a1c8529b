"""What a run needs to go on as if it had never stopped: weights, averages and optimiser moments, in one
file."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .. import io
from ..config import differences
from ..errors import InputError, RunError
from ..io.tensors import json_field
from .adamw import AdamW
from .average import Average

Optimizers = dict[str, AdamW]
STATE, MODEL, LOG = "state.safetensors", "model.safetensors", "log.jsonl"


def _moments(optimizers: Optimizers) -> dict[str, Tensor]:
    out = {}
    for phase, optimizer in optimizers.items():
        for i, entry in optimizer.state_dict()["state"].items():
            for key, value in entry.items():
                out[f"optim.{phase}.{i}.{key}"] = torch.as_tensor(value)
    return out


def save_state(
    out: Path,
    objective: nn.Module,
    average: Average,
    optimizers: Optimizers,
    step: int,
    settings: dict[str, Any],
) -> None:
    """Write state.safetensors for `step` finished optimiser steps."""
    tensors = {f"weights.{k}": v for k, v in objective.state_dict().items()}
    tensors |= {f"ema.{k}": v for k, v in average.module.state_dict().items()}
    tensors |= _moments(optimizers)
    metadata = {"step": str(step), "settings": json.dumps(settings)}
    io.save_tensors(out / STATE, tensors, "state", metadata)


def load_state(out: Path, objective: nn.Module, average: Average, optimizers: Optimizers) -> int:
    """Put state.safetensors back in place and return its step; 0 when there is none.

    Raises:
        InputError: when the file is damaged or of another model.
    """
    path = out / STATE
    if not path.exists():
        return 0
    with _way_out():
        tensors, metadata = io.load_tensors(path, ("state",))
        step = int(json_field(str(path), metadata, "step"))

    def part(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    try:
        objective.load_state_dict(part("weights."))
        average.module.load_state_dict(part("ema."))
    except RuntimeError as error:
        raise InputError(
            f"{path} does not fit this model ({str(error).splitlines()[0]}); use --fresh"
        ) from None
    for phase, optimizer in optimizers.items():
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in part(f"optim.{phase}.").items():
            index, name = key.split(".", 1)
            like = parameters[int(index)]
            # the fused optimiser walks memory in order: moments must lie in memory as their parameter does
            moved = torch.empty_like(like).copy_(value) if value.shape == like.shape and value.ndim else value
            state.setdefault(int(index), {})[name] = moved
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return step


@contextmanager
def _way_out() -> Iterator[None]:
    """Within, what is wrong with a state is said with what to do about it."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{error}; --fresh starts the run over") from None


def steps_done(out: Path) -> int:
    """The optimiser steps that the run in `out` has behind it, 0 without one.

    Raises:
        InputError: its state is damaged.
    """
    path = out / STATE
    if not path.exists():
        return 0
    with _way_out():
        return int(json_field(str(path), io.read_metadata(path), "step"))


def check_settings(out: Path, settings: dict[str, Any]) -> None:
    """Refuse to go on with a run under other settings than it was begun with.

    Raises:
        InputError: listing the differences.
    """
    if not (out / STATE).exists():
        if (out / MODEL).exists():
            raise InputError(f"{out} holds a model but no {STATE} to go on from; use --fresh or another -o")
        return
    with _way_out():
        old = json_field(str(out / STATE), io.read_metadata(out / STATE), "settings")
    # an option that was none when the run began: weights of another shape are found when they are loaded
    changed = differences(old, {k: v for k, v in settings.items() if k in old})
    # without decay the learning rate does not know the run's length, so a longer run is a continuation
    if old.get("decay") == "none" == settings.get("decay"):
        changed = [c for c in changed if c.split(":")[0] not in ("steps", "epochs")]
    if changed:
        raise InputError(
            f"{out} was trained with other settings ({'; '.join(changed)}); use --fresh or another -o"
        )


def erase(out: Path) -> None:
    """Remove what a run wrote into `out`, and nothing else.

    Raises:
        RunError: the folder is read-only.
    """
    try:
        for name in (STATE, MODEL, LOG):
            (out / name).unlink(missing_ok=True)
        for picture in (out / "samples").glob("*.png"):
            picture.unlink()
    except OSError as error:
        raise RunError(f"cannot start over in {out}: {error.strerror}; choose another -o") from error


def cut_log(out: Path, step: int) -> None:
    """Drop the lines of log.jsonl that were written after the state of `step` was saved."""
    path = out / LOG
    if not path.exists():
        return
    kept = []
    text = path.read_text("utf-8")
    for line in text.splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (json.JSONDecodeError, KeyError):
            continue  # the line that a kill cut in two
    if "".join(kept) != text:  # a finished run may lie where nothing can be written
        io.write_text(path, "".join(kept))
