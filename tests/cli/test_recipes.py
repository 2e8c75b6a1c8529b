"""Every recipe that ships is accepted by its command."""

import pytest
from cli_tools import RECIPES, genkit

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


def test_shipped_recipe_by_name(work, capfd):
    """Oracle: the run's checkpoint has the recipe's width; the flag's steps."""
    code, _, err = genkit(
        capfd, "train", "ddpm", "--recipe", "digits-ddpm", "--steps", "1", "--width", "8", "-o", "runs/n"
    )
    assert code == 0, err
    assert "1 steps of 128" in err


def test_unknown_recipe(capfd):
    """Oracle: the closest name."""
    code, _, err = genkit(capfd, "train", "ddpm", "--recipe", "digit-ddpm")
    assert code == 2
    assert "did you mean 'digits-ddpm'" in err
