"""genkit plot: figures that open, numbers that are the library's, and one line for what cannot be drawn."""

import json
import shutil

import pytest
import torch
from cli_tools import genkit
from PIL import Image

from genkit.io.latents import Latents, load_latents, save_latents
from genkit.models.load import load_model
from genkit.plots import codes
from genkit.plots.latents import knn_accuracy


@pytest.fixture(scope="session")
def planar(tmp_path_factory):
    """Run folders `vae` and `hvae` of digits with vectors for codes."""
    from genkit_cli.main import main

    folder = tmp_path_factory.mktemp("planar")
    short = ("--steps", "6", "--device", "cpu", "--arch", "mlp", "--width", "16")
    assert main(["train", "vae", "--latent", "3", *short, "-o", str(folder / "vae")]) == 0
    levels = ("--latents", "4,2", "--hidden", "8")
    assert main(["train", "hvae", *levels, *short, "-o", str(folder / "hvae")]) == 0
    return folder


def numbers(capfd, *arguments):
    """The JSON of a plot that succeeds."""
    code, out, err = genkit(capfd, "plot", *arguments, "--json")
    assert code == 0, err
    return json.loads(out)


def refused(capfd, *arguments):
    """The one line of a plot that is refused."""
    code, out, err = genkit(capfd, "plot", *arguments)
    assert (code, out) == (2, ""), err
    lines = [line for line in err.splitlines() if line.startswith("genkit:")]
    assert len(lines) == 1
    return lines[0]


def test_latents(work, capfd):
    """Oracle: knn_accuracy on the file's own codes, all of them; a picture that opens and explains itself."""
    found = numbers(capfd, "latents", "z.safetensors", "z.safetensors", "-o", "x.png", "--method", "first")
    z = load_latents(work / "z.safetensors")
    wanted = {
        "file": "z.safetensors",
        "n": len(z.z),
        "units": 32,
        "knn_accuracy": knn_accuracy(z.z, z.labels),
    }
    assert found == {"out": "x.png", "method": "first", "files": [wanted] * 2}
    with Image.open(work / "x.png") as picture:
        assert picture.width > 1.5 * picture.height
    code, out, _ = genkit(capfd, "info", "x.png", "--json")
    assert code == 0
    assert json.loads(out)["plot"] == "latents"


def test_a_part_of_the_latents_with_thumbnails(work, capfd):
    """Oracle: as many codes as asked for; the path alone on stdout and the accuracy on stderr."""
    options = ("-n", "200", "--thumbnails", "digits")
    assert numbers(capfd, "latents", "z.safetensors", "-o", "x.pdf", *options)["files"][0]["n"] == 200
    assert (work / "x.pdf").read_bytes().startswith(b"%PDF")
    code, out, err = genkit(capfd, "plot", "latents", "z.safetensors", "-n", "200", "-o", "x.svg")
    assert (code, out) == (0, "x.svg\n")
    assert "5-NN accuracy" in err


def test_latents_without_classes(work, capfd):
    """Oracle: no accuracy, and a note that says so."""
    save_latents(
        work / "plain.safetensors", Latents(torch.randn(9, 3, 1, 1), shift=(0.0,) * 3, scale=(1.0,) * 3)
    )
    code, out, err = genkit(capfd, "plot", "latents", "plain.safetensors", "-o", "x.png", "--json")
    assert code == 0
    assert json.loads(out)["files"][0]["knn_accuracy"] is None
    assert "note: plain.safetensors has no classes" in err


def test_latents_that_cannot_be_drawn(work, capfd):
    """Oracle: the value and the remedy."""
    save_latents(work / "one.safetensors", Latents(torch.randn(9, 1, 1, 1), shift=(0.0,), scale=(1.0,)))
    assert "one.safetensors has codes of one unit" in refused(capfd, "latents", "one.safetensors")
    assert "does not exist" in refused(capfd, "latents", "none.safetensors")
    assert "x.png, x.pdf or x.svg" in refused(capfd, "latents", "z.safetensors", "-o", "x.gif")
    assert "is a folder" in refused(capfd, "latents", "z.safetensors", "-o", _folder(work, "f.png"))
    assert "choose from" in refused(capfd, "latents", "z.safetensors", "--method", "umap")
    assert "1442 images and there are 9" in _line_of(work, capfd)
    assert "holds latents" in refused(capfd, "latents", "z.safetensors", "--thumbnails", "z.safetensors")


def _folder(work, name):
    (work / name).mkdir()
    return name


def _line_of(work, capfd):
    save_latents(
        work / "nine.safetensors", Latents(torch.randn(9, 2, 1, 1), shift=(0.0,) * 2, scale=(1.0,) * 2)
    )
    return refused(capfd, "latents", "nine.safetensors", "--thumbnails", "digits")


