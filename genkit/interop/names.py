"""The name of every weight in genkit and in diffusers: one table, read in both directions."""

import re
from collections.abc import Iterable, Mapping

from torch import Tensor

from ..errors import InputError

Table = tuple[tuple[str, str], ...]  # (genkit's place, diffusers' place); # stands for a number

UNET: Table = (
    ("network.time.0", "time_embedding.linear_1"),
    ("network.time.2", "time_embedding.linear_2"),
    ("network.conv_in", "conv_in"),
    ("network.down.#.blocks.#", "down_blocks.#.resnets.#"),
    ("network.down.#.attentions.#", "down_blocks.#.attentions.#"),
    ("network.down.#.resize", "down_blocks.#.downsamplers.0"),
    ("network.middle1", "mid_block.resnets.0"),
    ("network.middle_attention", "mid_block.attentions.0"),
    ("network.middle2", "mid_block.resnets.1"),
    ("network.up.#.blocks.#", "up_blocks.#.resnets.#"),
    ("network.up.#.attentions.#", "up_blocks.#.attentions.#"),
    ("network.up.#.resize", "up_blocks.#.upsamplers.0"),
    ("network.norm_out", "conv_norm_out"),
    ("network.conv_out", "conv_out"),
)
VAE: Table = (
    ("encoder.conv_in", "encoder.conv_in"),
    ("encoder.down.#.blocks.#", "encoder.down_blocks.#.resnets.#"),
    ("encoder.down.#.resize", "encoder.down_blocks.#.downsamplers.0"),
    ("encoder.middle.block1", "encoder.mid_block.resnets.0"),
    ("encoder.middle.attention", "encoder.mid_block.attentions.0"),
    ("encoder.middle.block2", "encoder.mid_block.resnets.1"),
    ("encoder.norm_out", "encoder.conv_norm_out"),
    ("encoder.conv_out", "encoder.conv_out"),
    ("encoder.quant", "quant_conv"),
    ("decoder.quant", "post_quant_conv"),
    ("decoder.conv_in", "decoder.conv_in"),
    ("decoder.middle.block1", "decoder.mid_block.resnets.0"),
    ("decoder.middle.attention", "decoder.mid_block.attentions.0"),
    ("decoder.middle.block2", "decoder.mid_block.resnets.1"),
    ("decoder.up.#.blocks.#", "decoder.up_blocks.#.resnets.#"),
    ("decoder.up.#.resize", "decoder.up_blocks.#.upsamplers.0"),
    ("decoder.norm_out", "decoder.conv_norm_out"),
    ("decoder.conv_out", "decoder.conv_out"),
)
LEAVES: Table = (  # within a residual block, an attention or a change of size
    ("norm1", "norm1"),
    ("conv1", "conv1"),
    ("embed", "time_emb_proj"),
    ("norm2", "norm2"),
    ("conv2", "conv2"),
    ("shortcut", "conv_shortcut"),
    ("norm", "group_norm"),
    ("query", "to_q"),
    ("key", "to_k"),
    ("value", "to_v"),
    ("out", "to_out.0"),
    ("conv", "conv"),
)
OLD_LEAVES: Table = (  # attention before diffusers 0.15; read, never written
    ("query", "query"),
    ("key", "key"),
    ("value", "value"),
    ("out", "proj_attn"),
)


def to_diffusers(name: str, table: Table) -> str | None:
    """diffusers' name of a genkit weight; None when it has none."""
    return _translate(name, table, LEAVES)


def to_genkit(name: str, table: Table) -> str | None:
    """genkit's name of a diffusers weight; None when it has none."""
    turned = tuple((theirs, ours) for ours, theirs in table)
    leaves = tuple((theirs, ours) for ours, theirs in (*LEAVES, *OLD_LEAVES))
    return _translate(name, turned, leaves)


def _translate(name: str, table: Table, leaves: Table) -> str | None:
    inside = dict(leaves)
    for source, target in table:
        place = re.escape(source).replace(r"\#", r"(\d+)")
        match = re.fullmatch(rf"{place}(?:\.(?P<leaf>[a-z]\w*(?:\.0)?))?\.(?P<kind>weight|bias)", name)
        if match is None:
            continue
        leaf, kind = match["leaf"], match["kind"]
        if leaf is not None and leaf not in inside:
            return None
        filled = target
        for number in match.groups()[:-2]:
            filled = filled.replace("#", number, 1)
        return ".".join(part for part in (filled, inside.get(leaf or ""), kind) if part)
    return None


def import_weights(
    tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], table: Table, where: str
) -> dict[str, Tensor]:
    """diffusers' `tensors` under genkit's names, in float32; `wanted` has the names and shapes to fill.

    Raises:
        InputError: a tensor is missing, unknown, of another shape or not finite, by diffusers' name.
    """
    made: dict[str, Tensor] = {}
    unknown: list[str] = []
    for name, tensor in tensors.items():
        ours = to_genkit(name, table)
        if ours is None or ours not in wanted:
            unknown.append(name)
            continue
        if tensor.shape != wanted[ours].shape:
            raise InputError(
                f"{where}: {name} has shape {tuple(tensor.shape)}, its config.json asks for "
                f"{tuple(wanted[ours].shape)}"
            )
        if not tensor.isfinite().all():
            raise InputError(f"{where}: {name} holds NaN or infinity")
        made[ours] = tensor.float()
    missing = [to_diffusers(name, table) or name for name in wanted if name not in made]
    if missing:
        raise InputError(f"{where} lacks {_some(missing)}, which its config.json asks for")
    if unknown:
        raise InputError(f"{where} holds {_some(unknown)}, which its config.json does not account for")
    return made


def export_weights(tensors: Mapping[str, Tensor], table: Table) -> dict[str, Tensor]:
    """genkit's `tensors` under diffusers' names.

    Raises:
        InputError: one of them has no name there.
    """
    made = {}
    for name, tensor in tensors.items():
        theirs = to_diffusers(name, table)
        if theirs is None:
            raise InputError(f"weight {name} has no place in diffusers' network")
        made[theirs] = tensor
    return made


def _some(names: Iterable[str]) -> str:
    first, *rest = names
    return f"{first} and {len(rest)} more" if rest else first
