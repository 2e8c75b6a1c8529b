"""Attention of many small heads on a CPU, where torch's kernel spends its time around the products."""

import ctypes
import functools
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..native import addresses, check, library, readable
from . import again

_LARGEST, _LARGEST_BACK = 48, 16  # channels of a head, above which torch is as fast; that with gradients
_LONGEST = 4096  # queries or keys: a head's weights for some of them lie in the core's cache
_POINTER, _LONG, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """softmax(q k^T / sqrt(d)) v of every head (Vaswani et al. 2017, eq. 1), d = C / heads.

    query: (B, Q, C), key and value: (B, K, C) -> (B, Q, C); a head is d channels that follow each other.
    float32 on a CPU with heads of 8 channels takes half the time that torch does; all else is torch's own.
    """
    tensors = query, key, value
    learns = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
    if not _suits(tensors, heads, _LARGEST_BACK if learns else _LARGEST):
        return _plain(*tensors, heads)
    return _Attend.apply(*tensors, heads) if learns else _forward(tensors, heads, False)[0]


def _plain(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    q, k, v = (t.unflatten(2, (heads, -1)).transpose(1, 2) for t in (query, key, value))
    return F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)


def _twice_differentiable(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """The same in operations whose gradients have gradients: torch's kernel for the CPU has none."""
    with sdpa_kernel(SDPBackend.MATH):
        return _plain(query, key, value, heads)


def _suits(tensors: tuple[Tensor, ...], heads: int, largest: int) -> bool:
    """Whether the kernels take these, and pay."""
    b, queries, channels = tensors[0].shape
    keys = tensors[1].shape[1]
    return (
        readable(*tensors)
        and tensors[1].shape == tensors[2].shape == (b, keys, channels)
        and channels % heads == 0
        and not torch.is_autocast_enabled("cpu")
        and channels <= largest * heads
        and b * heads >= torch.get_num_threads()  # a head is one thread's
        and 0 < queries <= _LONGEST
        and 0 < keys <= _LONGEST
        and _kernels() is not None
    )


class _Attend(torch.autograd.Function):
    """The same with its gradients; gradients of the gradient go through torch's own operations."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        ctx.heads = heads
        result, highest, share = _forward((query, key, value), heads, True)
        ctx.save_for_backward(query, key, value, highest, share)
        return result

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        *tensors, highest, share = ctx.saved_tensors
        if torch.is_grad_enabled():
            plain = functools.partial(_twice_differentiable, heads=ctx.heads)
            return *again.gradients(plain, tensors, gradient, ctx.needs_input_grad[:3]), None
        return *_backward(tensors, gradient, ctx.heads, highest, share), None


@functools.cache
def _kernels() -> ctypes.CDLL | None:
    """The functions of attention.cpp, where they can be had."""
    found = library(Path(__file__).with_suffix(".cpp"))
    if found is not None:
        sizes = [_LONG] * 5  # images, queries, keys, heads, channels of a head
        found.attend.argtypes = [*[_POINTER] * 3, *sizes, *[_POINTER] * 3, _INT]
        found.attend_back.argtypes = [*[_POINTER] * 4, *sizes, *[_POINTER] * 6, _INT]
        found.attend.restype = found.attend_back.restype = _INT
    return found


def _forward(
    tensors: tuple[Tensor, ...], heads: int, learns: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The result and, when it `learns`, what `_backward` wants: (B, heads, Q) largest products of query
    and key, and 1 / the sums of the exponentials."""
    kernels = _kernels()
    assert kernels is not None
    given = [t.contiguous() for t in tensors]
    sizes = _sizes(given, heads)
    result = torch.empty_like(given[0])
    found = [given[0].new_empty(sizes[0], heads, sizes[1]) if learns else None for _ in range(2)]
    call = kernels.attend
    check(call(*addresses(*given), *sizes, *addresses(result, *found), torch.get_num_threads()), "attention")
    return result, found[0], found[1]


def _backward(
    tensors: list[Tensor], gradient: Tensor, heads: int, highest: Tensor, share: Tensor
) -> list[Tensor]:
    """The gradients of query, key and value by that of the result."""
    kernels = _kernels()
    assert kernels is not None
    given = [t.contiguous() for t in (*tensors, gradient)]
    made = [torch.empty_like(t) for t in given[:3]]
    rest = highest, share, torch.empty_like(share), *made
    call = kernels.attend_back
    check(
        call(*addresses(*given), *_sizes(given, heads), *addresses(*rest), torch.get_num_threads()),
        "attention",
    )
    return made


def _sizes(tensors: list[Tensor], heads: int) -> tuple[int, ...]:
    """Images, queries, keys, heads, channels of a head."""
    b, queries, channels = tensors[0].shape
    return b, queries, tensors[1].shape[1], heads, channels // heads
