"""Latents files: everything a reader must know travels in them."""

import pytest
import torch

from genkit import io
from genkit.errors import InputError, RunError
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
        ({"scale": (1.0, 0.0)}, "scale must be positive"),
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


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"scale": '["1.0", "2.0"]'}, r"scale must be one value per channel \(2\), each a finite number"),
        ({"scale": "[1.0, Infinity]"}, "scale must be .* finite"),
        ({"scale": "5"}, "scale must be one value per channel"),
        ({"shift": "[NaN, 0.0]"}, "shift must be .* finite"),
        ({"shift": f"[1{'0' * 400}, 0.0]"}, "shift must be .* finite"),
        ({"classes": "3"}, "'classes' must be a JSON list of strings"),
        ({"captions": "[1, 2, 3, 4, 5]"}, "'captions' must be a JSON list of strings"),
        ({"extra": "[]"}, "'extra' must be a JSON object"),
    ],
)
def test_foreign_metadata(tmp_path, changes, message):
    """Oracle: metadata of another kind under a checksum that is right are refused by their name."""
    io.save_latents(tmp_path / "z.safetensors", make())
    tensors, metadata = io.load_tensors(tmp_path / "z.safetensors", ("latents",))
    kept = {k: v for k, v in metadata.items() if k not in ("genkit", "kind", "sha256", "checksum")}
    io.save_tensors(tmp_path / "z.safetensors", tensors, "latents", {**kept, **changes})
    with pytest.raises(InputError, match=rf"z\.safetensors: .*{message}"):
        io.load_latents(tmp_path / "z.safetensors")


def test_labels_are_whole_numbers(tmp_path):
    """Oracle: the type and shape are named."""
    io.save_latents(tmp_path / "z.safetensors", make())
    tensors, metadata = io.load_tensors(tmp_path / "z.safetensors", ("latents",))
    kept = {k: v for k, v in metadata.items() if k not in ("genkit", "kind", "sha256", "checksum")}
    io.save_tensors(tmp_path / "z.safetensors", {**tensors, "labels": torch.ones(5, 2)}, "latents", kept)
    with pytest.raises(InputError, match=r"'labels' must be an int64 tensor .* got torch.float32 \(5, 2\)"):
        io.load_latents(tmp_path / "z.safetensors")


def test_appending_under_a_file_fails_with_a_remedy(tmp_path):
    """Oracle: what `atomic` says of the same place."""
    (tmp_path / "file").write_text("")
    lines = []
    for write in (io.append_text, io.write_text):
        with pytest.raises(RunError, match="choose another -o") as caught:
            write(tmp_path / "file/log.jsonl", "line")
        lines.append(str(caught.value))
    assert lines[0] == lines[1]


def test_stdin_is_of_one_process(monkeypatch):
    """Oracle: the refusal, before a byte is read."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="- cannot be read by 2 processes; write a file and name it"):
        io.read_stdin()
