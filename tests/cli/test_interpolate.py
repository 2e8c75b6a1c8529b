"""genkit interpolate: what a folder of frames depends on, and the ends that make no path."""

import shutil

import pytest
import torch
from cli_tools import TINY_DDPM, genkit, shell
from PIL import Image

from genkit import io

FAST = ("-n", "3", "--steps", "2", "--device", "cpu", "--precision", "fp32")


def run(capfd, *arguments):
    """What stderr said of a command that did what it was asked."""
    code, _, err = genkit(capfd, *arguments)
    assert code == 0, err
    return err


def refusal(capfd, *arguments):
    """The last line of a refusal."""
    code, out, err = genkit(capfd, *arguments)
    assert (code, out) == (2, ""), err
    return err.splitlines()[-1]


def test_frames_are_not_kept_for_other_ends(work, capfd):
    """Oracle: the same command goes on, and refuses the frames once a file at an end has changed."""
    run(capfd, "sample", "ddim", "-m", "runs/ddpm", "-n", "3", "--steps", "2", "-o", "img/")
    command = ("interpolate", "img/000000.png", "img/000001.png", "-m", "runs/ddpm", *FAST, "-o", "way/")
    run(capfd, *command)
    assert "3 of 3 were there already" in run(capfd, *command)
    shutil.copy("img/000002.png", "img/000000.png")
    assert "ends:" in refusal(capfd, *command)
    run(capfd, *command, "--fresh")
    assert "precision: fp32 -> bf16" in refusal(capfd, *command, "--precision", "bf16")


def test_frames_as_tensors_are_those_of_the_folder(work, capfd):
    """Oracle: the folder's pictures, to a level of 255."""
    command = ("interpolate", "1", "2", "-m", "runs/ddpm", *FAST)
    run(capfd, *command, "-o", "x.safetensors")
    run(capfd, *command, "-o", "way/")
    z = io.load_latents(work / "x.safetensors", ("images",)).z
    assert z.shape == (3, 1, 8, 8)
    for i, frame in enumerate(z):
        with Image.open(f"way/{i:06d}.png") as image:
            pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).reshape(1, 8, 8)
        assert (127.5 * (frame.clamp(-1, 1) + 1) - pixels).abs().max() <= 1


def frames(path):
    """(N, C, H, W) of a file of frames."""
    return io.load_latents(path, ("images",)).z


def test_a_row_is_named_by_its_number(work, capfd):
    """Oracle: the strip of that row among all, for seeds, data sets and files."""
    run(capfd, "encode", "digits:test", "-m", "runs/vae", "-o", "z.safetensors")
    for a, b in (("3", "8"), ("digits", "digits:test"), ("z.safetensors", "z.safetensors")):
        command = ("interpolate", "-m", "runs/vae", "-n", "3", "--precision", "fp32")
        run(capfd, *command, f"{a}:1", b, "--rows", "2", "-o", "two.safetensors")
        run(capfd, *command, f"{a}:2", f"{b}:1", "-o", "one.safetensors")
        two, one = frames(work / "two.safetensors"), frames(work / "one.safetensors")
        torch.testing.assert_close(two[3:], one)
        assert not torch.equal(two[0], one[0])


def test_an_end_may_be_a_stream(work, capfd):
    """Oracle: the file that the stream is, every row of it."""
    run(capfd, "encode", "digits:test", "-m", "runs/vae", "-o", "z.safetensors")
    options = "-m runs/vae -n 3 --rows 2 --precision fp32"
    done = shell(f"genkit interpolate - z.safetensors:5 {options} -o s.safetensors < z.safetensors", work)
    assert done.returncode == 0, done.stderr
    run(capfd, "interpolate", "z.safetensors", "z.safetensors:5", *options.split(), "-o", "f.safetensors")
    torch.testing.assert_close(frames(work / "s.safetensors"), frames(work / "f.safetensors"))


