"""Safetensors files: what is written comes back, and what is wrong with a file is said in one line."""

import os
import pickle
import stat

import pytest
import safetensors.torch
import torch

from genkit import io
from genkit.errors import InputError, RunError
from genkit.io.tensors import tensor_bytes

TENSORS = {"w": torch.arange(600, dtype=torch.float32).reshape(20, 30), "n": torch.tensor([3])}


@pytest.fixture
def path(tmp_path):
    """A good file."""
    file = tmp_path / "x.safetensors"
    io.save_tensors(file, TENSORS, "checkpoint", {"model": "vae"})
    return file


def test_round_trip(path):
    """Oracle: the tensors and metadata that were written."""
    tensors, metadata = io.load_tensors(path, ("checkpoint",))
    assert torch.equal(tensors["w"], TENSORS["w"])
    assert metadata["model"] == "vae"


def test_stream_is_the_same_file(path):
    """Oracle: a pipe carries the tensors of the file."""
    tensors, _ = io.load_tensors(tensor_bytes(TENSORS, "checkpoint", {}), ("checkpoint",))
    assert torch.equal(tensors["w"], TENSORS["w"])


def test_strided_and_tied_tensors_are_written(tmp_path):
    """Oracle: values survive; the format itself refuses both."""
    w = torch.arange(12.0).reshape(3, 4)
    io.save_tensors(tmp_path / "t.safetensors", {"a": w, "b": w, "c": w.T}, "state", {})
    tensors, _ = io.load_tensors(tmp_path / "t.safetensors", ("state",))
    assert torch.equal(tensors["c"], w.T)


def test_every_truncation_is_refused(path):
    """Oracle: no prefix of a file is a file."""
    data = path.read_bytes()
    for length in (0, 5, 8, 50, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(InputError, match=str(path)):
            io.load_tensors(path, ("checkpoint",))


def test_every_bit_flip_is_refused(path):
    """Oracle: the checksum covers tensors and metadata; one flipped bit at 60 places along the file."""
    data = path.read_bytes()
    for place in range(0, len(data), max(1, len(data) // 60)):
        broken = bytearray(data)
        broken[place] ^= 0x10
        path.write_bytes(bytes(broken))
        with pytest.raises(InputError):
            io.load_tensors(path, ("checkpoint",))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_values_are_named(tmp_path, value):
    """Oracle: the tensor's name is in the message."""
    io.save_tensors(tmp_path / "n.safetensors", {"layer.bias": torch.tensor([1.0, value])}, "checkpoint", {})
    with pytest.raises(InputError, match=r"layer\.bias"):
        io.load_tensors(tmp_path / "n.safetensors", ("checkpoint",))


def test_foreign_files(tmp_path):
    """Oracle: a pickle, a text and another program's safetensors are each refused as what they are."""
    pickled = tmp_path / "p.safetensors"
    pickled.write_bytes(pickle.dumps({"a": list(range(100))}))
    text = tmp_path / "t.safetensors"
    text.write_text("hello, this is a text and no tensor file at all")
    other = tmp_path / "o.safetensors"
    safetensors.torch.save_file({"a": torch.zeros(2)}, str(other))
    for file, words in (
        (pickled, "not a safetensors"),
        (text, "not a safetensors"),
        (other, "not written by genkit"),
    ):
        with pytest.raises(InputError, match=words):
            io.load_tensors(file, ("checkpoint",))


def test_kind_is_checked(path):
    """Oracle: the message names what it is and what is needed."""
    with pytest.raises(InputError, match="holds checkpoint, but latents"):
        io.load_latents(path)


def test_missing_and_folder(tmp_path):
    """Oracle: each is named."""
    with pytest.raises(InputError, match="does not exist"):
        io.load_tensors(tmp_path / "none.safetensors", ("state",))
    with pytest.raises(InputError, match="is a folder"):
        io.read_metadata(tmp_path)


def test_digest_depends_on_names_types_shapes_and_values():
    """Oracle: every part of the description changes the hash; the order of the dictionary does not."""
    base = {"a": torch.zeros(2, 3), "b": torch.ones(1)}
    assert io.digest(base) == io.digest(dict(reversed(base.items())))
    others = (
        {"a2": base["a"], "b": base["b"]},
        {"a": base["a"].double(), "b": base["b"]},
        {"a": base["a"].reshape(3, 2), "b": base["b"]},
        {"a": base["a"] + 1, "b": base["b"]},
    )
    assert len({io.digest(o) for o in (base, *others)}) == 5


def test_failed_write_keeps_the_old_file(path, monkeypatch):
    """Oracle: the bytes before; and no temporary file stays. The disk fills up in the middle of the write."""
    before = path.read_bytes()

    def full(tensors, name, metadata):
        with open(name, "wb") as file:
            file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(safetensors.torch, "save_file", full)
    with pytest.raises(RunError, match="No space left"):
        io.save_tensors(path, TENSORS, "checkpoint", {})
    assert path.read_bytes() == before
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write into a read-only folder")
def test_read_only_folder(path):
    """Oracle: one line with the reason; the old file is intact."""
    before = path.read_bytes()
    path.parent.chmod(stat.S_IRUSR | stat.S_IXUSR)
    try:
        with pytest.raises(RunError, match="cannot write"):
            io.save_tensors(path, TENSORS, "checkpoint", {})
    finally:
        path.parent.chmod(stat.S_IRWXU)
    assert path.read_bytes() == before


def test_full_disk(tmp_path):
    """Oracle: the kernel's own full device."""
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    with pytest.raises(RunError, match="cannot write"):
        io.atomic(tmp_path / "x", lambda temporary: _to_full(temporary))
    assert list(tmp_path.iterdir()) == []


def _to_full(temporary):
    os.symlink("/dev/full", temporary)
    with open(temporary, "wb") as file:
        file.write(b"x" * 100_000)
