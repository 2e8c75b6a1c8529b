"""genkit inpaint: what is kept is kept to the bit, and masks that cannot be meant are refused."""

import shutil

import pytest
import torch
from cli_tools import genkit
from genkit_cli.masks import by_name
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


HALVES = {"left": (0, 0, 4, 8), "right": (4, 0, 8, 8), "top": (0, 0, 8, 4)}


def halves(folder, **names):
    """Masks of these names, each white in one half."""
    folder.mkdir(exist_ok=True)
    for name, half in names.items():
        image = Image.new("L", (8, 8), 0)
        image.paste(255, HALVES[half])
        image.save(folder / f"{name}.png")


def holes(path, images):
    """(n, 8, 8) bool: where the pictures of a tensor file differ from `images`."""
    return (io.load_latents(path, ("images",)).z != images)[:, 0]


def filled(*wanted):
    """(n, 8, 8) bool of these halves."""
    made = torch.zeros(len(wanted), 8, 8, dtype=torch.bool)
    for row, half in zip(made, wanted):
        left, upper, right, lower = HALVES[half]
        row[upper:lower, left:right] = True
    return made


@pytest.mark.parametrize("model", ["ddpm", "ldm"])
def test_a_mask_for_each_image_in_order(work, capfd, model):
    """Oracle: each image's own values to the bit where its mask is black and new ones elsewhere; the same in
    batches of one, and for image i what the picture alone as --mask gives it (fp32 rounding)."""
    halves(work / "masks", a="left", b="right", c="top")
    common = ("inpaint", "digits:test", "-m", f"runs/{model}", *FAST, "-n")
    for name, more in (("a", ()), ("b", ("--batch-size", "1"))):
        code, _, err = genkit(capfd, *common, 3, "--mask", "masks/", *more, "-o", f"{name}.safetensors")
        assert code == 0, err
    found = holes(work / "a.safetensors", originals(3))
    assert not (found & ~filled("left", "right", "top")).any()
    assert (found & filled("left", "right", "top")).float().sum(dim=(1, 2)).min() > 20
    assert genkit(capfd, *common, 3, "--mask", "masks/c.png", "-o", "c.safetensors")[0] == 0
    a, b, c = (io.load_latents(work / f"{k}.safetensors", ("images",)).z for k in "abc")
    assert (a - b).abs().max() < 1e-4
    assert (a[2] - c[2]).abs().max() < 1e-4


def test_a_mask_for_each_image_by_name(work, capfd):
    """Oracle: the halves by hand, though the order of the masks is another and one is of no image; a folder
    goes on with more images, keeps its own, and refuses other masks."""
    pictures = {name: originals(3)[k] for k, name in enumerate(("one", "two", "zero"))}
    (work / "in").mkdir()
    for name, x in pictures.items():
        pixels = ((x[0] + 1) * 127.5).round().byte()
        Image.fromarray(pixels.numpy()).save(work / f"in/{name}.png")
    halves(work / "masks", zero="left", two="right", one="top", extra="left")
    common = ("inpaint", "in", "-m", "runs/ddpm", "--mask", "masks", *FAST)
    code, _, err = genkit(capfd, *common, "-o", "x.safetensors", "--report", "r.png")
    assert code == 0, err
    assert "1 masks of masks are of no image" in err
    found = holes(work / "x.safetensors", originals(3))
    assert not (found & ~filled("top", "right", "left")).any()
    assert genkit(capfd, *common, "-n", "2", "-o", "img/")[0] == 0
    code, _, err = genkit(capfd, *common, "-o", "img/")
    assert (code, "2 of 3 were there already" in err) == (0, True), err
    halves(work / "masks", zero="top")
    code, _, err = genkit(capfd, *common, "-o", "img/")
    assert (code, "mask: " in err) == (2, True), err


@pytest.mark.parametrize(
    "masks, message",
    [
        ({"a": "left", "b": "left"}, "masks holds 2 masks, none of an image's name, for 3 images"),
        ({"000000": "left", "000001": "left", "c": "left"}, "000002.png of in has no mask of its name in"),
        ({}, "masks holds no images"),
    ],
)
def test_wrong_folders_of_masks(work, capfd, masks, message):
    """Oracle: exit 2, one line with the folder, and no file."""
    (work / "in").mkdir()
    for i in range(3):
        Image.new("L", (8, 8), 50 * i).save(work / f"in/{i:06d}.png")
    halves(work / "masks", **masks)
    command = ("inpaint", "in", "-m", "runs/ddpm", "--mask", "masks/", *FAST, "-o", "x.png")
    code, out, err = genkit(capfd, *command)
    assert (code, out) == (2, ""), err
    assert [message in line for line in err.splitlines() if line.startswith("genkit:")] == [True], err
    assert not (work / "x.png").exists()


def test_one_wrong_mask_of_a_folder(work, capfd):
    """Oracle: what a single mask is told, with its own path; nothing is drawn."""
    halves(work / "masks", a="left", b="left")
    for wrong, message in (
        ({"size": 10}, "has 10x10 pixels"),
        ({"value": 128}, "holds the value 128"),
        ({"value": 0}, "is all black"),
    ):
        make_mask(work / "masks/b.png", **wrong)
        command = ("inpaint", "digits:test", "-n", "2", "-m", "runs/ddpm", "--mask", "masks", *FAST)
        code, out, err = genkit(capfd, *command, "-o", "x/")
        assert (code, out) == (2, "")
        assert f"--mask masks/b.png {message}" in err
        assert not (work / "x").exists()


@pytest.mark.parametrize(
    "masks, images, wanted",
    [
        (["a.png", "b.png"], ["b.jpg", "c.jpg"], {0: "b.png"}),
        (["top/a.png"], ["3/a.png"], {0: "top/a.png"}),
        (["x/a.png", "y/a.png"], ["in/y/a.jpg", "in/x/a.jpg"], {0: "y/a.png", 1: "x/a.png"}),
        (["a.gif", "a.png"], ["a.png", "b.png"], {0: "a.png"}),
        (["a.png"], ["b.png"], {}),
    ],
)
def test_names_that_agree(masks, images, wanted):
    """Oracle: by hand: bare names, paths where folders repeat these, suffixes where all else is the same."""
    assert by_name(masks, images) == wanted


def test_the_class_is_the_one_that_was_asked_for(work, capfd):
    """Oracle: --label, in the tensors' record and in the folder's metadata.csv; without it the source's."""
    make_mask()
    assert run(capfd, "-n", "2", "--label", "8", "-o", "x.safetensors", model="cond")[0] == 0
    assert io.load_latents(work / "x.safetensors", ("images",)).labels.tolist() == [8, 8]
    assert run(capfd, "-n", "2", "--label", "8", "-o", "img/", model="cond")[0] == 0
    assert (work / "img/metadata.csv").read_text().splitlines()[1:] == ["000000.png,8", "000001.png,8"]
    assert run(capfd, "-n", "2", "-o", "own/", model="ddpm")[0] == 0
    own = [line.split(",")[1] for line in (work / "own/metadata.csv").read_text().splitlines()[1:]]
    assert own == [str(int(label)) for label in open_source("digits:test").labels[:2]]
