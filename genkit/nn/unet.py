"""The U-Net of Ho et al. 2020 (DDPM), with the options that small budgets want."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import Attention, Downsample, Norm, ResBlock, Upsample, sinusoid, zero
from .norm import GroupNorm, group_norm, norm_silu
from .winograd import Conv3x3


class Details(NamedTuple):
    """Where U-Nets trained elsewhere differ from Ho et al. 2020, whose are the defaults."""

    channels: tuple[int, ...] = ()  # of each level, instead of width * multipliers; the first is the width
    attention_down: tuple[bool, ...] = ()  # per level, instead of by the size of the map
    attention_up: tuple[bool, ...] = ()  # the same in the order of the way up: from the deepest level
    embedding: int | None = None  # units of the embedding; None is 4 * width
    exact_groups: bool = False  # `groups` exactly, even where a group then is a single channel
    middle_groups: int | None = None  # of the middle attention's norm: None as the others', 0 no norm
    norm_eps: float = 1e-6
    centred: bool = False  # the halvings pad all four sides
    cosine_first: bool = False  # see `sinusoid`
    frequency_shift: float = 1.0  # its `shift`
    rescale_input: bool = False  # the network reads 2 x - 1


def make_norm(groups: int, eps: float, exact: bool) -> Norm:
    """channels -> group norm with `groups` groups, or, unless `exact`, the most that `group_norm` allows."""
    if exact:
        return lambda channels: GroupNorm(groups, channels, eps=eps)
    return lambda channels: group_norm(channels, groups, eps)


def no_norm(channels: int) -> nn.Module:
    """The identity, where a norm is expected."""
    return nn.Identity()


class Down(nn.Module):
    """One level on the way down: residual blocks, each with its attention or identity, then the halving."""

    def __init__(
        self, blocks: Sequence[nn.Module], attentions: Sequence[nn.Module], resize: nn.Module | None
    ) -> None:
        super().__init__()
        self.blocks, self.attentions = nn.ModuleList(blocks), nn.ModuleList(attentions)
        self.resize = resize

    def forward(self, h: Tensor, embedding: Tensor) -> list[Tensor]:
        """Every map the level makes, in order; the last one is its output."""
        made = []
        for block, attention in zip(self.blocks, self.attentions, strict=True):
            h = attention(block(h, embedding))
            made.append(h)
        return made if self.resize is None else [*made, self.resize(h)]


class Up(nn.Module):
    """One level on the way up: as `Down`, each block also reading a map made there, then the doubling."""

    def __init__(
        self, blocks: Sequence[nn.Module], attentions: Sequence[nn.Module], resize: nn.Module | None
    ) -> None:
        super().__init__()
        self.blocks, self.attentions = nn.ModuleList(blocks), nn.ModuleList(attentions)
        self.resize = resize

    def forward(self, h: Tensor, embedding: Tensor, skips: list[Tensor]) -> Tensor:
        """The level's output; takes one map a block from the end of `skips`."""
        for block, attention in zip(self.blocks, self.attentions, strict=True):
            h = attention(block(h, embedding, skips.pop()))
        return h if self.resize is None else self.resize(h)


Block = Callable[[int, int], ResBlock]  # (channels in, channels out)
Attend = Callable[[int, bool], nn.Module]  # (channels, whether there is any)


def _norms(groups: int, details: Details) -> tuple[Norm, Norm, Norm]:
    """The norms of residual blocks, of attention, and of attention in the middle."""
    norm = make_norm(groups, details.norm_eps, details.exact_groups)
    # the maps of attention are small: there the groups cost nothing
    attention = norm if details.exact_groups else make_norm(32, details.norm_eps, False)
    if details.middle_groups is None:
        return norm, attention, attention
    if details.middle_groups == 0:
        return norm, attention, no_norm
    return norm, attention, make_norm(details.middle_groups, details.norm_eps, True)


