"""Autoencoders as commands: ae in its forms, reconstruct, fit-prior, sample prior, a VAE's eval-nll."""

import json
import os
import shutil
import subprocess
import sys

import pytest
import torch
from cli_tools import ENV, TINY_VAE, genkit
from PIL import Image

from genkit import io
from genkit.models.prior import load_prior

FP32 = ("--device", "cpu", "--precision", "fp32")


def answer(capfd, *arguments):
    """The JSON of a command that succeeds."""
    code, out, err = genkit(capfd, *arguments, "--json")
    assert code == 0, err
    return json.loads(out)


def refused(capfd, *arguments):
    """The one line of a refused command."""
    code, out, err = genkit(capfd, *arguments)
    lines = [line for line in err.splitlines() if line.startswith("genkit:")]
    assert (code, out) == (2, ""), err
    assert len(lines) == 1, err
    return lines[0]


def weights(run):
    return io.load_checkpoint(run).tensors


def test_reconstruct_measures_what_training_reported(work, capfd):
    """Oracle: the test metrics of `train ae`, on the same images with the same damage; fp32 sums."""
    command = (
        "train",
        "ae",
        "--latent",
        "6",
        "--corrupt",
        "saltpepper:0.2",
        *TINY_VAE,
        "--steps",
        "9",
        *FP32,
    )
    test = answer(capfd, *command, "-o", "runs/sp")["test"]
    found = answer(capfd, "reconstruct", "digits:test", "-m", "runs/sp", "-n", "0", "-o", "x.png")
    assert found["n"] > 100
    assert found["psnr"] == pytest.approx(test["psnr"], abs=1e-3)
    assert found["psnr_corrupted"] == pytest.approx(test["psnr_corrupted"], abs=1e-3)
    assert found["gain"] == pytest.approx(found["psnr"] - found["psnr_corrupted"], abs=1e-4)


def test_reconstruct_draws_rows(work, capfd):
    """Oracle: 16 columns of two rows for a VAE, of three where images are corrupted; one path on stdout."""
    for arguments, rows in ((("-m", "runs/vae"), 2), (("-m", "runs/ae"), 3)):
        code, out, err = genkit(capfd, "reconstruct", "digits", *arguments, "-o", "r.png")
        assert (code, out) == (0, "r.png\n"), err
        assert "dB over 16 images" in err
        with Image.open(work / "r.png") as image:
            side = (image.width - 2) // 16
            assert image.size == (16 * side + 2, rows * side + 2)
    assert "corrupted by mask:0.5, as in training" in err
    clean = answer(capfd, "reconstruct", "digits", "-m", "runs/ae", "-o", "r.png", "--corrupt", "none")
    assert "gain" not in clean
    damaged = answer(capfd, "reconstruct", "digits", "-m", "runs/vae", "-o", "r.png", "--corrupt", "mask:0.9")
    assert damaged["psnr_corrupted"] < 12


def test_reconstruct_folder(work, capfd):
    """Oracle: a picture an image and the comparison; a rerun makes none, other settings are refused."""
    command = ("reconstruct", "digits", "-m", "runs/ae", "-n", "5", "-o", "back/")
    first = answer(capfd, *command)
    names = sorted(p.name for p in (work / "back").glob("*.png"))
    assert names == [*(f"{i:06d}.png" for i in range(5)), "grid.png"]
    kept = (work / "back/000003.png").stat().st_mtime_ns
    assert answer(capfd, *command, "--batch-size", "2")["psnr"] == pytest.approx(first["psnr"], abs=1e-4)
    assert (work / "back/000003.png").stat().st_mtime_ns == kept
    assert "--fresh" in refused(capfd, *command, "--corrupt", "none")


def test_fit_prior_and_draw(work, capfd):
    """Oracle: a plain autoencoder is refused, then draws; image i of a seed whatever else is drawn; the
    picture and the folder know the prior; --prior own goes round it."""
    sample = ("sample", "prior", "-m", "runs/ae", *FP32)
    assert "genkit fit-prior runs/ae" in refused(capfd, *sample, "-o", "x.png")
    found = answer(capfd, "fit-prior", "runs/ae", "--components", "3")
    assert found["out"] == "runs/ae/prior.safetensors"
    assert (found["prior"], found["components"], found["source"]) == ("gmm", 3, "digits")
    assert found["kl_unit"] == pytest.approx(found["kl"] / 6)
    prior = load_prior(work / "runs/ae/prior.safetensors")
    assert prior.codec == io.load_checkpoint(work / "runs/ae").sha256
    assert prior.about["log_likelihood"] == found["log_likelihood"]
    for n, name in ((3, "a"), (7, "b")):
        code, _, err = genkit(capfd, *sample, "-n", n, "-o", f"{name}.safetensors")
        assert code == 0, err
        assert "3 components" in err
    a, b = (io.load_latents(work / f"{k}.safetensors", ("images",)).z for k in "ab")
    torch.testing.assert_close(a, b[:3])
    assert genkit(capfd, *sample, "-n", 3, "-o", "c.safetensors", "--prior", "own")[0] == 0
    assert not torch.equal(a, io.load_latents(work / "c.safetensors", ("images",)).z)
    assert genkit(capfd, *sample, "-n", 3, "-o", "img/")[0] == 0
    assert "prior:" in refused(capfd, *sample, "-n", 3, "-o", "img/", "--prior", "own")


