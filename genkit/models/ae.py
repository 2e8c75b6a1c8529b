"""ae: an autoencoder without a prior: plain, denoising or sparse."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..codecs.autoencoder import Autoencoder
from ..codecs.bottlenecks import IdentityBottleneck, SparseBottleneck, Standardised
from ..config import arg
from ..data.source import Batch, Info
from ..errors import InputError
from ..objectives.corruption import parse_corruption
from ..objectives.reconstruction import Reconstruction
from ..registry import Entry, register
from ..train.objective import Noise
from .vae import OPTIM, CoderConfig, autoencoder, check_network

_LOSS = "Loss"
WEIGHT = 3.0  # of the sparsity's KL: on MNIST a mean activation of 0.050 for a rho of 0.05


@dataclass(frozen=True)
class AeConfig(CoderConfig):
    """Settings of `genkit train ae`."""

    corrupt: str = arg(
        "none",
        "Damage images that the model is to restore: gaussian:0.3, mask:0.5, saltpepper:0.1 or none.",
        panel=_LOSS,
    )
    sparsity: float | None = arg(
        None, "Sigmoid code units that are active this share of the time; default: no limit.", panel=_LOSS
    )
    sparsity_weight: float | None = arg(
        None, f"Weight of the sparsity's KL, in nats a unit; default: {WEIGHT:g}.", min=0.0, panel=_LOSS
    )


def build(config: AeConfig, info: Info) -> Autoencoder:
    """The autoencoder for images like those of `info`.

    Raises:
        InputError: the sparsity lies outside (0, 1) or is weighted but not given; see `vae.autoencoder`.
    """
    rho = config.sparsity
    if rho is None:
        if config.sparsity_weight is not None:
            raise InputError("--sparsity-weight needs a mean activation; add --sparsity 0.05")
        return autoencoder("ae", config, info, IdentityBottleneck())
    try:
        bottleneck = SparseBottleneck(rho)
    except ValueError:
        raise InputError(f"--sparsity is a mean activation inside (0, 1), got {rho:g}") from None
    sparse = autoencoder("ae", config, info, bottleneck)
    # small and rare activations would make a slow start of it
    sparse.decoder = nn.Sequential(Standardised(rho), sparse.decoder)
    return sparse


def objective(module: nn.Module, config: AeConfig, info: Info) -> Reconstruction:
    """The reconstruction loss of `module`, from corrupted images where asked, with its sparsity's price.

    Raises:
        InputError: the corruption is unknown or out of range, or an option is given that nothing reads.
    """
    assert isinstance(module, Autoencoder)
    check_network(config, vector=module.latent_shape[1:] == (1, 1))
    weight = WEIGHT if config.sparsity_weight is None else config.sparsity_weight
    return Reconstruction(module, config.recon, weight, corrupt=parse_corruption(config.corrupt))


@torch.inference_mode()
def preview(module: nn.Module, config: AeConfig, info: Info, batch: Batch) -> Tensor:
    """A grid of 6 columns: rows of images, of the corrupted where there are such, of what came back."""
    assert isinstance(module, Autoencoder)
    corrupt, rows = parse_corruption(config.corrupt), []
    position = torch.arange(len(batch.x), device=batch.x.device)
    parts = list(zip(batch.x.split(6), position.split(6)))
    for x, index in parts[: 2 if corrupt else 3]:
        seen = corrupt(x, Noise(0, index)) if corrupt else x
        rows += [x, *([seen] if corrupt else []), module.decode(module.encode(seen).z)]
    return torch.cat(rows)


register(
    "ae",
    Entry(
        help="An autoencoder: plain, denoising (--corrupt) or sparse (--sparsity).",
        config=AeConfig,
        build=build,
        objective=objective,
        verbs=("sample prior", "encode", "decode", "interpolate"),
        defaults=OPTIM,
        preview=preview,
    ),
)
