"""The quantised and adversarial families as commands: tokens, samples, refusals, phases that survive."""

import csv
import itertools
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cli_tools import ENV, genkit, start
from test_survive import FP32, wait_for, weights

from genkit import io
from genkit.codecs.priors import PriorBottleneck
from genkit.io.latents import save_latents
from genkit.models.load import load_model

SMALL = ("--width", "8", "--batch-size", "32", *FP32)
FAMILIES = {
    "vqvae": ("--blocks", "0", "--codes", "32", *SMALL),
    "vqgan": ("--blocks", "0", "--codes", "32", "--disc-start", "4", "--disc-width", "8", *SMALL),
    "vae": ("--adversarial", "--latent", "4x4x4", "--disc-start", "4", "--disc-width", "8", *SMALL),
    "gan": ("--latent", "8", "--spectral-norm", *SMALL),
    "aae": ("--prior", "mixture", "--class-conditional", *SMALL),
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder of its own for every test."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(capfd, *arguments):
    code, out, err = genkit(capfd, *arguments)
    assert code == 0, err
    return out, err


def refused(capfd, *arguments):
    code, _, err = genkit(capfd, *arguments)
    assert code == 2, err
    assert "Traceback" not in err
    return err


def images(name):
    return io.load_latents(Path(name), ("images",)).z


def test_tokens_there_and_back(capfd):
    """Oracle: tokens name the codes that the latents consist of, in shards too; decoding either gives one
    picture, and tokens come first; outside the codebook they are refused."""
    run(capfd, "train", "vqvae", *FAMILIES["vqvae"], "--steps", "20", "-o", "runs/vq")
    last = json.loads(Path("runs/vq/log.jsonl").read_text().splitlines()[-1])
    assert {"test_perplexity", "test_live", "test_psnr"} <= set(last)
    run(capfd, "encode", "digits:test", "-m", "runs/vq", "-o", "z.safetensors")
    z, book = io.load_latents(Path("z.safetensors")), weights(Path("runs/vq"))["bottleneck.codebook"]
    assert z.tokens.shape == (len(z.z), *z.z.shape[2:])
    torch.testing.assert_close(z.z, book[z.tokens].permute(0, 3, 1, 2))
    run(capfd, "encode", "digits:test", "-m", "runs/vq", "-o", "shards/")
    assert torch.equal(io.load_latents(Path("shards")).tokens, z.tokens)
    save_latents(Path("plain.safetensors"), z._replace(tokens=None))
    save_latents(Path("blank.safetensors"), z._replace(z=torch.zeros_like(z.z)))
    for name in ("z", "plain", "blank"):
        run(capfd, "decode", f"{name}.safetensors", "-m", "runs/vq", "-o", f"{name}-x.safetensors")
        assert torch.equal(images(f"{name}-x.safetensors"), images("z-x.safetensors"))
    for wrong in (32, -1):
        tokens = z.tokens.clone()
        tokens[3, 1, 1] = wrong
        save_latents(Path("bad.safetensors"), z._replace(tokens=tokens))
        err = refused(capfd, "decode", "bad.safetensors", "-m", "runs/vq", "-o", "x.png")
        assert f"bad.safetensors: token {wrong} is outside the codec's codebook of 32 codes" in err


def test_decoded_folder_names_its_classes(capfd):
    """Oracle: the labels of the source, one line a picture."""
    run(capfd, "train", "vqvae", *FAMILIES["vqvae"], "--steps", "2", "-o", "runs/vq")
    run(capfd, "encode", "digits:test", "-m", "runs/vq", "-o", "z.safetensors")
    run(capfd, "decode", "z.safetensors", "-m", "runs/vq", "-o", "back/")
    z = io.load_latents(Path("z.safetensors"))
    with Path("back/metadata.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == [z.classes[k] for k in z.labels.tolist()]
    assert rows[5]["file_name"] == "000005.png"


def test_a_diffusion_model_of_quantised_latents(capfd):
    """Oracle: it trains on them and its samples decode, to pictures of codes in the codebook."""
    run(capfd, "train", "vqvae", *FAMILIES["vqvae"], "--steps", "5", "-o", "runs/vq")
    run(capfd, "encode", "digits", "-m", "runs/vq", "-o", "z.safetensors")
    tiny = ("--width", "8", "--multipliers", "1,1", "--blocks", "1", "--batch-size", "16", "--steps", "3")
    run(capfd, "train", "ddpm", "--data", "z.safetensors", *tiny, *FP32, "-o", "runs/ldm")
    run(capfd, "sample", "ddim", "-m", "runs/ldm", "-n", "4", "--steps", "2", "-o", "s.safetensors")
    run(capfd, "decode", "s.safetensors", "-m", "runs/vq", "-o", "d.safetensors")
    codec, z = load_model(Path("runs/vq")).module, io.load_latents(Path("s.safetensors")).z
    with torch.inference_mode():
        snapped = codec.decode(codec.bottleneck.snap(z))
    assert torch.allclose(images("d.safetensors"), snapped, atol=1e-5)


@pytest.mark.parametrize("loss", ["nonsaturating", "hinge", "wgan-gp"])
def test_gan_samples_and_interpolates(capfd, loss):
    """Oracle: pictures of the data's size; the ends of a path are the seeds' own pictures; no critic in the
    checkpoint; images cannot be encoded."""
    run(capfd, "train", "gan", "--gan-loss", loss, *FAMILIES["gan"], "--steps", "6", "-o", "runs/g")
    assert not [k for k in weights(Path("runs/g")) if "critic" in k]
    run(capfd, "sample", "prior", "-m", "runs/g", "-n", "5", "-o", "x.safetensors")
    assert images("x.safetensors").shape == (5, 1, 8, 8)
    run(capfd, "interpolate", "0", "1", "-m", "runs/g", "-n", "3", "-o", "way/")
    run(capfd, "sample", "prior", "-m", "runs/g", "-n", "1", "-o", "one/")
    assert Path("way/000000.png").exists()
    err = refused(capfd, "interpolate", "one/000000.png", "one/000000.png", "-m", "runs/g")
    assert "cannot encode images; give two seeds" in err


@pytest.mark.parametrize("prior", ["gaussian", "mixture", "swiss-roll"])
def test_aae_serves_the_verbs_of_a_codec(capfd, prior):
    """Oracle: codes of the prior's size, pictures of the data's."""
    run(capfd, "train", "aae", *SMALL, "--prior", prior, "--steps", "4", "-o", "runs/a")
    run(capfd, "encode", "digits:test", "-m", "runs/a", "-o", "z.safetensors")
    assert io.load_latents(Path("z.safetensors")).z.shape[1] == (8 if prior == "gaussian" else 2)
    run(capfd, "decode", "z.safetensors", "-m", "runs/a", "-o", "z.png")
    run(capfd, "sample", "prior", "-m", "runs/a", "-n", "3", "-o", "x.safetensors")
    assert images("x.safetensors").shape == (3, 1, 8, 8)
    run(capfd, "interpolate", "0", "1", "-m", "runs/a", "-o", "way.png")


def test_the_plane_of_a_mixture_reaches_as_far_as_it(capfd):
    """Oracle: the largest of the prior's own draws."""
    run(capfd, "train", "aae", *SMALL, "--prior", "mixture", "--steps", "2", "-o", "runs/a")
    out, _ = run(capfd, "plot", "manifold", "-m", "runs/a", "-n", "3", "-o", "m.png", "--json")
    far = PriorBottleneck("mixture").draw(0, torch.arange(2000), (2, 1, 1)).abs().max().item()
    assert json.loads(out)["values"] == pytest.approx([-far, 0, far])


def test_a_critic_that_comes_too_late_is_said(capfd):
    """Oracle: the warning, for a run that ends before its start, and only then."""
    short = ("train", "vae", "--adversarial", *SMALL, "--steps", "2")
    _, err = run(capfd, *short, "-o", "runs/late")
    assert "warning: the critic starts at step 1000 and this run ends at 2" in err
    _, err = run(capfd, *short, "--disc-start", "1", "-o", "runs/due")
    assert "warning: the critic" not in err


def test_curves_of_runs_with_other_numbers(capfd):
    """Oracle: the run without the number is left out and named; the other is drawn."""
    for family in ("vqvae", "gan"):
        run(
            capfd,
            "train",
            family,
            *FAMILIES[family],
            "--steps",
            "2",
            "--log-every",
            "0",
            "-o",
            f"runs/{family}",
        )
    plot = ("plot", "curves", "runs/vqvae", "runs/gan", "--key", "loss", "-o", "c.png", "--json")
    out, err = run(capfd, *plot)
    assert [line["run"] for line in json.loads(out)["runs"]] == ["runs/vqvae"]
    assert "runs/gan logs no 'loss'" in err


def test_a_prior_for_tokens_is_refused(capfd):
    """Oracle: nothing could be drawn from it."""
    run(capfd, "train", "vqvae", *FAMILIES["vqvae"], "--steps", "2", "-o", "runs/vq")
    assert "`sample prior` does not draw from" in refused(capfd, "fit-prior", "runs/vq")


def test_vqgan_with_a_classifier(capfd, trained):
    """Oracle: perceptual distance, critic and adaptive weight in the log; other images are refused."""
    clf = trained / "runs/clf"
    run(
        capfd,
        *("train", "vqgan", *FAMILIES["vqgan"], "--perceptual", clf, "--steps", "8", "--log-every", "0"),
        *("-o", "runs/q"),
    )
    lines = [json.loads(line) for line in Path("runs/q/log.jsonl").read_text().splitlines()]
    assert "perceptual" in lines[0]
    assert "critic" not in lines[0]
    assert {"critic", "accuracy", "generator", "balance"} <= set(lines[7])
    assert lines[7]["balance"] > 0
    assert not [k for k in io.load_tensors(Path("runs/q/state.safetensors"), ("state",))[0] if "percep" in k]
    colour = ("train", "vqgan", "--data", "shapes", *SMALL, "--steps", "1", "-o", "runs/r")
    assert "is a classifier of images of 1 channels" in refused(capfd, *colour, "--perceptual", clf)
    assert "is a vae; give a classifier" in refused(capfd, *colour, "--perceptual", trained / "runs/vae")


def test_a_judged_vae(capfd, trained):
    """Oracle: the critic's numbers in the log from its start on, the ELBO's throughout; no critic in the
    checkpoint, which serves as any VAE does; a distance without a critic, too."""
    clf = ("--perceptual", trained / "runs/clf")
    run(capfd, "train", "vae", *FAMILIES["vae"], *clf, "--steps", "8", "--log-every", "0", "-o", "runs/v")
    lines = [json.loads(line) for line in Path("runs/v/log.jsonl").read_text().splitlines()]
    assert {"kl", "recon", "perceptual"} <= set(lines[0])
    assert "critic" not in lines[0]
    assert {"kl", "recon", "perceptual", "critic", "generator", "balance"} <= set(lines[7])
    assert "test_perceptual" in lines[-1]
    assert not [k for k in weights(Path("runs/v")) if not k.startswith(("encoder", "decoder"))]
    run(capfd, "encode", "digits:test", "-m", "runs/v", "-o", "z.safetensors")
    run(capfd, "sample", "prior", "-m", "runs/v", "-n", "2", "-o", "x.safetensors")
    assert images("x.safetensors").shape == (2, 1, 8, 8)
    run(capfd, "train", "vae", *SMALL, *clf, "--steps", "2", "--log-every", "0", "-o", "runs/p")
    lines = [json.loads(line) for line in Path("runs/p/log.jsonl").read_text().splitlines()]
    assert "perceptual" in lines[0]
    assert "critic" not in lines[1]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("vae", "--disc-start", "5"), "--disc-start 5 is read by --adversarial only"),
        (("vae", "--spectral-norm"), "--spectral-norm is read by --adversarial only"),
        (
            ("vae", "--adversarial", "--perceptual-weight", "2"),
            "--perceptual-weight 2 is read by --perceptual only",
        ),
        (("vqvae", "--latent", "16x5x5"), "--latent 16x5x5 does not fit 8x8 images"),
        (("vqvae", "--codes", "1"), "--codes"),
        (("vqgan", "--perceptual", "lpips"), "lpips needs images of 16 pixels or more"),
        (("vqgan", "--perceptual", "nowhere"), "nowhere does not exist"),
        (("vqgan", "--disc-depth", "5"), "--disc-depth 5 halves 8x8 images of digits too often"),
        (("gan", "--gan-loss", "lsgan"), "--gan-loss"),
        (("aae", "--prior", "mixture", "--latent", "8"), "--prior mixture is of codes of 2 units"),
        (("aae", "--class-conditional"), "--prior gaussian has no parts for classes"),
        (("aae", "--prior", "mixture", "--class-conditional", "--data", "shapes"), "10 parts and shapes 6"),
    ],
)
def test_bad_requests(capfd, arguments, message):
    """Oracle: exit 2 and a line that names the value."""
    assert message in refused(capfd, "train", *arguments, "--steps", "1", "-o", "runs/x")


