"""Every mode of image file becomes grey or RGB uint8 over white."""

from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import noise_image, save
from PIL import Image

from genkit.data import open_source

GREY, RGB = noise_image(0, channels=1), noise_image(1)
ALPHA = np.tile(np.array([0, 85, 170, 255], np.uint8), (8, 2))


def over_white(colour: np.ndarray) -> np.ndarray:
    """The formula of compositing, in real numbers."""
    alpha = ALPHA.astype(float) / 255
    alpha = alpha if colour.ndim == 2 else alpha[..., None]
    return colour * alpha + 255 * (1 - alpha)


def image(mode: str) -> tuple[Image.Image, np.ndarray]:
    """(a test image in `mode`, the pixels it must decode to)."""
    if mode in ("L", "RGB"):
        array = GREY if mode == "L" else RGB
        return Image.fromarray(array), array
    if mode in ("LA", "RGBA"):
        array = GREY if mode == "LA" else RGB
        return Image.fromarray(np.dstack([array, ALPHA]), mode=mode), over_white(array)
    if mode == "1":
        bits = GREY > 127
        return Image.fromarray(bits), bits * 255
    if mode == "I;16":
        wide = GREY.astype(np.uint16) * 257  # exact: 257 v / 257 = v
        return Image.fromarray(wide), GREY
    if mode == "P":
        palette = Image.fromarray(RGB).quantize(16)
        return palette, np.asarray(palette.convert("RGB"))
    if mode == "P grey":
        palette = Image.fromarray(GREY // 8)
        palette.putpalette([v for i in range(32) for v in (8 * i,) * 3])
        return palette, GREY // 8 * 8
    cut = Image.fromarray(np.where(ALPHA > 99, 1, 0).astype(np.uint8))
    cut.putpalette([9, 9, 9, 10, 20, 30])
    cut.info["transparency"] = 0
    return cut, np.where((ALPHA > 99)[..., None], [10, 20, 30], 255)


@pytest.mark.filterwarnings("ignore:'mode' parameter:DeprecationWarning")
@pytest.mark.parametrize("mode", ["L", "RGB", "LA", "RGBA", "1", "I;16", "P", "P grey", "P transparent"])
def test_modes(tmp_path: Path, mode: str) -> None:
    """Oracle: the arrays; the compositing formula to one step of rounding. Grey modes have one channel."""
    picture, want = image(mode)
    picture.save(tmp_path / "0.png")
    source = open_source(str(tmp_path))
    got = source.uint8(torch.tensor([0]))[0].permute(1, 2, 0).numpy()
    assert source.info.shape[0] == (1 if want.ndim == 2 else 3)
    tolerance = 1 if mode in ("LA", "RGBA") else 0
    assert np.abs(got - want.reshape(got.shape).astype(float)).max() <= tolerance


def test_cmyk(tmp_path: Path) -> None:
    """Oracle: pure cyan ink is (0, 255, 255); JPEG at quality 100 keeps a flat colour to 2 levels."""
    Image.new("CMYK", (8, 8), (255, 0, 0, 0)).save(tmp_path / "0.jpg", quality=100)
    pixels = open_source(str(tmp_path)).uint8(torch.tensor([0]))[0]
    assert (pixels.float() - torch.tensor([0.0, 255.0, 255.0])[:, None, None]).abs().max() <= 2


def test_grey_and_colour_together_are_rgb(tmp_path: Path) -> None:
    """Oracle: a grey image beside a coloured one has three equal channels; `channels=1` makes both grey."""
    save(tmp_path / "0.png", GREY)
    save(tmp_path / "1.png", RGB)
    both = open_source(str(tmp_path)).uint8(torch.arange(2))
    assert np.array_equal(both[0], np.stack([GREY] * 3))
    grey = open_source(str(tmp_path), channels=1).uint8(torch.arange(2))
    assert np.array_equal(grey[0, 0], GREY)
    assert np.array_equal(grey[1, 0], np.asarray(Image.fromarray(RGB).convert("L")))


def test_photos_are_upright(tmp_path: Path) -> None:
    """Oracle: EXIF orientation 6 means "turn by 90° clockwise to view", which is numpy's rot90 by -1."""
    array = noise_image(3, 8, 12)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(array).save(tmp_path / "0.png", exif=exif)
    source = open_source(str(tmp_path))
    assert source.info.shape == (3, 12, 8)
    assert np.array_equal(source.uint8(torch.tensor([0]))[0].permute(1, 2, 0), np.rot90(array, -1))
