"""genkit fit-prior RUN: the codes of a codec as a mixture of normals, which can be drawn from."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from genkit import machine
from genkit import noise as rng
from genkit.codecs.autoencoder import Autoencoder
from genkit.config import REQUIRED, arg, from_dict
from genkit.data.source import Source
from genkit.errors import InputError
from genkit.evaluate.subset import spread
from genkit.models.load import Loaded
from genkit.models.prior import KINDS, MOST, PRIOR, Prior, distance, fit_mixture, save_prior

from .common import DataConfig, PrecisionConfig, check_shape, load, open_data
from .console import Meter, emit, say
from .options import make
from .outputs import check_parents


@dataclass(frozen=True)
class FitPriorConfig:
    """Which codes are described, by what, and where the description goes."""

    model: Path = arg(REQUIRED, "Run folder or checkpoint of a codec.", positional=True)
    kind: str = arg("gmm", "gaussian: one normal; gmm: a mixture. Covariances are full.", choices=KINDS)
    components: int | None = arg(None, "Normals in the mixture of --kind gmm; default: 10.", min=1)
    data: str | None = arg(
        None, "Images whose codes are fitted; default: those that the model was trained on."
    )
    count: int | None = arg(
        20000, "So many images, spread evenly over the data; 0: all of them.", min=0, short="-n"
    )
    mean: bool = arg(False, "Fit the means of the posteriors instead of draws from them.")
    out: Path | None = arg(
        None,
        f"Where the prior goes; default: {PRIOR} beside the model, where `sample prior` looks.",
        short="-o",
    )
    seed: int = arg(0, "Decides the draws and where the fit begins.", min=0, max=2**63 - 1)
    json: bool = arg(False, "Print the result as one JSON line.")


def command(name: str) -> Any:
    """The `genkit fit-prior` command."""
    return make(
        _fit,
        FitPriorConfig,
        DataConfig,
        PrecisionConfig,
        command="fit-prior",
        defaults={"precision": "fp32", "batch_size": 500},
        help="Fit a prior to the codes of a codec, which `sample prior` then draws from; and measure how far "
        "they are from standard normal.",
    )


def _fit(config: FitPriorConfig, data: DataConfig, run: PrecisionConfig) -> None:
    machine.tune()
    if config.kind == "gaussian" and config.components is not None:
        raise InputError(f"--components {config.components} is for --kind gmm; a gaussian is one")
    if config.out is not None:
        check_parents(config.out)
    if config.out is not None and (config.out.suffix != ".safetensors" or config.out.is_dir()):
        raise InputError(f"-o {config.out} is no form of output here; use x.safetensors")
    components = 1 if config.kind == "gaussian" else config.components or 10
    loaded = load(config.model, "encode")
    module = loaded.module
    if not isinstance(module, Autoencoder):
        raise InputError(f"{loaded.what()}, and a prior is fitted to the codes of an ae, aae or vae")
    if "sample prior" not in loaded.entry.verbs:
        raise InputError(
            f"{loaded.what()}, which `sample prior` does not draw from; train "
            "a diffusion model on its latents instead: genkit encode, then genkit train ddpm"
        )
    units = math.prod(module.latent_shape)
    if units > MOST:
        raise InputError(
            f"a code has {units} units, and a prior with full covariances takes at most {MOST}; train a "
            "diffusion model on the latents instead: genkit encode, then genkit train ddpm"
        )
    source = _source(config, data, loaded)
    codes = _codes(module, source, config, run)
    say(f"fitting {components} normals to {len(codes)} codes of {units} units")
    weights, means, factors, score, converged = fit_mixture(codes, components, config.seed)
    if not converged:
        say("note: the fit had not converged after 200 rounds; fewer --components may do as well")
    far = distance(codes)
    about = {
        "n": len(codes),
        "components": components,
        "log_likelihood": score,
        "kl": far if far < float("inf") else None,
        "kl_unit": far / units if far < float("inf") else None,
        "source": source.info.name,
        "fingerprint": source.info.fingerprint,
        "posterior": "mean" if config.mean else f"seed {config.seed}",
    }
    out = config.out or loaded.checkpoint.path.parent / PRIOR
    save_prior(out, Prior(config.kind, weights, means, factors, loaded.checkpoint.sha256, about))
    _print(out, config.kind, about, config.json)


def _source(config: FitPriorConfig, data: DataConfig, loaded: Loaded) -> Source:
    """The images to encode: those asked for, or those of the model's training, read as they were then.

    Raises:
        InputError: the checkpoint does not name its data, or the images are of another shape.
    """
    spec = config.data
    if spec is None:
        spec = loaded.checkpoint.config.get("source")
        if not spec:
            raise InputError(f"{loaded.checkpoint.path} does not say what it was trained on; give --data")
        if data == DataConfig():
            data = from_dict(DataConfig, loaded.checkpoint.config.get("data", {}))
    source = open_data(spec, data, loaded)
    if source.info.kind != "images":
        raise InputError(f"{spec} holds {source.info.kind}; fit-prior encodes images")
    check_shape(source.info.shape, loaded.info.shape, spec)
    if config.data is None and source.info.fingerprint != loaded.info.fingerprint:
        say(f"note: {spec} is not what it was when the model was trained on it")
    return source


@torch.inference_mode()
def _codes(module: Autoencoder, source: Source, config: FitPriorConfig, run: PrecisionConfig) -> Tensor:
    """(n, D) flattened codes: one draw of q(z | x) an image where the codec has a posterior, or its mean.

    Raises:
        RunError: they are not finite.
    """
    device = machine.pick_device(run.device)
    module.to(device)
    precision = machine.resolve_precision(run.precision, device)
    index = spread(len(source), config.count or None)
    parts, rows = index.split(run.batch_size), []
    with Meter("encode", len(index)) as meter, machine.autocast(device, precision):
        for part, batch in zip(parts, source.batches(iter(parts), device)):
            noise = rng.normal(config.seed, rng.POSTERIOR, part.to(device), module.latent_shape)
            code = module.encode(batch.x, noise=None if config.mean else noise)
            rows.append(code.z.float().flatten(1).cpu())
            meter.update(meter.done + len(part))
    return torch.cat(rows)


def _print(out: Path, kind: str, about: dict[str, Any], as_json: bool) -> None:
    if as_json:
        emit({"out": str(out), "prior": kind, **about}, True)
        return
    far = about["kl"]
    say(f"{kind}: {about['log_likelihood']:.4f} nats a code, over {about['n']} codes")
    if far is None:
        say("the codes lie in a subspace: their normal is infinitely far from N(0, I)")
    else:
        say(f"q(z) from N(0, I), by its moments: {far:.4f} nats, {about['kl_unit']:.4f} a unit")
    emit(out, False)
