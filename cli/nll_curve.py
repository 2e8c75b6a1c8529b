"""The files of eval-nll: a bound's curve over the chain as CSV and as a picture."""

import csv
import io as std_io
from pathlib import Path

from genkit import io
from genkit.errors import InputError
from genkit.evaluate.nll import Nll, Point

from .outputs import check_parents


def curve_files(text: str) -> tuple[Path, ...]:
    """The files that -o asks for.

    Raises:
        InputError: for another suffix, or a path that is of the other kind.
    """
    path, suffix = Path(text), Path(text).suffix.lower()
    check_parents(path)
    if suffix in (".csv", ".png"):
        if path.is_dir():
            raise InputError(f"-o {text} is a folder; name a file or drop the suffix")
        return (path,)
    if suffix and not text.endswith("/"):
        raise InputError(f"-o {text} is no form of output here; use x.csv, x.png or a folder/ for both")
    if path.exists() and not path.is_dir():
        raise InputError(f"-o {text} is a file; name a folder, or x.csv or x.png")
    return path / "curve.csv", path / "curve.png"


def write_curve(found: Nll, files: tuple[Path, ...]) -> None:
    """Write each of `files` in the form that its suffix says."""
    for path in files:
        if path.suffix.lower() == ".csv":
            io.write_text(path, curve_csv(found))
        else:
            io.write_bytes(path, curve_png(found))


def curve_csv(found: Nll) -> str:
    """The curve as text: step, t, bits, error, x0_mse; from the step next to the data."""
    text = std_io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Point._fields)
    writer.writerows([p.step, *(f"{v:.9g}" for v in p[1:])] for p in found.curve)
    return text.getvalue()


def curve_png(found: Nll) -> bytes:
    """The curve as a picture: each step's bits/dim above its squared error of x0, on logarithmic axes."""
    from matplotlib.figure import Figure

    steps = [p.step for p in found.curve]
    curves = {"bits/dim of the step": [p.bits for p in found.curve]}
    curves["MSE of x0"] = [p.x0_mse for p in found.curve]
    figure = Figure(figsize=(7, 6), dpi=120, layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    for axes, (label, values) in zip(panels, curves.items()):
        # a density's term may be negative, and a logarithm has no place for it
        shown = [v if v > 0 else float("nan") for v in values]
        axes.plot(steps, shown, linewidth=1.2, color="#1f5f8b")
        axes.set_yscale("log")
        axes.set_ylabel(label)
        axes.grid(True, which="major", alpha=0.3)
    panels[0].set_title(f"{found.total.value:.4f} ± {found.total.error:.4f} bits/dim, n = {found.n}")
    panels[1].set_xlabel("step of the chain (1 is next to the data)")
    panels[1].set_xscale("log")
    buffer = std_io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
