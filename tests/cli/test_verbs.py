"""Each verb as a user types it: forms of output, streams, provenance, and what is refused."""

import errno
import json
import os
import shutil
import sys
from pathlib import Path

import pytest
import torch
from cli_tools import TINY_DDPM, TINY_VAE, genkit, shell
from genkit_cli.encode import measure
from genkit_cli.main import GROUPS, VERBS
from PIL import Image

from genkit import io

FAST = ("--steps", "3", "--device", "cpu", "--precision", "fp32")


def pixels(path):
    with Image.open(path) as image:
        return torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).int()


def test_help_needs_no_torch():
    """Oracle: a process that forbids importing torch still prints the manual's first page."""
    import subprocess

    ban = "import sys; sys.modules['torch'] = None"
    code = f"{ban}; from genkit_cli.main import main; sys.exit(main(['--help']))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for verb in VERBS:
        assert verb in done.stdout


@pytest.mark.parametrize(
    "verb",
    [v for v in VERBS if v not in GROUPS] + [f"{v} {name}" for v, table in GROUPS.items() for name in table],
)
def test_every_help_page_names_its_recipe_option(capfd, verb):
    """Oracle: exit 0, and the options of the page that all verbs share."""
    code, out, _ = genkit(capfd, *verb.split(), "--help")
    assert code == 0
    assert "--recipe" in out


def test_sample_folder(work, capfd):
    """Oracle: files named by index, a grid, one path on stdout, and pictures that explain themselves."""
    code, out, err = genkit(capfd, "sample", "ddim", "-m", "runs/ddpm", "-n", "5", *FAST, "-o", "img/")
    assert (code, out) == (0, "img\n"), err
    assert sorted(p.name for p in (work / "img").glob("*.png")) == [f"{i:06d}.png" for i in range(5)] + [
        "grid.png"
    ]
    code, out, _ = genkit(capfd, "info", "img/000003.png", "--json")
    about = json.loads(out)
    assert (about["seed"], about["index"], about["method"]) == (0, 3, "ddim")
    assert about["model"] == io.load_checkpoint(work / "runs/ddpm").sha256


@pytest.mark.parametrize("method", ["ddim", "ddpm"])
def test_image_is_an_address(work, capfd, method):
    """Oracle: image i of a seed, whatever the batch and whatever else is drawn; at most 1/255 apart."""
    extra = ("--eta", "0.5") if method == "ddim" else ()
    for name, size, n in (("a", 1, 4), ("b", 3, 6)):
        command = (
            "sample",
            method,
            "-m",
            "runs/ddpm",
            "-n",
            n,
            "--batch-size",
            size,
            *FAST,
            *extra,
            "-o",
            f"{name}/",
        )
        assert genkit(capfd, *command)[0] == 0
    for i in range(4):
        assert (pixels(work / f"a/{i:06d}.png") - pixels(work / f"b/{i:06d}.png")).abs().max() <= 1


def test_rerun_makes_only_what_is_missing(work, capfd):
    """Oracle: the files' times and bytes; a missing one comes back as it was."""
    command = ("sample", "ddim", "-m", "runs/ddpm", "-n", "4", *FAST, "-o", "img/")
    genkit(capfd, *command)
    before = {p.name: p.read_bytes() for p in (work / "img").glob("*.png")}
    kept = (work / "img/000001.png").stat().st_mtime_ns
    (work / "img/000002.png").unlink()
    assert genkit(capfd, *command)[0] == 0
    assert (work / "img/000001.png").stat().st_mtime_ns == kept
    assert (pixels(work / "img/000002.png")).shape == (64,)
    assert before["000002.png"] == (work / "img/000002.png").read_bytes()
    code, _, err = genkit(capfd, *command, "--seed", "9")
    assert code == 2
    assert "seed: 0 -> 9" in err
    assert "--fresh" in err


@pytest.mark.parametrize("out", ["x.png", "x.gif", "x.safetensors"])
def test_forms_of_output(work, capfd, out):
    """Oracle: the suffix decides; the path written is the only line on stdout."""
    code, text, _ = genkit(capfd, "sample", "ddim", "-m", "runs/ddpm", "-n", "4", *FAST, "-o", out)
    assert (code, text) == (0, out + "\n")
    if out.endswith("safetensors"):
        assert io.load_latents(work / out, ("images",)).z.shape == (4, 1, 8, 8)
    else:
        with Image.open(work / out) as image:
            assert getattr(image, "n_frames", 1) == (3 if out.endswith("gif") else 1)


