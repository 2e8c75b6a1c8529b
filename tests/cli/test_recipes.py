"""Every recipe that ships is accepted by its command."""

import shlex
import subprocess
import sys
from collections import Counter

import pytest
from cli_tools import ENV, RECIPES, genkit
from genkit_cli.conditions import ConditionConfig
from genkit_cli.methods import METHODS
from genkit_cli.sweep import parse_axes

from genkit.config import from_dict, read_recipe
from genkit.registry import find
from genkit.train.config import OptimConfig


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.toml")), ids=lambda p: p.stem)
def test_settings_are_options(path):
    """Oracle: the dataclasses behind the command; every key is one of theirs, in range."""
    settings = read_recipe(path)
    verb, name = settings.pop("command").split()
    assert verb == "train"
    entry = find(name)
    model = {k: v for k, v in settings.items() if k in entry.config.__dataclass_fields__}
    optim = {k: v for k, v in settings.items() if k in OptimConfig.__dataclass_fields__}
    from_dict(entry.config, model)
    from_dict(OptimConfig, optim)
    assert set(settings) <= {*model, *optim, "data", "size"}


AUTOENCODERS = ("SIZE=8", "FEW=8", "NUMBERS=1x2x2", "TOKENS=4x2x2", "START=1")
PRIORS = ("SIZE=8", "GAN_STEPS=2", "N=16", "K=2", "LATENT=4")
DENOISE = ("SIZE=8", "LATENT=2x4x4")


def test_shipped_recipe_by_name(work, capfd):
    """Oracle: the run's checkpoint has the recipe's width; the flag's steps."""
    code, _, err = genkit(
        capfd, "train", "ddpm", "--recipe", "digits-ddpm", "--steps", "1", "--width", "8", "-o", "runs/n"
    )
    assert code == 0, err
    assert "1 steps of 128" in err


def make(work, *arguments):
    """make -f samplers.mk with small settings."""
    small = [
        "N=8",
        "STEPS=2",
        "CALLS=2,3",
        "HEUN=2",
        "CHAIN=3",
        "RUN=runs/cond",
        "CLF=runs/clf",
        "REAL=digits",
    ]
    command = ["make", "-f", str(RECIPES / "samplers.mk"), *small, f"GENKIT={sys.executable} -m genkit_cli"]
    return subprocess.run([*command, *arguments], cwd=work, env=ENV, capture_output=True, text=True)


def test_sampler_tables(work):
    """Oracle: a table of six cells and a picture from one small model."""
    done = make(work, "spacing", "STEPS=2,3")
    assert done.returncode == 0, done.stderr
    assert len((work / "sweeps/spacing/table.csv").read_text().splitlines()) == 1 + 6
    assert (work / "sweeps/spacing/grid.png").exists()


def test_sampler_tables_ask_for_options(work):
    """Oracle: every table that the Makefile would make varies options of its own method."""
    lines = [shlex.split(line) for line in make(work, "-n", "all").stdout.splitlines() if " sweep " in line]
    assert len(lines) == 7
    for line in lines:
        method, axes = line[line.index("sweep") + 1], line[line.index("--over") + 1]
        assert parse_axes(axes, METHODS[method].config, ConditionConfig)


def lines_of(work, name, *settings):
    """The genkit commands of a Makefile in their order, without what the shell does around them."""
    command = ["make", "-n", "-f", str(RECIPES / name), *settings]
    made = subprocess.run(command, cwd=work, env=ENV, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    lines = [line for line in made.stdout.splitlines() if line.startswith("genkit ")]
    return [shlex.split(line.split("&&")[0].split(" > ")[0])[1:] for line in lines]


@pytest.mark.parametrize(
    "name, settings, verbs, result",
    [
        ("vae-triple.mk", (), {"train": 3, "encode": 3, "plot": 1}, "t/latents.png"),
        (
            "autoencoders.mk",
            AUTOENCODERS,
            {"train": 7, "reconstruct": 7, "eval-fid": 7},
            "t/out/vqgan-few/grid.png",
        ),
        (
            "priors.mk",
            PRIORS,
            {"train": 4, "fit-prior": 2, "sample": 5, "eval-fid": 5},
            "t/out/ae-gmm/grid.png",
        ),
        ("aae-priors.mk", (), {"train": 3, "encode": 3, "plot": 1, "sample": 3}, "t/latents.png"),
        ("denoise.mk", DENOISE, {"train": 3, "reconstruct": 3}, "t/out/mask.png"),
    ],
)
def test_tables_of_models(work, capfd, name, settings, verbs, result):
    """Oracle: the Makefile's own lines, run in order, succeed; so many of each verb, and the picture."""
    commands = lines_of(work, name, "DATA=digits", "STEPS=2", "DIR=t", "CLF=runs/clf", *settings)
    assert Counter(c[0] for c in commands) == verbs
    for command in commands:
        code, _, err = genkit(capfd, *command)
        assert code == 0, err
    assert (work / result).exists()


def test_readme_names_every_recipe():
    """Oracle: the folder itself."""
    text = (RECIPES.parent / "README.md").read_text()
    assert [p.stem for p in RECIPES.glob("*.toml") if f"`{p.stem}`" not in text] == []
    assert [p.name for p in RECIPES.glob("*.mk") if p.name not in text] == []


def test_unknown_recipe(capfd):
    """Oracle: the closest name."""
    code, _, err = genkit(capfd, "train", "ddpm", "--recipe", "digit-ddpm")
    assert code == 2
    assert "did you mean 'digits-ddpm'" in err
