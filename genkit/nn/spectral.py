"""Spectral normalisation (Miyato et al. 2018) whose power iteration is a step of its own.

torch's own iterates in every forward pass: its result would depend on how many passes a step is split into.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize

FIRST = 15  # iterations at the start


class Spectral(nn.Module):
    """A weight over its largest singular value, as `iterate` last estimated it."""

    u: Tensor
    v: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        matrix = weight.flatten(1)
        self.register_buffer("u", F.normalize(torch.randn(matrix.shape[0]), dim=0))
        self.register_buffer("v", F.normalize(torch.randn(matrix.shape[1]), dim=0))
        for _ in range(FIRST):
            self.iterate(weight)

    @torch.no_grad()
    def iterate(self, weight: Tensor) -> None:
        """Improve the estimate of the singular vectors for `weight`."""
        matrix = weight.detach().flatten(1)
        self.v.copy_(F.normalize(matrix.T @ self.u, dim=0))
        self.u.copy_(F.normalize(matrix @ self.v, dim=0))

    def forward(self, weight: Tensor) -> Tensor:
        """The normalised weight; the singular vectors count as constants (eq. 11 of the paper)."""
        # clone: the next iteration overwrites what backward may still need
        return weight / torch.dot(self.u.clone(), weight.flatten(1) @ self.v.clone())


class Normalised(nn.Module):
    """`module` with spectral norm on every convolution and linear layer in it."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        for layer in list(module.modules()):
            if isinstance(layer, nn.Conv2d | nn.Linear):
                parametrize.register_parametrization(layer, "weight", Spectral(layer.weight))
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        """What the module gives."""
        return self.module(x)

    def stepped(self) -> None:
        """One power iteration for every weight; to be called after the weights have changed."""
        for layer in self.module.modules():
            if parametrize.is_parametrized(layer, "weight"):
                listed: Any = layer.parametrizations.weight  # type: ignore[union-attr]
                listed[0].iterate(listed.original)
