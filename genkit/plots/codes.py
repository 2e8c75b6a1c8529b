"""What a decoder does with its code: the plane of two units, and each unit by itself."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

Decode = Callable[[Tensor], Tensor]  # (B, *latent_shape) -> (B, C, H, W) in [-1, 1]
INCHES = 9.0  # of the longer side of a sheet of pictures


def quantiles(n: int) -> Tensor:
    """(n,) rising values: the middles of n parts of equal probability of the standard normal."""
    return torch.special.ndtri((torch.arange(n, dtype=torch.float64) + 0.5) / n).float()


def plane_codes(latent_shape: Sequence[int], values: Tensor) -> Tensor:
    """(n * n, C, 1, 1) codes whose first two units run over the values (n,), the others 0; the first unit
    rises from left to right, the second from bottom to top, pictures in reading order.

    Raises:
        ValueError: the code is no vector of at least 2 units.
    """
    c, h, w = latent_shape
    if (h, w) != (1, 1) or c < 2:
        raise ValueError(f"needs codes that are vectors of 2 or more units, and the model's are {c}x{h}x{w}")
    n = len(values)
    codes = torch.zeros(n, n, c, 1, 1)
    codes[:, :, 0, 0, 0] = values[None, :]
    codes[:, :, 1, 0, 0] = values.flip(0)[:, None]
    return codes.flatten(0, 1)


def traversal_codes(z: Tensor, units: Sequence[int], values: Tensor) -> Tensor:
    """(len(units) * len(values), *S) copies of the code z: (*S), in each row one of its units set to the
    values, counted in reading order."""
    rows = z.reshape(1, 1, -1).repeat(len(units), len(values), 1)
    for row, unit in zip(rows, units):
        row[:, unit] = values
    return rows.reshape(-1, *z.shape)


def effects(z: Tensor, reach: float, decode: Decode, batch: int = 256) -> Tensor:
    """(units,) how far each unit of code z: (*S) can move the picture: the root mean square difference, in
    pixels of [-1, 1], between the unit at -reach and at +reach."""
    ends = torch.tensor([-reach, reach])
    found = []
    for units in torch.arange(z.numel()).split(max(1, batch // 2)):
        x = decode(traversal_codes(z, units.tolist(), ends)).unflatten(0, (-1, 2))
        found.append((x[:, 1] - x[:, 0]).square().flatten(1).mean(dim=1).sqrt())
    return torch.cat(found)


def unit_name(unit: int, latent_shape: Sequence[int]) -> str:
    """A unit of a vector by its number from 1, a unit of a map by channel, row and column from 1."""
    _, h, w = latent_shape
    if (h, w) == (1, 1):
        return str(unit + 1)
    return f"{unit // (h * w) + 1},{unit // w % h + 1},{unit % w + 1}"


def sheet(x: Tensor, columns: int, gap: int) -> np.ndarray:
    """One picture (H, W) or (H, W, 3) in [0, 1] of images (N, C, H, W) in [-1, 1] in rows, `gap` white
    pixels apart."""
    x = (x.clamp(-1, 1) + 1) / 2
    x = x if x.shape[1] in (1, 3) else x[:, :1]
    n, c, h, w = x.shape
    rows = -(-n // columns)
    canvas = torch.ones(rows * columns, c, h + gap, w + gap)
    canvas[:n, :, :h, :w] = x
    whole = canvas.reshape(rows, columns, c, h + gap, w + gap).permute(2, 0, 3, 1, 4)
    whole = whole.reshape(c, rows * (h + gap), columns * (w + gap))
    whole = whole[:, : whole.shape[1] - gap or None, : whole.shape[2] - gap or None]
    return (whole[0] if c == 1 else whole.permute(1, 2, 0)).numpy()


def sheet_size(rows: int, columns: int, image: Sequence[int]) -> tuple[float, float]:
    """Inches for a sheet of pictures with its axes."""
    height, width = rows * image[1], columns * image[2]
    scale = INCHES / max(height, width)
    return max(width * scale + 1.0, 5.0), max(height * scale + 1.0, 2.5)


def _show(axes: Axes, picture: np.ndarray) -> None:
    axes.imshow(picture, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    for side in axes.spines.values():
        side.set_visible(False)
    axes.tick_params(length=0)


def _value(value: float, form: str) -> str:
    """A tick's text, with a true minus sign."""
    return format(value, form).replace("-", "\N{MINUS SIGN}")


def draw_plane(figure: Figure, images: Tensor, values: Sequence[float], unit: str) -> None:
    """images: (n * n, C, H, W) of `plane_codes`, with the n values along the sides; unit: what these are."""
    axes, n = figure.subplots(), len(values)
    _show(axes, sheet(images, n, 0))
    h, w = images.shape[2:]
    ticks = n if n <= 10 else 9 - (n + 1) % 2  # as many from either end, and an odd side's middle
    at = np.linspace(0, n - 1, ticks).round().astype(int).tolist()
    axes.set_xticks([(i + 0.5) * w - 0.5 for i in at], [_value(values[i], ".2f") for i in at])
    axes.set_yticks([(n - i - 0.5) * h - 0.5 for i in at], [_value(values[i], ".2f") for i in at])
    axes.set_xlabel(f"unit 1 of the code ({unit})")
    axes.set_ylabel(f"unit 2 of the code ({unit})")


def draw_traversal(figure: Figure, images: Tensor, units: Sequence[str], values: Sequence[float]) -> None:
    """images: (len(units) * len(values), C, H, W) of `traversal_codes`, each row named by its unit."""
    axes, gap = figure.subplots(), 2
    _show(axes, sheet(images, len(values), gap))
    h, w = (size + gap for size in images.shape[2:])
    axes.set_xticks([(i + 0.5) * w - gap for i in range(len(values))], [_value(v, ".3g") for v in values])
    axes.set_yticks([(i + 0.5) * h - gap for i in range(len(units))], list(units))
    axes.xaxis.tick_top()
    axes.xaxis.set_label_position("top")
    axes.set_xlabel("value of the unit")
    axes.set_ylabel("unit (strongest first)")