def test_gaussian_prior_of_a_vae(work, capfd):
    """Oracle: one component; the codes of another seed are other draws of the posterior; -o elsewhere."""
    one, two = (
        answer(capfd, "fit-prior", "runs/vae", "--kind", "gaussian", "--seed", s, "-o", f"p{s}.safetensors")
        for s in (0, 1)
    )
    assert one["components"] == 1
    assert one["kl"] != two["kl"]
    means = ("--kind", "gaussian", "--mean", "-o", "p2.safetensors")
    assert answer(capfd, "fit-prior", "runs/vae", *means, "-n", "50")["n"] == 50
    code, _, err = genkit(capfd, "sample", "prior", "-m", "runs/vae", "-n", "2", "--prior", "p0.safetensors")
    assert code == 0
    assert "p0.safetensors (gaussian" in err


def test_a_prior_of_another_model(work, capfd):
    """Oracle: both hashes and the remedy, in one line; so for a prior left over from before more training."""
    answer(capfd, "fit-prior", "runs/ae", "--components", "2")
    shutil.copy(work / "runs/ae/prior.safetensors", work / "runs/vae/prior.safetensors")
    line = refused(capfd, "sample", "prior", "-m", "runs/vae", "-o", "x.png")
    assert "was fitted on another model" in line
    assert "genkit fit-prior runs/vae" in line
    assert not (work / "x.png").exists()


@pytest.mark.parametrize(
    "command, message",
    [
        ("train ae --sparsity 1 -o runs/new", "inside (0, 1), got 1"),
        ("train ae --sparsity 0 -o runs/new", "inside (0, 1), got 0"),
        ("train ae --sparsity-weight 3 -o runs/new", "add --sparsity"),
        ("train ae --corrupt blur:0.1 -o runs/new", "unknown corruption"),
        ("train ae --corrupt gaus:0.1 -o runs/new", "did you mean 'gaussian'"),
        ("train ae --corrupt mask:1.2 -o runs/new", "'mask:1.2'"),
        ("train ae --corrupt mask -o runs/new", "mask:0.5"),
        ("train ae --latent 4x3x3 -o runs/new", "does not fit 8x8"),
        ("train ae --data z.safetensors -o runs/new", "holds latents"),
        ("train vae --sigma 0.1 -o runs/new", "--recon gaussian"),
        ("train vae --recon gaussian --sigma 0 -o runs/new", "--sigma"),
        ("train vae --free-bits -1 -o runs/new", "--free-bits"),
        ("train vae --free-bits 1 --bottleneck none -o runs/new", "--bottleneck gaussian"),
        ("train vae --kl-warmup -1 -o runs/new", "--kl-warmup"),
        ("reconstruct digits -m runs/ddpm -o new.png", "does not serve"),
        ("reconstruct digits -m runs/ae -o new.gif", "no form of output"),
        ("reconstruct digits -m runs/ae --corrupt mask:0 -o new.png", "'mask:0'"),
        ("reconstruct z.safetensors -m runs/ae -o new.png", "takes images"),
        ("fit-prior runs/ddpm", "does not serve"),
        ("fit-prior runs/none", "does not exist"),
        ("fit-prior runs/ae --kind gmmm", "did you mean 'gmm'"),
        ("fit-prior runs/ae --kind gaussian --components 3", "--kind gmm"),
        ("fit-prior runs/ae --components 0", "--components"),
        ("fit-prior runs/ae -o new.png", "x.safetensors"),
        ("fit-prior runs/ae --data z.safetensors", "encodes images"),
        ("fit-prior runs/ae -n 3", "too few"),
        ("sample prior -m runs/vae --prior z.safetensors -o new.png", "holds latents, but prior"),
        ("sample prior -m runs/vae --prior none.safetensors -o new.png", "does not exist"),
        ("eval-nll digits -m runs/vae --samples 0", "--samples"),
        ("eval-nll z.safetensors -m runs/vae", "decode them first"),
        ("eval-nll digits -m runs/ae", "does not serve"),
    ],
)
def test_refusals(work, capfd, command, message):
    """Oracle: the words that name the value or the remedy; nothing is written."""
    assert message in refused(capfd, *command.split())
    assert not any((work / name).exists() for name in ("runs/new", "new.png", "runs/ae/prior.safetensors"))


