"""Classes and guidance on the command line: what is drawn, what is recorded, what is refused."""

import csv
import json

import pytest
import torch
from cli_tools import genkit
from genkit_cli.conditions import parse_labels
from genkit_cli.sample_output import columns
from PIL import Image

from genkit.errors import InputError
from genkit.io.images import read_about
from genkit.io.latents import load_latents, save_latents

DIGITS = tuple("0123456789")
ANIMALS = ("cat", "dog", "10")


@pytest.mark.parametrize(
    "text, classes, wanted",
    [
        ("3", DIGITS, [3]),
        ("0-3", DIGITS, [0, 1, 2, 3]),
        ("1, 3,5-6", DIGITS, [1, 3, 5, 6]),
        ("dog,cat", ANIMALS, [1, 0]),
        ("10", ANIMALS, [2]),  # a name that looks like a number
        ("0", ANIMALS, [0]),
    ],
)
def test_labels_are_read(text, classes, wanted):
    """Oracle: by hand."""
    assert parse_labels(text, classes) == wanted


@pytest.mark.parametrize(
    "text, message",
    [
        ("10", "out of range"),
        ("0-12", "out of range"),
        ("0-99999999999999", "out of range"),  # before so many numbers are made
        ("9-3", "9-3 names no class"),
        ("cat", "unknown class"),
        (",", "class"),
    ],
)
def test_strange_labels_are_refused(text, message):
    """Oracle: the value is named."""
    with pytest.raises(InputError, match=message):
        parse_labels(text, DIGITS)


def sample(capfd, *more, out="x.safetensors"):
    code, _, err = genkit(
        capfd, "sample", "ddim", "-m", "runs/cond", "-n", "6", "--steps", "3", *more, "-o", out
    )
    assert code == 0, err
    return load_latents(__import__("pathlib").Path(out), ("images",))


def test_labels_go_in_turn_and_into_the_file(work, capfd):
    """Oracle: all classes in turn by default; those asked for otherwise."""
    assert sample(capfd).labels.tolist() == [0, 1, 2, 3, 4, 5]
    chosen = sample(capfd, "--label", "7,2")
    assert chosen.labels.tolist() == [7, 2, 7, 2, 7, 2]
    assert chosen.classes == DIGITS


def test_a_picture_of_a_label_does_not_depend_on_the_others(work, capfd):
    """Oracle: image i with class c is the same whatever the batch and the other classes (fp32 rounding)."""
    many = sample(capfd, "--label", "0-9", "--guidance", "3")
    one = sample(capfd, "--label", "2", "--guidance", "3", "--batch-size", "1")
    assert torch.allclose(many.z[2], one.z[2], atol=1e-5)
    assert not torch.allclose(many.z[1], one.z[1], atol=1e-3)


def test_guidance_0_forgets_the_label(work, capfd):
    """Oracle: two labels, one picture; at guidance 1 two pictures."""
    nothing = [sample(capfd, "--label", k, "--guidance", "0").z for k in ("1", "8")]
    assert torch.equal(*nothing)
    plain = [sample(capfd, "--label", k).z for k in ("1", "8")]
    assert not torch.allclose(*plain, atol=1e-4)


@pytest.mark.parametrize("method", ["ddim", "ddpm", "dpmpp", "heun", "euler"])
def test_every_method_takes_both_guidances(work, capfd, method):
    """Oracle: exit 0 and finite images; the classifier's gradient changes them."""
    found = []
    for more in (("--guidance", "2"), ("--classifier", "runs/guide", "--guidance", "50")):
        common = ("-n", "2", "--steps", "3", "--label", "4", "-m", "runs/cond", "-o", "x.safetensors")
        code, _, err = genkit(capfd, "sample", method, *common, *more)
        assert code == 0, err
        found.append(load_latents(work / "x.safetensors", ("images",)).z)
        assert found[-1].isfinite().all()
    assert not torch.allclose(*found, atol=1e-3)


def test_a_classifier_guides_an_unconditional_model(work, capfd):
    """Oracle: its classes can be asked for, and scale 0 is the model alone."""
    common = ("sample", "ddim", "-m", "runs/ddpm", "-n", "2", "--steps", "3")
    assert genkit(capfd, *common, "-o", "plain.safetensors")[0] == 0
    guide = ("--classifier", "runs/guide", "--label", "4")
    assert genkit(capfd, *common, *guide, "--guidance", "0", "-o", "zero.safetensors")[0] == 0
    assert genkit(capfd, *common, *guide, "--guidance", "50", "-o", "much.safetensors")[0] == 0
    plain, zero, much = (
        load_latents(work / f"{name}.safetensors", ("images",)).z for name in ("plain", "zero", "much")
    )
    assert torch.equal(plain, zero)
    assert not torch.allclose(plain, much, atol=1e-3)


