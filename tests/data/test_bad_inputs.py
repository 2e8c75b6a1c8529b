"""Every wrong input is one line that names the file and what to do. Oracle: the message itself."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from data_files import noise_image, png, save, zip_of
from PIL import Image

from genkit.data import open_source
from genkit.data.decode import BadImage, header, open_image, to_array
from genkit.errors import InputError


def complaint(spec: object, **options: object) -> str:
    """The message of opening `spec`, checked to be a single line."""
    with pytest.raises(InputError) as caught:
        open_source(str(spec), **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    return str(caught.value)


def truncated(path: Path) -> None:
    save(path, noise_image(0, 64, 64))
    path.write_bytes(path.read_bytes()[:3000])


def animated(path: Path) -> None:
    frames = [Image.fromarray(noise_image(i)) for i in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


BAD = {
    "text.png": (lambda p: p.write_text("hello"), "is not an image"),
    "empty.png": (lambda p: p.write_bytes(b""), "is not an image"),
    "truncated.png": (truncated, "is damaged"),
    "truncated.jpg": (truncated, "is damaged"),
    "pixel.png": (lambda p: save(p, noise_image(0, 1, 1)), "is 1×1 pixels, smaller than 4 a side"),
    "bomb.png": (lambda p: p.write_bytes(png(50_000, 50_000)), "has more than 89,478,485 pixels"),
    "half-bomb.png": (lambda p: p.write_bytes(png(12_000, 12_000)), "has more than 89,478,485 pixels"),
    "moving.gif": (animated, "is an animation of 3 frames"),
    "moving.png": (animated, "is an animation of 3 frames"),
    "moving.webp": (animated, "is an animation of 3 frames"),
    "floating.tiff": (
        lambda p: save(p, np.ones((8, 8), np.float32)),
        "floating.tiff holds floating-point pixels",
    ),
}


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
@pytest.mark.parametrize("name", BAD)
def test_bad_image(tmp_path: Path, name: str, packed: bool) -> None:
    make, reason = BAD[name]
    folder = tmp_path / "in"
    good = save(folder / "good.png", noise_image(5))
    make(folder / name)
    spec = zip_of(folder, tmp_path / "in.zip") if packed else folder
    message = complaint(spec)
    assert f"{spec}/{name}" in message
    assert reason in message
    assert "--skip-bad" in message
    source = open_source(str(spec), skip_bad=True)
    assert np.array_equal(source.uint8(torch.tensor([0]))[0].permute(1, 2, 0), good)
    assert "1 of 2 images are unreadable" in source.notes[0]


def decodes(data: bytes) -> str:
    """ "" when a file decodes, otherwise the reason that it does not."""
    try:
        image = open_image(io.BytesIO(data))
        if image.width * image.height < 10**6:
            head = header(image)
            to_array(image, 3, (head.height, head.width))
    except BadImage as error:
        return str(error)
    return ""


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("suffix", ["png", "jpg", "gif", "tif", "webp", "avif", "jp2"])
def test_changed_bytes_never_escape(suffix: str) -> None:
    """Oracle: any damage decodes or is a BadImage of one line; 60 files, up to 8 bytes changed."""
    kind = Image.registered_extensions().get(f".{suffix}")
    if kind not in Image.SAVE:
        pytest.skip(f"this Pillow writes no {suffix}")
    good = io.BytesIO()
    Image.fromarray(noise_image(0, 24, 24)).save(good, kind)
    assert decodes(good.getvalue()) == ""
    for seed in range(60):
        draw = np.random.default_rng(seed)
        data = bytearray(good.getvalue())
        for at in draw.integers(0, min(len(data), (60, 300, 10**6)[seed % 3]), 1 + seed % 8):
            data[at] = draw.integers(256)
        assert "\n" not in decodes(bytes(data))


def test_many_bad_images_are_counted(tmp_path: Path) -> None:
    save(tmp_path / "good.png", noise_image(0))
    for i in range(5):
        (tmp_path / f"{i}.png").write_text("hello")
    message = complaint(tmp_path)
    assert "5 of 6 images are unreadable (0.png is not an image, 1.png" in message
    assert "4.png" not in message


def test_nothing_left_after_skipping(tmp_path: Path) -> None:
    (tmp_path / "0.png").write_text("hello")
    assert "0.png is not an image" in complaint(tmp_path, skip_bad=True)


def test_skipping_keeps_labels_in_step(tmp_path: Path) -> None:
    for i, kind in enumerate("aabbcc"):
        save(tmp_path / kind / f"{i}.png", noise_image(i))
    (tmp_path / "a" / "0.png").write_text("hello")
    (tmp_path / "b" / "3.png").write_text("hello")
    source = open_source(str(tmp_path), skip_bad=True)
    batch = next(source.batches([torch.arange(4)], torch.device("cpu")))
    assert batch.label is not None
    assert batch.label.tolist() == [0, 1, 2, 2]
    assert np.array_equal(source.uint8(torch.tensor([1]))[0].permute(1, 2, 0), noise_image(2))


@pytest.mark.parametrize(
    "name, text, reason",
    [
        ("metadata.csv", "file_name,text\n../x.png,a\n", "'../x.png' lies outside the folder"),
        ("metadata.csv", "file_name,text\n/etc/x.png,a\n", "'/etc/x.png' lies outside the folder"),
        ("metadata.csv", "file_name,text\nC:\\x.png,a\n", "lies outside the folder"),
        (
            "metadata.csv",
            "file_name,text\n0.png,b\ngone.png,a\n",
            "metadata.csv, line 3: gone.png does not exist; correct or remove that row",
        ),
        (
            "metadata.jsonl",
            '{"file_name": "a.png"}\n{"file_name": "b.png"}\n',
            "a.png does not exist, b.png does not exist); correct or remove their rows, the first being",
        ),
        ("metadata.csv", "name,text\n0.png,a\n", "has no file_name column (its columns: name, text)"),
        ("metadata.csv", "", "has no file_name column"),
        ("metadata.csv", "file_name,text\n", "has no rows"),
        ("metadata.csv", "file_name,text\n,a\n", "line 2: file_name is missing"),
        ("metadata.csv", "file_name\n0.png\n./0.png\n", "lists 0.png twice"),
        ("metadata.csv", "file_name,label\n0.png,a\n1.png,\n", "gives no label for 1.png"),
        ("metadata.csv", "file_name\n\xff.png\n".encode("latin-1"), "as UTF-8 text"),
        ("metadata.jsonl", '{"file_name": "0.png"\n', "line 1 is not JSON"),
        ("metadata.jsonl", '["0.png"]\n', "line 1 must be an object"),
        ("metadata.jsonl", '{"file_name": 3}\n', "line 1: file_name is missing"),
        ("metadata.jsonl", '{"file_name": "0.png", "text": 3}\n', "text must be a string, got 3"),
        (
            "metadata.jsonl",
            '{"file_name": "0.png", "label": [1]}\n',
            "label must be a string or a whole number",
        ),
    ],
)
def test_bad_metadata(tmp_path: Path, name: str, text: str | bytes, reason: str) -> None:
    for i in range(2):
        save(tmp_path / "in" / f"{i}.png", noise_image(i))
    (tmp_path / "in" / name).write_bytes(text.encode() if isinstance(text, str) else text)
    assert reason in complaint(tmp_path / "in")
    assert reason in complaint(zip_of(tmp_path / "in", tmp_path / "in.zip"))


def test_two_metadata_files(tmp_path: Path) -> None:
    save(tmp_path / "0.png", noise_image(0))
    for name in ("metadata.csv", "metadata.jsonl"):
        (tmp_path / name).write_text("")
    assert "both metadata.csv and metadata.jsonl" in complaint(tmp_path)


@pytest.mark.parametrize("entry", ["../x.png", "/x.png", "a/../../x.png", "..\\x.png", "C:/x.png"])
def test_zip_that_climbs_out(tmp_path: Path, entry: str) -> None:
    with zipfile.ZipFile(tmp_path / "in.zip", "w") as archive:
        archive.writestr(zipfile.ZipInfo(entry), png(8, 8))
    assert "lies outside the archive" in complaint(tmp_path / "in.zip")


def test_encrypted_zip(tmp_path: Path) -> None:
    save(tmp_path / "in" / "0.png", noise_image(0))
    path = zip_of(tmp_path / "in", tmp_path / "in.zip")
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + 8] |= 1  # the central directory's flag bit 0: encrypted
    path.write_bytes(data)
    assert "is encrypted; unpack it" in complaint(path)


def test_exotic_compression(tmp_path: Path) -> None:
    save(tmp_path / "in" / "0.png", noise_image(0))
    assert "packed by lzma" in complaint(zip_of(tmp_path / "in", tmp_path / "in.zip", zipfile.ZIP_LZMA))


@pytest.mark.parametrize("damage", ["text", "cut", "flip"])
def test_damaged_zip(tmp_path: Path, damage: str) -> None:
    save(tmp_path / "in" / "0.png", noise_image(0))
    path = zip_of(tmp_path / "in", tmp_path / "in.zip")
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[60] ^= 1  # inside the PNG
    path.write_bytes({"text": b"hello", "cut": data[:100], "flip": data}[damage])
    want = "0.png is damaged (its checksum in the zip differs)" if damage == "flip" else "is no zip"
    assert want in complaint(path)


def test_places_without_data(tmp_path: Path) -> None:
    assert "holds no images" in complaint(tmp_path)
    assert "does not exist" in complaint(tmp_path / "gone")
    assert "does not exist" in complaint("")
    (tmp_path / "a.txt").write_text("hello")
    assert "is not a data source" in complaint(tmp_path / "a.txt")
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert "is a training run" in complaint(tmp_path)


def test_wrong_requests(tmp_path: Path) -> None:
    assert "did you mean 'mnist'?" in complaint("minst")
    assert "did you mean 'test'?" in complaint("digits:tset")
    assert "channels must be 1 or 3, got 4" in complaint("digits", channels=4)
    assert "size must be from 4" in complaint("digits", size=1)
    save(tmp_path / "0.png", noise_image(0))
    assert "has no labels" in complaint(tmp_path, need_labels=True)
