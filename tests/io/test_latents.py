"""Latents files: everything a reader must know travels in them."""

import pytest
import torch

from genkit import io
from genkit.errors import InputError
from genkit.io.latents import Latents, latents_bytes


def make(n=5, **changes):
    base = Latents(
        torch.randn(n, 2, 3, 3, generator=torch.Generator().manual_seed(0)),
        labels=torch.arange(n),
        captions=[f"number {i}" for i in range(n)],
        shift=(0.5, -1.0),
        scale=(2.0, 0.25),
        codec="c" * 64,
        classes=("a", "b"),
        extra={"source": "mnist"},
    )
    return base._replace(**changes)


def test_round_trip(tmp_path):
    """Oracle: every field as written, from a file and from a pipe."""
    latents = make()
    io.save_latents(tmp_path / "z.safetensors", latents)
    for source in (tmp_path / "z.safetensors", latents_bytes(latents)):
        back = io.load_latents(source)
        assert torch.equal(back.z, latents.z)
        assert torch.equal(back.labels, latents.labels)
        assert back._replace(z=0, labels=0, sha256="") == latents._replace(z=0, labels=0)


def test_shards_are_one(tmp_path):
    """Oracle: the concatenation."""
    whole = make(7)
    for k, part in enumerate((slice(0, 4), slice(4, 7))):
        shard = whole._replace(z=whole.z[part], labels=whole.labels[part], captions=whole.captions[part])
        io.save_latents(tmp_path / f"{k:05d}.safetensors", shard)
    back = io.load_latents(tmp_path)
    assert torch.equal(back.z, whole.z)
    assert back.captions == whole.captions


def test_shards_of_two_codecs_are_refused(tmp_path):
    """Oracle: the second shard is named."""
    io.save_latents(tmp_path / "00000.safetensors", make())
    io.save_latents(tmp_path / "00001.safetensors", make(codec="d" * 64))
    with pytest.raises(InputError, match=r"00001\.safetensors was written by another codec"):
        io.load_latents(tmp_path)


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"scale": (1.0,)}, "one value per channel"),
        ({"scale": (1.0, 0.0)}, "scale positive"),
        ({"labels": torch.arange(3)}, "one label and one caption"),
        ({"z": torch.zeros(5, 2)}, r"\(N, C, H, W\)"),
        ({"z": torch.zeros(0, 2, 3, 3)}, "N > 0"),
    ],
)
def test_inconsistent_files(tmp_path, changes, message):
    """Oracle: what does not fit is said."""
    io.save_latents(tmp_path / "z.safetensors", make(**changes))
    with pytest.raises(InputError, match=message):
        io.load_latents(tmp_path / "z.safetensors")


def test_tokens_round_trip_and_are_checked(tmp_path):
    """Oracle: as written, from a file, a pipe and shards; another shape or type is refused by name."""
    tokens = torch.arange(45).view(5, 3, 3)
    latents = make(tokens=tokens)
    io.save_latents(tmp_path / "00000.safetensors", latents)
    for source in (tmp_path / "00000.safetensors", latents_bytes(latents)):
        assert torch.equal(io.load_latents(source).tokens, tokens)
    io.save_latents(tmp_path / "00001.safetensors", latents)
    assert torch.equal(io.load_latents(tmp_path).tokens, torch.cat([tokens, tokens]))
    io.save_latents(tmp_path / "00001.safetensors", make())
    with pytest.raises(InputError, match=r"00001\.safetensors was written by another codec or run"):
        io.load_latents(tmp_path)
    io.save_latents(tmp_path / "z.safetensors", make(tokens=tokens[:, :2]))
    with pytest.raises(
        InputError, match=r"'tokens' must be an int64 tensor .* \(5, 3, 3\), got .*\(5, 2, 3\)"
    ):
        io.load_latents(tmp_path / "z.safetensors")