def test_pipe_equals_files(work):
    """Oracle: the chain through files; the pixels are equal."""
    piped = shell(
        "genkit sample ddim -m runs/ldm -n 4 --steps 3 --seed 7 -o - 2>/dev/null | genkit decode - "
        "-m runs/vae -o a/",
        work,
    )
    assert piped.returncode == 0, piped.stderr
    files = shell(
        "genkit sample ddim -m runs/ldm -n 4 --steps 3 --seed 7 -o s.safetensors && "
        "genkit decode s.safetensors -m runs/vae -o b/ && genkit sample ddim -m runs/ldm -n 4 --steps 3 "
        "--seed 7 -o c/",
        work,
    )
    assert files.returncode == 0, files.stderr
    assert files.stdout.split() == ["s.safetensors", "b", "c"]
    for i in range(4):
        a, b, c = (pixels(work / f"{k}/{i:06d}.png") for k in "abc")
        assert torch.equal(a, b)
        assert (a - c).abs().max() <= 1  # decoded in one process through the codec found by its hash


def test_broken_pipe_is_quiet(work):
    """Oracle: nothing but the two lines of progress on stderr, and head gets its bytes."""
    done = shell("genkit sample ddim -m runs/ddpm -n 64 --steps 1 -o - | head -c 100 | wc -c", work)
    assert done.stdout.strip() == "100"
    assert "Traceback" not in done.stderr
    assert "Broken" not in done.stderr


def test_decode_with_another_codec(work, capfd):
    """Oracle: exit 2, both hashes, nothing written."""
    other = (
        "train",
        "vae",
        "--latent",
        "2x4x4",
        "--arch",
        "mlp",
        "--steps",
        "1",
        "--seed",
        "5",
        "-o",
        "runs/other",
    )
    genkit(capfd, *other)
    code, out, err = genkit(capfd, "decode", "z.safetensors", "-m", "runs/other", "-o", "img/")
    assert (code, out) == (2, "")
    assert "is not the codec" in err
    assert not (work / "img").exists()


def test_encode_measures_its_latents(work):
    """Oracle: (z - shift) / scale has mean 0 and deviation 1 per channel; labels travel."""
    latents = io.load_latents(work / "z.safetensors")
    shift, scale = (torch.tensor(v).reshape(-1, 1, 1) for v in (latents.shift, latents.scale))
    z = ((latents.z - shift) / scale).transpose(0, 1).flatten(1)
    assert z.mean(dim=1).abs().max() < 1e-4
    assert (z.std(dim=1) - 1).abs().max() < 1e-3
    assert latents.codec == io.load_checkpoint(work / "runs/vae").sha256
    assert len(latents.labels) == len(latents.z)


def test_shards_equal_the_file(work, capfd):
    """Oracle: the single file's latents."""
    assert genkit(capfd, "encode", "digits", "-m", "runs/vae", "-o", "shards/")[0] == 0
    assert torch.equal(io.load_latents(work / "shards").z, io.load_latents(work / "z.safetensors").z)
    assert genkit(capfd, "encode", "digits:test", "-m", "runs/vae", "-o", "shards/")[0] == 2


def test_invert_report_and_replay(work, capfd):
    """Oracle: sampling from the noise gives the images that the report's PSNR was measured on."""
    command = ("invert", "digits:test", "-m", "runs/ddpm", "-n", "6", "--steps", "20", "--refine", "5")
    code, out, err = genkit(capfd, *command, "-o", "n.safetensors", "--report", "r.png", "--json")
    assert code == 0, err
    report = json.loads(out.splitlines()[0])
    assert report["psnr_db"] > 30
    code, out, err = genkit(
        capfd,
        "sample",
        "ddim",
        "-m",
        "runs/ddpm",
        "--noise",
        "n.safetensors",
        "--steps",
        "20",
        "--precision",
        "fp32",
        "-o",
        "back.safetensors",
    )
    assert code == 0, err
    from genkit.data import open_source

    back, source = io.load_latents(work / "back.safetensors", ("images",)).z, open_source("digits:test")
    original = next(iter(source.batches(iter([torch.arange(6)]), torch.device("cpu")))).x
    mse = (back.clamp(-1, 1) - original).square().flatten(1).mean(1)
    assert (10 * torch.log10(4 / mse)).mean().item() == pytest.approx(report["psnr_db"], abs=0.1)


