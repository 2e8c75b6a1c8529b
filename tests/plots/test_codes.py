"""Planes and traversals of codes: their values in closed form, and decoders whose effect is known."""

import html
import json

import pytest
import torch
from matplotlib.figure import Figure
from torch.distributions import Normal

from genkit.io.images import read_about
from genkit.plots import codes
from genkit.plots.style import FORMS, figure_bytes


def test_quantiles_cut_the_normal_evenly():
    """Oracle: the cumulative distribution at the values: the middles of n equal parts; symmetric."""
    values = codes.quantiles(20).double()
    exact = (torch.arange(20, dtype=torch.float64) + 0.5) / 20
    torch.testing.assert_close(Normal(0.0, 1.0).cdf(values), exact, atol=1e-7, rtol=0)
    torch.testing.assert_close(values, -values.flip(0), atol=1e-6, rtol=0)


def test_plane():
    """Oracle: by hand for 3 x 3: unit 1 rises to the right, unit 2 falls from the top row down, the others
    are 0."""
    z = codes.plane_codes((4, 1, 1), codes.quantiles(3)).reshape(3, 3, 4)
    values = codes.quantiles(3)
    for row in range(3):
        assert torch.equal(z[row, :, 0], values)
        assert torch.equal(z[row, :, 1], values[2 - row].expand(3))
    assert torch.equal(z[:, :, 2:], torch.zeros(3, 3, 2))


@pytest.mark.parametrize("shape", [(1, 1, 1), (4, 7, 7)])
def test_no_plane(shape):
    """Oracle: ValueError with the shape."""
    with pytest.raises(ValueError, match="x".join(map(str, shape))):
        codes.plane_codes(shape, codes.quantiles(3))


def test_a_traversal_changes_one_unit():
    """Oracle: by hand: each row differs from the code in its unit only, which runs over the values."""
    z = torch.arange(8.0).reshape(2, 2, 2)
    values = torch.tensor([-1.0, 0.0, 1.0])
    rows = codes.traversal_codes(z, [5, 0], values).reshape(2, 3, 8)
    for row, unit in zip(rows, (5, 0)):
        assert torch.equal(row[:, unit], values)
        others = [i for i in range(8) if i != unit]
        assert torch.equal(row[:, others], z.flatten()[others].expand(3, 7))
    assert z.flatten().tolist() == list(range(8))


def test_effects_of_a_linear_decoder():
    """Oracle: in closed form: unit u moves pixel u by 2 reach w_u, so the root mean square over 4 pixels is
    reach w_u; the same in any batch."""
    weight = torch.tensor([0.1, 0.0, -0.3, 0.2])

    def decode(z):
        return (z.flatten(1) * weight).reshape(-1, 1, 2, 2)

    z = torch.randn(4, 1, 1, generator=torch.Generator().manual_seed(0))
    for batch in (256, 2, 1):
        found = codes.effects(z, 1.5, decode, batch)
        torch.testing.assert_close(found, 1.5 * weight.abs())


@pytest.mark.parametrize(
    "unit, shape, name", [(4, (9, 1, 1), "5"), (0, (2, 3, 4), "1,1,1"), (12 + 4 + 2, (2, 3, 4), "2,2,3")]
)
def test_names_of_units(unit, shape, name):
    """Oracle: by hand: number of a vector's unit; channel, row and column of a map's; from 1."""
    assert codes.unit_name(unit, shape) == name


def test_sheet():
    """Oracle: by hand: two black pictures and a white one in rows of two, a white line between."""
    x = torch.full((3, 1, 2, 2), -1.0)
    x[2] = 1
    picture = codes.sheet(x, 2, 1)
    assert picture.shape == (5, 5)
    assert picture[:2].tolist() == [[0, 0, 1, 0, 0]] * 2
    assert (picture[2:] == 1).all()
    assert codes.sheet(torch.zeros(4, 3, 2, 2), 2, 0).shape == (4, 4, 3)


def test_ticks_name_values_and_units():
    """Oracle: the texts beside the sheet, with a true minus; the plane's ticks at the middles of pictures."""
    figure = Figure()
    codes.draw_traversal(figure, torch.zeros(6, 1, 4, 4), ["7", "2"], [-3.0, 0.0, 3.0])
    (axes,) = figure.axes
    assert [t.get_text() for t in axes.get_xticklabels()] == ["−3", "0", "3"]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["7", "2"]
    figure = Figure()
    codes.draw_plane(figure, torch.zeros(9, 1, 4, 4), codes.quantiles(3).tolist(), "nats")
    (axes,) = figure.axes
    assert axes.get_xticks().tolist() == [1.5, 5.5, 9.5]
    assert axes.get_yticks().tolist() == [9.5, 5.5, 1.5]
    assert [t.get_text() for t in axes.get_yticklabels()] == ["−0.97", "0.00", "0.97"]


@pytest.mark.parametrize("suffix", FORMS)
def test_the_same_figure_is_the_same_file(suffix, tmp_path):
    """Oracle: equal bytes from two calls; the file's first bytes; PNG and SVG say how they were made."""

    def paint(figure):
        figure.subplots().plot([1, 2, 3])

    first, second = (figure_bytes(paint, (3, 2), suffix, {"plot": "x", "n": 2}) for _ in range(2))
    assert first == second
    head = {".png": b"\x89PNG", ".pdf": b"%PDF", ".svg": b"<?xml"}[suffix]
    assert first.startswith(head)
    if suffix == ".png":
        (tmp_path / "x.png").write_bytes(first)
        assert read_about(tmp_path / "x.png") == {"plot": "x", "n": 2}
    if suffix == ".svg":
        assert json.dumps({"plot": "x", "n": 2}) in html.unescape(first.decode())
