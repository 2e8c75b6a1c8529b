"""Layers shared by the U-Net: residual blocks, attention, resizing, embedding of the noise level."""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..native import readable
from .attention import attend
from .convolution import Conv2d
from .dropout import Dropout
from .norm import GroupNorm as GroupNorm
from .norm import beside, group_norm, joined, norm_silu
from .winograd import Conv3x3

Norm = Callable[[int], nn.Module]  # channels -> the normalisation of maps of so many channels


def zero(module: nn.Module) -> nn.Module:
    """The same module with all its parameters set to zero, so that a residual branch starts as nothing."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def sinusoid(x: Tensor, width: int, shift: float = 1.0, cosine_first: bool = False) -> Tensor:
    """Sines, then cosines, of `x` at width / 2 geometric frequencies from 1 downwards, in float32.

    x: (B,) -> (B, width), `width` even. Frequency i is 10000^(-i / (width / 2 - shift)): with shift 1 (Ho et
    al. 2020) the last one is exactly 1/10000, with shift 0 it is the next of Vaswani et al. 2017.
    """
    half = width // 2
    steps = torch.arange(half, dtype=torch.float32, device=x.device)
    # multiplied, then divided, as the networks trained by diffusers round: near x = 1000 the last bit shows
    frequency = torch.exp(steps * -math.log(10000) / max(half - shift, 1))
    angle = x.float()[:, None] * frequency
    parts = [angle.cos(), angle.sin()] if cosine_first else [angle.sin(), angle.cos()]
    return torch.cat(parts, dim=1)


class Conv1x1(nn.Conv2d):
    """`nn.Conv2d(channels_in, channels_out, 1)`: the same parameters and, to rounding, results."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__(channels_in, channels_out, 1)

    def forward(self, x: Tensor, more: Tensor | None = None) -> Tensor:
        """x: (B, channels_in, H, W) -> (B, channels_out, H, W).

        more: a map whose channels follow those of x, as if they were `joined`. Where that costs more than a
        second product, float32 in channels-last layout on a CPU, they are not.
        """
        maps = [x] if more is None else [x, more]
        if (
            more is None
            or x.shape[2:] != more.shape[2:]
            or not readable(x, more, self.weight)
            or torch.is_autocast_enabled("cpu")
            or not all(t.is_contiguous(memory_format=torch.channels_last) for t in maps)
        ):
            return super().forward(joined(x, more))
        weights = self.weight[:, :, 0, 0].split([t.shape[1] for t in maps], dim=1)
        rows = [t.permute(0, 2, 3, 1).flatten(0, 2) for t in maps]
        y = F.linear(rows[0], weights[0], self.bias).addmm_(rows[1], weights[1].t())
        return y.view(len(x), *x.shape[2:], self.out_channels).permute(0, 3, 1, 2)


class ResBlock(nn.Module):
    """Two 3x3 convolutions with the embedding (B, E) entering between them, plus the shortcut.

    embedding: E, or None for a block that is told nothing. norm: channels -> the normalisation of so many.

    Ho et al. 2020, appendix B: the embedding is added. `scale_shift` makes it an affine map of the second
    norm ("AdaGN", Dhariwal & Nichol 2021). `skip_scale` multiplies the sum; 1/sqrt(2) keeps its variance
    (Song et al. 2021, "Score-based generative modeling", appendix H).
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        embedding: int | None,
        dropout: float = 0.0,
        scale_shift: bool = False,
        skip_scale: float = 1.0,
        norm: Norm = group_norm,
    ) -> None:
        super().__init__()
        self.scale_shift, self.skip_scale = scale_shift, skip_scale
        self.norm1 = norm(channels_in)
        self.conv1 = Conv3x3(channels_in, channels_out)
        told = channels_out * (2 if scale_shift else 1)
        self.embed = nn.Linear(embedding, told) if embedding is not None else None
        self.norm2 = norm(channels_out)
        self.dropout = Dropout(dropout)
        self.conv2 = Conv3x3(channels_out, channels_out)
        same = channels_in == channels_out
        self.shortcut = nn.Identity() if same else Conv1x1(channels_in, channels_out)

    def forward(self, x: Tensor, embedding: Tensor | None = None, skip: Tensor | None = None) -> Tensor:
        """x: (B, channels_in, H, W), embedding: (B, E) -> (B, channels_out, H, W).

        skip: a map whose channels follow those of x, the two of them `channels_in`.
        """
        h, x, skip = beside(self.norm1, x, skip)
        h = self.conv1(h)
        e = self.embed(embedding) if self.embed is not None else None
        if e is not None and self.scale_shift:
            scale, shift = e.chunk(2, dim=1)
            h = norm_silu(self.norm2, h, scale=scale, shift=shift)
        else:
            h = norm_silu(self.norm2, h, added=e)
        total = self.conv2(self.dropout(h), plus=self._shortened(x, skip))
        return total if self.skip_scale == 1 else total * self.skip_scale

    def _shortened(self, x: Tensor, skip: Tensor | None) -> Tensor:
        pair = isinstance(self.shortcut, Conv1x1)
        return self.shortcut(x, skip) if pair else self.shortcut(joined(x, skip))


class Attention(nn.Module):
    """Self-attention over all positions of a map, with a residual connection (Ho et al. 2020).

    One head unless `head_dim` is given; `skip_scale` and `norm` as in `ResBlock`.

    Raises:
        ValueError: `head_dim` does not divide `channels`.
    """

    def __init__(
        self,
        channels: int,
        head_dim: int | None = None,
        skip_scale: float = 1.0,
        norm: Norm = group_norm,
    ) -> None:
        super().__init__()
        if head_dim is not None and (head_dim < 1 or channels % head_dim):
            raise ValueError(
                f"channels must be a multiple of head_dim for attention, got {channels} and {head_dim}"
            )
        self.heads = 1 if head_dim is None else channels // head_dim
        self.skip_scale = skip_scale
        self.norm = norm(channels)
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W) -> the same shape."""
        h, x, _ = beside(self.norm, x, activate=False)
        h = h.flatten(2).transpose(1, 2)
        h = self.out(attend(self.query(h), self.key(h), self.value(h), self.heads))
        total = x + h.transpose(1, 2).reshape(x.shape)
        return total if self.skip_scale == 1 else total * self.skip_scale


class Downsample(nn.Module):
    """Halves height and width by a 3x3 convolution of stride 2.

    Padded on the right and the bottom only, as TensorFlow does for an even size, so that DDPM's weights fit;
    with `centred`, on all four sides.
    """

    def __init__(self, channels: int, centred: bool = False) -> None:
        super().__init__()
        self.more = (0, 0) if centred else (1, 1)
        self.conv = Conv2d(channels, channels, 3, 2, padding=int(centred))

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W) -> (B, C, H / 2, W / 2)."""
        return self.conv(x, more=self.more)


class Upsample(nn.Module):
    """Doubles height and width by repeating pixels, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = Conv3x3(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W) -> (B, C, 2 H, 2 W)."""
        return self.conv(x, doubled=True)
