"""Normals against the standard one: samples and Kullback-Leibler divergences, in one pass on a CPU."""

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..native import INT, LONG, POINTER, addresses, library, readable
from ..nn import again

# exp() of a stray log variance must not overflow; nothing of use lies outside (Rombach et al. 2022)
LOG_VARIANCES = -30.0, 20.0
_THREADED = 1 << 13  # units that are worth more than one thread


def posterior(h: Tensor) -> tuple[Tensor, Tensor]:
    """(mean, log variance), each (B, C, H, W), of h: (B, 2 C, H, W)."""
    mean, log_var = h.chunk(2, dim=1)
    return mean, log_var.clamp(*LOG_VARIANCES)


def coded(h: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """(z, kl, penalty): the code, mean + std * noise, the KL of each unit to a standard normal, in nats,
    both (B, C, H, W), and its sum for each image, (B,) (Kingma & Welling 2014).

    h: (B, 2 C, H, W), as `posterior` takes it; noise: (B, C, H, W), or None for the mean.
    """
    if noise is None or not _suits(h, noise):
        return _plain(h, noise)
    noise = noise.contiguous(memory_format=torch.channels_last)
    if torch.is_grad_enabled() and h.requires_grad:
        z, kl, penalty = _Coded.apply(h, noise)
        return z, kl, penalty
    return _forward(h, noise)


def _plain(h: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    mean, log_var = posterior(h)
    std = torch.exp(0.5 * log_var)
    kl = 0.5 * (mean.square() + std.square() - log_var - 1.0)
    return mean if noise is None else torch.addcmul(mean, std, noise), kl, kl.sum(dim=(1, 2, 3))


def _suits(h: Tensor, noise: Tensor) -> bool:
    return (
        readable(h, noise)
        and h.ndim == 4
        and h.shape[1] % 2 == 0
        and noise.shape == (len(h), h.shape[1] // 2, *h.shape[2:])
        and h.is_contiguous(memory_format=torch.channels_last)
        and not noise.requires_grad
        and _kernels() is not None
    )


class _Coded(torch.autograd.Function):
    """The code and what it costs as one node of the graph; gradients of its gradient go through torch's own
    operations."""

    @staticmethod
    def forward(ctx: Any, h: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        ctx.save_for_backward(h, noise)
        ctx.set_materialize_grads(False)
        return _forward(h, noise)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, None]:
        h, noise = ctx.saved_tensors
        if all(g is None for g in gradients):
            return None, None
        if torch.is_grad_enabled():

            def times(h: Tensor) -> Tensor:
                pairs = zip(_plain(h, noise), gradients)
                return sum(((value * g).sum() for value, g in pairs if g is not None), h.new_zeros(()))

            return again.gradients(times, (h,), h.new_ones(()), (True,))[0], None
        return _backward(h, noise, *gradients), None


def _forward(h: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    kernels = _kernels()
    assert kernels is not None
    made = torch.empty_like(noise), torch.empty_like(noise), h.new_empty(len(h))
    kernels.gaussian(*addresses(h, noise), *_size(noise), *addresses(*made), _threads(noise))
    return made


def _backward(
    h: Tensor, noise: Tensor, dz: Tensor | None, dkl: Tensor | None, dpenalty: Tensor | None
) -> Tensor:
    kernels = _kernels()
    assert kernels is not None
    h, noise = (t.contiguous(memory_format=torch.channels_last) for t in (h, noise))
    maps = [None if t is None else t.contiguous(memory_format=torch.channels_last) for t in (dz, dkl)]
    dh, dpenalty = torch.empty_like(h), None if dpenalty is None else dpenalty.contiguous()
    gradients = addresses(*maps, dpenalty, dh)
    kernels.gaussian_back(*addresses(h, noise), *_size(noise), *gradients, _threads(noise))
    return dh


def _size(noise: Tensor) -> tuple[int, int, int]:
    """Images, pixels and channels of (B, C, H, W)."""
    b, c, height, width = noise.shape
    return b, height * width, c


def _threads(noise: Tensor) -> int:
    return torch.get_num_threads() if noise.numel() >= _THREADED else 1


@functools.cache
def _kernels() -> ctypes.CDLL | None:
    """The functions of gaussian.cpp, where they can be had."""
    found = library(Path(__file__).with_suffix(".cpp"))
    if found is not None:
        size = [LONG] * 3
        found.gaussian.argtypes = [*[POINTER] * 2, *size, *[POINTER] * 3, INT]
        found.gaussian_back.argtypes = [*[POINTER] * 2, *size, *[POINTER] * 4, INT]
        found.gaussian.restype = found.gaussian_back.restype = None
    return found
