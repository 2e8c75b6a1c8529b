"""genkit eval-nll SOURCE: a diffusion model's variational bound in bits/dim, and its curve over the steps.

The bound of a VAE is in importance.py.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genkit import dist, machine
from genkit.codecs.autoencoder import Autoencoder
from genkit.config import REQUIRED, arg, check_read
from genkit.data.source import Source
from genkit.diffusion.bound import VARIANCES, make_chain
from genkit.diffusion.denoiser import Denoise, Denoiser, bind, clipped
from genkit.diffusion.schedules import SPACINGS
from genkit.errors import InputError
from genkit.evaluate.nll import Bind, Nll, nll
from genkit.evaluate.subset import spread
from genkit.models.load import Loaded
from genkit.models.sampling import prepare, sampling_times

from .common import DataConfig, MachineConfig, check_source, clips, load, open_data
from .console import Meter, emit, say
from .importance import ImportanceConfig, evaluate_vae
from .nll_curve import curve_files, write_curve
from .options import make

HELP = (
    "How likely a model finds images: a diffusion model's variational bound in bits/dim, step by step; "
    "a VAE's importance-weighted bound in nats."
)


@dataclass(frozen=True)
class NllConfig:
    """Which model is measured on what, and along which chain or by how many samples."""

    source: str = arg(
        REQUIRED,
        "Data set name, image folder, zip, or latents; NAME:test is a data set's test split.",
        positional=True,
    )
    model: Path | None = arg(None, "Run folder or checkpoint; default: the newest run that fits.", short="-m")
    count: int | None = arg(
        256,
        "So many images, spread evenly over the source; the error shrinks with their root.",
        min=1,
        short="-n",
    )
    out: str | None = arg(
        None,
        "The curve of a diffusion model: x.csv, x.png, or dir/ for curve.csv and curve.png; default: nll/.",
        short="-o",
    )
    seed: int = arg(0, "Decides the noise of each image at each step.", min=0, max=2**63 - 1)
    json: bool = arg(False, "Print the result, with its curve, as one JSON line.")
    steps: int = arg(1000, "Steps of the chain, one network evaluation of each image.", min=2, panel="Chain")
    spacing: str = arg("linspace", "How a shorter chain is spaced.", choices=SPACINGS, panel="Chain")
    variance: str | None = arg(
        None,
        "Variance of a step: large, small or learned; default: learned where the model has it, else large.",
        choices=VARIANCES,
        panel="Chain",
    )
    clip: bool | None = arg(
        None,
        "Keep each predicted image in [-1, 1]; default: yes for images, no for latents.",
        panel="Chain",
    )


def command(name: str) -> Any:
    """The `genkit eval-nll` command."""
    defaults = {"precision": "fp32"}
    groups = (NllConfig, ImportanceConfig, DataConfig, MachineConfig)
    return make(_eval, *groups, command="eval-nll", defaults=defaults, help=HELP)


def _eval(config: NllConfig, importance: ImportanceConfig, data: DataConfig, run: MachineConfig) -> None:
    machine.tune()
    device = machine.pick_device(run.device)
    loaded = load(config.model, "eval-nll")
    if isinstance(loaded.module, Autoencoder):
        if config.out is not None:
            raise InputError(f"-o {config.out} is for the curve of a diffusion model; a VAE's bound has none")
        chain = False, "the chain of a diffusion model"
        check_read(config, dict.fromkeys(("steps", "spacing", "variance", "clip"), chain))
        evaluate_vae(loaded, config, importance, data, run)
        return
    if importance.binarise is not None:
        raise InputError("--binarise is for a VAE; a diffusion model's bound is that of 8-bit images")
    check_read(importance, {"samples": (False, "the bound of a VAE")})
    files = curve_files(config.out or "nll")
    source = open_data(config.source, data, loaded)
    _check(source, loaded, config.source)
    variance = _variance(config.variance, loaded)
    found = _bound(loaded, source, variance, config, run, device)
    if dist.is_main():
        write_curve(found, files)
    _print(found, source, variance, files, config.json)


def _variance(asked: str | None, loaded: Loaded) -> str:
    """The variance of the chain's steps: as asked, else the learned one, else the large one.

    Raises:
        InputError: the learned one of a model that learned none.
    """
    learned: Any = getattr(loaded.module, "learn_variance", False)
    if asked == "learned" and not learned:
        raise InputError(
            f"{loaded.checkpoint.path} has no learned variance; use --variance large or small, "
            "or train with --loss hybrid"
        )
    return asked or ("learned" if learned else "large")


def _bound(
    loaded: Loaded,
    source: Source,
    variance: str,
    config: NllConfig,
    run: MachineConfig,
    device: torch.device,
) -> Nll:
    """The bound of the images that -n asks for, measured by all processes."""
    model = loaded.module
    assert isinstance(model, Denoiser)
    chain = make_chain(model.schedule, sampling_times(loaded, config.steps, config.spacing))
    many = device.type == "cuda" and config.steps * (config.count or len(source)) > 4 * run.batch_size
    compiled = run.compile if run.compile is not None else many
    prepare(model, device, machine.resolve_precision(run.precision, device), compiled)
    dist.start(device)
    try:
        mine = len(dist.share(len(spread(len(source), config.count))))
        with torch.inference_mode(), Meter("eval-nll", mine * config.steps) as meter:
            return nll(
                _binder(model, clips(config.clip, loaded)),
                model.schedule,
                chain,
                source,
                device,
                variance=variance,
                limit=config.count,
                seed=config.seed,
                batch_size=run.batch_size,
                progress=meter.update,
            )
    finally:
        dist.stop()


def _binder(model: Denoiser, clip: bool) -> Bind:
    """labels (B,) -> the model, told them where it has classes, its predicted images kept in [-1, 1] where
    `clip` says so."""

    def with_labels(label: Tensor | None) -> Denoise:
        denoise = bind(model, label if model.classes else None)
        return clipped(denoise, model.schedule) if clip else denoise

    return with_labels


def _check(source: Source, loaded: Loaded, spec: str) -> None:
    """Refuse data that are not of the model's kind.

    Raises:
        InputError: of another kind, shape or codec, or without the classes that the model knows.
    """
    check_source(source, loaded, spec)
    mine, model = source.info, loaded.info
    classes = getattr(loaded.module, "classes", 0)
    if not classes:
        return
    if source.labels is None:
        raise InputError(
            f"the model knows {classes} classes and {spec} has no labels; its bound is that of images with "
            "their class, so give a source with labels"
        )
    if int(source.labels.max()) >= classes or (model.classes and mine.classes != model.classes):
        raise InputError(
            f"the classes of {spec} ({_names(mine.classes)}) are not those of the model "
            f"({_names(model.classes)}); give the data it was trained on, or its test split"
        )


def _names(classes: tuple[str, ...]) -> str:
    return ", ".join(classes[:4]) + (f", … {len(classes)} in all" if len(classes) > 4 else "")


def _print(found: Nll, source: Source, variance: str, files: tuple[Path, ...], as_json: bool) -> None:
    if source.info.kind == "latents":
        say("note: latents are no 8-bit data: L_0 is a density, and the bound may be negative")
    if as_json:
        values = {k: v._asdict() if hasattr(v, "_asdict") else v for k, v in found._asdict().items()}
        values["curve"] = [p._asdict() for p in found.curve]
        emit({"source": source.info.name, "variance": variance, **values, "out": [*map(str, files)]}, True)
        return
    emit(f"{'source':<10} {source.info.name}  n = {found.n}")
    emit(f"{'chain':<10} {len(found.curve)} steps, variance {variance}")
    rows = {"L_T": found.prior, "L_{t-1}": found.steps, "L_0": found.decoder, "bits/dim": found.total}
    for name, (value, error) in rows.items():
        emit(f"{name:<10} {value:.6f} ± {error:.6f}")
    for path in files:
        emit(f"{'curve':<10} {path}")
