"""Logs, bounds and tables as lines: against hand values; damaged input."""

import json
import math

import numpy as np
import pytest
from matplotlib.figure import Figure

from genkit.plots import curves
from genkit.plots.curves import Series

LOG = [{"step": s, "time": 0.5, "loss": float(9 - s), "lr": 0.1} for s in range(1, 6)]


def text_of(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def test_a_log_comes_back():
    """Oracle: the rows written; the names of their numbers, step and time left out."""
    rows, bad = curves.read_log(text_of(LOG))
    assert (rows, bad) == (LOG, 0)
    assert curves.keys_of(rows) == ["loss", "lr"]


@pytest.mark.parametrize(
    "tail",
    ['{"step": 6, "lo', "\x00\x00\x00", "[1, 2]", '"text"', "{}", '{"step": null}', '{"step": "6"}', "7"],
)
def test_a_damaged_line_is_counted_and_left_out(tail):
    """Oracle: the other rows; one damaged line."""
    rows, bad = curves.read_log(text_of(LOG) + tail)
    assert (rows, bad) == (LOG, 1)


def test_steps_run_again_count_once():
    """Oracle: after an interruption the later lines of steps 4 and 5 hold; the held-out line of the last step
    stands beside its training line."""
    again = [{**row, "loss": -1.0} for row in LOG[3:]]
    held_out = {"step": 5, "test_loss": 2.5}
    rows, _ = curves.read_log(text_of([*LOG, *again, held_out]))
    assert rows == [*LOG[:3], *again, held_out]
    assert curves.series_of("r", rows, "loss") == Series("r", [1, 2, 3, 4, 5], [8, 7, 6, -1, -1])
    assert curves.series_of("r", rows, "test_loss") == Series("r", [5], [2.5])


def test_what_is_no_number_is_left_out():
    """Oracle: NaN, infinity, text, truth values and missing values do not make points."""
    rows = [{"step": i, "loss": v} for i, v in enumerate((1.0, math.nan, math.inf, "2", True, None, 3))]
    assert curves.series_of("r", [*rows, {"step": 9}], "loss") == Series("r", [0, 6], [1, 3])


def test_smoothing_leaves_a_straight_line_alone():
    """Oracle: the middle of an evenly spaced straight line is its own average, a constant everywhere; width 0
    is the identity; one point is itself."""
    x = [float(i) for i in range(101)]
    straight = curves.smoothed(Series("r", x, [2 * v for v in x]), 0.02)
    assert straight[20:80] == pytest.approx([2 * v for v in x[20:80]])
    assert curves.smoothed(Series("r", x, [4.0] * 101), 0.3) == pytest.approx([4.0] * 101)
    assert curves.smoothed(Series("r", x, x), 0.0) == x
    assert curves.smoothed(Series("r", [3.0], [5.0]), 0.5) == [5.0]


def test_smoothing_by_hand():
    """Oracle: three points one standard deviation apart: the weights of a normal at 0, 1 and 2."""
    a, b = math.exp(-0.5), math.exp(-2.0)
    found = curves.smoothed(Series("r", [0.0, 1.0, 2.0], [1.0, 0.0, 0.0]), 0.5)
    assert found == pytest.approx([1 / (1 + a + b), a / (1 + 2 * a), b / (1 + a + b)])


SWEEP = """steps,eta,nfe,n,fid,fid_low,fid_high,confident,accuracy,seconds
10,0.0,10,64,2.0,1.5,2.5,,,1.0
5,0.0,5,64,3.0,2.5,3.5,,,1.0
5,1.0,5,64,9.0,8.0,9.9,,,1.0
10,1.0,10,64,7.0,6.0,8.0,,,1.0
"""


def test_a_table_is_a_line_for_each_setting():
    """Oracle: by hand: eta tells the lines apart, the network evaluations rise, FIDs have their interval."""
    first, second = curves.table_series("ddim", SWEEP, "nfe", "fid")
    assert first == Series("ddim: eta 0.0", [5, 10], [3, 2], [2.5, 1.5], [3.5, 2.5])
    assert (second.name, second.y) == ("ddim: eta 1.0", [9, 7])


def test_another_axis():
    """Oracle: by hand: over eta a line for each number of steps, and no interval for what has none."""
    first, second = curves.table_series("", SWEEP, "eta", "seconds")
    assert first == Series("steps 10", [0, 1], [1, 1])
    assert second.name == "steps 5"


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "no column"),
        ("a,b\n1,2\n", "no column 'nfe'; it has a, b"),
        ("nfe,fid\n", "no rows"),
        ("nfe,fid\n10,abc\n", "'abc' where a number"),
        ("nfe,fid\n10\n", "no rows"),
        ("nfe,fid\n1,\x002\n", "number"),
    ],
)
def test_what_is_no_table(text, message):
    """Oracle: ValueError that names what is missing."""
    with pytest.raises(ValueError, match=message):
        curves.table_series("x", text, "nfe", "fid")


BOUND = "step,t,bits,error,x0_mse\n1,0.001,2.0,0.1,0.01\n2,0.5,1.0,0.2,0.5\n"


def test_a_bound_and_its_errors():
    """Oracle: by hand; a band of two standard errors."""
    bits, mse = curves.bound_series("m", BOUND)
    assert (bits.x, bits.y, mse.y) == ([1, 2], [2, 1], [0.01, 0.5])
    assert bits.low == pytest.approx([1.8, 0.6])
    assert bits.high == pytest.approx([2.2, 1.4])


def test_lines_drawn_are_the_numbers():
    """Oracle: the data of matplotlib's lines: pale raw, bold smoothed; labels; logarithmic where asked."""
    line = Series("run", [1.0, 2.0, 3.0], [4.0, 2.0, 1.0])
    figure = Figure()
    curves.draw_curves(figure, {"loss": [line], "kl": [line]}, 0.2, ("y",))
    upper, lower = figure.axes
    raw, bold = upper.lines
    assert raw.get_ydata().tolist() == line.y
    assert bold.get_ydata().tolist() == pytest.approx(curves.smoothed(line, 0.2))
    assert (upper.get_ylabel(), lower.get_ylabel(), lower.get_xlabel()) == ("loss", "kl", "training step")
    assert (upper.get_yscale(), upper.get_xscale()) == ("log", "linear")
    assert [t.get_text() for t in figure.legends[0].get_texts()] == ["run"]


def test_a_table_drawn():
    """Oracle: a mark at every row, an error bar at each FID, the axes in words."""
    figure = Figure()
    lines = curves.table_series("", SWEEP, "nfe", "fid")
    curves.draw_table(figure, lines, "nfe", "fid", ())
    (axes,) = figure.axes
    assert [bar[0].get_ydata().tolist() for bar in axes.containers] == [[3, 2], [9, 7]]
    low, high = np.array(list(axes.containers[0][2][0].get_segments()))[:, :, 1].T
    assert (low.tolist(), high.tolist()) == ([2.5, 1.5], [3.5, 2.5])
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("network evaluations per image", "FID")
