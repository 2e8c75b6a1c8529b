"""Convolutions of 3x3 or of stride 2 in few multiplications, on a CPU (Lavin & Gray 2016, F(4x4, 3x3))."""

import ctypes
import functools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..native import INT, LONG, POINTER, addresses, check, library, longs, readable
from . import again, patches
from .patches import filled, learns

_STEP = 16  # channels in are a multiple of it; channels out are filled up with zeros
_FEW = 6  # channels of which products of patches are faster; of a map four times as large, half as many
_LARGEST = 1 << 18  # channels in times channels out: their transformed weights take 38 MB
_FEWEST, _FEWEST_BACK = 12, 64  # tiles that pay the work on the weights; with that on their gradient
_BLOCK = 36  # tiles of a block at most: its transformed maps fit the L2 cache
_SUMS = 1 << 26  # floats that all threads' sums of the gradient of the weights may take


class Form(NamedTuple):
    """Which convolution: of 3x3, or of a kernel with a stride of 2."""

    doubled: bool = False  # every pixel of the map stands for 2x2
    shuffled: bool = False  # the result is shuffled
    kernel: int = 0  # with a stride of 2, else 0
    padding: int = 1

    def halves(self, shape: torch.Size, more: tuple[int, int] = (0, 0)) -> bool:
        """Whether the stride of 2 halves even sizes of maps (B, C, H, W), and a pixel of the result is made
        of those around its own four.

        more: rows of zeros below and columns on the right, on top of the padding.
        """
        if self.kernel < 3 or self.padding > 2 or self.kernel - self.padding > 4:
            return False  # of fewer than 3x3 taps, each needs as many products as it has
        sides = zip(shape[2:], more)
        return all(
            n % 2 == 0 and (n + 2 * self.padding + m - self.kernel) // 2 + 1 == n // 2 for n, m in sides
        )


class Keeping(nn.Module):
    """A layer that keeps what its weights are transformed to, while they are frozen."""

    _kept: dict[tuple[Form, bool], "_Kept"]

    def transformed(self, weight: Tensor, form: Form, back: bool) -> Tensor:
        """`_transform` of this layer's weight (K, C, Y, X)."""
        if weight.requires_grad:
            self._kept.clear()  # what learns may change in ways that no version tells
        if weight.requires_grad or weight.is_inference() or not isinstance(weight, nn.Parameter):
            return _transform(_found(), weight, form, back)
        kept, state = self._kept.get((form, back)), (weight.data_ptr(), weight._version)
        if kept is None or kept.state != state:
            made = _transform(_found(), weight, form, back)
            kept = self._kept[form, back] = _Kept(weight.detach(), state, made)
        return kept.weights

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_kept": {}}  # type: ignore[dict-item]  # copies make their own


class Conv3x3(Keeping, nn.Conv2d):
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
        self._kept = {}

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
        tensors, form = (x, weight, bias, plus), Form(doubled, shuffled)
        learning = learns(*tensors)
        if not suits(x, weight, bias, form, learning):
            return _plain(*tensors, form)
        if plus is not None and not self._takes(plus, _size(x.shape, form)):
            return self.forward(x, doubled=doubled) + plus
        return convolve(*tensors, form, learning, self.transformed)

    def _thin(self, shuffled: bool) -> bool:
        """Whether one of the maps has few channels."""
        return self.in_channels <= _FEW or self.out_channels <= (2 * _FEW if shuffled else _FEW)

    def _takes(self, plus: Tensor, size: tuple[int, int, int]) -> bool:
        """Whether the kernel can add `plus` to whole vectors of channels."""
        b, height, width = size
        whole = plus.shape == (b, self.out_channels, height, width) and self.out_channels % _STEP == 0
        return whole and readable(plus)


def _by_patches(x: Tensor, weight: Tensor, bias: Tensor | None, shuffled: bool) -> Tensor:
    """The convolution of a map of few channels and another: the patches are the first one's."""
    few = len(weight) // 4 if shuffled else len(weight)
    if few > _FEW:
        y = patches.convolve(x, weight, bias, 1, 1)
        return F.pixel_shuffle(y, 2) if shuffled else y
    return patches.thin(x, weight, bias, shuffled)


class _Kept(NamedTuple):
    of: Tensor  # while it lives, no other tensor has its address
    state: tuple[int, int]
    weights: Tensor


