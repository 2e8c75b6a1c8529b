"""genkit eval-nll of a VAE: its importance-weighted bound in nats an image."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from genkit import dist, machine
from genkit.codecs.autoencoder import Autoencoder
from genkit.config import arg
from genkit.data.source import Source
from genkit.errors import InputError
from genkit.evaluate.importance import ImportanceBound, Posterior, importance_bound
from genkit.evaluate.subset import spread
from genkit.models import vae
from genkit.models.load import Loaded
from genkit.objectives.reconstruction import BINARISE, binarised
from genkit.train.objective import Noise

from .common import DataConfig, PrecisionConfig, check_shape, open_data
from .console import Meter, emit, say

if TYPE_CHECKING:
    from .eval_nll import NllConfig


@dataclass(frozen=True)
class ImportanceConfig:
    """How a VAE is measured."""

    samples: int = arg(
        100, "Posterior samples an image; 1 gives the ELBO (Burda et al. 2016).", min=1, panel="VAE"
    )
    binarise: str | None = arg(
        None,
        "Make pixels black or white, by threshold: cut at half of full brightness, or sampled: once for "
        "every image, the same for all models; default: as in training.",
        choices=BINARISE,
        panel="VAE",
    )


def evaluate_vae(
    loaded: Loaded,
    wanted: "NllConfig",
    importance: ImportanceConfig,
    data: DataConfig,
    run: PrecisionConfig,
) -> None:
    """Measure a VAE on a source of images and print the bound with its terms.

    Raises:
        InputError: the model has no posterior, or the images are not of its shape.
    """
    module, config, device = loaded.module, loaded.config, machine.pick_device(run.device)
    assert isinstance(module, Autoencoder)
    if not module.bottleneck.has_prior:
        raise InputError(f"{loaded.checkpoint.path} has no posterior; train one with --bottleneck gaussian")
    spec, binarise = wanted.source, importance.binarise
    source = open_data(spec, data, loaded)
    if source.info.kind != "images":
        raise InputError(
            f"{spec} holds {source.info.kind}, and the model is one of images; decode them first"
        )
    check_shape(source.info.shape, loaded.info.shape, spec)
    if binarise is None:
        binarise = config.binarise
    if config.recon == "bce" and binarise == "none":
        say("note: grey pixels are the means of coins here, so this is no probability; see --binarise")
    if config.recon != "bce":
        say("note: this is a density of pixels in [-1, 1], and may be negative")
    module.to(device)
    precision = machine.resolve_precision(run.precision, device)

    def encode(x: Tensor) -> Posterior:
        return Posterior(*vae.posterior(module, x))

    def log_likelihood(z: Tensor, x: Tensor) -> Tensor:
        return vae.log_likelihood(module, config, z, x)

    dist.start(device)
    try:
        mine = len(dist.share(len(spread(len(source), wanted.count))))
        with (
            torch.inference_mode(),
            machine.autocast(device, precision),
            Meter("eval-nll", mine) as meter,
        ):
            found = importance_bound(
                encode,
                log_likelihood,
                source,
                device,
                samples=importance.samples,
                limit=wanted.count,
                seed=wanted.seed,
                batch_size=run.batch_size,
                prepare=lambda x, place: binarised(x, binarise, Noise(0, place)),
                progress=meter.update,
            )
    finally:
        dist.stop()
    _print(found, source, binarise, wanted.json)


def _print(found: ImportanceBound, source: Source, binarise: str, as_json: bool) -> None:
    if as_json:
        values = {k: v._asdict() if hasattr(v, "_asdict") else v for k, v in found._asdict().items()}
        emit({"source": source.info.name, "binarised": binarise, **values}, True)
        return
    pixels = "" if binarise == "none" else f", binarised ({binarise})"
    emit(f"{'source':<14} {source.info.name}{pixels}  n = {found.n}")
    rows = {
        "recon": found.recon,
        "KL": found.kl,
        "-ELBO": found.elbo,
        f"IW, K = {found.samples}": found.bound,
    }
    for name, (value, error) in rows.items():
        emit(f"{name:<14} {value:.4f} ± {error:.4f} nats")
    emit(f"{'effective':<14} {found.effective:.1f} of {found.samples} samples")