def _attention_by_level(
    sizes: list[int], attention: Sequence[int], details: Details
) -> tuple[Sequence[bool], Sequence[bool]]:
    """Whether each level has attention, on the way down and, from the bottom, on the way up."""
    if strange := [s for s in attention if s not in sizes]:
        raise ValueError(f"attention sizes must be among the feature-map sizes {sizes}, got {strange}")
    down = details.attention_down or tuple(s in attention for s in sizes)
    return down, details.attention_up or down[::-1]


def _way_down(
    width: int,
    channels: list[int],
    blocks: int,
    attention: Sequence[bool],
    block: Block,
    attend: Attend,
    centred: bool,
) -> tuple[nn.ModuleList, list[int]]:
    """The levels, and the channels of every map: the first convolution's `width`, then theirs in order."""
    skips, c = [width], width
    levels = nn.ModuleList()
    for i, out in enumerate(channels):
        last = i == len(channels) - 1
        made = [block(c if j == 0 else out, out) for j in range(blocks)]
        attentions = [attend(out, attention[i]) for _ in made]
        levels.append(Down(made, attentions, None if last else Downsample(out, centred)))
        skips += [out] * (blocks if last else blocks + 1)
        c = out
    return levels, skips


def _way_up(
    channels: list[int],
    blocks: int,
    attention: Sequence[bool],
    block: Block,
    attend: Attend,
    skips: list[int],
) -> nn.ModuleList:
    """The levels from the bottom; each map of `skips`, the channels of the way down, is used once."""
    left, c = list(skips), channels[-1]
    levels = nn.ModuleList()
    for k, (i, out) in enumerate(reversed(list(enumerate(channels)))):
        made = []
        for _ in range(blocks + 1):
            made.append(block(c + left.pop(), out))
            c = out
        attentions = [attend(out, attention[k]) for _ in made]
        levels.append(Up(made, attentions, Upsample(out) if i else None))
    return levels


