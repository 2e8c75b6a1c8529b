"""genkit invert on models with classes, its report, and interpolation between what it gives."""

import json
from pathlib import Path

import pytest
import torch
from cli_tools import genkit
from genkit_cli.replay import null_of, replay_of
from PIL import Image

from genkit import io
from genkit.data import open_source
from genkit.diffusion.guidance import classifier_free
from genkit.diffusion.samplers import ddim
from genkit.diffusion.schedules import times
from genkit.errors import InputError
from genkit.models.load import load_model

COND = ("-m", "runs/cond", "--device", "cpu")
PIVOTAL = (*COND, "-n", "3", "--steps", "5", "--pivotal", "--guidance", "4", "--inner", "2")


def noise_of(path="noise.safetensors"):
    return io.load_latents(Path(path), ("noise",))


def test_pivotal_report_and_replay(work, capfd):
    """Oracle: sampling under the file's labels, guidance and null embeddings gives the images that the
    report's PSNR was measured on; the labels are the source's."""
    code, out, err = genkit(capfd, "invert", "digits:test", *PIVOTAL, "--report", "r.png", "--json")
    assert code == 0, err
    report = json.loads(out)
    assert set(report) == {"out", "n", "psnr_db", "psnr_guided_db", "psnr_null_text_db", "report"}
    assert "invert, image steps 15/15" in err
    assert "report 9/9" in err
    loaded, noise = load_model(work / "runs/cond"), noise_of()
    replay, index = replay_of(noise, "noise.safetensors", loaded), torch.arange(3)
    source = open_source("digits:test")
    assert torch.equal(replay.labels, source.labels[:3])
    assert replay.nulls.shape[:2] == (3, 5)
    assert (replay.steps, replay.guidance) == (5, 4.0)
    model = loaded.module
    null = null_of(replay, loaded, index, torch.device("cpu"))
    denoise = classifier_free(model, replay.labels, null, replay.guidance)
    with torch.inference_mode():
        *_, end = ddim(denoise, model.schedule, noise.z, times(5))
    x = next(iter(source.batches(iter([index]), torch.device("cpu")))).x
    mse = (end.x.clamp(-1, 1) - x).square().flatten(1).mean(dim=1)
    found = (10 * torch.log10(4 / mse)).mean().item()
    assert found == pytest.approx(report["psnr_null_text_db"], abs=0.01)
    with Image.open(work / "r.png") as image:
        assert image.height > 4 * 22
    assert null_of(replay, loaded, index, torch.device("cpu"), guidance=2.0) is None


def psnr_of(capfd, *options, source="digits:test"):
    """The mean PSNR of `sample ddim --noise noise.safetensors` against the images inverted."""
    command = ("sample", "ddim", *COND, "--precision", "fp32", "--noise", "noise.safetensors")
    code, _, err = genkit(capfd, *command, *options, "-o", "back.safetensors")
    assert code == 0, err
    back = io.load_latents(Path("back.safetensors"), ("images",)).z
    images = open_source(source).batches(iter([torch.arange(len(back))]), torch.device("cpu"))
    mse = (back.clamp(-1, 1) - next(iter(images)).x).square().flatten(1).mean(dim=1)
    return (10 * torch.log10(4 / mse)).mean().item(), err


def test_sample_replays_the_noise(work, capfd):
    """Oracle: the report's PSNRs, with the file's own steps, labels, guidance and null embeddings unless
    others are given."""
    _, out, _ = genkit(capfd, "invert", "digits:test", *PIVOTAL, "--report", "r.png", "--json")
    report = json.loads(out)
    found, err = psnr_of(capfd)
    assert found == pytest.approx(report["psnr_null_text_db"], abs=0.01)
    assert "note: the noise" not in err
    edited, _ = psnr_of(capfd, "--label", "8")
    assert edited != pytest.approx(found, abs=1e-4)
    _, err = psnr_of(capfd, "--guidance", "2", "--steps", "4")
    assert "inverted with --steps 5, and is sampled with 4" in err
    assert "null embeddings are for --guidance 4 and are left out" in err


