"""Image folders and zips: which files, in which order, with which classes, captions and sizes."""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import noise_image, save, zip_of
from PIL import Image

from genkit.data import open_source

CPU = torch.device("cpu")
NAMES = ("b/2.PNG", "a/x/1.bmp", "a/0.Tif")


def stored(source) -> np.ndarray:
    """All pixels of a source as (N, H, W, C)."""
    return source.uint8(torch.arange(len(source))).permute(0, 2, 3, 1).numpy()


def test_pixels_are_those_of_the_files_in_path_order(tmp_path: Path) -> None:
    """Oracle: the arrays written to lossless formats; nested, suffixes in any case, sorted by path."""
    written = {n: save(tmp_path / n, noise_image(i)) for i, n in enumerate(NAMES)}
    source = open_source(str(tmp_path))
    assert np.array_equal(stored(source), np.stack([written[n] for n in sorted(written)]))
    assert source.info.classes == ("a", "b")
    x, label, caption = next(source.batches([torch.tensor([2, 0])], CPU))
    assert label is not None
    assert label.tolist() == [1, 0]
    assert caption is None
    assert torch.equal(((x + 1) * 127.5).round().byte(), source.uint8(torch.tensor([2, 0])))


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("prefix", ["", "pets/"])
def test_zip_equals_folder(tmp_path: Path, method: int, prefix: str) -> None:
    """Oracle: the same folder, unzipped; the fingerprint is one of content, so it agrees as well."""
    for i in range(6):
        save(tmp_path / "pets" / f"{i % 3}" / f"{i}.png", noise_image(i))
    folder = open_source(str(tmp_path / "pets"))
    packed = open_source(str(zip_of(tmp_path / "pets", tmp_path / "pets.ZIP", method, prefix)))
    assert np.array_equal(stored(folder), stored(packed))
    assert packed.info == folder.info._replace(name=packed.info.name)


def test_numeric_classes_are_in_numerical_order(tmp_path: Path) -> None:
    """Oracle: by hand; label i is the i-th number, not the i-th word."""
    for i in (10, 2, 0):
        save(tmp_path / str(i) / "0.png", noise_image(i))
    assert open_source(str(tmp_path)).info.classes == ("0", "2", "10")


def test_images_beside_subfolders_have_no_classes(tmp_path: Path) -> None:
    """Oracle: the rule; the person is told."""
    save(tmp_path / "a" / "0.png", noise_image(0))
    save(tmp_path / "1.png", noise_image(1))
    source = open_source(str(tmp_path))
    assert source.info.classes == ()
    assert "no classes" in source.notes[0]


def test_grid_and_hidden_files_are_ignored(tmp_path: Path) -> None:
    """Oracle: a folder as genkit writes it, one overview and half-written files beside numbered images."""
    want = np.stack([save(tmp_path / f"{i:06d}.png", noise_image(i)) for i in range(3)])
    save(tmp_path / "grid.png", noise_image(9, 40, 40))
    save(tmp_path / ".hidden.png", noise_image(9))
    (tmp_path / ".000003.png.12.tmp").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("no image")
    assert np.array_equal(stored(open_source(str(tmp_path))), want)
    assert np.array_equal(stored(open_source(str(zip_of(tmp_path, tmp_path / "all.zip")))), want)


