"""Data sets by name."""

import os
import struct
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from data_files import noise_image

from genkit.data import names, open_source
from genkit.data.shapes import COLOURS
from genkit.errors import InputError

SHARED = Path(os.environ.get("GENKIT_DATA") or Path(__file__).parents[3] / "shared" / "data")
CPU = torch.device("cpu")


def test_digits_are_scikit_learns() -> None:
    """Oracle: load_digits. Both splits together are the whole set; a fifth of each class is for testing."""
    from sklearn.datasets import load_digits

    data = load_digits()
    train, test = open_source("digits"), open_source("digits:test")
    assert (train.info.shape, len(train) + len(test)) == ((1, 8, 8), 1797)
    both = torch.cat([s.uint8(torch.arange(len(s))) for s in (train, test)]).flatten(1)
    want = torch.from_numpy(np.rint(data.images * 255 / 16).astype(np.uint8)).flatten(1)
    assert sorted(map(tuple, both.tolist())) == sorted(map(tuple, want.tolist()))
    labels = next(test.batches([torch.arange(len(test))], CPU)).label
    assert labels is not None
    share = np.bincount(labels) / np.bincount(data.target)
    assert np.abs(share - 0.2).max() < 0.006  # a class of about 180 in fifths is off by at most one


def test_shapes_are_as_captioned() -> None:
    """Oracle: the caption's own words, measured: colour of the darkest ink, its centre of mass, its area."""
    source = open_source("shapes:test")
    assert (source.info.shape, len(source)) == ((3, 32, 32), 2000)
    index = torch.arange(300)
    x, label, captions = next(source.batches([index], CPU))
    assert label is not None
    assert captions is not None
    pixels = source.uint8(index).double()
    ink = (255 - pixels).sum(1)
    ink = ink / ink.amax((1, 2), keepdim=True)
    grid = torch.arange(32.0, dtype=torch.float64) + 0.5
    row, column = ((ink.sum(d) * grid).sum(1) / ink.sum((1, 2)) for d in (2, 1))
    for i, caption in enumerate(captions):
        words = caption.split()
        assert words[3] == source.info.classes[label[i]]
        full = pixels[i, :, ink[i] > 0.999].mean(1).round().int().tolist()
        assert tuple(full) == COLOURS[words[2]]
        for place, low, high in ((row[i], "top", "bottom"), (column[i], "left", "right")):
            third = low if place < 13.5 else high if place > 18.5 else ""
            assert {low, high} & set(words) == ({third} if third else set())
        assert (ink[i].amax(0) > 0).sum() in (range(6, 14) if words[1] == "small" else range(12, 22))
    assert x.min() >= -1


def test_shapes_depend_on_their_index_alone() -> None:
    """Oracle: fixed pixels of an earlier version would be brittle; two calls agree and the splits differ."""
    train, test, again = (open_source(f"shapes:{split}") for split in ("train", "test", "test"))
    assert test.info.fingerprint == again.info.fingerprint
    assert not torch.equal(train.uint8(torch.arange(9)), test.uint8(torch.arange(9)))
    assert (len(train), len(set(train.captions or ()))) == (10_000, 6 * 8 * 2 * 9)  # every combination
    assert open_source("shapes:test", size=64).info.shape == (3, 64, 64)


def test_size_and_channels_override() -> None:
    """Oracle: Lanczos keeps a picture's mean but for clipping at edges; grey spreads to equal channels."""
    small, large = open_source("digits"), open_source("digits", size=16, channels=3)
    index = torch.arange(50)
    one, three = small.uint8(index).double(), large.uint8(index).double()
    assert three.shape == (50, 3, 16, 16)
    assert torch.equal(three[:, 0], three[:, 2])
    assert (one.mean((1, 2, 3)) - three.mean((1, 2, 3))).abs().max() < 6


def test_mnist() -> None:
    """Oracle: the published counts, and the first training labels of LeCun's file: 5, 0, 4, 1, 9."""
    if not (SHARED / "mnist").is_dir():
        pytest.skip(f"no MNIST under {SHARED}")
    source = open_source("mnist", root=SHARED)
    assert (source.info.shape, len(source), len(open_source("mnist:test", root=SHARED))) == (
        (1, 28, 28),
        60_000,
        10_000,
    )
    x, label, _ = next(source.batches([torch.arange(5)], CPU))
    assert label is not None
    assert label.tolist() == [5, 0, 4, 1, 9]
    assert (x.min().item(), x.max().item()) == (-1.0, 1.0)


