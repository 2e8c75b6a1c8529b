"""No option is parsed and ignored: what nothing would read is refused, with what would read it."""

import json

import pytest
from cli_tools import TINY_VAE, genkit

TRAIN = ("--steps", "1", "--device", "cpu", "-o", "runs/new")

UNREAD = [
    ("eval-nll digits -m runs/vae --steps 7", "--steps 7 is read by the chain of a diffusion model only"),
    ("eval-nll digits -m runs/vae --no-clip", "--no-clip is read by"),
    ("eval-nll digits -m runs/vae --variance small", "--variance small is read by"),
    ("eval-nll digits -m runs/ddpm --samples 3", "--samples 3 is read by the bound of a VAE only"),
    ("train vae --bottleneck none --beta 3", "--beta 3 is read by --bottleneck gaussian only"),
    ("train vae --bottleneck none --kl-warmup 3", "--kl-warmup 3 is read by"),
    ("train ae --arch mlp --blocks 2", "--blocks 2 is read by --arch conv only"),
    ("train ae --arch mlp --dense 20", "--dense 20 is read by"),
    ("train ddpm --multipliers , --width 8", "multipliers must name one level"),
    ("sweep heun digits -m runs/ddpm --features runs/clf --over churn-min=0,3", "--churn-min 3 is read by"),
    ("train aae --latent 4x4x4 --dense 20", "--dense 20 is read by a convolutional network"),
    (
        "train aae --critic-weight 0 --critic-bound 3",
        "--critic-bound 3 is read by a critic with",
    ),
    ("train gan --gp-weight 3", "--gp-weight 3 is read by --gan-loss wgan-gp only"),
    ("train hvae --latents 8 --hidden 20", "--hidden 20 is read by a hierarchy of two levels"),
    ("train ddpm --class-conditional --label-dropout 1", "--label-dropout 1 never shows a class"),
    ("invert digits -m runs/cond -n 1 --inner 3", "--inner 3 is read by --pivotal only"),
    ("invert digits -m runs/cond -n 1 --guidance 3", "--guidance 3 is read by --pivotal and --report only"),
    (
        "train vqvae --codebook loss --codebook-decay 0.5 -o n",
        "--codebook-decay 0.5 is read by --codebook ema only",
    ),
    ("sample ddim -m runs/ddpm --codec runs/vae -o x.png", "--codec runs/vae is for a model of latents"),
    ("sample ddim -m runs/ldm --codec runs/vae -o x.safetensors", "--codec runs/vae is for pictures"),
    ("sample prior -m runs/vae --codec runs/vae -o x.png", "--codec runs/vae is for a model of latents"),
    (
        "inpaint digits -m runs/ddpm --mask m.png --codec runs/vae",
        "--codec runs/vae is for a model of latents",
    ),
    ("sample heun -m runs/ddpm --churn-min 3", "--churn-min 3 is read by --churn only"),
    ("sample heun -m runs/ddpm --churn 1 --churn-min 5 --churn-max 1", "nothing would churn"),
    ("sweep heun digits -m runs/ddpm --features runs/clf --churn-noise 2", "--churn-noise 2 is read by"),
    ("interpolate 1 2 -m runs/vae --steps 7", "--steps 7 is read by diffusion models only"),
    ("interpolate 1 2 -m runs/vae --codec runs/vae", "--codec runs/vae is read by diffusion models only"),
]


@pytest.mark.parametrize("line, message", UNREAD)
def test_what_nothing_reads_is_refused(work, capfd, line, message):
    """Oracle: exit 2 and one line that names the option, its value and what would read it."""
    more = TRAIN if line.startswith("train") else ()
    code, out, err = genkit(capfd, *line.split(), *more)
    assert (code, out) == (2, "")
    assert message in err.splitlines()[-1]
    assert not (work / "runs/new").exists()


def test_the_null_class_must_have_been_trained(work, capfd):
    """Oracle: as trained it draws, and what would ask for the null class is refused."""
    tiny = ("--width", "8", "--multipliers", "1,1", "--blocks", "1", "--steps", "1", "--device", "cpu")
    assert (
        genkit(capfd, "train", "ddpm", "--class-conditional", "--label-dropout", "0", *tiny, "-o", "r")[0]
        == 0
    )
    draw = ("sample", "ddim", "-m", "r", "-n", "2", "--steps", "1", "-o", "x.png")
    assert genkit(capfd, *draw)[0] == 0
    refused = [
        (*draw, "--guidance", "2"),
        ("invert", "digits", "-m", "r", "-n", "1", "--steps", "1", "--pivotal", "--guidance", "2"),
        ("interpolate", "1", "2", "-m", "r", "-n", "2", "--steps", "1"),
    ]
    for command in refused:
        code, _, err = genkit(capfd, *command)
        assert code == 2
        assert "null class" in err.splitlines()[-1]
    assert genkit(capfd, *refused[-1], "--label", "3")[0] == 0


def test_a_trajectory_reads_the_codec(work, capfd):
    """Oracle: the film is of pictures, whatever -o takes."""
    draw = ("sample", "ddim", "-m", "runs/ldm", "-n", "2", "--steps", "2", "--codec", "runs/vae")
    assert genkit(capfd, *draw, "--trajectory", "t.gif", "-o", "t.safetensors")[0] == 0
    assert (work / "t.gif").exists()


def test_options_that_a_run_did_not_know_do_not_stop_it(work, capfd):
    """Oracle: a run begun before an option goes on, and 0 is true of a network without such a layer."""
    from genkit import io

    train = ("train", "ae", "--latent", "2x4x4", *TINY_VAE, "--device", "cpu", "-o", "runs/old")
    assert genkit(capfd, *train, "--dense", "0", "--steps", "1")[0] == 0
    path = work / "runs/old/state.safetensors"
    tensors, metadata = io.load_tensors(path, ("state",))
    settings = json.loads(metadata["settings"])
    settings.pop("dense")
    kept = {k: v for k, v in metadata.items() if k in ("step",)}
    io.save_tensors(path, tensors, "state", {**kept, "settings": json.dumps(settings)})
    assert genkit(capfd, *train, "--steps", "1")[0] == 0


def test_a_codec_option_is_used_where_there_is_a_use(work, capfd):
    """Oracle: pictures of a latent model still take it."""
    draw = (
        "sample",
        "ddim",
        "-m",
        "runs/ldm",
        "-n",
        "1",
        "--steps",
        "1",
        "--codec",
        "runs/vae",
        "-o",
        "x.png",
    )
    assert genkit(capfd, *draw)[0] == 0
    assert genkit(capfd, "train", "ae", "--latent", "3", "--dense", "9", *TINY_VAE, *TRAIN)[0] == 0