def test_a_classifier_sharpens_a_model_of_its_classes(work, capfd):
    """Oracle: at scale 0 the model given the class, at more something else."""
    common = ("sample", "ddim", "-m", "runs/cond", "-n", "2", "--steps", "3", "--label", "4")
    guide = ("--classifier", "runs/guide", "--guidance")
    for name, more in (("plain", ()), ("zero", (*guide, "0")), ("much", (*guide, "50"))):
        assert genkit(capfd, *common, *more, "-o", f"{name}.safetensors")[0] == 0
    plain, zero, much = (
        load_latents(work / f"{name}.safetensors", ("images",)).z for name in ("plain", "zero", "much")
    )
    assert torch.equal(plain, zero)
    assert not torch.allclose(plain, much, atol=1e-3)


def test_a_classifier_of_other_classes_guides_the_null_class(work, capfd):
    """Oracle: at scale 0 the unconditional model, which classifier-free guidance 0 is."""
    train = (
        "train",
        "classifier",
        "--data",
        "pictures",
        "--width",
        "8",
        "--steps",
        "1",
        "--noise-conditioned",
    )
    for name in ("cat", "dog"):
        (work / "pictures" / name).mkdir(parents=True)
        Image.new("L", (8, 8), 90).save(work / "pictures" / name / "0.png")
    assert genkit(capfd, *train, "--noise-conditioned", "--device", "cpu", "-o", "runs/pets")[0] == 0
    common = ("sample", "ddim", "-m", "runs/cond", "-n", "2", "--steps", "3", "--guidance", "0")
    assert genkit(capfd, *common, "-o", "null.safetensors")[0] == 0
    guide = ("--classifier", "runs/pets", "--label", "dog")
    assert genkit(capfd, *common, *guide, "-o", "pets.safetensors")[0] == 0
    null, pets = (load_latents(work / f"{name}.safetensors", ("images",)).z for name in ("null", "pets"))
    assert torch.equal(null, pets)


