"""Convolutions with a stride or few channels, and transposed ones, as products of patches, on a CPU."""

import ctypes
import functools
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ..native import INT, LONG, POINTER, addresses, check, library, longs, readable
from . import again

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

    def block(self) -> int:
        """Pixels of the small map whose patches are in the cache together, by equal parts."""
        pixels, threads = self.images * self.down * self.across, torch.get_num_threads()
        blocks = -(-pixels // self.most())
        return -(-pixels // (-(-blocks // threads) * threads))


class _Lie(NamedTuple):
    """Where the kernels find the numbers of a weight: floats from one channel of the small map, and of the
    large one, to the next, and from the first tap to each."""

    small: int
    large: int
    taps: ctypes.Array[ctypes.c_int64]


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


def thin(x: Tensor, weight: Tensor, bias: Tensor | None, shuffled: bool) -> Tensor:
    """F.conv2d(x, weight, bias, padding=1) to few channels, by what every pixel of x adds to those around it;
    with `shuffled`, F.pixel_shuffle of it by 2.

    x: (B, C, H, W), weight: (K, C, 3, 3), bias: (K,), all of which `takes` takes -> (B, K, H, W), or
    (B, K / 4, 2 H, 2 W).

    Raises:
        MemoryError: there is no memory for a block of patches.
    """
    if x.shape[1] != weight.shape[1] or (shuffled and len(weight) % 4):
        return _plainly_thinned(x, weight, bias, shuffled)  # which says what is wrong
    x = _rows(x)
    if learns(x, weight, bias):
        return _Thin.apply(x, weight, bias, shuffled)
    return _thinned(x, weight, bias, shuffled)


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
            db = _weight_gradients(maps, x, gradient, dw := torch.empty_like(weight))
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
            if needed[1]:
                _weight_gradients(maps, gradient, y, dw := torch.empty_like(weight))
        db = gradient.sum((0, 2, 3)) if needed[2] else None
        return dy, dw, db, None, None


class _Thin(torch.autograd.Function):
    """The convolution to few channels with its gradients; gradients of these go through torch's own
    operations."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, shuffled: bool) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        ctx.shuffled = shuffled
        return _thinned(x, weight, bias, shuffled)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        shuffled, needed = ctx.shuffled, ctx.needs_input_grad
        if torch.is_grad_enabled():
            plain = functools.partial(_plainly_thinned, shuffled=shuffled)
            return *again.gradients(plain, (x, weight, bias), gradient, needed[:3]), None
        maps, dx, dw, db = _thin_maps(x, weight, shuffled), None, None, None
        if needed[0]:
            dx = _gather(_found(), maps, gradient, weight, None, _thin_lie(weight.stride(), shuffled))
        if needed[1]:
            dw = torch.empty_like(weight)
            _weight_gradients(maps, gradient, x, dw, _thin_lie(dw.stride(), shuffled))
        if needed[2]:
            db = gradient.sum(0)  # whole rows first, which is fast
            if shuffled:
                c, height, width = db.shape
                db = db.reshape(c, height // 2, 2, width // 2, 2).sum((1, 3)).flatten()
            else:
                db = db.sum((1, 2))
        return dx, dw, db, None


def _thinned(x: Tensor, weight: Tensor, bias: Tensor | None, shuffled: bool) -> Tensor:
    lie = _thin_lie(weight.stride(), shuffled)
    return _scatter(_thin_maps(x, weight, shuffled), x, weight, bias, lie, 2 if shuffled else 1)


def _plainly_thinned(x: Tensor, weight: Tensor, bias: Tensor | None, shuffled: bool) -> Tensor:
    y = F.conv2d(x, weight, bias, padding=1)
    return F.pixel_shuffle(y, 2) if shuffled else y


def _thin_maps(x: Tensor, weight: Tensor, shuffled: bool) -> _Maps:
    """Of a convolution to few channels: its result is the large map. In a shuffled one a pixel's window has
    6x6 pixels: a corner of each for each of the 3x3."""
    (b, c, height, width), n = x.shape, 2 if shuffled else 1
    return _Maps(b, n * height, n * width, len(weight) // n**2, height, width, c, 3 * n, 3 * n, n, n, n)


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
    lie = LONG, LONG, POINTER
    found.patches_gather.argtypes = [*[POINTER] * 2, *lie, *[POINTER] * 4, LONG, INT]
    found.patches_scatter.argtypes = [*[POINTER] * 2, *lie, POINTER, LONG, *[POINTER] * 3, LONG, LONG, INT]
    found.patches_weights.argtypes = [*[POINTER] * 4, *lie, POINTER, LONG, POINTER, LONG, INT]
    for function in (found.patches_gather, found.patches_scatter, found.patches_weights):
        function.restype = INT
    with torch.no_grad():
        x, weight = (torch.arange(n, dtype=torch.float32, device="cpu").sin() for n in (105, 864))
        x, weight = x.view(1, 5, 7, 3).permute(0, 3, 1, 2), weight.view(18, 3, 4, 4)
        y = _gather(found, _Maps(1, 5, 7, 3, 2, 3, 18, 4, 4, 2, 1, 1), x, weight, None)
        return found if torch.allclose(y, F.conv2d(x, weight, None, 2, 1), atol=1e-3) else None


@functools.lru_cache(maxsize=256)
def _lie(strides: tuple[int, ...], shape: torch.Size) -> _Lie:
    """Of a weight (K, C, Y, X), K channels of the small map."""
    small, large, down, across = strides
    return _Lie(
        small, large, longs(tuple(i * down + j * across for i in range(shape[2]) for j in range(shape[3])))
    )


@functools.lru_cache(maxsize=256)
def _thin_lie(strides: tuple[int, ...], shuffled: bool) -> _Lie:
    """Of the weight (K, C, 3, 3) of a convolution to few channels: turned by half a circle, by corners."""
    few, small, down, across = strides
    n = 2 if shuffled else 1
    taps = [
        (2 - i // n) * down + (2 - j // n) * across + (n * (i % n) + j % n) * few
        for i in range(3 * n)
        for j in range(3 * n)
    ]
    return _Lie(small, n * n * few, longs(tuple(taps)))


def _gather(
    kernels: ctypes.CDLL, maps: _Maps, x: Tensor, weight: Tensor, bias: Tensor | None, lie: _Lie | None = None
) -> Tensor:
    """The small map (B, K, h, w) of the large one, channels-last. lie: unless it is `_lie`."""
    x, out = _rows(x), filled(maps.out)
    bias = None if bias is None else bias.contiguous()
    y = x.new_empty((maps.images, maps.down, maps.across, out))
    packed = x.new_empty((maps.patch() + 1) * out)
    given, at, *rest = addresses(x, weight, bias, packed, y)
    read = lie or _lie(weight.stride(), weight.shape)
    numbers, threads = longs(maps), torch.get_num_threads()
    check(kernels.patches_gather(given, at, *read, *rest, numbers, maps.block(), threads), "a convolution")
    return (y if out == maps.out else y[..., : maps.out].contiguous()).permute(0, 3, 1, 2)


def _scatter(
    maps: _Maps, y: Tensor, weight: Tensor, bias: Tensor | None, lie: _Lie | None = None, corners: int = 1
) -> Tensor:
    """The large map (B, C, H, W) of the small one, channels-last.

    bias: (C corners^2,), of which a pixel takes the number that its row and column have by turns.
    """
    y, threads = _rows(y), torch.get_num_threads()
    bias = None if bias is None else bias.contiguous()
    x = y.new_empty((maps.images, maps.height, maps.width, maps.channels))
    packed = y.new_empty(maps.out * filled(maps.patch()))
    given, at, added, *made = addresses(y, weight, bias, packed, x)
    bands = min(maps.height, -(-threads // maps.images))  # one, where there is an image for every thread
    read, rest = lie or _lie(weight.stride(), weight.shape), (longs(maps), maps.most(), bands, threads)
    check(_found().patches_scatter(given, at, *read, added, corners, *made, *rest), "a convolution")
    return x.permute(0, 3, 1, 2)


def _weight_gradients(maps: _Maps, x: Tensor, y: Tensor, dw: Tensor, lie: _Lie | None = None) -> Tensor:
    """The gradient of a bias (K,), by the large map and the small one; that of the weight becomes `dw`."""
    x, y, out = _rows(x), _rows(y), filled(maps.out)
    if out > maps.out:
        y = F.pad(y.permute(0, 2, 3, 1), (0, out - maps.out)).permute(0, 3, 1, 2)
    db, threads = x.new_empty(maps.out), torch.get_num_threads()
    sums = x.new_empty(threads * (maps.patch() + 1) * out)
    made, read = addresses(x, y, dw, db), lie or _lie(dw.stride(), dw.shape)
    rest = longs(maps._replace(out=out)), maps.out, sums.data_ptr(), maps.block(), threads
    check(_found().patches_weights(*made, *read, *rest), "a convolution")
    return db


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
