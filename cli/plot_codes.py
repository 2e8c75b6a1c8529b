"""genkit plot latents, manifold and traversal: pictures of codes and of what a decoder makes of them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from genkit import machine
from genkit.codecs.priors import PriorBottleneck
from genkit.config import REQUIRED, arg
from genkit.errors import InputError, RunError
from genkit.evaluate.subset import spread
from genkit.io.latents import Latents, load_latents
from genkit.models.load import Loaded
from genkit.models.prior import own_codes
from genkit.plots import codes, latents

from .common import DataConfig, PrecisionConfig, check_shape, load, open_data
from .console import say
from .options import make
from .plot import FIGURE, JSON, about_file, finish, form_of, names_of
from .streams import read_input


@dataclass(frozen=True)
class LatentsConfig:
    """Which codes, and how they get into the plane."""

    files: tuple[str, ...] = arg(
        REQUIRED, "Latents files or folders of shards; several are shown side by side.", positional=True
    )
    out: str = arg("latents.png", FIGURE, short="-o")
    method: str = arg("pca", "How codes get into the plane.", choices=latents.METHODS)
    count: int = arg(5000, "So many codes, spread evenly over each file.", min=2, short="-n")
    thumbnails: str | None = arg(
        None, "The images of the codes, in their order: pictures take the place of some points."
    )
    seed: int = arg(0, "Decides where t-SNE begins.", min=0, max=2**32 - 1)
    json: bool = arg(False, JSON)


@dataclass(frozen=True)
class ManifoldConfig:
    """Which decoder, and how fine its plane."""

    model: Path | None = arg(None, "Run folder or checkpoint; default: the newest run that fits.", short="-m")
    out: str = arg("manifold.png", FIGURE, short="-o")
    count: int = arg(20, "Images a side, at equal steps of the prior's probability.", min=2, short="-n")
    json: bool = arg(False, JSON)


@dataclass(frozen=True)
class TraversalConfig:
    """Whose code is changed, and how far."""

    source: str | None = arg(
        None, "Images whose code is changed; without it, the code that --seed draws.", positional=True
    )
    model: Path | None = arg(None, "Run folder or checkpoint; default: the newest run that fits.", short="-m")
    out: str = arg("traversal.png", FIGURE, short="-o")
    index: int = arg(0, "Which image of the source, or of the seed.", min=0)
    seed: int = arg(0, "Decides the code where no image is given.", min=0, max=2**63 - 1)
    units: int = arg(10, "Rows: the units that change the picture most.", min=1)
    count: int = arg(9, "Columns: values of a unit.", min=2, short="-n")
    reach: float = arg(3.0, "Values run from minus to plus this.", min=1e-6)
    json: bool = arg(False, JSON)


def command(name: str) -> Any:
    """The `genkit plot NAME` command."""
    fp32 = {"precision": "fp32"}
    if name == "latents":
        help = "Codes in the plane, coloured by class, with the accuracy of their 5 nearest neighbours."
        return make(_latents, LatentsConfig, DataConfig, command="plot latents", help=help)
    if name == "manifold":
        help = "Images decoded over the plane of the first two latent units (Kingma & Welling 2014, fig. 4)."
        return make(
            _manifold, ManifoldConfig, PrecisionConfig, command="plot manifold", help=help, defaults=fp32
        )
    help = "What each latent unit does to an image, the strongest first."
    groups = (TraversalConfig, DataConfig, PrecisionConfig)
    return make(_traversal, *groups, command="plot traversal", help=help, defaults=fp32)


def _latents(config: LatentsConfig, data: DataConfig) -> None:
    path = form_of(config.out)
    titles = names_of([Path(f).with_suffix("") for f in config.files])
    panels, numbers = [], []
    for file, title in zip(config.files, titles):
        found = load_latents(read_input(file))
        panel, accuracy = about_file(file, lambda f=found, t=title: _panel(f, t, config, data))  # type: ignore[misc]
        panels.append(panel)
        size = found.z[0].numel()
        numbers.append({"file": file, "n": len(panel.points), "units": size, "knn_accuracy": accuracy})
        if accuracy is None:
            say(f"note: {file} has no classes with 5 codes each, so its neighbours predict nothing")
        elif not config.json:
            say(f"{file}: {latents.NEIGHBOURS}-NN accuracy {accuracy:.4f} ({len(panel.points)} codes)")
    about = {"plot": "latents", "files": list(config.files), "method": config.method, "seed": config.seed}
    named = any(p.labels is not None for p in panels)
    finish(
        path,
        lambda figure: latents.draw_panels(figure, panels),
        latents.panels_size(len(panels), named),
        about,
        {"method": config.method, "files": numbers},
        config.json,
    )


def _panel(
    found: Latents, title: str, config: LatentsConfig, data: DataConfig
) -> tuple[latents.Panel, float | None]:
    """The panel of a file, and the accuracy of its codes' neighbours where they have classes."""
    kept = spread(len(found.z), config.count)
    z = found.z[kept]
    labels = found.labels[kept] if found.labels is not None else None
    classes: tuple[str, ...] = ()
    accuracy = None
    if labels is not None:
        classes = found.classes or tuple(map(str, range(int(labels.max()) + 1)))
        if not 0 <= int(labels.min()) <= int(labels.max()) < len(classes):
            raise ValueError(f"has labels outside its {len(classes)} classes; encode it again")
        accuracy = latents.knn_accuracy(z, labels)
        if accuracy is not None:
            title += f"\n{latents.NEIGHBOURS}-NN accuracy of the whole codes {100 * accuracy:.1f} %"
    points, axes = latents.project(z, config.method, config.seed)
    pictures = None
    if config.thumbnails is not None:
        pictures = _pictures(config.thumbnails, len(found.z), kept, data)
    tags = labels.numpy() if labels is not None else None
    return latents.Panel(title, points, axes, tags, classes, pictures), accuracy


