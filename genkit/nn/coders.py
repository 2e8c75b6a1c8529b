"""Encoders and decoders: images (C, H, W) to codes, maps (C', H', W') or vectors (C', 1, 1), and back."""

import math
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .convnet import Residual
from .convolution import Conv2d
from .norm import GroupNorm, group_norm, norm_silu
from .winograd import Conv3x3

Shape = tuple[int, int, int]


class Chain(nn.Sequential):
    """`nn.Sequential`, in which a group norm and the SiLU after it are one step, past their hooks, and so are
    a 3x3 convolution and the pixel shuffle by 2 after it.
    """

    def forward(self, x: Tensor) -> Tensor:
        """What the last layer gives, of x for the first."""
        layers = iter(pairwise([*self, None]))
        for layer, following in layers:
            if isinstance(layer, GroupNorm) and isinstance(following, nn.SiLU):
                x = norm_silu(layer, x)
                next(layers)
            elif isinstance(layer, Conv3x3) and _doubles(following):
                x = layer(x, shuffled=True)
                next(layers)
            else:
                x = layer(x)  # type: ignore[misc]
        return x


def _doubles(layer: nn.Module | None) -> bool:
    return isinstance(layer, nn.PixelShuffle) and layer.upscale_factor == 2


class Brightness(nn.Module):
    """Pixels in [-1, 1] as brightness in [0, 1]."""

    def forward(self, x: Tensor) -> Tensor:
        """(x + 1) / 2 for x of any shape."""
        return 0.5 * x + 0.5


class BlackAndWhite(nn.Module):
    """Pixels in [-1, 1] as -1 or 1, whichever is nearer; the middle is black."""

    def forward(self, x: Tensor) -> Tensor:
        """x of any shape, binarised."""
        return torch.where(x > 0, 1.0, -1.0)


def _mlp(a: Shape, b: Shape, width: int) -> list[nn.Module]:
    """Layers from (B, *a) to (B, *b) by one hidden layer of `width` units."""
    first, last = nn.Linear(math.prod(a), width), nn.Linear(width, math.prod(b))
    return [nn.Flatten(), first, nn.ReLU(), last, nn.Unflatten(1, b)]


def mlp_encoder(image: Shape, code: Shape, width: int = 400) -> nn.Sequential:
    """(B, *image) in [-1, 1] -> (B, *code) by one hidden layer of `width` units.

    With its decoder, 784-400-20 is the PyTorch VAE example: 652,824 parameters. It sees brightness,
    as that one does: on MNIST, where black is then 0, this gains about 1 nat an image in 20 epochs.
    """
    return nn.Sequential(Brightness(), *_mlp(image, code, width))


def mlp_decoder(code: Shape, image: Shape, width: int = 400) -> nn.Sequential:
    """(B, *code) -> (B, *image) by one hidden layer of `width` units."""
    return nn.Sequential(*_mlp(code, image, width))


def halvings(image: Shape, code: Shape) -> int:
    """How often the image's size is halved to give the code's.

    A vector is read off a map of at most 7 pixels a side; odd sizes are rounded up on the way.

    Raises:
        ValueError: the code is a map and its size is not the image's over one power of two.
    """
    (_, height, width), (_, h, w) = image, code
    if (h, w) == (1, 1):
        return max(math.ceil(math.log2(max(height, width) / 7)), 0)
    times = round(math.log2(height / h)) if h <= height else 0
    if (h << times, w << times) != (height, width):
        raise ValueError(f"a {h}x{w} code is not {height}x{width} over a power of two")
    return times


def _widths(width: int, times: int) -> list[int]:
    """Channels at full size and after each halving: they double, up to 4 times the first."""
    return [width * min(2 ** max(i - 1, 0), 4) for i in range(times + 1)]


