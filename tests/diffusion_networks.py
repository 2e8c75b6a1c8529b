"""A small smooth network and fixed noise, written as formulas so that golden numbers never depend on a
generator."""

import torch
from torch import Tensor, nn

WIDTH = 8


def waves(rows: int, columns: int, seed: float) -> Tensor:
    """(rows, columns) float64 numbers of about unit variance."""
    i, j = torch.meshgrid(torch.arange(rows).double(), torch.arange(columns).double(), indexing="ij")
    return 1.4 * torch.sin(seed + 7.1 * i + 3.3 * j + 1.7 * i * j)


class Smooth(nn.Module):
    """(B, WIDTH), level -> (B, outputs): tanh of a fixed linear map of x and of the level, which is ~1000."""

    def __init__(self, outputs: int = WIDTH, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.weight = (0.3 * waves(WIDTH, outputs, 0.5)).to(dtype)
        self.bias = (0.5 * waves(2, outputs, 2.0)).to(dtype)

    def forward(self, x: Tensor, level: Tensor, cond: Tensor | None = None) -> Tensor:
        """The answer; level: () or (B,)."""
        angle = (level.to(x.dtype) / 300).reshape(-1, 1)
        return torch.tanh(x @ self.weight + torch.sin(angle) * self.bias[0] + self.bias[1])


def start(dtype: torch.dtype = torch.float32) -> Tensor:
    """(4, WIDTH) initial noise."""
    return waves(4, WIDTH, 11.0).to(dtype)


def step_noise(k: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """(4, WIDTH) noise of step k."""
    return waves(4, WIDTH, 20.0 + 2.3 * k).to(dtype)


def relative(a: Tensor, b: Tensor) -> float:
    """The largest difference over the largest value."""
    return ((a - b).abs().max() / b.abs().max()).item()
