"""Configuration records: reading, checking and comparing."""

from dataclasses import dataclass

import pytest

from genkit.config import arg, coerce, differences, from_dict, read_recipe, to_dict, validate
from genkit.errors import InputError


@dataclass(frozen=True)
class Sample:
    """A config with one field of each kind."""

    width: int = arg(64, "", min=2)
    rate: float = arg(0.5, "", min=0.0, max=1.0)
    sizes: tuple[int, ...] = arg((1, 2), "", min=1)
    kind: str = arg("a", "", choices=("alpha", "a"))
    limit: int | None = arg(None, "")
    on: bool = arg(False, "")


def test_round_trip_through_json_values():
    """Oracle: from_dict is the inverse of to_dict."""
    config = Sample(width=8, sizes=(3, 4), limit=5, on=True)
    assert from_dict(Sample, to_dict(config)) == config


def test_dashes_and_missing_keys():
    """Oracle: the documented reading of recipe keys."""
    assert from_dict(Sample, {"width": 4, "sizes": [9]}) == Sample(width=4, sizes=(9,))


@pytest.mark.parametrize(
    "values, message",
    [
        ({"widht": 4}, "did you mean 'width'"),
        ({"width": 1}, "--width must be at least 2, got 1"),
        ({"rate": 1.5}, "--rate must be at most 1, got 1.5"),
        ({"rate": float("nan")}, "--rate must be finite"),
        ({"sizes": [1, 0]}, "--sizes must be at least 1, got 0"),
        ({"kind": "alpa"}, "did you mean 'alpha'"),
        ({"width": "8"}, "--width must be int, got '8'"),
        ({"width": True}, "--width must be int, got True"),
        ({"on": 1}, "--on must be bool, got 1"),
    ],
)
def test_wrong_values_are_named(values, message):
    """Oracle: the message names the option, the value and what is allowed."""
    with pytest.raises(InputError, match=message.replace("(", r"\(")):
        from_dict(Sample, values)


def test_ints_become_floats_where_asked():
    """Oracle: TOML writes `rate = 1` for 1.0."""
    assert coerce("rate", 1, float) == 1.0
    assert isinstance(coerce("rate", 1, float), float)


def test_validate_accepts_defaults():
    """Oracle: a config's own defaults are within its own bounds."""
    validate(Sample())
    assert Sample().width == 64


def test_differences():
    """Oracle: written out by hand."""
    assert differences({"a": 1, "b": 2}, {"a": 1, "b": 3, "c": 4}) == ["b: 2 -> 3", "c: None -> 4"]


@pytest.mark.parametrize(
    "text, message",
    [
        ("a = ", "not valid TOML"),
        ("[table]\na = 1", "is a table"),
        ("a-b = 1\na_b = 2", "r.toml gives a-b and a_b"),
    ],
)
def test_bad_recipes(tmp_path, text, message):
    """Oracle: one line that names the file."""
    path = tmp_path / "r.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_recipe(path)


def test_recipe_under_the_fields_names(tmp_path):
    """Oracle: by hand; an option is spelled as on the command line or as its field."""
    path = tmp_path / "r.toml"
    path.write_text("a-b = 1\nc_d = 2")
    assert read_recipe(path) == {"a_b": 1, "c_d": 2}


def test_missing_recipe(tmp_path):
    """Oracle: the file is named."""
    with pytest.raises(InputError, match="does not exist"):
        read_recipe(tmp_path / "none.toml")


def test_a_number_may_stand_for_text():
    """Oracle: `latent = 8` in a recipe is what `--latent 8` gives; other types are not text."""
    assert coerce("latent", 8, str) == "8"
    assert coerce("latent", 8, str | None) == "8"
    assert coerce("steps", 8, int | str) == 8
    for value in (True, 0.5, [8]):
        with pytest.raises(InputError, match="--latent must be str"):
            coerce("latent", value, str)
