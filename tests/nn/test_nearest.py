"""The nearest of many codes: the kernel and torch's operations."""

import pytest
import torch

from genkit.nn import nearest as module
from genkit.nn.nearest import nearest

SHAPES = [(50, 7, 3), (1, 1, 1), (200, 512, 16), (97, 65, 4), (96, 130, 33), (5, 2, 300)]  # N, K, D


def numbers(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("n, k, size", SHAPES)
def test_codes_are_the_nearest(n, k, size, compiled, without_kernels):
    """Oracle: distances by brute force in float64."""
    x, codes = numbers(n, size), numbers(k, size, seed=1)
    token = nearest(x, codes) if compiled else without_kernels(lambda: nearest(x, codes), module)
    assert token.dtype == torch.int64
    assert torch.equal(token, torch.cdist(x.double(), codes.double()).argmin(dim=1))


@pytest.mark.parametrize("compiled", [True, False])
def test_the_first_of_equal_codes_is_taken(compiled, without_kernels):
    """Oracle: the codebook holds every vector four times, 16 codes apart, turned round or not."""
    x = numbers(16, 5)
    codes = x.repeat(4, 1)
    for order in (torch.arange(64), torch.arange(64).flip(0)):
        turned = codes[order]
        wanted = torch.tensor([(turned == row).all(dim=1).nonzero()[0].item() for row in x])
        token = nearest(x, turned) if compiled else without_kernels(lambda: nearest(x, turned), module)  # noqa: B023
        assert torch.equal(token, wanted)


@pytest.mark.parametrize("compiled", [True, False])
def test_what_has_no_distance_has_the_first_code(compiled, without_kernels):
    """Oracle: argmin of NaN alone is 0; a token outside the codebook would crash the look-up."""
    x = torch.tensor([[float("nan"), 0.0], [0.0, float("nan")], [1.0, 1.0]])
    codes = torch.tensor([[5.0, 5.0], [1.0, 1.0], [0.0, 0.0]])
    token = nearest(x, codes) if compiled else without_kernels(lambda: nearest(x, codes), module)
    assert token.tolist() == [0, 0, 1]


def test_a_code_does_not_depend_on_the_batch():
    """Oracle: each vector alone; the kernel sums every distance in the same order."""
    if module._kernels() is None:
        pytest.skip("no C++ kernels on this machine")
    x, codes = numbers(101, 8), 1e-3 * numbers(70, 8, seed=1)
    assert torch.equal(nearest(x, codes), torch.cat([nearest(row[None], codes) for row in x]))


@pytest.mark.parametrize("layout", ["transposed", "sliced", "double"])
def test_any_layout_will_do(layout):
    """Oracle: the same numbers without gaps, in float32."""
    x, codes = numbers(40, 6), numbers(20, 6, seed=1)
    wanted = nearest(x, codes)
    if layout == "transposed":
        x, codes = x.t().contiguous().t(), codes.t().contiguous().t()
    elif layout == "sliced":
        x, codes = torch.cat([x, x], dim=1)[:, :6], torch.cat([codes, codes], dim=1)[:, 6:]
    else:
        x, codes = x.double(), codes.double()
    assert torch.equal(nearest(x, codes), wanted)
