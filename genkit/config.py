"""Configuration as frozen dataclasses whose fields carry their own help: the one source for flags, recipes
and JSON."""

import dataclasses
import json
import math
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from .errors import InputError, unknown

T = TypeVar("T")
REQUIRED = ""  # the default of a positional argument without one


def arg(
    default: Any,
    help: str,
    *,
    min: float | None = None,
    max: float | None = None,
    choices: tuple[str, ...] | None = None,
    panel: str | None = None,
    short: str | None = None,
    positional: bool = False,
) -> Any:
    """A dataclass field with its help text, inclusive bounds, allowed words and the help panel it is shown
    in.

    short: a one-letter flag such as "-n". positional: an argument of the command instead of an option;
    with the
    default `REQUIRED` it must be given.
    """
    meta = {
        "help": help,
        "min": min,
        "max": max,
        "choices": choices,
        "panel": panel,
        "short": short,
        "positional": positional,
    }
    return dataclasses.field(default=default, metadata=meta)


def flag(name: str) -> str:
    """The command-line spelling of a field name: `batch_size` is `--batch-size`."""
    return "--" + name.replace("_", "-")


def validate(config: Any) -> None:
    """Check every field of a config dataclass against its bounds and choices.

    Raises:
        InputError: naming the option, its value and what is allowed.
    """
    for field in dataclasses.fields(config):
        value, meta = getattr(config, field.name), field.metadata
        values = value if isinstance(value, tuple) else (value,)
        for item in values:
            if item is None:
                continue
            if isinstance(item, float) and not math.isfinite(item):
                raise InputError(f"{flag(field.name)} must be finite, got {item}")
            low, high, choices = meta.get("min"), meta.get("max"), meta.get("choices")
            if low is not None and item < low:
                raise InputError(f"{flag(field.name)} must be at least {spelled_bound(low)}, got {item}")
            if high is not None and item > high:
                raise InputError(f"{flag(field.name)} must be at most {spelled_bound(high)}, got {item}")
            if choices is not None and item not in choices:
                raise unknown(f"value for {flag(field.name)}", str(item), choices)


def check_read(config: Any, readers: Mapping[str, tuple[bool, str]]) -> None:
    """Refuse a value for an option that nothing would read.

    readers: option -> (whether it is read, what reads it).

    Raises:
        InputError: naming the option, its value and what would read it.
    """
    for field in dataclasses.fields(config):
        value, (is_read, reader) = getattr(config, field.name), readers.get(field.name, (True, ""))
        if not is_read and value != field.default:
            raise InputError(f"{spelled(field.name, value)} is read by {reader} only; leave it out")


def spelled(name: str, value: Any) -> str:
    """An option as the command line has it: --steps 7, --clip or --no-clip."""
    if isinstance(value, bool):
        return flag(name if value else f"no_{name}")
    plain = ",".join(map(str, value)) if isinstance(value, tuple) else value
    return f"{flag(name)} {plain:g}" if isinstance(plain, float) else f"{flag(name)} {plain}"


def from_dict(cls: type[T], values: Mapping[str, Any]) -> T:
    """A `cls` from plain JSON or TOML values; keys may use dashes, missing keys keep their defaults.

    Raises:
        InputError: for an unknown key or a value of the wrong type.
    """
    hints = typing.get_type_hints(cls)
    known = {f.name for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    clean = {}
    for key, value in values.items():
        name = key.replace("-", "_")
        if name not in known:
            raise unknown(f"setting of {cls.__name__}", key, known)
        clean[name] = coerce(name, value, hints[name])
    config = cls(**clean)
    validate(config)
    return config


def coerce(name: str, value: Any, hint: Any) -> Any:
    """`value` as the annotated type of field `name`; lists become tuples, ints become floats where asked.

    Raises:
        InputError: when it is of another type.
    """
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in options:
        return None
    for option in options:
        if typing.get_origin(option) is tuple and isinstance(value, list | tuple):
            inner = typing.get_args(option)[0]
            return tuple(coerce(name, item, inner) for item in value)
        if option is float and isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
        if option in (int, str, bool) and type(value) is option:
            return value
        if option is str and type(value) is int:  # a recipe's latent = 8, as --latent 8 is given
            return str(value)
        if option is Path and isinstance(value, str | Path):
            return Path(value)
    wanted = " or ".join(getattr(o, "__name__", str(o)) for o in options if o is not type(None))
    raise InputError(f"{flag(name)} must be {wanted}, got {value!r}")


def to_dict(config: Any) -> dict[str, Any]:
    """The config's fields as plain JSON values (tuples become lists, paths strings)."""
    plain = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    return {
        k: str(v) if isinstance(v, Path) else v for k, v in json.loads(json.dumps(plain, default=str)).items()
    }


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """One line `name: old -> new` for every key whose value differs between two config dictionaries."""
    keys = sorted(set(old) | set(new))
    return [f"{k}: {old.get(k)} -> {new.get(k)}" for k in keys if old.get(k) != new.get(k)]


def spelled_bound(bound: float) -> str:
    """A bound as a person writes it: 1 for 1.0, and all digits of a large whole number."""
    return f"{bound:g}" if isinstance(bound, float) else str(bound)


def read_recipe(path: Path) -> dict[str, Any]:
    """The settings of a TOML recipe: `command = "train ddpm"` and one key per option, as its field is named.

    Raises:
        InputError: when the file is missing, is not TOML, holds a table, or gives an option twice.
    """
    try:
        values = tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise InputError(f"recipe {path} does not exist") from None
    except OSError as error:
        raise InputError(f"cannot read recipe {path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InputError(f"recipe {path} is not valid TOML: {error}") from None
    tables = [k for k, v in values.items() if isinstance(v, dict)]
    if tables:
        raise InputError(f"recipe {path}: [{tables[0]}] is a table; recipes are flat `option = value` lines")
    keys: dict[str, str] = {}
    for key in values:
        other = keys.setdefault(key.replace("-", "_"), key)
        if other != key:
            raise InputError(f"recipe {path} gives {other} and {key}, which are the same option; drop one")
    return {name: values[key] for name, key in keys.items()}
