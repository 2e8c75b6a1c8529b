"""Paths between two points."""

import pytest
import torch

from genkit.diffusion.interpolation import path
from genkit.errors import InputError


def test_slerp_keeps_the_norm_and_reaches_both_ends():
    """Oracle: geometry of the circle: right angle, middle at 45 degrees."""
    a, b = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0])
    points = path(a, b, 5)
    assert torch.allclose(points.norm(dim=1), torch.ones(5))
    assert torch.allclose(points[2], torch.tensor([0.5**0.5, 0.5**0.5]))
    assert torch.allclose(points[0], a)
    assert torch.allclose(points[-1], b, atol=1e-6)


def test_parallel_points_need_no_angle():
    """Oracle: the straight line; sin(0) / sin(0) must not appear."""
    a = torch.ones(3)
    assert torch.allclose(path(a, 2 * a, 3)[1], 1.5 * a)


def test_lerp():
    """Oracle: the arithmetic mean."""
    a, b = torch.zeros(2, 2), torch.full((2, 2), 4.0)
    assert torch.allclose(path(a, b, 3, "lerp")[1], torch.full((2, 2), 2.0))


def test_unknown_method():
    """Oracle: the closest name is offered."""
    with pytest.raises(InputError, match="did you mean 'slerp'"):
        path(torch.ones(2), torch.ones(2), 3, "slrp")
