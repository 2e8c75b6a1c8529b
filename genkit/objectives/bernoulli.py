"""-log p of pixels under a Bernoulli distribution each, in one pass on a CPU."""

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..native import INT, LONG, POINTER, addresses, library, readable
from ..nn import again


def nats(logits: Tensor, x: Tensor, images: int = 1) -> Tensor:
    """0-dim -log p(x) of all pixels together, in nats, divided by `images`: each pixel, a brightness in
    [0, 1], is the mean of a coin.

    logits: (B, ...) of the brightness; x: the same shape, in [-1, 1]. In float32 on a CPU, what torch's own
    function and its gradient read and write in ten passes is one.
    """
    if not _suits(logits, x):
        return _plain(logits, x, images)
    if torch.is_grad_enabled() and logits.requires_grad:
        return _Nats.apply(logits, x, images)
    return _summed(logits, x, images, None)


def _plain(logits: Tensor, x: Tensor, images: int) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, 0.5 * x + 0.5, reduction="sum") / images


def _suits(logits: Tensor, x: Tensor) -> bool:
    # with channels last or not: the order is none of a sum's business
    layouts = (torch.contiguous_format, *([torch.channels_last] if logits.ndim == 4 else []))
    return (
        readable(logits, x)
        and logits.numel() > 0
        and (logits.shape, logits.stride()) == (x.shape, x.stride())
        and any(logits.is_contiguous(memory_format=layout) for layout in layouts)
        and not x.requires_grad
        and _kernels() is not None
    )


class _Nats(torch.autograd.Function):
    """The sum, its gradient found on the way; gradients of that go through torch's own function."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, x: Tensor, images: int) -> Tensor:
        slope, ctx.images = torch.empty_like(logits), images
        ctx.save_for_backward(logits, x, slope)
        return _summed(logits, x, images, slope)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        logits, x, slope = ctx.saved_tensors
        if torch.is_grad_enabled():
            plain = functools.partial(_plain, x=x, images=ctx.images)
            return again.gradients(plain, (logits,), gradient, (True,))[0], None, None
        by = gradient.item()
        return slope if by == 1 else slope * by, None, None


def _summed(logits: Tensor, x: Tensor, images: int, slope: Tensor | None) -> Tensor:
    kernels, n = _kernels(), logits.numel()
    assert kernels is not None
    sums = logits.new_empty(kernels.bernoulli_sums(n), dtype=torch.float64)
    given, made = addresses(logits, x), addresses(slope, sums)
    kernels.bernoulli(*given, n, 1 / images, *made, min(len(sums), torch.get_num_threads()))
    return (sums.sum() / images).float()


@functools.cache
def _kernels() -> ctypes.CDLL | None:
    """The functions of bernoulli.cpp, where they can be had."""
    found = library(Path(__file__).with_suffix(".cpp"))
    if found is not None:
        found.bernoulli.argtypes = [*[POINTER] * 2, LONG, ctypes.c_float, *[POINTER] * 2, INT]
        found.bernoulli_sums.argtypes = [LONG]
        found.bernoulli.restype, found.bernoulli_sums.restype = None, LONG
    return found
