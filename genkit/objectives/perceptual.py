"""Perceptual distances: how differently a trained network sees two images (Zhang et al. 2018)."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def difference(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """(B,) distance of two images' maps: at each position the squared distance of the vectors of unit length,
    averaged over positions and summed over maps (LPIPS with all weights 1)."""
    parts = []
    for f, g in zip(a, b):
        f, g = F.normalize(f.float(), dim=1, eps=1e-6), F.normalize(g.float(), dim=1, eps=1e-6)
        parts.append((f - g).square().sum(dim=1).mean(dim=(1, 2)))
    return torch.stack(parts).sum(dim=0)


class Perceptual:
    """A distance of images by a frozen network; no module, so that no checkpoint holds its weights.

    network: moved to the images' device when it is first used. distance: (network, x, y) -> (B,).
    """

    def __init__(self, network: nn.Module, distance: Callable[[nn.Module, Tensor, Tensor], Tensor]) -> None:
        self.network = network.eval().requires_grad_(False)
        self.distance = distance
        self.device = torch.device("cpu")

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """(B,) distances of x and y: (B, C, H, W) in [-1, 1], to be differentiated by x."""
        if x.device != self.device:
            self.network.to(x.device)
            self.device = x.device
        return self.distance(self.network, x, y)


def by_classifier(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """(B,) distances of what a genkit classifier sees of x and of y at each of its scales."""
    with torch.no_grad():
        wanted = network.maps(y)  # type: ignore[operator]
    return difference(network.maps(x), wanted)  # type: ignore[operator]


def by_lpips(network: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """(B,) LPIPS of x and y by torch-fidelity's network, which wants RGB of 0 to 255; grey is repeated."""
    a, b = (127.5 * (image.expand(-1, 3, -1, -1) + 1.0) for image in (x, y))
    return network(a, b)
