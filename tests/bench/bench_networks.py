"""The U-Nets of the diffusion benchmarks, the same network as genkit and as diffusers build it."""

import argparse
from typing import Any, NamedTuple

from bench_duel import ROOT as ROOT  # puts the checkout on the path


class Network(NamedTuple):
    """attention: the map sizes that have it; head_dim: channels of a head, None for one head."""

    size: int
    channels: int
    width: int
    multipliers: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]
    head_dim: int | None


NETWORKS = {
    "small": Network(32, 1, 32, (1, 2, 3), blocks=1, attention=(8,), head_dim=8),
    "cifar10": Network(32, 3, 128, (1, 2, 2, 2), blocks=2, attention=(16,), head_dim=None),
}
HELP = (
    "small: 32, 64, 96 channels, attention at 8x8 in diffusers' default heads of 8; cifar10: Ho et al. 2020"
)


def add_network(parser: argparse.ArgumentParser) -> None:
    """--net and --head-dim."""
    parser.add_argument("--net", default="small", choices=tuple(NETWORKS), help=HELP)
    parser.add_argument("--head-dim", type=int, help="channels of an attention head, all sides; 0: one head")


def network(args: argparse.Namespace) -> Network:
    """The network that the arguments name."""
    chosen = NETWORKS[args.net]
    return chosen if args.head_dim is None else chosen._replace(head_dim=args.head_dim or None)


def genkit_config(net: Network) -> Any:
    """The same as genkit's DdpmConfig; noise schedule and target as in Ho et al. 2020."""
    from genkit.models.ddpm import DdpmConfig

    return DdpmConfig(
        width=net.width,
        multipliers=net.multipliers,
        blocks=net.blocks,
        attention=net.attention,
        head_dim=net.head_dim,
        patch=1,
        scale_shift=False,
        schedule="linear",
        target="eps",
    )


def diffusers_unet(net: Network) -> Any:
    """diffusers' UNet2DModel with the layout of google/ddpm-cifar10-32."""
    from diffusers import UNet2DModel

    sizes = [net.size >> i for i in range(len(net.multipliers))]
    attends = [s in net.attention for s in sizes]
    return UNet2DModel(
        sample_size=net.size,
        in_channels=net.channels,
        out_channels=net.channels,
        layers_per_block=net.blocks,
        block_out_channels=tuple(net.width * m for m in net.multipliers),
        down_block_types=tuple("AttnDownBlock2D" if a else "DownBlock2D" for a in attends),
        up_block_types=tuple("AttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attends)),
        attention_head_dim=net.head_dim,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
    )


def count(module: Any) -> str:
    """The number of parameters."""
    return f"{sum(p.numel() for p in module.parameters()):,}"
