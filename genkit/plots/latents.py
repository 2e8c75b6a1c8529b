"""Codes in the plane: projections, the accuracy of their neighbours, and the scatter of them."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.offsetbox import AnnotationBbox, OffsetImage
from matplotlib.patheffects import withStroke
from torch import Tensor

from .style import MARKERS, colour, grid_lines, marker

METHODS = ("pca", "tsne", "first")
NAMED = 20  # classes in a legend
NEIGHBOURS, FOLDS = 5, 5
CELLS = 22  # thumbnails along the longer side


class Panel(NamedTuple):
    """One set of codes. points: (N, 2) in the plane; labels: (N,) classes; axes: names of the two axes;
    pictures: (N, H, W) or (N, H, W, 3) in [0, 1] to stand where the points are."""

    title: str
    points: np.ndarray
    axes: tuple[str, str]
    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    pictures: np.ndarray | None = None


def project(z: Tensor, method: str, seed: int = 0) -> tuple[np.ndarray, tuple[str, str]]:
    """(N, 2) points of codes z: (N, ...), with the names of the two axes.

    "first": the first two units; "pca": the two directions of largest variance, which for two units are the
    units themselves, turned; "tsne": van der Maaten & Hinton 2008, from the principal components.

    Raises:
        ValueError: the codes have one unit, or t-SNE gets fewer than 4.
    """
    flat = z.flatten(1).double()
    if flat.shape[1] < 2:
        raise ValueError("has codes of one unit, which have no plane")
    if method == "first":
        return flat[:, :2].numpy(), ("unit 1 of the code", "unit 2 of the code")
    if method == "tsne":
        if len(flat) < 4:
            raise ValueError(f"has {len(flat)} codes, and t-SNE needs at least 4")
        return _tsne(flat.numpy(), seed), ("t-SNE 1 (no unit)", "t-SNE 2 (no unit)")
    centred = flat - flat.mean(dim=0)
    _, spread, directions = torch.linalg.svd(centred, full_matrices=False)
    # a direction is known up to its sign: the largest entry is made positive
    largest = directions.gather(1, directions.abs().argmax(dim=1, keepdim=True))
    plane = (directions * largest.sign())[:2]
    share = (spread.square() / spread.square().sum().clamp(min=1e-300))[:2].tolist()
    points = torch.zeros(len(flat), 2, dtype=torch.float64)
    points[:, : len(plane)] = centred @ plane.T
    names = [f"principal component {i} ({100 * v:.0f} % of variance)" for i, v in enumerate([*share, 0.0], 1)]
    return points.numpy(), (names[0], names[1])


def _tsne(flat: np.ndarray, seed: int) -> np.ndarray:
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(flat) - 1) / 3)
    return TSNE(2, perplexity=perplexity, init="pca", random_state=seed).fit_transform(flat)


def knn_accuracy(z: Tensor, labels: Tensor) -> float | None:
    """The share of codes z: (N, ...) whose 5 nearest neighbours name their class, labels: (N,), in 5-fold
    cross-validation; None where a class has fewer than 5 codes or there is but one.

    All units count, by Euclidean distance in the code's own scale.
    """
    from sklearn.model_selection import StratifiedKFold, cross_val_score
    from sklearn.neighbors import KNeighborsClassifier

    counts = labels.bincount()
    counts = counts[counts > 0]
    if len(counts) < 2 or int(counts.min()) < FOLDS:
        return None
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)  # files are often sorted by class
    vote = KNeighborsClassifier(NEIGHBOURS)
    return float(cross_val_score(vote, z.flatten(1).numpy(), labels.numpy(), cv=folds).mean())


def panels_size(count: int, named: bool) -> tuple[float, float]:
    """Inches for so many panels side by side, with a legend or without."""
    return 5.0 * count + (1.2 if named else 0.0), 5.0


def draw_panels(figure: Figure, panels: Sequence[Panel]) -> None:
    """The panels side by side, with one legend where they have classes."""
    every = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, panel in zip(every, panels):
        _scatter(axes, panel)
        if panel.pictures is not None:
            _thumbnails(axes, panel)
        axes.set_title(panel.title)
        axes.set_xlabel(panel.axes[0])
        axes.set_ylabel(panel.axes[1])
    classes = max((p.classes for p in panels), key=len)
    if classes:
        _legend(figure, classes)


def _scatter(axes: Axes, panel: Panel) -> None:
    """The points of a panel, its classes named at their medians."""
    points, count = panel.points, len(panel.points)
    shown: dict[str, Any] = {
        "s": float(np.clip(30000 / count, 5, 36)),
        "alpha": 0.8,
        "linewidths": 0,
        "rasterized": count > 2000,
    }
    grid_lines(axes)
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_box_aspect(1)
    if panel.labels is None:
        axes.scatter(*points.T, color=colour(0), **shown)
        return
    # in no order of classes: the last one would cover the others
    order = np.random.default_rng(0).permutation(count)
    points, labels = points[order], panel.labels[order]
    forms, colours = (np.array([of(k) for k in labels]) for of in (marker, colour))
    for form in sorted(set(forms), key=MARKERS.index):
        chosen = forms == form
        axes.scatter(*points[chosen].T, facecolors=colours[chosen].tolist(), marker=form, **shown)
    if panel.pictures is None and len(panel.classes) <= NAMED:
        for k in np.unique(labels):
            x, y = np.median(points[labels == k], axis=0)
            ring = [withStroke(linewidth=3, foreground="white")]
            axes.text(x, y, panel.classes[k], ha="center", va="center", weight="bold", path_effects=ring)


def _legend(figure: Figure, classes: tuple[str, ...]) -> None:
    """The classes' colours, to the right of all panels."""
    names = [*classes[:NAMED], *([f"… {len(classes)} in all"] if len(classes) > NAMED else [])]
    marks = [
        Line2D([], [], linestyle="", marker=marker(k), color=colour(k) if k < NAMED else "none", markersize=7)
        for k in range(len(names))
    ]
    figure.legend(marks, names, loc="outside right center", title="class", handletextpad=0.2)


def apart(points: np.ndarray, side: float) -> list[int]:
    """Those of (N, 2) points, the first ones first, on which squares of `side` do not overlap."""
    kept: list[int] = []
    for i, point in enumerate(points):
        if not kept or np.abs(points[kept] - point).max(axis=1).min() >= side:
            kept.append(i)
    return kept


def _thumbnails(axes: Axes, panel: Panel) -> None:
    """Pictures framed in their class's colour, where they do not cover one another."""
    assert panel.pictures is not None
    zoom = 220 / CELLS / max(panel.pictures.shape[1:3])  # 220 points: what the codes fill of a panel
    span = float(np.ptp(panel.points, axis=0).max())
    for i in apart(panel.points, max(1.25 * span / CELLS, 1e-12)):
        image = OffsetImage(panel.pictures[i], zoom=zoom, cmap="gray", norm="linear")
        edge = colour(int(panel.labels[i])) if panel.labels is not None else "#888888"
        frame = {"edgecolor": edge, "linewidth": 1.2}
        axes.add_artist(AnnotationBbox(image, tuple(panel.points[i]), pad=0.05, bboxprops=frame))