def state(run):
    """Weights, averages, critics and moments of a run."""
    return io.load_tensors(Path(run) / "state.safetensors", ("state",))[0]


STEPS = ("--steps", "60", "--log-every", "0")


@pytest.mark.parametrize("family", FAMILIES)
def test_stopped_and_resumed_is_bit_identical(capfd, monkeypatch, family):
    """Oracle: all of the state of an uninterrupted run, bit for bit. Stops fall before and after the start of
    the critic and of a look for dead codes."""
    command = ("train", family, *FAMILIES[family], *STEPS)
    run(capfd, *command, "-o", "runs/whole")
    for stop in (3, 55):
        count = itertools.count(1)
        with monkeypatch.context() as patch:
            patch.setattr("genkit_cli.console.Interrupt.__call__", lambda _, c=count, s=stop: next(c) >= s)
            code, _, err = genkit(capfd, *command, "-o", "runs/cut")
        assert code == 130, err
        assert "stopped at step" in err
    run(capfd, *command, "-o", "runs/cut")
    whole, cut = state("runs/whole"), state("runs/cut")
    assert whole.keys() == cut.keys()
    assert all(torch.equal(whole[k], cut[k]) for k in whole)


def test_kill_9_between_two_phases(folder):
    """Oracle: as above, for a process that had no time to say goodbye."""
    command = ("train", "vqgan", *FAMILIES["vqgan"], *STEPS)
    assert start(*command, "-o", "runs/whole", cwd=folder).wait() == 0
    process = start(*command, "-o", "runs/cut", "--save-every", "0", cwd=folder)
    log = folder / "runs/cut/log.jsonl"
    assert wait_for(lambda: process.poll() is not None or (log.exists() and len(log.read_text()) > 1000))
    process.kill()
    process.wait()
    assert start(*command, "-o", "runs/cut", cwd=folder).wait() == 0
    whole, cut = state("runs/whole"), state("runs/cut")
    assert all(torch.equal(whole[k], cut[k]) for k in whole)