def test_noise_of_the_null_class_is_replayed(work, capfd):
    """Oracle: the report's round trip."""
    genkit(capfd, "sample", "ddim", "-m", "runs/ddpm", "-n", "2", "--steps", "1", "-o", "img.safetensors")
    command = ("invert", "img.safetensors", *COND, "--steps", "2", "--report", "r.png", "--json")
    report = json.loads(genkit(capfd, *command)[1])
    assert psnr_of(capfd, source="img.safetensors")[0] == pytest.approx(report["psnr_db"], abs=0.01)


def test_a_classifier_needs_the_class_that_noise_does_not_say(work, capfd):
    """Oracle: exit 2 with the remedy, where the noise is of the null class; success with it."""
    genkit(capfd, "sample", "ddim", "-m", "runs/ddpm", "-n", "2", "--steps", "1", "-o", "img.safetensors")
    assert genkit(capfd, "invert", "img.safetensors", "-m", "runs/cond", "--steps", "2")[0] == 0
    draw = ("sample", "ddim", "-m", "runs/cond", "--noise", "noise.safetensors", "--classifier", "runs/guide")
    code, out, err = genkit(capfd, *draw)
    assert (code, out) == (2, "")
    assert "--classifier needs --label" in err.splitlines()[-1]
    assert genkit(capfd, *draw, "--label", "3")[0] == 0


def test_plain_invert_uses_the_labels(work, capfd):
    """Oracle: the source's labels, those of --label in turn, and the null class with a note where there are
    none; no null embeddings."""
    command = ("invert", "digits:test", *COND, "-n", "3", "--steps", "2")
    assert genkit(capfd, *command)[0] == 0
    assert torch.equal(noise_of().labels, open_source("digits:test").labels[:3])
    assert noise_of().nulls is None
    assert genkit(capfd, *command, "--label", "7,2")[0] == 0
    assert noise_of().labels.tolist() == [7, 2, 7]
    genkit(capfd, "sample", "ddim", "-m", "runs/ddpm", "-n", "2", "--steps", "1", "-o", "img.safetensors")
    code, _, err = genkit(capfd, "invert", "img.safetensors", *COND, "--steps", "2")
    assert (code, noise_of().labels.tolist()) == (0, [10, 10])
    assert "img.safetensors has no labels, so the null class is used" in err


def test_plain_invert_shows_what_guidance_does(work, capfd):
    """Oracle: the row of guidance without the one of null-text, and a word on --pivotal; at guidance 1 the
    round trip alone."""
    command = ("invert", "digits:test", *COND, "-n", "2", "--steps", "2", "--report", "r.png", "--json")
    code, out, err = genkit(capfd, *command, "--guidance", "3")
    assert code == 0
    assert set(json.loads(out)) == {"out", "n", "psnr_db", "psnr_guided_db", "report"}
    assert "--pivotal" in err
    assert (noise_of().extra or {})["guidance"] == 1
    assert set(json.loads(genkit(capfd, *command)[1])) == {"out", "n", "psnr_db", "report"}