def suits(x: Tensor, weight: Tensor, bias: Tensor | None, form: Form, learning: bool) -> bool:
    """Whether the kernels take these, and pay; `learning`: also for gradients."""
    out, channels = weight.shape[:2]
    return (
        readable(x, weight, bias)
        and not torch.is_autocast_enabled("cpu")
        and channels % _STEP == 0
        and (4 if form.kernel else 1) * channels * filled(out) <= _LARGEST
        and x.ndim == 4
        and x.shape[1] == channels
        and x.is_contiguous(memory_format=torch.channels_last)
        and (_FEWEST_BACK if learning else _FEWEST) <= (tiles := _tiles(size := _size(x.shape, form)))
        and 4 * tiles < math.prod(size)  # below, a tile holds too little of the map
        and _kernels() is not None
    )


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    plus: Tensor | None,
    form: Form,
    learning: bool,
    transformed: Callable[[Tensor, Form, bool], Tensor],
) -> Tensor:
    """The convolution of a form, by what `suits`, and `plus`; `transformed`: as of `Keeping`.

    x: (B, C, H, W), weight: (K, C, Y, X), bias: (K,) -> (B, K, h, w), which with a stride of 2 is half as
    high and wide.

    Raises:
        MemoryError: there is no memory for a block of tiles.
    """
    if learning:
        return _Convolve.apply(x, weight, bias, plus, form, transformed)
    return _run(_found(), x, transformed(weight, form, False), bias, plus, len(weight), form)