def _pictures(spec: str, count: int, kept: Tensor, data: DataConfig) -> np.ndarray:
    """(N, H, W) or (N, H, W, 3) pictures in [0, 1] of the examples `kept` of a source.

    Raises:
        InputError: it is not the images of `count` codes.
    """
    source: Any = open_data(spec, data)
    if source.info.kind != "images":
        raise InputError(f"--thumbnails {spec} holds {source.info.kind}; give the images that were encoded")
    if len(source) != count:
        raise InputError(
            f"--thumbnails {spec} has {len(source)} images and there are {count} codes; "
            "give the images that were encoded"
        )
    pixels = source.uint8(kept).float() / 255
    return (pixels[:, 0] if pixels.shape[1] == 1 else pixels[:, :3].permute(0, 2, 3, 1)).numpy()


def _decoder(loaded: Loaded, run: PrecisionConfig) -> Callable[[Tensor], Tensor]:
    """Codes (B, *S) -> images on the CPU, in batches, refused where they are not finite."""
    device = machine.pick_device(run.device)
    module: Any = loaded.module.to(device)
    precision = machine.resolve_precision(run.precision, device)

    @torch.inference_mode()
    def decode(z: Tensor) -> Tensor:
        with machine.autocast(device, precision):
            parts = [module.decode(part.to(device)).float().cpu() for part in z.split(run.batch_size)]
        x = torch.cat(parts)
        if not x.isfinite().all():
            raise RunError("the decoder answers NaN or infinity; try --precision fp32")
        return x

    return decode


def _has_prior(loaded: Loaded) -> bool:
    return bool(getattr(getattr(loaded.module, "bottleneck", None), "has_prior", False))