def test_batches_change_nothing(work, capfd):
    """Oracle: the noise and null embeddings of one batch, to the rounding that Adam passes on."""
    for name, size in (("a", "1"), ("b", "3")):
        command = ("invert", "digits:test", *PIVOTAL, "--batch-size", size, "-o", f"{name}.safetensors")
        assert genkit(capfd, *command)[0] == 0
    a, b = noise_of("a.safetensors"), noise_of("b.safetensors")
    assert (a.z - b.z).abs().max() < 1e-4
    assert (a.nulls - b.nulls).abs().max() < 2e-3


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("-m", "runs/ddpm", "--pivotal", "--guidance", "4"), "--pivotal needs a class-conditional model"),
        (("-m", "runs/ddpm", "--guidance", "4"), "--guidance needs a class-conditional model"),
        (("-m", "runs/ddpm", "--label", "3"), "--label needs a class-conditional model"),
        ((*COND, "--pivotal"), "nothing to do at --guidance 1"),
        ((*COND, "--pivotal", "--guidance", "4", "--precision", "bf16"), "--pivotal fails in bf16"),
        ((*COND, "--label", "12"), "--label 12 is out of range"),
        ((*COND, "--report", "r.txt"), "r.txt"),
        ((*COND, "--pivotal", "--guidance", "4", "--inner", "0"), "inner"),
    ],
)
def test_wrong_requests(work, capfd, arguments, message):
    """Oracle: exit 2, one line with the value, and no file."""
    code, out, err = genkit(capfd, "invert", "digits:test", "-n", "2", "--steps", "2", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert "Traceback" not in err
    assert not (work / "noise.safetensors").exists()


def test_pivotal_needs_labels(work, capfd):
    """Oracle: exit 2 where the source has none, and success once --label gives them."""
    genkit(capfd, "sample", "ddim", "-m", "runs/ddpm", "-n", "2", "--steps", "1", "-o", "img.safetensors")
    code, _, err = genkit(capfd, "invert", "img.safetensors", *PIVOTAL)
    assert code == 2
    assert "img.safetensors has no labels; give its images' classes with --label" in err
    assert genkit(capfd, "invert", "img.safetensors", *PIVOTAL, "--label", "3")[0] == 0
    assert noise_of().labels.tolist() == [3, 3]


def test_null_embeddings_that_do_not_fit_are_refused(work, capfd):
    """Oracle: a row too few, one number an image, and another count of steps than the file says."""
    genkit(capfd, "invert", "digits:test", *PIVOTAL)
    noise, loaded = noise_of(), load_model(work / "runs/cond")
    for nulls in (noise.nulls[:2], noise.nulls[:, 0]):
        io.save_latents(work / "bad.safetensors", noise._replace(nulls=nulls))
        with pytest.raises(InputError, match=r"bad.safetensors: 'nulls' must be"):
            noise_of("bad.safetensors")
    with pytest.raises(InputError, match="does not say how"):
        replay_of(noise._replace(nulls=noise.nulls[:, :4]), "bad", loaded)
    wrong = [
        (noise._replace(z=noise.z[..., :4]), "shape"),
        (noise._replace(nulls=noise.nulls[..., :5]), "embeddings of 5 numbers"),
        (noise._replace(labels=None), "no classes"),
    ]
    for bad, message in wrong:
        with pytest.raises(InputError, match=message):
            replay_of(bad, "bad", loaded)
    with pytest.raises(InputError, match="labels that its model does not know"):
        replay_of(noise._replace(labels=noise.labels + 20), "bad", loaded)


INTERPOLATE = ("-n", "3", "--steps", "3", "--device", "cpu")


def frames(capfd, *arguments):
    code, _, err = genkit(capfd, "interpolate", *arguments, *INTERPOLATE, "-o", "f/", "--fresh")
    assert code == 0, err
    return [bytes(Image.open(f"f/{i:06d}.png").tobytes()) for i in range(3)]


def test_interpolate_between_classes(work, capfd):
    """Oracle: the ends of a path between classes are those of the paths within each."""
    between = frames(capfd, "1", "2", "-m", "runs/cond", "--label", "3,8")
    assert between[0] == frames(capfd, "1", "2", "-m", "runs/cond", "--label", "3")[0]
    assert between[2] == frames(capfd, "1", "2", "-m", "runs/cond", "--label", "8")[2]
    code, _, err = genkit(capfd, "interpolate", "1", "2", "-m", "runs/cond", "--label", "1,2,3")
    assert code == 2
    assert "names 3 classes" in err


def test_interpolate_takes_the_classes_of_noise(work, capfd):
    """Oracle: the same path with the file's labels given by hand."""
    genkit(
        capfd,
        "invert",
        "digits:test",
        *COND,
        "-n",
        "1",
        "--steps",
        "3",
        "--label",
        "3",
        "-o",
        "a.safetensors",
    )
    genkit(
        capfd,
        "invert",
        "digits:test",
        *COND,
        "-n",
        "1",
        "--steps",
        "3",
        "--label",
        "8",
        "-o",
        "b.safetensors",
    )
    own = frames(capfd, "a.safetensors", "b.safetensors", "-m", "runs/cond")
    assert own == frames(capfd, "a.safetensors", "b.safetensors", "-m", "runs/cond", "--label", "3,8")


@pytest.mark.parametrize("model", ["cond", "ldm"])
def test_interpolate_between_images(work, capfd, model):
    """Oracle: exit 0 and frames; images reach a latent model through its codec."""
    genkit(capfd, "sample", "ddim", "-m", "runs/ddpm", "-n", "2", "--steps", "1", "-o", "img/")
    made = frames(capfd, "img/000000.png", "img/000001.png", "-m", f"runs/{model}")
    assert len(set(made)) == len(made) > 1  # the two ends and what lies between differ