FEW = ("--steps", "12", "--lr", "1e-4", "--warmup", "0")
SEVERAL = """
import os, sys
from genkit_cli.main import main
for line in open(sys.argv[1]):
    os.environ["MASTER_PORT"], *sys.argv[1:] = line.split()
    if main(sys.argv[1:]):
        sys.exit(1)
"""


def free_port():
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return probe.getsockname()[1]


def test_two_processes_train_like_one(capfd, folder):
    """Oracle: one process; sums in another order stay within 1e-5 over 12 steps of a small learning rate.

    One pair of processes, started as torchrun would, trains all families in turn: starting costs the most.
    """
    lines = []
    for family, options in FAMILIES.items():
        command = ("train", family, *options, *FEW)
        run(capfd, *command, "-o", f"runs/one-{family}")
        lines.append(" ".join((str(free_port()), *command, "-o", f"runs/two-{family}")))
    (folder / "lines").write_text("\n".join(lines))
    pair = []
    for rank in ("0", "1"):
        env = {**ENV, "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": "2", "MASTER_ADDR": "localhost"}
        launch = [sys.executable, "-c", SEVERAL, "lines"]
        pair.append(subprocess.Popen(launch, cwd=folder, env=env, stderr=subprocess.PIPE, text=True))
    for process in pair:
        _, err = process.communicate(timeout=300)
        assert process.returncode == 0, err
    for family in FAMILIES:
        one, two = state(f"runs/one-{family}"), state(f"runs/two-{family}")
        for key in one:
            if key.startswith(("weights.", "ema.")):
                assert torch.allclose(one[key], two[key], atol=1e-5), (family, key)