def _manifold(config: ManifoldConfig, run: PrecisionConfig) -> None:
    machine.tune()
    path = form_of(config.out)
    loaded = load(config.model, "decode")
    shape, name = _shape(loaded), loaded.checkpoint.path
    values, unit = _sides(loaded, config.count)
    z = about_file(name, lambda: codes.plane_codes(shape, torch.tensor(values)))
    images = _decoder(loaded, run)(z)
    about = {"plot": "manifold", "model": loaded.checkpoint.sha256, "count": config.count}
    finish(
        path,
        lambda figure: codes.draw_plane(figure, images, values, unit),
        codes.sheet_size(config.count, config.count, images.shape[1:]),
        about,
        {"model": str(name), "values": values},
        config.json,
    )


def _sides(loaded: Loaded, n: int) -> tuple[list[float], str]:
    """(n values for the sides of the plane, what they are in): as far as the model's own prior reaches where
    it is a shape in the plane, else the quantiles of a standard normal."""
    bottleneck = getattr(loaded.module, "bottleneck", None)
    if isinstance(bottleneck, PriorBottleneck) and bottleneck.prior.units is not None:
        far = float(bottleneck.draw(0, torch.arange(2000), _shape(loaded)).abs().max())
        return torch.linspace(-far, far, n).tolist(), "in the plane of the prior"
    if not _has_prior(loaded):
        say(
            f"note: the codes of {loaded.checkpoint.path} have no normal prior; the plane may lie beside them"
        )
    return codes.quantiles(n).tolist(), "standard deviations of the prior"


def _shape(loaded: Loaded) -> tuple[int, int, int]:
    """The shape of a code."""
    module: Any = loaded.module
    return tuple(module.latent_shape)  # type: ignore[return-value]


def _traversal(config: TraversalConfig, data: DataConfig, run: PrecisionConfig) -> None:
    machine.tune()
    path = form_of(config.out)
    loaded = load(config.model, "encode" if config.source is not None else "decode")
    shape = _shape(loaded)
    decode = _decoder(loaded, run)
    z = _start(config, data, loaded, run)
    strength = codes.effects(z, config.reach, decode)
    units = strength.argsort(descending=True, stable=True)[: config.units].tolist()
    values = torch.linspace(-config.reach, config.reach, config.count)
    images = decode(codes.traversal_codes(z, units, values))
    names = [codes.unit_name(u, shape) for u in units]
    rows = [
        {"unit": n, "effect": strength[u].item(), "value": z.flatten()[u].item()}
        for n, u in zip(names, units)
    ]
    about = {
        "plot": "traversal",
        "model": loaded.checkpoint.sha256,
        "source": config.source,
        "index": config.index,
        "seed": config.seed,
    }
    finish(
        path,
        lambda figure: codes.draw_traversal(figure, images, names, values.tolist()),
        codes.sheet_size(len(units), config.count, images.shape[1:]),
        about,
        {"model": str(loaded.checkpoint.path), "values": values.tolist(), "units": rows},
        config.json,
    )


def _start(config: TraversalConfig, data: DataConfig, loaded: Loaded, run: PrecisionConfig) -> Tensor:
    """(*S) the code that is changed: of an image, or drawn.

    Raises:
        InputError: the source is none of images, or has too few; or codes cannot be drawn.
    """
    module: Any = loaded.module
    if config.source is None:
        if not _has_prior(loaded):
            raise InputError(f"{loaded.checkpoint.path} has no prior to draw a code from; give images")
        return own_codes(module, config.seed, torch.tensor([config.index]))[0]
    source = open_data(config.source, data, loaded)
    if source.info.kind != "images":
        raise InputError(f"{config.source} holds {source.info.kind}; a traversal starts at an image")
    check_shape(source.info.shape, loaded.info.shape, config.source)
    if config.index >= len(source):
        raise InputError(f"--index {config.index} is beyond the {len(source)} images of {config.source}")
    device = machine.pick_device(run.device)
    x = next(iter(source.batches(iter([torch.tensor([config.index])]), device))).x
    with torch.inference_mode():
        return module.to(device).encode(x).z[0].float().cpu()
