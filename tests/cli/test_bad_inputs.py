"""What is wrong with a request or an input: one line, exit 2, nothing written."""

import pickle

import pytest
import torch
from cli_tools import genkit

from genkit import io


def refused(capfd, *arguments):
    """The one line of a refused command."""
    code, out, err = genkit(capfd, *arguments)
    lines = [line for line in err.splitlines() if line.startswith("genkit:")]
    assert code == 2, err
    assert out == ""
    assert len(lines) == 1, err
    assert "Traceback" not in err
    return lines[0]


@pytest.mark.parametrize(
    "command, message",
    [
        ("trian vae", "did you mean 'train'"),
        ("train vea", "did you mean 'vae'"),
        ("sample dim", "did you mean 'ddim'"),
        ("train vae --latnt 3", "--latent"),
        ("train vae --latent 4x3x3 -o runs/new", "--latent 4x3x3 does not fit 8x8"),
        ("train vae --latent banana -o runs/new", "got 'banana'"),
        ("train vae --recon bec -o runs/new", "did you mean 'bce'"),
        ("train vae --data digts -o runs/new", "did you mean 'digits'"),
        ("train vae --data z.safetensors -o runs/new", "holds latents"),
        ("train ddpm --size 10 --multipliers 1,1,1 -o runs/new", "10x10"),
        ("train ddpm --lr nan -o runs/new", "--lr"),
        ("train ddpm --steps 5 --epochs 2 -o runs/new", "either --steps or --epochs"),
        ("train ddpm --device cuda:77 -o runs/new", "cuda:77"),
        ("train ddpm --data runs/vae -o runs/new", "runs/vae"),
        ("train ddpm -o z.safetensors", "is a file"),
        ("sample ddim -m z.safetensors -o new.png", "holds latents, but checkpoint"),
        ("sample ddim -m runs/vae -o new.png", "does not serve `sample ddim`"),
        ("sample ddim -m runs/none -o new.png", "runs/none does not exist"),
        ("sample ddim -m runs/ddpm -o new.jpg", "no form of output"),
        ("sample ddim -m runs/ddpm --eta 1.5 -o new.png", "eta"),
        ("sample ddim -m runs/ddpm --steps 0 -o new.png", "steps"),
        ("sample ddim -m runs/ddpm --spacing karas -o new.png", "did you mean 'karras'"),
        ("decode runs/vae/model.safetensors -m runs/vae -o new/", "holds checkpoint, but latents"),
        ("decode none.safetensors -m runs/vae -o new/", "does not exist"),
        ("decode digits -m runs/vae -o new/", "digits does not exist; decode takes a latents file"),
        ("encode z.safetensors -m runs/vae -o new.safetensors", "encode takes images"),
        ("encode digits -m runs/vae --seed 1 -o new.safetensors", "--seed 1 is read by --sample only"),
        (
            "encode digits -m runs/ae --sample -o new.safetensors",
            "--sample draws from a posterior, and",
        ),
        ("invert digits -m runs/ldm -o new.safetensors", "encode the images first"),
        ("interpolate a b -m runs/ddpm -o new.png", "nor is it a seed"),
        ("eval-fid digits digits --features runs/vae", "does not serve `eval-fid`"),
        ("eval-fid digits digits --features runs/clf --metrics fd", "did you mean 'fid'"),
        ("eval-fid z.safetensors digits --features runs/clf", "latents"),
        ("info none", "does not exist"),
        ("info .", "holds no checkpoint"),
    ],
)
def test_requests(work, capfd, command, message):
    """Oracle: the words that name the value or the remedy."""
    assert message in refused(capfd, *command.split())
    assert not any(
        (work / name).exists() for name in ("new.png", "new.safetensors", "new", "runs/new", "new.jpg")
    )


@pytest.mark.parametrize("damage", ["truncated", "flipped", "pickle", "nan", "foreign"])
@pytest.mark.parametrize(
    "command",
    ["sample ddim -m runs/ddpm -o new.png", "info runs/ddpm", "eval-fid digits digits --features runs/ddpm"],
)
def test_damaged_checkpoints(work, capfd, damage, command):
    """Oracle: the file is named, whatever reads it."""
    path = work / "runs/ddpm/model.safetensors"
    data = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(data[: len(data) * 2 // 3])
    elif damage == "flipped":
        path.write_bytes(data[:-5] + bytes([data[-5] ^ 1]) + data[-4:])
    elif damage == "pickle":
        path.write_bytes(pickle.dumps({"a": 1}))
    elif damage == "nan":
        tensors, metadata = io.load_tensors(path, ("checkpoint",))
        name = next(iter(tensors))
        tensors[name] = torch.full_like(tensors[name], float("nan"))
        kept = {k: v for k, v in metadata.items() if k not in ("genkit", "kind", "sha256", "checksum")}
        io.save_tensors(path, tensors, "checkpoint", kept)
    else:
        path.write_text("not at all")
    assert "runs/ddpm/model.safetensors" in refused(capfd, *command.split())
    assert not (work / "new.png").exists()


def test_stdin_with_nothing(work, capfd, monkeypatch):
    """Oracle: an empty pipe is a failed command before it."""
    import io as stdio
    import sys

    monkeypatch.setattr(
        sys, "stdin", type("In", (), {"isatty": lambda s: False, "buffer": stdio.BytesIO(b"")})()
    )
    assert "stdin held nothing" in refused(capfd, "decode", "-", "-m", "runs/vae", "-o", "new/")


def test_traceback_on_request(work, capfd, monkeypatch):
    """Oracle: GENKIT_DEBUG=1 lets the error through."""
    monkeypatch.setenv("GENKIT_DEBUG", "1")
    with pytest.raises(ValueError, match="runs/none"):
        genkit(capfd, "sample", "ddim", "-m", "runs/none")
