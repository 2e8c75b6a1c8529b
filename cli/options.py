"""Configuration dataclasses -> the options of a command, grouped in help panels; flag > recipe > default."""

# No `from __future__ import annotations` here: typer reads the real annotations of the function built below.
import dataclasses
import inspect
import types
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Optional

import typer

from genkit.config import REQUIRED, flag, from_dict, read_recipe, spelled_bound
from genkit.errors import InputError, unknown

RECIPE_HELP = "Settings from a TOML recipe: a path, or the name of one that ships with genkit."


def parse_numbers(text: str) -> Any:
    """The tuple that `1,2,2` or `1x2x2` writes; whole numbers stay whole."""
    try:
        return tuple(float(t) if "." in t else int(t) for t in text.replace("x", ",").split(",") if t)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a comma-separated list of numbers") from None


def parse_number(kind: type) -> Callable[[Any], Any]:
    """A function that reads an int or a float, as `kind` says, and names what is none."""

    def parse(text: Any) -> Any:
        try:
            return kind(text)
        except ValueError:
            wanted = "a whole number" if kind is int else "a number"
            raise typer.BadParameter(f"{text!r} is not {wanted}") from None

    return parse


def range_of(kind: type, low: float | None, high: float | None) -> str:
    """How the help shows a number: <int>, or <int range> [x>=1]."""
    ends = [spelled_bound(b) if b is not None else "" for b in (low, high)]
    if not any(ends):
        return f"<{kind.__name__}>"
    shown = f"{ends[0]}<=x<={ends[1]}" if all(ends) else f"x>={ends[0]}" if ends[0] else f"x<={ends[1]}"
    return f"<{kind.__name__} range> [{shown}]"


def make(
    body: Callable[..., None],
    *groups: type,
    command: str,
    help: str,
    defaults: Mapping[str, Any] | None = None,
) -> Any:
    """A command whose options are the fields of `groups`, calling `body` with one instance of each.

    command: its name as a recipe writes it ("train ddpm"). defaults: values that differ from the fields' own.
    """
    changed = dict(defaults or {})

    def callback(ctx: typer.Context, recipe: dict[str, Any], **values: Any) -> None:
        given = {k for k in values if "DEFAULT" not in str(ctx.get_parameter_source(k))}
        settings = {**values, **{k: v for k, v in recipe.items() if k not in given}}
        explicit = given | set(recipe)
        # the two ways to state a length exclude each other, and a default must not stand against a request
        for one, other in (("steps", "epochs"), ("epochs", "steps")):
            level = given if one in given else explicit
            if one in level and other not in level and {one, other} <= set(settings):
                settings[other] = None
        configs: list[Any] = [
            from_dict(g, {f.name: settings[f.name] for f in dataclasses.fields(g)}) for g in groups
        ]
        body(*configs)

    parameters = [inspect.Parameter("ctx", inspect.Parameter.KEYWORD_ONLY, annotation=typer.Context)]
    for group in groups:
        hints = typing.get_type_hints(group)
        parameters += [parameter(f, hints[f.name], changed) for f in dataclasses.fields(group)]
    option = typer.Option(
        None, "--recipe", help=RECIPE_HELP, rich_help_panel="Recipe", callback=reader(command, groups)
    )
    parameters.append(
        inspect.Parameter("recipe", inspect.Parameter.KEYWORD_ONLY, default=option, annotation=str | None)
    )
    callback.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    callback.__annotations__ = {p.name: p.annotation for p in parameters}
    app = typer.Typer(rich_markup_mode="rich", add_completion=False)
    app.command(name=command.split()[-1], help=help)(callback)
    return typer.main.get_command(app)


def recipe_path(name: str) -> Path:
    """The file of a recipe given as a path or by the name of one that ships with genkit."""
    path = Path(name)
    if path.suffix == ".toml" or path.exists():
        return path
    import genkit_recipes

    folder = Path(genkit_recipes.__path__[0])
    shipped = {p.stem: p for p in folder.glob("*.toml")}
    if name not in shipped:
        raise unknown("recipe", name, shipped)
    return shipped[name]


def reader(command: str, groups: tuple[type, ...]) -> Callable[..., dict[str, Any]]:
    """What typer calls with the value of --recipe: the recipe's settings take its place, {} without one."""
    positional = {f.name for g in groups for f in dataclasses.fields(g) if f.metadata["positional"]}

    def read(ctx: typer.Context, value: str | None) -> dict[str, Any]:
        settings = settings_of(value, command, groups) if value else {}
        # where typer looks for an argument that the command line lacks
        ctx.default_map = {k: v for k, v in settings.items() if k in positional}
        return settings

    return read


def settings_of(recipe: str, command: str, groups: tuple[type, ...]) -> dict[str, Any]:
    """The values that a recipe sets for `command`, under the fields' names.

    Raises:
        InputError: when the recipe is for another command, sets an unknown option or gives one a wrong value.
    """
    settings = read_recipe(recipe_path(recipe))
    if "command" not in settings:
        raise InputError(f'recipe {recipe} lacks the line command = "{command}"')
    wanted = settings.pop("command")
    if wanted != command:
        raise InputError(f"recipe {recipe} is for `genkit {wanted}`, not `genkit {command}`")
    known = {f.name for g in groups for f in dataclasses.fields(g)}
    for name in settings:
        if name not in known:
            raise unknown(f"option in recipe {recipe}:", name, known)
    for group in groups:
        names = {f.name for f in dataclasses.fields(group)}
        try:
            from_dict(group, {k: v for k, v in settings.items() if k in names})
        except InputError as error:
            raise InputError(f"recipe {recipe}: {error}") from None
    return settings


def parameter(field: dataclasses.Field[Any], hint: Any, changed: Mapping[str, Any]) -> inspect.Parameter:
    """The command-line parameter of one dataclass field."""
    meta, default = field.metadata, changed.get(field.name, field.default)
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    kinds = [o for o in options if o is not type(None)]
    kind, optional = kinds[0], len(kinds) < len(options)
    settings: dict[str, Any] = {"help": meta["help"]}
    if not meta["positional"]:
        settings["rich_help_panel"] = meta["panel"] or "Options"
    if typing.get_origin(kind) is tuple and meta["positional"]:
        kind = list[typing.get_args(kind)[0]]  # type: ignore[misc]
    elif typing.get_origin(kind) is tuple:
        settings |= {"parser": parse_numbers, "metavar": "N,N,…"}
        kind, default = str, ",".join(map(str, default)) if default is not None else None
    elif kind in (int, float):
        # the bound of 64-bit seeds is checked with the rest, but would only clutter the help
        shown = meta["max"] if (meta["max"] or 0) < 2**62 else None
        settings |= {"parser": parse_number(kind), "metavar": range_of(kind, meta["min"], shown)}
    if meta["choices"]:
        settings["metavar"] = "|".join(meta["choices"])
    annotation = Optional[kind] if optional else kind  # noqa: UP045  (kind is known at run time only)
    if meta["positional"]:
        info = typer.Argument(... if default == REQUIRED else default, show_default=False, **settings)
    else:
        names = [flag(field.name)]
        if kind is bool:
            names = [f"{flag(field.name)}/--no-{field.name.replace('_', '-')}"]
        info = typer.Option(default, *names, *([meta["short"]] if meta["short"] else []), **settings)
    return inspect.Parameter(field.name, inspect.Parameter.KEYWORD_ONLY, default=info, annotation=annotation)
