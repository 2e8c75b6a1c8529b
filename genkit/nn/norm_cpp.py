"""The passes of `norm` over float32 maps on a CPU, by norm.cpp where that can be had."""

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from ..native import addresses, library, readable

_STEP = 16  # channels are a multiple of it
_POINTER, _DOUBLE, _LONG, _INT = ctypes.c_void_p, ctypes.c_double, ctypes.c_int64, ctypes.c_int


class Inputs(NamedTuple):
    """What is normalised, x (B, C, H, W), with the vectors that go with it: weight and bias (C,), the others
    (B, C). The last channels may lie in another map, `more`, behind those of x."""

    x: Tensor
    more: Tensor | None
    weight: Tensor
    bias: Tensor
    added: Tensor | None
    scale: Tensor | None
    shift: Tensor | None


@functools.cache
def _kernels() -> ctypes.CDLL | None:
    """The functions of norm.cpp, where they can be had."""
    found = library(Path(__file__).with_name("norm.cpp"))
    if found is not None:
        sizes = [*[_LONG] * 5, _INT]  # images, pixels, channels, those in x, groups; whether the SiLU follows
        found.normalise.argtypes = [*[_POINTER] * 7, _DOUBLE, *sizes, *[_POINTER] * 2, _INT]
        found.normalise_back.argtypes = [*[_POINTER] * 7, *sizes, *[_POINTER] * 11, _INT]
        found.normalise.restype = found.normalise_back.restype = None
    return found


def suits(inputs: Inputs, *others: Tensor | None) -> bool:
    """Whether these, the maps channels-last, are what the kernels take, and there are kernels."""
    x, more, weight, bias, added, scale, shift = inputs
    b, channels = len(x), len(weight)
    return (
        channels % _STEP == x.shape[1] % _STEP == 0
        and channels == x.shape[1] + (0 if more is None else more.shape[1])
        and (more is None or (b, *x.shape[2:]) == (len(more), *more.shape[2:]))
        and b >= torch.get_num_threads()  # an image is one thread's
        and readable(*inputs, *others)
        and weight.shape == bias.shape == (channels,)
        and all(t is None or t.shape == (b, channels) for t in (added, scale, shift))
        and (scale is None) == (shift is None)
        and _kernels() is not None
    )


def forward(inputs: Inputs, groups: int, eps: float, activate: bool) -> tuple[Tensor, Tensor]:
    """The result, a channels-last map, and what was found on the way, for `backward` and `parts`."""
    kernels, (x, more, *vectors) = _kernels(), inputs
    assert kernels is not None
    b, split, height, width = x.shape
    channels = len(inputs.weight)
    if more is None:
        result = torch.empty_like(x)
    else:
        result = x.new_empty((b, height, width, channels)).permute(0, 3, 1, 2)
    found = x.new_empty(b * (3 * channels + 2 * groups))
    given = x, more, *_whole(*vectors)
    size = b, height * width, channels, split, groups, activate
    kernels.normalise(*addresses(*given), eps, *size, *addresses(result, found), torch.get_num_threads())
    return result, found


def parts(found: Tensor, channels: int, groups: int) -> tuple[Tensor, ...]:
    """Of what `forward` found: means of the channels (B, C); gain and offset (B, C) of the affine map from
    rows to the argument of the SiLU; means and 1 / std of the groups (B, G)."""
    b = len(found) // (3 * channels + 2 * groups)
    sizes = [channels] * 3 + [groups] * 2
    return tuple(part.view(b, -1) for part in found.split([b * n for n in sizes]))


def backward(
    gradient: Tensor,
    inputs: Inputs,
    found: Tensor,
    groups: int,
    activate: bool,
    plus: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """The gradients of the inputs.

    gradient: of the result. found: what `forward` gives after its result. plus: is added to the first two.
    """
    kernels, (x, more, weight, bias, added, scale, _) = _kernels(), inputs
    assert kernels is not None
    b, split, height, width = x.shape
    channels = len(weight)
    x, gradient = (t.contiguous(memory_format=torch.channels_last) for t in (x, gradient))
    more, *others = _last(more, *plus)
    maps = torch.empty_like(x), None if more is None else torch.empty_like(more)
    small = x.new_empty(channels), x.new_empty(channels)
    scratch = x.new_empty(5 * b * channels)
    spare = [scratch.data_ptr() + 4 * i * b * channels for i in (3, 4)]
    vectors = [None if t is None else x.new_empty((b, channels)) for t in (added, scale, scale)]
    dadded, dscale, dshift = addresses(*vectors)
    given = x, more, gradient, *_whole(weight, bias, added, scale)
    kernels.normalise_back(
        *addresses(*given),
        *(b, height * width, channels, split, groups, activate),
        *addresses(found, *maps, *small),
        *(dadded or spare[0], dscale, dshift or spare[1]),
        *addresses(scratch, *others),
        torch.get_num_threads(),
    )
    return [*maps, *small, *vectors]


def _whole(*tensors: Tensor | None) -> list[Tensor | None]:
    """The same tensors without gaps."""
    return [None if t is None else t.contiguous() for t in tensors]


def _last(*maps: Tensor | None) -> list[Tensor | None]:
    """The same maps channels-last."""
    return [None if t is None else t.contiguous(memory_format=torch.channels_last) for t in maps]
