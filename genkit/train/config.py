"""How a run is optimised and how it is kept: two records of options, each with its help."""

from dataclasses import dataclass

from ..config import arg

_OPTIM, _RUN, _MACHINE = "Optimisation", "Run", "Machine"


@dataclass(frozen=True)
class OptimConfig:
    """What decides the weights, besides the model and the data; a run resumes only under the same values."""

    steps: int | None = arg(None, "Length in optimiser steps (instead of --epochs).", min=1, panel=_OPTIM)
    epochs: float | None = arg(None, "Length in passes over the data.", min=1e-6, panel=_OPTIM)
    batch_size: int = arg(128, "Examples per step, over all processes.", min=1, panel=_OPTIM)
    accumulate: int = arg(
        1, "Split each step's batch into this many parts, to save memory.", min=1, panel=_OPTIM
    )
    lr: float = arg(1e-3, "Peak learning rate of AdamW.", min=0.0, panel=_OPTIM)
    warmup: int = arg(0, "Steps over which the learning rate rises from 0.", min=0, panel=_OPTIM)
    decay: str = arg(
        "none",
        "Fall of the learning rate to 0 after warm-up; wsd (warm-up, stable, decay; after Hu et al. 2024): "
        "linear over the last fifth.",
        choices=("none", "linear", "cosine", "wsd"),
        panel=_OPTIM,
    )
    beta1: float = arg(0.9, "AdamW's decay of the gradient's mean.", min=0.0, max=0.9999, panel=_OPTIM)
    beta2: float = arg(0.999, "AdamW's decay of the gradient's square.", min=0.0, max=0.99999, panel=_OPTIM)
    weight_decay: float = arg(0.0, "AdamW's decoupled weight decay.", min=0.0, panel=_OPTIM)
    grad_clip: float = arg(0.0, "Largest gradient norm; 0: no clipping.", min=0.0, panel=_OPTIM)
    ema: float = arg(
        0.05,
        "Half-life of the averaged weights, as a share of the steps so far; 0: no averaging.",
        min=0.0,
        max=1.0,
        panel=_OPTIM,
    )
    flip: bool = arg(False, "Mirror half of the images.", panel=_OPTIM)
    seed: int = arg(
        0,
        "Decides the initial weights, the order of examples and all noise.",
        min=0,
        max=2**63 - 1,
        panel=_OPTIM,
    )
    precision: str = arg(
        "auto",
        "Arithmetic of matrix products; auto: bf16 on a GPU that has it and a CPU with AMX.",
        choices=("auto", "bf16", "fp32"),
        panel=_MACHINE,
    )


@dataclass(frozen=True)
class RunConfig:
    """What decides how a run is watched and kept, but not its weights."""

    device: str = arg("auto", "auto, cpu, cuda, cuda:1, …", panel=_MACHINE)
    compile: bool | None = arg(None, "Compile the training step; default: on CUDA only.", panel=_MACHINE)
    log_every: float = arg(
        5.0, "Seconds between lines of log.jsonl; fewer in the first half minute.", min=0.0, panel=_RUN
    )
    save_every: float = arg(60.0, "Seconds between checkpoints.", min=0.0, panel=_RUN)
    tensorboard: bool = arg(False, "Also write TensorBoard events into the run folder.", panel=_RUN)
