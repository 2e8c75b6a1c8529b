"""Pictures: PNGs that know how they were made, grids, strips and animations."""

import io as stdio
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ..errors import InputError
from .atomic import write_bytes


def to_uint8(x: Tensor) -> Tensor:
    """(…, C, H, W) float in [-1, 1] -> uint8 on the CPU, rounded, clipped outside the range."""
    return ((x.detach().float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).cpu()


def picture(x: Tensor) -> Image.Image:
    """A Pillow image of one (C, H, W) float image in [-1, 1]; 1 channel is grey, 3 RGB, others show the
    first."""
    pixels = to_uint8(x if x.shape[0] in (1, 3) else x[:3] if x.shape[0] > 3 else x[:1])
    array = pixels[0].numpy() if pixels.shape[0] == 1 else pixels.permute(1, 2, 0).numpy()
    return Image.fromarray(array)


def png_bytes(image: Image.Image, about: Mapping[str, Any] | None = None) -> bytes:
    """The PNG file of `image`, with `about` (seed, index, command, …) as JSON in its text chunk."""
    info = PngInfo()
    if about:
        info.add_text("genkit", json.dumps(dict(about)))
    buffer = stdio.BytesIO()
    image.save(buffer, "PNG", pnginfo=info)
    return buffer.getvalue()


def save_png(path: Path, image: Image.Image, about: Mapping[str, Any] | None = None) -> None:
    """Write a PNG atomically."""
    write_bytes(path, png_bytes(image, about))


def read_about(path: Path) -> dict[str, Any] | None:
    """What a PNG says of its making, or None when genkit did not write it.

    Raises:
        InputError: when the file is no picture.
    """
    try:
        with Image.open(path) as image:
            image.load()
            text = getattr(image, "text", {}).get("genkit")
            return json.loads(text) if text else None
    except (UnidentifiedImageError, OSError, ValueError) as error:
        raise InputError(f"{path} is not a readable picture ({error})") from None


def tile(x: Tensor, columns: int | None = None, gap: int = 2, least: int = 448) -> Image.Image:
    """One picture of (N, C, H, W) images in [-1, 1] in rows, enlarged by a whole factor to about `least`
    pixels."""
    n, _, h, w = x.shape
    columns = columns or math.ceil(math.sqrt(n))
    rows = math.ceil(n / columns)
    factor = max(1, round(least / (columns * w)))
    cell_w, cell_h = w * factor + gap, h * factor + gap
    mode = "RGB" if x.shape[1] >= 3 else "L"
    canvas = Image.new(
        mode, (columns * cell_w + gap, rows * cell_h + gap), 255 if mode == "L" else (255,) * 3
    )
    for i in range(n):
        cell = picture(x[i]).resize((w * factor, h * factor), Image.Resampling.NEAREST)
        canvas.paste(cell, (gap + (i % columns) * cell_w, gap + (i // columns) * cell_h))
    return canvas


def labelled(pictures: Sequence[Image.Image], titles: Sequence[str], columns: int) -> Image.Image:
    """One picture of equally large `pictures` in rows, each below its title."""
    font, strip = ImageFont.load_default(14), 22
    width = max(*(p.width for p in pictures), *(math.ceil(font.getlength(t)) + 12 for t in titles))
    height = max(p.height for p in pictures) + strip
    canvas = Image.new("RGB", (columns * width, math.ceil(len(pictures) / columns) * height), "white")
    draw = ImageDraw.Draw(canvas)
    for i, (image, title) in enumerate(zip(pictures, titles, strict=True)):
        left, top = (i % columns) * width, (i // columns) * height
        draw.text((left + 6, top + 3), title, fill="black", font=font)
        canvas.paste(image, (left, top + strip))
    return canvas


def gif_bytes(frames: Sequence[Image.Image], milliseconds: int = 80, hold: int = 1200) -> bytes:
    """An endless animation of `frames`, resting `hold` milliseconds on the last one."""
    buffer = stdio.BytesIO()
    durations = [milliseconds] * (len(frames) - 1) + [hold]
    first, *rest = [frame.convert("P", palette=Image.Palette.ADAPTIVE) for frame in frames]
    first.save(buffer, "GIF", save_all=True, append_images=rest, duration=durations, loop=0)
    return buffer.getvalue()
