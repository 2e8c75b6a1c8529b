"""How every figure looks: sizes, colours that the colour-blind tell apart, one way to write it."""

import io as stdio
import json
from collections.abc import Callable, Mapping
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

FORMS = (".png", ".pdf", ".svg")
# ten colours that stay apart under each kind of colour blindness (Petroff 2021, "Accessible color sequences")
COLOURS = (
    "#3f90da",
    "#ffa90e",
    "#bd1f01",
    "#94a4a2",
    "#832db6",
    "#a96b59",
    "#e76300",
    "#b9ac70",
    "#717581",
    "#92dadd",
)
MARKERS = "osD^vPX*"  # what tells two classes of one colour apart
RULES: Any = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.labelsize": 11,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#e3e3e3",
    "savefig.facecolor": "white",
    "svg.hashsalt": "genkit",  # the same figure is the same file
    "pdf.fonttype": 42,  # text stays text
}
DPI = 130


def colour(i: int) -> str:
    """The colour of series or class i."""
    return COLOURS[i % len(COLOURS)]


def marker(i: int) -> str:
    """The marker of class i: the next one each time the colours begin again."""
    return MARKERS[i // len(COLOURS) % len(MARKERS)]


def figure_bytes(
    paint: Callable[[Figure], Any], size: tuple[float, float], suffix: str, about: Mapping[str, Any]
) -> bytes:
    """The file of the figure that `paint` draws on.

    size: inches. suffix: one of `FORMS`. about: how it was made, kept inside as `info` reads it from a PNG.
    """
    buffer = stdio.BytesIO()
    with mpl.rc_context(RULES):
        figure = Figure(figsize=size, dpi=DPI, layout="constrained")
        paint(figure)
        figure.savefig(buffer, format=suffix[1:], metadata=_metadata(suffix, json.dumps(dict(about))))
    return buffer.getvalue()


def _metadata(suffix: str, about: str) -> dict[str, Any]:
    """No dates, so that the same figure is the same file."""
    if suffix == ".png":
        return {"genkit": about, "Software": None}
    if suffix == ".pdf":
        return {"Subject": about, "CreationDate": None}
    return {"Description": about, "Date": None}


def grid_lines(axes: Axes) -> None:
    """Pale lines at the major ticks."""
    axes.grid(True, which="major")
