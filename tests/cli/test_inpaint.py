"""genkit inpaint: what is kept is kept to the bit, and masks that cannot be meant are refused."""

import shutil

import pytest
import torch
from cli_tools import genkit
from PIL import Image

from genkit import io
from genkit.data import open_source

FAST = ("--steps", "3", "--resample", "2", "--device", "cpu", "--precision", "fp32")


def make_mask(path="mask.png", size=8, value=255):
    """White in its right half."""
    image = Image.new("L", (size, size), 0)
    image.paste(value, (size // 2, 0, size, size))
    image.save(path)


def run(capfd, *arguments, model="ddpm", source="digits:test"):
    return genkit(capfd, "inpaint", source, "--mask", "mask.png", "-m", f"runs/{model}", *FAST, *arguments)


def originals(n):
    source = open_source("digits:test")
    return next(iter(source.batches(iter([torch.arange(n)]), torch.device("cpu")))).x


@pytest.mark.parametrize("model", ["ddpm", "cond", "ldm"])
@pytest.mark.parametrize("method", ["repaint", "blend"])
def test_known_pixels_are_kept(work, capfd, model, method):
    """Oracle: the input's own values to the bit in the black half; the white half is another."""
    make_mask()
    if method == "blend":
        code, _, err = run(capfd, "-n", "4", "--method", method, "-o", "x.safetensors", model=model)
        assert (code, "are repaint's" in err) == (2, True)
    settings = ("--method", method, *(("--resample", "10") if method == "blend" else ()))
    code, out, err = run(capfd, "-n", "4", *settings, "-o", "x.safetensors", model=model)
    assert (code, out) == (0, "x.safetensors\n"), err
    found, x = io.load_latents(work / "x.safetensors", ("images",)), originals(4)
    assert torch.equal(found.z[..., :4], x[..., :4])
    assert not torch.equal(found.z[..., 4:], x[..., 4:])
    assert torch.equal(found.labels, open_source("digits:test").labels[:4])


@pytest.mark.parametrize("model", ["ddpm", "ldm"])
def test_what_is_under_the_mask_is_not_seen(work, capfd, model):
    """Oracle: the results for the same images with another right half."""
    make_mask()
    results = []
    for name, value in (("a", 0), ("b", 200)):
        (work / name).mkdir()
        image = Image.new("L", (8, 8), value)
        image.paste(120, (0, 0, 4, 8))
        image.save(work / name / "0.png")
        code, _, err = run(capfd, "-o", f"{name}.safetensors", model=model, source=name)
        assert code == 0, err
        results.append(io.load_latents(work / f"{name}.safetensors", ("images",)).z)
    assert torch.equal(*results)


def test_image_is_an_address(work, capfd):
    """Oracle: image i of a seed, whatever the batch; another seed is another image."""
    make_mask()
    for name, more in (("a", ("-n", "3", "--batch-size", "1")), ("b", ("-n", "4", "--batch-size", "4"))):
        assert run(capfd, *more, "-o", f"{name}.safetensors")[0] == 0
    assert run(capfd, "-n", "3", "--seed", "1", "-o", "c.safetensors")[0] == 0
    a, b, c = (io.load_latents(work / f"{k}.safetensors", ("images",)).z for k in "abc")
    assert (a - b[:3]).abs().max() < 1e-4
    assert (a - c).abs().max() > 0.01


def test_folder_report_and_continuation(work, capfd):
    """Oracle: PNGs of the input's own pixels where the mask is black; the same command makes nothing again,
    and another seed is refused."""
    make_mask()
    code, out, err = run(capfd, "-n", "3", "-o", "img/", "--report", "r.png")
    assert (code, out) == (0, "img\n"), err
    pixels = ((originals(3) + 1) * 127.5).round().byte()
    for i in range(3):
        with Image.open(work / f"img/{i:06d}.png") as image:
            found = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).reshape(8, 8)
        assert torch.equal(found[:, :4], pixels[i, 0, :, :4])
    with Image.open(work / "r.png") as image:
        assert image.height > 3 * 22
    code, _, err = run(capfd, "-n", "3", "-o", "img/", "--report", "r2.png")
    assert (code, (work / "r.png").exists()) == (0, True)
    assert "3 of 3 were there already" in err
    code, _, err = run(capfd, "-n", "3", "-o", "img/", "--seed", "4")
    assert code == 2
    assert "seed: 0 -> 4" in err


def test_the_class_matters_on_request(work, capfd):
    """Oracle: another class fills in otherwise, also by a classifier's guidance; a model without classes
    refuses guidance of its own."""
    make_mask()
    for model, guide in (("cond", ()), ("ddpm", ("--classifier", "runs/guide"))):
        made = []
        for label in ("8", "1"):
            asked = ("--label", label, "--guidance", "4", *guide)
            code, _, err = run(capfd, "-n", "2", *asked, "-o", "x.safetensors", model=model)
            assert code == 0, err
            made.append(io.load_latents(work / "x.safetensors", ("images",)).z)
        assert (made[0] - made[1]).abs().max() > 1e-3
    code, _, err = run(capfd, "-n", "2", "--guidance", "2")
    assert code == 2
    assert "--guidance needs a class-conditional model" in err


@pytest.mark.parametrize(
    "mask, message",
    [
        ({"size": 10}, "has 10x10 pixels and the images 8x8"),
        ({"value": 128}, "holds the value 128"),
        ({"value": 0}, "is all black"),
    ],
)
def test_wrong_masks(work, capfd, mask, message):
    """Oracle: exit 2, one line with the mask, and no file."""
    make_mask(**mask)
    code, out, err = run(capfd, "-n", "2", "-o", "x.png")
    assert (code, out) == (2, "")
    assert f"--mask mask.png {message}" in err
    assert not (work / "x.png").exists()


def test_wrong_requests(work, capfd):
    """Oracle: exit 2 and what is wrong: no mask, no such mask, no picture, latents, jumps, no codec."""
    make_mask()
    code, _, err = genkit(capfd, "inpaint", "digits:test", "-m", "runs/ddpm")
    assert (code, "needs --mask" in err) == (2, True)
    (work / "text.png").write_text("no")
    for name, message in (("gone.png", "does not exist"), ("text.png", "not a readable picture")):
        code, _, err = genkit(capfd, "inpaint", "digits:test", "--mask", name, "-m", "runs/ddpm")
        assert (code, message in err) == (2, True), err
    code, _, err = run(capfd, source="z.safetensors", model="ldm")
    assert (code, "takes images" in err) == (2, True), err
    code, _, err = run(capfd, "--jump", "3")
    assert (code, "must be below --steps 3" in err) == (2, True), err
    shutil.rmtree(work / "runs/vae")
    code, _, err = run(capfd, model="ldm")
    assert (code, "no codec" in err) == (2, True), err
