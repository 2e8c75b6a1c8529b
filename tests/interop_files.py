"""Small diffusers models written by hand: the folders, and weights from a closed formula."""

import json
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]
UNET = {
    "_class_name": "UNet2DModel",
    "_diffusers_version": "0.42.1",
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": 4,
    "norm_num_groups": 4,
    "downsample_padding": 0,
    "freq_shift": 1,
    "flip_sin_to_cos": False,
}
OTHER = {  # every switch the other way
    **UNET,
    "downsample_padding": 1,
    "freq_shift": 0,
    "flip_sin_to_cos": True,
    "center_input_sample": True,
    "attention_head_dim": None,
    "resnet_time_scale_shift": "scale_shift",
    "norm_eps": 1e-3,
}
SCHEDULER = {"_class_name": "DDIMScheduler", "beta_schedule": "squaredcos_cap_v2", "clip_sample": False}
INDEX = {
    "_class_name": "DDIMPipeline",
    "scheduler": ["diffusers", "DDIMScheduler"],
    "unet": ["diffusers", "UNet2DModel"],
}
VAE = {
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.42.1",
    "sample_size": 8,
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "down_block_types": ["DownEncoderBlock2D", "DownEncoderBlock2D"],
    "up_block_types": ["UpDecoderBlock2D", "UpDecoderBlock2D"],
    "latent_channels": 2,
    "norm_num_groups": 4,
    "scaling_factor": 0.5,
}


def layer(name: str, *shape: int) -> Shapes:
    """A weight of `shape` and its bias."""
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def resnet(name: str, a: int, b: int, told: int | None, affine: int = 1) -> Shapes:
    """A residual block from a to b channels, told so many units; `affine` 2 is scale and shift."""
    made = {**layer(f"{name}.norm1", a), **layer(f"{name}.conv1", b, a, 3, 3)}
    if told:
        made |= layer(f"{name}.time_emb_proj", affine * b, told)
    made |= {**layer(f"{name}.norm2", b), **layer(f"{name}.conv2", b, b, 3, 3)}
    return made | (layer(f"{name}.conv_shortcut", b, a, 1, 1) if a != b else {})


def attention(name: str, c: int, leaves: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")) -> Shapes:
    """A self-attention of c channels."""
    made = layer(f"{name}.group_norm", c)
    for leaf in leaves:
        made |= layer(f"{name}.{leaf}", c, c)
    return made


def unet_shapes(other: bool = False) -> Shapes:
    """The tensors of `UNET`, or of `OTHER`, in diffusers' names."""
    affine = 2 if other else 1
    made = {
        **layer("conv_in", 8, 1, 3, 3),
        **layer("time_embedding.linear_1", 32, 8),
        **layer("time_embedding.linear_2", 32, 32),
        **resnet("down_blocks.0.resnets.0", 8, 8, 32, affine),
        **layer("down_blocks.0.downsamplers.0.conv", 8, 8, 3, 3),
        **resnet("down_blocks.1.resnets.0", 8, 16, 32, affine),
        **attention("down_blocks.1.attentions.0", 16),
        **resnet("mid_block.resnets.0", 16, 16, 32, affine),
        **attention("mid_block.attentions.0", 16),
        **resnet("mid_block.resnets.1", 16, 16, 32, affine),
        **resnet("up_blocks.0.resnets.0", 32, 16, 32, affine),
        **attention("up_blocks.0.attentions.0", 16),
        **resnet("up_blocks.0.resnets.1", 24, 16, 32, affine),
        **attention("up_blocks.0.attentions.1", 16),
        **layer("up_blocks.0.upsamplers.0.conv", 16, 16, 3, 3),
        **resnet("up_blocks.1.resnets.0", 24, 8, 32, affine),
        **resnet("up_blocks.1.resnets.1", 16, 8, 32, affine),
        **layer("conv_norm_out", 8),
        **layer("conv_out", 1, 8, 3, 3),
    }
    # diffusers leaves the middle attention without a norm when the time scales and shifts
    gone = "mid_block.attentions.0.group_norm" if other else "-"
    return {name: shape for name, shape in made.items() if not name.startswith(gone)}


def vae_shapes(leaves: tuple[str, ...] = ("to_q", "to_k", "to_v", "to_out.0")) -> Shapes:
    """The tensors of `VAE`, in diffusers' names."""
    return {
        **layer("encoder.conv_in", 8, 3, 3, 3),
        **resnet("encoder.down_blocks.0.resnets.0", 8, 8, None),
        **layer("encoder.down_blocks.0.downsamplers.0.conv", 8, 8, 3, 3),
        **resnet("encoder.down_blocks.1.resnets.0", 8, 16, None),
        **resnet("encoder.mid_block.resnets.0", 16, 16, None),
        **attention("encoder.mid_block.attentions.0", 16, leaves),
        **resnet("encoder.mid_block.resnets.1", 16, 16, None),
        **layer("encoder.conv_norm_out", 16),
        **layer("encoder.conv_out", 4, 16, 3, 3),
        **layer("quant_conv", 4, 4, 1, 1),
        **layer("post_quant_conv", 2, 2, 1, 1),
        **layer("decoder.conv_in", 16, 2, 3, 3),
        **resnet("decoder.mid_block.resnets.0", 16, 16, None),
        **attention("decoder.mid_block.attentions.0", 16, leaves),
        **resnet("decoder.mid_block.resnets.1", 16, 16, None),
        **resnet("decoder.up_blocks.0.resnets.0", 16, 16, None),
        **resnet("decoder.up_blocks.0.resnets.1", 16, 16, None),
        **layer("decoder.up_blocks.0.upsamplers.0.conv", 16, 16, 3, 3),
        **resnet("decoder.up_blocks.1.resnets.0", 16, 8, None),
        **resnet("decoder.up_blocks.1.resnets.1", 8, 8, None),
        **layer("decoder.conv_norm_out", 8),
        **layer("decoder.conv_out", 3, 8, 3, 3),
    }


def waves(shape: tuple[int, ...], phase: float, size: float) -> Tensor:
    """size * sin(0.37 k + phase) over the entries k: the same in every version of everything."""
    count = int(torch.tensor(shape).prod())
    values = size * torch.sin(0.37 * torch.arange(count, dtype=torch.float64) + phase)
    return values.float().reshape(shape)


def weights(shapes: Shapes) -> dict[str, Tensor]:
    """Values for `shapes`, in their order; the norms' near 1."""
    made = {}
    for i, (name, shape) in enumerate(shapes.items()):
        norm = "norm" in name and name.endswith("weight")
        made[name] = waves(shape, i, 0.2) + (1.0 if norm else 0.0)
    return made


def write_model(folder: Path, config: dict, tensors: dict[str, Tensor], **files: dict) -> Path:
    """`folder` as diffusers writes a model, with more JSON files beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    safetensors.torch.save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
    for name, content in files.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    return folder


def write_pipeline(
    folder: Path, config: dict = UNET, scheduler: dict = SCHEDULER, index: dict = INDEX
) -> Path:
    """`folder` as diffusers writes a pipeline."""
    write_model(folder / "unet", config, weights(unet_shapes()))
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(scheduler))
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder
