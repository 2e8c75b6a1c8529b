"""A diffusers `AutoencoderKL` configuration and `ImportedVaeConfig`."""

from collections.abc import Mapping
from typing import Any

from ..models.imported_vae import ImportedVaeConfig
from .settings import Key, Keys, refuse, settings
from .unet import Shape, read_size

DOWN, UP = "DownEncoderBlock2D", "UpDecoderBlock2D"
KEYS: Keys = {
    "in_channels": Key(3, allowed=(1, 3)),
    "out_channels": Key(3, (int,)),
    "down_block_types": Key((DOWN,), (list, str)),
    "up_block_types": Key((UP,), (list, str)),
    "block_out_channels": Key((64,), (list, int)),
    "layers_per_block": Key(1, (int,)),
    "act_fn": Key("silu", allowed=("silu", "swish")),
    "latent_channels": Key(4, (int,)),
    "norm_num_groups": Key(32, (int,)),
    "sample_size": Key(32, (int, list)),
    "scaling_factor": Key(0.18215, (int, float)),
    "shift_factor": Key(None, (int, float)),
    "latents_mean": Key(None, allowed=(None,)),
    "latents_std": Key(None, allowed=(None,)),
    "force_upcast": Key(True, (bool, int, float)),
    "use_quant_conv": Key(True, (bool,)),
    "use_post_quant_conv": Key(True, (bool,)),
    "mid_block_add_attention": Key(True, (bool,)),
}


def read_vae(values: Mapping[str, Any], where: str) -> tuple[dict[str, Any], Shape]:
    """The fields of an `ImportedVaeConfig` and the shape of its images, from a config.json.

    Raises:
        InputError: a setting that genkit cannot reproduce, by name.
    """
    found = settings(values, KEYS, where)
    if found["out_channels"] != found["in_channels"]:
        remedy = f"with in_channels = {found['in_channels']}"
        raise refuse(where, "out_channels", found["out_channels"], remedy)
    for key, known in (("down_block_types", DOWN), ("up_block_types", UP)):
        if strange := [kind for kind in found[key] if kind != known]:
            raise refuse(where, key, strange[0], f"genkit knows {known}")
        if len(found[key]) != len(found["block_out_channels"]):
            levels = len(found["block_out_channels"])
            raise refuse(where, key, found[key], f"block_out_channels has {levels} levels")
    shift = found["shift_factor"]
    fields = {
        "latent": found["latent_channels"],
        "channels": tuple(found["block_out_channels"]),
        "blocks": found["layers_per_block"],
        "groups": found["norm_num_groups"],
        "middle_attention": found["mid_block_add_attention"],
        "quant": found["use_quant_conv"],
        "post_quant": found["use_post_quant_conv"],
        "scaling_factor": float(found["scaling_factor"]),
        "shift_factor": None if shift is None else float(shift),
        "force_upcast": bool(found["force_upcast"]),
    }
    size = read_size(found["sample_size"], where)
    assert size is not None  # its default is a number
    return fields, (found["in_channels"], *size)


def write_vae(config: ImportedVaeConfig, shape: Shape) -> dict[str, Any]:
    """The config.json of an `ImportedVaeConfig` for images of `shape`."""
    channels, height, width = shape
    levels = len(config.channels)
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": channels,
        "out_channels": channels,
        "down_block_types": [DOWN] * levels,
        "up_block_types": [UP] * levels,
        "block_out_channels": list(config.channels),
        "layers_per_block": config.blocks,
        "act_fn": "silu",
        "latent_channels": config.latent,
        "norm_num_groups": config.groups,
        "sample_size": max(height, width),
        "scaling_factor": config.scaling_factor,
        "shift_factor": config.shift_factor,
        "force_upcast": config.force_upcast,
        "use_quant_conv": config.quant,
        "use_post_quant_conv": config.post_quant,
        "mid_block_add_attention": config.middle_attention,
    }