class UNet(nn.Module):
    """A U-Net over images, told the noise level and, with `classes`, a class.

    The defaults are the CIFAR-10 network of Ho et al. 2020, appendix B: `UNet(3, 3, 32)` has 35,746,307
    parameters and the graph of the released model.

    channels_in, channels_out: of the images, before `patch`.
    size: height and width the network is built for; it decides which levels have attention. Other sizes run.
    width, multipliers: level i has width * multipliers[i] channels; every level but the last halves the size.
    blocks: residual blocks a level on the way down (one more on the way up).
    attention: feature-map sizes, i.e. size / patch / 2^level, with attention after each residual block.
    middle_attention: attention between the two residual blocks of the bottom.
    head_dim: channels of an attention head; None is one head.
    classes: number of classes, 0 for none. Index `classes` is one more, the null class.
    patch: space-to-depth at the input, its inverse at the output. patch=2 makes 28x28 a 14x14 map of
        4x the channels, for a quarter of the work: convolutions at full resolution cost the most.
    scale_shift, skip_scale: see `ResBlock`.
    groups: of the residual blocks' norms; 1 is the fastest on a CPU.
    details: for the weights of others, see `Details`.

    Raises:
        ValueError: there is no level, `size` is not a multiple of patch * 2^(levels - 1), or `attention`
            names none of them.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        size: int,
        width: int = 128,
        multipliers: Sequence[int] = (1, 2, 2, 2),
        blocks: int = 2,
        attention: Sequence[int] = (16,),
        middle_attention: bool = True,
        head_dim: int | None = None,
        dropout: float = 0.0,
        classes: int = 0,
        patch: int = 1,
        scale_shift: bool = False,
        skip_scale: float = 1.0,
        groups: int = 32,
        details: Details = Details(),  # noqa: B008  (immutable)
    ) -> None:
        super().__init__()
        channels = list(details.channels) or [width * m for m in multipliers]
        if not channels:
            raise ValueError("multipliers must name one level at least")
        width = channels[0] if details.channels else width
        if width < 2 or width % 2:
            raise ValueError(f"width must be even for the sine and cosine embedding, got {width}")
        self.width, self.patch, self.classes, self.details = width, patch, classes, details
        self.factor = patch * 2 ** (len(channels) - 1)
        self.check_size(size, size)
        sizes = [size // patch >> i for i in range(len(channels))]
        attention_down, attention_up = _attention_by_level(sizes, attention, details)
        embedding = details.embedding or 4 * width
        norm, attention_norm, middle_norm = _norms(groups, details)

        def block(a: int, b: int) -> ResBlock:
            return ResBlock(a, b, embedding, dropout, scale_shift, skip_scale, norm)

        def attend(c: int, wanted: bool, norm: Norm = attention_norm) -> nn.Module:
            return Attention(c, head_dim, skip_scale, norm) if wanted else nn.Identity()

        self.time = nn.Sequential(nn.Linear(width, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        self.label = nn.Embedding(classes + 1, embedding) if classes else None
        self.conv_in = nn.Conv2d(channels_in * patch**2, width, 3, padding=1)

        self.down, skips = _way_down(width, channels, blocks, attention_down, block, attend, details.centred)
        c = channels[-1]
        self.middle1 = block(c, c)
        self.middle_attention = attend(c, middle_attention, middle_norm)
        self.middle2 = block(c, c)
        self.up = _way_up(channels, blocks, attention_up, block, attend, skips)

        self.norm_out = norm(channels[0])
        self.conv_out = Conv3x3(channels[0], channels_out * patch**2)
        self._initialise()

    def _initialise(self) -> None:
        # Ho et al. 2020: Xavier uniform with zero biases, and zero for the last layer of every residual
        # branch and of the network, so that training starts from the prediction 0.
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)
        for module in self.modules():
            if isinstance(module, ResBlock):
                zero(module.conv2)
            elif isinstance(module, Attention):
                zero(module.out)
        zero(self.conv_out)

    def check_size(self, height: int, width: int) -> None:
        if height % self.factor or width % self.factor:
            levels = (self.factor // self.patch).bit_length()
            raise ValueError(
                f"image size must be a multiple of {self.factor} (patch {self.patch}, {levels} levels), got "
                f"{height}x{width}: use fewer multipliers, a smaller patch or another size"
            )

    def embed_label(self, label: Tensor) -> Tensor:
        """(B, E) embeddings of (B,) labels.

        Raises:
            ValueError: the network was built without classes.
        """
        if self.label is None:
            raise ValueError("this network was built without classes (classes=0)")
        return self.label(label)

    def forward(self, x: Tensor, noise_level: Tensor, label: Tensor | None = None) -> Tensor:
        """The network's output (B, channels_out, H, W) in the dtype of `x`.

        x: (B, channels_in, H, W). noise_level: (B,) float, the schedule's embedding of the time. label: (B,)
        int64 in [0, classes], where `classes` is the null class, or (B, E) float as by `embed_label`; None
        is the null class for all.

        Raises:
            ValueError: H or W does not divide, or a label for a network without classes.
        """
        self.check_size(*x.shape[2:])
        if label is not None and self.label is None:
            raise ValueError("this network was built without classes (classes=0), so label must be None")
        dtype = self.conv_in.weight.dtype
        details = self.details
        waves = sinusoid(noise_level, self.width, details.frequency_shift, details.cosine_first)
        embedding = self.time(waves.to(dtype))
        if self.label is not None:
            if label is None:
                label = torch.full((x.shape[0],), self.classes, device=x.device)
            embedding = embedding + (label.to(dtype) if label.is_floating_point() else self.label(label))
        embedding = F.silu(embedding)

        x_in = 2 * x - 1 if details.rescale_input else x
        h = x_in.to(dtype)
        h = self.conv_in(h if self.patch == 1 else F.pixel_unshuffle(h, self.patch))
        skips = [h]
        for level in self.down:
            skips += level(skips[-1], embedding)
        h = self.middle2(self.middle_attention(self.middle1(skips[-1], embedding)), embedding)
        for level in self.up:
            h = level(h, embedding, skips)

        h = self.conv_out(norm_silu(self.norm_out, h))
        return (h if self.patch == 1 else F.pixel_shuffle(h, self.patch)).to(x.dtype)