def test_noise_of_another_model(work, capfd):
    """Oracle: exit 2; the noise names its model."""
    genkit(
        capfd, "invert", "z.safetensors", "-m", "runs/ldm", "-n", "2", "--steps", "2", "-o", "n.safetensors"
    )
    code, _, err = genkit(
        capfd, "sample", "ddim", "-m", "runs/ddpm", "--noise", "n.safetensors", "-o", "x.png"
    )
    assert code == 2
    assert "other weights" in err


@pytest.mark.parametrize(
    "ends, model",
    [
        (("1", "2"), "ddpm"),
        (("1", "2"), "ldm"),
        (("1", "2"), "vae"),
        (("img/000000.png", "img/000001.png"), "vae"),
        (("img/000000.png", "img/000001.png"), "ddpm"),
        (("z.safetensors", "z.safetensors"), "ldm"),
    ],
)
def test_interpolate(work, capfd, ends, model):
    """Oracle: a strip of 5 frames; with seeds its ends are the samples of these seeds."""
    genkit(capfd, "sample", "ddim", "-m", "runs/ddpm", "-n", "2", *FAST, "-o", "img/")
    arguments = (
        "interpolate",
        *ends,
        "-m",
        f"runs/{model}",
        "-n",
        "5",
        *(() if model == "vae" else ("--steps", "3")),
        "--precision",
        "fp32",
    )
    code, out, err = genkit(capfd, *arguments, "-o", "frames/")
    assert (code, out) == (0, "frames\n"), err
    assert len(list((work / "frames").glob("[0-9]*.png"))) == 5
    if ends == ("1", "2") and model == "ddpm":
        command = (
            "sample",
            "ddim",
            "-m",
            "runs/ddpm",
            "-n",
            "1",
            *FAST,
            "--seed",
            "2",
            "--no-clip",
            "-o",
            "s/",
        )
        genkit(capfd, *command)
        assert (pixels(work / "s/000000.png") - pixels(work / "frames/000004.png")).abs().max() <= 1


def test_eval_fid_json(work, capfd):
    """Oracle: digits against themselves score 0; sizes and warnings are said."""
    code, out, err = genkit(
        capfd,
        "eval-fid",
        "digits:test",
        "digits:test",
        "--features",
        "runs/clf",
        "--json",
        "--metrics",
        "fid,kid,prc,isc",
    )
    assert code == 0, err
    scores = json.loads(out)
    assert scores["fid"] == pytest.approx(0, abs=1e-4)
    assert scores["precision"] == 1
    assert "2,048" in err


def test_info_on_everything(work, capfd):
    """Oracle: the kind of each file, and the command that made the checkpoint."""
    for file, kind in (
        ("runs/vae", "checkpoint"),
        ("z.safetensors", "latents"),
        ("runs/vae/state.safetensors", "state"),
    ):
        code, out, _ = genkit(capfd, "info", file, "--json")
        assert code == 0
        assert json.loads(out)["kind"] == kind


def test_info_for_a_reader(work, capfd):
    """Oracle: the JSON: every line is a key or a part of one, the kind first, and nothing that is unset."""
    for file in ("runs/vae", "z.safetensors", "runs/ldm"):
        about = json.loads(genkit(capfd, "info", file, "--json")[1])
        code, out, _ = genkit(capfd, "info", file)
        assert code == 0
        rows = dict(line.split("  ", 1) for line in out.splitlines())
        assert next(iter(rows)) == "kind"
        assert {key.partition(".")[0] for key in rows} == {
            k for k, v in about.items() if v not in ("", [], {})
        }
        assert "null" not in out
        assert all(words.strip() for words in rows.values())
    lr = about["config"]["optim"]["lr"]
    assert f", lr {lr:g}," in rows["config.optim"]


def test_lists_for_a_reader():
    """Oracle: numbers apart by spaces, names and inner lists told apart, what is unset left out."""
    from genkit_cli.info import _words

    assert _words([4, 7, 7.5]) == "4 7 7.5"
    assert _words(["T-shirt/top", "Ankle boot"]) == "T-shirt/top, Ankle boot"
    assert _words([[["seed 3 1", None], ["seed 4 0", 2]]]) == "[[seed 3 1], [seed 4 0, 2]]"
    assert _words([None, None]) == ""


