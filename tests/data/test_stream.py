"""What does not fit in memory is decoded by workers, and is otherwise the same data."""

import itertools
import pickle
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from data_files import noise_image, png, save, zip_of

from genkit.data import open_source
from genkit.data.resident import Resident
from genkit.data.stream import Streaming
from genkit.errors import InputError

CPU = torch.device("cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten images of two sizes in two classes, with captions."""
    rows = ["file_name,text"]
    for i in range(10):
        name = f"{'ab'[i % 2]}/{i}.png"
        save(tmp_path / "in" / name, noise_image(i, 8, 8 + i % 3))
        rows.append(f"{name},image {i}")
    (tmp_path / "in" / "metadata.csv").write_text("\n".join(rows))
    return tmp_path / "in"


@pytest.mark.parametrize("packed", [False, True], ids=["folder", "zip"])
@pytest.mark.parametrize("workers", [0, 2])
def test_streaming_equals_resident(folder: Path, packed: bool, workers: int) -> None:
    """Oracle: the resident source of the same files; the index stream is endless and must be read lazily."""
    spec = str(zip_of(folder, folder.parent / "in.zip") if packed else folder)
    held, streamed = open_source(spec), open_source(spec, limit=100, workers=workers)
    assert isinstance(held, Resident)
    assert isinstance(streamed, Streaming)
    assert streamed.info._replace(fingerprint="") == held.info._replace(fingerprint="")
    assert streamed.notes == held.notes

    def endless() -> Iterator[torch.Tensor]:
        for start in itertools.count():
            yield torch.tensor([start % 10, (3 * start + 1) % 10, 4])

    for a, b in itertools.islice(zip(held.batches(endless(), CPU), streamed.batches(endless(), CPU)), 7):
        assert torch.equal(a.x, b.x)
        assert a.label is not None
        assert b.label is not None
        assert torch.equal(a.label, b.label)
        assert a.caption == b.caption
    assert torch.equal(held.uint8(torch.tensor([7, 0])), streamed.uint8(torch.tensor([7, 0])))


def test_damage_found_late_is_one_line(folder: Path) -> None:
    """Oracle: the message, from a worker too; `skip_bad` reads everything first and finds it early."""
    (folder / "a" / "4.png").write_bytes(png(8, 30))
    for workers in (0, 1):
        source = open_source(str(folder), limit=100, workers=workers)
        with pytest.raises(InputError, match=r"a/4\.png is damaged .* --skip-bad") as caught:
            list(source.batches([torch.arange(10)], CPU))
        assert "\n" not in str(caught.value)
    clean = open_source(str(folder), limit=100, workers=0, skip_bad=True)
    assert len(clean) == 9
    assert next(clean.batches([torch.arange(9)], CPU)).x.shape == (9, 3, 8, 8)


def test_fingerprint_follows_the_files(folder: Path) -> None:
    """Oracle: a changed pixel changes the file's time or checksum, hence the fingerprint."""

    def marks() -> list[str]:
        zipped = zip_of(folder, folder.parent / "in.zip")
        return [open_source(str(s), limit=100).info.fingerprint for s in (folder, zipped)]

    before = marks()
    assert marks() == before
    array = noise_image(0)
    array[0, 0, 0] ^= 1
    save(folder / "a" / "0.png", array)
    assert all(a != b for a, b in zip(before, marks()))


def test_decoder_pickles(folder: Path) -> None:
    """Oracle: the pixels before; DataLoader's spawned workers receive the data set by pickle."""
    source = open_source(str(zip_of(folder, folder.parent / "in.zip")), limit=100)
    assert isinstance(source, Streaming)
    copy = pickle.loads(pickle.dumps(source._decoder))
    assert (copy[3] == source._decoder[3]).all()
