"""genkit eval-nll: the numbers agree with one another, and what has no bound is refused in a line."""

import csv
import json

import pytest
from cli_tools import TINY_DDPM, genkit
from PIL import Image

from genkit.io.latents import load_latents, save_latents

SHORT = ("--steps", "6", "-n", "5", "--device", "cpu")


def run(capfd, *arguments):
    """The JSON of a run that succeeds."""
    code, out, err = genkit(capfd, "eval-nll", *arguments, *SHORT, "--json")
    assert code == 0, err
    return json.loads(out)


def test_terms_add_up_and_both_files_are_written(work, capfd):
    """Oracle: L_T + sum L_{t-1} + L_0 = total, in the JSON and in the CSV; a PNG that opens."""
    found = run(capfd, "digits", "-m", "runs/ddpm", "-o", "curve/")
    value = {k: found[k]["value"] for k in ("total", "prior", "steps", "decoder")}
    assert value["total"] == pytest.approx(value["prior"] + value["steps"] + value["decoder"], rel=1e-9)
    assert (found["n"], found["variance"]) == (5, "large")
    assert found["out"] == ["curve/curve.csv", "curve/curve.png"]
    rows = list(csv.DictReader((work / "curve/curve.csv").read_text().splitlines()))
    assert list(rows[0]) == ["step", "t", "bits", "error", "x0_mse"]
    assert [int(r["step"]) for r in rows] == [1, 2, 3, 4, 5, 6]
    assert float(rows[0]["bits"]) == pytest.approx(value["decoder"], rel=1e-6)
    assert sum(float(r["bits"]) for r in rows[1:]) == pytest.approx(value["steps"], rel=1e-6)
    assert (float(rows[0]["t"]), float(rows[-1]["t"])) == (0.001, 1.0)
    with Image.open(work / "curve/curve.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > 400


def test_batch_size_changes_nothing_but_the_rounding(work, capfd):
    """Oracle: the same noise for each image and step; fp32 rounding of the network."""
    one, two = (run(capfd, "digits", "-m", "runs/ddpm", "--batch-size", b, "-o", "x.csv") for b in ("5", "2"))
    assert one["total"]["value"] == pytest.approx(two["total"]["value"], rel=1e-5)
    assert one["total"]["error"] == pytest.approx(two["total"]["error"], rel=1e-4)


def test_text_names_every_term(work, capfd):
    """Oracle: the lines."""
    code, out, _ = genkit(capfd, "eval-nll", "digits", "-m", "runs/ddpm", "-o", "x.csv", *SHORT)
    assert code == 0
    names = [line.split()[0] for line in out.splitlines()]
    assert names == ["source", "chain", "L_T", "L_{t-1}", "L_0", "bits/dim", "curve"]


def test_latents_have_a_density(work, capfd):
    """Oracle: the note on stderr; images for a model of latents are refused."""
    code, _, err = genkit(capfd, "eval-nll", "z.safetensors", "-m", "runs/ldm", "-o", "x.csv", *SHORT)
    assert code == 0, err
    assert "density" in err
    code, _, err = genkit(capfd, "eval-nll", "digits", "-m", "runs/ldm", *SHORT)
    assert code == 2
    assert "encode the images" in err


def test_latents_are_normalised_as_the_model_s_were(work, capfd):
    """Oracle: the same latents in a file that measured another shift and scale have the same bound."""
    latents = load_latents(work / "z.safetensors")
    save_latents(work / "other.safetensors", latents._replace(shift=(0.5, -0.5), scale=(2.0, 3.0)))
    one, two = (run(capfd, f"{name}.safetensors", "-m", "runs/ldm", "-o", "x.csv") for name in ("z", "other"))
    assert one["total"] == two["total"]


def test_learned_variance_of_a_class_conditional_model(work, capfd):
    """Oracle: learned is the default where there is one; a source without labels is refused."""
    options = ("--loss", "hybrid", "--class-conditional", "--steps", "2", "--device", "cpu")
    assert genkit(capfd, "train", "ddpm", *TINY_DDPM, *options, "-o", "runs/h")[0] == 0
    assert run(capfd, "digits", "-m", "runs/h", "-o", "x.csv")["variance"] == "learned"
    (work / "plain").mkdir()
    Image.new("L", (8, 8), 128).save(work / "plain/a.png")
    code, _, err = genkit(capfd, "eval-nll", "plain", "-m", "runs/h", *SHORT)
    assert code == 2
    assert "no labels" in err


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("-m", "runs/clf"), "serves"),
        (("-m", "runs/ddpm", "--binarise", "threshold"), "for a VAE"),
        (("-m", "runs/vae", "-o", "x.csv"), "a VAE's bound has none"),
        (("-m", "runs/ddpm", "--variance", "learned"), "--loss hybrid"),
        (("-m", "runs/ddpm", "--variance", "zero"), "choose from"),
        (("-m", "runs/ddpm", "-o", "x.gif"), "x.csv"),
        (("-m", "runs/ddpm", "-o", "z.safetensors"), "x.csv"),
    ],
)
def test_refusals(work, capfd, arguments, message):
    """Oracle: exit 2 and one line that names the remedy."""
    code, _, err = genkit(capfd, "eval-nll", "digits", *arguments, *SHORT)
    assert code == 2
    assert message in err
    assert "Traceback" not in err