@pytest.mark.parametrize("name, folder", [("mnist", "MNIST"), ("fashion-mnist", "FashionMNIST")])
def test_torchvision_layout(tmp_path: Path, name: str, folder: str) -> None:
    """Oracle: pixels written here in the IDX format: big-endian sizes, then bytes."""
    pixels, labels = noise_image(0, 10 * 28, 28, 1).reshape(10, 28, 28), np.arange(10, dtype=np.uint8)
    raw = tmp_path / name / folder / "raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        head = struct.pack(">IIII", 0x803, 10, 28, 28)
        (raw / f"{part}-images-idx3-ubyte").write_bytes(head + pixels.tobytes())
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, 10) + labels.tobytes())
    source = open_source(name, root=tmp_path, need_labels=True)
    assert np.array_equal(source.uint8(torch.arange(10))[:, 0], pixels)
    assert source.labels is not None
    assert source.labels.tolist() == labels.tolist()
    assert (len(source.info.classes), source.info.classes[1]) == (10, "1" if name == "mnist" else "Trouser")


def test_colour_through_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Oracle: a stand-in with the attributes of torchvision's CIFAR10, whose targets are a list."""
    pixels = noise_image(0, 64, 32).reshape(2, 32, 32, 3)
    data = SimpleNamespace(data=pixels, targets=[1, 0], classes=["airplane", "automobile"])
    monkeypatch.setattr("torchvision.datasets.CIFAR10", lambda root, train, download: data)
    source = open_source("cifar10", root=tmp_path)
    assert np.array_equal(source.uint8(torch.arange(2)).permute(0, 2, 3, 1), pixels)
    assert (source.info.shape, source.info.classes) == ((3, 32, 32), ("airplane", "automobile"))


def test_captioned_zip_of_emoji() -> None:
    """Oracle: the data's README (2,029 images of 72×72 with alpha) and its metadata's first row."""
    path = SHARED / "emoji72.zip"
    if not path.is_file():
        pytest.skip(f"no {path}")
    source = open_source(str(path))
    assert (source.info.shape, len(source)) == ((3, 72, 72), 2029)
    x, _, captions = next(source.batches([torch.tensor([0])], CPU))
    assert captions == ["number sign"]
    assert (x[0, :, 0, 0] == 1).all()  # a transparent corner over white


def test_offline_says_where_to_put_the_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Oracle: the message. A stand-in for torchvision that fails as it does without a network."""

    def make(root: Path, train: bool, download: bool) -> object:
        print("Downloading http://…")
        raise RuntimeError("Error downloading\ntrain-images" if download else "Dataset not found.")

    with pytest.raises(InputError) as caught:
        names.read(make, "mnist", tmp_path / "mnist", True)
    message = str(caught.value)
    assert "\n" not in message
    assert str(tmp_path / "mnist" / "MNIST" / "raw") in message
    assert "--data-root" in message
    monkeypatch.setenv("GENKIT_DATA", "/data")
    assert names.data_root(None) == Path("/data")
    assert names.data_root(Path("/mine")) == Path("/mine")


def test_damaged_mnist_is_one_line(tmp_path: Path) -> None:
    """Oracle: the message; torchvision itself fails with whatever its parser meets."""
    raw = tmp_path / "mnist" / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for part in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (raw / f"{part}-ubyte").write_bytes(b"\x00\x00\x08\x03 not it")
    with pytest.raises(InputError, match=r"mnist in .* is damaged"):
        open_source("mnist", root=tmp_path)


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_failed_download_leaves_no_folders(tmp_path, monkeypatch, name):
    """Oracle: what stood there before; a root that was there stays, and so does one that holds something."""

    def offline(*args, **kwargs):
        raise OSError("no network")

    for module in ("mnist", "cifar", "utils"):
        target = f"torchvision.datasets.{module}.download_and_extract_archive"
        monkeypatch.setattr(target, offline)
    (tmp_path / "there").mkdir()
    for root in ("new/deep", "there"):
        with pytest.raises(InputError, match="cannot be downloaded"):
            names.load_named(name, "train", tmp_path / root, None)
    assert [p.name for p in tmp_path.rglob("*")] == ["there"]