def test_default_model_is_the_newest_that_fits(work, capfd):
    """Oracle: named on stderr; without runs the command to train one is."""
    code, _, err = genkit(capfd, "sample", "prior", "-n", "2", "-o", "p.png")
    assert code == 0
    assert "model: runs/vae" in err
    shutil.rmtree(work / "runs")
    code, _, err = genkit(capfd, "sample", "ddim", "-n", "2", "-o", "p.png")
    assert code == 2
    assert "genkit train ddpm" in err


def test_train_again(work, capfd):
    """Oracle: the same command says it is done; another learning rate is refused by name; --fresh starts
    over."""
    base = ("train", "ddpm", *TINY_DDPM, "--steps", "12", "--precision", "fp32", "-o", "runs/ddpm")
    before = (work / "runs/ddpm/model.safetensors").read_bytes()
    assert genkit(capfd, *base)[0] == 0
    assert (work / "runs/ddpm/model.safetensors").read_bytes() == before
    code, _, err = genkit(capfd, *base, "--lr", "0.5")
    assert code == 2
    assert "lr: 0.001 -> 0.5" in err
    assert genkit(capfd, *base, "--lr", "0.002", "--fresh")[0] == 0
    assert io.load_checkpoint(work / "runs/ddpm").config["optim"]["lr"] == 0.002


def test_recipe_below_flag(work, capfd):
    """Oracle: the checkpoint's own record: recipe over default, flag over recipe, steps over epochs."""
    (work / "r.toml").write_text(
        'command = "train classifier"\nwidth = 8\nlr = 0.01\nepochs = 3\nbatch-size = 32\n'
    )
    code, _, err = genkit(
        capfd, "train", "classifier", "--recipe", "r.toml", "--lr", "0.02", "--steps", "2", "-o", "runs/r"
    )
    assert code == 0, err
    config = io.load_checkpoint(work / "runs/r").config
    assert (config["model"]["width"], config["optim"]["lr"], config["optim"]["batch_size"]) == (8, 0.02, 32)
    assert (config["optim"]["steps"], config["optim"]["epochs"]) == (2, None)


@pytest.mark.parametrize(
    "recipe, message",
    [
        ('command = "train vae"', "is for `genkit train vae`"),
        ('command = "train ddpm"\nwdth = 3', "did you mean 'width'"),
    ],
)
def test_wrong_recipes(work, capfd, recipe, message):
    """Oracle: exit 2 and the remedy."""
    (work / "r.toml").write_text(recipe)
    code, _, err = genkit(capfd, "train", "ddpm", "--recipe", "r.toml", "-o", "runs/r")
    assert code == 2
    assert message in err
    assert not (work / "runs/r").exists()


TRAIN = ("train", "ddpm", *TINY_DDPM, "--steps", "12", "--precision", "fp32", "-o", "runs/ddpm", "--fresh")


@pytest.mark.parametrize(
    "options, message",
    [
        (("--batch-size", "9", "--accumulate", "2"), "--batch-size must be a multiple"),
        (("--tensorboard",), "--tensorboard needs the package"),
        (("--device", "meta"), "device 'meta' cannot be used here"),
        (("--data", "none.png"), "none.png"),
        (("--multipliers", "1,1,1,1,1"), "8x8"),
    ],
)
def test_refused_fresh_keeps_the_run(work, capfd, monkeypatch, options, message):
    """Oracle: the bytes of all files of the run."""
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    files = {p: p.read_bytes() for p in (work / "runs/ddpm").rglob("*") if p.is_file()}
    code, _, err = genkit(capfd, *TRAIN, *options)
    assert code == 2, err
    assert message in err
    assert {p: p.read_bytes() for p in (work / "runs/ddpm").rglob("*") if p.is_file()} == files


def test_run_below_a_file(work, capfd):
    """Oracle: refused before any work, with the file that is in the way."""
    (work / "file").write_text("")
    code, _, err = genkit(capfd, *TRAIN[:-3], "-o", "file/a/b")
    assert code == 2
    assert err == "genkit: -o file/a/b: file is a file, and nothing can lie below it; name another\n"


def test_read_only_run_folder(work, capfd, monkeypatch):
    """Oracle: exit 1, one line with the file and the remedy; a finished run has nothing to write."""

    def refuse(*args, **kwargs):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    for name in ("unlink", "mkdir"):
        monkeypatch.setattr(Path, name, refuse)
    assert genkit(capfd, *TRAIN[:-1])[0] == 0
    for options in (("runs/new",), ("runs/new", "--fresh"), ("runs/ddpm", "--fresh")):
        code, _, err = genkit(capfd, *TRAIN[:-3], "-o", *options)
        assert code == 1, err
        last = err.splitlines()[-1]
        assert "Read-only file system" in last
        assert options[0] in last
        assert "choose another -o" in last


