"""Small trained models, made once, and a folder of their own for every test."""

import shutil

import pytest
from cli_tools import TINY_DDPM, TINY_VAE
from genkit_cli.main import main


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A folder with runs/vae, runs/ddpm, runs/clf, z.safetensors and runs/ldm, all on digits (8x8)."""
    import os

    folder = tmp_path_factory.mktemp("trained")
    old = os.getcwd()
    os.chdir(folder)
    try:
        steps = ("--steps", "12", "--device", "cpu", "--precision", "fp32")
        assert main(["train", "vae", "--latent", "2x4x4", *TINY_VAE, *steps, "-o", "runs/vae"]) == 0
        assert main(["train", "ddpm", *TINY_DDPM, *steps, "-o", "runs/ddpm"]) == 0
        assert main(["train", "classifier", "--width", "8", *steps, "-o", "runs/clf"]) == 0
        assert main(["encode", "digits", "-m", "runs/vae", "-o", "z.safetensors"]) == 0
        assert main(["train", "ddpm", "--data", "z.safetensors", *TINY_DDPM, *steps, "-o", "runs/ldm"]) == 0
    finally:
        os.chdir(old)
    return folder


@pytest.fixture
def work(trained, tmp_path, monkeypatch):
    """A copy of `trained` that the test stands in."""
    copy = tmp_path / "work"
    shutil.copytree(trained, copy)
    monkeypatch.chdir(copy)
    return copy