def test_curves_of_several_runs_with_a_damaged_line(work, capfd):
    """Oracle: the last number of each log as it was written; the damaged line is named and left out."""
    log = work / "runs/vae/log.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    last = [row for row in lines if "loss" in row][-1]
    with log.open("a") as file:
        file.write('{"step": 99, "lo')
    code, out, err = genkit(
        capfd,
        "plot",
        "curves",
        "runs/vae",
        "runs/ddpm/log.jsonl",
        "-o",
        "x.png",
        "--log",
        "--log-x",
        "--json",
    )
    assert code == 0, err
    first, second = json.loads(out)["runs"]
    assert (first["run"], first["step"], first["last"]) == ("runs/vae", last["step"], last["loss"])
    assert second["run"] == "runs/ddpm/log.jsonl"
    assert "1 damaged line is left out" in err
    assert (work / "x.png").stat().st_size > 5000


def test_curves_of_several_numbers(work, capfd):
    """Oracle: a row for each number of each run."""
    found = numbers(capfd, "curves", "runs/vae", "-o", "x.png", "--key", "recon,lr", "--smooth", "0")
    assert [row["key"] for row in found["runs"]] == ["recon", "lr"]
    assert all(row["last"] == row["smoothed"] for row in found["runs"])


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("nowhere",), "nowhere/log.jsonl does not exist"),
        (("runs/vae", "--key", "lost"), "choose --key from images_per_s, loss"),
        (("runs/vae", "--key", ","), "--key is empty"),
        (("runs/vae", "--smooth", "2"), "--smooth"),
        (("empty",), "holds no line"),
    ],
)
def test_curves_that_cannot_be_drawn(work, capfd, arguments, message):
    """Oracle: the value and the remedy."""
    (work / "empty").mkdir()
    (work / "empty/log.jsonl").write_text("\n{\n")
    assert message in refused(capfd, "curves", *arguments)


def test_manifold(planar, tmp_path, monkeypatch, capfd):
    """Oracle: the quantiles on both axes; a square picture; the hierarchy's top level is a plane too."""
    monkeypatch.chdir(tmp_path)
    for run in ("vae", "hvae"):
        found = numbers(capfd, "manifold", "-m", str(planar / run), "-n", "4", "-o", "x.png")
        assert found["values"] == codes.quantiles(4).tolist()
    with Image.open("x.png") as picture:
        assert abs(picture.width - picture.height) < 20


def test_manifold_needs_a_vector(work, capfd):
    """Oracle: the shape of the code, and the file."""
    line = refused(capfd, "manifold", "-m", "runs/vae")
    assert "runs/vae/model.safetensors needs codes that are vectors" in line
    assert "2x4x4" in line
    assert "does not serve" in refused(capfd, "manifold", "-m", "runs/ddpm")


def test_traversal_of_an_image(planar, tmp_path, monkeypatch, capfd):
    """Oracle: the units in falling order of what they do to the picture, computed from the model by hand at
    the code of that image."""
    from genkit.data import open_source

    monkeypatch.chdir(tmp_path)
    options = ("-m", str(planar / "vae"), "--index", "3", "-n", "5", "--reach", "2", "--device", "cpu")
    found = numbers(capfd, "traversal", "digits", *options, "-o", "x.png")
    assert found["values"] == [-2, -1, 0, 1, 2]
    model = load_model(planar / "vae").module
    x = next(iter(open_source("digits").batches(iter([torch.tensor([3])]), torch.device("cpu")))).x
    with torch.inference_mode():
        z = model.encode(x).z[0]
        ends = [model.decode(codes.traversal_codes(z, range(3), torch.tensor([v]))) for v in (-2.0, 2.0)]
    wanted = (ends[1] - ends[0]).square().mean(dim=(1, 2, 3)).sqrt()
    order = wanted.argsort(descending=True)
    assert [row["unit"] for row in found["units"]] == [str(i + 1) for i in order.tolist()]
    effects = torch.tensor([row["effect"] for row in found["units"]])
    torch.testing.assert_close(effects, wanted[order], rtol=1e-4, atol=1e-6)
    values = torch.tensor([row["value"] for row in found["units"]])
    torch.testing.assert_close(values, z.flatten()[order], rtol=1e-4, atol=1e-6)


def test_traversal_of_a_seed_and_a_map(work, capfd):
    """Oracle: as many rows as asked for, each a unit of the 2 x 4 x 4 map by channel, row and column."""
    found = numbers(capfd, "traversal", "-m", "runs/vae", "--units", "3", "--seed", "5", "-o", "x.png")
    names = [tuple(map(int, row["unit"].split(","))) for row in found["units"]]
    assert len(set(names)) == 3
    assert all(1 <= c <= 2 and 1 <= h <= 4 and 1 <= w <= 4 for c, h, w in names)