@pytest.mark.parametrize("cut", [20, -10])
def test_truncated_state(work, capfd, cut):
    """Oracle: --fresh is named, and does what it says."""
    state = work / "runs/ddpm/state.safetensors"
    state.write_bytes(state.read_bytes()[:cut])
    code, _, err = genkit(capfd, *TRAIN[:-1])
    assert code == 2
    assert "state.safetensors" in err.splitlines()[-1]
    assert "--fresh" in err.splitlines()[-1]
    assert genkit(capfd, *TRAIN)[0] == 0


@pytest.mark.parametrize("flags", [(), ("--sample",)])
def test_one_image_goes_there_and_back(work, capfd, recwarn, flags):
    """Oracle: the file can be read, its scale by hand: of a vector code each channel has one value, and one
    that does not vary keeps its unit. No warning is due."""
    Image.new("L", (8, 8), 77).save(work / "one.png")
    tiny = ("train", "vae", "--latent", "3", *TINY_VAE, "--steps", "2", "-o", "runs/vector")
    assert genkit(capfd, *tiny)[0] == 0
    recwarn.clear()
    code, _, err = genkit(capfd, "encode", "one.png", "-m", "runs/vector", "-o", "one.safetensors", *flags)
    assert code == 0, err
    assert not list(recwarn)
    latents = io.load_latents(work / "one.safetensors")
    assert latents.scale == (1.0, 1.0, 1.0)
    assert latents.shift == pytest.approx(latents.z.flatten().tolist())
    assert genkit(capfd, "decode", "one.safetensors", "-m", "runs/vector", "-o", "back.png")[0] == 0
    assert measure(torch.tensor([1.0, 5.0]).view(2, 1, 1, 1)) == ((3.0,), (2.0,))


def relabelled(work, labels, **changes):
    """z.safetensors of two images with other labels."""
    z = io.load_latents(work / "z.safetensors")
    z = z._replace(z=z.z[:2], labels=torch.tensor(labels), captions=None, tokens=None, **changes)
    io.save_latents(work / "two.safetensors", z)


@pytest.mark.parametrize("labels, model", [((0, 11), "m"), ((0, 10), ""), ((-1, 3), "m")])
def test_decode_refuses_labels_of_no_class(work, capfd, labels, model):
    """Oracle: the label and the file are named; the null class, 10, is only known to diffusion models."""
    relabelled(work, labels, model=model)
    code, _, err = genkit(capfd, "decode", "two.safetensors", "-m", "runs/vae", "-o", "new/")
    assert code == 2
    strange = next(v for v in labels if not 0 <= v < 10)
    assert f"two.safetensors has the label {strange}, outside its 10 classes (0 to 9)" in err
    assert not (work / "new").exists()


def test_decode_takes_the_null_class(work, capfd):
    """Oracle: exit 0 for what a diffusion model drew of no class."""
    relabelled(work, (0, 10), model="m")
    assert genkit(capfd, "decode", "two.safetensors", "-m", "runs/vae", "-o", "new/")[0] == 0


def test_the_network_that_is_not_described_fits_odd_latents(capfd, tmp_path, monkeypatch):
    """Oracle: latents of 3x3 are learned, drawn and decoded, as those of 7x7 in the README's chain are."""
    monkeypatch.chdir(tmp_path)
    steps = ("--steps", "2", "--batch-size", "16", "--width", "8")
    for command in (
        ("train", "vae", "--data", "digits", "--size", "12", "--latent", "2x3x3", *steps, "-o", "runs/vae"),
        ("encode", "digits", "--size", "12", "-m", "runs/vae", "-o", "z.safetensors"),
        ("train", "ddpm", "--data", "z.safetensors", "--blocks", "1", *steps, "-o", "runs/ldm"),
        ("sample", "ddim", "-m", "runs/ldm", "-n", "3", "--steps", "2", "-o", "new.safetensors"),
        ("decode", "new.safetensors", "-m", "runs/vae", "-o", "img/"),
    ):
        code, _, err = genkit(capfd, *command)
        assert code == 0, err
    assert [Image.open(file).size for file in sorted(Path("img").glob("0*.png"))] == [(12, 12)] * 3
