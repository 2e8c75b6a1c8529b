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


def forward(
    rows: Tensor, more: Tensor | None, inputs: Inputs, groups: int, eps: float, activate: bool
) -> tuple[Tensor, Tensor]:
    """The result (B, P, C), and what was found on the way, for `backward` and `parts`.

    rows, more: (B, P, C), or two parts of these channels: the pixels of x and of `inputs.more`.
    """
    kernels = _kernels()
    assert kernels is not None
    b, pixels, split = rows.shape
    channels = len(inputs.weight)
    result, found = rows.new_empty((b, pixels, channels)), rows.new_empty(b * (3 * channels + 2 * groups))
    given = _whole(rows, more, *inputs[2:])
    size = b, pixels, channels, split, groups, activate
    kernels.normalise(*addresses(*given), eps, *size, *addresses(result, found), torch.get_num_threads())
    return result, found


def parts(found: Tensor, channels: int, groups: int) -> tuple[Tensor, ...]:
    """Of what `forward` found: means of the channels (B, C); gain and offset (B, C) of the affine map from
    rows to the argument of the SiLU; means and 1 / std of the groups (B, G)."""
    b = len(found) // (3 * channels + 2 * groups)
    sizes = [channels] * 3 + [groups] * 2
    return tuple(part.view(b, -1) for part in found.split([b * n for n in sizes]))


def backward(
    rows: Tensor,
    more: Tensor | None,
    gradient: Tensor,
    inputs: Inputs,
    found: Tensor,
    groups: int,
    activate: bool,
    plus: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """The gradients of rows, of `more`, and of the other inputs.

    found: what `forward` gives after its result. plus: is added to the first two.
    """
    kernels = _kernels()
    assert kernels is not None
    b, pixels, split = rows.shape
    channels = len(inputs.weight)
    dx, dmore = rows.new_empty(rows.shape), None if more is None else more.new_empty(more.shape)
    small = rows.new_empty((2, channels))
    scale = inputs.scale
    wide = rows.new_empty((5 if scale is None else 6, b, channels))
    dadded, dshift, scratch = wide[0], wide[1], wide[2:5]
    dscale = None if scale is None else wide[5]
    given = _whole(rows, more, gradient, inputs.weight, inputs.bias, inputs.added, scale)
    size = b, pixels, channels, split, groups, activate
    made = found, dx, dmore, small[0], small[1], dadded, dscale, dshift, scratch, *_whole(*plus)
    kernels.normalise_back(*addresses(*given), *size, *addresses(*made), torch.get_num_threads())
    return [
        dx,
        dmore,
        small[0],
        small[1],
        None if inputs.added is None else dadded,
        dscale,
        None if scale is None else dshift,
    ]


def _whole(*tensors: Tensor | None) -> list[Tensor | None]:
    """The same tensors without gaps."""
    return [None if t is None else t.contiguous() for t in tensors]