def test_the_bound_of_a_vae(work, capfd):
    """Oracle: -ELBO = recon + KL; the bound of more samples is no looser; the lines of the text."""
    args = ("eval-nll", "digits", "-m", "runs/vae", "-n", "20", *FP32)
    found = answer(capfd, *args, "--samples", "20", "--binarise", "threshold")
    assert found["elbo"]["value"] == pytest.approx(found["recon"]["value"] + found["kl"]["value"])
    assert found["bound"]["value"] < found["elbo"]["value"]
    assert (found["n"], found["samples"], found["binarised"]) == (20, 20, "threshold")
    code, out, err = genkit(capfd, *args, "--samples", "2")
    assert code == 0
    assert "see --binarise" in err
    names = [line.split()[0] for line in out.splitlines()]
    assert names == ["source", "recon", "KL", "-ELBO", "IW,", "effective"]
    plain = ("train", "vae", "--bottleneck", "none", *TINY_VAE, "--steps", "1", *FP32, "-o", "runs/plain")
    assert genkit(capfd, *plain)[0] == 0
    assert "no posterior" in refused(capfd, "eval-nll", "digits", "-m", "runs/plain")


@pytest.mark.parametrize("kind", ["threshold", "sampled"])
def test_binarised_training_is_measured_so(work, capfd, kind):
    """Oracle: the same numbers as with --binarise; the test metric's ELBO is the bound of one sample, up to
    that sample's noise."""
    train = (
        "train",
        "vae",
        "--binarise",
        kind,
        "--latent",
        "2",
        *TINY_VAE,
        *FP32,
        "--steps",
        "4",
        "-o",
        f"runs/{kind}",
    )
    test = answer(capfd, *train)["test"]
    args = ("eval-nll", "digits:test", "-m", f"runs/{kind}", "--samples", "3", "-n", "100000")
    found = answer(capfd, *args)
    assert found["binarised"] == kind
    assert found == answer(capfd, *args, "--binarise", kind)
    assert found["kl"]["value"] == pytest.approx(test["kl"], rel=1e-4)
    assert found["elbo"]["value"] == pytest.approx(test["loss"], rel=1e-2)


def test_warm_up_resumes_bit_for_bit(work, capfd):
    """Oracle: the run that never stopped; the step is in the state, so beta goes on where it was."""
    train = ("train", "vae", "--kl-warmup", "8", "--free-bits", "0.01", "--latent", "3", *TINY_VAE, *FP32)
    train = (*train, "--decay", "none")
    for name, lengths in (("whole", (10,)), ("parts", (5, 10))):
        for steps in lengths:
            code, _, err = genkit(capfd, *train, "--steps", steps, "-o", f"runs/{name}")
            assert code == 0, err
    one, two = weights(work / "runs/whole"), weights(work / "runs/parts")
    assert all(torch.equal(one[k], two[k]) for k in one)
    log = [json.loads(x) for x in (work / "runs/whole/log.jsonl").read_text().splitlines()]
    assert log[0]["beta"] == pytest.approx((sum(range(8)) / 8 + 2) / 10)


@pytest.mark.parametrize(
    "command",
    [
        ("train", "vae", "--free-bits", "0.3", "--kl-warmup", "6"),
        ("train", "ae", "--sparsity", "0.1", "--corrupt", "mask:0.3"),
    ],
)
def test_two_processes_share_a_batch_mean(tmp_path, command):
    """Oracle: one process. Free bits and sparsity are functions of the batch's mean, over all processes;
    gradients are summed in another order, so 1e-5."""
    command = (*command, "--latent", "4", *TINY_VAE, "--steps", "10", "--lr", "1e-3", *FP32)
    port = str(20000 + os.getpid() % 20000)
    wide = ("-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", port)
    for how, name in (((), "one"), (wide, "two")):
        line = [sys.executable, *how, "-m", "genkit_cli", *command, "-o", f"runs/{name}"]
        done = subprocess.run(line, cwd=tmp_path, env=ENV, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    one, two = weights(tmp_path / "runs/one"), weights(tmp_path / "runs/two")
    assert all(torch.allclose(one[k], two[k], atol=1e-5) for k in one)
