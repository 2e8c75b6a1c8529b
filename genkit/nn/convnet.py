"""A small residual network for classification, and the residual block it is made of."""

from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import group_norm, sinusoid, zero
from .convolution import Conv2d
from .norm import beside, norm_silu
from .winograd import Conv3x3


class Residual(nn.Module):
    """x plus two normalised 3x3 convolutions of it; starts as the identity (He et al. 2016, pre-activation).

    embedding: width of a vector that is added between the convolutions; 0 for none.
    """

    def __init__(self, channels: int, embedding: int = 0) -> None:
        super().__init__()
        self.norm1 = group_norm(channels)
        self.conv1 = Conv3x3(channels, channels)
        self.embed = nn.Linear(embedding, channels) if embedding else None
        self.norm2 = group_norm(channels)
        self.conv2 = zero(Conv3x3(channels, channels))

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        """x: (B, C, H, W), embedding: (B, E) where the block was built for one -> (B, C, H, W)."""
        h, x, _ = beside(self.norm1, x)
        h = self.conv1(h)
        e = self.embed(embedding) if self.embed is not None else None
        return self.conv2(norm_silu(self.norm2, h, added=e), plus=x)


class ConvNet(nn.Module):
    """A classifier of (B, channels, H, W) images of any size, by three scales and an average over positions.

    No batch statistics: an image's logits, and their gradient, do not depend on the rest of the batch.

    width: channels of the first scale; they double twice. stride: of the first convolution. Three halvings
    leave 4x4 of a 28x28 or 32x32 image; images of 16 pixels or fewer want stride 1.
    conditional: the network is told the noise level of its images.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        width: int = 32,
        blocks: int = 1,
        stride: int = 2,
        conditional: bool = False,
    ) -> None:
        super().__init__()
        widths = (width, 2 * width, 4 * width)
        self.feature_dim = widths[-1]
        embedding = self.feature_dim if conditional else 0
        self.embed = nn.Sequential(nn.Linear(embedding, embedding), nn.SiLU()) if conditional else None
        self.resize = nn.ModuleList([Conv2d(channels, width, 5, stride, padding=2)])
        self.resize.extend(Conv2d(a, b, 3, 2, padding=1) for a, b in pairwise(widths))
        self.scales = nn.ModuleList(
            nn.ModuleList(Residual(w, embedding) for _ in range(blocks)) for w in widths
        )
        self.norm = group_norm(self.feature_dim)
        self.head = nn.Linear(self.feature_dim, classes)

    def features(self, x: Tensor, noise_level: Tensor | None = None) -> Tensor:
        """(B, feature_dim) float32: what the last linear layer sees; arguments as for `maps`."""
        return F.silu(self.norm(self.maps(x, noise_level)[-1])).float().mean(dim=(2, 3))

    def maps(self, x: Tensor, noise_level: Tensor | None = None) -> list[Tensor]:
        """The maps (B, C', H', W') after each of the three scales.

        x: (B, C, H, W) in [-1, 1]; noise_level: (B,) in [0, 1], for a conditional network only, where None
        is 0: clean images.

        Raises:
            ValueError: a noise level was given to a network that takes none.
        """
        if noise_level is not None and self.embed is None:
            raise ValueError("this classifier takes no noise_level; build it with conditional=True")
        e = None
        if self.embed is not None:
            level = x.new_zeros(len(x)) if noise_level is None else noise_level
            e = self.embed(sinusoid(1000.0 * level, self.feature_dim))
        found = []
        for resize, blocks in zip(self.resize, self.scales):
            x = resize(x)
            for block in blocks:  # type: ignore[attr-defined]
                x = block(x, e)
            found.append(x)
        return found

    def forward(self, x: Tensor, noise_level: Tensor | None = None) -> Tensor:
        """(B, classes) float32 logits; arguments as for `features`."""
        return self.head(self.features(x, noise_level)).float()
