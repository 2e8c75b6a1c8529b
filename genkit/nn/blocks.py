"""Layers shared by the U-Net: residual blocks, attention, resizing, embedding of the noise level."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class GroupNorm(nn.GroupNorm):
    """torch's group norm, without its slow path.

    On a CPU torch normalises channels-last maps several times slower in groups of few channels than
    either the contiguous layout or a single group (10.4 against 0.4 and 0.2 ms for 128 x 64 x 14 x 14 in
    bf16 on two AVX-512 cores), so such maps are copied to the fast layout and back.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, *) -> the same shape and layout."""
        if x.ndim != 4 or x.device.type != "cpu" or self.num_groups == 1 or torch.compiler.is_compiling():
            return super().forward(x)
        if x.is_contiguous():
            return super().forward(x)
        return super().forward(x.contiguous()).contiguous(memory_format=torch.channels_last)


def group_norm(channels: int, groups: int = 32, eps: float = 1e-6) -> GroupNorm:
    """Group normalisation with the most groups, at most `groups`, that divide `channels`.

    A group of a single channel would erase the noise level, which enters as a constant per map; so narrow
    layers (fewer than 2 `groups` channels) keep at least two channels a group.
    """
    most = min(groups, max(channels // 2, 1))
    return GroupNorm(max(g for g in range(1, most + 1) if channels % g == 0), channels, eps=eps)


def zero(module: nn.Module) -> nn.Module:
    """The same module with all its parameters set to zero, so that a residual branch starts as nothing."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def sinusoid(x: Tensor, width: int) -> Tensor:
    """Sines, then cosines, of `x` at width / 2 geometric frequencies from 1 to 1/10000, in float32.

    x: (B,) -> (B, width), `width` even. Ho et al. 2020: Vaswani et al. 2017 with the last frequency exactly
    1/10000.
    """
    half = width // 2
    steps = torch.arange(half, dtype=torch.float32, device=x.device)
    frequency = torch.exp(steps * (-math.log(10000) / max(half - 1, 1)))
    angle = x.float()[:, None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=1)


class ResBlock(nn.Module):
    """Two 3x3 convolutions with the embedding (B, E) entering between them, plus the shortcut.

    Ho et al. 2020, appendix B: the embedding is added. `scale_shift` makes it an affine map of the second
    norm ("AdaGN", Dhariwal & Nichol 2021). `skip_scale` multiplies the sum; 1/sqrt(2) keeps its variance
    (Song et al. 2021, "Score-based generative modeling", appendix H).
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        embedding: int,
        dropout: float = 0.0,
        scale_shift: bool = False,
        skip_scale: float = 1.0,
        groups: int = 32,
    ) -> None:
        super().__init__()
        self.scale_shift, self.skip_scale = scale_shift, skip_scale
        self.norm1 = group_norm(channels_in, groups)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.embed = nn.Linear(embedding, channels_out * (2 if scale_shift else 1))
        self.norm2 = group_norm(channels_out, groups)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        same = channels_in == channels_out
        self.shortcut = nn.Identity() if same else nn.Conv2d(channels_in, channels_out, 1)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """x: (B, channels_in, H, W), embedding: (B, E) -> (B, channels_out, H, W)."""
        h = self.conv1(F.silu(self.norm1(x)))
        e = self.embed(embedding)[:, :, None, None]
        if self.scale_shift:
            scale, shift = e.chunk(2, dim=1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + e)
        h = self.conv2(self.dropout(F.silu(h)))
        total = self.shortcut(x) + h
        return total if self.skip_scale == 1 else total * self.skip_scale


class Attention(nn.Module):
    """Self-attention over all positions of a map, with a residual connection (Ho et al. 2020).

    One head unless `head_dim` is given; `skip_scale` as in `ResBlock`.

    Raises:
        ValueError: `head_dim` does not divide `channels`.
    """

    def __init__(self, channels: int, head_dim: int | None = None, skip_scale: float = 1.0) -> None:
        super().__init__()
        if head_dim is not None and (head_dim < 1 or channels % head_dim):
            raise ValueError(
                f"channels must be a multiple of head_dim for attention, got {channels} and {head_dim}"
            )
        self.heads = 1 if head_dim is None else channels // head_dim
        self.skip_scale = skip_scale
        self.norm = group_norm(channels)
        self.query = nn.Linear(channels, channels)
        self.key = nn.Linear(channels, channels)
        self.value = nn.Linear(channels, channels)
        self.out = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W) -> the same shape."""
        b, c, height, width = x.shape
        h = self.norm(x).flatten(2).transpose(1, 2)
        q, k, v = (
            f(h).view(b, -1, self.heads, c // self.heads).transpose(1, 2)
            for f in (self.query, self.key, self.value)
        )
        h = F.scaled_dot_product_attention(q, k, v)
        h = self.out(h.transpose(1, 2).reshape(b, -1, c))
        total = x + h.transpose(1, 2).reshape(b, c, height, width)
        return total if self.skip_scale == 1 else total * self.skip_scale


class Downsample(nn.Module):
    """Halves height and width by a 3x3 convolution of stride 2.

    Padded on the right and the bottom only, as TensorFlow does for an even size, so that DDPM's weights fit.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W) -> (B, C, H / 2, W / 2)."""
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Doubles height and width by repeating pixels, then a 3x3 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, C, H, W) -> (B, C, 2 H, 2 W)."""
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))
