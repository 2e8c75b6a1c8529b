"""Latents files, their shards and float images as sources."""

import io
import sys
from pathlib import Path

import pytest
import torch

from genkit import noise
from genkit.data import open_source
from genkit.errors import InputError
from genkit.io.latents import Latents, latents_bytes, save_latents

CPU = torch.device("cpu")
Z = noise.normal(0, noise.INITIAL, torch.arange(6), (4, 5, 3))
SHIFT, SCALE = (0.5, 0.0, -1.0, 2.0), (2.0, 1.0, 0.25, 4.0)
CAPTIONS = [f"number {i}" for i in range(6)]
LATENTS = Latents(
    Z,
    "latents",
    torch.tensor([0, 1, 2, 0, 1, 2]),
    CAPTIONS,
    SHIFT,
    SCALE,
    codec="c0",
    classes=("a", "b", "c"),
)


def part(start: int, stop: int) -> Latents:
    """Some of the examples as a file of their own."""
    rows = slice(start, stop)
    assert LATENTS.labels is not None
    return LATENTS._replace(z=Z[rows], labels=LATENTS.labels[rows], captions=CAPTIONS[rows])


def test_examples_are_normalised(tmp_path: Path) -> None:
    """Oracle: (z - shift) / scale per channel, written out."""
    save_latents(tmp_path / "z.safetensors", LATENTS)
    source = open_source(str(tmp_path / "z.safetensors"), need_labels=True)
    info = source.info
    assert (info.kind, info.shape, info.count, info.codec) == ("latents", (4, 5, 3), 6, "c0")
    assert (info.shift, info.scale, info.classes) == (SHIFT, SCALE, ("a", "b", "c"))
    index = torch.tensor([5, 1])
    x, label, caption = next(source.batches([index], CPU))
    for c in range(4):
        assert torch.equal(x[:, c], (Z[index, c] - SHIFT[c]) / SCALE[c])
    assert label is not None
    assert label.tolist() == [2, 1]
    assert caption == ["number 5", "number 1"]
    with pytest.raises(InputError, match="holds latents"):
        source.uint8(index)
    with pytest.raises(InputError, match="size is fixed"):
        open_source(str(tmp_path / "z.safetensors"), size=8)


def test_without_statistics_examples_are_z(tmp_path: Path) -> None:
    """Oracle: z itself: no shift and scale in the file mean 0 and 1."""
    save_latents(tmp_path / "z.safetensors", Latents(Z))
    source = open_source(str(tmp_path / "z.safetensors"))
    assert torch.equal(next(source.batches([torch.arange(6)], CPU)).x, Z)
    with pytest.raises(InputError, match="has no labels"):
        open_source(str(tmp_path / "z.safetensors"), need_labels=True)


def test_shards_and_stdin_equal_one_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: the source of the single file, down to its fingerprint."""
    save_latents(tmp_path / "z.safetensors", LATENTS)
    whole = open_source(str(tmp_path / "z.safetensors"))
    save_latents(tmp_path / "shards" / "00000.safetensors", part(0, 4))
    save_latents(tmp_path / "shards" / "00001.safetensors", part(4, 6))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(latents_bytes(LATENTS))))
    for source in (open_source(str(tmp_path / "shards")), open_source("-")):
        assert source.info._replace(name="") == whole.info._replace(name="")
        a, b = (next(s.batches([torch.arange(6)], CPU)) for s in (whole, source))
        assert torch.equal(a.x, b.x)
        assert a.caption == b.caption


def test_shards_that_do_not_belong_together(tmp_path: Path) -> None:
    """Oracle: the messages: a gap, and a shard of another codec."""
    save_latents(tmp_path / "00000.safetensors", part(0, 4))
    save_latents(tmp_path / "00002.safetensors", part(4, 6))
    with pytest.raises(InputError, match="lacks 00001"):
        open_source(str(tmp_path))
    (tmp_path / "00002.safetensors").unlink()
    save_latents(tmp_path / "00001.safetensors", part(4, 6)._replace(codec="other"))
    with pytest.raises(InputError, match="another codec"):
        open_source(str(tmp_path))


def test_fingerprint_follows_values_and_statistics(tmp_path: Path) -> None:
    """Oracle: one changed value, or a changed scale, is another data set."""
    changed = Z.clone()
    changed[3, 2, 1, 0] += 1e-3
    marks = set()
    for variant in (LATENTS, LATENTS._replace(z=changed), LATENTS._replace(scale=(1.0,) * 4)):
        save_latents(tmp_path / "z.safetensors", variant)
        marks.add(open_source(str(tmp_path / "z.safetensors")).info.fingerprint)
    assert len(marks) == 3


def test_float_images_are_an_image_source(tmp_path: Path) -> None:
    """Oracle: uint8 levels v stored as v / 127.5 - 1 come back as v; values outside [-1, 1] are clipped."""
    levels = torch.arange(192).reshape(1, 3, 8, 8)
    x = levels / 127.5 - 1
    x[0, 0, 0, 0] = -1.5
    save_latents(tmp_path / "x.safetensors", Latents(x, "images"))
    source = open_source(str(tmp_path / "x.safetensors"))
    assert source.info.kind == "images"
    assert torch.equal(source.uint8(torch.tensor([0])), levels.byte())
