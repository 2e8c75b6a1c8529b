"""genkit invert SOURCE: images -> the noise from which DDIM regenerates them, also under guidance."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from genkit import dist, machine
from genkit.config import REQUIRED, arg, check_read
from genkit.data.source import Source
from genkit.diffusion.denoiser import Denoise, Denoiser, bind
from genkit.diffusion.inversion import invert, null_at, null_text_steps
from genkit.diffusion.samplers import ddim
from genkit.diffusion.schedules import SPACINGS
from genkit.errors import InputError
from genkit.io.checkpoint import command_line
from genkit.io.images import labelled, save_png, tile
from genkit.io.latents import Latents
from genkit.models.load import Loaded
from genkit.models.sampling import prepare, sampling_times

from .common import DataConfig, MachineConfig, check_source, load, open_data
from .conditions import ConditionConfig, check_null, denoise_of, labels_of
from .console import Meter, say
from .methods import own_spacing
from .options import make
from .outputs import batched, name_tensors, parse_out, store_tensors
from .preview import decoder_of
from .sample import last

SHOWN = 16  # images in a report's picture


@dataclass(frozen=True)
class InvertConfig:
    """What is inverted, by which model, and where the noise goes."""

    source: str = arg(REQUIRED, "Images, or for a latent model a latents file.", positional=True)
    model: Path | None = arg(None, "Run folder or checkpoint; default: the newest run that fits.", short="-m")
    out: str = arg("noise.safetensors", "x.safetensors, or - for a stream.", short="-o")
    count: int | None = arg(None, "Only the first so many; default: all.", min=1, short="-n")
    steps: int = arg(50, "Network evaluations.", min=1, panel="Sampler")
    spacing: str | None = arg(
        None,
        "How the times are spaced; default: trailing, or as an imported pipeline has it.",
        choices=SPACINGS,
        panel="Sampler",
    )
    refine: int = arg(
        0,
        "Fixed-point iterations a step; 0 is plain DDIM inversion, 3 nearly exact.",
        min=0,
        max=50,
        panel="Sampler",
    )
    label: str | None = arg(
        None, "Classes of the images, in turn, as in `sample`; default: the source's.", panel="Guidance"
    )
    guidance: float = arg(
        1.0,
        "Guidance of the sampling to come: --pivotal prepares it, --report shows it.",
        min=0.0,
        panel="Guidance",
    )
    pivotal: bool = arg(
        False,
        "Fit a null embedding to each step, so that guided sampling gives the images back too "
        "(null-text inversion, Mokady et al. 2023).",
        panel="Guidance",
    )
    inner: int = arg(
        10,
        "Most optimisation steps of --pivotal for a sampler step; the paper's 10.",
        min=1,
        panel="Guidance",
    )
    report: Path | None = arg(
        None, "Also regenerate the images, print PSNR in dB, and draw both into this PNG.", panel="Report"
    )
    json: bool = arg(False, "Print the result as one JSON line.")


def command(name: str) -> Any:
    """The `genkit invert` command."""
    return make(
        _invert,
        InvertConfig,
        DataConfig,
        MachineConfig,
        command="invert",
        defaults={"precision": "fp32"},
        help="Images to the noise that regenerates them: DDIM with rising times.",
    )


class Inverted(NamedTuple):
    """x: (N, *S) noise; nulls: (N, steps, E) with --pivotal."""

    x: Tensor
    nulls: Tensor | None


class Job(NamedTuple):
    """What every part of the work needs to know."""

    config: InvertConfig
    loaded: Loaded
    model: Denoiser
    source: Source
    labels: Tensor | None  # (n,) classes of the images that are inverted
    n: int
    path: Tensor  # times, falling
    device: torch.device
    batch_size: int

    def parts(self, rows: list[int]) -> Iterator[tuple[Tensor, Tensor]]:
        """(indices (B,), images (B, *S)) of the images `rows`, batch by batch."""
        parts = list(batched(rows, self.batch_size))
        for index, batch in zip(parts, self.source.batches(iter(parts), self.device)):
            yield index, batch.x

    def cond(self, index: Tensor) -> Tensor | None:
        """(B,) classes of images `index` on the device."""
        return None if self.labels is None else self.labels[index].to(self.device)


def _invert(config: InvertConfig, data: DataConfig, run: MachineConfig) -> None:
    machine.tune()
    out = parse_out(config.out, ("tensors", "stream"))
    if config.report is not None:
        parse_out(str(config.report), ("png",), "--report")
    device = machine.pick_device(run.device)
    loaded = load(config.model, "invert")
    model = loaded.module
    assert isinstance(model, Denoiser)
    precision = _precision(config, run, loaded, device)
    source = open_data(config.source, data, loaded)
    check_source(source, loaded, config.source)
    n = min(config.count or len(source), len(source))
    labels = source_labels(
        source, loaded, config.label, config.source, torch.arange(n), required=config.pivotal
    )
    spacing = own_spacing(config.spacing, loaded)
    config, path = replace(config, spacing=spacing), sampling_times(loaded, config.steps, spacing)
    job = Job(config, loaded, model, source, labels, n, path, device, run.batch_size)
    dist.start(device)
    try:
        prepare(model, device, precision, bool(run.compile) and not config.pivotal)
        found = _noise_of(job)
        noise = _as_file(job, found)
        store_tensors(out, noise)  # hours of --pivotal must not hang on the report
        report = _report(job, found) if config.report is not None and dist.is_main() else {}
        name_tensors(out, noise, config.json, report)
    finally:
        dist.stop()


def _precision(config: InvertConfig, run: MachineConfig, loaded: Loaded, device: torch.device) -> str:
    """The precision of the network, fp32 wherever null embeddings are fitted.

    Raises:
        InputError: --pivotal of a model without classes, without guidance, or in 16 bits, or an option that
            nothing reads.
    """
    if (config.pivotal or config.guidance != 1) and not getattr(loaded.module, "classes", 0):
        asked = "--pivotal" if config.pivotal else "--guidance"
        raise InputError(
            f"{asked} needs a class-conditional model and {loaded.checkpoint.path} is none; train one with "
            "--class-conditional"
        )
    if config.guidance != 1:
        check_null(loaded, f"--guidance {config.guidance:g}")
    shown = config.pivotal or config.report is not None
    readers = {"inner": (config.pivotal, "--pivotal"), "guidance": (shown, "--pivotal and --report")}
    check_read(config, readers)
    if not config.pivotal:
        return machine.resolve_precision(run.precision, device)
    if config.guidance == 1:
        raise InputError(
            "--pivotal has nothing to do at --guidance 1; give the guidance you will sample with, such as 4"
        )
    if run.precision == "bf16":
        raise InputError("--pivotal fails in bf16; drop --precision bf16")
    return "fp32"


def _noise_of(job: Job) -> Inverted:
    """The noise of all images, and their null embeddings; shared out over the processes."""
    mine = list(dist.share(job.n))
    steps = job.config.steps
    rows, nulls = [], []
    label, per_image = ("invert, image steps", steps) if job.config.pivotal else ("invert", 1)
    with Meter(label, len(mine) * per_image) as meter, torch.inference_mode():
        for index, x in job.parts(mine):
            begun, moved = meter.done, len(index) * per_image

            def progress(k: int, begun: int = begun, size: int = len(index)) -> None:
                meter.update(begun + k * size)

            trajectory = _trajectory(job, index, x)
            rows.append(trajectory[0].cpu())
            if job.config.pivotal:
                nulls.append(_nulls(job, index, trajectory, progress))
            meter.update(begun + moved)
    z = dist.gather_rows(torch.cat(rows) if rows else torch.zeros(0, *job.loaded.info.shape))
    if not job.config.pivotal:
        return Inverted(z, None)
    width = job.model.embed(job.model.null(1).to(job.device)).shape[1]
    return Inverted(z, dist.gather_rows(torch.cat(nulls) if nulls else torch.zeros(0, steps, width)))


def _trajectory(job: Job, index: Tensor, x: Tensor) -> list[Tensor]:
    """The points of the inversion at guidance 1, noise first, the images last; only the noise if no more is
    needed."""
    denoise = bind(job.model, job.cond(index))
    steps = invert(denoise, job.model.schedule, x, job.path, refine=job.config.refine)
    if not job.config.pivotal:
        return [last(steps).x]
    return [x, *(step.x for step in steps)][::-1]


def _nulls(job: Job, index: Tensor, trajectory: list[Tensor], progress: Callable[[int], None]) -> Tensor:
    """(B, steps, E) the fitted null embeddings, on the CPU."""
    cond = job.cond(index)
    assert cond is not None
    fitted = null_text_steps(
        job.model,
        job.model.schedule,
        cond,
        job.model.null(len(index)).to(job.device),
        job.config.guidance,
        trajectory,
        job.path,
        inner=job.config.inner,
    )
    found = []
    for k, null in enumerate(fitted):
        found.append(null.cpu())
        progress(k + 1)
    return torch.stack(found, dim=1)


def _as_file(job: Job, found: Inverted) -> Latents:
    """The record that is written: the noise, and all that sampling needs to give the images back."""
    config, info = job.config, job.loaded.info
    extra = {
        "steps": config.steps,
        "spacing": config.spacing,
        "refine": config.refine,
        "guidance": config.guidance if config.pivotal else 1.0,
        "source": config.source,
    }
    return Latents(
        found.x,
        "noise",
        labels=job.labels,
        model=job.loaded.checkpoint.sha256,
        codec=info.codec,
        classes=info.classes if job.labels is not None else (),
        extra=extra,
        nulls=found.nulls,
    )


def source_labels(
    source: Source, loaded: Loaded, label: str | None, name: str, index: Tensor, *, required: bool = False
) -> Tensor | None:
    """(n,) the classes, as the model counts them, of examples `index` (n,): as --label says, else the
    source's own by their names, else the null class; None for a model without classes.

    Raises:
        InputError: --label of a model without classes or out of range, classes that the model does not
            know, or `required` and no labels at all.
    """
    classes = getattr(loaded.module, "classes", 0)
    if label is not None or not classes:
        # asks for the label of a model without classes, too, for the error
        return labels_of(loaded, ConditionConfig(label=label), index)
    if source.labels is None:
        if required:
            raise InputError(f"{name} has no labels; give its images' classes with --label")
        say(f"note: {name} has no labels, so the null class is used; --label gives them")
        return torch.full_like(index, classes)
    mine, theirs = loaded.info.classes, source.info.classes
    places = [mine.index(c) if c in mine else -1 for c in theirs]
    if not mine:  # a model that does not name its classes counts them
        places = [i if i < classes else -1 for i in range(len(theirs))]
    told = source.labels[index]
    found = torch.tensor(places)[told]
    if (found < 0).any():
        strange = theirs[int(told[found < 0][0])]
        raise InputError(
            f"{name} has class {strange!r}, which {loaded.checkpoint.path} does not know; give --label"
        )
    return found


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """(B,) peak signal-to-noise ratio in dB of images (B, C, H, W) in [-1, 1], whose peak-to-peak is 2."""
    error = (a.clamp(-1, 1) - b.clamp(-1, 1)).square().flatten(1).mean(dim=1)
    return 10 * torch.log10(4 / error.clamp(min=1e-12))


@torch.inference_mode()
def _report(job: Job, found: Inverted) -> dict[str, Any]:
    """PSNR of the ways back over all images, and a picture of some: the originals above what came back."""
    config, schedule = job.config, job.model.schedule
    assert config.report is not None
    show = decoder_of(job.loaded.info, job.device, job.loaded.checkpoint.path.parent)
    ways = _ways(job, found)
    values: dict[str, list[Tensor]] = {way.key: [] for way in ways}
    rows: list[Tensor] = []
    with Meter("report", job.n * len(ways)) as meter:
        for index, x in job.parts(list(range(job.n))):
            before, made = show(x), []
            for way in ways:
                z = found.x[index].to(job.device)
                made.append(show(last(ddim(way.denoise(index), schedule, z, job.path)).x))
                values[way.key].append(psnr(before, made[-1]).cpu())
                meter.update(meter.done + len(index))
            rows = rows or [part[:SHOWN].cpu() for part in (before, *made)]
    means = {key: torch.cat(parts).mean().item() for key, parts in values.items()}
    titles = ["original", *(f"{way.title}: {means[way.key]:.2f} dB" for way in ways)]
    pictures = [tile(row, columns=len(row)) for row in rows]
    about = {**means, "steps": config.steps, "refine": config.refine, "command": command_line()}
    save_png(config.report, labelled(pictures, titles, columns=1), about)
    for title in titles[1:]:
        say(f"{title} (mean PSNR of {job.n} after {config.steps} steps)")
    say(f"report: {config.report}")
    return {**means, "report": str(config.report)}


class Way(NamedTuple):
    """A way back from the noise: its key in the JSON line, its title, and the Denoise for images `index`."""

    key: str
    title: str
    denoise: Callable[[Tensor], Denoise]


def _ways(job: Job, found: Inverted) -> list[Way]:
    """The round trip, and where there is guidance the guided one, and that with the fitted embeddings."""
    config = job.config
    asked = ConditionConfig(guidance=config.guidance)
    ways = [Way("psnr_db", "round trip", lambda index: bind(job.model, job.cond(index)))]
    if config.guidance == 1 or job.labels is None:
        return ways
    labels, at = job.labels, f"at guidance {config.guidance:g}"
    ways.append(
        Way("psnr_guided_db", at, lambda index: denoise_of(job.loaded, asked, labels[index], job.device))
    )
    if found.nulls is None:
        say("note: --pivotal would show how null-text inversion does at this guidance")
        return ways
    nulls = found.nulls

    def fitted(index: Tensor) -> Denoise:
        null = null_at(nulls[index].to(job.device), job.path)
        return denoise_of(job.loaded, asked, labels[index], job.device, null)

    return [*ways, Way("psnr_null_text_db", f"{at} with null-text", fitted)]
