"""Numbers over steps: training logs, bounds along the chain, tables of a sweep."""

import csv
import io as stdio
import json
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .style import colour, grid_lines

NAN = float("nan")


class Series(NamedTuple):
    """A named line. x, y: of the same length; low, high: of an interval around y, where it has one."""

    name: str
    x: list[float]
    y: list[float]
    low: list[float] | None = None
    high: list[float] | None = None


def read_log(text: str) -> tuple[list[dict[str, Any]], int]:
    """The lines of a log.jsonl in the order of their steps, and how many were damaged.

    A step that was run again after an interruption counts once, as it was the last time.
    """
    rows: dict[tuple[float, bool], dict[str, Any]] = {}
    bad = 0
    for line in filter(str.strip, text.splitlines()):
        try:
            row = json.loads(line)
            held_out = any(key.startswith("test_") for key in row)
            rows[row["step"] + 0, held_out] = row
        except (ValueError, TypeError, KeyError, AttributeError):
            bad += 1
    return [rows[key] for key in sorted(rows)], bad


def keys_of(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The names that have numbers, step and time left out, in the order in which they come up."""
    found = {k: None for row in rows for k, v in row.items() if is_number(v)}
    return [k for k in found if k not in ("step", "time")]


def is_number(value: Any) -> bool:
    """Whether it is a finite number."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def series_of(name: str, rows: Sequence[dict[str, Any]], key: str) -> Series:
    """The numbers of `key` over the steps; lines without it are left out."""
    kept = [(float(row["step"]), float(row[key])) for row in rows if is_number(row.get(key))]
    return Series(name, [x for x, _ in kept], [y for _, y in kept])


def smoothed(line: Series, width: float) -> list[float]:
    """The values of a line averaged around each of its points, by a normal window whose standard deviation is
    the share `width` of the line's length; 0 leaves them as they are.

    Unlike an average of the past it does not lag behind a falling loss. x: rising.
    """
    x, y = np.array(line.x), np.array(line.y)
    reach = width * (x[-1] - x[0])
    if reach <= 0:
        return line.y
    first, last = np.searchsorted(x, x - 4 * reach), np.searchsorted(x, x + 4 * reach, side="right")
    result = []
    for i, (a, b) in enumerate(zip(first, last)):
        weight = np.exp(-0.5 * ((x[a:b] - x[i]) / reach) ** 2)
        result.append(float(weight @ y[a:b] / weight.sum()))
    return result


def curves_size(panels: int) -> tuple[float, float]:
    """Inches for so many panels, one above the other."""
    return 8.0, 1.2 + 3.3 * panels


def draw_curves(figure: Figure, panels: dict[str, list[Series]], width: float, log: tuple[str, ...]) -> None:
    """A panel for each key: every run's smoothed line over its pale raw one.

    width: as in `smoothed`. log: the axes, "x" or "y", that are logarithmic.
    """
    every = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (key, lines) in zip(every, panels.items()):
        for i, line in enumerate(lines):
            if width > 0:
                axes.plot(line.x, line.y, color=colour(i), alpha=0.3, linewidth=0.8)
            mark = "o" if len(line.x) < 3 else ""
            bold = smoothed(line, width)
            axes.plot(line.x, bold, color=colour(i), marker=mark, linewidth=1.6, label=line.name)
        _finish(axes, key, log)
    every[-1].set_xlabel("training step")
    _names(figure, every[0])


def _finish(axes: Axes, label: str, log: tuple[str, ...]) -> None:
    grid_lines(axes)
    axes.set_ylabel(label)
    # a logarithm has no place for what is not positive
    if "y" in log:
        axes.set_yscale("log", nonpositive="mask")
    if "x" in log:
        axes.set_xscale("log", nonpositive="mask")
    else:
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")


def _names(figure: Figure, axes: Axes) -> None:
    """The lines' names above all panels."""
    marks, names = axes.get_legend_handles_labels()
    columns = max(1, min(len(names), 90 // (max(map(len, names)) + 8)))
    figure.legend(marks, names, loc="outside upper center", ncols=columns)


def read_table(text: str, needed: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV with a header.

    Raises:
        ValueError: it has no rows, or lacks one of the `needed` columns, with those that it has.
    """
    reader = csv.DictReader(stdio.StringIO(text))
    try:
        rows = [row for row in reader if all(row.get(name) is not None for name in needed)]
    except csv.Error as error:
        raise ValueError(f"is no CSV table ({error})") from None
    missing = [name for name in needed if name not in (reader.fieldnames or ())]
    if missing:
        raise ValueError(f"has no column {missing[0]!r}; it has {', '.join(reader.fieldnames or ('none',))}")
    if not rows:
        raise ValueError("has no rows")
    return rows


def number(text: str) -> float:
    """The number in a cell, NaN for an empty one.

    Raises:
        ValueError: it is something else.
    """
    try:
        return float(text) if text.strip() else NAN
    except ValueError:
        raise ValueError(f"has {text!r} where a number should be") from None


def bound_series(name: str, text: str) -> tuple[Series, Series]:
    """Bits per dimension and squared error of x0 over the chain's steps, of the CSV of eval-nll; the first
    one with a band of two standard errors.

    Raises:
        ValueError: it is no such table.
    """
    rows = read_table(text, ("step", "bits", "error", "x0_mse"))
    step, bits, error, mse = ([number(row[k]) for row in rows] for k in ("step", "bits", "error", "x0_mse"))
    low = [b - 2 * e for b, e in zip(bits, error)]
    high = [b + 2 * e for b, e in zip(bits, error)]
    return Series(name, step, bits, low, high), Series(name, step, mse)


def draw_bounds(figure: Figure, pairs: Sequence[tuple[Series, Series]]) -> None:
    """The terms of the bound above the errors of x0, on logarithmic axes."""
    upper, lower = figure.subplots(2, 1, sharex=True)
    for i, (bits, mse) in enumerate(pairs):
        upper.plot(bits.x, bits.y, color=colour(i), linewidth=1.4, label=bits.name)
        assert bits.low is not None
        assert bits.high is not None
        upper.fill_between(bits.x, bits.low, bits.high, color=colour(i), alpha=0.2, linewidth=0)
        lower.plot(mse.x, mse.y, color=colour(i), linewidth=1.4)
    _finish(upper, "bits/dim of the step", ("x", "y"))
    _finish(lower, "squared error of x0", ("x", "y"))
    lower.set_xlabel("step of the chain (1 is next to the data)")
    _names(figure, upper)


SCORES = ("n", "fid", "fid_low", "fid_high", "confident", "accuracy", "seconds")


def table_series(name: str, text: str, x: str, y: str) -> list[Series]:
    """The lines of a sweep's table: y over x, one for each combination of the other options.

    FIDs get their interval. The name of a line is the table's and what tells it from the others.

    Raises:
        ValueError: it is no such table, or a cell of x or y is no number.
    """
    rows = read_table(text, (x, y))
    tied = {x, "nfe", "steps"} if x in ("nfe", "steps") else {x, "nfe"}
    options = [k for k in rows[0] if k not in {y, *tied, *SCORES} and len({row[k] for row in rows}) > 1]
    lines: dict[str, list[dict[str, str]]] = {}
    for row in rows:
        lines.setdefault(", ".join(f"{k} {row[k]}" for k in options), []).append(row)
    return [_line(name, about, found, x, y) for about, found in lines.items()]


def _line(name: str, about: str, rows: list[dict[str, str]], x: str, y: str) -> Series:
    kept = sorted((number(row[x]), i) for i, row in enumerate(rows))
    order = [rows[i] for _, i in kept]
    columns = {k: [number(row.get(k) or "") for row in order] for k in (x, y, "fid_low", "fid_high")}
    title = ": ".join(part for part in (name, about) if part)
    if y != "fid" or np.isnan(columns["fid_low"]).all():
        return Series(title, columns[x], columns[y])
    return Series(title, columns[x], columns[y], columns["fid_low"], columns["fid_high"])


UNITS = {
    "fid": "FID",
    "nfe": "network evaluations per image",
    "seconds": "time (s)",
    "accuracy": "accuracy of the classifier (share)",
    "confident": "confident images (share)",
}


def draw_table(figure: Figure, lines: Sequence[Series], x: str, y: str, log: tuple[str, ...]) -> None:
    """The lines with a mark at every row, and intervals as bars."""
    axes = figure.subplots()
    for i, line in enumerate(lines):
        reach = None
        if line.low is not None and line.high is not None:
            reach = np.abs(np.array([line.low, line.high]) - np.array(line.y))
        axes.errorbar(
            line.x,
            line.y,
            reach,
            color=colour(i),
            marker="o",
            markersize=5,
            linewidth=1.6,
            elinewidth=0.9,
            capsize=3,
            label=line.name,
        )
    _finish(axes, UNITS.get(y, y), log)
    axes.set_xlabel(UNITS.get(x, x))
    at = sorted({v for line in lines for v in line.x if not math.isnan(v)})
    if len(at) <= 8:  # the values measured are better ticks than round numbers
        axes.set_xticks(at, [f"{v:g}" for v in at])
        axes.minorticks_off()
    _names(figure, axes)