@pytest.mark.parametrize("form", ["csv", "jsonl"])
def test_metadata_gives_captions_and_labels(tmp_path: Path, form: str) -> None:
    """Oracle: by hand. The byte-order mark of a spreadsheet is harmless; unlisted images are left out."""
    for name in ("c.png", "a.png", "b.png", "extra.png"):
        save(tmp_path / name, noise_image(ord(name[0])))
    rows = [("c.png", "a cat, sleeping", "cat"), ("a.png", "an ape", "ape"), ("b.png", "another cat", "cat")]
    if form == "csv":
        lines = ["file_name,text,label", *(f'{n},"{t}",{k}' for n, t, k in rows)]
        (tmp_path / "metadata.csv").write_text("\r\n".join(lines), "utf-8-sig")
    else:
        lines = [json.dumps({"file_name": n, "text": t, "label": k}) for n, t, k in rows]
        (tmp_path / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    for spec in (tmp_path, zip_of(tmp_path, tmp_path / "all.zip")):
        source = open_source(str(spec))
        batch = next(source.batches([torch.arange(3)], CPU))
        assert batch.caption == ["an ape", "another cat", "a cat, sleeping"]
        assert batch.label is not None
        assert [source.info.classes[i] for i in batch.label] == ["ape", "cat", "cat"]
        assert "1 images are not in the metadata" in source.notes[0]


def test_metadata_beside_a_folder_of_images(tmp_path: Path) -> None:
    """Oracle: the rule; one folder that holds all images is no class."""
    for i in range(2):
        save(tmp_path / "images" / f"{i}.png", noise_image(i))
    (tmp_path / "metadata.csv").write_text("file_name,text\nimages/1.png,one\nimages/0.png,zero\n")
    source = open_source(str(tmp_path))
    assert (source.info.classes, source.captions) == ((), ["zero", "one"])


def test_mixed_sizes_become_the_commonest_short_side(tmp_path: Path) -> None:
    """Oracle: Pillow's own resize of the centre square; short sides are 12, 12 and 6."""
    arrays = [noise_image(0, 12, 20), noise_image(1, 16, 12), noise_image(2, 6, 6)]
    for i, array in enumerate(arrays):
        save(tmp_path / f"{i}.png", array)
    source = open_source(str(tmp_path))
    assert source.info.shape == (3, 12, 12)
    assert "sizes differ (6×6 to 20×12)" in source.notes[0]
    got = stored(source)
    assert np.array_equal(got[0], arrays[0][:, 4:16])
    assert np.array_equal(got[1], arrays[1][2:14])
    lanczos = Image.Resampling.LANCZOS
    assert np.array_equal(got[2], np.asarray(Image.fromarray(arrays[2]).resize((12, 12), lanczos)))


def test_equal_sizes_are_kept_and_size_overrides(tmp_path: Path) -> None:
    """Oracle: by hand; a number means a square, a pair height and width."""
    for i in range(2):
        save(tmp_path / f"{i}.png", noise_image(i, 8, 12))
    assert open_source(str(tmp_path)).info.shape == (3, 8, 12)
    assert open_source(str(tmp_path), size=6).info.shape == (3, 6, 6)
    assert open_source(str(tmp_path), size=(16, 24), channels=1).info.shape == (1, 16, 24)


def test_fingerprint_follows_every_part(tmp_path: Path) -> None:
    """Oracle: one changed pixel, one changed class or one changed caption is another data set."""
    array = save(tmp_path / "a" / "0.png", noise_image(0))
    save(tmp_path / "b" / "1.png", noise_image(1))

    def mark() -> str:
        return open_source(str(tmp_path)).info.fingerprint

    seen = [mark()]
    assert mark() == seen[0]
    array[3, 3, 1] ^= 1
    save(tmp_path / "a" / "0.png", array)
    seen.append(mark())
    (tmp_path / "b").rename(tmp_path / "c")
    seen.append(mark())
    for text in ("one", "two"):
        (tmp_path / "metadata.csv").write_text(f"file_name,text\na/0.png,{text}\nc/1.png,x\n")
        seen.append(mark())
    assert len(set(seen)) == len(seen)


def test_one_image_file_is_a_source(tmp_path: Path) -> None:
    """Oracle: the array written; its neighbours stay out."""
    array = save(tmp_path / "0.png", noise_image(0))
    save(tmp_path / "1.png", noise_image(1))
    assert np.array_equal(stored(open_source(str(tmp_path / "0.png"))), array[None])


def test_a_source_of_files_knows_their_names(tmp_path: Path) -> None:
    """Oracle: the paths below the root in the order of the examples, whether the pixels are held, streamed or
    in a zip, without what was left out; a data set by name has none."""
    for name in ("b/2.png", "a/1.png", "a/0.png"):
        save(tmp_path / "in" / name, noise_image(0))
    wanted = ["a/0.png", "a/1.png", "b/2.png"]
    packed = zip_of(tmp_path / "in", tmp_path / "in.zip")
    for spec in (tmp_path / "in", packed):
        assert list(open_source(str(spec)).names) == wanted
        assert list(open_source(str(spec), limit=100, workers=0).names) == wanted
    (tmp_path / "in/a/1.png").write_bytes(b"no picture")
    assert list(open_source(str(tmp_path / "in"), skip_bad=True).names) == ["a/0.png", "b/2.png"]
    assert open_source("digits").names is None


def test_a_note_says_what_is_changed_and_only_that(tmp_path):
    """Oracle: by hand; three grey images of 8x8, 6x6 and 8x8, one of them in colour."""
    for i, (mode, side) in enumerate((("L", 8), ("L", 6), ("RGB", 8))):
        Image.new(mode, (side, side), 9 if mode == "L" else (9, 200, 9)).save(tmp_path / f"{i}.png")
    notes = [open_source(str(tmp_path), size=8, channels=c).notes[-1] for c in (1, 3)]
    assert "2 of 3 images are brought to 8×8 grey" in notes[0]
    assert "1 of 3 images are brought to 8×8 RGB" in notes[1]
    (tmp_path / "1.png").unlink()
    assert "brought" not in " ".join(open_source(str(tmp_path), size=8, channels=3).notes)
    assert open_source("digits", size=8, channels=1).notes == []
    assert open_source("digits", size=12).notes == [
        "images of digits are brought from 8×8 grey to 12×12 grey"
    ]
