"""genkit invert SOURCE: images -> the noise from which DDIM regenerates them."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genkit import dist, machine
from genkit.config import REQUIRED, arg
from genkit.data.source import Source
from genkit.diffusion.denoiser import Denoiser, bind
from genkit.diffusion.inversion import invert
from genkit.diffusion.samplers import ddim
from genkit.diffusion.schedules import SPACINGS, times
from genkit.errors import InputError
from genkit.io.checkpoint import command_line
from genkit.io.images import save_png, tile
from genkit.io.latents import Latents
from genkit.models.load import Loaded
from genkit.models.sampling import prepare

from .common import DataConfig, MachineConfig, check_shape, load, open_data
from .console import Meter, say
from .options import make
from .outputs import batched, parse_out, write_tensors
from .preview import decoder_of
from .sample import last


@dataclass(frozen=True)
class InvertConfig:
    """What is inverted, by which model, and where the noise goes."""

    source: str = arg(REQUIRED, "Images, or for a latent model a latents file.", positional=True)
    model: Path | None = arg(None, "Run folder or checkpoint; default: the newest run that fits.", short="-m")
    out: str = arg("noise.safetensors", "x.safetensors, or - for a stream.", short="-o")
    count: int | None = arg(None, "Only the first so many; default: all.", min=1, short="-n")
    steps: int = arg(50, "Network evaluations.", min=1, panel="Sampler")
    spacing: str = arg("trailing", "How the times are spaced.", choices=SPACINGS, panel="Sampler")
    refine: int = arg(
        0,
        "Fixed-point iterations a step; 0 is plain DDIM inversion, 3 nearly exact.",
        min=0,
        max=50,
        panel="Sampler",
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


def _invert(config: InvertConfig, data: DataConfig, run: MachineConfig) -> None:
    machine.tune_allocator()
    out = parse_out(config.out, ("tensors", "stream"))
    device = machine.pick_device(run.device)
    loaded = load(config.model, "invert")
    source = open_data(config.source, data, loaded)
    check_source(source, loaded, config.source)
    n = min(config.count or len(source), len(source))
    dist.start(device)
    try:
        model = loaded.module
        assert isinstance(model, Denoiser)
        prepare(model, device, machine.resolve_precision(run.precision, device), bool(run.compile))
        path = times(config.steps, config.spacing)
        rows: list[Tensor] = []
        parts = list(batched(list(dist.share(n)), run.batch_size))
        with Meter("invert", n) as meter, torch.inference_mode():
            for index, batch in zip(parts, source.batches(iter(parts), device)):
                rows.append(
                    last(invert(bind(model), model.schedule, batch.x, path, refine=config.refine)).x.cpu()
                )
                meter.update(meter.done + len(index))
        z = dist.gather_rows(torch.cat(rows) if rows else torch.zeros(0, *loaded.info.shape))
        report = {}
        if config.report is not None and dist.is_main():
            report = _report(config.report, config, run, loaded, source, z, path, device)
        extra = {
            "steps": config.steps,
            "spacing": config.spacing,
            "refine": config.refine,
            "source": config.source,
        }
        noise = Latents(z, "noise", model=loaded.checkpoint.sha256, codec=loaded.info.codec, extra=extra)
        write_tensors(out, noise, config.json, report)
    finally:
        dist.stop()


def check_source(source: Source, loaded: Loaded, name: str) -> None:
    """Refuse data that the model was not made for: another kind, another shape, another codec's latents.

    Raises:
        InputError: with what does not match.
    """
    info = source.info
    if info.kind != loaded.info.kind:
        remedy = "encode the images first" if loaded.info.kind == "latents" else "give the images themselves"
        raise InputError(f"{name} holds {info.kind}, and the model works on {loaded.info.kind}; {remedy}")
    check_shape(info.shape, loaded.info.shape, name)
    if info.codec != loaded.info.codec:
        raise InputError(
            f"{name} was encoded by another codec than the model's training data; encode with that one"
        )
    # the model's own normalisation: the file's was measured on whatever it holds
    source.info = info._replace(shift=loaded.info.shift, scale=loaded.info.scale)


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """(B,) peak signal-to-noise ratio in dB of images (B, C, H, W) in [-1, 1], whose peak-to-peak is 2."""
    error = (a.clamp(-1, 1) - b.clamp(-1, 1)).square().flatten(1).mean(dim=1)
    return 10 * torch.log10(4 / error.clamp(min=1e-12))


@torch.inference_mode()
def _report(
    report: Path,
    config: InvertConfig,
    run: MachineConfig,
    loaded: Loaded,
    source: Source,
    z: Tensor,
    path: Tensor,
    device: torch.device,
) -> dict[str, Any]:
    """PSNR of the round trip over all images, and a picture of some: originals above what came back."""
    model: Any = loaded.module
    show = decoder_of(loaded.info, device, loaded.checkpoint.path.parent)
    values: list[Tensor] = []
    pictures: list[Tensor] = []
    parts = list(batched(list(range(len(z))), run.batch_size))
    for index, batch in zip(parts, source.batches(iter(parts), device)):
        x = last(ddim(bind(model), model.schedule, z[index].to(device), path)).x
        before, after = show(batch.x), show(x)
        values.append(psnr(before, after).cpu())
        pictures += [torch.stack([before, after], dim=1).cpu()] if not pictures else []
    mean = torch.cat(values).mean().item()
    pairs = pictures[0][:16]
    rows = torch.cat([pairs[:, 0], pairs[:, 1]])
    about = {"psnr_db": mean, "steps": config.steps, "refine": config.refine, "command": command_line()}
    save_png(report, tile(rows, columns=len(pairs)), about)
    say(f"round trip of {len(z)}: PSNR {mean:.2f} dB in {config.steps} steps -> {report}")
    return {"psnr_db": mean, "report": str(report)}
