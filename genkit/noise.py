"""Counter-based random numbers: row i of every draw is a pure function of (seed, stream, index[i]).

Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), vectorised over
tensors, so the same numbers come from any device, batch size and number of processes. Streams separate
the uses of one seed.
"""

import ctypes
import functools
import math
from pathlib import Path

import torch
from torch import Tensor

from .native import eager, library, plain

# Streams. Sampler step k draws from STEP + k.
INITIAL, TIME, EPS, SHIFT, SHUFFLE, FLIP, POSTERIOR, BOOTSTRAP, LABEL, CORRUPT, COMPONENT = range(11)
CODEBOOK, FAKE, MIX, PRIOR, BINARISE, DROPOUT, SUBSET = range(11, 18)
STEP = 1 << 20

_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_MASK, _LARGEST = (1 << 32) - 1, (1 << 64) - 1


def _multiply(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """(high, low) 32-bit halves of a * b. The product wraps around in int64, and its 64 bits are still
    right."""
    product = a * b
    return (product >> 32) & _MASK, product & _MASK


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Four 32-bit outputs (int64 tensors) of Philox4x32-10 for a counter of four 32-bit words and a 64-bit
    key."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = _multiply(_M0, c0)
        high1, low1 = _multiply(_M1, c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _W0) & _MASK, (k1 + _W1) & _MASK
    return c0, c1, c2, c3


@functools.cache
def _kernels() -> ctypes.CDLL | None:
    """The function of noise.cpp, where it can be had: `philox` without its 80 operations on small tensors."""
    found = library(Path(__file__).with_suffix(".cpp"))
    if found is None:
        return None
    pointer, long, word = ctypes.c_void_p, ctypes.c_int64, ctypes.c_uint32
    found.philox.argtypes = [ctypes.c_uint64, word, pointer, long, long, pointer, ctypes.c_int]
    found.philox.restype = None
    first = (ctypes.c_int64 * 5)()
    found.philox(0, 0, ctypes.addressof(first), 1, 1, ctypes.addressof(first) + 8, 1)
    return found if first[1] == 0x6627E8D5 else None


def bits(seed: int, stream: int, index: Tensor, count: int) -> Tensor:
    """(B, count) random 32-bit integers in int64. index: (B,) int64, non-negative."""
    blocks = -(-count // 4)
    index = index.to(torch.int64)
    if plain(index) and eager() and (kernels := _kernels()) is not None:
        drawn, index = index.new_empty((len(index), 4 * blocks)), index.contiguous()
        made = index.data_ptr(), len(index), blocks, drawn.data_ptr(), torch.get_num_threads()
        kernels.philox(seed & _LARGEST, stream & _MASK, *made)
        return drawn[:, :count]
    index = index[:, None]
    block = torch.arange(blocks, device=index.device)[None, :]
    shape = torch.broadcast_shapes(index.shape, block.shape)
    counter = (
        block.expand(shape),
        (index & _MASK).expand(shape),
        ((index >> 32) & _MASK).expand(shape),
        torch.full(shape, stream & _MASK, dtype=torch.int64, device=index.device),
    )
    words = philox(counter, (seed & _MASK, (seed >> 32) & _MASK))
    return torch.stack(words, dim=-1).flatten(1)[:, :count]


def uniform(seed: int, stream: int, index: Tensor, shape: tuple[int, ...] = ()) -> Tensor:
    """(B, *shape) float32 numbers, uniform on [0, 1): multiples of 2^-24."""
    words = bits(seed, stream, index, math.prod(shape))
    return ((words >> 8).float() * 2.0**-24).reshape(len(index), *shape)


def normal(seed: int, stream: int, index: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(B, *shape) float32 standard normal numbers by the Box-Muller transform (|z| < 6.7)."""
    count = math.prod(shape)
    pairs = -(-count // 2)
    words = bits(seed, stream, index, 2 * pairs)
    # (w + 1/2) / 2^32 lies strictly inside (0, 1), so the logarithm is finite. float64 keeps devices in
    # agreement.
    u = (words.double() + 0.5) * 2.0**-32
    radius = torch.sqrt(-2.0 * torch.log(u[:, :pairs]))
    angle = (2.0 * math.pi) * u[:, pairs:]
    z = torch.cat([radius * torch.cos(angle), radius * torch.sin(angle)], dim=1)
    return z[:, :count].float().reshape(len(index), *shape)


def integers(seed: int, stream: int, index: Tensor, high: int, shape: tuple[int, ...] = ()) -> Tensor:
    """(B, *shape) int64 numbers, uniform on 0 … high - 1 (high < 2^31; bias below high / 2^32)."""
    words = bits(seed, stream, index, math.prod(shape))
    return ((words * high) >> 32).reshape(len(index), *shape)


def words(seed: int, stream: int, index: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(B, *shape) int32 numbers, every 32 bits of them random: the keys that `coins` takes."""
    drawn = bits(seed, stream, index, math.prod(shape)) - (1 << 31)
    return drawn.to(torch.int32).reshape(len(index), *shape)


def coins(key: Tensor, count: int, probability: float) -> Tensor:
    """(B, count) bool, each true with `probability`, which is rounded to a multiple of 2^-16.

    key: (B, 2) int32 random words; coin j of row i is a function of (key[i], j) only. For draws as many as a
    network's activations, of which Philox alone would take longer than the layer they serve: two rounds of a
    32-bit hash by multiplication and shift (constants: Wellons 2018, "lowbias32") over the coin's place, the
    key entering before each of them; one hash makes two coins.
    """
    place = torch.arange(-(-count // 2), dtype=torch.int32, device=key.device) * _signed(_W0)
    x = place[None, :] ^ key[:, :1]
    x = _fold(x, 16).mul_(0x7FEB352D).bitwise_xor_(key[:, 1:])
    x = _fold(x, 15).mul_(_signed(0x846CA68B))
    # int16 runs from -2^15 to 2^15 - 1, the largest that is true; for probability 0 none is
    least = round(probability * 2**16) - 2**15 - 1
    found = _fold(x, 16).view(torch.int16)[:, :count] <= max(least, -(2**15))
    return found if least >= -(2**15) else torch.zeros_like(found)


def _signed(word: int) -> int:
    """The 32-bit `word` as the int32 of the same bits."""
    return word - (1 << 32) if word >> 31 else word


def _fold(x: Tensor, shift: int) -> Tensor:
    """x ^ (x >> shift) in place, zeros moving in; x: int32, of which the sign alone would move in."""
    return x.bitwise_xor_((x >> shift).bitwise_and_((1 << (32 - shift)) - 1))


def permutation(seed: int, epoch: int, n: int) -> Tensor:
    """(n,) int64 permutation of 0 … n - 1 for one epoch, the same on every machine."""
    words = bits(seed, SHUFFLE, torch.tensor([epoch]), 2 * n)[0]
    return torch.argsort((words[:n] << 31) ^ words[n:], stable=True)