def test_folder_tells_classes(work, capfd):
    """Oracle: metadata.csv and the PNGs name them, and eval-fid measures how many are recognised."""
    common = ("sample", "ddim", "-m", "runs/cond", "-n", "12", "--steps", "2", "--label", "3,5")
    assert genkit(capfd, *common, "-o", "out/")[0] == 0
    with (work / "out/metadata.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["label"] for row in rows] == ["3", "5"] * 6
    about = read_about(work / "out/000001.png")
    assert (about["class"], about["label"], about["guidance"]) == ("5", "3,5", 1.0)
    code, out, err = genkit(capfd, "eval-fid", "out/", "digits", "--features", "runs/clf", "--json")
    assert code == 0, err
    assert 0 <= json.loads(out)["accuracy"] <= 1
    code, _, err = genkit(capfd, *common, "--guidance", "2", "-o", "out/")
    assert code == 2
    assert "guidance: 1.0 -> 2.0" in err


def test_classes_in_turn_stand_below_each_other():
    """Oracle: by hand. Ten classes in turn make ten columns; anything else is left to the square."""
    turn = torch.arange(30) % 10
    assert columns(turn) == 10
    assert columns(turn[:15]) is None
    assert columns(turn.flip(0)[:29].roll(3)) is None
    assert columns(torch.zeros(30, dtype=torch.int64)) is None
    assert columns(None) is None


def test_trajectory(work, capfd):
    """Oracle: an animation of as many frames as steps."""
    from PIL import Image

    code, out, err = genkit(
        capfd, "sample", "dpmpp", "-m", "runs/cond", "-n", "3", "--steps", "5", "--trajectory", "t.gif"
    )
    assert code == 0, err
    assert out.strip() == "dpmpp.png"
    with Image.open(work / "t.gif") as film:
        assert film.n_frames == 5


BAD = [
    (("sample", "ddim", "-m", "runs/ddpm", "--label", "3"), "--class-conditional"),
    (("sample", "ddim", "-m", "runs/ddpm", "--guidance", "2"), "--class-conditional"),
    (("sample", "ddim", "-m", "runs/ddpm", "--guidance-interval", "0.2,0.8"), "--class-conditional"),
    (("sample", "ddim", "-m", "runs/cond", "--label", "10"), "out of range"),
    (("sample", "ddim", "-m", "runs/cond", "--label", "ten"), "unknown class"),
    (("sample", "ddim", "-m", "runs/cond", "--guidance", "-1"), "guidance"),
    (("sample", "ddim", "-m", "runs/cond", "--guidance-interval", "0.8,0.2"), "0.2,0.8"),
    (("sample", "ddim", "-m", "runs/cond", "--guidance-interval", "0.8"), "0.2,0.8"),
    (("sample", "ddim", "-m", "runs/cond", "--eta", "1.5"), "eta"),
    (("sample", "ddim", "-m", "runs/cond", "--classifier", "runs/clf"), "--noise-conditioned"),
    (("sample", "ddim", "-m", "runs/cond", "--classifier", "runs/vae"), "not a classifier"),
    (("sample", "ddim", "-m", "runs/ldm", "--classifier", "runs/guide"), "latents"),
    (("sample", "ddpm", "-m", "runs/cond", "--variance", "learned", "--steps", "3"), "learn"),
    (("sample", "heun", "-m", "runs/vae"), "does not serve"),
    (("sample", "ddim", "-m", "runs/cond", "--trajectory", "t.png"), "--trajectory t.png is no form"),
    (("invert", "digits", "-m", "runs/cond", "-n", "1", "--report", "r.jpg"), "--report r.jpg is no form"),
    (("train", "ddpm", "--data", "plain/", "--class-conditional"), "needs labels"),
    (("sweep", "ddim", "digits", "-m", "runs/cond", "--features", "runs/clf", "--over", "stps=3"), "'steps'"),
    (("sweep", "ddim", "digits", "-m", "runs/cond", "--features", "runs/clf", "--over", "steps"), "steps=10"),
    (("sweep", "ddim", "digits", "-m", "runs/cond", "--features", "runs/clf", "--over", "eta=2"), "eta"),
    (
        ("sweep", "ddim", "digits", "-m", "runs/cond", "--features", "runs/clf", "--noise", "z.safetensors"),
        "--noise",
    ),
    (
        ("sweep", "ddim", "digits", "-m", "runs/cond", "--features", "runs/clf", "--over", "noise=a,b"),
        "--over",
    ),
    (
        ("sweep", "ddim", "digits", "-m", "runs/ddpm", "--features", "runs/clf", "--over", "guidance=2"),
        "class",
    ),
]


@pytest.mark.parametrize("arguments, message", BAD, ids=lambda v: " ".join(v) if isinstance(v, tuple) else v)
def test_wrong_requests(work, capfd, arguments, message):
    """Oracle: exit 2, one line with the remedy, nothing on stdout."""
    from PIL import Image

    (work / "plain").mkdir()
    Image.new("L", (8, 8)).save(work / "plain/a.png")
    code, out, err = genkit(capfd, *arguments)
    assert (code, out) == (2, "")
    assert message in err.splitlines()[-1]


def test_sweep(work, capfd):
    """Oracle: one row a cell with the network's evaluations; a second call makes nothing, more cells only
    those; other settings are refused."""
    common = ("sweep", "heun", "digits", "-m", "runs/cond", "--features", "runs/clf", "-n", "12", "--json")
    code, out, err = genkit(capfd, *common, "--over", "steps=2,3 guidance=1,2", "-o", "sw")
    assert code == 0, err
    rows = json.loads(out)["rows"]
    assert [(r["steps"], r["guidance"], r["nfe"]) for r in rows] == [
        (2, 1.0, 3),
        (2, 2.0, 3),
        (3, 1.0, 5),
        (3, 2.0, 5),
    ]
    assert all(r["n"] == 12 and r["fid"] > 0 and 0 <= r["accuracy"] <= 1 for r in rows)
    assert (work / "sw/grid.png").exists()
    with (work / "sw/table.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 4
    code, out, _ = genkit(capfd, *common, "--over", "steps=2,4 guidance=1,2", "-o", "sw")
    assert code == 0
    again = json.loads(out)["rows"]
    assert again[0] == rows[0]  # the seconds too: it was not made again
    assert again[2]["steps"] == 4
    code, _, err = genkit(capfd, *common, "--over", "steps=2", "-o", "sw", "--seed", "1")
    assert code == 2
    assert "seed: 0 -> 1" in err


def test_sweep_agrees_with_sample_and_eval_fid(work, capfd):
    """Oracle: the same FID by hand."""
    common = ("-m", "runs/cond", "-n", "20", "--seed", "5")
    arguments = ("--features", "runs/clf", "--json")
    code, out, err = genkit(
        capfd, "sweep", "ddim", "digits", *common, *arguments, "--over", "steps=3", "-o", "s"
    )
    assert code == 0, err
    fid = json.loads(out)["rows"][0]["fid"]
    assert genkit(capfd, "sample", "ddim", *common, "--steps", "3", "-o", "img/")[0] == 0
    code, out, err = genkit(capfd, "eval-fid", "img/", "digits", *arguments)
    assert code == 0, err
    assert json.loads(out)["fid"] == pytest.approx(fid, rel=1e-4)


def test_a_classifier_of_latents_knows_their_normalisation(work, capfd):
    """Oracle: the classifier of the model's own latents guides; that of another file's scale is refused."""
    latents = load_latents(work / "z.safetensors")
    save_latents(work / "other.safetensors", latents._replace(scale=(2.0, 3.0)))
    train = ("train", "classifier", "--width", "8", "--steps", "1", "--noise-conditioned", "--device", "cpu")
    for name in ("z", "other"):
        assert genkit(capfd, *train, "--data", f"{name}.safetensors", "-o", f"runs/{name}")[0] == 0
    draw = ("sample", "ddim", "-m", "runs/ldm", "-n", "1", "--steps", "2", "-o", "x.safetensors")
    assert genkit(capfd, *draw, "--classifier", "runs/z")[0] == 0
    code, _, err = genkit(capfd, *draw, "--classifier", "runs/other")
    assert code == 2
    assert "other latents than the model's" in err


def test_a_table_is_of_one_set_of_options(work, capfd):
    """Oracle: another option in --over is another table; one that stands twice is none."""
    common = ("sweep", "ddim", "digits", "-m", "runs/cond", "--features", "runs/clf", "-n", "4", "-o", "sw")
    assert genkit(capfd, *common, "--over", "steps=2")[0] == 0
    for over, message in (
        ("steps=2 guidance=1,2", "over: ['steps'] -> ['steps', 'guidance']"),
        ("steps=2 steps=3", "steps stands twice"),
        ("classifier=runs/guide", "unknown option in --over"),
    ):
        code, out, err = genkit(capfd, *common, "--over", over)
        assert (code, out) == (2, "")
        assert message in err.splitlines()[-1]


def test_fewer_pictures_keep_the_classes_of_the_rest(work, capfd):
    """Oracle: a folder of 7, asked again for 3, holds 7 pictures with the classes that they had."""
    draw = ("sample", "ddim", "-m", "runs/cond", "--steps", "2", "-o", "img/")
    assert genkit(capfd, *draw, "-n", "7")[0] == 0
    before = (work / "img/metadata.csv").read_text()
    assert genkit(capfd, *draw, "-n", "3")[0] == 0
    assert (work / "img/metadata.csv").read_text() == before
    assert len(before.splitlines()) == 8
    (work / "img/000006.png").write_bytes(b"damaged")
    assert genkit(capfd, *draw, "-n", "3")[0] == 0


@pytest.mark.parametrize("out", ["img/", "x.png", "x.safetensors"])
def test_what_is_not_finite_is_not_written(work, capfd, out):
    """Oracle: exit 1 and a remedy in every form of output; a picture would be black without a word."""
    draw = ("sample", "ddim", "-m", "runs/cond", "-n", "2", "--steps", "3", "--no-clip", "--guidance", "1e38")
    code, _, err = genkit(capfd, *draw, "--precision", "fp32", "-o", out)
    assert code == 1
    assert "NaN or infinity" in err.splitlines()[-1]
    assert not list(work.glob("img/*.png")) + list(work.glob("x.*"))


def test_nothing_lies_below_a_file(work, capfd):
    """Oracle: refused before a picture is drawn, with the file's name."""
    (work / "g").write_text("")
    for out in ("g/x.safetensors", "g/a/x.png", "g/img/"):
        code, _, err = genkit(capfd, "sample", "ddim", "-m", "runs/cond", "-n", "1", "-o", out)
        assert code == 2
        assert "g is a file" in err.splitlines()[-1]
        assert err.count("\n") == 1
