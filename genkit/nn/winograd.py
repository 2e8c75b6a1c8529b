"""3x3 convolutions in a quarter of the multiplications, on a CPU (Lavin & Gray 2016, F(4x4, 3x3))."""

import ctypes
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..native import INT, LONG, POINTER, addresses, check, library, readable
from . import again, patches
from .patches import filled, learns

_STEP = 16  # channels in are a multiple of it; channels out are filled up with zeros
_FEW = 6  # channels of which products of patches are faster; of a map four times as large, half as many
_LARGEST = 1 << 18  # channels in times channels out: their transformed weights take 38 MB
_FEWEST, _FEWEST_BACK = 12, 64  # tiles that pay the work on the weights; with that on their gradient
_BLOCK = 36  # tiles of a block at most: its transformed maps fit the L2 cache
_SUMS = 1 << 26  # floats that all threads' sums of the gradient of the weights may take


class Conv3x3(nn.Conv2d):
    """`nn.Conv2d(channels_in, channels_out, 3, padding=1)`: the same parameters and, to rounding, results.

    On a CPU, float32 maps in channels-last layout take 4 times fewer multiplications, forward and backward: 2
    to 3 times as fast. What it costs is a digit or two: errors of some 1e-5 of the largest value, where torch
    has 1e-6. A value that is not finite spreads over its tile of 4x4 pixels. Where one of the maps has few
    channels, products of `patches` do it. What does not suit goes through torch's convolution, also a batch
    so small that reading the weights takes the time, and everything on a machine without a C++ compiler.
    Frozen weights are transformed once; a change through `.data` in place is not seen.
    """

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, 3, padding=1)
        self._kept: dict[tuple[bool, bool], _Kept] = {}

    def forward(
        self, x: Tensor, plus: Tensor | None = None, doubled: bool = False, shuffled: bool = False
    ) -> Tensor:
        """x: (B, channels_in, H, W) -> (B, channels_out, H, W).

        plus: a map of the result's shape, added to it. doubled: the convolution of x with every pixel twice
        in both directions, (B, channels_out, 2 H, 2 W). shuffled: F.pixel_shuffle of the result by 2,
        (B, channels_out / 4, 2 H, 2 W), without the other two.

        Raises:
            ValueError: shuffled together with one of them.
        """
        if shuffled and (plus is not None or doubled):
            raise ValueError("a shuffled result can be neither doubled nor added to")
        weight, bias = self.weight, self.bias  # read once: reading a parametrised weight makes it
        if plus is None and not doubled and self._thin(shuffled) and patches.takes(x, weight, bias):
            return _by_patches(x, weight, bias, shuffled)
        if shuffled and self.out_channels % (4 * _STEP):
            return F.pixel_shuffle(self.forward(x), 2)
        tensors = (x, weight, bias, plus)
        learning = learns(*tensors)
        if not self._suits(x, weight, doubled, _FEWEST_BACK if learning else _FEWEST):
            y = _plain(*tensors, doubled)
            return F.pixel_shuffle(y, 2) if shuffled else y
        if plus is not None and not self._takes(plus, _size(x.shape, doubled)):
            return self.forward(x, doubled=doubled) + plus
        if learning:
            return _Convolve.apply(*tensors, doubled, shuffled, self._transformed)
        weights = self._transformed(weight, False, shuffled)
        return _run(_found(), x, weights, bias, plus, self.out_channels, doubled, False, shuffled)

    def _thin(self, shuffled: bool) -> bool:
        """Whether one of the maps has few channels."""
        return self.in_channels <= _FEW or self.out_channels <= (2 * _FEW if shuffled else _FEW)

    def _suits(self, x: Tensor, weight: Tensor, doubled: bool, fewest: int) -> bool:
        """Whether the kernels take these, and pay."""
        out, channels = weight.shape[:2]
        return (
            readable(x, weight, self.bias)
            and not torch.is_autocast_enabled("cpu")
            and channels % _STEP == 0
            and channels * filled(out) <= _LARGEST
            and x.ndim == 4
            and x.shape[1] == channels
            and x.is_contiguous(memory_format=torch.channels_last)
            and fewest <= (tiles := _tiles(size := _size(x.shape, doubled)))
            and 4 * tiles < math.prod(size)  # below, a tile holds too little of the map
            and _kernels() is not None
        )

    def _takes(self, plus: Tensor, size: tuple[int, int, int]) -> bool:
        """Whether the kernel can add `plus` to whole vectors of channels."""
        b, height, width = size
        whole = plus.shape == (b, self.out_channels, height, width) and self.out_channels % _STEP == 0
        return whole and readable(plus)

    def _transformed(self, weight: Tensor, back: bool, shuffled: bool) -> Tensor:
        """`_transform` of this layer's weight: kept while it is frozen."""
        if weight.requires_grad or weight.is_inference() or not isinstance(weight, nn.Parameter):
            return _transform(_found(), weight, back, shuffled)
        kept, state = self._kept.get((back, shuffled)), (weight.data_ptr(), weight._version)
        if kept is None or kept.state != state:
            made = _transform(_found(), weight, back, shuffled)
            kept = self._kept[back, shuffled] = _Kept(weight.detach(), state, made)
        return kept.weights

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_kept": {}}  # type: ignore[dict-item]  # copies make their own


