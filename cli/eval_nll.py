"""genkit eval-nll SOURCE: a diffusion model's variational bound in bits/dim, and its curve over the steps.

The bound of a VAE is in importance.py.
"""

import csv
import io as std_io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genkit import dist, io, machine
from genkit.codecs.autoencoder import Autoencoder
from genkit.config import REQUIRED, arg
from genkit.data.source import Source
from genkit.diffusion.bound import VARIANCES, make_chain
from genkit.diffusion.denoiser import Denoise, Denoiser, bind, clipped
from genkit.diffusion.schedules import SPACINGS
from genkit.errors import InputError
from genkit.evaluate.nll import Nll, Point, nll, spread
from genkit.models.load import Loaded
from genkit.models.sampling import prepare, sampling_times

from .common import DataConfig, MachineConfig, check_source, clips, load, open_data
from .console import Meter, emit, say
from .importance import ImportanceConfig, evaluate_vae
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
    machine.tune_allocator()
    device = machine.pick_device(run.device)
    loaded = load(config.model, "eval-nll")
    if isinstance(loaded.module, Autoencoder):
        if config.out is not None:
            raise InputError(f"-o {config.out} is for the curve of a diffusion model; a VAE's bound has none")
        evaluate_vae(loaded, config, importance, data, run)
        return
    if importance.binarise is not None:
        raise InputError("--binarise is for a VAE; a diffusion model's bound is that of 8-bit images")
    files = _files(config.out or "nll")
    model = loaded.module
    assert isinstance(model, Denoiser)
    source = open_data(config.source, data, loaded)
    _check(source, loaded, config.source)
    variance = config.variance or ("learned" if model.learn_variance else "large")
    if variance == "learned" and not model.learn_variance:
        raise InputError(
            f"{loaded.checkpoint.path} has no learned variance; use --variance large or small, "
            "or train with --loss hybrid"
        )
    chain = make_chain(model.schedule, sampling_times(loaded, config.steps, config.spacing))
    precision = machine.resolve_precision(run.precision, device)
    many = device.type == "cuda" and config.steps * (config.count or len(source)) > 4 * run.batch_size
    prepare(model, device, precision, run.compile if run.compile is not None else many)
    clip = clips(config.clip, loaded)

    def with_labels(label: Tensor | None) -> Denoise:
        denoise = bind(model, label if model.classes else None)
        return clipped(denoise, model.schedule) if clip else denoise

    dist.start(device)
    try:
        mine = len(dist.share(len(spread(len(source), config.count))))
        with torch.inference_mode(), Meter("eval-nll", mine * config.steps) as meter:
            found = nll(
                with_labels,
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
    if dist.is_main():
        _write(found, files)
    _print(found, source, variance, files, config.json)


def _files(text: str) -> tuple[Path, ...]:
    """The files that -o asks for.

    Raises:
        InputError: for another suffix, or a path that is of the other kind.
    """
    path, suffix = Path(text), Path(text).suffix.lower()
    if suffix in (".csv", ".png"):
        if path.is_dir():
            raise InputError(f"-o {text} is a folder; name a file or drop the suffix")
        return (path,)
    if suffix and not text.endswith("/"):
        raise InputError(f"-o {text} is no form of output here; use x.csv, x.png or a folder/ for both")
    if path.exists() and not path.is_dir():
        raise InputError(f"-o {text} is a file; name a folder, or x.csv or x.png")
    return path / "curve.csv", path / "curve.png"


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


def _write(found: Nll, files: tuple[Path, ...]) -> None:
    for path in files:
        if path.suffix.lower() == ".csv":
            io.write_text(path, curve_csv(found))
        else:
            io.write_bytes(path, curve_png(found))


def curve_csv(found: Nll) -> str:
    """The curve as text: step, t, bits, error, x0_mse; from the step next to the data."""
    text = std_io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Point._fields)
    writer.writerows([p.step, *(f"{v:.9g}" for v in p[1:])] for p in found.curve)
    return text.getvalue()


def curve_png(found: Nll) -> bytes:
    """The curve as a picture: each step's bits/dim above its squared error of x0, on logarithmic axes."""
    from matplotlib.figure import Figure

    steps = [p.step for p in found.curve]
    curves = {"bits/dim of the step": [p.bits for p in found.curve]}
    curves["MSE of x0"] = [p.x0_mse for p in found.curve]
    figure = Figure(figsize=(7, 6), dpi=120, layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    for axes, (label, values) in zip(panels, curves.items()):
        # a density's term may be negative, and a logarithm has no place for it
        shown = [v if v > 0 else float("nan") for v in values]
        axes.plot(steps, shown, linewidth=1.2, color="#1f5f8b")
        axes.set_yscale("log")
        axes.set_ylabel(label)
        axes.grid(True, which="major", alpha=0.3)
    panels[0].set_title(f"{found.total.value:.4f} ± {found.total.error:.4f} bits/dim, n = {found.n}")
    panels[1].set_xlabel("step of the chain (1 is next to the data)")
    panels[1].set_xscale("log")
    buffer = std_io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
