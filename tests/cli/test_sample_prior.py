"""genkit sample prior of a class-conditional adversarial autoencoder: which classes, where they are recorded,
what is refused."""

import csv
import shutil
from io import BytesIO
from pathlib import Path

import pytest
import torch
from cli_tools import genkit
from genkit_cli.main import main
from PIL import Image

from genkit import io
from genkit.codecs.priors import PriorBottleneck
from genkit.data.source import Batch
from genkit.io.images import read_about
from genkit.models.load import load_model
from genkit.models.prior import Parts, draw_prior

FP32 = ("--device", "cpu", "--precision", "fp32")
TINY = ("--width", "8", "--batch-size", "32", "--steps", "4", *FP32)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A folder with runs/mix and runs/roll, class-conditional, runs/plain and runs/vae."""
    folder = tmp_path_factory.mktemp("aae")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for name, settings in (
            ("mix", ("--prior", "mixture", "--class-conditional")),
            ("roll", ("--prior", "swiss-roll", "--class-conditional")),
            ("plain", ("--prior", "mixture")),
        ):
            assert main(["train", "aae", *settings, *TINY, "-o", f"runs/{name}"]) == 0
        assert main(["train", "vae", "--blocks", "0", *TINY, "-o", "runs/vae"]) == 0
    return folder


@pytest.fixture
def here(models, tmp_path, monkeypatch):
    """A copy of `models` that the test stands in."""
    shutil.copytree(models / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def draw(capfd, *more, model="mix", n=12):
    """What `sample prior` writes."""
    command = ("sample", "prior", "-m", f"runs/{model}", "-n", n, *FP32, *more, "-o", "x.safetensors")
    code, _, err = genkit(capfd, *command)
    assert code == 0, err
    return io.load_latents(Path("x.safetensors"), ("images",))


def test_classes_in_turn_or_as_asked(here, capfd):
    """Oracle: by hand; names are the digits' own; no classes without --class-conditional."""
    found = draw(capfd)
    assert found.labels.tolist() == [*range(10), 0, 1]
    assert found.classes == tuple("0123456789")
    assert draw(capfd, "--label", "7,2-3", n=4).labels.tolist() == [7, 2, 3, 7]
    assert draw(capfd, model="plain").labels is None


@pytest.mark.parametrize("model", ["mix", "roll"])
def test_images_are_those_of_the_class_s_part(here, capfd, model):
    """Oracle: the decoder on codes of places (class + u) / 10, u the seed's own places; fp32 rounding."""
    found = draw(capfd, "--label", "4,9", "--seed", "3", model=model, n=6)
    module = load_model(here / "runs" / model).module
    index, label = torch.arange(6), torch.tensor([4, 9] * 3)
    assert isinstance(module.bottleneck, PriorBottleneck)
    with torch.inference_mode():
        codes = module.bottleneck.draw(3, index, tuple(module.latent_shape), label, 10)
        torch.testing.assert_close(found.z, module.decode(codes), rtol=0, atol=1e-5)


def test_an_image_is_an_address(here, capfd):
    """Oracle: image i of a class, whatever the batch and the other classes (fp32 rounding)."""
    many = draw(capfd, "--label", "0-9")
    one = draw(capfd, "--label", "2", "--batch-size", "1", n=3)
    torch.testing.assert_close(many.z[2], one.z[2], rtol=0, atol=1e-5)
    assert not torch.allclose(many.z[1], one.z[1], atol=1e-3)


def test_a_folder_and_its_grid_know_the_classes(here, capfd):
    """Oracle: metadata.csv and the PNGs name them; ten classes in turn make ten columns; other classes are
    refused."""
    common = ("sample", "prior", "-m", "runs/mix", *FP32)
    code, _, err = genkit(capfd, *common, "-n", "20", "-o", "out/")
    assert code == 0, err
    with (here / "out/metadata.csv").open() as file:
        assert [row["label"] for row in csv.DictReader(file)] == list("0123456789") * 2
    assert read_about(here / "out/000013.png")["class"] == "3"
    with Image.open(here / "out/grid.png") as grid:
        assert grid.width / grid.height == pytest.approx(5, rel=0.05)
    code, _, err = genkit(capfd, *common, "-n", "20", "--label", "3", "-o", "out/")
    assert code == 2
    assert "8, 9] -> [3]" in err


def test_the_preview_shows_the_classes_in_turn(here):
    """Oracle: the last 12 pictures are draws of seed 0 with the classes 0 … 9, 0, 1."""
    loaded = load_model(here / "runs/mix")
    x = torch.zeros(12, 1, 8, 8)
    shown = loaded.entry.preview(loaded.module, loaded.config, loaded.info, Batch(x))
    index = torch.arange(12)
    with torch.inference_mode():
        wanted = draw_prior(loaded.module, 0, index, parts=Parts(index % 10, 10))
    torch.testing.assert_close(shown[-12:], wanted)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("-m", "runs/plain", "--label", "3"), "--class-conditional"),
        (("-m", "runs/vae", "--label", "3"), "--label 3 needs a model whose prior has parts for classes"),
        (("-m", "runs/mix", "--label", "10"), "--label 10 is out of range"),
        (("-m", "runs/mix", "--label", "ten"), "unknown class"),
        (("-m", "runs/mix", "--label", "9-3"), "9-3 names no class"),
        (("-m", "runs/mix", "--label", "3", "--prior", "p.safetensors"), "add --prior own"),
    ],
)
def test_refusals(here, capfd, arguments, message):
    """Oracle: exit 2, one line with the remedy, no file; a fitted prior without --label is drawn from."""
    if "--prior" in arguments:
        assert genkit(capfd, "fit-prior", "runs/mix", "--kind", "gaussian", "-o", "p.safetensors")[0] == 0
        assert draw(capfd, "--prior", "p.safetensors", n=2).labels is None
    code, out, err = genkit(capfd, "sample", "prior", *arguments, "-o", "x.png")
    assert (code, out) == (2, ""), err
    assert message in err
    assert err.count("\n") == 1
    assert not (here / "x.png").exists()


def test_interpolation_starts_where_sampling_does(here, capfd):
    """Oracle: frame 0 of row i is image i of `sample prior` with that seed, also of a class asked for; images
    have codes of their own."""
    model = ("-m", "runs/mix", *FP32, "--fresh")
    for more in ((), ("--label", "7")):
        way = ("interpolate", "3", "4", *model, "-n", "2", "--rows", "3", *more, "-o", "way/")
        for command in (way, ("sample", "prior", *model, "-n", "3", "--seed", "3", *more, "-o", "s/")):
            code, _, err = genkit(capfd, *command)
            assert code == 0, err
        for i in range(3):
            with Image.open(f"way/{2 * i:06d}.png") as a, Image.open(f"s/{i:06d}.png") as b:
                assert a.tobytes() == b.tobytes()
    # a class is a part of the model's own prior, also where another was fitted and lies beside it
    frame = Path("way/000000.png").read_bytes()
    assert genkit(capfd, "fit-prior", "runs/mix", "--kind", "gaussian")[0] == 0
    assert genkit(capfd, *way)[0] == 0
    with Image.open("way/000000.png") as a, Image.open(BytesIO(frame)) as b:
        assert a.tobytes() == b.tobytes()
    Path("runs/mix/prior.safetensors").unlink()
    picture = ("interpolate", "s/000000.png", "s/000001.png", "-m", "runs/mix", "--label", "7")
    code, _, err = genkit(capfd, *picture)
    assert code == 2
    assert "an image has a code of its own" in err