def _by_patches(x: Tensor, weight: Tensor, bias: Tensor | None, shuffled: bool) -> Tensor:
    """The convolution of a map of few channels and another: the patches are the first one's."""
    few = len(weight) // 4 if shuffled else len(weight)
    if few > _FEW:
        y = patches.convolve(x, weight, bias, 1, 1)
        return F.pixel_shuffle(y, 2) if shuffled else y
    x = x.contiguous(memory_format=torch.channels_last)  # `turned` is not
    turned = weight.flip(2, 3).transpose(0, 1)  # what a pixel of x adds to those around
    if not shuffled:
        return patches.spread(x, turned, bias, 1, 1)
    # its window in the shuffled map has 6x6 pixels: a corner of each for each of the 3x3
    corners = turned.unflatten(1, (few, 2, 2)).permute(0, 1, 4, 2, 5, 3)
    y = patches.spread(x, corners.reshape(-1, few, 6, 6), None, 2, 2)
    if bias is None:
        return y
    return y + F.pixel_shuffle(bias[:, None, None], 2).repeat(1, *x.shape[2:])


class _Kept(NamedTuple):
    of: Tensor  # while it lives, no other tensor has its address
    state: tuple[int, int]
    weights: Tensor


class _Convolve(torch.autograd.Function):
    """The convolution with its gradients; gradients of the gradient go through torch's own operations."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        plus: Tensor | None,
        doubled: bool,
        shuffled: bool,
        transformed: Callable[..., Tensor],
    ) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        ctx.doubled, ctx.shuffled, ctx.transformed = doubled, shuffled, transformed
        weights = transformed(weight, False, shuffled)
        return _run(_found(), x, weights, bias, plus, len(weight), doubled, False, shuffled)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        dx = dw = db = None
        dplus = gradient if ctx.needs_input_grad[3] else None
        if torch.is_grad_enabled():
            plain = functools.partial(_plain, plus=None, doubled=ctx.doubled)
            straight = F.pixel_unshuffle(gradient, 2) if ctx.shuffled else gradient
            found = again.gradients(plain, (x, weight, bias), straight, ctx.needs_input_grad[:3])
            return *found, dplus, None, None, None
        missing = filled(len(weight)) - len(weight)
        gradient = F.pad(gradient, (0, 0, 0, 0, 0, missing)) if missing else gradient
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        if ctx.needs_input_grad[0]:
            weights = ctx.transformed(weight, True, ctx.shuffled)
            dx = _run(_found(), gradient, weights, None, None, x.shape[1], False, ctx.shuffled)
            dx = F.avg_pool2d(dx, 2, divisor_override=1) if ctx.doubled else dx
        if ctx.needs_input_grad[1]:
            x = x.contiguous(memory_format=torch.channels_last)  # hooks of saved tensors may change it
            dw, db = _weight_gradients(x, gradient, weight, ctx.doubled, ctx.shuffled)
        elif ctx.needs_input_grad[2]:
            straight = F.pixel_unshuffle(gradient, 2) if ctx.shuffled else gradient
            db = straight.sum((0, 2, 3))[: len(weight)]
        return dx, dw, None if bias is None else db, dplus, None, None, None


def _plain(x: Tensor, weight: Tensor, bias: Tensor | None, plus: Tensor | None, doubled: bool) -> Tensor:
    if doubled and x.device.type == "cpu" and not torch.compiler.is_compiling():
        y = F.conv_transpose2d(x, _doubling(weight), bias, stride=2, padding=1)
    else:
        x = F.interpolate(x, scale_factor=2.0, mode="nearest") if doubled else x
        y = F.conv2d(x, weight, bias, padding=1)
    return y if plus is None else plus + y


def _doubling(weight: Tensor) -> Tensor:
    """(C_in, C_out, 4, 4) kernel of the transposed convolution of stride 2 that repeats pixels, then applies
    the 3x3 `weight` (C_out, C_in, 3, 3).

    Of the nine pixels below a 3x3 kernel only four differ, so the taps that read the same one are summed
    first: 4/9 of the multiplications.
    """
    taps = F.pad(weight, (1, 1, 1, 1))
    taps = taps[..., 1:] + taps[..., :-1]
    taps = taps[..., 1:, :] + taps[..., :-1, :]
    return taps.flip(2, 3).transpose(0, 1)


@functools.cache
def _kernels() -> ctypes.CDLL | None:
    """The functions of winograd.cpp, where they can be had and convolve as torch does."""
    found = library(Path(__file__).with_suffix(".cpp"))
    if found is None:
        return None
    found.winograd_weights.argtypes = [POINTER, *[LONG] * 7, INT, INT, POINTER, INT]
    found.winograd.argtypes = [*[POINTER] * 5, *[LONG] * 5, *[INT] * 3, LONG, INT, INT]
    found.winograd_weights_back.argtypes = [*[POINTER] * 4, *[LONG] * 10, INT, INT, POINTER, LONG, INT]
    found.winograd_weights.restype, found.winograd.restype = None, INT
    found.winograd_weights_back.restype = INT
    with torch.no_grad():
        numbers = torch.arange(6912, dtype=torch.float32, device="cpu").sin()
        x = numbers[:480].view(1, 16, 6, 5).contiguous(memory_format=torch.channels_last)
        weight = numbers.view(48, 16, 3, 3)
        y = _run(found, x, _transform(found, weight, False, False), None, None, 48)
        return found if torch.allclose(y, F.conv2d(x, weight, padding=1), atol=1e-3) else None


def _found() -> ctypes.CDLL:
    """The same, where they were asked for before."""
    kernels = _kernels()
    assert kernels is not None
    return kernels


def _transform(kernels: ctypes.CDLL, weight: Tensor, back: bool, shuffled: bool) -> Tensor:
    """(36, C_in C_out) transformed weights; `back`: those whose convolution is the gradient of x. shuffled:
    the result is."""
    real, channels = weight.shape[:2]
    out = filled(real)
    weights = weight.new_empty((36, channels * out))
    size = (out, channels, real) if back else (channels, out, real)
    kernels.winograd_weights(
        weight.data_ptr(),
        *weight.stride(),
        *size,
        back,
        shuffled,
        weights.data_ptr(),
        torch.get_num_threads(),
    )
    return weights


def _run(
    kernels: ctypes.CDLL,
    x: Tensor,
    weights: Tensor,
    bias: Tensor | None,
    plus: Tensor | None,
    real: int,
    doubled: bool = False,
    shuffled_x: bool = False,
    shuffled_y: bool = False,
) -> Tensor:
    """(B, real, H, W), channels-last, of x (B, C_in, H, W) in that layout and transformed weights, and `plus`
    of the result's shape, whose channels then are a multiple of _STEP. Either map may be shuffled."""
    b, channels, height, width = _straight(x.shape) if shuffled_x else x.shape
    height, width = height << doubled, width << doubled
    out, threads = filled(real), torch.get_num_threads()
    y = x.new_empty((b, 2 * height, 2 * width, out // 4) if shuffled_y else (b, height, width, out))
    if bias is not None:
        bias = F.pad(bias, (0, out - real)) if out > real else bias
        bias = (bias.view(-1, 4).t() if shuffled_y else bias).contiguous()
    if plus is not None:
        plus = plus.contiguous(memory_format=torch.channels_last)
    tiles = _tiles((b, height, width))
    most, sharers = (tiles, threads) if tiles <= _BLOCK else (_block(tiles, threads), 1)
    size = b, height, width, channels, out, doubled, shuffled_x, shuffled_y
    check(
        kernels.winograd(*addresses(x, weights, bias, plus, y), *size, most, sharers, threads),
        "a convolution",
    )
    return y[..., :real].contiguous().permute(0, 3, 1, 2)


def _weight_gradients(
    x: Tensor, gradient: Tensor, weight: Tensor, doubled: bool, shuffled: bool
) -> tuple[Tensor, Tensor]:
    """The gradients of `weight` and bias, by that of the result, channels-last and filled up, or shuffled."""
    channels, out = x.shape[1], filled(len(weight))
    summed = (36 * channels + 1) * out
    threads = min(torch.get_num_threads(), max(1, _SUMS // summed))
    result, bias, sums = torch.empty_like(weight), x.new_empty(out), x.new_empty(threads * summed)
    maps = _size(x.shape, doubled)
    size = *maps, channels, out, len(weight), doubled, shuffled
    most = _block(_tiles(maps), threads)
    call = _found().winograd_weights_back
    made = addresses(x, gradient, result, bias)
    check(call(*made, *result.stride(), *size, sums.data_ptr(), most, threads), "a convolution")
    return result, bias[: len(weight)]


def _straight(shape: torch.Size) -> tuple[int, int, int, int]:
    """(B, C, H, W) of a shuffled map (B, C / 4, 2 H, 2 W)."""
    b, c, height, width = shape
    return b, 4 * c, height // 2, width // 2


def _size(shape: torch.Size, doubled: bool) -> tuple[int, int, int]:
    """(B, H, W) of the result."""
    return shape[0], shape[2] << doubled, shape[3] << doubled


def _tiles(size: tuple[int, int, int]) -> int:
    """Tiles of 4x4 pixels of maps (B, H, W)."""
    b, height, width = size
    return b * -(-height // 4) * -(-width // 4)


def _block(tiles: int, threads: int) -> int:
    """Tiles a block, so that every thread has as many blocks."""
    blocks = -(-tiles // _BLOCK)
    return -(-tiles // (-(-blocks // threads) * threads))