def test_only_the_ends_need_classes_that_the_model_knows(work, capfd):
    """Oracle: exit 0, though the folder's first image is of a class that the model never saw."""
    for name, kind in (("a", "0weird"), ("b", "3"), ("c", "3")):
        (work / "mixed" / kind).mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 90).save(work / "mixed" / kind / f"{name}.png")
    conditional = ("train", "ddpm", *TINY_DDPM, "--class-conditional", "--steps", "1", "--device", "cpu")
    run(capfd, *conditional, "-o", "runs/told")
    run(capfd, "interpolate", "mixed:1", "mixed:2", "-m", "runs/told", *FAST, "-o", "x.png")
    told = ("interpolate", "mixed:0", "mixed:2", "-m", "runs/told", *FAST, "-o", "y.png")
    assert "class '0weird'" in refusal(capfd, *told)


def test_shards_are_a_tensor_file(work, capfd):
    """Oracle: the same latents in one file."""
    for out in ("z.safetensors", "z/"):
        run(capfd, "encode", "digits:test", "-m", "runs/vae", "--precision", "fp32", "-o", out)
    for name in ("z.safetensors", "z/"):
        out = {"z.safetensors": "file.safetensors", "z/": "shards.safetensors"}[name]
        command = (
            "interpolate",
            f"{name}:2",
            f"{name}:4",
            "-m",
            "runs/vae",
            "-n",
            "3",
            "--precision",
            "fp32",
        )
        run(capfd, *command, "-o", out)
    torch.testing.assert_close(frames(work / "file.safetensors"), frames(work / "shards.safetensors"))


def test_seeds_are_codes_of_the_prior_that_sampling_draws_from(work, capfd):
    """Oracle: `sample prior` with the fitted prior; without one, a model that has none of its own refuses."""
    ends = ("interpolate", "3", "4", "-m", "runs/ae", "-n", "2", "--precision", "fp32")
    assert "fit one with `genkit fit-prior runs/ae`" in refusal(capfd, *ends, "-o", "way/")
    run(capfd, "fit-prior", "runs/ae", "--kind", "gaussian")
    assert "prior: runs/ae/prior.safetensors" in run(capfd, *ends, "-o", "way/")
    run(
        capfd, "sample", "prior", "-m", "runs/ae", "--seed", "3", "-n", "1", "--precision", "fp32", "-o", "s/"
    )
    with Image.open("way/000000.png") as a, Image.open("s/000000.png") as b:
        assert a.tobytes() == b.tobytes()


def test_tokens_are_no_seeds(work, capfd):
    """Oracle: a codebook has no prior, fitted or not."""
    tiny = ("--latent", "4x4x4", "--width", "8", "--blocks", "0", "--codes", "8", "--steps", "1")
    run(capfd, "train", "vqvae", *tiny, "--device", "cpu", "-o", "runs/vq")
    assert "give two images" in refusal(capfd, "interpolate", "1", "2", "-m", "runs/vq")


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("1", "9223372036854775808", "-m", "runs/vae"), "seed 9223372036854775808 is out of range"),
        (("1", "2", "-m", "runs/vae", "--label", "3"), "needs classes"),
        (("1", "a.png", "-m", "runs/vae"), "give two of the same kind"),
        (
            ("a.png", "a.png", "-m", "runs/vae", "--rows", "2"),
            "a.png has no row 1: they are counted from 0, and there are 1",
        ),
        (("digits:3", "digits:test:9999", "-m", "runs/vae"), "digits:test has no row 9999"),
        (("1:9223372036854775808", "2", "-m", "runs/vae"), "row 9223372036854775808 is out of range"),
        (("digts:1", "digits:2", "-m", "runs/vae"), "did you mean 'digits'?"),
        (("digts:1", "digits:2", "-m", "runs/vae"), "nor is it a seed (a whole number)"),
        (("1:9223372036854775807", "2", "-m", "runs/vae", "--rows", "2"), "row 9223372036854775808 of 1 is"),
        (("9" * 5000, "2", "-m", "runs/vae"), "999… is out of range"),
        (("digits:" + "1" * 300, "2", "-m", "runs/vae"), "111… is out of range"),
        (("-", "-", "-m", "runs/vae"), "both ends are -, one stream"),
    ],
)
def test_refusals(work, capfd, arguments, message):
    """Oracle: exit 2, one line, no file."""
    Image.new("L", (8, 8)).save("a.png")
    assert message in refusal(capfd, "interpolate", *arguments, "-o", "x.png")
    assert not (work / "x.png").exists()
