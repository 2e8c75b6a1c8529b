"""Generators and critics of convolutions (after DCGAN, Radford et al. 2016), sized from the images.

No layer mixes the images of a batch: batch norms are group norms here, so that the result depends neither on
accumulation nor on the number of processes.
"""

import math

import torch
from torch import Tensor, nn

from .blocks import group_norm
from .coders import Shape
from .convolution import Conv2d, ConvTranspose2d
from .winograd import Conv3x3

MOST = 8  # channels of the deepest level over those of the first
LEAST = 4  # pixels of the longer side there: a critic that stops at 7 sees strokes, not digits


def levels(image: Shape) -> int:
    """How often the image is halved, rounding up, while its longer side keeps `LEAST` pixels."""
    side, times = max(image[1:]), 0
    while math.ceil(side / 2) >= LEAST:
        side, times = math.ceil(side / 2), times + 1
    return times


def _widths(width: int, times: int) -> list[int]:
    """Channels after each of `times` halvings, doubling."""
    return [width * min(2**i, MOST) for i in range(times)] or [width]


def _bottom(image: Shape, times: int) -> tuple[int, int]:
    return -(-image[1] >> times), -(-image[2] >> times)


def _start(module: nn.Module, slope: float) -> None:
    """Weights that keep the variance of activations from layer to layer (He et al. 2015).

    DCGAN's own, of standard deviation 0.02, count on norms: a critic without them would say next to nothing.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, a=slope)
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]


class Generator(nn.Module):
    """(B, latent, 1, 1) -> (B, *image) in [-1, 1] by transposed convolutions.

    width: channels before the last doubling.
    """

    def __init__(self, latent: int, image: Shape, width: int = 64) -> None:
        super().__init__()
        times = levels(image)
        widths, bottom = _widths(width, times), _bottom(image, times)
        start = (widths[-1], *bottom)
        layers: list[nn.Module] = [nn.Flatten(), nn.Linear(latent, math.prod(start)), nn.Unflatten(1, start)]
        for i in range(times - 1, -1, -1):
            out = widths[i - 1] if i else image[0]
            layers += [group_norm(widths[i]), nn.ReLU(), ConvTranspose2d(widths[i], out, 4, 2, 1)]
        if times == 0:
            layers += [group_norm(width), nn.ReLU(), Conv3x3(width, image[0])]
        self.layers, self.size = nn.Sequential(*layers), image[1:]
        self.latent_shape = (latent, 1, 1)

    def forward(self, z: Tensor) -> Tensor:
        """z: (B, latent, 1, 1) -> (B, *image) float32 in [-1, 1]."""
        height, width = self.size
        return torch.tanh(self.layers(z).float())[:, :, :height, :width]

    def decode(self, z: Tensor) -> Tensor:
        """The images of codes z, under the name that sampling and interpolation call."""
        return self(z)


class Critic(nn.Module):
    """(B, *image) -> (B, 1) scores by strided convolutions; no norm, as gradient penalties want it.

    width: channels after the first halving.
    """

    def __init__(self, image: Shape, width: int = 64) -> None:
        super().__init__()
        times = levels(image)
        widths = [image[0], *_widths(width, times)]
        layers: list[nn.Module] = []
        for i, (a, b) in enumerate(zip(widths, widths[1:])):
            # an odd side is rounded up, which a kernel of 3 does by itself
            kernel = 4 if all(not (n & 1) for n in _bottom(image, i)) else 3
            layers += [Conv2d(a, b, kernel, 2 if times else 1, padding=1), nn.LeakyReLU(0.2)]
        units = widths[-1] * math.prod(_bottom(image, times))
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(units, 1))
        _start(self, 0.2)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, *image) in [-1, 1] -> (B, 1)."""
        return self.layers(x)


class PatchCritic(nn.Module):
    """(B, channels, H, W) -> (B, 1, h, w): a score for every patch (Isola et al. 2017).

    depth: halvings; with 1 a score sees 14 pixels a side, with 2 it sees 30, with 3 62. width: channels after
    the first.
    """

    def __init__(self, channels: int, width: int = 64, depth: int = 1) -> None:
        super().__init__()
        layers: list[nn.Module] = [Conv2d(channels, width, 4, 2, padding=1), nn.LeakyReLU(0.2)]
        wide = width
        for i in range(1, depth + 1):
            out = width * min(2**i, MOST)
            layers += [Conv2d(wide, out, 4, 2 if i < depth else 1, padding=1)]
            layers += [group_norm(out), nn.LeakyReLU(0.2)]
            wide = out
        self.layers = nn.Sequential(*layers, Conv3x3(wide, 1))
        _start(self, 0.2)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, channels, H, W) in [-1, 1] -> (B, 1, h, w)."""
        return self.layers(x)


class VectorCritic(nn.Module):
    """(B, units) -> (B, 1) scores of codes, by two hidden layers."""

    def __init__(self, units: int, width: int = 256) -> None:
        super().__init__()
        layers = [nn.Linear(units, width), nn.LeakyReLU(0.2), nn.Linear(width, width), nn.LeakyReLU(0.2)]
        self.layers = nn.Sequential(*layers, nn.Linear(width, 1))

    def forward(self, z: Tensor) -> Tensor:
        """z: (B, units) -> (B, 1)."""
        return self.layers(z)