def test_traversal_that_cannot_be_drawn(work, capfd):
    """Oracle: the value and the remedy."""
    run = ("-m", "runs/vae")
    assert "beyond the 1442 images" in refused(capfd, "traversal", "digits", *run, "--index", "5000")
    assert "starts at an image" in refused(capfd, "traversal", "z.safetensors", *run)


BOUND = "step,t,bits,error,x0_mse\n1,0.001,2.0,0.1,0.01\n2,0.5,1.0,0.2,0.5\n"
SWEEP = "steps,eta,nfe,n,fid,fid_low,fid_high,confident,accuracy,seconds\n" + "".join(
    f"{s},{e},{s},64,{9 - s + e},{8 - s + e},{10 - s + e},,,1.0\n" for e in (0.0, 1.0) for s in (2, 4)
)


def test_bounds_of_two_models(work, capfd):
    """Oracle: the sums of the columns; lines named by what tells the files apart."""
    for name in ("a", "b"):
        (work / name).mkdir()
        (work / name / "curve.csv").write_text(BOUND)
    found = numbers(capfd, "nll", "a/curve.csv", "b/curve.csv", "-o", "x.png")
    assert [row["bits"] for row in found["tables"]] == [3.0, 3.0]
    (work / "bad.csv").write_text("step,bits\n1,2\n")
    assert "bad.csv has no column 'error'" in refused(capfd, "nll", "bad.csv")


def test_bounds_of_a_folder(tmp_path, monkeypatch, capfd):
    """Oracle: the same as for the curve.csv inside; a folder without one is told what is missing."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "empty"):
        (tmp_path / name).mkdir()
    (tmp_path / "a" / "curve.csv").write_text(BOUND)
    assert numbers(capfd, "nll", "a", "-o", "x.png") == numbers(capfd, "nll", "a/curve.csv", "-o", "x.png")
    assert "empty/curve.csv does not exist" in refused(capfd, "nll", "empty")


def test_reconstructions(planar, tmp_path, monkeypatch, capfd):
    """Oracle: `genkit reconstruct`: the same picture and numbers, the same options; a recipe by this name."""
    monkeypatch.chdir(tmp_path)
    options = ("digits:test", "-m", str(planar / "vae"), "-n", "4", "--json", "-o")
    code, wanted, err = genkit(capfd, "reconstruct", *options, "r.png")
    assert code == 0, err
    found = numbers(capfd, "reconstructions", *options[:-2], "-o", "p.png")
    assert found == json.loads(wanted) | {"out": "p.png"}
    with Image.open("r.png") as one, Image.open("p.png") as other:
        assert one.tobytes() == other.tobytes()
    lines = ('command = "plot reconstructions"', 'source = "digits:test"', f"model = '{planar / 'vae'}'")
    (tmp_path / "r.toml").write_text("\n".join(lines))
    assert numbers(capfd, "reconstructions", "--recipe", "r.toml", "-n", "4", "-o", "p.png") == found
    assert "not `genkit reconstruct`" in genkit(capfd, "reconstruct", "--recipe", "r.toml")[2]


def test_tables_of_a_sweep(work, capfd):
    """Oracle: by hand: a line for each eta, named by it; a folder stands for its table.csv."""
    (work / "s").mkdir()
    (work / "s/table.csv").write_text(SWEEP)
    found = numbers(capfd, "sweep", "s", "-o", "x.png")
    assert found["lines"] == [
        {"name": "eta 0.0", "nfe": [2, 4], "fid": [7, 5]},
        {"name": "eta 1.0", "nfe": [2, 4], "fid": [8, 6]},
    ]
    shutil.copytree(work / "s", work / "t")
    found = numbers(capfd, "sweep", "s/table.csv", "t", "-x", "eta", "-y", "seconds", "-o", "y.png")
    assert [line["name"] for line in found["lines"]] == [
        "s: steps 2",
        "s: steps 4",
        "t: steps 2",
        "t: steps 4",
    ]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (("nowhere.csv",), "nowhere.csv does not exist; genkit sweep writes it"),
        (("s.csv", "-y", "kid"), "has no column 'kid'; it has steps, eta"),
        (("s.csv", "-y", "confident", "--log"), "no positive value"),
        (("z.safetensors",), "cannot be read as text"),
    ],
)
def test_tables_that_cannot_be_drawn(work, capfd, arguments, message):
    """Oracle: the file, the value and the remedy."""
    (work / "s.csv").write_text(SWEEP)
    assert message in refused(capfd, "sweep", *arguments)


def test_unknown_kind(capfd):
    """Oracle: the closest one."""
    assert "did you mean 'curves'" in refused(capfd, "curve")
