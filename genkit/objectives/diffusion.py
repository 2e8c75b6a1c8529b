"""The denoising loss: the network's output against the target at random times."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import noise as rng
from ..data.source import Batch
from ..diffusion.denoiser import Denoiser, expand
from ..diffusion.schedules import Schedule
from ..diffusion.targets import coefficients
from ..train.objective import Loss, Noise, Objective

TIME_SAMPLING = ("uniform", "lognormal")


class Times(nn.Module):
    """Random training times: uniform on [0, 1], or such that ln(sigma / alpha) is normal (Karras et al.
    2022).

    mean, std: of ln(sigma / alpha), for lognormal.
    """

    grid: Tensor
    level: Tensor

    def __init__(self, schedule: Schedule, sampling: str, mean: float, std: float) -> None:
        super().__init__()
        self.sampling, self.mean, self.std = sampling, mean, std
        # sigma / alpha rises with t: its logarithm on a fine grid inverts it for every schedule alike
        t = torch.linspace(0, 1, 8193, dtype=torch.float64)[1:]
        level = (schedule.sigma(t) / schedule.alpha(t).clamp(min=1e-12)).log()
        self.register_buffer("grid", t.float(), persistent=False)
        self.register_buffer("level", level.float(), persistent=False)

    def forward(self, u: Tensor) -> Tensor:
        """(B,) times in (0, 1] for u: (B,) uniform on [0, 1)."""
        if self.sampling == "uniform":
            return 1 - u
        wanted = self.mean + self.std * torch.special.ndtri(u.clamp(1e-6, 1 - 1e-6))
        place = torch.searchsorted(self.level, wanted).clamp(1, len(self.grid) - 1)
        low, high = self.level[place - 1], self.level[place]
        share = ((wanted - low) / (high - low)).clamp(0, 1)
        return torch.lerp(self.grid[place - 1], self.grid[place], share)


class Diffusion(Objective):
    """Mean squared error of the network's output in the target's own units (Ho et al. 2020, eq. 14 for eps).

    For the edm target this is the loss of Karras et al. 2022 (eq. 8) with its weighting 1 / c_out^2.
    """

    model: Denoiser

    def __init__(self, model: Denoiser, times: Times) -> None:
        super().__init__()
        self.model = model
        self.times = times

    def loss(self, phase: str, batch: Batch, noise: Noise) -> Loss:
        """The loss per pixel or latent value; one random time an example."""
        x0, model = batch.x, self.model
        # one uniform number shared out over the batch would depend on the batch; each example draws its own
        t = self.times(noise.uniform(rng.TIME))
        eps = noise.normal(rng.EPS, tuple(x0.shape[1:]))
        alpha, sigma = (expand(f(t), x0) for f in (model.schedule.alpha, model.schedule.sigma))
        p, q = coefficients(model.target, alpha, sigma, model.data_std)
        output = model.output(alpha * x0 + sigma * eps, t)
        loss = F.mse_loss(output, p * x0 + q * eps)
        return Loss(loss, {"loss": loss.detach()})
