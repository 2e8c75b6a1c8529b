"""Options: what is wrong with a value is said with the value, from the shell or from a recipe."""

import json

import pytest
from cli_tools import genkit, shell
from PIL import Image


def said(capfd, *arguments):
    """The one line of a refused command."""
    code, out, err = genkit(capfd, *arguments)
    assert (code, out) == (2, ""), err
    assert err.count("\n") == 1
    return err.removeprefix("genkit: ").rstrip()


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("sample ddim -n 0", "--count must be at least 1, got 0"),
        ("sample ddim --eta 1.5", "--eta must be at most 1, got 1.5"),
        ("sample ddim --steps 0", "--steps must be at least 1, got 0"),
        ("sample ddim --seed -1", "--seed must be at least 0, got -1"),
        ("sample ddim --seed 9223372036854775808", "must be at most 9223372036854775807"),
        ("sample ddim -n abc", "'abc' is not a whole number"),
        ("sample ddim -n 1.5", "'1.5' is not a whole number"),
        ("sample ddim --steps ten", "'ten' is not a whole number"),
        ("sample ddim --eta much", "'much' is not a number"),
        ("sample ddim --guidance nan", "--guidance must be finite, got nan"),
    ],
)
def test_numbers_are_named(capfd, arguments, message):
    """Oracle: the option, the value and the bound, written as a person would."""
    line = said(capfd, *arguments.split())
    assert message in line
    assert arguments.split()[-2] in line or "--count" in line


def test_help_shows_ranges(capfd, monkeypatch):
    """Oracle: the bounds in the dataclasses, by hand."""
    monkeypatch.setenv("COLUMNS", "120")
    out = genkit(capfd, "sample", "ddim", "--help")[1]
    assert "<int range> [x>=1]" in out
    assert "<float range> [0<=x<=1]" in out
    assert "[default: 64]" in out


@pytest.mark.parametrize(
    "arguments, message",
    [
        ("train vae --dta mnist", "no such option '--dta'; did you mean '--data'?"),
        ("sample ddim --zzzzzz", "No such option: --zzzzzz"),
    ],
)
def test_mistyped_option(capfd, arguments, message):
    """Oracle: the closest name alone, where there is one."""
    assert said(capfd, *arguments.split()) == message


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A function that writes r.toml in the folder that the test stands in."""
    monkeypatch.chdir(tmp_path)
    return lambda *lines: (tmp_path / "r.toml").write_text("\n".join(lines))


@pytest.mark.parametrize(
    "lines, message",
    [
        (['command = "sample ddim"', 'steps = "7"'], "recipe r.toml: --steps must be int, got '7'"),
        (['command = "sample ddim"', "eta = 1.5"], "recipe r.toml: --eta must be at most 1, got 1.5"),
        (["steps = 7"], 'recipe r.toml lacks the line command = "sample ddim"'),
        (['command = "sample ddpm"'], "recipe r.toml is for `genkit sample ddpm`, not `genkit sample ddim`"),
        (['command = "sample ddim"', "stps = 7"], "recipe r.toml: 'stps'; did you mean 'steps'?"),
        (["batch-size = 7", "batch_size = 8"], "recipe r.toml gives batch-size and batch_size"),
    ],
)
def test_recipe_errors_name_the_recipe(recipe, capfd, lines, message):
    """Oracle: the file, and what is wrong with it."""
    recipe(*lines)
    assert message in said(capfd, "sample", "ddim", "--recipe", "r.toml")


def test_recipe_gives_arguments(recipe, capfd):
    """Oracle: the file that the answer is about; the shell's argument wins over the recipe's."""
    recipe('command = "info"', 'file = "none.png"', "json = true")
    assert said(capfd, "info", "--recipe", "r.toml") == "none.png does not exist"
    assert said(capfd, "info", "other.png", "--recipe", "r.toml") == "other.png does not exist"
    recipe('command = "info"')
    assert "Missing argument 'file'" in said(capfd, "info", "--recipe", "r.toml")


def test_recipe_gives_a_list_of_arguments(recipe, tmp_path, capfd):
    """Oracle: both tables are drawn, and one where one is named."""
    for name in ("a", "b"):
        (tmp_path / f"{name}.csv").write_text("nfe,fid\n1,2\n2,1\n")
    recipe('command = "plot sweep"', 'tables = ["a.csv", "b.csv"]', "json = true")
    code, out, err = genkit(capfd, "plot", "sweep", "--recipe", "r.toml")
    assert code == 0, err
    assert len(json.loads(out)["lines"]) == 2
    out = genkit(capfd, "plot", "sweep", "b.csv", "--recipe", "r.toml")[1]
    assert len(json.loads(out)["lines"]) == 1
    with Image.open(tmp_path / "sweep.png") as picture:
        assert picture.width > 100


def test_help_wins_over_a_bad_recipe(recipe, capfd):
    """Oracle: the help, as without a recipe."""
    code, out, _ = genkit(capfd, "info", "--recipe", "none.toml", "--help")
    assert code == 0
    assert "Usage: genkit info" in out


def test_recipe_through_a_pipe(tmp_path):
    """Oracle: the refusal of the named value; a stream can be read once only."""
    line = """genkit info --recipe <(printf 'command = "info"\\nfile = "none.png"\\n')"""
    done = shell(line, tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", "genkit: none.png does not exist\n")


@pytest.mark.parametrize("warmup, share", [(0, None), (2, None), (3, "100%"), (500, "1%")])
def test_a_run_within_its_warm_up_is_said(warmup, share, capfd, tmp_path, monkeypatch):
    """Oracle: three steps reach the whole rate where it rises over fewer, and are told their share of it."""
    monkeypatch.chdir(tmp_path)
    command = f"train ae --data digits --arch mlp --latent 2 --steps 3 --batch-size 8 --warmup {warmup}"
    code, _, err = genkit(capfd, *command.split())
    assert code == 0, err
    found = [line for line in err.splitlines() if "the learning rate rises in all 3 steps" in line]
    assert len(found) == (share is not None)
    assert all(f"(--warmup {warmup}) and ends at {share} of --lr" in line for line in found)