class _Convolve(torch.autograd.Function):
    """The convolution with its gradients; gradients of the gradient go through torch's own operations."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        plus: Tensor | None,
        form: Form,
        transformed: Callable[..., Tensor],
    ) -> Tensor:
        ctx.save_for_backward(x, weight, bias)
        ctx.form, ctx.transformed = form, transformed
        weights = transformed(weight, form, False)
        return _run(_found(), x, weights, bias, plus, len(weight), form)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias = ctx.saved_tensors
        dx = dw = db = None
        dplus, form = gradient if ctx.needs_input_grad[3] else None, ctx.form
        if torch.is_grad_enabled():
            plain = functools.partial(_plain, plus=None, form=form)
            found = again.gradients(plain, (x, weight, bias), gradient, ctx.needs_input_grad[:3])
            return *found, dplus, None, None
        missing = filled(len(weight)) - len(weight)
        gradient = F.pad(gradient, (0, 0, 0, 0, 0, missing)) if missing else gradient
        gradient = gradient.contiguous(memory_format=torch.channels_last)
        if ctx.needs_input_grad[0]:
            weights = ctx.transformed(weight, form, True)
            dx = _run(_found(), gradient, weights, None, None, x.shape[1], form, True)
            dx = F.avg_pool2d(dx, 2, divisor_override=1) if form.doubled else dx
        if ctx.needs_input_grad[1]:
            x = x.contiguous(memory_format=torch.channels_last)  # hooks of saved tensors may change it
            dw, db = _weight_gradients(x, gradient, weight, form)
        elif ctx.needs_input_grad[2]:
            straight = F.pixel_unshuffle(gradient, 2) if form.shuffled else gradient
            db = straight.sum((0, 2, 3))[: len(weight)]
        return dx, dw, None if bias is None else db, dplus, None, None


def _plain(x: Tensor, weight: Tensor, bias: Tensor | None, plus: Tensor | None, form: Form) -> Tensor:
    if form.kernel:  # what is read below and on the right of a map of even size
        before, after = form.padding, form.kernel - 2 - form.padding
        y = F.conv2d(F.pad(x, (before, after, before, after)), weight, bias, stride=2)
    elif form.doubled and x.device.type == "cpu" and not torch.compiler.is_compiling():
        y = F.conv_transpose2d(x, _doubling(weight), bias, stride=2, padding=1)
    else:
        x = F.interpolate(x, scale_factor=2.0, mode="nearest") if form.doubled else x
        y = F.conv2d(x, weight, bias, padding=1)
    y = F.pixel_shuffle(y, 2) if form.shuffled else y
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
    found.winograd_weights.argtypes = [POINTER, POINTER, *[LONG] * 5, INT, POINTER, INT]
    found.winograd.argtypes = [*[POINTER] * 6, INT, LONG, INT, INT]
    found.winograd_weights_back.argtypes = [*[POINTER] * 5, *[LONG] * 5, POINTER, LONG, INT]
    found.winograd_weights.restype, found.winograd.restype = None, INT
    found.winograd_weights_back.restype = INT
    with torch.no_grad():
        numbers = torch.arange(6912, dtype=torch.float32, device="cpu").sin()
        x = numbers[:480].view(1, 16, 6, 5).contiguous(memory_format=torch.channels_last)
        weight = numbers.view(48, 16, 3, 3)
        y = _run(found, x, _transform(found, weight, Form(), False), None, None, 48, Form())
        return found if torch.allclose(y, F.conv2d(x, weight, padding=1), atol=1e-3) else None


def _found() -> ctypes.CDLL:
    """The same, where they were asked for before."""
    kernels = _kernels()
    assert kernels is not None
    return kernels


class _Maps(NamedTuple):
    """What the kernels are told of a convolution: the size of the result, or of the small map of a stride of
    2, the channels as they count them, and how the maps lie."""

    images: int
    height: int
    width: int
    channels: int
    out: int
    doubled: bool = False
    shuffled_in: bool = False
    shuffled_out: bool = False
    strided: bool = False
    kernel: int = 3
    padding: int = 1

    @classmethod
    def of(cls, form: Form, back: bool, size: tuple[int, int, int], channels: int, out: int) -> "_Maps":
        """Of a form, or, with `back`, of the gradient of its x by that of its result."""
        strided, kernel = form.kernel > 0, form.kernel or 3
        shuffled = (strided, form.shuffled)
        lie = shuffled[::-1] if back else shuffled
        return cls(*size, channels, out, form.doubled and not back, *lie, strided, kernel, form.padding)


def _counted(form: Form, weight: Tensor) -> tuple[int, int]:
    """The channels in and out, as the kernels count them."""
    out, channels = weight.shape[:2]
    return 4 * channels if form.kernel else channels, filled(out)


def _transform(kernels: ctypes.CDLL, weight: Tensor, form: Form, back: bool) -> Tensor:
    """(36, C_in C_out) transformed weights; `back`: those whose convolution is the gradient of x."""
    channels, out = _counted(form, weight)
    weights = weight.new_empty((36, channels * out))
    maps = _Maps.of(form, back, (0, 0, 0), *((out, channels) if back else (channels, out)))
    made, threads = addresses(weight, weights), torch.get_num_threads()
    kernels.winograd_weights(made[0], longs(maps), *weight.stride(), len(weight), back, made[1], threads)
    return weights


def _run(
    kernels: ctypes.CDLL,
    x: Tensor,
    weights: Tensor,
    bias: Tensor | None,
    plus: Tensor | None,
    real: int,
    form: Form,
    back: bool = False,
) -> Tensor:
    """The convolution of x by transformed weights, or with `back` its transposed one; channels-last, as x is.

    real: channels of the result. bias: without `back`. plus: of the result's shape, whose channels then are a
    multiple of _STEP.
    """
    strided, threads = form.kernel > 0, torch.get_num_threads()
    shuffled_x, shuffled_y = (form.shuffled, strided) if back else (strided, form.shuffled)
    b, channels, height, width = _straight(x.shape) if shuffled_x else x.shape
    if form.doubled and not back:
        height, width = 2 * height, 2 * width
    out = 4 * real if strided and back else filled(real)
    y = x.new_empty((b, 2 * height, 2 * width, out // 4) if shuffled_y else (b, height, width, out))
    if bias is not None:
        bias = F.pad(bias, (0, out - real)) if out > real else bias
        bias = (bias.view(-1, 4).t() if shuffled_y else bias).contiguous()
    if plus is not None:
        plus = plus.contiguous(memory_format=torch.channels_last)
    size = b, height, width
    tiles = _tiles(size)
    most, sharers = (tiles, threads) if tiles <= _BLOCK else (_block(tiles, threads), 1)
    maps, made = _Maps.of(form, back, size, channels, out), addresses(x, weights, bias, plus, y)
    check(kernels.winograd(*made, longs(maps), back, most, sharers, threads), "a convolution")
    return (y[..., :real].contiguous() if out > real and not shuffled_y else y).permute(0, 3, 1, 2)


def _weight_gradients(x: Tensor, gradient: Tensor, weight: Tensor, form: Form) -> tuple[Tensor, Tensor]:
    """The gradients of `weight` and bias, by that of the result, channels-last and filled up, or shuffled."""
    channels, out = _counted(form, weight)
    summed = (36 * channels + 1) * out
    threads = min(torch.get_num_threads(), max(1, _SUMS // summed))
    result, bias, sums = torch.empty_like(weight), x.new_empty(out), x.new_empty(threads * summed)
    size = _size(x.shape, form)
    maps, most = _Maps.of(form, False, size, channels, out), _block(_tiles(size), threads)
    call, made = _found().winograd_weights_back, addresses(x, gradient, result, bias)
    rest = len(weight), sums.data_ptr(), most, threads
    check(call(*made, longs(maps), *result.stride(), *rest), "a convolution")
    return result, bias[: len(weight)]


def _straight(shape: torch.Size) -> tuple[int, int, int, int]:
    """(B, C, H, W) of a shuffled map (B, C / 4, 2 H, 2 W)."""
    b, c, height, width = shape
    return b, 4 * c, height // 2, width // 2


def _size(shape: torch.Size, form: Form) -> tuple[int, int, int]:
    """(B, H, W) of the result, as the kernels count it, of x of a shape."""
    b, _, height, width = shape
    if form.kernel:
        return b, height // 2, width // 2
    return (b, 2 * height, 2 * width) if form.doubled else (b, height, width)


def _tiles(size: tuple[int, int, int]) -> int:
    """Tiles of 4x4 pixels of maps (B, H, W)."""
    b, height, width = size
    return b * -(-height // 4) * -(-width // 4)


def _block(tiles: int, threads: int) -> int:
    """Tiles a block, so that every thread has as many blocks."""
    blocks = -(-tiles // _BLOCK)
    return -(-tiles // (-(-blocks // threads) * threads))
