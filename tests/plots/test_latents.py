"""Projections and neighbours of codes against numpy and by hand, and what of them is drawn."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from genkit.plots.latents import Panel, apart, draw_panels, knn_accuracy, panels_size, project


def codes(n=40, units=5, seed=0):
    scale = torch.tensor([3.0, 1.0, 2.0, 0.5, 0.1])[:units]
    return (torch.randn(n, units, generator=torch.Generator().manual_seed(seed)) * scale)[:, :, None, None]


def test_pca_is_the_eigenvectors_of_the_covariance():
    """Oracle: numpy's eigh of the covariance, up to the sign of each direction; shares of variance in the
    names, and the squares of the points add up to them."""
    z = codes()
    points, names = project(z, "pca")
    flat = z.flatten(1).double().numpy()
    values, vectors = np.linalg.eigh(np.cov(flat.T, ddof=0))
    exact = (flat - flat.mean(axis=0)) @ vectors[:, ::-1][:, :2]
    np.testing.assert_allclose(np.abs(points), np.abs(exact), atol=1e-9)
    shares = 100 * values[::-1][:2] / values.sum()
    assert names == tuple(f"principal component {i} ({s:.0f} % of variance)" for i, s in enumerate(shares, 1))
    np.testing.assert_allclose(points.var(axis=0), values[::-1][:2])


def test_pca_turns_with_the_codes_only_in_sign():
    """Oracle: negated codes have the same directions, so negated points: the sign is a convention."""
    np.testing.assert_allclose(project(-codes(), "pca")[0], -project(codes(), "pca")[0], atol=1e-9)


def test_two_equal_codes_have_no_spread():
    """Oracle: the points are 0 and finite."""
    points, _ = project(torch.ones(2, 3, 1, 1), "pca")
    assert np.array_equal(points, np.zeros((2, 2)))


def test_first_are_the_first_units():
    """Oracle: the codes themselves."""
    z = codes()
    assert np.array_equal(project(z, "first")[0], z[:, :2, 0, 0].double().numpy())


def test_tsne_keeps_two_heaps_apart():
    """Oracle: two far heaps: every code's nearest neighbour in the plane is of its heap; the same picture
    for the same seed."""
    z = torch.cat([codes(10), codes(10, seed=1) + 50])
    points, _ = project(z, "tsne", seed=3)
    distance = np.linalg.norm(points[:, None] - points[None], axis=-1) + np.diag([np.inf] * 20)
    assert all((i < 10) == (j < 10) for i, j in enumerate(distance.argmin(axis=1)))
    assert np.array_equal(points, project(z, "tsne", seed=3)[0])


@pytest.mark.parametrize("method", ["pca", "tsne", "first"])
def test_one_unit_has_no_plane(method):
    """Oracle: ValueError."""
    with pytest.raises(ValueError, match="no plane"):
        project(torch.zeros(9, 1, 1, 1), method)


def test_neighbours_of_separate_heaps_are_right_and_of_noise_are_not():
    """Oracle: 1 for heaps of one class each; near 1/2 (by 4 standard errors) for labels that are chance."""
    z = torch.cat([codes(30), codes(30, seed=1) + 50])
    assert knn_accuracy(z, torch.arange(60) // 30) == 1.0
    n = 400
    labels = torch.randint(0, 2, (n,), generator=torch.Generator().manual_seed(2))
    assert knn_accuracy(codes(n), labels) == pytest.approx(0.5, abs=4 * 0.5 / n**0.5)


def test_accuracy_counts_all_units():
    """Oracle: classes that only the third unit tells apart are found."""
    z = torch.zeros(60, 3, 1, 1)
    z[:, 2, 0, 0] = 10.0 * (torch.arange(60) % 3) + 0.01 * torch.arange(60)
    assert knn_accuracy(z, torch.arange(60) % 3) == 1.0


@pytest.mark.parametrize("labels", [[0] * 10, [0] * 7 + [1] * 3])
def test_too_few_for_five_folds(labels):
    """Oracle: None: one class, or one of fewer than 5 codes."""
    assert knn_accuracy(codes(10), torch.tensor(labels)) is None


def test_apart():
    """Oracle: by hand: squares of side 1 on a line; the first ones stay."""
    points = np.array([[0.0, 0.0], [0.5, 0.9], [1.0, 0.0], [1.9, 0.0], [0.2, 1.0]])
    assert apart(points, 1.0) == [0, 2, 4]


def panel(labelled, classes=("a", "b"), pictures=None):
    points = project(codes(), "first")[0]
    labels = np.arange(40) % len(classes) if labelled else None
    return Panel("name", points, ("x", "y"), labels, classes if labelled else (), pictures)


def test_every_point_and_class_is_drawn():
    """Oracle: the points of all scatters together are the panel's; the legend and the median's labels name
    the classes; axes and title."""
    figure = Figure(figsize=panels_size(2, True))
    draw_panels(figure, [panel(True), panel(False)])
    for axes, texts in zip(figure.axes, (["a", "b"], [])):
        drawn = np.concatenate([c.get_offsets() for c in axes.collections])
        np.testing.assert_allclose(np.sort(drawn, axis=0), np.sort(panel(True).points, axis=0))
        assert [t.get_text() for t in axes.texts] == texts
        assert (axes.get_title(), axes.get_xlabel(), axes.get_ylabel()) == ("name", "x", "y")
    (legend,) = figure.legends
    assert [t.get_text() for t in legend.get_texts()] == ["a", "b"]


def test_many_classes_change_markers_and_shorten_the_legend():
    """Oracle: 23 classes: three markers in ten colours, 20 names and how many there are."""
    names = tuple(f"c{i}" for i in range(23))
    figure = Figure()
    draw_panels(figure, [panel(True, names)])
    assert len(figure.axes[0].collections) == 3
    texts = [t.get_text() for t in figure.legends[0].get_texts()]
    assert texts == [*names[:20], "… 23 in all"]


def test_thumbnails_stand_at_their_points():
    """Oracle: the places of the pictures are points of the panel, no two of them close."""
    pictures = np.linspace(0, 1, 40 * 64).reshape(40, 8, 8)
    shown = panel(True, pictures=pictures)
    figure = Figure()
    draw_panels(figure, [shown])
    places = np.array([box.xy for box in figure.axes[0].artists])
    assert 5 < len(places) <= 40
    assert all((shown.points == place).all(axis=1).any() for place in places)
    assert not figure.axes[0].texts
