"""The passes of `norm` over float32 maps on a CPU, by norm.cpp where that can be had."""

import ctypes
import functools
from pathlib import Path

import torch
from torch import Tensor, nn

from ..native import library

_STEP = 16  # channels are a multiple of it
_POINTER, _DOUBLE, _LONG, _INT = ctypes.c_void_p, ctypes.c_double, ctypes.c_int64, ctypes.c_int


@functools.cache
def _kernels() -> ctypes.CDLL | None:
    """The functions of norm.cpp, where they can be had."""
    found = library(Path(__file__).with_name("norm.cpp"))
    if found is not None:
        sizes = [*[_LONG] * 4, _INT]  # images, pixels, channels, groups; whether the SiLU follows
        found.normalise.argtypes = [*[_POINTER] * 6, _DOUBLE, *sizes, *[_POINTER] * 6, _INT]
        found.normalise_back.argtypes = [*[_POINTER] * 5, *sizes, *[_POINTER] * 10, _INT]
        found.normalise.restype = found.normalise_back.restype = None
    return found


def suits(
    rows: Tensor,
    weight: Tensor,
    bias: Tensor,
    added: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    gradient: Tensor | None = None,
) -> bool:
    """Whether rows (B, P, C), the vectors with them and the gradient of the result are what the kernels take,
    and there are kernels."""
    b, _, channels = rows.shape
    tensors = [t for t in (rows, weight, bias, added, scale, shift, gradient) if t is not None]
    return (
        channels % _STEP == 0
        and b >= torch.get_num_threads()  # an image is one thread's
        and all(type(t) in (Tensor, nn.Parameter) for t in tensors)
        and all(t.dtype == torch.float32 and t.device.type == "cpu" for t in tensors)
        and weight.shape == bias.shape == (channels,)
        and all(t is None or t.shape == (b, channels) for t in (added, scale, shift))
        and (scale is None) == (shift is None)
        and not torch._C._are_functorch_transforms_active()
        and _kernels() is not None
    )


def forward(
    rows: Tensor,
    weight: Tensor,
    bias: Tensor,
    added: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    groups: int,
    eps: float,
    activate: bool,
) -> tuple[Tensor, ...]:
    """The result (B, P, C); means of the channels (B, C); means and 1 / std of the groups (B, G); gain and
    offset (B, C) of the affine map from rows to the argument of the SiLU."""
    kernels = _kernels()
    assert kernels is not None
    b, pixels, channels = rows.shape
    result, channel, gain, offset = (rows.new_empty(s) for s in (rows.shape, *[(b, channels)] * 3))
    mean, rstd = (rows.new_empty((b, groups)) for _ in range(2))
    given = _whole(rows, weight, bias, added, scale, shift)
    made = result, channel, mean, rstd, gain, offset
    kernels.normalise(
        *_pointers(*given),
        eps,
        b,
        pixels,
        channels,
        groups,
        activate,
        *_pointers(*made),
        torch.get_num_threads(),
    )
    return made


def backward(
    rows: Tensor,
    gradient: Tensor,
    weight: Tensor,
    added: Tensor | None,
    scale: Tensor | None,
    found: tuple[Tensor, ...],
    groups: int,
    activate: bool,
) -> tuple[Tensor, ...]:
    """The gradient of rows (B, P, C), and over pixels the sums (B, C) of the gradient of the affine map's
    value, of that times (rows + added), and of the first.

    found: what `forward` gives after its result.
    """
    kernels = _kernels()
    assert kernels is not None
    b, pixels, channels = rows.shape
    made = [rows.new_empty(s) for s in (rows.shape, *[(b, channels)] * 4)]
    given = _whole(rows, gradient, weight, added, scale)
    kernels.normalise_back(
        *_pointers(*given),
        b,
        pixels,
        channels,
        groups,
        activate,
        *_pointers(*found, *made),
        torch.get_num_threads(),
    )
    return tuple(made[:4])


def _whole(*tensors: Tensor | None) -> list[Tensor | None]:
    """The same tensors without gaps; they must live until the kernel is done."""
    return [None if t is None else t.contiguous() for t in tensors]


def _pointers(*tensors: Tensor | None) -> list[int | None]:
    """Their addresses."""
    return [None if t is None else t.data_ptr() for t in tensors]
