"""Pictures: exact pixels, provenance, tiling."""

import io as stdio

import pytest
import torch
from PIL import Image

from genkit.errors import InputError
from genkit.io.images import gif_bytes, picture, read_about, save_png, tile, to_uint8


def test_to_uint8_inverts_the_reading():
    """Oracle: x / 127.5 - 1 of every byte value comes back as that byte."""
    values = torch.arange(256, dtype=torch.uint8)
    assert torch.equal(to_uint8(values.float() / 127.5 - 1), values)
    assert to_uint8(torch.tensor([-9.0, 9.0])).tolist() == [0, 255]


def test_png_round_trip(tmp_path):
    """Oracle: the pixels, and the words about them."""
    x = torch.rand(3, 5, 7, generator=torch.Generator().manual_seed(0)) * 2 - 1
    save_png(tmp_path / "a.png", picture(x), {"seed": 3, "index": 17})
    with Image.open(tmp_path / "a.png") as image:
        pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).reshape(5, 7, 3)
    assert torch.equal(pixels.permute(2, 0, 1), to_uint8(x))
    assert read_about(tmp_path / "a.png") == {"seed": 3, "index": 17}


def test_foreign_pictures(tmp_path):
    """Oracle: a picture of another program says nothing; a text is no picture."""
    Image.new("L", (4, 4)).save(tmp_path / "b.png")
    assert read_about(tmp_path / "b.png") is None
    (tmp_path / "c.png").write_text("no")
    with pytest.raises(InputError, match=r"c\.png is not a readable picture"):
        read_about(tmp_path / "c.png")


def test_tile_places_images():
    """Oracle: counted by hand: 2 columns, gap 1, factor 1."""
    x = torch.stack([torch.full((1, 2, 2), v) for v in (-1.0, 0.0, 1.0)])
    grid = tile(x, columns=2, gap=1, least=4)
    assert grid.size == (7, 7)
    assert [grid.getpixel(p) for p in ((1, 1), (4, 1), (1, 4), (4, 4), (0, 0))] == [0, 128, 255, 255, 255]


def test_gif_has_every_frame():
    """Oracle: Pillow counts them."""
    frames = [tile(torch.full((1, 1, 8, 8), v)) for v in (-1.0, 0.0, 1.0)]
    with Image.open(stdio.BytesIO(gif_bytes(frames))) as image:
        assert image.n_frames == 3
