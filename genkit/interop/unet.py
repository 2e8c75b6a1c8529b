"""A diffusers `UNet2DModel` configuration and the network fields of `ImportedUnetConfig`."""

from collections.abc import Mapping
from typing import Any

from ..models.imported_unet import ImportedUnetConfig
from .settings import Key, Keys, refuse, settings

Shape = tuple[int, int, int]
DOWN, UP = ("DownBlock2D", "AttnDownBlock2D"), ("UpBlock2D", "AttnUpBlock2D")
KEYS: Keys = {
    "sample_size": Key(None, (int, list)),
    "in_channels": Key(3, allowed=(1, 3)),
    "out_channels": Key(3, (int,)),
    "center_input_sample": Key(False, (bool,)),
    "time_embedding_type": Key("positional", allowed=("positional",)),
    "time_embedding_dim": Key(None, (int,)),
    "freq_shift": Key(0, (int, float)),
    "flip_sin_to_cos": Key(True, (bool,)),
    "down_block_types": Key((DOWN[0], DOWN[1], DOWN[1], DOWN[1]), (list, str)),
    "mid_block_type": Key("UNetMidBlock2D", allowed=("UNetMidBlock2D",)),
    "up_block_types": Key((UP[1], UP[1], UP[1], UP[0]), (list, str)),
    "block_out_channels": Key((224, 448, 672, 896), (list, int)),
    "layers_per_block": Key(2, (int,)),
    "mid_block_scale_factor": Key(1, allowed=(1,)),
    "downsample_padding": Key(1, allowed=(0, 1)),
    "downsample_type": Key("conv", allowed=("conv",)),
    "upsample_type": Key("conv", allowed=("conv",)),
    "dropout": Key(0.0, (int, float)),
    "act_fn": Key("silu", allowed=("silu", "swish")),
    "attention_head_dim": Key(8, (int, type(None))),
    "norm_num_groups": Key(32, (int,)),
    "attn_norm_num_groups": Key(None, (int,)),
    "norm_eps": Key(1e-5, (int, float)),
    "resnet_time_scale_shift": Key("default", allowed=("default", "scale_shift")),
    "add_attention": Key(True, (bool,)),
    "class_embed_type": Key(None, allowed=(None,)),
    "num_class_embeds": Key(None, allowed=(None,)),
    "num_train_timesteps": Key(None, (int,)),  # of learned time embeddings, which are refused
}


def read_unet(values: Mapping[str, Any], where: str) -> tuple[dict[str, Any], Shape | None]:
    """The network fields of an `ImportedUnetConfig` and the shape of its images, from a config.json.

    The shape is None where the configuration does not say it.

    Raises:
        InputError: a setting that genkit cannot reproduce, by name.
    """
    found = settings(values, KEYS, where)
    channels, learned = found["in_channels"], found["out_channels"] == 2 * found["in_channels"]
    if not learned and found["out_channels"] != channels:
        raise refuse(where, "out_channels", found["out_channels"], f"with in_channels = {channels}")
    widths = found["block_out_channels"]
    levels = {name: found[name] for name in ("down_block_types", "up_block_types")}
    for name, kinds in levels.items():
        if len(kinds) != len(widths):
            raise refuse(where, name, kinds, f"block_out_channels has {len(widths)} levels")
    scale_shift, middle = found["resnet_time_scale_shift"] == "scale_shift", found["attn_norm_num_groups"]
    fields = {
        "channels": tuple(widths),
        "blocks": found["layers_per_block"],
        "attention_down": _attention(levels["down_block_types"], DOWN, where, "down_block_types"),
        "attention_up": _attention(levels["up_block_types"], UP, where, "up_block_types"),
        "middle_attention": found["add_attention"],
        "head_dim": found["attention_head_dim"],
        "groups": found["norm_num_groups"],
        # diffusers leaves the middle attention without a norm when the time scales and shifts
        "middle_groups": 0 if scale_shift and middle is None else middle,
        "norm_eps": float(found["norm_eps"]),
        "embedding": found["time_embedding_dim"],
        "scale_shift": scale_shift,
        "centred": found["downsample_padding"] == 1,
        "cosine_first": found["flip_sin_to_cos"],
        "frequency_shift": float(found["freq_shift"]),
        "rescale_input": found["center_input_sample"],
        "dropout": float(found["dropout"]),
        "learn_variance": learned,
    }
    size = read_size(found["sample_size"], where)
    return fields, None if size is None else (channels, *size)


def read_size(value: Any, where: str) -> tuple[int, int] | None:
    """(height, width) of a sample_size, a number or a pair.

    Raises:
        InputError: it is neither.
    """
    sides = [value, value] if isinstance(value, int) else value
    if sides is not None and (len(sides) != 2 or min(sides) < 1):
        raise refuse(where, "sample_size", value, "it should be one number or two")
    return None if sides is None else (sides[0], sides[1])


def _attention(kinds: list[str], known: tuple[str, str], where: str, key: str) -> tuple[bool, ...]:
    plain = [kind.removeprefix("UNetRes") for kind in kinds]
    for kind in plain:
        if kind not in known:
            raise refuse(where, key, kind, f"genkit knows {' and '.join(known)}")
    return tuple(kind == known[1] for kind in plain)


def write_unet(config: ImportedUnetConfig, shape: Shape) -> dict[str, Any]:
    """The config.json of an `ImportedUnetConfig` for images of `shape`."""
    channels, height, width = shape
    middle = config.middle_groups or None
    return {
        "_class_name": "UNet2DModel",
        "sample_size": height if height == width else [height, width],
        "in_channels": channels,
        "out_channels": channels * (2 if config.learn_variance else 1),
        "center_input_sample": config.rescale_input,
        "time_embedding_type": "positional",
        "time_embedding_dim": config.embedding,
        "freq_shift": _whole(config.frequency_shift),
        "flip_sin_to_cos": config.cosine_first,
        "down_block_types": [DOWN[wanted] for wanted in config.attention_down],
        "mid_block_type": "UNetMidBlock2D",
        "up_block_types": [UP[wanted] for wanted in config.attention_up],
        "block_out_channels": list(config.channels),
        "layers_per_block": config.blocks,
        "mid_block_scale_factor": 1,
        "downsample_padding": int(config.centred),
        "downsample_type": "conv",
        "upsample_type": "conv",
        "dropout": config.dropout,
        "act_fn": "silu",
        "attention_head_dim": config.head_dim,
        "norm_num_groups": config.groups,
        "attn_norm_num_groups": middle,
        "norm_eps": config.norm_eps,
        "resnet_time_scale_shift": "scale_shift" if config.scale_shift else "default",
        "add_attention": config.middle_attention,
        "class_embed_type": None,
        "num_class_embeds": None,
    }


def _whole(value: float) -> int | float:
    return int(value) if value == int(value) else value
