"""Convolutions with a stride or few channels, and transposed ones, as products of patches, on a CPU."""

import ctypes
import functools
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..native import INT, LONG, POINTER, addresses, check, library, readable

_STEP = 16  # columns of a product are filled up to a multiple of it
_LARGEST = 1 << 18  # numbers that a thread sums for the gradient of a kernel, at most
_BLOCK, _MOST = 1 << 16, 96  # floats of a block of patches, so that they fit the L2 cache; patches


class _Maps(NamedTuple):
    """What the kernels are told: the large map, the small one, the kernel and where it begins."""

    images: int
    height: int
    width: int
    channels: int
    down: int
    across: int
    out: int
    kernel_y: int
    kernel_x: int
    stride: int
    top: int
    left: int

    def patch(self) -> int:
        """Numbers of a patch."""
        return self.kernel_y * self.kernel_x * self.channels

    def most(self) -> int:
        """Patches of a block at most."""
        return min(_MOST, -(-_BLOCK // self.patch()))

    def block(self, pixels: int) -> int:
        """Pixels of the small map, of so many, whose patches are in the cache together, by equal parts."""
        most, threads = self.most(), torch.get_num_threads()
        blocks = -(-pixels // most)
        return -(-pixels // (-(-blocks // threads) * threads))

    def numbers(self) -> ctypes.Array[ctypes.c_int64]:
        """As the kernels take them."""
        return (LONG * len(self))(*self)


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, more: tuple[int, int] = (0, 0)
) -> Tensor:
    """F.conv2d(x, weight, bias, stride, padding).

    x: (B, C, H, W), weight: (K, C, Y, X), bias: (K,) -> (B, K, h, w). more: rows of zeros below and columns
    on the right, on top of the padding.

    Raises:
        MemoryError: there is no memory for a block of patches.
    """
    if not takes(x, weight, bias):
        return _conv2d(x, weight, bias, stride, padding, more)
    (b, c, height, width), (out, channels, tall, wide) = x.shape, weight.shape
    down = (height + 2 * padding + more[0] - tall) // stride + 1
    across = (width + 2 * padding + more[1] - wide) // stride + 1
    if c != channels or min(down, across) < 1:
        return _conv2d(x, weight, bias, stride, padding, more)  # which says what is wrong
    maps = _Maps(b, height, width, c, down, across, out, tall, wide, stride, padding, padding)
    if learns(x, weight, bias):
        return _Convolve.apply(x, weight, bias, maps, more)
    return _gather(_found(), maps, x, weight, bias)


def spread(y: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int) -> Tensor:
    """F.conv_transpose2d(y, weight, bias, stride, padding).

    y: (B, K, h, w), weight: (K, C, Y, X), bias: (C,) -> (B, C, H, W).

    Raises:
        MemoryError: there is no memory for a block of patches.
    """
    if not takes(y, weight, bias):
        return F.conv_transpose2d(y, weight, bias, stride, padding)
    (b, out, down, across), (channels, c, tall, wide) = y.shape, weight.shape
    height, width = (down - 1) * stride - 2 * padding + tall, (across - 1) * stride - 2 * padding + wide
    if out != channels or min(height, width) < 1:
        return F.conv_transpose2d(y, weight, bias, stride, padding)  # which says what is wrong
    maps = _Maps(b, height, width, c, down, across, out, tall, wide, stride, padding, padding)
    if learns(y, weight, bias):
        return _Spread.apply(y, weight, bias, maps, (0, 0))
    return _scatter(maps, y, weight, bias)


def learns(*tensors: Tensor | None) -> bool:
    """Whether gradients of any of these will be asked for."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def takes(x: Tensor, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether the kernels take these."""
    last = torch.channels_last
    return (
        readable(x, weight, bias)
        and not torch.is_autocast_enabled("cpu")
        and x.ndim == 4
        and (x.is_contiguous(memory_format=last) or weight.is_contiguous(memory_format=last))
        and (weight[0].numel() + 1) * filled(len(weight)) <= _LARGEST
        and x.numel() > 0
        and _kernels() is not None
    )


class _Convolve(torch.autograd.Function):
    """The convolution with its gradients, which can be differentiated: that of a map is a transposed
    convolution, that of the weight torch's."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, maps: _Maps, more: tuple[int, int]
    ) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        ctx.maps, ctx.more = maps, more
        return _gather(_found(), maps, x, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        maps, needed = ctx.maps, ctx.needs_input_grad
        dx = dw = db = None
        if torch.is_grad_enabled():
            dx = _Spread.apply(gradient, weight, None, maps, ctx.more) if needed[0] else None
            dw = _weight_graph(maps, ctx.more, x, gradient, weight) if needed[1] else None
            db = gradient.sum((0, 2, 3)) if needed[2] else None
            return dx, dw, db, None, None
        dx = _scatter(maps, gradient, weight, None) if needed[0] else None
        if needed[1] or needed[2]:
            dw, db = _weight_gradients(maps, x, gradient, weight)
        return dx, dw, None if bias is None else db, None, None


class _Spread(torch.autograd.Function):
    """The transposed convolution with its gradients, in the same way."""

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, weight: Tensor, bias: Tensor | None, maps: _Maps, more: tuple[int, int]
    ) -> Tensor:
        ctx.save_for_backward(y, weight)
        ctx.maps, ctx.more = maps, more
        return _scatter(maps, y, weight, bias)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        y, weight = ctx.saved_tensors
        maps, needed = ctx.maps, ctx.needs_input_grad
        dy = dw = None
        if torch.is_grad_enabled():
            dy = _Convolve.apply(gradient, weight, None, maps, ctx.more) if needed[0] else None
            dw = _weight_graph(maps, ctx.more, gradient, y, weight) if needed[1] else None
        else:
            dy = _gather(_found(), maps, gradient, weight, None) if needed[0] else None
            dw = _weight_gradients(maps, gradient, y, weight)[0] if needed[1] else None
        db = gradient.sum((0, 2, 3)) if needed[2] else None
        return dy, dw, db, None, None


def _weight_graph(maps: _Maps, more: tuple[int, int], x: Tensor, y: Tensor, weight: Tensor) -> Tensor:
    """The gradient of the weight by the large map and the small one, which can be differentiated."""
    x = F.pad(x, (0, more[1], 0, more[0])) if more != (0, 0) else x
    strides, pads, mask = [maps.stride] * 2, [maps.top] * 2, [False, True, False]
    call = torch.ops.aten.convolution_backward
    return call(y, x, weight, None, strides, pads, [1, 1], False, [0, 0], 1, mask)[1]


def _conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int, more: tuple[int, int]
) -> Tensor:
    if more == (0, 0):
        return F.conv2d(x, weight, bias, stride, padding)
    below, right = (padding + m for m in more)
    return F.conv2d(F.pad(x, (padding, right, padding, below)), weight, bias, stride)


@functools.cache
def _kernels() -> ctypes.CDLL | None:
    """The functions of patches.cpp, where they can be had and convolve as torch does."""
    found = library(Path(__file__).with_suffix(".cpp"))
    if found is None:
        return None
    found.patches_pack.argtypes = [POINTER, *[LONG] * 4, *[POINTER] * 2, INT, POINTER, INT]
    found.patches_gather.argtypes = [*[POINTER] * 4, LONG, INT]
    found.patches_scatter.argtypes = [*[POINTER] * 5, LONG, LONG, INT]
    found.patches_weights.argtypes = [*[POINTER] * 4, *[LONG] * 4, POINTER, LONG, POINTER, LONG, INT]
    found.patches_pack.restype = None
    for function in (found.patches_gather, found.patches_scatter, found.patches_weights):
        function.restype = INT
    with torch.no_grad():
        x, weight = (torch.arange(n, dtype=torch.float32, device="cpu").sin() for n in (105, 864))
        x, weight = x.view(1, 5, 7, 3).permute(0, 3, 1, 2), weight.view(18, 3, 4, 4)
        y = _gather(found, _Maps(1, 5, 7, 3, 2, 3, 18, 4, 4, 2, 1, 1), x, weight, None)
        return found if torch.allclose(y, F.conv2d(x, weight, None, 2, 1), atol=1e-3) else None


def _pack(kernels: ctypes.CDLL, maps: _Maps, weight: Tensor, bias: Tensor | None, back: bool) -> Tensor:
    """The weights as the products take them; `back`: from pixels to patches."""
    size = maps.out * filled(maps.patch()) if back else (maps.patch() + 1) * filled(maps.out)
    packed = weight.new_zeros(size)
    bias = None if bias is None else bias.contiguous()
    call, made = kernels.patches_pack, addresses(weight, bias, packed)
    call(made[0], *weight.stride(), made[1], maps.numbers(), back, made[2], torch.get_num_threads())
    return packed


def _gather(kernels: ctypes.CDLL, maps: _Maps, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The small map (B, K, h, w) of the large one, channels-last."""
    x, packed = _rows(x), _pack(kernels, maps, weight, bias, False)
    y = x.new_empty((maps.images, maps.down, maps.across, filled(maps.out)))
    most = maps.block(maps.images * maps.down * maps.across)
    made = addresses(x, packed, y)
    check(kernels.patches_gather(*made, maps.numbers(), most, torch.get_num_threads()), "a convolution")
    return y[..., : maps.out].contiguous().permute(0, 3, 1, 2)


def _scatter(maps: _Maps, y: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The large map (B, C, H, W) of the small one, channels-last."""
    y, packed = _rows(y), _pack(_found(), maps, weight, None, True)
    x = y.new_empty((maps.images, maps.height, maps.width, maps.channels))
    start = y.new_zeros(maps.width * maps.channels) if bias is None else bias.repeat(maps.width)
    threads, made = torch.get_num_threads(), addresses(y, packed, start, x)
    bands = min(maps.height, -(-threads // maps.images))  # one, where there is an image for every thread
    check(_found().patches_scatter(*made, maps.numbers(), maps.most(), bands, threads), "a convolution")
    return x.permute(0, 3, 1, 2)


def _weight_gradients(maps: _Maps, x: Tensor, y: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """The gradients of the weight and of a bias (K,), by the large map and the small one."""
    x, y, out = _rows(x), _rows(y), filled(maps.out)
    if out > maps.out:
        y = F.pad(y.permute(0, 2, 3, 1), (0, out - maps.out)).permute(0, 3, 1, 2)
    dw, db, threads = torch.empty_like(weight), x.new_empty(maps.out), torch.get_num_threads()
    sums = x.new_empty(threads * (maps.patch() + 1) * out)
    most = maps.block(maps.images * maps.down * maps.across)
    numbers = maps._replace(out=out).numbers()
    call = _found().patches_weights
    made = addresses(x, y, dw, db)
    check(call(*made, *dw.stride(), numbers, maps.out, sums.data_ptr(), most, threads), "a convolution")
    return dw, db


def _rows(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def filled(columns: int) -> int:
    """The next multiple of _STEP."""
    return -(-columns // _STEP) * _STEP


def _found() -> ctypes.CDLL:
    """The kernels, where they were asked for before."""
    kernels = _kernels()
    assert kernels is not None
    return kernels
