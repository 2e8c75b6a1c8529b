"""Reading a diffusers JSON file against a table of its keys: nothing that is not understood passes."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import InputError


class Key(NamedTuple):
    """A key of a configuration: diffusers' default, and what genkit can take.

    allowed: the values; empty for any of the types `kind`.
    """

    default: Any
    kind: tuple[type, ...] = ()
    allowed: tuple[Any, ...] = ()


Keys = Mapping[str, Key]


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`.

    Raises:
        InputError: when it is none.
    """
    try:
        values = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from None
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} is not JSON ({error}); download it again") from None
    if not isinstance(values, dict):
        raise InputError(f"{path} is not a JSON object; download it again")
    return values


def refuse(where: str, key: str, value: Any, remedy: str) -> InputError:
    """The error for a setting that genkit cannot reproduce."""
    return InputError(f"{where}: {key} = {json.dumps(value)} is not supported; {remedy}")


def settings(values: Mapping[str, Any], keys: Keys, where: str) -> dict[str, Any]:
    """A value for every key of `keys`: from `values`, else diffusers' default.

    A key that is not in the table says something that genkit does not know, and is refused unless it is
    null, false or starts with an underscore.

    Raises:
        InputError: naming the key and its value.
    """
    for name, value in values.items():
        if name not in keys and not name.startswith("_") and value not in (None, False):
            raise refuse(where, name, value, "genkit does not know this key")
    made = {}
    for name, key in keys.items():
        value = values.get(name, key.default)
        if key.allowed and value not in key.allowed:
            choices = " or ".join(json.dumps(v) for v in key.allowed)
            raise refuse(where, name, value, f"genkit knows {choices}")
        if not key.allowed and not _is(value, key):
            raise refuse(where, name, value, f"it should be like diffusers' {json.dumps(key.default)}")
        made[name] = value
    return made


def _is(value: Any, key: Key) -> bool:
    if isinstance(value, list | tuple):
        inner = Key(0, tuple(set(key.kind) - {list}))
        return list in key.kind and len(value) > 0 and all(_is(item, inner) for item in value)
    if isinstance(key.default, tuple):
        return False
    if value is None:
        return key.default is None or type(None) in key.kind
    if isinstance(value, bool):
        return bool in key.kind
    # what is counted in whole numbers here is a size: channels, blocks, groups, steps
    return isinstance(value, key.kind) and (not isinstance(value, int) or float in key.kind or value > 0)
