"""genkit plot KIND: figures by matplotlib, and with --json the numbers behind them."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from genkit import io
from genkit.config import REQUIRED, arg
from genkit.errors import InputError
from genkit.io.checkpoint import command_line
from genkit.plots import curves
from genkit.plots.style import FORMS, figure_bytes

from .console import emit, say
from .options import make

T = TypeVar("T")
FIGURE = "Figure: x.png, x.pdf or x.svg."
JSON = "Print the numbers as one JSON line."
_LOOK = "Look"


@dataclass(frozen=True)
class CurvesConfig:
    """Which runs, which of their numbers, and how they are shown."""

    runs: tuple[str, ...] = arg(REQUIRED, "Run folders, or their log.jsonl.", positional=True)
    out: str = arg("curves.png", FIGURE, short="-o")
    key: str = arg("loss", "What the log calls it; several with commas: recon,kl.")
    smooth: float = arg(
        0.01,
        "Width of the bold line's average, as a share of the run; 0 shows the raw line only.",
        min=0.0,
        max=1.0,
        panel=_LOOK,
    )
    log: bool = arg(False, "Logarithmic vertical axis.", panel=_LOOK)
    log_x: bool = arg(False, "Logarithmic steps.", panel=_LOOK)
    json: bool = arg(False, JSON)


@dataclass(frozen=True)
class BoundsConfig:
    """Which bounds are compared."""

    tables: tuple[str, ...] = arg(
        REQUIRED, "Folders of eval-nll, or their curve.csv, one or many.", positional=True
    )
    out: str = arg("nll.png", FIGURE, short="-o")
    json: bool = arg(False, JSON)


@dataclass(frozen=True)
class TablesConfig:
    """Which tables, and which of their columns."""

    tables: tuple[str, ...] = arg(
        REQUIRED, "Folders of sweep, or their table.csv, one or many.", positional=True
    )
    out: str = arg("sweep.png", FIGURE, short="-o")
    x: str = arg("nfe", "Column along the horizontal axis.", short="-x")
    y: str = arg("fid", "Column along the vertical axis.", short="-y")
    log: bool = arg(False, "Logarithmic vertical axis.", panel=_LOOK)
    log_x: bool = arg(False, "Logarithmic horizontal axis.", panel=_LOOK)
    json: bool = arg(False, JSON)


def command(name: str) -> Any:
    """The `genkit plot NAME` command."""
    if name in ("latents", "manifold", "traversal"):
        from . import plot_codes

        return plot_codes.command(name)
    groups: dict[str, tuple[Callable[..., None], type, str]] = {
        "curves": (_curves, CurvesConfig, "The training curves of one or many runs."),
        "nll": (_bounds, BoundsConfig, "The bounds of eval-nll, step by step, of one or many models."),
        "sweep": (_tables, TablesConfig, "Tables of sweep as lines: FID against network evaluations."),
    }
    body, config, help = groups[name]
    return make(body, config, command=f"plot {name}", help=help)


def form_of(out: str) -> Path:
    """The path of -o.

    Raises:
        InputError: its suffix is no form of figure, or it is a folder.
    """
    path = Path(out)
    if path.suffix.lower() not in FORMS:
        raise InputError(f"-o {out} is no form of figure; use x.png, x.pdf or x.svg")
    if path.is_dir():
        raise InputError(f"-o {out} is a folder; name a file")
    return path


def finish(
    path: Path,
    paint: Callable[[Any], object],
    size: tuple[float, float],
    about: dict[str, Any],
    numbers: dict[str, Any],
    as_json: bool,
) -> None:
    """Write the figure that `paint` draws, with `about` inside, and print its path or its numbers."""
    made = {**about, "command": command_line()}
    io.write_bytes(path, figure_bytes(paint, size, path.suffix.lower(), made))
    emit({"out": str(path), **numbers} if as_json else path, as_json)


def read_text(path: Path, what: str) -> str:
    """The text of a file.

    Raises:
        InputError: when it is missing, no file, or no text.
    """
    try:
        return path.read_text("utf-8")
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; {what}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as text ({error}); {what}") from None


def names_of(paths: list[Path]) -> list[str]:
    """What tells the paths apart: their last part, with so many folders before it as that takes."""
    longest = max(len(p.parts) for p in paths)
    for depth in range(1, longest + 1):
        names = ["/".join(p.parts[-depth:]) for p in paths]
        if len(set(names)) == len(set(paths)):
            return names
    return [str(p) for p in paths]


def titles_of(paths: list[Path], usual: str) -> list[str]:
    """Names for tables: of their folders where all files are called `usual`, else of the files."""
    if all(p.name == usual and p.parent.name for p in paths):
        return names_of([p.parent for p in paths])
    return names_of([p.with_suffix("") for p in paths])


def about_file(path: str | Path, work: Callable[[], T]) -> T:
    """work(), with the name of the file in what it refuses.

    Raises:
        InputError: for a ValueError.
    """
    try:
        return work()
    except ValueError as error:
        raise error if isinstance(error, InputError) else InputError(f"{path} {error}") from None


def _inside(text: str, usual: str) -> Path:
    """The file, or the one called `usual` in the folder."""
    path = Path(text)
    return path / usual if path.is_dir() else path


def _log_of(run: str) -> list[dict[str, Any]]:
    """The log of a run folder, or the file itself."""
    path = Path(run)
    file = path if path.suffix == ".jsonl" else path / "log.jsonl"
    rows, bad = curves.read_log(read_text(file, "give the folder of a run that has begun"))
    if not rows:
        raise InputError(f"{file} holds no line of a training log")
    if bad:
        say(f"note: {file}: {bad} damaged {'line is' if bad == 1 else 'lines are'} left out")
    return rows


def _curves(config: CurvesConfig) -> None:
    path = form_of(config.out)
    logs = [_log_of(run) for run in config.runs]
    names = names_of([Path(r).parent if r.endswith(".jsonl") else Path(r) for r in config.runs])
    keys = [key for key in config.key.split(",") if key]
    if not keys:
        raise InputError("--key is empty; it names a number of the log, such as loss")
    drawn = {key: _having(key, [*zip(config.runs, names, logs)]) for key in keys}
    panels = {key: list(lines.values()) for key, lines in drawn.items()}
    axes = _logarithmic(config.log, config.log_x, [line for lines in panels.values() for line in lines])
    numbers = {
        "runs": [
            {"run": run, "key": key, "points": len(line.x), "step": line.x[-1], "last": line.y[-1]}
            | {"smoothed": curves.smoothed(line, config.smooth)[-1], "least": min(line.y)}
            for key, lines in drawn.items()
            for run, line in lines.items()
        ]
    }
    about = {"plot": "curves", "runs": list(config.runs), "keys": keys, "smooth": config.smooth}
    finish(
        path,
        lambda figure: curves.draw_curves(figure, panels, config.smooth, axes),
        curves.curves_size(len(panels)),
        about,
        numbers,
        config.json,
    )


def _having(key: str, runs: list[tuple[str, str, list[dict[str, Any]]]]) -> dict[str, curves.Series]:
    """The curves of number `key` of those of (run, name, log) that log it.

    Raises:
        InputError: none does.
    """
    lines = {run: curves.series_of(name, rows, key) for run, name, rows in runs}
    found = {run: line for run, line in lines.items() if line.x}
    if not found:
        run, _, rows = runs[0]
        known = ", ".join(curves.keys_of(rows))
        raise InputError(f"{run} has no {key!r} in its log; choose --key from {known}")
    for run in (run for run in lines if run not in found):
        say(f"note: {run} logs no {key!r} and is not among its curves")
    return found


def _logarithmic(y: bool, x: bool, lines: list[curves.Series]) -> tuple[str, ...]:
    """The axes that are to be logarithmic.

    Raises:
        InputError: a line has nothing to show there.
    """
    if y:
        for line in lines:
            if not any(v > 0 for v in line.y):
                raise InputError(f"--log: {line.name} has no positive value; leave it out")
    return (*(["y"] if y else []), *(["x"] if x else []))


def _bounds(config: BoundsConfig) -> None:
    path = form_of(config.out)
    files = [_inside(t, "curve.csv") for t in config.tables]
    titles = titles_of(files, "curve.csv")
    pairs = []
    for file, title in zip(files, titles):
        text = read_text(file, "genkit eval-nll writes it")
        bits, mse = about_file(file, lambda t=text, n=title: curves.bound_series(n, t))  # type: ignore[misc]
        pairs.append((bits._replace(name=f"{title}: {sum(bits.y):.3f} bits/dim"), mse))
    numbers = {
        "tables": [
            {"table": str(file), "steps": len(bits.x), "bits": sum(bits.y)}
            for file, (bits, _) in zip(files, pairs)
        ]
    }
    about = {"plot": "nll", "tables": list(config.tables)}
    finish(path, lambda figure: curves.draw_bounds(figure, pairs), (8.0, 7.0), about, numbers, config.json)


def _tables(config: TablesConfig) -> None:
    path = form_of(config.out)
    files = [_inside(t, "table.csv") for t in config.tables]
    titles = titles_of(files, "table.csv")
    lines: list[curves.Series] = []
    for file, title in zip(files, titles):
        text = read_text(file, "genkit sweep writes it")
        name = title if len(files) > 1 else ""
        lines += about_file(
            file,
            lambda t=text, n=name: curves.table_series(n, t, config.x, config.y),  # type: ignore[misc]
        )
    lines = [line if line.name else line._replace(name=titles[0]) for line in lines]
    axes = _logarithmic(config.log, config.log_x, lines)
    numbers = {"lines": [{"name": s.name, config.x: s.x, config.y: s.y} for s in lines]}
    about = {"plot": "sweep", "tables": list(config.tables), "x": config.x, "y": config.y}
    draw = lambda figure: curves.draw_table(figure, lines, config.x, config.y, axes)  # noqa: E731
    finish(path, draw, (8.0, 5.5), about, numbers, config.json)
