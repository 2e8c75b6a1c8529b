"""Paths between two points of latent space."""

import torch
from torch import Tensor

from ..errors import unknown

METHODS = ("slerp", "lerp")


def path(a: Tensor, b: Tensor, frames: int, method: str = "slerp") -> Tensor:
    """(frames, *S) points from a to b (each (*S)), both ends included.

    slerp goes along the great circle (Shoemake 1985), which keeps the norm that noise has; lerp goes
    straight.

    Raises:
        InputError: for an unknown method.
    """
    if method not in METHODS:
        raise unknown("method", method, METHODS)
    w = torch.linspace(0, 1, frames, dtype=torch.float64, device=a.device)
    w = w.reshape(-1, *[1] * a.ndim)
    a64, b64 = a.double(), b.double()
    if method == "slerp":
        cosine = (a64 * b64).sum() / (a64.norm() * b64.norm()).clamp(min=1e-12)
        angle = torch.arccos(cosine.clamp(-1, 1))
        if angle > 1e-4:  # nearly parallel points: the straight line is the same and has no 0 / 0
            out = (torch.sin((1 - w) * angle) * a64 + torch.sin(w * angle) * b64) / torch.sin(angle)
            return out.to(a.dtype)
    return ((1 - w) * a64 + w * b64).to(a.dtype)
