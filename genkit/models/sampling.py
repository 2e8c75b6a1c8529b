"""What sampling from a trained model needs besides the sampler: addressed noise, and the network made
fast."""

from typing import cast

import torch
from torch import Tensor, nn

from .. import noise as rng
from ..diffusion.denoiser import Denoiser
from ..diffusion.samplers import StepNoise
from ..diffusion.schedules import Schedule, times
from .load import Loaded


def initial_noise(
    schedule: Schedule, seed: int, index: Tensor, shape: tuple[int, ...], times: Tensor
) -> Tensor:
    """(B, *shape) x at times[0] of images `index` (B,) of `seed`."""
    # variance-preserving models start from unit noise even where the first time is below 1, as the papers do
    alpha, sigma = schedule.alpha(times[0]).item(), schedule.sigma(times[0]).item()
    scale = 1.0 if abs(alpha**2 + sigma**2 - 1) < 1e-6 else sigma
    return scale * rng.normal(seed, rng.INITIAL, index, shape)


def sampling_times(loaded: Loaded, n: int, spacing: str) -> Tensor:
    """(n + 1,) falling times for n steps of a diffusion model, thinned from its own chain."""
    assert isinstance(loaded.module, Denoiser)
    chain = getattr(loaded.config, "chain", 1000)
    return times(n, spacing, steps=chain, schedule=loaded.module.schedule)


def step_noise(seed: int, index: Tensor, shape: tuple[int, ...]) -> StepNoise:
    """The noise that images `index` of `seed` get at each sampler step."""
    return lambda k: rng.normal(seed, rng.STEP + k, index, shape)


class Lowered(nn.Module):
    """A network whose weights and activations are bf16, called and answering in float32."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network.to(torch.bfloat16)

    def forward(self, x: Tensor, level: Tensor, cond: Tensor | None = None) -> Tensor:
        """network(x, level, cond); the level stays float32, where bf16 would merge neighbouring times."""
        return self.network(x.to(torch.bfloat16), level, cond).float()

    def embed_label(self, label: Tensor) -> Tensor:
        """(B, E) float32 embeddings of (B,) labels."""
        return self.network.embed_label(label).float()  # type: ignore[operator]


def prepare(model: Denoiser, device: torch.device, precision: str, compiled: bool) -> Denoiser:
    """`model` ready to sample on `device`: channels-last, in bf16 where asked, compiled where asked.
    Changes it."""
    model = model.to(device).eval().requires_grad_(False)
    network = model.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if precision == "bf16":
        network = Lowered(network)
    if compiled:
        network = cast(
            nn.Module, torch.compile(network, mode="reduce-overhead" if device.type == "cuda" else None)
        )
    model.network = network
    return model
