"""The first stage of latent diffusion (Rombach et al. 2022): a convolutional encoder and decoder with
attention at the bottom."""

from collections.abc import Sequence

from torch import Tensor, nn

from .blocks import Attention, Downsample, Norm, ResBlock, Upsample
from .norm import norm_silu
from .unet import make_norm
from .winograd import Conv3x3


class Level(nn.Module):
    """Residual blocks, then a change of size or none."""

    def __init__(self, blocks: Sequence[nn.Module], resize: nn.Module | None) -> None:
        super().__init__()
        self.blocks, self.resize = nn.ModuleList(blocks), resize

    def forward(self, h: Tensor) -> Tensor:
        """h: (B, C, H, W) -> (B, C', H', W')."""
        for block in self.blocks:
            h = block(h)
        return h if self.resize is None else self.resize(h)


class Middle(nn.Module):
    """The bottom: a residual block, attention with one head or none, a residual block."""

    def __init__(self, channels: int, norm: Norm, attention: bool) -> None:
        super().__init__()
        self.block1 = ResBlock(channels, channels, None, norm=norm)
        self.attention = Attention(channels, norm=norm) if attention else nn.Identity()
        self.block2 = ResBlock(channels, channels, None, norm=norm)

    def forward(self, h: Tensor) -> Tensor:
        """h: (B, C, H, W) -> the same shape."""
        return self.block2(self.attention(self.block1(h)))


def _blocks(count: int, channels_in: int, channels_out: int, norm: Norm) -> list[ResBlock]:
    widths = [channels_in, *[channels_out] * count]
    return [ResBlock(a, b, None, norm=norm) for a, b in zip(widths, widths[1:])]


class KlEncoder(nn.Module):
    """(B, channels_in, H, W) in [-1, 1] -> (B, channels_out, H / f, W / f), f = 2^(levels - 1).

    channels: of each level, at full size first. blocks: residual blocks a level.
    attention: whether the bottom has some. quant: whether a 1x1 convolution closes.

    Raises:
        ValueError: `groups` does not divide a level's channels.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        channels: Sequence[int] = (128, 256, 512, 512),
        blocks: int = 2,
        groups: int = 32,
        attention: bool = True,
        quant: bool = True,
    ) -> None:
        super().__init__()
        norm = make_norm(groups, 1e-6, True)
        self.factor = 2 ** (len(channels) - 1)
        self.conv_in = nn.Conv2d(channels_in, channels[0], 3, padding=1)
        self.down = nn.ModuleList()
        for i, (a, b) in enumerate(zip([channels[0], *channels], channels)):
            last = i == len(channels) - 1
            self.down.append(Level(_blocks(blocks, a, b, norm), None if last else Downsample(b)))
        self.middle = Middle(channels[-1], norm, attention)
        self.norm_out = norm(channels[-1])
        self.conv_out = Conv3x3(channels[-1], channels_out)
        self.quant = nn.Conv2d(channels_out, channels_out, 1) if quant else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, channels_in, H, W) -> (B, channels_out, H / f, W / f).

        Raises:
            ValueError: H or W is no multiple of f.
        """
        height, width = x.shape[2:]
        if height % self.factor or width % self.factor:
            raise ValueError(f"image size must be a multiple of {self.factor}, got {height}x{width}")
        h = self.conv_in(x)
        for level in self.down:
            h = level(h)
        h = self.conv_out(norm_silu(self.norm_out, self.middle(h)))
        return self.quant(h)


class KlDecoder(nn.Module):
    """(B, channels_in, H, W) -> (B, channels_out, f H, f W), the mirror of `KlEncoder`.

    Every level has one residual block more than there. quant: whether a 1x1 convolution opens.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        channels: Sequence[int] = (128, 256, 512, 512),
        blocks: int = 2,
        groups: int = 32,
        attention: bool = True,
        quant: bool = True,
    ) -> None:
        super().__init__()
        norm = make_norm(groups, 1e-6, True)
        rising = list(reversed(channels))
        self.quant = nn.Conv2d(channels_in, channels_in, 1) if quant else nn.Identity()
        self.conv_in = nn.Conv2d(channels_in, rising[0], 3, padding=1)
        self.middle = Middle(rising[0], norm, attention)
        self.up = nn.ModuleList()
        for i, (a, b) in enumerate(zip([rising[0], *rising], rising)):
            last = i == len(rising) - 1
            self.up.append(Level(_blocks(blocks + 1, a, b, norm), None if last else Upsample(b)))
        self.norm_out = norm(rising[-1])
        self.conv_out = Conv3x3(rising[-1], channels_out)

    def forward(self, z: Tensor) -> Tensor:
        """z: (B, channels_in, H, W) -> (B, channels_out, f H, f W), unbounded."""
        h = self.middle(self.conv_in(self.quant(z)))
        for level in self.up:
            h = level(h)
        return self.conv_out(norm_silu(self.norm_out, h))