class ConvEncoder(nn.Module):
    """(B, *image) -> (B, *code): strided convolutions with residual blocks at every size below the first.

    width: channels after the first halving. Full size, the dearest, has no block of its own.
    dense: units of a layer between the last map and a vector; 0 for none.

    Raises:
        ValueError: see `halvings`.
    """

    def __init__(self, image: Shape, code: Shape, width: int = 32, blocks: int = 1, dense: int = 0) -> None:
        super().__init__()
        times = halvings(image, code)
        widths = _widths(width, times)
        if times == 0:
            layers: list[nn.Module] = [Conv3x3(image[0], width)]
            layers += [Residual(width) for _ in range(blocks)]
        else:
            layers = []
        for a, b in zip([image[0], *widths[1:]], widths[1:]):
            layers += [Conv2d(a, b, 4, stride=2, padding=1)]
            layers += [Residual(b) for _ in range(blocks)]
        layers += [group_norm(widths[-1]), nn.SiLU()]
        if code[1:] == (1, 1):
            units = widths[-1] * math.prod(_size(image, times))
            layers += [nn.Flatten(), *_linear(units, math.prod(code), dense), nn.Unflatten(1, code)]
        else:
            layers += [Conv3x3(widths[-1], code[0])]
        self.pad = _padding(image, times)
        self.layers = Chain(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, *image) -> (B, *code)."""
        return self.layers(F.pad(x, self.pad, mode="replicate") if any(self.pad) else x)


class ConvDecoder(nn.Module):
    """(B, *code) -> (B, *image), the mirror of `ConvEncoder`.

    Every doubling is a convolution to 4 times the channels and a pixel shuffle (Shi et al. 2016): no work is
    done at the larger size.
    """

    def __init__(self, code: Shape, image: Shape, width: int = 32, blocks: int = 1, dense: int = 0) -> None:
        super().__init__()
        times = halvings(image, code)
        widths = _widths(width, times)
        layers: list[nn.Module] = []
        if code[1:] == (1, 1):
            start = (widths[-1], *_size(image, times))
            layers += [nn.Flatten(), *_linear(code[0], math.prod(start), dense), nn.Unflatten(1, start)]
        else:
            layers += [Conv3x3(code[0], widths[-1])]
        for i in range(times, 0, -1):
            layers += [Residual(widths[i]) for _ in range(blocks)]
            layers += [group_norm(widths[i]), nn.SiLU()]
            out = image[0] if i == 1 else widths[i - 1]
            layers += [Conv3x3(widths[i], 4 * out), nn.PixelShuffle(2)]
        if times == 0:
            layers += [Residual(width) for _ in range(blocks)]
            layers += [group_norm(width), nn.SiLU(), Conv3x3(width, image[0])]
        self.size = image[1:]
        self.layers = Chain(*layers)

    def forward(self, z: Tensor) -> Tensor:
        """z: (B, *code) -> (B, *image)."""
        height, width = self.size
        return self.layers(z)[:, :, :height, :width]


def _linear(a: int, b: int, dense: int) -> list[nn.Module]:
    """Layers from `a` units to `b`: one, or two about `dense` units."""
    return [nn.Linear(a, dense), nn.SiLU(), nn.Linear(dense, b)] if dense else [nn.Linear(a, b)]


def _size(image: Shape, times: int) -> tuple[int, int]:
    """Height and width after `times` halvings, each rounded up."""
    return -(-image[1] >> times), -(-image[2] >> times)


def _padding(image: Shape, times: int) -> tuple[int, int, int, int]:
    """Pixels to add (left, right, top, bottom) so that every halving is even."""
    height, width = (n << times for n in _size(image, times))
    return 0, width - image[2], 0, height - image[1]


WIDTHS = {"mlp": 400, "conv": 32}  # the usual width of each kind


def coders(
    arch: str, image: Shape, wide: Shape, code: Shape, width: int | None, blocks: int, dense: int
) -> tuple[nn.Module, nn.Module]:
    """An encoder (B, *image) -> (B, *wide) and a decoder (B, *code) -> (B, *image) of a kind in `WIDTHS`.

    width: hidden units (mlp), or channels after the first halving (conv); None is the usual one. blocks:
    residual blocks a size (conv). dense: units between maps and a vector (conv), 0 for none.
    """
    width = width or WIDTHS[arch]
    if arch == "mlp":
        return mlp_encoder(image, wide, width), mlp_decoder(code, image, width)
    return ConvEncoder(image, wide, width, blocks, dense), ConvDecoder(code, image, width, blocks, dense)
