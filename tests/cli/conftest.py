"""Small trained models, made once, and a folder of their own for every test."""

import shutil

import pytest
from cli_tools import TINY_DDPM, TINY_VAE
from genkit_cli.main import main


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A folder with runs/vae, ae (denoising), ddpm, cond (class-conditional), clf, guide (a noise-conditioned
    classifier), ldm and z.safetensors, all on digits (8x8)."""
    import os

    folder = tmp_path_factory.mktemp("trained")
    old = os.getcwd()
    os.chdir(folder)
    try:
        steps = ("--steps", "12", "--device", "cpu", "--precision", "fp32")
        # before the VAE: the newest run that serves `sample prior` is to be one with a prior
        denoising = ("--latent", "6", "--corrupt", "mask:0.5")
        assert main(["train", "ae", *denoising, *TINY_VAE, *steps, "-o", "runs/ae"]) == 0
        assert main(["train", "vae", "--latent", "2x4x4", *TINY_VAE, *steps, "-o", "runs/vae"]) == 0
        assert main(["train", "ddpm", *TINY_DDPM, *steps, "-o", "runs/ddpm"]) == 0
        # long enough that the classes make a difference
        conditional = ("--class-conditional", *TINY_DDPM, *steps, "--steps", "80", "--lr", "1e-2")
        assert main(["train", "ddpm", *conditional, "-o", "runs/cond"]) == 0
        assert main(["train", "classifier", "--width", "8", *steps, "-o", "runs/clf"]) == 0
        guide = ("--noise-conditioned", "--width", "8", *steps)
        assert main(["train", "classifier", *guide, "-o", "runs/guide"]) == 0
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
